"""The report's section on multi-dimensional features, as data: which SAE holds which circle. Imports no torch."""

from __future__ import annotations

from typing import Any

import polars as pl

from monosem.evals import Judged, at_like_l0, cell, interval, short, without_empty
from monosem.evals.multidim.details import circle, errors, parts, patch, probes, regression, sweep
from monosem.evals.multidim.discovery import BITS, MIXTURE
from monosem.evals.multidim.keeping import keeping
from monosem.evals.multidim.lines import (
    SECTION,
    counted,
    cycles,
    estimate,
    held_as,
    known,
    leading,
    of_model,
    shown,
)
from monosem.evals.multidim.tasks import CYCLES, SOLVES
from monosem.schema import Axis, Chart, Series
from monosem.types import Estimate

TOP = 10  # clusters of a run in the table
PLANES = 4  # of a run in the gallery
GROUPS = 12  # in a plane's legend; what is left is "other"
LISTED = 12  # features of a cluster
VERDICTS = ("together", "split", "lost", "undecided")
OTHER = "other"


def multidim_charts(judged: list[Judged]) -> list[Chart]:
    """Return the tables and charts; judged: every run with its result."""
    if not judged:
        return []
    found = cycles(judged)
    some = at_like_l0(judged, {one.info.name: one.value("l0") for one in judged}) or judged[:1]
    charts = [
        _headline(judged, found),
        *(patch(judged, cycle) for cycle in found),
        _accuracy(judged, found),
        keeping(judged, found),
        _top(some),
        *_gallery(some),
        *(circle(judged, cycle) for cycle in found),
        errors(judged, found),
        probes(judged, found),
        sweep(judged, found),
        *(chart(judged, cycle) for cycle in found for chart in (parts, regression)),
    ]
    return [chart for chart in charts if chart.cells or chart.series]


def _headline(judged: list[Judged], found: list[str]) -> Chart:
    """Return a row for each run: its clusters, and how it holds each circle."""
    held = [cycle for cycle in found if any(f"whole/{cycle}" in one.result.scalars for one in judged)]
    names = {"clusters": "Clusters", "judged_clusters": "Judged", "irreducible_clusters": "Irreducible"}
    names |= {"best_separability": "Separability above chance", "best_epsilon_mixture": "Mixture"}
    facts = ("whole", "best cluster", "its rank", "features for 90 %", "in pieces")
    about = [f"{cycle.capitalize()}: {fact}" for cycle in held for fact in facts]
    columns = ["Run", "Variant", "L0", *map(str.capitalize, held), *names.values(), *about]
    cells: list[list[Any]] = []
    for one in judged:
        row = [one.info.name, one.info.variant, short(one.value("l0")), *(_verdict(one, cycle) for cycle in held)]
        row += [cell(one.result.scalars.get(name)) for name in names]
        cells.append([*row, *(fact for cycle in held for fact in _held(one, cycle))])
    told = [_kept(judged, cycle) for cycle in held]
    columns, cells = without_empty(columns, cells)
    return Chart(
        "multidim",
        "; ".join(told) or _most(judged),
        "table",
        columns=columns,
        cells=cells,
        note="Clusters: features with similar decoder rows; judged: those that fire on enough held-out tokens. "
        f"Irreducible: in its best plane the separability is at least {BITS} bits above chance and the mixture index "
        f"at most {MIXTURE} (our thresholds). Separability: mutual information of a plane's two coordinates, in bits, "
        "smallest over rotations, less that of shuffled coordinates: 0 for two independent features. Mixture: largest "
        "share of tokens near one line: 1 for tokens on a line. Both are of the first cluster's best plane. Weekdays, "
        "months: what becomes of the circle of the model's words at the study's site. Whole: share of the variance of "
        "the words' means in the circle's plane that all features reproduce; best cluster: that this one alone "
        "reproduces, and its rank among the judged. Lost: whole below 0.5; together: best cluster at least half of the "
        "whole; else split (our thresholds). Undecided: intervals allow another verdict; in brackets the likeliest. "
        "Features for 90 %: as few as reach 90 % of the whole, taken one after another; in pieces: clusters or single "
        "features in which these lie. Brackets: 95 %, documents left out a tenth at a time (separability, mixture) or "
        f"words drawn again (shares). {_reasons(judged)}",
        section=SECTION,
    )


def _held(one: Judged, cycle: str) -> list[Any]:
    scalars = [one.result.scalars.get(f"{name}/{cycle}") for name in ("whole", "together", "circle_rank", "needed")]
    return [*map(cell, scalars), short(_pieces(one, cycle))]


def _pieces(one: Judged, cycle: str) -> float | None:
    needed = one.result.rows.filter(kind="held", cycle=cycle, method="needed")
    return needed["x"][0] if needed.height else None


def _verdict(one: Judged, cycle: str) -> str:
    """Return how a run holds a circle, in words; why nothing can be said where that is so."""
    whole, best = (one.result.scalars.get(f"{name}/{cycle}") for name in ("whole", "together"))
    if whole is None:
        return one.result.reasons.get(f"whole/{cycle}", "not measured")
    verdict, sure = held_as(whole, best)
    if verdict == "split" and (pieces := _pieces(one, cycle)):
        verdict += f" in {pieces:g}"
    return verdict if sure else f"undecided ({verdict}?)"


def _kept(judged: list[Judged], cycle: str) -> str:
    """Return in words which runs keep a cycle together, split it and lose it."""
    runs: dict[str, list[tuple[Judged, Estimate | None]]] = {verdict: [] for verdict in VERDICTS}
    for one in judged:
        whole, best = (one.result.scalars.get(f"{name}/{cycle}") for name in ("whole", "together"))
        if whole is not None:
            verdict, sure = held_as(whole, best)
            runs[verdict if sure else "undecided"].append((one, best))
    total = sum(map(len, runs.values()))
    if not total:
        return f"{cycle.capitalize()}: no circle to be held"
    told = [f"kept together by {_best(runs['together'])}" if runs["together"] else "kept together by no run"]
    words = {"split": "split by", "lost": "lost by", "undecided": "undecided for"}
    told += [f"{words[name]} {counted(len(runs[name]), 'run')}" for name in VERDICTS[1:] if runs[name]]
    return f"{cycle.capitalize()}: {', '.join(told)}"


def _best(runs: list[tuple[Judged, Estimate | None]]) -> str:
    one, most = max(runs, key=lambda pair: 0.0 if pair[1] is None else pair[1].value)
    if len(runs) == 1:
        return f"{one.info.name} ({interval(most, '.2f')} of the plane in one cluster)"
    return f"{len(runs)} runs (up to {interval(most, '.2f')} of the plane in one cluster: {one.info.name})"


def _most(judged: list[Judged]) -> str:
    found = [one for one in judged if one.result.scalars.get("irreducible_clusters") is not None]
    if not found:
        return "Clusters of features"
    most = max(found, key=lambda one: one.value("irreducible_clusters"))
    count, of = (most.value(name) for name in ("irreducible_clusters", "judged_clusters"))
    return f"Irreducible clusters: {most.info.name} has {count:g}, of {of:g} judged; no run has more"


def _reasons(judged: list[Judged]) -> str:
    """Return why numbers are missing, with the number of runs."""
    names = ("clusters", "judged_clusters", "irreducible", "best", "whole", "together", "needed", "circle")
    why: dict[str, set[str]] = {}
    for one in judged:
        for name, reason in one.result.reasons.items():
            if name.startswith(names):
                why.setdefault(f"{name}: {reason}", set()).add(one.info.name)
    told = "; ".join(f"{reason} ({counted(len(runs), 'run')})" for reason, runs in why.items())
    return f"Without a number: {told}." if told else ""


def _accuracy(judged: list[Judged], found: list[str]) -> Chart:
    """Return what the model can do, by template, and so where there is anything to patch."""
    rows = known(of_model(judged, "accuracy"))
    cells: list[list[Any]] = []
    told = []
    for cycle in found:
        own = rows.filter(pl.col("cycle") == cycle)
        chance = short(1 / len(CYCLES[cycle].words)) if cycle in CYCLES else None
        for row in own.iter_rows(named=True):
            usable = "yes" if row["score"] >= SOLVES else "no"
            cells.append([cycle, row["method"], row["template"], row["n"], cell(estimate(row)), chance, usable])
        solved = [
            f"{(part['score'] >= SOLVES).sum()} of {counted(part.height, name)}"
            for name in ("successor", "sum")
            if (part := own.filter(pl.col("method") == name)).height
        ]
        told += [f"{cycle} {' and '.join(solved)}"] if solved else []
    return Chart(
        "multidim-accuracy",
        f"What the model can do: {'; '.join(told)}",
        "table",
        columns=["Cycle", "Kind", "Template", "Prompts", "Right", "Chance", "Informative"],
        cells=cells,
        note="Right: prompts for which the right word is the likeliest of the cycle's words, with Wilson's 95 % "
        f"intervals. Informative: at least {SOLVES:g} are right. Where the model can't do a task, nothing is patched "
        "and nothing scored: a wrong answer that changes says nothing about how right ones are computed. The words may "
        "lie on a circle all the same. Successor: the next word; sum: so many words on.",
        section=SECTION,
    )


def best_planes(one: Judged) -> pl.DataFrame:
    """Return the most irreducible plane of each cluster of a run, clusters by rank."""
    planes = known(one.result.rows.filter(kind="plane"))
    best = planes.sort("score", descending=True, maintain_order=True).unique("cluster", keep="first")
    return best.sort("cluster")


def _top(some: list[Judged]) -> Chart:
    columns = ["Run", "Rank", "Features", "Size", "Fires on", "Separability", "By chance", "Mixture", "Score", "Tokens"]
    cells: list[list[Any]] = []
    ranked = []
    for one in some:
        best = best_planes(one).head(TOP)
        ranked.append(best.with_columns(label=pl.lit(one.info.name)))
        for row in best.iter_rows(named=True):
            features = ", ".join(map(str, row["features"][:LISTED]))
            features += ", …" if len(row["features"]) > LISTED else ""
            indices = [short(row[name]) for name in ("separability", "null", "mixture")]
            about = [one.info.name, row["cluster"], features, len(row["features"]), _tokens(row["tokens"])]
            cells.append([*about, *indices, cell(estimate(row)), row["n"], row["method"]])
    return Chart(
        "multidim-top",
        _first(pl.concat(ranked)),
        "table",
        columns=[*columns, "Verdict"],
        cells=cells,
        note=f"The first {TOP} clusters of each run, by the score of their best plane; one run a variant, at like L0. "
        "Fires on: the most frequent tokens on which a feature of the cluster fires. Separability and what chance "
        "gives (one coordinate shuffled): bits. Score: (1 - mixture) * (separability - by chance), bits, with 95 % "
        "intervals by leaving a tenth of the documents out, where computed. Tokens: on which the plane was judged. "
        f"Irreducible: separability at least {BITS} bits above chance, mixture at most {MIXTURE} (ours). Two "
        "features that never fire together have a separability of up to 1 bit and are no circle: look at the planes.",
        section=SECTION,
    )


def _first(rows: pl.DataFrame) -> str:
    if not rows.height:
        return "No cluster was judged"
    told = rows.filter(pl.col("low").is_not_null())
    top, like = leading(told if told.height else rows)
    title = f"Most irreducible: {top['label']}'s cluster {top['cluster']} ({_tokens(top['tokens'])})"
    title += f", score {interval(estimate(top), '.2f')} bits"
    return title + (f"; {counted(like, 'other')} can't be told from it" if like else "")


def _tokens(tokens: list[str]) -> str:
    return ", ".join(map(shown, tokens))


def _gallery(some: list[Judged]) -> list[Chart]:
    """Return the best planes of each run, and those of the clusters that hold a circle best."""
    charts = []
    for one in some:
        points, best = one.result.rows.filter(kind="point"), best_planes(one)
        homes = one.result.rows.filter(kind="held", method="best cluster")["cluster"].drop_nulls()
        drawn = sorted({*best["cluster"].head(PLANES), *homes} & {*points["cluster"]} & {*best["cluster"]})
        for rank in drawn:
            (plane,) = best.filter(cluster=rank).iter_rows(named=True)
            charts.append(_plane(one, plane, points.filter(cluster=rank)))
    return charts


def _plane(one: Judged, plane: dict[str, Any], points: pl.DataFrame) -> Chart:
    rank, number = plane["cluster"], points["plane"][0]
    excess = max(plane["separability"] - plane["null"], 0.0)
    indices = f"{excess:.2f} bits above chance, mixture {plane['mixture']:.2f}"
    return Chart(
        f"multidim-plane-{one.info.name}-{rank}",
        f"{one.info.name}, cluster {rank} ({_tokens(plane['tokens'])}): {plane['method']}, {indices}",
        "points",
        Axis(f"Component {number}", reference=0),
        Axis(f"Component {number + 1}", reference=0),
        [_group(name, own) for name, own in _grouped(points).items()],
        note=f"What the cluster's {counted(len(plane['features']), 'feature')} reconstruct at {points.height:,} of "
        f"{plane['n']:,} tokens on which one of them fires, along two principal components; colours are the tokens. "
        "A circle or an arc in order of its words is a multi-dimensional feature; two lines are two features that "
        "exclude each other; a filled cloud is no structure.",
        section=SECTION,
        square=True,
    )


def _grouped(points: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Return the points by group: words of a cycle in their order, then others by name, at last what is left over."""
    counts = points.filter(pl.col("group") != OTHER)["group"].value_counts(sort=True)
    kept = counts.sort("count", "group", descending=[True, False])["group"].head(GROUPS).to_list()
    words = [word for cycle in CYCLES.values() for word in cycle.words]
    kept.sort(key=lambda name: (words.index(name) if name in words else len(words), len(name), name))
    folded = points.with_columns(group=pl.when(pl.col("group").is_in(kept)).then("group").otherwise(pl.lit(OTHER)))
    return {name: own for name in [*kept, OTHER] if (own := folded.filter(group=name)).height}


def _group(name: str, points: pl.DataFrame) -> Series:
    hover = [
        f"…{row['before']}«{row['label']}»{row['after']}…".replace("\n", "⏎")
        + f"\ndocument {row['doc']}, position {row['pos']}"
        for row in points.iter_rows(named=True)
    ]
    return Series(shown(name), points["x"].to_list(), points["y"].to_list(), shown(name), hover=hover)
