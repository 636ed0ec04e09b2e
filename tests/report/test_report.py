"""The report as a file: what it holds, what it refuses, and that it needs nothing from outside."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from monosem.definitions import METRICS
from monosem.report import render
from monosem.report.figures import figure
from monosem.report.headline import verdict_cards
from monosem.report.inputs import parse_chart
from monosem.report.numbers import decimals_for, fixed, short, tokens
from monosem.report.palette import FIXED, styles_for
from monosem.schema import Axis, Chart, Series
from monosem.types import UserError

from .fixture import VARIANTS, make_run, make_summary, write_charts, write_study, write_summary

INJECTION = "<script>window.injected = 1</script>"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "study")


def page_of(folder: Path) -> str:
    return render(folder).read_text(encoding="utf-8")


def without_scripts(page: str) -> str:
    return re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def rewrite(folder: Path, **changes: Any) -> dict[str, Any]:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8")) | changes
    write_summary(folder, summary)
    return summary


def test_it_is_written_into_the_study_folder_and_small(study: Path) -> None:
    path = render(study)
    assert path == study / "report.html"
    assert path.stat().st_size < 8_000_000
    assert render(study).read_bytes() == path.read_bytes()


def test_it_needs_nothing_from_outside(study: Path) -> None:
    page = page_of(study)
    rest = without_scripts(page)
    assert "Plotly" in page
    assert not re.search(r"""(?:src|href|action|poster)\s*=\s*["']?\s*(?:https?:)?//""", rest)
    assert not re.search(r"<link\b|@import|url\(|<iframe|<img", rest)
    assert "default-src 'none'" in html.unescape(rest)


def test_the_policy_allows_these_scripts_only(study: Path) -> None:
    page = page_of(study)
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])  # type: ignore[index]
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert len(scripts) == 3
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, monosem.report; print([m for m in ('torch', 'numpy', 'plotly') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_numbers_stand_beside_their_definitions_and_units(study: Path) -> None:
    page = page_of(study)
    run = make_run("topk", 1)
    for name, metric in METRICS.items():
        if name not in run:
            continue
        definition = str(html.escape(metric.definition)).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
        assert f"<dd>{definition}</dd>" in page
        assert f'title="{definition}"' in page
    for plot in data_of(page)["plots"]:
        assert plot["layout"]["xaxis"]["title"]["text"]
        assert plot["layout"]["yaxis"]["title"]["text"]
    assert data_of(page)["plots"][0]["layout"]["xaxis"]["title"]["text"] == "L0, features a token"


def test_the_headline_and_cards_come_first_then_tables_then_sections_in_order(study: Path) -> None:
    page = page_of(study)
    marks = ['id="headline"', 'id="plot-0"', 'id="plot-1"', 'id="runs"', 'id="metrics"']
    marks += [f"<h2>{name}</h2>" for name in ("Density", "Activation levels", "Shrinkage", "Training", "Provenance")]
    positions = [page.index(mark) for mark in [*marks, "<h2>Caveats</h2>"]]
    assert positions == sorted(positions)
    assert "TopK reconstructs best" in page
    assert page.count('<li class="card ') == 3
    assert "0.71×" in page
    assert "[0.70, 0.72]" in page


def test_sections_nobody_knows_come_last_by_name(study: Path) -> None:
    chart = Chart("a", "A", "bars", Axis("x"), Axis("y"), [Series("s", ["a"], [1])])
    write_charts(study, "zebra", [chart.as_dict()])
    write_charts(study, "ioi", [chart.as_dict() | {"section": "Circuits"}])
    headings = re.findall(r'<section id="section-\d+".*?<h2>(.*?)</h2>', page_of(study), flags=re.DOTALL)
    assert headings == ["Density", "Activation levels", "Shrinkage", "Training", "Circuits", "Zebra"]


def test_the_seed_table_has_the_expected_columns(study: Path) -> None:
    table = page_of(study).split('<table id="runs-table"')[1].split("</table>")[0]
    labels = [html.unescape(label) for label in re.findall(r'<span class="label">(.*?)</span>', table)]
    assert labels == ["Run type", "L0", "Features > 1e-2", "Features > 1e-3", "Dead", "Total"]
    assert table.count("<tr>") == 13


def test_missing_numbers_are_a_dash_with_the_reason(study: Path) -> None:
    runs = make_summary([make_run(variant, 0) for variant in VARIANTS])["runs"]
    runs[0] |= {"ce_recovered": None, "reasons": {"ce_recovered": "CE zero equals CE clean."}}
    runs[1]["nmse"] = {"value": float("nan"), "low": float("-inf"), "high": float("nan"), "n": 0}
    del runs[2]["gamma"]
    rewrite(study, runs=runs)
    page = without_scripts(page_of(study))
    assert 'title="CE zero equals CE clean.">–<' in page
    assert 'title="Not a finite number.">–<' in page
    assert 'title="Not measured for this run.">–<' in page
    assert not re.search(r">\s*(nan|NaN|inf|None|Infinity)\b", page)
    assert "NaN" not in json.dumps(data_of(page))


def test_text_is_escaped_everywhere(study: Path) -> None:
    runs = [make_run(variant, 0) for variant in VARIANTS]
    runs[0] |= {"name": INJECTION, "variant": f"v{INJECTION}", "hyper": {INJECTION: INJECTION}}
    runs[0] |= {"mse": None, "reasons": {"mse": f'"{INJECTION}'}}
    summary = make_summary(runs) | {"note": "</script>" + INJECTION, "study": INJECTION, "caveats": [INJECTION]}
    summary["headline"]["sentence"] = INJECTION
    write_summary(study, summary)
    series = {"name": INJECTION, "x": [1, 2], "y": [1, 2], "hover": ["</script>" + INJECTION, "%{y} & <b>"]}
    write_charts(study, "x", [{"id": INJECTION, "title": INJECTION, "kind": "points", "series": [series]}])
    write_charts(study, "y", [{"id": "t", "title": "t", "kind": "table", "columns": ["a"], "cells": [[INJECTION]]}])
    (study / "study.toml").write_text(INJECTION, encoding="utf-8")
    page = page_of(study)
    assert INJECTION not in page
    assert page.count("<script") - without_scripts(page).count("<script") == 3
    assert INJECTION in html.unescape(page)
    text = next(plot for plot in data_of(page)["plots"] if plot["id"] == INJECTION)["traces"][0]["text"]
    assert "<script" not in "".join(text)
    assert "%{" not in "".join(text)


def test_charts_that_cannot_be_read_are_named_and_left_out(study: Path) -> None:
    (study / "results" / "broken.charts.json").write_text("[{", encoding="utf-8")
    (study / "study.toml").unlink()
    (study / "environment.json").write_text("[]", encoding="utf-8")
    good = {"id": "g", "title": "Good one", "kind": "bars", "series": [{"name": "s", "x": ["a"], "y": [1]}], "new": 1}
    uneven = {"id": "u", "title": "u", "kind": "line", "series": [{"name": "s", "x": [1], "y": [1, 2]}]}
    write_charts(study, "mixed", [{"id": "v", "title": "v", "kind": "violin"}, 3, uneven, good])
    write_charts(study, "object", {"charts": []})
    page = html.unescape(without_scripts(page_of(study)))
    assert "Good one" in page
    for words in (
        "results/broken.charts.json: not shown",
        "results/mixed.charts.json: chart 1 is not shown (unknown kind `violin`",
        "chart 2 is not shown (not a JSON object)",
        "series s: `y` is not a list as long as `x`",
        "results/object.charts.json: not shown (not a list of charts)",
        "study.toml: not shown (no such file)",
        "environment.json: not shown (not a JSON object)",
    ):
        assert words in page


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such file"),
        ("{", "not valid JSON"),
        ("[]", "`runs` must be a list"),
        ('{"schema": 1, "runs": {}}', "`runs` must be a list"),
        ('{"schema": 99, "runs": []}', "`schema` is 99"),
        ('{"schema": 1, "runs": [3]}', "runs[0]"),
        ('{"schema": 1, "runs": [{"name": "a"}]}', "run a needs `variant`"),
        ('{"schema": 1, "runs": [], "headline": []}', "`headline` must be an object"),
    ],
)
def test_a_damaged_summary_is_a_user_error(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "summary.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        render(tmp_path)
    assert "summary.json" in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_a_bare_study_has_a_report(tmp_path: Path) -> None:
    write_summary(tmp_path, {"schema": 1, "runs": []})
    assert "No headline comparison" in page_of(tmp_path)
    write_summary(tmp_path, {"schema": 1, "runs": [{"name": "a", "variant": "topk"}]})
    assert "Not measured for this run." in page_of(tmp_path)


def test_without_a_baseline_the_charts_still_come_first(tmp_path: Path) -> None:
    folder = write_study(tmp_path, [make_run("topk", 0)], charts=False)
    rewrite(folder, headline=None)
    page = page_of(folder)
    assert "No headline comparison" in page
    assert '<li class="card' not in page
    assert [plot["id"] for plot in data_of(page)["plots"]] == ["first-nmse", "first-ce_recovered"]


def test_sixty_runs_with_seeds_fit_and_are_joined_by_hyperparameters(tmp_path: Path) -> None:
    runs = [make_run(variant, k, seed) for variant in VARIANTS for k in range(3) for seed in range(5)]
    page = page_of(write_study(tmp_path, runs))
    assert len(page) < 8_000_000
    assert "seed\u00a04" in page
    line, points = [t for t in data_of(page)["plots"][0]["traces"] if t["meta"]["group"] == "gated"]
    assert (line["mode"], len(line["x"])) == ("lines", 3)
    assert (points["mode"], len(points["x"])) == ("markers", 15)
    assert line["x"] == sorted(line["x"])
    assert all("l1 = " in text for text in points["text"])
    assert points["error_y"]["array"][0] > 0


def test_variants_keep_their_look_in_any_company() -> None:
    assert styles_for(["topk", "standard"])["topk"] == styles_for(["topk", "x", "y"])["topk"] == FIXED["topk"]
    assert styles_for(["jumprelu"]) == {"jumprelu": styles_for(["jumprelu", "tanh"])["jumprelu"]}
    many = styles_for([*FIXED, "a", "b", "c", "d", "e", "f"])
    assert len({style.light for style in many.values()}) == len({style.symbol for style in many.values()}) == 10
    assert set(styles_for(list("abcdefghijkl"))) == set("abcdefghijkl")


def test_figures_skip_missing_points_and_label_log_axes_with_round_numbers() -> None:
    series = Series("s", [30, 10, 20], [0.3, None, 0.12], "topk", y_low=[0.2, 0, 0.1], y_high=[0.4, 0, 0.2])
    drawn = figure(Chart("c", "C", "line", Axis("x", log=True), Axis("y", log=True), [series]), styles_for(["topk"]))
    (trace,) = drawn["traces"]
    assert (trace["x"], trace["y"]) == ([20, 30], [0.12, 0.3])
    assert trace["error_y"]["array"] == pytest.approx([0.08, 0.1])
    assert {"0.12", "0.14", "0.3"} <= set(drawn["layout"]["yaxis"]["ticktext"])
    narrow = Chart("c", "C", "line", Axis("x", log=True), Axis("y"), [Series("s", [40], [1], "topk")])
    assert "type" not in figure(narrow, styles_for(["topk"]))["layout"]["xaxis"]
    equal = Series("s", [80.1] * 3, [1, 2, 3], "topk", join=["a"] * 3)
    drawn = figure(Chart("c", "C", "line", Axis("x", log=True), Axis("y"), [equal]), styles_for(["topk"]))
    assert drawn["traces"][0]["x"] == [80.1]
    assert drawn["layout"]["xaxis"]["range"] == pytest.approx([53.4, 120.15])
    wide = Chart("c", "C", "steps", Axis("x", log=True), Axis("y"), [Series("s", [1e-6, 1e-1], [1, 2], "topk")])
    assert figure(wide, styles_for(["topk"]))["layout"]["xaxis"]["exponentformat"] == "power"


def test_a_square_chart_has_equal_axes_words_outside_and_paths_in_the_order_given() -> None:
    series = Series("s", [1, -1, 0, 1], [0, 0, 1, 0], "topk", labels=["a", "b", "c", ""], path=True)
    square = Chart("c", "C", "points", Axis("x"), Axis("y"), [series], square=True)
    drawn = figure(square, styles_for(["topk"]))
    (trace,) = drawn["traces"]
    assert (trace["x"], trace["y"], trace["text"]) == ([1, -1, 0, 1], [0, 0, 1, 0], ["a", "b", "c", ""])
    assert trace["mode"] == "lines+markers+text"
    assert trace["textposition"] == ["middle right", "middle left", "middle left", "middle right"]
    assert drawn["layout"]["yaxis"]["scaleanchor"] == "x"
    assert parse_chart(json.loads(json.dumps(square.as_dict()))) == replace(square, section="Other")
    plain = replace(square, square=False, series=[replace(series, path=False)])
    (trace,) = figure(plain, styles_for(["topk"]))["traces"]
    assert (trace["mode"], trace["text"]) == ("markers+text", ["b", "c", "a", ""])
    assert trace["textposition"][0] == "top right"
    assert "scaleanchor" not in figure(plain, styles_for(["topk"]))["layout"]["yaxis"]


def test_groups_that_share_a_look_differ_in_shade_and_dash() -> None:
    names = list("abcdefghijkl")  # twice as many as the palette has
    drawn = figure(
        Chart("c", "C", "line", series=[Series(name, [1], [2]) for name in names]), styles := styles_for(names)
    )
    looks = {(styles[entry["group"]].light, entry["shade"], entry["dash"]) for entry in drawn["series"]}
    assert len(looks) == 12
    alone = figure(
        Chart("c", "C", "line", series=[Series("a", [1], [2]), Series("topk", [1], [2])]), styles_for(["a", "topk"])
    )
    assert [entry["shade"] for entry in alone["series"]] == [0, 0]


def test_long_lines_show_their_interval_as_a_band() -> None:
    x = list(range(100))
    series = Series("s", x, x, "topk", y_low=[v - 1 for v in x], y_high=[v + 1 for v in x])
    band, line = figure(Chart("c", "C", "line", series=[series]), styles_for(["topk"]))["traces"]
    assert (band["fill"], band["meta"]["band"], line["mode"]) == ("toself", True, "lines")
    assert "text" not in line


def test_charts_survive_the_trip_through_json() -> None:
    chart = Chart("c", "C", "line", Axis("x", "u", True, 1.0), Axis("y"), [Series("s", [1], [2], join=["a"])])
    chart = Chart(**{**vars(chart), "section": "Density"})
    assert parse_chart(json.loads(json.dumps(chart.as_dict()))) == chart


def test_cards_share_one_scale() -> None:
    summary = make_summary([])
    cards = verdict_cards(summary["headline"])
    assert len({card.one for card in cards}) == 1
    topk, gated, tanh = cards
    assert topk.value < gated.value < tanh.value < tanh.one  # type: ignore[operator]
    close = {"variant": "a", "ratio": {"value": 0.99, "low": 0.982, "high": 0.998}, "verdict": "lower"}
    assert verdict_cards({"comparisons": [close]})[0].interval == "[0.982, 0.998]"


def test_numbers_get_the_digits_they_deserve() -> None:
    assert decimals_for([{"value": 0.1234, "low": 0.1222, "high": 0.1246}]) == 4
    assert decimals_for([{"value": 812.0, "low": 800.2, "high": 830.0}]) == 0
    assert fixed(12288, 0) == "12\u2009288"
    assert fixed(-0.5, 1) == "\u22120.5"
    assert fixed(-0.0001, 1) == "0.0"
    assert [short(v) for v in (None, 3, 0.25, 0.123456, 1.5e-9, "x")] == ["–", "3", "0.25", "0.1235", "1.5e-09", "x"]
    assert [tokens(v) for v in (20_000_000, 1_048_576, 999, None)] == ["20 M", "1.05 M", "999", "–"]
