"""RAVEL's table and section of the report on synthetic results: planted scores, titles, a fair sample, filters."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from monosem.evals import Judged, Result, RunInfo
from monosem.evals.ravel.charts import ravel_charts
from monosem.evals.ravel.table import (
    BASELINES,
    KINDS,
    NO_ROWS,
    SAE_METHODS,
    as_table,
    coverage_scalars,
    sampled,
    scalars_of,
)
from monosem.report import render
from monosem.schema import Chart
from monosem.types import Estimate

from ..report.fixture import write_charts, write_study

ATTRIBUTES = {"city": ["Country", "Continent", "Language"], "verb": ["Past Tense", "Singular"]}
ENTITIES, TEMPLATES = 20, 2
GRID = (0.01, 0.1, 1.0)
RATES = {  # hits of (cause, isolate) interventions
    **{"mdas": (0.9, 0.8), "das": (0.9, 0.4), "dbm": (0.8, 0.3), "rlap": (0.5, 0.6), "pca": (0.3, 0.7)},
    **{"random": (0.1, 0.9), "full": (1.0, 0.1), "none": (0.0, 0.8)},
}


def rates_of(good: float) -> dict[str, tuple[float, float]]:
    """Return the planted rates of a run whose mask reaches Cause `good`."""
    own = {"mdbm": (good, 0.7), "mdbm+error": (good - 0.1, 0.7), "svm": (0.4, 0.6), "svm+error": (0.4, 0.7)}
    return {**RATES, **own}


@cache
def cell_rows(
    method: str, kind: str, target: str, attribute: str, split: str, rate: float, **more: Any
) -> pl.DataFrame:
    """Return interventions of one target and attribute, with exactly this share of hits in each template."""
    entities = [f"{kind} {i}" for i in range(ENTITIES)]
    columns: dict[str, list[Any]] = {name: [] for name in ("base", "source", "template", "answer", "hit")}
    for t in range(TEMPLATES):
        hits = [int((i + 1) * rate + 1e-9) > int(i * rate + 1e-9) for i in range(ENTITIES)]
        columns["base"] += entities
        columns["source"] += entities[1:] + entities[:1]
        columns["template"] += [
            f"{t} In short, what anyone would say of %s when asked for its {attribute} is"
        ] * ENTITIES
        wanted = "source" if attribute == target else "base"
        columns["answer"] += [wanted if hit else "other" for hit in np.roll(hits, 3 * t)]
        columns["hit"] += np.roll(hits, 3 * t).tolist()
    told = {"base_answer": "base", "source_answer": "source", "source_template": "%s is known for"}
    places = {"method": method, "type": kind, "target": target, "attribute": attribute, "split": split}
    return as_table({**columns, **told, **places, **more})


def rows_of(rates: dict[str, tuple[float, float]]) -> pl.DataFrame:
    """Return a run's table."""
    parts = []
    for method, (cause, isolate) in rates.items():
        c = 0.1 if method.startswith("svm") else None
        for kind, attributes in ATTRIBUTES.items():
            for target in attributes:
                for attribute in attributes:
                    where = (method, kind, target, attribute)
                    rate = cause if attribute == target else isolate
                    size = {"none": 0, "full": 512}.get(method, 12 + len(target))
                    parts += [cell_rows(*where, split, rate, c=c, size=size) for split in ("entity", "context")]
                    if method == "svm":
                        for step, penalty in enumerate(GRID):
                            kept = {"c": penalty, "size": 4 ** (step + 1)}
                            val = 0.3 * (step + 1) if attribute == target else 1 - 0.2 * (step + 1)
                            parts.append(cell_rows(*where, "val", round(val, 1), **kept))
    return pl.concat(parts)


COVERAGE = [
    {"type": "city", "attribute": "Country", "entities": 40, "templates": 7, "asked": 400, "answered": 100}
    | {"train_pairs": 900, "too_few": ""},
    {"type": "city", "attribute": "Latitude", "entities": 3, "templates": 1, "asked": 400, "answered": 4}
    | {"train_pairs": 0, "too_few": "3 entities are answered, 20 are needed"},
]


def judged_run(variant: str, k: int, good: float) -> Judged:
    rows = rows_of(rates_of(good))
    scalars, reasons = scalars_of(rows, 200)
    more, why = coverage_scalars(COVERAGE)
    scalars |= more | {"l0": Estimate.exact(k, 1000), "seconds": Estimate.exact(12.5, 1)}
    scalars["unstable_pairs"] = Estimate.exact(7, 7)
    info = RunInfo(f"{variant}-k{k}", variant, {"k": k}, 0, 4096, "0" * 8, Path())
    return Judged(info, Result(scalars, rows, reasons | why))


@pytest.fixture(scope="module")
def judged() -> list[Judged]:
    return [judged_run("topk", 40, 0.8), judged_run("topk", 80, 0.6), judged_run("gated", 50, 0.6)]


@pytest.fixture(scope="module")
def charts(judged: list[Judged]) -> dict[str, Chart]:
    return {chart.id: chart for chart in ravel_charts(judged)}


def column(chart: Chart, name: str) -> list[Any]:
    return [row[chart.columns.index(name)] for row in chart.cells]


def test_the_table_has_the_columns_of_the_contract() -> None:
    table = as_table({"method": "full", "base": ["Rome", "Paris"], "hit": [True, False]})
    assert table.schema == pl.Schema(KINDS)
    assert table["method"].to_list() == ["full", "full"]
    assert table["c"].to_list() == [None, None]
    with pytest.raises(KeyError, match="layer"):
        as_table({"layer": [1]})


def test_scalars_are_the_planted_rates(judged: list[Judged]) -> None:
    scalars = judged[0].result.scalars
    for method, (cause, isolate) in rates_of(0.8).items():
        name = method.replace("+", "_with_")
        assert judged[0].value(f"{name}_cause") == pytest.approx(cause)
        assert judged[0].value(f"{name}_isolate") == pytest.approx(isolate)
        for score in ("disentangle", "disentangle_entity", "disentangle_context"):
            assert judged[0].value(f"{name}_{score}") == pytest.approx((cause + isolate) / 2)
    assert scalars["disentangle"] == scalars["mdbm_disentangle"]
    assert judged[0].value("cause") == pytest.approx(0.8)
    found = scalars["disentangle"]
    assert found is not None
    assert found.low < 0.75 < found.high
    assert judged[0].value("none_size") == 0
    assert judged[0].value("full_size") == 512


def test_methods_without_test_rows_have_no_scores_but_a_reason() -> None:
    rows = cell_rows("svm", "city", "Country", "Country", "val", 0.5)
    scalars, reasons = scalars_of(rows, 100)
    names = {"cause", "isolate", "disentangle", "disentangle_entity", "disentangle_context"}
    assert scalars == dict.fromkeys(names)
    assert reasons == dict.fromkeys(names, NO_ROWS)


def test_the_answer_is_sorted_and_says_who_is_first(charts: dict[str, Chart]) -> None:
    answer = charts["ravel-answer"]
    assert len(answer.cells) == 3 * 4 + len(BASELINES)
    values = [cell["value"] for cell in column(answer, "Disentangle")]
    assert values == sorted(values, reverse=True)
    assert answer.cells[0][:2] == ["MDAS", "no SAE"]
    assert answer.cells[1][:2] == ["topk-k40", SAE_METHODS["mdbm"]]
    first, second = column(answer, "From the first")[:2]
    assert (first["value"], first["low"], first["high"]) == (0, 0, 0)
    assert second["value"] == pytest.approx(-0.1)
    assert second["low"] < -0.1 < second["high"]
    assert column(answer, "Seconds")[:2] == [None, 12.5]
    assert column(answer, "Isolate, nothing swapped")[1]["value"] == pytest.approx(0.8)
    assert "1,040 interventions" in answer.note


def test_the_title_tells_winner_rival_and_what_is_trivial(charts: dict[str, Chart]) -> None:
    title = charts["ravel-answer"].title
    assert title.startswith("First of the SAEs: topk-k40, MDBM mask, Disentangle 0.750 [")
    assert re.search(r"ahead of the next run, (topk-k80|gated-k50), MDBM mask, by 0\.100 \[0\.\d+, 0\.\d+\]", title)
    assert "all other runs are lower" in title
    assert "MDAS, are better by 0.100 [" in title
    assert "PCA scores 0.500. " in title
    assert "The whole activation has Cause 1.00 and Isolate 0.10" in title
    assert title.endswith("Changing nothing scores 0.5")


def test_what_can_not_be_told_apart_is_said() -> None:
    title = ravel_charts([judged_run("topk", 40, 0.9), judged_run("gated", 50, 0.9)])[0].title
    assert "by 0.000 [" in title
    assert "1 of the 1 other runs can't be told from it" in title
    alone = ravel_charts([judged_run("topk", 40, 1.0)])[0].title
    assert "ahead" not in alone
    assert "The best supervised directions, MDAS, can't be told from it: 0.850 [" in alone


def test_points_have_both_intervals_and_baselines_their_names(charts: dict[str, Chart]) -> None:
    plane = charts["ravel-mdbm"]
    assert [series.name for series in plane.series] == [
        "topk",
        "topk + error",
        "gated",
        "gated + error",
        "no SAE",
    ]
    topk = plane.series[0]
    assert topk.x == pytest.approx([0.8, 0.6])
    assert topk.y == pytest.approx([0.7, 0.7])
    assert topk.x_low is not None
    assert topk.x_high is not None
    assert all(low < x < high for low, x, high in zip(topk.x_low, topk.x, topk.x_high, strict=True))
    assert plane.series[-1].labels == list(BASELINES.values())


def test_curves_go_from_few_features_to_many(charts: dict[str, Chart]) -> None:
    curves = charts["ravel-selection"]
    names = ["topk-k40", "gated-k50"]
    assert [series.name for series in curves.series] == names
    assert curves.series[0].x == pytest.approx([0.3, 0.6, 0.9])
    assert curves.series[0].y == pytest.approx([0.8, 0.6, 0.4])
    assert curves.series[0].hover == ["C = 0.01, 4.0 features", "C = 0.1, 16.0 features", "C = 1, 64.0 features"]


def test_every_attribute_has_its_scores(charts: dict[str, Chart]) -> None:
    matrix = charts["ravel-attributes"]
    names = list(dict.fromkeys(column(matrix, "Attribute")))
    cities = ["city: Continent", "city: Country", "city: Language", "city: mean"]
    assert names == [*cities, "verb: Past Tense", "verb: Singular", "verb: mean"]
    assert len(matrix.cells) == 5 * len(names)
    mdas = dict(zip(column(matrix, "Score"), column(matrix, "MDAS"), strict=True))
    assert {score: round(cell["value"], 9) for score, cell in mdas.items()} == {
        "Disentangle": 0.85,
        "Disentangle, new entities": 0.85,
        "Disentangle, new contexts": 0.85,
        "Cause": 0.9,
        "Isolate": 0.8,
    }


def test_coverage_says_what_is_left_and_why_not(charts: dict[str, Chart]) -> None:
    coverage = charts["ravel-coverage"]
    assert [row[:3] for row in coverage.cells] == [["city", "Country", 400], ["city", "Latitude", 400]]
    assert column(coverage, "Answered")[0]["value"] == 0.25
    assert column(coverage, "Training pairs") == [900, None]
    assert column(coverage, "Test pairs") == [2 * ENTITIES * TEMPLATES, 0]
    assert "7 pairs are left out" in coverage.note
    assert column(coverage, "Used") == ["used", "3 entities are answered, 20 are needed"]


def test_the_sample_keeps_the_proportion_of_hits(charts: dict[str, Chart]) -> None:
    single = charts["ravel-single"]
    shown = pl.DataFrame(single.cells, schema=single.columns, orient="row")
    assert shown.height == 5 * 10 * (2 * 3 + len(BASELINES))
    assert f"{shown.height:,} of" in single.title
    by = shown.group_by("Method", "Swapped", "Score").agg(pl.len(), (pl.col("Hit") == "yes").sum().alias("hits"))
    assert set(by["len"]) == {5}
    for row in by.filter(pl.col("Method").is_in(["MDAS", "whole activation"])).iter_rows(named=True):
        planted = {"MDAS": (0.9, 0.8), "whole activation": (1.0, 0.1)}[row["Method"]][row["Score"] == "Isolate"]
        assert abs(row["hits"] - 5 * planted) < 1
    first = single.cells[0]
    assert "%s" not in first[single.columns.index("Prompt")]


def test_every_intervention_is_as_likely_to_be_drawn() -> None:
    rows = cell_rows("das", "city", "Country", "Country", "entity", 0.3)
    rows = pl.concat([rows, cell_rows("das", "city", "Country", "Country", "val", 0.3)]).with_row_index("at")
    often = np.zeros(rows.height)
    for seed in range(400):
        often[sampled(rows, 16, seed)["at"].to_numpy()] += 1
    tests = ENTITIES * TEMPLATES
    assert often.sum() == 400 * 8
    assert not often[tests:].any()  # none that only chose C
    assert np.abs(often[:tests] / 400 - 8 / tests).max() < 0.1
    assert sampled(rows, 16, 5).equals(sampled(rows, 16, 5))
    assert sampled(rows, 1000)["at"].to_list() == list(range(tests))


def test_nothing_without_runs() -> None:
    assert ravel_charts([]) == []


@pytest.mark.browser
def test_the_section_is_drawn_and_filtered_in_a_browser(visit: Any, charts: dict[str, Chart], tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study")
    write_charts(folder, "ravel", [chart.as_dict() for chart in charts.values()])
    seen = visit(render(folder))
    page = seen.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    section = page.locator("section.charts-section", has=page.locator("h2", has_text=re.compile("^RAVEL$")))
    words = section.locator(".plot .textpoint text").all_text_contents()
    assert sorted(set(words)) == sorted(BASELINES.values())
    figure = section.locator("figure", has=page.locator("#chart-ravel-single"))
    shown = figure.locator("tbody tr:visible")
    total = len(charts["ravel-single"].cells)
    assert figure.locator(".filters [role=status]").inner_text() == f"{total:,} rows"
    figure.get_by_label("Method").select_option("MDAS")
    assert shown.count() == 50
    figure.get_by_label("Swapped").select_option("verb: Singular")
    figure.get_by_label("Hit").select_option("yes")
    assert figure.locator(".filters [role=status]").inner_text() == f"{shown.count()} of {total:,} rows"
    assert 8 <= shown.count() <= 10
    figure.get_by_label("Rows with").fill("SINGULAR isolate")
    assert 3 <= shown.count() <= 5
    figure.get_by_label("Rows with").fill("no such words")
    assert shown.count() == 0
    assert section.locator("#chart-ravel-coverage").locator("xpath=../..").locator(".filters").count() == 0
    assert seen.complaints == []
