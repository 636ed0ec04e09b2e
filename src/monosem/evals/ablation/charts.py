"""The report's section on ablation effects, as data. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import polars as pl

from monosem.definitions import METRICS
from monosem.evals import Judged, against_l0, at_like_l0, short, without_empty
from monosem.evals.ablation.table import paired_difference
from monosem.schema import Axis, Chart, Series
from monosem.types import Estimate

SECTION = "Ablation effects"
DRAWS = 2000
BASELINES = {
    "effect_sparsity_random": "random directions",
    "effect_sparsity_neuron": "residual coordinates",
    "effect_sparsity_pca": "principal components",
}


def ablation_charts(judged: list[Judged]) -> list[Chart]:
    """Return the charts and tables; judged: every run with its result."""
    charts = [_against_l0(judged), _against_random(judged), _table(judged), _paired(judged)]
    return [chart for chart in charts if chart.cells or chart.series]


def _lines(judged: list[Judged], scalar: str) -> list[Series]:
    lines: list[Series] = []
    for variant in dict.fromkeys(j.info.variant for j in judged):
        lines += against_l0(variant, [j for j in judged if j.info.variant == variant], scalar, _hover)
    return lines


def _against_l0(judged: list[Judged]) -> Chart:
    """Return the sparsities; baselines without bars, which would hide those of the runs."""
    series = _lines(judged, "effect_sparsity")
    for name, label in BASELINES.items() if series else ():
        series += [replace(line, y_low=None, y_high=None) for line in against_l0(label, judged, name, _baseline_hover)]
    return Chart(
        "ablation-l0",
        "Sparsity of ablation effects, against L0",
        "line",
        Axis("L0", "features a token", log=True),
        Axis(METRICS["effect_sparsity"].label, "fraction"),
        series,
        note=METRICS["effect_sparsity"].definition + " Smaller is sparser. Bars: 95 % BCa interval over documents. "
        "Baselines: random directions as long as what the features add; single coordinates and components along "
        "principal directions, set to their means. Their intervals are as wide; all is measured at the same positions, "
        "so that differences are clearer than the bars say.",
        section=SECTION,
    )


def _against_random(judged: list[Judged]) -> Chart:
    metric = METRICS["effect_sparsity_difference"]
    return Chart(
        "ablation-difference",
        "Effect sparsity less that of random directions",
        "line",
        Axis("L0", "features a token", log=True),
        Axis(metric.label, "fraction", reference=0.0),
        _lines(judged, "effect_sparsity_difference"),
        note=metric.definition + " Bars: 95 % BCa interval over documents, paired by position.",
        section=SECTION,
    )


def _baseline_hover(one: Judged, e: Estimate) -> str:
    return f"{one.info.name}\n{interval(e)}, {e.n} positions"


def _hover(one: Judged, e: Estimate) -> str:
    return f"{one.info.name}\n{_ablated(one).height} ablations at {e.n} positions"


def _features(one: Judged) -> pl.DataFrame:
    return one.result.rows.filter(pl.col("kind") == "feature")


def _ablated(one: Judged) -> pl.DataFrame:
    return _features(one).drop_nulls("size")


def _table(judged: list[Judged]) -> Chart:
    names = ["effect_sparsity", "effect_sparsity_weighted", "effect_sparsity_difference", *BASELINES, "loss_effect"]
    names += ["first_order_effect", "first_order_correlation", "undefined_share"]
    columns = ["Run", "L0", "Positions", "Ablations", *(METRICS[name].label for name in names), "Seconds"]
    cells: list[list[Any]] = []
    for one in judged:
        row = [one.info.name, short(one.value("l0")), _features(one)["sequence"].n_unique(), _ablated(one).height]
        cells.append([*row, *(interval(one.result.scalars.get(name)) for name in names), short(one.value("seconds"))])
    columns, cells = without_empty(columns, cells)
    note = (
        "Positions: those at which a feature is active; the same ones for all runs. The interval of a correlation, as "
        "of a mean, is over documents. Effects on the loss are means over the ablated position and the 15 after it, in "
        "nats a token, above 0 where the feature helps; to first order they are of every active feature, not only of "
        "the ablated ones."
    )
    return Chart(
        "ablation-answer",
        _headline(judged),
        "table",
        columns=columns,
        cells=cells,
        note=note,
        section=SECTION,
    )


def _headline(judged: list[Judged]) -> str:
    """Return in how many runs effects are sparser than those of equally long random directions."""
    known = [e for j in judged if (e := j.result.scalars.get("effect_sparsity_difference")) is not None]
    if not known:
        return "Effects of features on the loss, to first order"
    sparser, denser = sum(e.high < 0 for e in known), sum(e.low > 0 for e in known)
    end = f", and denser in {denser}" if denser else ""
    found = f"in {sparser} of {len(known)} runs{end}"
    return f"Effects of features are sparser than those of equally long random directions {found}"


def _paired(judged: list[Judged]) -> Chart:
    """Return the paired differences between one run a variant, at like L0."""
    chosen = at_like_l0(judged, {j.info.name: j.value("l0") for j in judged})
    first = next((j for j in chosen if j.info.variant == "standard"), chosen[0] if chosen else None)
    cells = []
    for one in chosen:
        e = None if first is None or one is first else paired_difference(_ablated(one), _ablated(first), DRAWS)
        if e is not None:
            clear = "yes" if e.low > 0 or e.high < 0 else "no"
            cells.append([one.info.name, short(one.value("l0")), interval(e), clear])
    return Chart(
        "ablation-paired",
        f"Differences from {first.info.name}, at the same positions" if first else "",
        "table",
        columns=["Run", "L0", "Effect sparsity, difference", "Clear"],
        cells=cells,
        note="One run a variant, at like L0. Documents are resampled for both runs together (95 % BCa interval).",
        section=SECTION,
    )


def interval(e: Estimate | None) -> str | None:
    """Return an estimate as text, None where there is none."""
    if e is None:
        return None
    return f"{e.value:.3g} [{e.low:.3g}, {e.high:.3g}]" if e.low != e.high else f"{e.value:.3g}"
