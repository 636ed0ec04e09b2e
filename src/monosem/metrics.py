"""What is computed from sums over held-out tokens: formulas and intervals. Imports no torch.

Sums are kept per document group in float64, so that a merge is an addition, order and batch size don't matter, and
every ratio can be recomputed on resampled documents. Names and definitions: `schema.METRICS`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monosem.types import Estimate

Array = NDArray[np.float64]
MAX_GROUPS = 1024  # documents are folded into at most this many groups; each document stays whole
MIN_FIRINGS = 50  # mean activations are read from features that fire at least this often


@dataclass
class DataSums:
    """Sums over the tokens themselves, the same for every SAE. Groups g, shifted by `center`.

    center: [d_in], a provisional mean that keeps variances free of cancellation; n: tokens [g]; x: sum of (x - center)
    [g, d_in]; xx: sum of |x - center|^2 [g].
    """

    center: Array
    n: Array
    x: Array
    xx: Array


@dataclass
class SaeSums:
    """Sums of one SAE over the same tokens and groups.

    h: sum of (xhat - center) [g, d_in]; hh: |xhat - center|^2; xh: <x - center, xhat - center>; r: |x - xhat|^2;
    active: number of active features; activation: sum of activations (decoder norms folded, normalised units), each
    [g]. Per feature: count [d_sae] (int64), total, square, peak of the same activations. l0_counts: tokens by L0.
    ev_token: sum over tokens of 1 - |x - xhat|^2 / |x - center|^2. scale: normaliser, 1 when it is not a scalar.
    """

    h: Array
    hh: Array
    xh: Array
    r: Array
    active: Array
    activation: Array
    count: NDArray[np.int64]
    total: Array
    square: Array
    peak: Array
    l0_counts: NDArray[np.int64]
    ev_token: float = 0.0
    scale: float = 1.0


@dataclass
class Downstream:
    """Summed next-token cross-entropies (nats) of a subset of the tokens, per group [g]; n: targets."""

    n: Array
    clean: Array
    zero: Array
    mean: Array
    sae: Array
    kl: Array


def resamples(groups: int, draws: int, seed: int = 0) -> Array:
    """Return how often each of `groups` document groups is drawn in each of `draws` resamples, [draws, groups]."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(groups, np.full(groups, 1 / groups), size=draws).astype(np.float64)


@lru_cache(maxsize=8)
def once_and_resampled(groups: int, draws: int) -> Array:
    """Return how often each group counts, [1 + draws, groups]: once each in the first row, then as it is drawn."""
    found = np.vstack([np.ones((1, groups)), resamples(groups, draws)])
    found.flags.writeable = False
    return found


def reconstruction(data: DataSums, sae: SaeSums, weights: Array | None = None) -> dict[str, Array]:
    """Return the reconstruction metrics of each resample (rows of `weights [b, g]`; None: the tokens as they are).

    Every value is [b]. Pooled over tokens and dimensions; `mse` in normalised units (scale^2 times raw).
    """
    w = np.ones((1, len(data.n))) if weights is None else weights
    n, xx, hh, xh, r = (w @ v for v in (data.n, data.xx, sae.hh, sae.xh, sae.r))
    x, h = w @ data.x, w @ sae.h
    variance = xx - (x**2).sum(1) / n
    c2 = float(data.center @ data.center)
    raw_xx = xx + 2 * x @ data.center + n * c2
    raw_hh = hh + 2 * h @ data.center + n * c2
    raw_xh = xh + (x + h) @ data.center + n * c2
    with np.errstate(divide="ignore", invalid="ignore"):
        nmse = r / variance
        return {
            "l0": (w @ sae.active) / n,
            "l1": (w @ sae.activation) / n,
            "mse": sae.scale**2 * r / n,
            "nmse": nmse,
            "explained_variance": 1 - nmse,
            "explained_variance_centered": 1 - (r - ((x - h) ** 2).sum(1) / n) / variance,
            "fvu_zero": r / raw_xx,
            "gamma": raw_hh / raw_xh,
            "gamma_centered": (hh - (h**2).sum(1) / n) / (xh - (x * h).sum(1) / n),
        }


def downstream(sums: Downstream, weights: Array | None = None) -> dict[str, Array]:
    """Return the cross-entropy metrics of each resample, [b] each."""
    w = np.ones((1, len(sums.n))) if weights is None else weights
    n, clean, zero, mean, sae, kl = (w @ v for v in (sums.n, sums.clean, sums.zero, sums.mean, sums.sae, sums.kl))
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "ce_clean": clean / n,
            "ce_zero": zero / n,
            "ce_mean": mean / n,
            "ce_sae": sae / n,
            "ce_recovered": (zero - sae) / (zero - clean),
            "ce_recovered_mean": (mean - sae) / (mean - clean),
            "delta_ce": (sae - clean) / n,
            "kl": kl / n,
        }


def intervals(point: dict[str, Array], draws: dict[str, Array], n: int) -> dict[str, Estimate | None]:
    """Return each metric with the central 95 % of its resampled values; None where the metric is undefined."""
    out: dict[str, Estimate | None] = {}
    for name, value in point.items():
        finite = draws[name][np.isfinite(draws[name])]
        if not np.isfinite(value[0]) or not len(finite):
            out[name] = None
            continue
        low, high = np.quantile(finite, [0.025, 0.975])
        out[name] = Estimate(float(value[0]), float(low), float(high), n)
    return out


def estimated(values: Array, n: int) -> Estimate | None:
    """Return an estimate from a value and, behind it, its resampled values, as of `once_and_resampled`."""
    return intervals({"": values[:1]}, {"": values[1:]}, n)[""]


def wilson(count: Any, n: int, z: float = 1.959964) -> tuple[Array, Array]:
    """Return the Wilson score interval of a proportion `count / n`; arrays in, arrays out."""
    k = np.asarray(count, dtype=np.float64)
    p = k / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)


def proportion(count: int, n: int) -> Estimate:
    """Return `count / n` with its Wilson interval; n > 0."""
    low, high = wilson(count, n)
    return Estimate(count / n, float(low), float(high), n)


def features_above(count: NDArray[np.int64], n: int, threshold: float) -> Estimate:
    """Return how many features have density > threshold; the band counts those whose Wilson bounds lie above it."""
    low, high = wilson(count, n)
    value = int((count / n > threshold).sum())
    return Estimate(value, min(value, int((low > threshold).sum())), max(value, int((high > threshold).sum())), n)


def dead_fraction(count: NDArray[np.int64], n: int) -> Estimate:
    """Return the share of features with no firing on these n tokens, with the Wilson interval over features."""
    return replace(proportion(int((count == 0).sum()), len(count)), n=n)


def mean_activations(sae: SaeSums) -> Array:
    """Return the mean activation when active of every feature, NaN for those with fewer than MIN_FIRINGS firings."""
    enough = sae.count >= MIN_FIRINGS
    return np.divide(sae.total, sae.count, out=np.full(len(sae.total), np.nan), where=enough)


def activation_level(sae: SaeSums, seed: int = 0) -> dict[str, Estimate | None]:
    """Return median and spread (sd of log10) of the features' mean activations, bootstrapped over features.

    None where fewer than two features fire MIN_FIRINGS times.
    """
    levels = mean_activations(sae)
    levels = levels[np.isfinite(levels) & (levels > 0)]
    if len(levels) < 2:
        return {"mean_activation": None, "activation_spread": None}
    rng = np.random.default_rng(seed)
    draws = levels[rng.integers(0, len(levels), size=(400, len(levels)))]
    point = {"mean_activation": np.array([np.median(levels)]), "activation_spread": np.array([np.log10(levels).std()])}
    resampled = {"mean_activation": np.median(draws, axis=1), "activation_spread": np.log10(draws).std(axis=1)}
    return intervals(point, resampled, len(levels))


def interpolate(l0: Array, nmse: Array, at: Array) -> Array:
    """Return the NMSE at the L0 values `at`, piecewise linear in (log L0, log NMSE); NaN outside the curve."""
    order = np.argsort(l0)
    x, y = np.log(l0[order]), np.log(nmse[order])
    return np.exp(np.interp(np.log(at), x, y, left=np.nan, right=np.nan))


@dataclass(frozen=True)
class Curve:
    """A variant's points: `l0` and `nmse` as they are [p], and on each resample [b, p], paired with other curves."""

    l0: Array
    nmse: Array
    l0_draws: Array
    nmse_draws: Array


def compare_at_matched_l0(curve: Curve, baseline: Curve, n: int, points: int = 33) -> dict[str, Any]:
    """Compare two curves where their L0 ranges overlap, or a single point with the curve at its L0.

    Returns `l0_low`, `l0_high` (the shared range), `ratio` (Estimate of the NMSE ratio curve / baseline, the geometric
    mean over the range, evenly in log L0) and `at` (the same at round L0 values). Without overlap only `reason`.
    Raises ValueError for two single points.
    """
    if curve.l0.size == 1 or baseline.l0.size == 1:
        return _compare_point(curve, baseline, n)
    low, high = max(curve.l0.min(), baseline.l0.min()), min(curve.l0.max(), baseline.l0.max())
    if not low < high:
        return {
            "reason": f"the L0 ranges do not overlap ({curve.l0.min():.3g} to {curve.l0.max():.3g} against "
            f"{baseline.l0.min():.3g} to {baseline.l0.max():.3g})"
        }
    grid = np.geomspace(low, high, points)[1:-1]
    round_l0 = np.array(
        [v for v in (5, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500) if low < v < high], dtype=float
    )
    at = np.concatenate([grid, round_l0])
    mine, theirs = interpolate(curve.l0, curve.nmse, at), interpolate(baseline.l0, baseline.nmse, at)
    logs = np.log(mine / theirs)
    drawn = np.stack(
        [
            np.log(interpolate(x, y, at) / interpolate(xb, yb, at))
            for x, y, xb, yb in zip(
                curve.l0_draws, curve.nmse_draws, baseline.l0_draws, baseline.nmse_draws, strict=True
            )
        ]
    )
    g = len(grid)
    overall = _ratio(logs[:g].mean(), np.nanmean(drawn[:, :g], axis=1), n)
    places = [
        {
            "l0": float(value),
            "nmse": float(mine[g + i]),
            "baseline_nmse": float(theirs[g + i]),
            "ratio": _ratio(logs[g + i], drawn[:, g + i], n).as_dict(),
        }
        for i, value in enumerate(round_l0)
    ]
    return {"l0_low": float(low), "l0_high": float(high), "ratio": overall.as_dict(), "at": places}


def _compare_point(curve: Curve, baseline: Curve, n: int) -> dict[str, Any]:
    """Return what `compare_at_matched_l0` does, of which one is a single point: everything at the L0 of that."""
    point, line, sign = (curve, baseline, 1) if curve.l0.size == 1 else (baseline, curve, -1)
    if line.l0.size == 1:
        raise ValueError("two single points have no L0 in common")
    l0 = float(point.l0[0])
    if not line.l0.min() <= l0 <= line.l0.max():
        return {"reason": f"its L0 {l0:.3g} is outside {line.l0.min():.3g} to {line.l0.max():.3g}"}
    log_value = sign * np.log(point.nmse[0] / interpolate(line.l0, line.nmse, point.l0)[0])
    theirs = np.stack(
        [interpolate(*drawn) for drawn in zip(line.l0_draws, line.nmse_draws, point.l0_draws, strict=True)]
    )
    ratio = _ratio(log_value, sign * np.log(point.nmse_draws / theirs)[:, 0], n)
    return {"l0_low": l0, "l0_high": l0, "ratio": ratio.as_dict(), "at": []}


def _ratio(log_value: float, log_draws: Array, n: int) -> Estimate:
    low, high = np.nanquantile(log_draws, [0.025, 0.975])
    return Estimate(float(np.exp(log_value)), float(np.exp(low)), float(np.exp(high)), n)
