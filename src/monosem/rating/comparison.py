"""Compares the ratings of several runs (section J.5). Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from monosem.bootstrap import TIE, Array, Cell, bca, minimum_detectable, variance_factor, weighted_mean
from monosem.rating.agreement import LEVELS
from monosem.rating.permutation import max_t_p, pair_p
from monosem.types import UserError

LOW = 2  # "unintelligible" counts scores up to this one
TRIM = 0.2
SINGLE = "a run has only one scored feature a stratum"
EQUAL = "all scores of a stratum are equal"


def compare_runs(
    scores: Mapping[str, ArrayLike],
    strata: Mapping[str, ArrayLike] | None = None,
    draws: int = 10_000,
    seed: int = 0,
    weights: Mapping[str, ArrayLike] | None = None,
) -> dict[str, Any]:
    """Describe each run and test every pair of runs.

    scores: per run one score 1..5 a feature, [m] (mean over raters and copies, so that a feature's ratings move
    together); strata: integer stratum of each feature, None for one; weights: how many features each stands for, None
    for equal. Within a run a stratum counts by its summed weights.

    Returns `runs`: per run n, mean, low, high (95 % BCa over features), sd, median, trimmed_mean (20 % of the weight
    cut at each end), share_low (scores <= 2), distribution (weighted shares of 1..5, scores rounded half up) and
    histogram (their counts); and `pairs`: per pair a, b, difference (a - b), low, high, p (two-sided permutation of
    labels within strata), p_corrected (max-T over all pairs), mann_whitney_p (without weights and strata) and mde, the
    difference that would be found in 80 % of repetitions at 5 %. An interval or mde is None where scores say nothing of
    their spread (one feature a stratum, or all equal); `reasons` then has `interval` or `mde`.

    Raises UserError for a run without scores, scores that are not finite, arrays that are missing or of other lengths,
    or no draws.
    """
    if draws < 1:
        raise UserError(f"draws {draws}: must be at least 1")
    names = list(scores)
    parts = {name: _parts(name, scores, strata, weights) for name in names}
    cells = {name: _cells(*parts[name]) for name in names}
    corrected = max_t_p([cells[name] for name in names], draws, seed) if len(names) > 1 else {}
    pairs = [
        _pair(names[i], names[j], cells, draws, seed) | {"p_corrected": corrected[i, j]}
        for i, j in combinations(range(len(names)), 2)
    ]
    for pair in pairs:
        pair["p_corrected"] = max(pair["p"], pair["p_corrected"])
    return {"runs": {name: _describe(parts[name], cells[name], draws, seed) for name in names}, "pairs": pairs}


def _parts(name: str, scores: Any, strata: Any, weights: Any) -> tuple[Array, np.ndarray, Array]:
    values = np.asarray(scores[name], dtype=float)
    if values.ndim != 1 or not len(values):
        raise UserError(
            f"scores of {name}: expected one score a feature, got shape {values.shape}; rate it or leave it out"
        )
    if not np.isfinite(values).all():
        raise UserError(f"scores of {name}: hold NaN or infinite values; leave out features without a score")
    for what, given in (("strata", strata), ("weights", weights)):
        if given is not None and name not in given:
            raise UserError(f"{what} of {name}: missing; give those of every run, or none at all")
    stratum = np.zeros(len(values), dtype=int) if strata is None else np.asarray(strata[name])
    weight = np.ones(len(values)) if weights is None else np.asarray(weights[name], dtype=float)
    if stratum.shape != values.shape or weight.shape != values.shape:
        raise UserError(f"strata and weights of {name}: must have {len(values)} entries, one a score")
    if not (np.isfinite(weight) & (weight > 0)).all():
        raise UserError(f"weights of {name}: must be above 0")
    return values, stratum, weight / weight.sum()


def _cells(values: Array, stratum: np.ndarray, weight: Array) -> dict[int, Cell]:
    cells = {}
    for one in np.unique(stratum).tolist():
        here = stratum == one
        share = float(weight[here].sum())
        cells[one] = Cell(values[here], weight[here] * here.sum() / share, share)
    return cells


def _describe(parts: tuple[Array, np.ndarray, Array], cells: dict[int, Cell], draws: int, seed: int) -> dict[str, Any]:
    values, _, weight = parts
    every = [*cells.values()]
    low, high, reasons = _interval(every, [every], draws, seed)
    mean = weighted_mean(every)
    level = np.clip(np.floor(values + 0.5), LEVELS[0], LEVELS[-1])
    return {
        "n": len(values),
        "mean": mean,
        "low": low,
        "high": high,
        "reasons": reasons,
        "sd": float(np.sqrt((weight * (values - mean) ** 2).sum())),
        "median": weighted_median(values, weight),
        "trimmed_mean": trimmed_mean(values, weight),
        "share_low": float(weight[values <= LOW].sum()),
        "distribution": [float(weight[level == one].sum()) for one in LEVELS],
        "histogram": [int((level == one).sum()) for one in LEVELS],
    }


def _interval(
    cells: list[Cell], sides: list[list[Cell]], draws: int, seed: int
) -> tuple[float | None, float | None, dict[str, str]]:
    """Return the BCa interval of the cells' mean, or None and the reason where a side or all say nothing of spread."""
    if any(all(len(cell.values) == 1 for cell in side) for side in sides):
        return None, None, {"interval": SINGLE}
    if all(np.ptp(cell.values) < TIE for cell in cells):
        return None, None, {"interval": EQUAL}
    return *bca(cells, draws, seed), {}


def weighted_median(values: Array, weight: Array) -> float:
    """Return the value with half of the weight below; the middle of two where exactly half lies below."""
    order = np.argsort(values)
    reached = np.cumsum(weight[order]) / weight.sum()
    low, high = np.searchsorted(reached, [0.5 - 1e-9, 0.5 + 1e-9])
    return float((values[order[low]] + values[order[min(high, len(order) - 1)]]) / 2)


def trimmed_mean(values: Array, weight: Array, trim: float = TRIM) -> float:
    """Return the weighted mean after cutting `trim` of the weight at each end (a feature may be cut in part)."""
    order = np.argsort(values)
    ends = np.cumsum(weight[order]) / weight.sum()
    kept = np.clip(ends, trim, 1 - trim) - np.clip(np.concatenate([[0.0], ends[:-1]]), trim, 1 - trim)
    return float((kept * values[order]).sum() / kept.sum())


def _pair(a: str, b: str, cells: dict[str, dict[int, Cell]], draws: int, seed: int) -> dict[str, Any]:
    from scipy.stats import mannwhitneyu

    mine, theirs = [*cells[a].values()], [*cells[b].values()]
    signed = mine + [cell._replace(share=-cell.share) for cell in theirs]
    low, high, reasons = _interval(signed, [mine, theirs], draws, seed)
    x, y = (np.concatenate([cell.values for cell in side]) for side in (mine, theirs))
    residual = sum(float(((cell.values - cell.values.mean()) ** 2).sum()) for cell in signed)
    freedom = sum(len(cell.values) - 1 for cell in signed)
    mde = None
    if residual > TIE:
        sd = float(np.sqrt(residual / freedom))
        mde = minimum_detectable(sd, 1 / variance_factor(mine), 1 / variance_factor(theirs))
    else:
        reasons["mde"] = EQUAL if freedom else SINGLE
    return {
        "a": a,
        "b": b,
        "difference": weighted_mean(signed),
        "low": low,
        "high": high,
        "p": pair_p(cells[a], cells[b], draws, seed),
        "mann_whitney_p": float(mannwhitneyu(x, y, alternative="two-sided").pvalue),
        "mde": mde,
        "reasons": reasons,
    }
