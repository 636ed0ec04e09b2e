"""The section on multi-dimensional features on synthetic rows: planted numbers, verdicts, titles, and the page itself.

About 10 seconds, most of them the browser's.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from monosem.evals import Judged, Result, RunInfo
from monosem.evals.multidim.charts import best_planes, multidim_charts
from monosem.evals.multidim.discovery import BITS, MIXTURE
from monosem.evals.multidim.lines import held_as, share_of_rows
from monosem.evals.multidim.table import as_table
from monosem.evals.multidim.tasks import CYCLES, DAYS, MONTHS
from monosem.report import render
from monosem.report.inputs import parse_chart
from monosem.schema import Chart
from monosem.types import Estimate

from ..report.fixture import write_charts, write_study

TOMORROW, YESTERDAY, SUM = "Today is {word}. Tomorrow will be", "It was {word} yesterday, so today it is", "{count} on"
MONTH = "This month is {word}. Next month is"
SITE = 10
LAYERS = [0, 5, SITE, 20]
PATCHED = {"unpatched": 0.9, "circle": -0.7, "whole": -1.1, "mean": 0.1, "random_plane": 0.88, "random_in_span": 0.4}
SIX = {"Monday": 3, "Friday": 3, "May": 2, "1990s": 2, " the": 5, "other": 1}


def around(value: float, half: float) -> dict[str, float]:
    return {"score": value, "low": value - half, "high": value + half}


def points(cluster: int, plane: int, groups: dict[str, int] = SIX) -> pl.DataFrame:
    names = [name for name, count in groups.items() for _ in range(count)]
    t = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    told = {"kind": "point", "cluster": cluster, "plane": plane, "label": names, "group": names, "doc": 3, "pos": 5}
    return as_table({**told, "x": np.cos(t), "y": np.sin(t), "before": "on a\n", "after": " it rained"})


def planes(cluster: int, best: float, **more: Any) -> pl.DataFrame:
    """Return two planes of a cluster; the second is the better one."""
    about = {"kind": "plane", "cluster": cluster, "features": [[cluster, 100 + cluster]] * 2, "n": 900}
    told = {"plane": [1, 2], "score": [best / 2, best], "separability": [0.5, 1.5], "null": [0.1, 0.25]}
    bars = {"low": [None, best - 0.1], "high": [None, best + 0.1]}
    method = {"method": ["reducible", "irreducible"], "mixture": [0.5, 0.2], "tokens": [["Monday", " May", "\n"]] * 2}
    return as_table({**about, **told, **bars, **method, **more})


def held(cycle: str, home: int | None, pieces: int, needed: int) -> pl.DataFrame:
    told = {"kind": "held", "cycle": cycle, "layer": SITE, "n": 7, "method": ["whole", "best cluster", "needed"]}
    more = {"score": [0.9, 0.7, 0.85], "x": [0.2, 0.3, pieces], "cluster": [None, home, None]}
    return as_table({**told, **more, "features": [None, [1, 2], list(range(needed))]})


def probe(cycle: str, template: str, errors: list[float], null: float, **more: Any) -> pl.DataFrame:
    told = {"kind": "probe", "cycle": cycle, "template": template, "layer": LAYERS, "null": null, "p": 0.001, "x": 0.98}
    bars = {"score": errors, "low": down(errors), "high": down(errors, -0.1), "y": 0.85}
    return as_table({**told, **bars, "n": len(CYCLES[cycle].words), "label": "7 of 7", **more})


def words(cycle: str, template: str, layer: int) -> pl.DataFrame:
    names = CYCLES[cycle].words
    t = 2 * np.pi * np.arange(len(names)) / len(names)
    told = {"kind": "word", "cycle": cycle, "template": template, "layer": layer, "label": list(names)}
    return as_table({**told, "x": layer * np.cos(t), "y": layer * np.sin(t), "score": 0.25})


def patches(template: str, values: dict[str, float], cycle: str = "weekdays") -> pl.DataFrame:
    """Return patches with these scores at the study's layer, and without effect elsewhere."""
    parts = []
    for method, value in values.items():
        scores = [value if layer == SITE else 0.9 for layer in LAYERS]
        told = {"kind": "patch", "cycle": cycle, "template": template, "layer": LAYERS, "method": method, "x": 0.5}
        bars = {"low": down(scores, 0.05), "high": down(scores, -0.05)}
        parts.append(as_table({**told, "score": scores, **bars, "n": 42}))
        here = {**told, "kind": "effect", "layer": SITE, "x": None, "n": 42}
        effect = (0.9 - value) / (0.9 - values["whole"]) if values["whole"] < 0.9 else 0.0
        p = 0.01 if values["circle"] < value - 0.1 else 0.2
        parts.append(as_table({**here, "score": effect, "low": effect - 0.05, "high": effect + 0.05, "p": p}))
    return pl.concat(parts)


def accuracies() -> pl.DataFrame:
    found = [("weekdays", YESTERDAY, "successor", 4, 7), ("weekdays", TOMORROW, "successor", 6, 7)]
    found += [("weekdays", SUM, "sum", 8, 49), ("months", MONTH, "successor", 5, 12)]
    tables = []
    for cycle, template, method, right, n in found:
        about = {"kind": "accuracy", "cycle": cycle, "template": template, "method": method, "n": n}
        tables.append(as_table({**about, **around(right / n, 0.1)}))
    return pl.concat(tables)


def sweeps() -> pl.DataFrame:
    """Return answers of 4 base words at 10 angles: all follow at radius 1, but for one word; a tenth do at radius 0."""
    parts = []
    for base, word in enumerate(DAYS[:4]):
        for radius in (0.0, 1.0):
            right = [1] + [0] * 9 if radius == 0 or base == 3 else [1] * 10
            told = {"kind": "sweep", "cycle": "weekdays", "template": TOMORROW, "layer": SITE, "label": word}
            parts.append(as_table({**told, "x": radius, "y": np.arange(10.0), "group": "Monday", "score": right}))
    return pl.concat(parts)


def down(values: list[float], by: float = 0.1) -> list[float]:
    return [value - by for value in values]


def model_rows(patched: dict[str, float]) -> list[pl.DataFrame]:
    part = {"kind": "parts", "cycle": "weekdays", "template": TOMORROW, "layer": LAYERS, "n": 21}
    brought = {
        ("attention", "word"): [0.1, 0.0, 0.0, 0.0],
        ("MLP", "word"): [0.2, 0.5, 0.1, 0.0],
        ("MLP", "last token"): [0.0, 0.0, 0.45, 0.1],
        ("residual", "word"): [1.0, 0.9, 0.8, 0.0],
    }
    tables = [
        as_table({**part, "method": method, "label": place, "score": s, "low": down(s), "high": down(s, -0.1)})
        for (method, place), s in brought.items()
    ]
    for layer in (5, SITE):
        for place in ("word", "last token"):
            fits = {"template": 0.1, "circle": 0.6, "word": 0.8} if place == "word" else {"template": 0.5, "word": 0.4}
            told = {"kind": "regression", "cycle": "weekdays", "layer": layer, "label": place, "n": 35}
            tables.append(as_table({**told, "method": list(fits), "score": list(fits.values()), "x": 0.9}))
    return [
        *tables,
        accuracies(),
        probe("weekdays", YESTERDAY, [0.5] * 4, 1.7),
        probe("weekdays", TOMORROW, [1.65, 0.3, 0.25, 0.35], 1.7),
        probe("months", MONTH, [0.4] * 4, 3.0, p=[0.001, 0.2, 0.2, 0.001], label="9 of 12"),
        *(words("weekdays", template, layer) for template in (YESTERDAY, TOMORROW) for layer in (5, SITE)),
        words("months", MONTH, SITE),
        patches(YESTERDAY, {"unpatched": 0.9, "circle": 0.9, "whole": 0.9}),
        patches(TOMORROW, patched),
        sweeps(),
    ]


def judged_run(
    variant: str, k: int, whole: float, best: float, half: float = 0.05, patched: dict[str, float] = PATCHED
) -> Judged:
    """Return a run whose features hold these shares of the week's circle, and of the months' a fifth."""
    name = f"{variant}-k{k}"
    irreducible = [planes(rank, 1.2 - 0.25 * rank + k / 1000) for rank in (1, 2, 3, 4)]
    own = [*irreducible, planes(5, 0.05, low=None), *(points(rank, 2) for rank in (1, 2, 3, 4, 5))]
    own += [held("weekdays", 5, 3, 6), held("months", None, 2, 2)]
    scalars: dict[str, Estimate | None] = {
        name: Estimate.exact(value, 64)
        for name, value in {"l0": k, "clusters": 9, "judged_clusters": 5, "irreducible_clusters": 4}.items()
    }
    scalars |= {
        "best_separability": Estimate(1.25, 1.1, 1.4, 900),
        "best_epsilon_mixture": Estimate(0.2, 0.1, 0.3, 900),
    }
    for cycle, (all_of_it, cluster) in {"weekdays": (whole, best), "months": (0.2, 0.05)}.items():
        scalars[f"whole/{cycle}"] = Estimate(all_of_it, all_of_it - half, all_of_it + half, 7)
        scalars[f"together/{cycle}"] = Estimate(cluster, cluster - half, cluster + half, 7)
        scalars[f"needed/{cycle}"] = Estimate.exact(6, 7)
    scalars |= {"circle_rank/weekdays": Estimate.exact(5, 5), "circle_rank/months": None}
    info = RunInfo(name, variant, {"k": k}, 0, 4096, "0" * 8, Path())
    rows = pl.concat([*own, *model_rows(patched)])
    return Judged(info, Result(scalars, rows, {"circle_rank/months": "the cluster fires on 12 tokens"}))


@pytest.fixture(scope="module")
def judged() -> list[Judged]:
    together, split = judged_run("tanh", 40, 0.9, 0.8), judged_run("topk", 40, 0.9, 0.2)
    return [together, split, judged_run("topk", 80, 0.3, 0.1), judged_run("gated", 50, 0.9, 0.42)]


@pytest.fixture(scope="module")
def charts(judged: list[Judged]) -> dict[str, Chart]:
    found = multidim_charts(judged)
    assert len({chart.id for chart in found}) == len(found)
    assert {chart.section for chart in found} == {"Multi-dimensional features"}
    return {chart.id: chart for chart in found}


def table(chart: Chart) -> list[dict[str, Any]]:
    return [dict(zip(chart.columns, row, strict=True)) for row in chart.cells]


@pytest.mark.parametrize(
    ("whole", "best", "verdict", "sure"),
    [
        ((0.3, 0.2, 0.4), (0.3, 0.2, 0.4), "lost", True),
        ((0.45, 0.3, 0.6), (0.1, 0.1, 0.1), "lost", False),
        ((0.9, 0.8, 1.0), (0.7, 0.6, 0.8), "together", True),
        ((0.9, 0.8, 1.0), (0.5, 0.45, 0.6), "together", False),  # .45 is less than half of 1.0
        ((0.9, 0.8, 1.0), (0.5, 0.5, 0.6), "together", True),
        ((0.9, 0.8, 1.0), (0.2, 0.1, 0.39), "split", True),
        ((0.9, 0.8, 1.0), (0.2, 0.1, 0.40), "split", False),  # .40 is half of .8
        ((0.9, 0.4, 1.0), (0.1, 0.0, 0.15), "split", False),
        ((0.9, 0.8, 1.0), None, "split", True),
    ],
)
def test_a_verdict_is_sure_when_intervals_leave_no_other(whole: Any, best: Any, verdict: str, sure: bool) -> None:
    part = None if best is None else Estimate(*best, n=7)
    assert held_as(Estimate(*whole, n=7), part) == (verdict, sure)


def test_answers_of_one_base_word_are_drawn_together() -> None:
    found = share_of_rows(sweeps().filter(x=1.0))
    assert (found.value, found.n) == (pytest.approx(31 / 40), 40)
    assert found.low == pytest.approx(0.325)  # three of four draws are the word that doesn't follow
    assert found.high == 1.0


def test_the_headline_says_which_run_keeps_a_circle_together(charts: dict[str, Chart]) -> None:
    assert next(iter(charts)) == "multidim"
    week, year = charts["multidim"].title.split("; ")
    told = "kept together by tanh-k40 (0.80 [0.75, 0.85] of the plane in one cluster), split by 1 run, lost by 1 run"
    assert week == f"Weekdays: {told}, undecided for 1 run"
    assert year == "Months: kept together by no run, lost by 4 runs"
    rows = {row["Run"]: row for row in table(charts["multidim"])}
    column = "Weekdays"
    assert [row[column] for row in rows.values()] == ["together", "split in 3", "lost", "undecided (split in 3?)"]
    row = rows["tanh-k40"]
    assert (row["Variant"], row["L0"], row["Clusters"]["value"], row["Irreducible"]["value"]) == ("tanh", 40, 9, 4)
    assert row["Separability above chance"] == {"value": 1.25, "low": 1.1, "high": 1.4, "n": 900}
    assert (row["Mixture"]["value"], row["Weekdays: whole"]["value"]) == (0.2, 0.9)
    assert (row["Weekdays: best cluster"]["value"], row["Weekdays: its rank"]["value"]) == (0.8, 5)
    assert (row["Weekdays: features for 90 %"]["value"], row["Weekdays: in pieces"], row["Months: in pieces"]) == (
        6,
        3,
        2,
    )
    assert "Months: its rank" not in row
    assert "circle_rank/months: the cluster fires on 12 tokens (4 runs)" in charts["multidim"].note
    assert f"at least {BITS} bits" in charts["multidim"].note
    assert f"at most {MIXTURE}" in charts["multidim"].note


def test_several_runs_that_keep_it_are_counted_and_none_is_said() -> None:
    runs = [judged_run("tanh", 40, 0.9, 0.7), judged_run("topk", 40, 0.9, 0.8)]
    title = multidim_charts(runs)[0].title
    assert title.startswith(
        "Weekdays: kept together by 2 runs (up to 0.80 [0.75, 0.85] of the plane in one cluster: topk"
    )
    assert multidim_charts([judged_run("topk", 40, 0.9, 0.1)])[0].title.startswith(
        "Weekdays: kept together by no run, split by 1 run;"
    )
    wide = multidim_charts([judged_run("topk", 40, 0.9, 0.8, half=0.45)])[0]
    assert wide.title.startswith("Weekdays: kept together by no run, undecided for 1 run;")


def test_without_circles_the_headline_is_about_clusters_and_the_reason_is_told() -> None:
    one = judged_run("topk", 40, 0.9, 0.8)
    scalars = {name: e for name, e in one.result.scalars.items() if "/" not in name}
    alone = Judged(one.info, Result(scalars, one.result.rows.filter(kind="plane")))
    assert multidim_charts([alone])[0].title == "Irreducible clusters: topk-k40 has 4, of 5 judged; no run has more"
    why = {"whole/weekdays": "the site has no such position"}
    told = Judged(one.info, Result(scalars | {"whole/weekdays": None}, one.result.rows, why))
    headline = multidim_charts([told])[0]
    assert headline.title == "Weekdays: no circle to be held"
    assert table(headline)[0]["Weekdays"] == why["whole/weekdays"]


def test_the_best_plane_stands_for_its_cluster(judged: list[Judged], charts: dict[str, Chart]) -> None:
    best = best_planes(judged[0])
    assert best["cluster"].to_list() == [1, 2, 3, 4, 5]
    assert best["plane"].to_list() == [2] * 5
    top = charts["multidim-top"]
    assert {row["Run"] for row in table(top)} == {"tanh-k40", "topk-k40", "gated-k50"}  # one a variant, at like L0
    row = table(top)[1]
    assert (row["Rank"], row["Features"], row["Size"], row["Fires on"]) == (2, "2, 102", 2, "Monday, May, ⏎")
    assert (row["Separability"], row["By chance"], row["Mixture"], row["Tokens"]) == (1.5, 0.25, 0.2, 900)
    assert row["Score"]["value"] == pytest.approx(0.74)
    assert row["Verdict"] == "irreducible"
    assert top.title == (
        "Most irreducible: gated-k50's cluster 1 (Monday, May, ⏎), score 1.00 [0.90, 1.10] bits; "
        "2 others can't be told from it"
    )


def test_planes_are_square_with_a_series_a_group_in_order(charts: dict[str, Chart]) -> None:
    ids = [name for name in charts if name.startswith("multidim-plane-")]
    drawn = [
        f"multidim-plane-{run}-{rank}" for run in ("tanh-k40", "topk-k40", "gated-k50") for rank in (1, 2, 3, 4, 5)
    ]
    assert ids == drawn  # the fifth holds the week best
    chart = charts["multidim-plane-tanh-k40-2"]
    assert chart.square
    assert (chart.x.label, chart.y.label) == ("Component 2", "Component 3")
    assert chart.title == "tanh-k40, cluster 2 (Monday, May, ⏎): irreducible, 1.25 bits above chance, mixture 0.20"
    assert [series.name for series in chart.series] == ["Monday", "Friday", "May", "the", "1990s", "other"]
    assert [len(series.x) for series in chart.series] == [3, 3, 2, 5, 2, 1]
    assert chart.series[0].x[0] == 1
    assert chart.series[0].hover == ["…on a⏎«Monday» it rained…\ndocument 3, position 5"] * 3
    assert parse_chart(json.loads(json.dumps(chart.as_dict()))) == chart


def test_a_plane_with_many_groups_folds_the_rarest() -> None:
    one = judged_run("topk", 40, 0.9, 0.8)
    groups = dict.fromkeys(MONTHS, 3) | {"5": 2, "other": 1}
    rows = pl.concat([planes(1, 1.0), points(1, 1, groups)])
    (chart,) = [c for c in multidim_charts([Judged(one.info, Result({}, rows))]) if c.id.startswith("multidim-plane")]
    assert [series.name for series in chart.series] == [*MONTHS, "other"]
    assert len(chart.series[-1].x) == 3


def test_the_best_clusters_stand_with_their_indices(charts: dict[str, Chart]) -> None:
    chart = charts["multidim-keeping"]
    assert chart.title == "Clusters that hold most of a circle: 0 of 8 are the most irreducible of their run"
    week, month = table(chart)[:2]
    assert (week["Run"], week["Circle"], week["Size"], week["Rank"]) == ("tanh-k40", "weekdays", 2, 5)
    assert (week["Whole"]["value"], week["Best cluster"]["value"], week["Best feature"]) == (0.9, 0.7, None)
    assert (week["Separability"], week["By chance"], week["Mixture"], week["Tokens"]) == (1.5, 0.25, 0.2, 900)
    assert week["Fires on"] == "Monday, May, ␣"
    assert (week["Error, best cluster"], week["Error, all features"]) == (0.3, 0.2)
    assert (month["Rank"], month["Separability"], month["Fires on"]) == (None, None, None)


def test_words_stand_on_their_circle_in_order(charts: dict[str, Chart]) -> None:
    chart = charts["multidim-circle-weekdays"]
    told = "7 of 7 weekdays in order at layer 10: error 0.25 [0.15, 0.35] steps, 1.70 by chance, p 0.001"
    assert chart.title == told  # at the study's layer, on the template that the model answers best
    (series,) = chart.series
    assert (chart.square, series.path) == (True, True)
    assert series.labels == [*DAYS, ""]
    assert series.x[0] == series.x[-1] == SITE
    assert series.y[1] == pytest.approx(SITE * np.sin(2 * np.pi / 7))
    assert series.hover is not None
    assert series.hover[0] == "off by 0.25 steps"
    assert TOMORROW in chart.note
    assert "Words: weekdays 7." in chart.note
    none = "No circle of months that can be told from chance at layer 10: error 0.40 [0.30, 0.50] steps"
    assert charts["multidim-circle-months"].title == f"{none}, 3.00 by chance, p 0.2"


def test_errors_have_chance_beside_them(charts: dict[str, Chart]) -> None:
    chart = charts["multidim-error"]
    assert chart.title.endswith(": error below chance for weekdays at 3 of 4 layers, months at 2 of 4 layers")
    assert [series.name for series in chart.series][:2] == ["weekdays", "weekdays, words permuted"]
    found, permuted = chart.series[:2]
    assert (found.x, found.y) == (LAYERS, [1.65, 0.3, 0.25, 0.35])
    assert found.y_high == pytest.approx([1.75, 0.4, 0.35, 0.45])
    assert permuted.y == [1.7] * 4
    assert "Words: weekdays 7, months 12." in chart.note
    rows = table(charts["multidim-probe"])
    assert charts["multidim-probe"].title == "Circles by template: 2 of 3 are below chance at the study's layer"
    assert [(row["Cycle"], row["Layer"], row["Error"]["value"]) for row in rows] == [
        ("weekdays", SITE, 0.5), ("weekdays", SITE, 0.25), ("months", SITE, 0.4),
    ]  # fmt: skip
    assert (rows[2]["In order"], rows[2]["p"], rows[2]["R²"], rows[2]["R², permuted"]) == ("9 of 12", 0.2, 0.98, 0.85)


def test_patching_says_what_the_circle_carries(charts: dict[str, Chart]) -> None:
    chart = charts["multidim-patch-weekdays"]
    assert list(charts)[1] == chart.id
    title = (
        r"Weekdays: the model uses the circle; at layer 10 it has 0\.80 \[0\.7\d, 0\.8\d\] of the whole activation's "
        r"effect, the mean 0\.40 \[0\.\d\d, 0\.\d\d\], a random plane at most 0\.25 \[0\.\d\d, 0\.\d\d\]"
    )
    assert re.fullmatch(title, chart.title)
    names = ["unpatched", "circle, rest at its mean", "whole activation", "mean", "random plane"]
    assert [series.name for series in chart.series] == [*names, "random plane among the words"]
    assert chart.series[1].y == [0.9, 0.9, -0.7, 0.9]
    assert chart.series[1].y_low == pytest.approx([0.85, 0.85, -0.75, 0.85])
    assert chart.series[1].hover == ["new answer likeliest for 0.50 of 42 pairs"] * 4
    assert f'"{TOMORROW}", 42 pairs' in chart.note
    assert f'"{YESTERDAY}": Weekdays: at layer 10 not even the whole activation has an effect' in chart.note
    assert "multidim-patch-months" not in charts


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"mean": -0.7}, "it is not decided if the model uses the circle"),
        ({"random_in_span": -0.61}, "it is not decided if the model uses the circle"),
        ({"random_in_span": -0.5}, "the model uses the circle"),
        ({"circle": 0.85}, "patching the circle has no effect that can be told"),
        ({"whole": 0.85}, "at layer 10 not even the whole activation has an effect that can be told"),
    ],
)
def test_use_is_claimed_only_where_draws_of_words_say_so(changed: dict[str, float], told: str) -> None:
    charts = multidim_charts([judged_run("topk", 40, 0.9, 0.8, patched=PATCHED | changed)])
    assert charts[1].title.startswith(f"Weekdays: {told}")


def test_without_controls_nothing_is_decided() -> None:
    only = {name: PATCHED[name] for name in ("unpatched", "circle", "whole")}
    title = multidim_charts([judged_run("topk", 40, 0.9, 0.8, patched=only)])[1].title
    assert title.startswith("Weekdays: it is not decided")
    assert title.endswith("effect")


def test_angles_parts_and_regressions(charts: dict[str, Chart]) -> None:
    sweep = charts["multidim-sweep"]
    assert sweep.title.endswith("0.78 [0.33, 1.00] of weekdays at radius 1 (n 40, chance 0.14)")
    assert (sweep.series[0].x, sweep.series[0].y) == ([0, 1], pytest.approx([0.1, 0.775]))
    parts = charts["multidim-parts-weekdays"]
    assert parts.title == (
        "Weekdays: the largest part is the MLP of layer 5 at the word, 0.50 [0.40, 0.60]; 1 other can't be told from it"
    )
    series = {one.name: one for one in parts.series}
    assert series["MLP, last token"].y == [0, 0, 0.45, 0.1]
    assert series["residual, word"].y == [1, 0.9, 0.8, 0]
    assert series["MLP, word"].group == series["MLP, last token"].group
    assert "21 pairs" in parts.note
    fits = charts["multidim-regression-weekdays"]
    assert fits.columns == ["Layer", "Position", "Prompts", "template", "circle", "word"]
    assert fits.cells[2:] == [[10, "word", 35, 0.1, 0.6, 0.8], [10, "last token", 35, 0.5, None, 0.4]]
    assert "at layer 10: at the word template 0.10, circle 0.60, word 0.80; at the last token template" in fits.title


def test_accuracy_says_where_there_is_nothing_to_patch(charts: dict[str, Chart]) -> None:
    chart = charts["multidim-accuracy"]
    assert chart.title == "What the model can do: weekdays 2 of 2 successors and 0 of 1 sum; months 0 of 1 successor"
    rows = table(chart)
    assert [row["Informative"] for row in rows] == ["yes", "yes", "no", "no"]
    assert rows[2]["Right"]["value"] == pytest.approx(8 / 49)
    assert rows[2]["Right"]["n"] == 49
    assert [row["Chance"] for row in rows] == [0.143, 0.143, 0.143, 0.0833]


def test_nothing_without_runs_and_empty_charts_are_left_out() -> None:
    assert multidim_charts([]) == []
    one = judged_run("topk", 40, 0.9, 0.8)
    for kinds in (["plane", "point"], ["accuracy"], ["patch"], ["word"], ["parts", "regression", "sweep"], []):
        rows = one.result.rows.filter(pl.col("kind").is_in(kinds))
        assert multidim_charts([Judged(one.info, Result({}, rows))])[0].id == "multidim"
    fewer = Judged(one.info, Result({}, one.result.rows.filter(kind="held")))
    assert any(chart.id == "multidim-patch-weekdays" for chart in multidim_charts([fewer, one]))


@pytest.mark.browser
def test_the_section_is_drawn_in_a_browser(visit: Any, charts: dict[str, Chart], tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study")
    write_charts(folder, "multidim", [chart.as_dict() for chart in charts.values()])
    seen = visit(render(folder))
    page = seen.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    heading = page.locator("h2", has_text=re.compile("^Multi-dimensional features$"))
    section = page.locator("section.charts-section", has=heading)
    drawn = sum(chart.kind != "table" for chart in charts.values())
    assert section.locator(".plot .main-svg").count() >= drawn
    rows = section.locator("figure", has=page.locator("#chart-multidim-top")).locator("tbody tr")
    assert rows.count() == len(charts["multidim-top"].cells)
    circle = section.locator("figure", has=page.locator("h3", has_text="7 of 7 weekdays in order"))
    assert [text.strip() for text in circle.locator(".textpoint").all_text_contents() if text.strip()] == [*DAYS]
    places = circle.locator(".point").evaluate_all(
        "all => all.map((p) => p.getBoundingClientRect()).map((b) => [b.x, b.y])"
    )
    xs, ys = np.array(places[:7]).T
    radii = np.hypot(xs - xs.mean(), ys - ys.mean())
    assert radii.max() / radii.min() == pytest.approx(1, abs=0.03)  # round on the screen
    assert seen.complaints == []
