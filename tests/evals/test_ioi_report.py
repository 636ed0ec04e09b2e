"""IOI's section of the report on synthetic rows: planted scores, paired intervals, titles, a fair sample."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from monosem.evals import Judged, Result, RunInfo
from monosem.evals.ioi.charts import ioi_charts
from monosem.evals.ioi.details import sampled
from monosem.evals.ioi.lines import difference, mean_score, necessity, success, sufficiency, task_lines
from monosem.evals.ioi.table import KINDS
from monosem.report import render
from monosem.schema import Chart
from monosem.types import Estimate

from ..report.fixture import write_charts, write_study

N = 100
S2, END, HEADS = "blocks.10.hook_resid_post@S2", "blocks.10.hook_resid_post@END", "heads@END"
CARRIED = {S2: ("S", "Pos"), END: ("IO",), HEADS: ("IO",)}
SITE = [S2, END]
TASKS = {"topk k=4": 0.7, "topk k=8": 0.6, "gated l1=1": 0.5}  # edit success at every place but the heads


def table(**columns: Any) -> pl.DataFrame:
    """Return rows; columns that are missing are null."""
    return pl.DataFrame({name: columns.get(name) for name in KINDS}, schema=KINDS)


def edits(rate: float, place: str, attribute: str, **more: Any) -> pl.DataFrame:
    """Return edits of N prompts with exactly this share of hits; prompts that are easy for one are so for all."""
    hard = np.random.default_rng(len(attribute)).permutation(N) / N
    told = {"place": place, "attribute": attribute, "criterion": "edit", "prompt": np.arange(N)}
    texts = [f"prompt {i}" if i < 50 else None for i in range(N)]
    words = {"text": texts, "answer": ["Mary"] * N, "wanted": ["John"] * N}
    return table(**told, **words, hit=hard < rate - 1e-9, **more)


def approximations(place: str, ld: float, **more: Any) -> pl.DataFrame:
    spread = np.linspace(-1, 1, N)
    return table(place=place, criterion="approximation", prompt=np.arange(N), ld=ld + spread, **more)


def sae_rows(places: list[str], rate: float, **sae: Any) -> list[pl.DataFrame]:
    """Return the rows of an SAE: greedy edits with this success, half of it for features by F1."""
    parts = []
    for place in places:
        parts += [
            approximations(place, 3.0, method="reconstruction", **sae),
            approximations(place, 1.5, method="remainder", **sae),
            approximations(place, 2.0, method="interpretable", **sae),
            approximations(place, 1.0, method="uninterpretable", **sae),
        ]
        for attribute in CARRIED[place]:
            told = {"removed": rate / 2, **sae}
            parts += [
                edits(rate if x <= 2 else 1.0, place, attribute, method="greedy", x=x, **told) for x in (1, 2, 32)
            ]
            parts += [edits(rate / 2, place, attribute, method="f1", x=2, **told)]
            for method, score in (("single", rate), ("union", rate + 0.1)):
                about = {"place": place, "attribute": attribute, "criterion": "f1", "method": method, **sae}
                parts.append(table(**about, value=["Mary", "John"], score=[score - 0.1, score + 0.1]))
        for attribute in ("S", "IO"):
            about = {"place": place, "attribute": attribute, "criterion": "occlusion", **sae}
            scores = [rate / 2, rate / 2 + 0.1] if attribute == "S" else [rate, rate - 0.1]
            parts.append(table(**about, x=[0.0, 1.0], score=scores, low=[0.0, 0.0], high=[1.0, 1.0]))
        for order, union in (("IO first", [0.4, 0.85, 0.9]), ("S first", [0.2])):
            about = {"place": place, "attribute": "Pos", "criterion": "splitting", "value": order, **sae}
            parts.append(table(**about, method="union", x=[1, 2, 3][: len(union)], score=union))
            facts = {"single": rate, "splinters": 4.0 * len(union), "split": float(len(union) > 1 and rate > 0.6)}
            parts.append(table(**about, method=list(facts), score=list(facts.values())))
    return parts


def shared_rows(supervised: float, tasks: dict[str, float]) -> list[pl.DataFrame]:
    """Return the rows that every run has."""
    none = {"kind": "none", "name": "", "variant": ""}
    parts = []
    for place, attributes in CARRIED.items():
        parts += [approximations(place, 4.0, method="clean", **none), approximations(place, 1.0, method="mean", **none)]
        for attribute in attributes:
            parts += [edits(0.1, place, attribute, method="unchanged", x=0, removed=0.0, **none)]
            for name, less in (("least squares", 0.0), ("mean codes", 0.1)):
                about = {"kind": "supervised", "name": name, "variant": "", "method": "supervised", "x": 0}
                parts.append(edits(supervised - less, place, attribute, removed=0.4, **about))
    for name, rate in tasks.items():
        about = {"kind": "task", "name": name, "variant": name.split(" ")[0]}
        parts += sae_rows(SITE, rate, **about) + sae_rows([HEADS], 1.2 - rate, **about)
    parts.append(edits(0.0, END, "Pos", method="unchanged", x=0, **none))  # not carried: must not count
    bars = {"low": [0.1, 0.1], "high": [0.9, 0.9], "n": [64, 64]}
    for attribute in ("S", "IO", "Pos"):
        for position, scores in (("S2", [0.8, 0.2]), ("END", [0.1, 0.6])):
            about = {**none, "criterion": "layers", "attribute": attribute, "value": position}
            parts.append(table(**about, x=[0, 5], score=scores, **bars))
    parts.append(table(**none, criterion="heads", value=["L1H2", "L9H1"], score=[0.2, 1.25], **bars))
    answered = {"value": ["{A} and {B}", "{B} and {A}"], "template": [0, 1], "score": [0.9, 0.7], "ld": [3.5, 2.5]}
    parts.append(table(**none, criterion="accuracy", **answered, **bars))
    return parts


def judged_run(variant: str, k: int, rate: float, supervised: float = 0.9, tasks: dict[str, float] = TASKS) -> Judged:
    own = sae_rows(SITE, rate, kind="full", name=f"{variant}-k{k}", variant=variant)
    scalars: dict[str, Estimate | None] = {"l0": Estimate.exact(k, 1000), "accuracy": Estimate(0.8, 0.7, 0.9, N)}
    scalars |= {f"carries/{place}/{name}": Estimate(0.9, 0.8, 1, N) for place, of in CARRIED.items() for name in of}
    key = f"carries/{END}/Pos"
    info = RunInfo(f"{variant}-k{k}", variant, {"k": k}, 0, 4096, "0" * 8, Path())
    rows = pl.concat([*own, *shared_rows(supervised, tasks)])
    return Judged(info, Result(scalars | {key: None}, rows, {key: "END does not carry Pos"}))


@pytest.fixture(scope="module")
def charts() -> dict[str, Chart]:
    judged = [judged_run("topk", 40, 0.4), judged_run("topk", 80, 0.2), judged_run("gated", 50, 0.4)]
    found = ioi_charts(judged)
    assert len({chart.id for chart in found}) == len(found)
    assert {chart.section for chart in found} == {"IOI"}
    return {chart.id: chart for chart in found}


def column(chart: Chart, name: str) -> list[Any]:
    return [row[chart.columns.index(name)] for row in chart.cells]


def value(e: Estimate | None) -> float:
    assert e is not None
    return e.value


def test_success_averages_prompts_then_attributes_then_places() -> None:
    parts = [("A", "S", [True, True, False, False]), ("A", "Pos", [True] * 4), ("B", "IO", [False] * 4)]
    rows = pl.concat([table(place=p, attribute=a, prompt=range(4), hit=hits) for p, a, hits in parts])
    found = success(rows)
    assert found is not None
    assert (found.value, found.n) == (((0.5 + 1) / 2 + 0) / 2, 4)
    assert found.low < found.value < found.high
    assert success(rows.head(0)) is None


def test_intervals_are_those_of_independent_prompts() -> None:
    rows = table(place="A", attribute="S", prompt=range(400), hit=[i % 10 < 3 for i in range(400)])
    found = success(rows)
    assert found is not None
    half = 1.96 * (0.3 * 0.7 / 400) ** 0.5
    assert found.high - 0.3 == pytest.approx(half, rel=0.15)
    assert 0.3 - found.low == pytest.approx(half, rel=0.15)
    twice = pl.concat([rows, rows.with_columns(place=pl.lit("B"))])  # the same prompts elsewhere say nothing new
    assert success(twice) == found


def test_differences_are_paired_by_prompt() -> None:
    better, worse = edits(0.7, "A", "S"), edits(0.6, "A", "S")
    gap = difference(better, worse)
    assert gap is not None
    assert gap.value == pytest.approx(0.1)
    half = 1.96 * (0.1 * 0.9 / N) ** 0.5  # 10 of 100 prompts differ; unpaired it would be 0.13
    assert (gap.high - gap.low) / 2 == pytest.approx(half, rel=0.15)
    easy = better.filter("hit")
    assert value(difference(easy, worse)) == pytest.approx(1 - 60 / 70)  # on what both have
    assert difference(better, worse.with_columns(place=pl.lit("B"))) is None


def test_sufficiency_is_a_ratio_of_means_and_undefined_for_small_ones() -> None:
    def lds(place: str, method: str, ld: list[float]) -> pl.DataFrame:
        return table(place=place, method=method, prompt=range(len(ld)), ld=ld)

    rows = pl.concat([lds("A", "clean", [1, 5]), lds("A", "reconstruction", [1, 2])])
    assert value(sufficiency(rows)) == pytest.approx(3 / 6)
    other = pl.concat([lds("B", "clean", [0.06, 0.03]), lds("B", "reconstruction", [9, 9])])
    assert sufficiency(other) is None
    assert sufficiency(pl.concat([rows, other])) == sufficiency(rows)
    assert sufficiency(lds("A", "reconstruction", [1, 2])) is None


def test_necessity_is_one_for_everything_and_zero_for_the_mean() -> None:
    plain = [approximations("A", 4.0, method="clean"), approximations("A", 1.0, method="mean")]
    for remainder, wanted in ((1.0, 1), (4.0, 0), (1.5, 1 - 0.5 / 3), (0.5, 1 - 0.5 / 3)):
        rows = pl.concat([*plain, approximations("A", remainder, method="remainder")])
        assert value(necessity(rows)) == pytest.approx(wanted)
    none = [approximations("A", 1.04, method="clean"), approximations("A", 1.0, method="mean")]
    assert necessity(pl.concat([*none, approximations("A", 1.0, method="remainder")])) is None


def test_scores_average_values_before_attributes_and_places() -> None:
    parts = [("A", "S", [0.1, 0.2, 0.3, 0.6]), ("A", "Pos", [1.0, 0.8]), ("B", "S", [0.0, 0.0, 0.0, None])]
    rows = pl.concat([table(place=p, attribute=a, value="abcd"[: len(s)], score=s) for p, a, s in parts])
    rows = rows.with_columns(value=pl.concat_str("place", "attribute", "score", ignore_nulls=True))
    found = mean_score(rows)
    assert found is not None
    assert found.value == pytest.approx(((0.3 + 0.9) / 2 + 0) / 2)
    assert found.low < found.value < found.high
    one = mean_score(rows.filter(attribute="Pos"))
    assert one is not None
    assert (one.value, one.low, one.high, one.n) == (pytest.approx(0.9), 0.8, 1.0, 2)


def test_each_place_has_its_own_best_task_sae(charts: dict[str, Chart]) -> None:
    one = judged_run("topk", 40, 0.4)
    (everywhere,) = task_lines(one, [*SITE, HEADS], by_variant=False)
    assert value(everywhere.at(*SITE).success()) == pytest.approx(0.7)  # topk k=4
    assert value(everywhere.at(HEADS).success()) == pytest.approx(0.7)  # gated, 1.2 - 0.5
    assert set(everywhere.of("edit").filter(place=HEADS)["name"]) == {"gated l1=1"}
    assert [line.name for line in task_lines(one, SITE)] == ["task: topk k=4", "task: gated l1=1"]


def test_the_answer_is_sorted_and_compares_where_the_study_has_saes(charts: dict[str, Chart]) -> None:
    answer = charts["ioi"]
    names = ["least squares", "mean codes", "task: topk k=4", "task: gated l1=1", "topk-k40", "gated-k50", "topk-k80"]
    assert column(answer, "Dictionary") == [*names, "unchanged model"]
    scores = [cell["value"] for cell in column(answer, "Edit success, 2 features")]
    assert scores == pytest.approx([0.9, 0.8, 0.7, 0.5, 0.4, 0.4, 0.2, 0.1])
    gaps = column(answer, "From supervised")
    assert gaps[0] is None
    assert [cell["value"] for cell in gaps[1:]] == pytest.approx([score - 0.9 for score in scores[1:]])
    assert column(answer, "L0") == [None, None, None, None, 40, 50, 80, None]
    run = dict(zip(answer.columns, answer.cells[4], strict=True))
    planted = {"Sufficiency": 3 / 4, "Necessity": 1 - 0.5 / 3, "32 features": 1.0, "2 features by F1": 0.2}
    planted |= {"Weight removed": 0.2, "F1": 0.4, "F1, union": 0.5}
    assert {name: run[name]["value"] for name in planted} == pytest.approx(planted)
    assert HEADS not in answer.note
    assert END in answer.note


def test_the_title_tells_first_gaps_and_the_papers_order(charts: dict[str, Chart]) -> None:
    title = charts["ioi"].title
    first = "IOI: topk-k40 edits 0.40 of the prompts as true patching does, with 2 features (1 of the 2 other runs"
    assert title.startswith(first)
    assert re.search(r"the best task SAE \(topk k=4\) 0\.70, 0\.30 \[0\.2\d, 0\.3\d\] above it", title)
    assert re.search(r"supervised \(least squares\) 0\.90, 0\.50 \[0\.4\d, 0\.5\d\] above it", title)
    assert "full distribution, holds here" in title
    assert title.endswith("changing nothing scores 0.10")


@pytest.mark.parametrize(
    ("rate", "supervised", "task", "verdict", "told"),
    [
        (0.4, 0.7, 0.7, "is not decided here", "above it"),
        (0.4, 0.5, 0.7, "fails here", "above it"),
        (0.8, 0.9, 0.5, "fails here", "(topk k=4) 0.50, 0.30 [0.2"),
        (0.5, 0.9, 0.5, "is not decided here", "not to be told from it (+0.00 [+0.00, +0.00])"),
    ],
)
def test_an_order_is_claimed_only_where_intervals_say_so(
    rate: float, supervised: float, task: float, verdict: str, told: str
) -> None:
    title = ioi_charts([judged_run("topk", 40, rate, supervised, {"topk k=4": task})])[0].title
    assert f"full distribution, {verdict}" in title
    assert told in title
    assert ("below it" in title) == (rate > task)
    assert "other runs" not in title


def test_localisation_says_where_and_how_much(charts: dict[str, Chart]) -> None:
    chart = charts["ioi-layers-Pos"]
    assert chart.title.endswith("at S2, layer 0, 0.80 of the logit difference goes with it")
    assert [(series.name, series.y) for series in chart.series] == [("S2", [0.8, 0.2]), ("END", [0.1, 0.6])]
    assert chart.series[0].y_low == [0.1, 0.1]
    assert chart.note.startswith("64 prompts.")
    heads = charts["ioi-heads"]
    assert heads.series[0].x == ["L9H1", "L1H2"]
    assert "without L9H1 the logit difference falls by 1.25 logits" in heads.title


def test_budgets_have_level_lines_and_choices_their_own_chart(charts: dict[str, Chart]) -> None:
    chart = charts["ioi-edits-blocks-10-hook-resid-post-s2"]
    series = {series.name: series for series in chart.series}
    tasks = ["task: topk k=4", "task: gated l1=1"]
    assert list(series) == ["topk-k40", "gated-k50", *tasks, "least squares", "mean codes", "unchanged model"]
    assert series["topk-k40"].x == [1, 2, 32]
    assert series["topk-k40"].y == pytest.approx([0.4, 0.4, 1.0])
    assert (series["least squares"].x, series["least squares"].y) == ([1, 32], pytest.approx([0.9, 0.9]))
    assert chart.title.endswith(
        "greedily: task: topk k=4 0.70 with 2, least squares 0.90, mean codes 0.80, unchanged model 0.10"
    )
    by_f1 = charts["ioi-edits-blocks-10-hook-resid-post-s2-f1"]
    assert by_f1.series[0].y == pytest.approx([0.2])
    heads = charts["ioi-edits-heads-end"]
    assert [series.name for series in heads.series][:2] == ["task: gated l1=1", "task: topk k=8"]


def test_magnitude_has_both_intervals(charts: dict[str, Chart]) -> None:
    chart = charts["ioi-magnitude"]
    assert [series.name for series in chart.series] == ["topk", "gated", "task SAEs", "supervised"]
    topk = chart.series[0]
    assert topk.x == pytest.approx([0.2, 0.1])
    assert topk.y == pytest.approx([0.4, 0.2])
    assert topk.y_low is not None
    assert topk.y_low[0] < 0.4


def test_places_that_lack_an_attribute_say_so(charts: dict[str, Chart]) -> None:
    chart = charts["ioi-matrix"]
    cells = {(row[0], row[1]): dict(zip(chart.columns, row, strict=True)) for row in chart.cells}
    assert len(cells) == 5
    lost = cells[END, "Pos"]
    assert lost["Carried"] == "END does not carry Pos"
    assert all(lost[name] is None for name in chart.columns[3:])
    assert cells[HEADS, "IO"]["topk-k40"] is None
    assert cells[HEADS, "IO"]["best task SAE"]["value"] == pytest.approx(0.7)
    assert cells[S2, "S"]["unchanged model"]["value"] == pytest.approx(0.1)
    assert cells[S2, "S"]["topk-k40"]["value"] == pytest.approx(0.4)


def test_features_and_phenomena(charts: dict[str, Chart]) -> None:
    f1 = charts["ioi-f1"]
    rows = {tuple(row[:3]): dict(zip(f1.columns, row, strict=True)) for row in f1.cells}
    assert rows[S2, "S", "F1, union"]["topk-k40"]["value"] == pytest.approx(0.5)
    kept = rows[S2, "all", "logit difference with interpretable features only"]["topk-k40"]
    assert kept["value"] == pytest.approx(0.5)
    assert f1.title.endswith("at most S 0.70, IO 0.70, Pos 0.70")
    assert rows[HEADS, "IO", "F1, one feature"]["topk-k40"] is None
    tasks = {series.name for series in charts["ioi-occlusion-heads-end"].series}
    assert {"task: gated l1=1, IO", "task: topk k=8, IO"} <= tasks  # the best of each variant
    occlusion = charts["ioi-occlusion-blocks-10-hook-resid-post-s2"]
    assert [series.name for series in occlusion.series][:2] == ["topk-k40, S", "topk-k40, IO"]
    assert occlusion.title.endswith("at most 0.35 as S, at most 0.70 as IO")


def test_splitting_shows_each_value_and_says_who_splits(charts: dict[str, Chart]) -> None:
    chart = charts["ioi-splitting-blocks-10-hook-resid-post-s2"]
    assert [series.name for series in chart.series[:2]] == ["topk-k40, IO first", "topk-k40, S first"]
    assert chart.series[0].x == [1, 2, 3]
    assert chart.series[0].y == [0.4, 0.85, 0.9]
    assert chart.title.endswith("split by task: topk k=4; the best feature alone has F1 0.70")
    alone = ioi_charts([judged_run("topk", 40, 0.4, tasks={})])
    assert any("S2: not split; the best feature alone has F1 0.40" in chart.title for chart in alone)
    splinters = [row for row in charts["ioi-f1"].cells if row[2] == "splinters of a value"]
    assert [row[:2] for row in splinters] == [[END, "Pos"], [S2, "Pos"], [HEADS, "Pos"]]
    assert splinters[0][3] == {"value": 8.0, "low": 4.0, "high": 12.0, "n": 2}


def test_accuracy_by_template_and_why_nothing_is_judged(charts: dict[str, Chart]) -> None:
    chart = charts["ioi-accuracy"]
    assert chart.title.endswith("0.80 [0.70, 0.90] of the prompts")
    assert chart.cells[1] == ["{B} and {A}", {"value": 0.7, "low": 0.1, "high": 0.9, "n": 64}, 2.5]
    one = judged_run("topk", 40, 0.4)
    only = Judged(one.info, Result({}, one.result.rows.filter(criterion="accuracy"), {"edit_success": "can't do it"}))
    (left,) = ioi_charts([only])
    assert left.note.endswith("can't do it")


def test_the_sample_keeps_the_proportion_of_hits(charts: dict[str, Chart]) -> None:
    rows = pl.concat([edits(0.3, S2, "S", x=2), edits(1.0, S2, "S", x=32)]).with_row_index("at")
    often = np.zeros(rows.height)
    for seed in range(400):
        drawn = sampled(rows, 10, seed)
        assert drawn.filter(x=2)["hit"].sum() == 3
        often[drawn["at"].to_numpy()] += 1
    assert often.sum() == 400 * 20
    assert np.abs(often / 400 - 0.1).max() < 0.06
    single = charts["ioi-single"]
    shown = pl.DataFrame(single.cells, schema=single.columns, orient="row")
    assert set(shown.filter(Dictionary="topk-k40")["Features"]) == {2, 32}
    assert set(shown.filter(Dictionary="least squares")["Features"]) == {None}
    assert set(shown.group_by("Dictionary", "Place", "Changed", "Features").len()["len"]) == {8}
    assert set(shown["Place"]) == set(CARRIED)
    assert shown.filter(Place=END, Changed="Pos").is_empty()


def test_nothing_without_runs_and_empty_charts_are_left_out() -> None:
    assert ioi_charts([]) == []
    one = judged_run("topk", 40, 0.4)
    only = Judged(one.info, Result({}, one.result.rows.filter(criterion="accuracy")))
    assert [chart.id for chart in ioi_charts([only])] == ["ioi-accuracy"]
    assert [chart.id for chart in ioi_charts([Judged(one.info, Result({}, one.result.rows.head(0)))])] == []


@pytest.mark.browser
def test_the_section_is_drawn_in_a_browser(visit: Any, charts: dict[str, Chart], tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study")
    write_charts(folder, "ioi", [chart.as_dict() for chart in charts.values()])
    seen = visit(render(folder))
    page = seen.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    section = page.locator("section.charts-section", has=page.locator("h2", has_text=re.compile("^IOI$")))
    drawn = sum(chart.kind != "table" for chart in charts.values())
    assert section.locator(".plot .main-svg").count() >= drawn
    rows = section.locator("figure", has=page.locator("#chart-ioi-matrix")).locator("tbody tr")
    assert rows.count() == len(charts["ioi-matrix"].cells)
    assert seen.complaints == []
