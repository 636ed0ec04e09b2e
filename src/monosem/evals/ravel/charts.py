"""The report's section on RAVEL, as data. Imports no torch."""

from __future__ import annotations

from typing import Any

import polars as pl

from monosem.definitions import METRICS
from monosem.evals import Judged, at_like_l0, cell, interval, short, without_empty
from monosem.evals.ravel.details import coverage, matrix, single
from monosem.evals.ravel.lines import BARS, SECTION, Line, difference, lines_of
from monosem.evals.ravel.table import BASELINES, SAE_METHODS, SUPERVISED, estimates
from monosem.schema import Axis, Chart, Series
from monosem.types import Estimate

CHOSEN = ("svm", "svm+error", "mdbm", "mdbm+error")  # methods that choose features


def ravel_charts(judged: list[Judged]) -> list[Chart]:
    """Return the tables and charts; judged: every run with its result."""
    if not judged:
        return []
    baselines = [line for method in BASELINES if (line := Line(method, "", judged[0])).disentangle >= 0]
    runs = lines_of(judged, CHOSEN)
    shown = _representatives(judged)
    charts = [
        _answer(judged, runs, baselines),
        *(_plane(judged, baselines, method) for method in ("svm", "mdbm")),
        _selection(shown),
        matrix([*lines_of(shown, ("svm", "mdbm")), *baselines]),
        coverage(judged[0]),
        single([*lines_of(shown, ("svm", "mdbm", "none")), *baselines]),
    ]
    return [chart for chart in charts if chart.cells or chart.series]


def _representatives(judged: list[Judged]) -> list[Judged]:
    return at_like_l0(judged, {j.info.name: j.value("l0") for j in judged}) or judged[:1]


def _answer(judged: list[Judged], runs: list[Line], baselines: list[Line]) -> Chart:
    lines = sorted([*runs, *baselines], key=lambda line: -line.disentangle)
    columns = ["Run", "Method", "L0", "Swapped", "Disentangle", "From the first", "Cause", "Isolate"]
    columns += ["New entities", "New contexts", "Isolate, nothing swapped", "Seconds"]
    cells: list[list[Any]] = []
    for line in lines:
        gap = Estimate.exact(0.0, 0) if line is lines[0] else difference(line, lines[0])
        size = line.score("size")
        row = [line.run, line.label, short(line.one.value("l0"))] if line.run else [line.label, "no SAE", None]
        row += [None if size is None else short(size.value), cell(line.score("disentangle")), cell(gap)]
        row += [cell(line.score(name)) for name in ("cause", "isolate", "disentangle_entity", "disentangle_context")]
        unswapped = line.one.result.scalars.get("none_isolate") if line.method in SAE_METHODS else None
        cells.append([*row, cell(unswapped), short(line.one.value("seconds")) if line.run else None])
    note = (
        f"{_counts(lines)} {BARS}: an entity with all its prompts at once. From the first: difference from the highest "
        "Disentangle, the same pairs for both (paired); the first of many is chosen on these pairs, and nothing is "
        "corrected for that. New entities: test entities in templates that were trained on; new contexts: the other "
        "way round; Disentangle is over both. Swapped: features, directions or dimensions that are taken from the "
        "source, mean over attributes. SVM: the features that an L1-penalised linear classifier of the "
        "attribute uses, its C chosen on other pairs; MDBM: a mask over features, trained for both scores. "
        "Without the error the activation is replaced by the SAE's reconstruction, which alone changes answers: see "
        f"Isolate with nothing swapped. Seconds: of the run, all its methods. "
        f"Supervised directions: {', '.join(BASELINES[name] for name in SUPERVISED)}. "
        + " ".join(METRICS[name].definition for name in ("cause", "isolate", "disentangle"))
    )
    columns, cells = without_empty(columns, cells)
    return Chart(
        "ravel-answer",
        _title(judged, runs, baselines),
        "table",
        columns=columns,
        cells=cells,
        note=note,
        section=SECTION,
    )


def _counts(lines: list[Line]) -> str:
    rows = lines[0].rows if lines else pl.DataFrame()
    if rows.is_empty():
        return ""
    targets = rows.select("type", "target").n_unique()
    entities, templates = rows.select("type", "base").n_unique(), rows["template"].n_unique()
    return (
        f"Each method: {rows.height:,} interventions that swap {targets} attributes of {rows['type'].n_unique()} "
        f"types, {entities:,} base entities in {templates:,} templates; all methods have the same pairs."
    )


def _title(judged: list[Judged], runs: list[Line], baselines: list[Line]) -> str:
    """Return which run is first and by how much, where supervised directions stand, and what is trivial."""
    parts = []
    if runs:
        best = max(runs, key=lambda line: line.disentangle)
        value = interval(best.score("disentangle"))
        parts.append(f"First of the SAEs: {best.name}, Disentangle {value}{_lead(judged, runs, best)}")
        rivals = [line for line in baselines if line.method in SUPERVISED]
        if rivals:
            parts.append(_rival(best, max(rivals, key=lambda line: line.disentangle)))
    known = {line.method: line for line in baselines}
    if "pca" in known:
        parts.append(f"PCA scores {known['pca'].disentangle:.3f}")
    if "full" in known:
        cause, isolate = (e.value if (e := known["full"].score(name)) else 0 for name in ("cause", "isolate"))
        parts.append(f"The whole activation has Cause {cause:.2f} and Isolate {isolate:.2f}")
    return ". ".join([*parts, "Changing nothing scores 0.5"])


def _lead(judged: list[Judged], runs: list[Line], best: Line) -> str:
    """Return how far the best run is ahead of the best of each other run."""
    others = [[line for line in runs if line.run == one.info.name] for one in judged if one.info.name != best.run]
    firsts = sorted(
        (max(own, key=lambda line: line.disentangle) for own in others if own), key=lambda x: -x.disentangle
    )
    if not firsts:
        return ""
    gaps = [difference(best, line) for line in firsts]
    like = sum(gap is None or gap.low <= 0 for gap in gaps)
    told = f"{like} of the {len(gaps)} other runs can't be told from it" if like else "all other runs are lower"
    return f", ahead of the next run, {firsts[0].name}, by {interval(gaps[0]) or 'unknown'}; {told}"


def _rival(best: Line, rival: Line) -> str:
    gap = difference(rival, best)
    value = interval(rival.score("disentangle"))
    if gap is None or gap.low <= 0 <= gap.high:
        return f"The best supervised directions, {rival.label}, can't be told from it: {value}"
    if gap.low > 0:
        return f"The best supervised directions, {rival.label}, are better by {interval(gap)}: {value}"
    turned = Estimate(-gap.value, -gap.high, -gap.low, gap.n)
    return f"It is better than the best supervised directions, {rival.label}, by {interval(turned)}"


def _plane(judged: list[Judged], baselines: list[Line], method: str) -> Chart:
    series = []
    for variant in dict.fromkeys(j.info.variant for j in judged):
        own = [j for j in judged if j.info.variant == variant]
        for name, kept in ((variant, method), (f"{variant} + error", f"{method}+error")):
            lines = lines_of(own, [kept])
            series += [_points(name, variant, lines, [_hover(line) for line in lines])] if lines else []
    if series and baselines:
        words = [line.label for line in baselines]
        series.append(_points("no SAE", "no SAE", baselines, [_hover(line) for line in baselines], words))
    return Chart(
        f"ravel-{method}",
        f"Cause and Isolate: {SAE_METHODS[method]}",
        "points",
        Axis("Cause", METRICS["cause"].unit),
        Axis("Isolate", METRICS["isolate"].unit),
        series,
        note="Upper right is better. Lines from upper left to lower right, Cause + Isolate = constant, have equal "
        "Disentangle: 0.5 from (0, 1), nothing changed, to (1, 0), everything changed. + error: what the SAE "
        f"doesn't reconstruct of the base stays. Bars: {BARS}.",
        section=SECTION,
    )


def _points(name: str, group: str, lines: list[Line], hover: list[str], labels: list[str] | None = None) -> Series:
    x, y = ([e for line in lines if (e := line.score(score))] for score in ("cause", "isolate"))
    return Series(
        name,
        [e.value for e in x],
        [e.value for e in y],
        group,
        y_low=[e.low for e in y],
        y_high=[e.high for e in y],
        x_low=[e.low for e in x],
        x_high=[e.high for e in x],
        hover=hover,
        labels=labels,
    )


def _hover(line: Line) -> str:
    size = line.score("size")
    swapped = "" if size is None else f"\n{size.value:.4g} swapped"
    l0 = f"\nL0 {line.one.value('l0'):.3g}" if line.run else ""
    return f"{line.name}\nDisentangle {interval(line.score('disentangle'))}{swapped}{l0}"


def _selection(shown: list[Judged]) -> Chart:
    """Return how Cause and Isolate move as a weaker penalty lets the classifier use more features."""
    series = []
    for one in shown:
        rows = one.result.rows.filter(pl.col("split") == "val")
        x, y, hover = [], [], []
        for method in ("none", "svm", "all"):
            own = rows.filter(pl.col("method") == method)
            for c in sorted(own["c"].unique(), key=lambda c: c or 0):
                part = own.filter(pl.col("c").eq_missing(c))
                found = estimates(part, 0)
                if (cause := found["cause"]) is not None and (isolate := found["isolate"]) is not None:
                    x.append(cause.value)
                    y.append(isolate.value)
                    told = SAE_METHODS[method] if c is None else f"C = {c:g}"
                    hover.append(f"{told}, {part['size'].mean():,.1f} features")
        series += [Series(one.info.name, x, y, one.info.variant, hover=hover)] if x else []
    return Chart(
        "ravel-selection",
        "Cause and Isolate as more features are swapped",
        "line",
        Axis("Cause", METRICS["cause"].unit),
        Axis("Isolate", METRICS["isolate"].unit),
        series,
        note="Validation pairs. From no feature to all: the L1 penalty's C rises from point to point, and with it the "
        "number of features that the classifier uses. One run a variant, at like L0. A curve that runs along "
        "the line from (0, 1) to (1, 0) does not disentangle; what it lacks of (0, 1) at its upper end is "
        "what reconstruction alone costs.",
        section=SECTION,
    )
