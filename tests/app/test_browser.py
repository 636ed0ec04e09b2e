"""The browser of features in a real browser: keys, sorting, offline, in light and dark, wide and narrow."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

from monosem.app import make_app
from monosem.app.export import export
from monosem.serving import _bind

from .study import DEAD, DENSE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
PAGES = [
    "/",
    "/run/topk-k4",
    f"/run/topk-k4/feature/{DENSE}",
    f"/run/topk-k4/feature/{DEAD}",
    "/search?text=a+b&run=topk-k4",
    f"/run/topk-k4/feature/{DENSE}/document/3?pos=2",
    "/nothing",
]


def search(_run: str, text: str) -> list[tuple[str, list[tuple[int, float]]]]:
    return [(word, [(DENSE, 2.0), (9, 1.0)]) for word in text.split()]


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    listening = _bind("127.0.0.1", 0)
    config = uvicorn.Config(make_app(folder, search=search), log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()


class Visit:
    """An opened page and everything that it complained about or asked for elsewhere."""

    def __init__(self, browser: Browser, viewport: Any = WIDE, scheme: Any = "light") -> None:
        self.page: Page = browser.new_page(viewport=viewport, color_scheme=scheme)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def open(self, address: str) -> Page:
        self.page.goto(address)
        self.page.wait_for_load_state("networkidle")
        return self.page


@pytest.fixture
def visit(browser: Browser) -> Iterator[Any]:
    visits: list[Visit] = []

    def make(viewport: Any = WIDE, scheme: Any = "light") -> Visit:
        visits.append(Visit(browser, viewport, scheme))
        return visits[-1]

    yield make
    for opened in visits:
        opened.page.close()


@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_open_without_complaint_request_elsewhere_or_sideways_scrolling(
    visit: Any, address: str, viewport: Any, scheme: str
) -> None:
    seen = visit(viewport, scheme)
    for path in PAGES:
        page = seen.open(address + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], path
    assert [text for text in seen.complaints if "404" not in text] == []
    assert {url for url in seen.requests if not url.startswith((address, "data:"))} == set()


def test_light_and_dark_differ_and_marked_tokens_stay_readable(visit: Any, address: str) -> None:
    contrast = """() => {
      const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
      const read = (...colours) => {
        for (const c of colours) { canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
      };
      const light = (rgb) => {
        const [r, g, b] = rgb.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const paper = getComputedStyle(document.body).backgroundColor;
      return [...document.querySelectorAll('.passage span[data-tip]')].map((e) => {
        const style = getComputedStyle(e);
        const [a, b] = [light(read(paper, style.backgroundColor)), light(read(style.color))];
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      });
    }"""
    papers = set()
    for scheme in ("light", "dark"):
        page = visit(WIDE, scheme).open(f"{address}/run/topk-k4/feature/{DENSE}")
        assert min(page.evaluate(contrast)) >= 4.5, scheme
        papers.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(papers) == 2


def numbers(page: Page, column: int) -> list[float]:
    texts = page.locator(f"table.features tbody tr > :nth-child({column})").all_inner_texts()
    return [float(text.replace("\u2009", "").rstrip("%")) for text in texts]


def test_headings_sort_on_the_server_and_the_address_remembers(visit: Any, address: str) -> None:
    seen = visit()
    page = seen.open(f"{address}/run/topk-k4")
    page.locator("#sort-peak").click()
    page.wait_for_url("**sort=peak**")
    page.wait_for_load_state("networkidle")
    assert numbers(page, 7) == sorted(numbers(page, 7), reverse=True)
    assert page.locator("th[aria-sort=descending]").inner_text() == "Max"
    page.locator("#sort-peak").press("Enter")
    page.wait_for_url("**order=asc**")
    page.wait_for_load_state("networkidle")
    assert numbers(page, 7) == sorted(numbers(page, 7))
    page.go_back()
    page.wait_for_selector("th[aria-sort=descending]")
    page.wait_for_load_state("networkidle")
    assert numbers(page, 7) == sorted(numbers(page, 7), reverse=True)
    page.reload()
    assert numbers(page, 7) == sorted(numbers(page, 7), reverse=True)
    assert seen.complaints == []


def test_filters_narrow_the_table_and_carry_over_to_features(visit: Any, address: str) -> None:
    page = visit().open(f"{address}/run/topk-k4")
    page.locator("[name='max.feature']").fill("12")
    page.locator("[name='min.feature']").fill("10")
    page.locator("[name='min.feature']").press("Enter")
    page.wait_for_url("**min.feature=10**")
    page.wait_for_load_state("networkidle")
    assert page.locator("tbody .row-link").all_inner_texts() == ["10", "11", "12"]
    page.locator("#filter-show").select_option("dead")
    page.wait_for_selector("text=No feature passes")
    page.locator("#filter-show").select_option("all")
    page.wait_for_selector("tbody .row-link")
    page.locator("tbody .row-link").nth(1).click()
    page.wait_for_url("**/feature/11**")
    assert "2 of 3 in this order" in page.locator(".steps").inner_text()
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**/feature/12**")
    page.keyboard.press("u")
    page.wait_for_url("**/run/topk-k4?**min.feature=10**")


def test_the_keyboard_reaches_everything(visit: Any, address: str) -> None:
    seen = visit()
    page = seen.open(f"{address}/")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url("**/run/topk-k4")
    for _ in range(3):
        page.keyboard.press("j")
    page.keyboard.press("k")
    assert page.evaluate("document.activeElement.textContent") == "1"
    page.keyboard.press("Enter")
    page.wait_for_url("**/feature/1")
    page.keyboard.press("j")
    page.wait_for_url("**/feature/2")
    page.keyboard.press("k")
    page.wait_for_url("**/feature/1")
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**/feature/2")
    page.keyboard.press("ArrowLeft")
    page.wait_for_url("**/feature/1")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("j")
    page.keyboard.press("Escape")
    assert page.locator("#help").is_hidden()
    assert page.url.endswith("/feature/1")
    page.keyboard.press("/")
    page.keyboard.type("jump up?")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search?**")
    assert page.locator("[name=run]").last.input_value() == "topk-k4"
    assert page.locator(".pooled .row-link").all_inner_texts() == [str(DENSE), "9"]
    assert seen.complaints == []


def test_nearest_features_come_by_themselves_and_documents_on_demand(visit: Any, address: str) -> None:
    seen = visit()
    page = seen.open(f"{address}/run/topk-k4/feature/9")
    page.wait_for_selector(".near a")
    assert page.locator(".near a").first.inner_text() == "10"
    link = page.locator(".doc").first
    link.click()
    page.wait_for_selector(".document")
    assert page.locator(".document .here").count() == 1
    link.click()
    page.wait_for_selector(".document", state="detached")
    assert seen.complaints == []


def test_hovering_over_a_token_shows_its_value(visit: Any, address: str) -> None:
    page = visit().open(f"{address}/run/topk-k4/feature/{DENSE}")
    page.locator(".passage .here").first.hover()
    shown = float(page.locator("#tip").inner_text())
    peak = page.locator(".numbers div", has_text="Max").locator("dd").inner_text()
    assert shown == float(peak)


def test_without_scripts_sorting_filtering_and_documents_still_work(browser: Browser, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{address}/run/topk-k4")
    page.locator("#sort-peak").click()
    assert numbers(page, 7) == sorted(numbers(page, 7), reverse=True)
    page.locator("[name='max.feature']").fill("2")
    page.locator(".apply").click()
    assert sorted(page.locator("tbody .row-link").all_inner_texts()) == ["0", "1", "2"]
    page.locator("tbody .row-link").first.click()
    page.locator(".doc").first.click()
    assert page.locator(".document").is_visible()
    context.close()


def test_exported_pages_open_from_disk(visit: Any, folder: Path, tmp_path: Path) -> None:
    first = export(folder, tmp_path, features=8)
    seen = visit()
    page = seen.open(first.resolve().as_uri())
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url("**/topk-k4/index.html")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url("**/topk-k4/0.html")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("!location.href.endsWith('/0.html')")
    assert page.locator(".near").is_visible()
    assert seen.complaints == []
    assert all(url.startswith(("file:", "data:")) for url in seen.requests)


def test_words_of_explanations_filter_the_table_and_are_found(visit: Any, address: str) -> None:
    seen = visit()
    page = seen.open(f"{address}/run/topk-k4")
    page.locator("[name='has.autointerp.explanation']").fill("names months")
    page.locator("[name='has.autointerp.explanation']").press("Enter")
    page.wait_for_url("**has.autointerp.explanation=names**")
    page.wait_for_load_state("networkidle")
    assert page.locator("tbody .row-link").all_inner_texts() == ["1", "11"]
    assert page.locator("[name='has.autointerp.explanation']").input_value() == "names months"
    page.goto(f"{address}/search")
    page.locator("#about").fill("date")
    page.locator("#about").press("Enter")
    page.wait_for_url("**about=date**")
    assert page.locator("td.explained").all_inner_texts() == ["<script>alert(2)</script> a date"] * 2
    page.locator("tbody .row-link").first.click()
    page.wait_for_url("**/feature/9")
    assert page.locator(".explanation").inner_text().startswith("<script>alert(2)</script> a date")
    assert seen.complaints == []
