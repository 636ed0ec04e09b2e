"""The report in a real browser: offline, at several sizes, in light and dark, with mouse and keyboard."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from monosem.report import render
from monosem.report.screenshot import main, screenshot
from monosem.types import UserError

from ..conftest import WIDE
from .fixture import make_run, write_charts, write_study, write_summary

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

NARROW = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(write_study(tmp_path_factory.mktemp("study")))


@pytest.mark.parametrize("viewport", [WIDE, NARROW])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_offline_without_complaint_or_sideways_scrolling(
    visit: Any, report: Path, viewport: Any, scheme: str
) -> None:
    seen = visit(report, viewport, scheme)
    assert seen.complaints == []
    assert seen.outside == []
    width = seen.page.evaluate("document.documentElement.scrollWidth")
    assert width <= viewport["width"]
    assert seen.page.locator(".plot svg.main-svg").count() >= 7


def test_the_verdict_and_both_plots_fit_the_first_screen(visit: Any, report: Path) -> None:
    page = visit(report).page
    for selector in ("h1", ".facts", "#headline", ".cards", "#plot-0", "#plot-1", "figcaption >> nth=1"):
        box = page.locator(selector).first.bounding_box()
        assert box, selector
        assert box["y"] >= 0, selector
        assert box["y"] + box["height"] <= 800, selector
    for plot in ("#plot-0", "#plot-1"):
        assert page.locator(f"{plot} .scatterlayer .point").count() == 12


def column(page: Page, index: int) -> list[str]:
    return page.locator(f"#runs-table tbody tr > :nth-child({index})").evaluate_all(
        "cells => cells.map((cell) => cell.dataset.sort)"
    )


def test_tables_sort_by_click_and_by_keyboard(visit: Any, report: Path) -> None:
    page = visit(report).page
    l0 = page.locator("#runs-table thead th").nth(1)
    l0.locator("button").click()
    values = [float(text) for text in column(page, 2)]
    assert values == sorted(values)
    assert l0.get_attribute("aria-sort") == "ascending"
    l0.locator("button").press("Enter")
    assert [float(text) for text in column(page, 2)] == sorted(values, reverse=True)
    assert l0.get_attribute("aria-sort") == "descending"
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    values = [float(text) for text in column(page, 3)]
    assert values == sorted(values)
    assert l0.get_attribute("aria-sort") is None


def test_missing_values_stay_last_and_say_why_to_the_keyboard_too(visit: Any, tmp_path: Path) -> None:
    runs = [make_run("topk", 0), make_run("topk", 1), make_run("topk", 2)]
    runs[0] |= {"l0": None, "reasons": {"l0": "The run was stopped."}}
    page = visit(render(write_study(tmp_path, runs, charts=False))).page
    heading = page.locator("#runs-table thead th").nth(1).locator("button")
    for _ in range(2):
        heading.click()
        assert column(page, 2)[-1] == ""
    page.locator("#runs-table .missing").hover()
    assert page.locator("#tip").inner_text() == "The run was stopped."
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()
    page.keyboard.press("Tab")
    page.locator("#runs-table .missing").focus()
    assert page.locator("#tip").inner_text() == "The run was stopped."


def test_headings_show_their_definition(visit: Any, report: Path) -> None:
    page = visit(report).page
    page.locator("#runs-table thead button").nth(1).hover()
    assert "Mean number of features" in page.locator("#tip").inner_text()


def test_the_dark_scheme_recolours_page_and_plots_at_once(visit: Any, report: Path) -> None:
    page = visit(report).page
    look = """() => [getComputedStyle(document.body).backgroundColor,
        document.querySelector('#plot-0 .point').style.fill,
        document.querySelector('#plot-0 .xtitle').style.fill,
        getComputedStyle(document.querySelector('#runs-table .marker')).fill]"""
    light = page.evaluate(look)
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(500)
    dark = page.evaluate(look)
    assert all(before != after for before, after in zip(light, dark, strict=True))


def test_print_is_light_and_opens_the_details(visit: Any, report: Path) -> None:
    page = visit(report, scheme="dark").page
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("details[open]").count() == 2
    assert page.locator("#plot-2 svg.main-svg").first.get_attribute("width") == "620"
    page.emulate_media(media="screen")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0
    page.wait_for_timeout(300)
    assert float(page.locator("#plot-2 svg.main-svg").first.get_attribute("width")) > 700


def test_hovering_over_a_point_shows_its_hyperparameters(visit: Any, report: Path) -> None:
    page = visit(report).page
    texts = page.evaluate("document.getElementById('plot-0').data.flatMap((trace) => trace.text || [])")
    assert len(texts) == 12
    assert all(any(word in text for word in ("l1 = ", "k = ", "tanh_coefficient = ")) for text in texts)
    box = page.locator("#plot-0 .point").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#plot-0 .hoverlayer .hovertext")
    shown = page.locator("#plot-0 .hoverlayer .hovertext").text_content()
    assert "l1 = " in shown
    assert "NMSE" in shown


def test_legend_entries_hide_and_isolate_series(visit: Any, report: Path) -> None:
    page = visit(report).page
    chips = page.locator('.legend[data-for="plot-0"] .chip')
    points = page.locator("#plot-0 .scatterlayer .point")
    assert chips.all_inner_texts() == ["Standard", "Tanh", "Gated", "TopK"]
    chips.nth(1).press("Enter")
    assert chips.nth(1).get_attribute("aria-pressed") == "false"
    assert points.count() == 9
    chips.nth(1).press("Enter")
    assert points.count() == 12
    chips.nth(3).dblclick()
    assert points.count() == 3
    chips.nth(3).dblclick()
    assert points.count() == 12


def test_groups_of_a_crowded_chart_hide_together(visit: Any, report: Path) -> None:
    page = visit(report).page
    legend = page.locator(".legend:has(.groups)").first
    legend.locator(".chip.group").first.click()
    pressed = legend.locator(".chip:not(.group)").evaluate_all("all => all.map((c) => c.ariaPressed)")
    assert pressed == ["false"] * 3 + ["true"] * 9


def test_text_from_files_never_runs(visit: Any, tmp_path: Path) -> None:
    attacks = [
        "<script>window.injected = 1</script>",
        "</script><script>window.injected = 1</script>",
        '"><img src=x onerror="window.injected = 1">',
        '<a href="javascript:window.injected = 1">click</a>',
    ]
    runs = [make_run("topk", 0) | {"name": attack, "variant": attack, "hyper": {"k": attack}} for attack in attacks]
    folder = write_study(tmp_path, runs, charts=False)
    series = [{"name": attack, "x": [1], "y": [1], "hover": [attack]} for attack in attacks]
    axis = {"label": attacks[2], "unit": attacks[0]}
    chart = {"id": attacks[0], "title": attacks[1], "kind": "points", "x": axis, "series": series, "note": attacks[2]}
    write_charts(folder, "x", [chart])
    write_summary(folder, {"schema": 1, "runs": runs, "note": attacks[1], "caveats": attacks, "study": attacks[2]})
    seen = visit(render(folder))
    for point in seen.page.locator(".point").all():
        point.hover(force=True)
    assert seen.page.evaluate("window.injected") is None
    assert seen.page.locator("main img, main a").count() == 0
    assert seen.complaints == []
    assert seen.outside == []


def test_long_names_and_many_runs_do_not_widen_the_page(visit: Any, tmp_path: Path) -> None:
    runs = [make_run(variant, k, seed) for variant in ("standard", "topk") for k in range(3) for seed in range(10)]
    for run in runs:
        run["hyper"]["a_rather_long_hyperparameter_name_without_any_space"] = run["l0"]["value"] * 1e-7
    seen = visit(render(write_study(tmp_path, runs)), NARROW)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert seen.complaints == []


def test_the_screenshot_script_saves_a_picture(browser: Browser, report: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "monosem.report.screenshot", str(report), str(tmp_path / "out.png")]
    subprocess.run([*command, "--width", "800", "--height", "600", "--dark"], check=True)
    picture = (tmp_path / "out.png").read_bytes()
    assert struct.unpack(">II", picture[16:24]) == (800, 600)
    assert main([str(tmp_path / "none.html"), str(tmp_path / "out.png")]) == 2
    with pytest.raises(UserError, match="no such file"):
        screenshot(tmp_path / "none.html", tmp_path / "out.png")
