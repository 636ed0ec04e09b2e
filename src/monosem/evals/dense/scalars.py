"""The scalars of a run's dense features, with intervals. Imports no torch."""

from __future__ import annotations

import numpy as np
import polars as pl

from monosem.evals.dense.causes import correlation
from monosem.evals.dense.verdicts import BANDS, DENSE, PATHOLOGICAL, band_of, is_judged
from monosem.metrics import Array, SaeSums, features_above, intervals, proportion
from monosem.types import Estimate

Scalars = tuple[dict[str, Estimate | None], dict[str, str]]
NONE_DENSE = "no feature fires on more than 10 % of the held-out tokens"
_SHARES = [f"{kind}_share_{band.lower()}" for kind in ("l0", "activation") for band in BANDS]
ONLY_SCREENS = "no ratings or scores of these features: this is the share that the screens leave unexplained"


def band_scalars(sums: SaeSums, dense: np.ndarray, weights: Array, n: int) -> Scalars:
    """Return counts and shares of the bands. dense: firings of features above 10 % by document group [g]; n: tokens."""
    out: dict[str, Estimate | None] = {
        "l0": Estimate.exact(float(sums.active.sum() / n), n),
        "features_above_0.1": features_above(sums.count, n, 0.1),
    }
    with np.errstate(invalid="ignore"):
        point = {"dense_l0_share": np.array([dense.sum() / sums.active.sum()])}
        out |= intervals(point, {"dense_l0_share": weights @ dense / (weights @ sums.active)}, n)
    reasons = {} if sums.count.any() else dict.fromkeys(["dense_l0_share", *_SHARES], "no feature fires")
    band = band_of(sums.count / n)
    for name in BANDS:
        inside = band == name
        key = name.lower()
        out[f"features_{key}"] = Estimate.exact(int(inside.sum()), n)
        for share, of in ((f"l0_share_{key}", sums.count), (f"activation_share_{key}", sums.total)):
            out[share] = Estimate.exact(float(of[inside].sum() / of.sum()), n) if of.any() else None
    return out, reasons


def share_scalars(rows: pl.DataFrame) -> Scalars:
    """Return which shares of the inspected features above 10 % are unexplained and pathological (Wilson intervals)."""
    dense = rows.filter(pl.col("band").is_in(DENSE))
    names = ("unexplained_share", "pathological_share")
    if not dense.height:
        return dict.fromkeys(names), dict.fromkeys(names, NONE_DENSE)
    unexplained = share(dense["cause"].is_null().to_list())
    judged = [text for text in dense["verdict"] if is_judged(text)]
    if not judged:
        return dict.fromkeys(names, unexplained), {"pathological_share": ONLY_SCREENS}
    return {
        "unexplained_share": unexplained,
        "pathological_share": share([text == PATHOLOGICAL for text in judged]),
    }, {}


def share(holds: list[bool]) -> Estimate:
    """Return the share of features of which something holds, with its Wilson interval."""
    return proportion(sum(holds), len(holds))


def ce_scalars(rows: pl.DataFrame) -> Scalars:
    """Return the correlation of estimated and exact effects on CE over features that have both (Fisher interval)."""
    name = "ce_estimate_correlation"
    if "delta_ce" not in rows.columns:
        return {name: None}, {name: "ce_tokens = 0: the effect on cross-entropy was left out"}
    both = rows.drop_nulls("delta_ce")
    r = correlation(both["delta_ce_estimate"].to_numpy(), both["delta_ce"].to_numpy()) if both.height > 3 else np.nan
    if not np.isfinite(r):
        return {name: None}, {name: "fewer than four features have an exact effect"}
    z, half = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12)), 1.959964 / np.sqrt(both.height - 3)
    return {name: Estimate(r, float(np.tanh(z - half)), float(np.tanh(z + half)), both.height)}, {}
