"""BCa bootstrap intervals of stratified, weighted means, and what they can find (section J.5). Imports no torch."""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
NORMAL = NormalDist()
CHUNK = 1_000_000  # resampled values held at once
TIE = 1e-9  # statistics nearer than this are equal up to rounding


class Cell(NamedTuple):
    """The features of one run in one stratum. values, weights: [m]; share: of the stratum, negative to subtract it."""

    values: Array
    weights: Array
    share: float


def weighted_mean(cells: list[Cell]) -> float:
    """Return the sum over cells of share times the cell's weighted mean."""
    mean = sum(cell.share * np.average(cell.values, weights=cell.weights) for cell in cells)
    return round(float(mean), 12)  # equal scores differ by exactly nothing


def variance_factor(cells: list[Cell]) -> float:
    """Return the variance of `weighted_mean` for values of variance 1: 1 / n for one cell of equal weights."""
    return float(sum(cell.share**2 * (cell.weights**2).sum() / cell.weights.sum() ** 2 for cell in cells))


def bca(cells: list[Cell], draws: int = 10_000, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Return the BCa interval of `weighted_mean`, resampling features within each cell (Efron 1987).

    Bias correction from the share of resamples below the estimate (ties count half), acceleration from the jackknife.
    Where all resamples agree, both bounds are the estimate itself.
    """
    rng = np.random.default_rng(seed)
    value = weighted_mean(cells)
    drawn = np.zeros(draws)
    for cell in cells:
        drawn += cell.share * _resampled_means(cell, draws, rng)
    if np.ptp(drawn) < TIE:
        return value, value
    below = (np.mean(drawn < value - TIE) + np.mean(drawn <= value + TIE)) / 2
    bias = NORMAL.inv_cdf(float(np.clip(below, 0.5 / draws, 1 - 0.5 / draws)))
    acceleration = _acceleration(cells)
    bounds = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        z = bias + NORMAL.inv_cdf(tail)
        bounds.append(NORMAL.cdf(bias + z / (1 - acceleration * z)))
    low, high = np.quantile(drawn, bounds)
    return float(low), float(high)


def minimum_detectable(sd: float, n_a: float, n_b: float, level: float = 0.05, power: float = 0.8) -> float:
    """Return the difference of two means that a two-sided test at `level` finds with probability `power`.

    sd: of one feature's score; n_a, n_b: features of each run. Normal approximation.
    """
    return (NORMAL.inv_cdf(1 - level / 2) + NORMAL.inv_cdf(power)) * sd * float(np.sqrt(1 / n_a + 1 / n_b))


def _resampled_means(cell: Cell, draws: int, rng: np.random.Generator) -> Array:
    m = len(cell.values)
    out = []
    for start in range(0, draws, step := max(1, CHUNK // m)):
        picked = rng.integers(0, m, size=(min(step, draws - start), m))
        weights = cell.weights[picked]
        out.append((weights * cell.values[picked]).sum(1) / weights.sum(1))
    return np.concatenate(out)


def _acceleration(cells: list[Cell]) -> float:
    """Return the jackknife's skewness term; cells of one feature have no spread and add nothing."""
    cubes = squares = 0.0
    for values, weights, share in cells:
        m = len(values)
        if m < 2:
            continue
        without = ((weights * values).sum() - weights * values) / (weights.sum() - weights)
        influence = share * (m - 1) / m * (without.mean() - without)
        cubes += (influence**3).sum()
        squares += (influence**2).sum()
    return float(cubes / (6 * squares**1.5)) if squares > TIE**2 else 0.0
