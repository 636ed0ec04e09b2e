"""The report's section on automatic interpretation, as data. Imports no torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from monosem.bootstrap import Cell, bca, minimum_detectable
from monosem.definitions import METRICS
from monosem.evals import Judged, against_l0, at_like_l0, interval, short
from monosem.evals.autointerp.controls import CONTROLS
from monosem.evals.autointerp.table import SCORER_COLUMNS, values_of
from monosem.metrics import Array
from monosem.schema import Axis, Chart, Series
from monosem.types import Estimate

SECTION = "Automatic interpretation"
DRAWS = 2000
GROUPS = {
    "pearson_top": "Top",
    "pearson_intervals_0_6": "Intervals 0 to 6",
    "pearson_intervals": "All intervals",
    "pearson_random": "Random tokens",
    "pearson_elsewhere": "Top tokens elsewhere",
    "pearson": "All",
}
PREDICTORS = {
    "": "Explanations",
    "_shuffled": "Shuffled explanations",
    "_token_mean": "Token-mean table",
    "_oracle": "Oracle",
    "_chance": "Random, equally dense",
}
NOTE = (
    "Pearson's correlation of predicted with true activations over all scored tokens of a feature, mean over features "
    "with a 95 % BCa interval. An undefined correlation (all predictions or all true activations are equal) counts as "
    "0. Failed features are left out. Shuffled: another feature's explanation, same simulator. Oracle: the true "
    "activations on the judge's scale. Token mean: the mean activation of the token's id in the documents from which "
    "explanations are made; it needs no context and no explanation. Random: activations drawn from those examples."
)


def autointerp_charts(judged: list[Judged], explainer: str, simulator: str, preset: str) -> list[Chart]:
    """Return the tables and charts; judged: every run with its result."""
    how = f"Explainer {explainer}, simulator {simulator}, examples after {preset}. "
    charts = [_scores(judged, how), _lines(judged), _by_group(judged), _against(judged), _failures(judged)]
    return [chart for chart in charts if chart.cells or chart.series]


def _scores(judged: list[Judged], how: str) -> Chart:
    columns = ["Run", "L0", "Features", "Pearson", "Above shuffled", "Spearman"]
    names = ["pearson", "pearson_above_shuffled", "spearman", *(f"pearson_{control}" for control in CONTROLS)]
    columns += [PREDICTORS[f"_{control}"] for control in CONTROLS]
    for name in SCORER_COLUMNS:
        if any(j.result.scalars.get(name) for j in judged):
            columns.append(METRICS[name].label)
            names.append(name)
    cells = []
    for one in judged:
        n = one.result.scalars["pearson"]
        row = [one.info.name, short(one.value("l0")), n.n if n else 0]
        cells.append([*row, *(interval(one.result.scalars.get(name)) for name in names)])
    return Chart(
        "autointerp-answer",
        f"{_above(judged)} {_headline(judged)}".strip(),
        "table",
        columns=columns,
        cells=cells,
        note=how + NOTE,
        section=SECTION,
    )


def _above(judged: list[Judged]) -> str:
    """Return in how many runs explanations predict better than another feature's do."""
    known = [e for j in judged if (e := j.result.scalars["pearson_above_shuffled"]) is not None]
    if not known:
        return "No feature could be scored."
    above = sum(e.low > 0 for e in known)
    word = "all" if above == len(known) else str(above)
    return f"Explanations predict better than another feature's in {word} of {len(known)} runs."


def _headline(judged: list[Judged]) -> str:
    """Return how TopK and Gated compare with the best standard run, with what could have been found."""
    best = best_standard(judged)
    if best is None:
        return ""
    others = [j for j in _representatives(judged) if j.info.variant in ("topk", "gated")]
    told = []
    for one in others:
        found = difference(one, best)
        if found is None:
            continue
        word = "better than" if found["low"] > 0 else "worse than" if found["high"] < 0 else "like"
        told.append(
            f"{one.info.name} scores {word} {best.info.name}, the best standard run ({found['difference']:+.2f} "
            f"[{found['low']:+.2f}, {found['high']:+.2f}]; differences from {found['mde']:.2f} on would be found)"
        )
    return "; ".join(told) + "." if told else ""


def best_standard(judged: list[Judged]) -> Judged | None:
    """Return the standard run with the largest mean Pearson, None without one."""
    known = [j for j in judged if j.info.variant == "standard" and j.result.scalars["pearson"] is not None]
    return max(known, key=lambda j: j.value("pearson"), default=None)


def _representatives(judged: list[Judged]) -> list[Judged]:
    return at_like_l0(judged, {j.info.name: j.value("l0") for j in judged})


def difference(one: Judged, other: Judged, name: str = "pearson") -> dict[str, float] | None:
    """Return the difference of two runs' means over features with its BCa interval, and `mde`: what would be found in
    80 % of repetitions at 5 %. None where a run has fewer than two features. The features are different ones.
    """
    x, y = (values_of(j.result.rows, name) for j in (one, other))
    if min(len(x), len(y)) < 2:
        return None
    cells = [Cell(x, np.ones(len(x)), 1.0), Cell(y, np.ones(len(y)), -1.0)]
    low, high = bca(cells, DRAWS)
    return {
        "difference": float(x.mean() - y.mean()),
        "low": low,
        "high": high,
        "mde": minimum_detectable(_pooled_sd(x, y), len(x), len(y)),
    }


def _pooled_sd(x: Array, y: Array) -> float:
    squares = ((x - x.mean()) ** 2).sum() + ((y - y.mean()) ** 2).sum()
    return float(np.sqrt(squares / (len(x) + len(y) - 2)))


def _lines(judged: list[Judged]) -> Chart:
    """Return mean Pearson against L0, one line a variant, and the shuffled explanations of all runs as another."""
    series = []
    for variant in dict.fromkeys(j.info.variant for j in judged):
        series += _line(variant, [j for j in judged if j.info.variant == variant], "pearson")
    series += _line("shuffled explanations", judged, "pearson_shuffled")
    return Chart(
        "autointerp-l0",
        "Score against sparsity",
        "line",
        Axis("L0", "features a token", log=True),
        Axis(METRICS["pearson"].label, "correlation", reference=0.0),
        series,
        note=METRICS["pearson"].definition + " Bars: 95 % BCa interval over features.",
        section=SECTION,
    )


def _line(name: str, judged: list[Judged], scalar: str) -> list[Series]:
    firing = [j for j in judged if j.value("l0") > 0]
    return against_l0(name, firing, scalar, lambda one, e: f"{one.info.name}\n{e.n} features")


def _by_group(judged: list[Judged]) -> Chart:
    columns = ["Run", "Predicted by", *GROUPS.values()]
    cells: list[list[Any]] = [
        [one.info.name, word, *(interval(one.result.scalars[f"{name}{suffix}"]) for name in GROUPS)]
        for one in _representatives(judged) or judged
        for suffix, word in PREDICTORS.items()
    ]
    note = (
        "One run a variant, at like L0. A run with fewer low activations has an easier task over all tokens, so groups "
        "of examples are scored by themselves: the strongest, intervals of activation (0 is the strongest of 12), "
        "tokens drawn at random, and the strongest's tokens in other places. A rare feature is silent on all random "
        "tokens: the correlation is undefined then and counts as 0, also for the oracle."
    )
    return Chart(
        "autointerp-groups",
        "Scores by group of examples",
        "table",
        columns=columns,
        cells=cells,
        note=note,
        section=SECTION,
    )


def _against(judged: list[Judged]) -> Chart:
    best = best_standard(judged)
    cells = []
    for one in judged:
        found = None if best is None or one is best else difference(one, best)
        if best is not None and found is not None:
            told = f"{found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
            clear = "yes" if found["low"] > 0 or found["high"] < 0 else "no"
            cells.append([one.info.name, short(one.value("l0")), told, clear, short(found["mde"])])
    note = (
        "Difference of the means over features, same judge, same seeds and same text, with a 95 % BCa interval. The "
        "features are drawn from each run, so features are not paired. Would be found: the difference that a test at "
        "5 % finds in 80 % of repetitions. The intervals are not corrected for the number of runs."
    )
    return Chart(
        "autointerp-differences",
        f"Differences from {best.info.name}, the best standard run" if best else "",
        "table",
        columns=["Run", "L0", "Pearson, difference", "Clear", "Would be found"],
        cells=cells,
        note=note,
        section=SECTION,
    )


def _failures(judged: list[Judged]) -> Chart:
    columns = ["Run", "Failed", "Undefined", "Not repeated", "Why failed", "Examples, explain", "Examples, score"]
    columns += ["Prompt tokens", "Answer tokens", "Seconds"]
    cells: list[list[Any]] = []
    for one in judged:
        rows, scalars = one.result.rows, one.result.scalars
        failed = rows.filter(rows["failed"])["reason"].drop_nulls().to_list()
        shares = [_percent(scalars[name]) for name in ("failed_share", "null_share", "mismatched_share")]
        sizes = [short(rows[f"{side}_examples"].mean()) for side in ("explain", "score")]
        spent = [int(one.value("prompt_tokens")), int(one.value("completion_tokens")), short(one.value("seconds"))]
        cells.append([one.info.name, *shares, "; ".join(dict.fromkeys(failed[:3])) or None, *sizes, *spent])
    note = (
        "Failed: no explanation, or no prediction, because a judge failed or its answer can't be read; nothing is "
        "scored from it. Undefined: the correlation doesn't exist. Not repeated: scored examples whose tokens a judge "
        "did not write again exactly, which count as predicted 0. Examples: mean number found; small texts don't fill "
        "all intervals. Tokens: of all answers, also those that came from the cache."
    )
    title = "What failed, and what it took"
    return Chart("autointerp-cost", title, "table", columns=columns, cells=cells, note=note, section=SECTION)


def _percent(e: Estimate | None) -> str | None:
    return None if e is None else f"{100 * e.value:.1f} %"
