"""Multi-dimensional features in the browser: clusters with their numbers, points of planes with their contexts."""

from __future__ import annotations

import math
import re
import shutil
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
import uvicorn

from monosem.app import make_app
from monosem.app.export import export
from monosem.app.planes import BOTTOM, EDGE, GROUPS, LEFT, SIDE, TICKS, VERDICTS, Scatter, scatter
from monosem.app.study import Study
from monosem.evals.multidim.discovery import BITS, MIXTURE
from monosem.evals.multidim.table import COLUMNS
from monosem.evals.multidim.tasks import DAYS
from monosem.serving import _bind
from monosem.store import write_json

from .study import DENSE, client
from .test_browser import NARROW, WIDE, Visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser

RUN, OTHER = "topk-k4", "gated-l1_2"
FEATURES = [12, 13, 14, 15, 16, 17, 18, 19, 20, 21]
ATTACK = "<script>alert(3)</script>\"'><img src=x onerror=alert(4)>\n"
CLUSTERS = 120  # every third is irreducible, from the first on
PLANES = f"/run/{RUN}/planes"


def plane(cluster: int, number: int, score: float, **other: Any) -> dict[str, Any]:
    defaults = {"features": [30, 31], "tokens": [" word"], "separability": 0.5, "null": 0.75, "mixture": 0.5, "n": 900}
    return {
        "kind": "plane", "cluster": cluster, "plane": number, "score": score, "method": "reducible", **defaults, **other
    }  # fmt: skip


def point(cluster: int, x: float, y: float, label: str, **other: Any) -> dict[str, Any]:
    context = {"group": label.strip(), "doc": 1, "pos": 1, "before": "see you", "after": " at noon"}
    return {"kind": "point", "cluster": cluster, "plane": 2, "x": x, "y": y, "label": label, **context, **other}


def weekdays() -> list[dict[str, Any]]:
    """Seven days in order on a circle of radius 2 about (0, 0), in turns of 1 / 7 from just above the x axis."""
    angles = [2 * math.pi * (i + 0.1) / 7 for i in range(7)]
    return [
        point(1, 2 * math.cos(a), 2 * math.sin(a), f" {day}", doc=i, pos=3 + i)
        for i, (a, day) in enumerate(zip(angles, DAYS, strict=True))
    ]


def plant(folder: Path, rows: list[dict[str, Any]], run: str = RUN, sae: str | None = None) -> None:
    where = folder / "results" / run / "multidim"
    where.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows, schema=COLUMNS).write_parquet(where / "rows.parquet")
    write_json(where / "result.json", {"header": {"sae": sae or run}})


def circle_and_more() -> list[dict[str, Any]]:
    best = {"separability": 1.75, "null": 0.125, "mixture": 0.25, "n": 4321, "low": 1.1, "high": 1.4}
    rows = [
        plane(1, 1, 0.01, features=FEATURES),
        plane(1, 2, 1.21875, features=FEATURES, tokens=[" Monday", ATTACK], method="irreducible", **best),
        *weekdays(),
        {"kind": "held", "cycle": "weekdays", "method": "whole", "score": 0.9},
    ]
    for cluster in range(2, CLUSTERS + 1):
        rows.append(plane(cluster, 1, 1 / cluster, method=VERDICTS[0] if cluster % 3 == 1 else VERDICTS[1]))
    hostile = {"group": ATTACK, "before": ATTACK, "after": ATTACK}
    rows += [point(3, *at, ATTACK, plane=1, **hostile) for at in ((0.0, 1.0), (2.0, 0.5))]
    return rows


@pytest.fixture(scope="module")
def planted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = Path(shutil.copytree(folder, tmp_path_factory.mktemp("planes") / "study"))
    plant(copy, circle_and_more())
    return copy


def ranks(text: str) -> list[int]:
    return [int(n) for n in re.findall(rf'class="row-link name" href="{PLANES}/(\d+)"', text)]


def first_row(text: str) -> list[str]:
    row = re.search(r"<tbody>\s*<tr>(.*?)</tr>", text, re.DOTALL)
    assert row
    cells = re.split(r"</t[hd]>", re.sub(r"<t[hd][^>]*>", "", row[1]))
    return [re.sub(r"<[^>]+>", "", cell).replace("\u2009", "") for cell in cells][:-1]


def test_the_list_has_the_numbers_of_each_clusters_best_plane(planted: Path) -> None:
    text = client(planted).get(PLANES).text
    cells = first_row(text)
    assert cells[0] == "1"
    assert cells[1].startswith(" Monday &lt;script&gt;")
    assert cells[2:5] == ["10", "12 13 14 15 16 17 18 19 and 2 more", "2 and 3"]
    assert cells[5:] == ["1.62", "0.25", "1.22 [1.1, 1.4]", "4321", "irreducible"]
    for feature in FEATURES[:8]:
        assert f'href="/run/{RUN}/feature/{feature}"' in text
    assert f'href="{PLANES}/1"' in text
    second = re.findall(r"<tr><th scope=\"row\">.*?</tr>", text, re.DOTALL)[1]
    assert '<td class="number">0</td><td class="number">0.5</td><td class="number">0.5</td>' in second  # not below 0


def test_names_have_their_definitions_and_the_thresholds_are_the_evaluations(planted: Path) -> None:
    app = client(planted)
    for page in (PLANES, f"{PLANES}/1"):
        text = app.get(page).text
        assert f"at least {BITS} bits above chance and a mixture of at most {MIXTURE}" in text.replace(
            "chance, and", "chance and"
        )
        tips = re.findall(r'data-tip="([^"]+)"', text)
        for words in ("least over rotations", "band around one line", "(1 - mixture)", "Tokens that the numbers"):
            assert any(words in tip for tip in tips), (page, words)


def test_clusters_come_in_pages_filtered_by_verdict(planted: Path) -> None:
    app = client(planted)
    assert ranks(app.get(PLANES).text) == list(range(1, 51))
    assert ranks(app.get(f"{PLANES}?page=3").text) == ranks(app.get(f"{PLANES}?page=99").text) == list(range(101, 121))
    irreducible = app.get(f"{PLANES}?verdict=irreducible", headers={"hx-request": "true"})
    assert "<html" not in irreducible.text
    assert "HX-Request" in irreducible.headers["vary"]
    assert ranks(irreducible.text) == list(range(1, CLUSTERS + 1, 3))
    reducible = app.get(f"{PLANES}?verdict=reducible").text
    assert "1 to 50 of 80 clusters" in reducible
    assert f'href="{PLANES}?page=2&amp;verdict=reducible"' in reducible
    assert ranks(app.get(f"{PLANES}?page=2&verdict=reducible").text)[0] == 77
    assert ranks(app.get(f"{PLANES}?verdict=").text) == list(range(1, 51))


def test_pictures_are_those_of_the_clusters_that_are_listed(planted: Path) -> None:
    app = client(planted)
    for query, drawn in (("", [1, 3]), ("?verdict=reducible", [3]), ("?page=2", [])):
        assert [int(n) for n in re.findall(r"Points of cluster (\d+)", app.get(PLANES + query).text)] == drawn
    dots = re.findall(r'<path class="look\d+" d="([^"]+)"', app.get(f"{PLANES}?verdict=irreducible").text)
    assert len(dots) == 7
    assert all(re.fullmatch(r"M\d+ \d+h0", path) for path in dots)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/run/none/planes", "no run of that name"),
        ("/run/none/planes/1", "no run of that name"),
        (f"{PLANES}/121", "cluster 121: topk-k4 has 120 judged clusters"),
        (f"{PLANES}/0", "cluster 0"),
        (f"{PLANES}/x", "Not Found"),
        (f"{PLANES}?verdict=<b>", "verdict &#34;&lt;b&gt;&#34;: unknown; known are irreducible, reducible"),
        (f"{PLANES}?page=0", "page &#34;0&#34;: a whole number"),
        (f"{PLANES}?page=-1", "page &#34;-1&#34;"),
        (f"{PLANES}?page=\u00b2", "page"),
        (f"{PLANES}/1?point=8", "point 8: this cluster has the points 1 to 7"),
        (f"{PLANES}/1?point=two", "point &#34;two&#34;: a whole number"),
        (f"{PLANES}/1?point={'9' * 5000}", "point &#34;999"),
        (f"/run/{OTHER}/planes/1", "monosem eval multidim"),
    ],
)
def test_what_is_not_there_is_told_on_a_page(planted: Path, path: str, words: str) -> None:
    answer = client(planted).get(path)
    assert answer.status_code == 404
    assert words in answer.text
    assert len(answer.content) < 20_000


def stale(folder: Path) -> None:
    plant(folder, circle_and_more(), sae="others")


def damaged(folder: Path) -> None:
    (folder / "results" / RUN / "multidim" / "rows.parquet").write_bytes(b"PAR1 no PAR1")


def without_a_column(folder: Path) -> None:
    path = folder / "results" / RUN / "multidim" / "rows.parquet"
    pl.read_parquet(path).drop("mixture").write_parquet(path)


@pytest.mark.parametrize(
    "lose", [stale, damaged, without_a_column, lambda folder: shutil.rmtree(folder / "results" / RUN / "multidim")]
)
def test_results_that_can_not_be_read_are_asked_for_and_not_linked(planted: Path, tmp_path: Path, lose: Any) -> None:
    copy = Path(shutil.copytree(planted, tmp_path / "study"))
    app = client(copy)
    links = {"/": f'href="{PLANES}"', f"/run/{RUN}": f'href="{PLANES}"', f"/run/{RUN}/feature/12": f'href="{PLANES}/1"'}
    for page, link in links.items():
        assert link in app.get(page).text, page
    lose(copy)
    for page, link in links.items():
        assert link not in app.get(page).text, page
    answer = app.get(PLANES)
    assert answer.status_code == 200
    assert f"run `monosem eval multidim {copy}`" in answer.text
    assert "<table" not in answer.text
    assert app.get(f"{PLANES}?verdict=irreducible").status_code == 200
    assert app.get(f"{PLANES}/1").status_code == 404


def test_a_run_without_judged_clusters_says_so(planted: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(planted, tmp_path / "study"))
    plant(copy, [{"kind": "held", "cycle": "weekdays", "method": "whole", "score": 0.9}])
    text = client(copy).get(PLANES).text
    assert "No cluster of two or more features fires on enough tokens" in text
    assert "monosem eval" not in text


def test_home_run_and_feature_lead_to_the_clusters(planted: Path, tmp_path: Path) -> None:
    app = client(planted)
    assert f'<a href="{PLANES}">40 of 120</a>' in app.get("/").text
    assert f'<a href="{PLANES}">Multi-dimensional features</a>' in app.get(f"/run/{RUN}").text
    text = app.get(f"/run/{RUN}/feature/12").text
    assert f'Part of <a href="{PLANES}/1">cluster 1</a>, 10 features, irreducible.' in text
    for page in (f"/run/{RUN}/feature/1", f"/run/{OTHER}/feature/12", f"/run/{OTHER}"):
        assert "/planes" not in app.get(page).text
    export(planted, tmp_path, runs=RUN, features=0)
    assert not [path for path in tmp_path.rglob("*.html") if "/planes" in path.read_text(encoding="utf-8")]


def drawn(folder: Path, cluster: int, number: int = 2) -> Scatter:
    study = Study(folder)
    found = scatter(study, study.runs()[RUN], {"cluster": cluster, "plane": number, "features": FEATURES})
    assert found is not None
    return found


def test_a_circle_is_drawn_round_with_y_upwards_and_numbered_by_angle(planted: Path) -> None:
    found = drawn(planted, 1)
    assert [one.token.strip() for one in found.points] == [group.text for group in found.groups] == list(DAYS)
    assert [one.number for one in found.points] == list(range(1, 8))
    (x0, y0) = (next(at for at, text in axis if text == "0") for axis in found.axes)
    unit = next(at for at, text in found.axes[0] if text == "1") - x0
    assert unit == pytest.approx(y0 - next(at for at, text in found.axes[1] if text == "1"))
    for i, one in enumerate(found.points):
        angle = 2 * math.pi * (i + 0.1) / 7
        assert (one.x - x0, y0 - one.y) == pytest.approx((2 * unit * math.cos(angle), 2 * unit * math.sin(angle)))
        assert LEFT <= one.x <= SIDE - EDGE
        assert EDGE <= one.y <= SIDE - EDGE


def test_points_of_another_plane_than_the_best_are_not_drawn(planted: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(planted, tmp_path / "study"))
    plant(copy, [plane(1, 1, 1.0), *weekdays()])
    assert "Points of cluster" not in client(copy).get(PLANES).text
    assert "points of this cluster are not kept" in client(copy).get(f"{PLANES}/1").text


def test_a_tall_cloud_stays_within_the_axes(planted: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(planted, tmp_path / "study"))
    plant(copy, [plane(1, 2, 1.0), point(1, 100.0, -50.0, "low"), point(1, 100.5, 75.0, "high")])
    found = drawn(copy, 1)
    assert all(EDGE <= one.y <= SIDE - BOTTOM and LEFT <= one.x <= SIDE - EDGE for one in found.points)
    for axis in found.axes:
        assert 4 <= len(axis) <= TICKS


def test_groups_have_looks_of_their_own_and_the_rest_is_other(planted: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(planted, tmp_path / "study"))
    words = [f"w{i:02}" for i in range(GROUPS + 5)]
    often = [word for word in words[:GROUPS] for _ in range(2)]
    labels = [*often, *words[GROUPS:], "a", "b"]
    rows = [point(1, math.cos(i), math.sin(i), label) for i, label in enumerate(labels)]
    for row in rows[-2:]:
        row["group"] = "other"
    plant(copy, [plane(1, 2, 1.0), *rows])
    groups = drawn(copy, 1).groups
    assert len(groups) == GROUPS + 1
    assert (groups[-1].text, groups[-1].count, groups[-1].look) == ("other", 7, None)
    assert {group.text for group in groups[:-1]} == set(words[:GROUPS])
    looks = {(group.look, group.symbol) for group in groups}
    assert len(looks) == len(groups)
    assert [group.symbol == "circle" for group in groups] == [False] * GROUPS + [True]
    assert all(a.look != b.look and a.symbol != b.symbol for a, b in pairwise(groups))


@pytest.mark.parametrize("at", [(1e300, 0.0), (float("nan"), 1.0), (float("inf"), 1.0), (None, 0.0)])
def test_points_that_can_not_be_drawn_are_left_out(planted: Path, tmp_path: Path, at: Any) -> None:
    copy = Path(shutil.copytree(planted, tmp_path / "study"))
    plant(copy, [plane(1, 2, 1.0), *weekdays(), point(1, *at, "lost")])
    assert len(drawn(copy, 1).points) == 7
    plant(copy, [plane(1, 2, 1.0), point(1, 1e6, 3.0, "one"), point(1, 1e6, 3.0, "two")])
    answer = client(copy).get(f"{PLANES}/1")
    assert answer.status_code == 200
    assert not re.search(r'"[^"]*\b(nan|inf)\b[^"]*"', answer.text)
    plant(copy, [plane(1, 2, 1.0), point(1, *at, "lost")])
    assert "points of this cluster are not kept" in client(copy).get(f"{PLANES}/1").text


def test_a_cluster_has_planes_features_and_neighbours(planted: Path) -> None:
    app = client(planted)
    text = app.get(f"{PLANES}/1").text
    assert "component 2, normalised units" in text
    assert "component 3, normalised units" in text
    for feature in FEATURES:
        assert f'href="/run/{RUN}/feature/{feature}"' in text
    planes = re.findall(r'<th scope="row">(\d and \d)</th><td class="number">([\d.]+)</td>', text)
    assert planes == [("1 and 2", "0.5"), ("2 and 3", "1.75")]
    assert f'href="{PLANES}/2" rel="next"' in text
    assert 'rel="prev"' not in text
    assert "1.22" in text
    assert "[1.1, 1.4]" in text
    second = app.get(f"{PLANES}/2").text
    assert "points of this cluster are not kept" in second
    assert f'href="{PLANES}/1" rel="prev"' in second


def test_a_point_shows_its_context_and_leads_to_its_document(planted: Path, tmp_path: Path) -> None:
    """The document is opened with the feature of the cluster that is strongest on the token."""
    copy = Path(shutil.copytree(planted, tmp_path / "study"))
    firings = Study(copy).firings(RUN)
    fires = {
        feature: dict(zip(zip(f.doc, f.pos, strict=True), f.value, strict=True))
        for feature, f in firings.each([DENSE, 14])
    }
    place = next(one for one in fires[14] if fires[14][one] > fires[DENSE].get(one, 9))  # the second is the stronger
    (doc, pos), values = place, [f"{float(f'{fires[one][place]:.3g}'):g}" for one in (14, DENSE)]
    rows = [
        point(1, 0.0, 0.0, " first"),
        point(1, -1.0, -1.0, " here", doc=doc, pos=pos, before="left\n", after=" right"),
    ]
    plant(copy, [plane(1, 2, 1.0, features=[DENSE, 14, 50]), *rows])
    app = client(copy)
    text = app.get(f"{PLANES}/1?point=2").text
    context = '<span>left↵</span><span class="a8 here"> here</span><span> right</span>'
    assert context in text
    assert context not in app.get(f"{PLANES}/1").text
    assert text.count('aria-current="true"') == text.count('tabindex="0" aria-label') == 1
    assert re.search(r'<a href="\?point=2"[^>]*aria-current="true"', text)
    fragment = app.get(f"{PLANES}/1?point=2", headers={"hx-request": "true"}).text
    assert context in fragment
    assert "<html" not in fragment
    active = re.search(r"Active here.*?</p>", text, re.DOTALL)
    assert active
    found = re.findall(r">(\d+)</a> <span class=\"interval\">([\d.]+)<", active[0])
    assert found == [("14", values[0]), (str(DENSE), values[1])]
    link = re.search(r'class="doc" href="([^"]+)"', text)
    assert link
    assert link[1] == f"/run/{RUN}/feature/14/document/{doc}?pos={pos}"
    document = app.get(link[1]).text
    assert len(re.findall(r'class="(?:a\d+ )?here"', document)) == 1
    shutil.rmtree(copy / "codes")
    text = app.get(f"{PLANES}/1?point=2").text
    assert context in text
    assert f"/run/{RUN}/feature/{DENSE}/document/{doc}?pos={pos}" in text
    assert "Active here" not in text


def test_every_point_is_a_link(planted: Path) -> None:
    app = client(planted)
    text = app.get(f"{PLANES}/1").text
    numbers = [int(n) for n in re.findall(r'<a href="\?point=(\d+)" hx-get="\?point=\1" tabindex', text)]
    assert sorted(numbers) == list(range(1, 8))
    for number, day in enumerate(DAYS, 1):
        assert f'<span class="a8 here"> {day}</span>' in app.get(f"{PLANES}/1?point={number}").text
    assert 'href="?point=7" hx-get="?point=7" data-key="previous"' in text
    assert 'href="?point=1"' in app.get(f"{PLANES}/1?point=7").text


def test_hostile_tokens_are_escaped_everywhere(planted: Path) -> None:
    app = client(planted)
    for page in (PLANES, f"{PLANES}/1", f"{PLANES}/3", f"{PLANES}/3?point=2"):
        text = app.get(page).text
        assert "&lt;script&gt;alert(3)&lt;/script&gt;" in text
        for piece in ("<script>alert", "<img", "\"'>", "onerror=alert(4)>"):
            assert piece not in text, (page, piece)
        assert " style=" not in text
        assert "default-src 'none'" in app.get(page).headers["content-security-policy"]


@pytest.fixture(scope="module")
def address(planted: Path) -> Iterator[str]:
    listening = _bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(make_app(planted), log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.mark.browser
def test_points_open_by_mouse_and_keyboard(browser: Browser, address: str) -> None:
    seen = Visit(browser)
    page = seen.open(f"{address}{PLANES}")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url("**/planes/1")
    page.wait_for_load_state("networkidle")
    here = page.locator(".context .here")
    assert here.inner_text() == " Monday"
    page.evaluate("document.body.dataset.same = 'page'")
    page.get_by_label("Thursday").click()
    page.wait_for_url("**/planes/1?point=4")
    assert here.inner_text() == " Thursday"
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**/planes/1?point=5")
    assert here.inner_text() == " Friday"
    page.wait_for_selector(".scatter a[aria-label=' Friday']:focus")
    page.keyboard.press("k")
    page.wait_for_url("**/planes/1?point=4")
    page.locator("a.doc").click()
    page.wait_for_selector(".document")
    assert page.locator(".document .here").count() == 1
    assert page.url.endswith("point=4")
    page.locator("#next-point").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/planes/1?point=5")
    page.wait_for_load_state("networkidle")
    assert page.evaluate("document.activeElement.id") == "next-point"
    assert page.evaluate("document.body.dataset.same") == "page"
    page.reload()
    assert here.inner_text() == " Friday"
    page.keyboard.press("u")
    page.wait_for_url("**/planes")
    page.locator("#filter-verdict").select_option("reducible")
    page.wait_for_url("**verdict=reducible**")
    page.wait_for_load_state("networkidle")
    assert page.locator(".row-link").first.inner_text() == "2"
    assert seen.complaints == []
    assert all(url.startswith((address, "data:")) for url in seen.requests)
    seen.page.close()


@pytest.mark.browser
def test_points_work_without_scripts(browser: Browser, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{address}{PLANES}")
    page.locator("#filter-verdict").select_option("irreducible")
    page.locator(".apply").click()
    page.locator(".gallery a").first.click()
    page.get_by_label("Sunday").click()
    assert page.locator(".context .here").inner_text() == " Sunday"
    page.locator("#next-point").press("Enter")
    page.wait_for_url("**point=1")
    assert page.locator(".context .here").inner_text() == " Monday"
    page.locator("a.doc").click()
    assert page.locator(".document .here").is_visible()
    context.close()


@pytest.mark.browser
@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
def test_colours_differ_by_group_and_scheme_and_nothing_scrolls_sideways(
    browser: Browser, address: str, viewport: Any
) -> None:
    fills = []
    for scheme in ("light", "dark"):
        seen = Visit(browser, viewport, scheme)
        for path in (PLANES, f"{PLANES}/3", f"{PLANES}/1"):
            page = seen.open(address + path)
            assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], path
        fills.append(page.evaluate("[...document.querySelectorAll('.scatter use')].map(e => getComputedStyle(e).fill)"))
        assert seen.complaints == []
        seen.page.close()
    assert len(set(fills[0])) == len(set(fills[1])) == 7
    assert not set(fills[0]) & set(fills[1])
