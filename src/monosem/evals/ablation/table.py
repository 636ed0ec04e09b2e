"""A run's table, one row an ablation, and the scalars made from it, with intervals over documents. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

from monosem.bootstrap import NORMAL, TIE
from monosem.metrics import Array, resamples
from monosem.types import Estimate

SIDES = ("raised_here", "lowered_here", "raised_later", "lowered_later")
KINDS = {
    "kind": pl.String,  # feature or random
    "sequence": pl.Int32,
    "doc": pl.Int32,
    "pos": pl.Int32,
    "token": pl.Int32,
    "feature": pl.Int32,
    "activation": pl.Float64,  # f |w|, normalised units
    "norm": pl.Float64,  # length of what is taken out, raw units
    "first_order": pl.Float64,  # of the effect on the loss
    "sparsity": pl.Float64,
    "size": pl.Float64,  # |D|_2
    "loss": pl.Float64,
    **{f"{side}{part}": pl.List(kind) for side in SIDES for part, kind in (("", pl.Int32), ("_by", pl.Float64))},
}
FEW = "effects at fewer than two documents say nothing about others"
SKIPPED = 'method = "gradient" leaves the exact effects out'


def as_table(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Return rows as a table; NaN becomes null."""
    data = {name: [row.get(name) for row in rows] for name in KINDS}
    floats = [name for name, kind in KINDS.items() if kind == pl.Float64]
    return pl.DataFrame(data, schema=KINDS).with_columns(pl.col(floats).fill_nan(None))


def ratio(sums: Array) -> Array:
    """Return the first column over the second, [b, 2] -> [b]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums[:, 0] / sums[:, 1]


def correlation(sums: Array) -> Array:
    """Return Pearson's correlation from n, sums of x, y, x^2, y^2, xy; [b, 6] -> [b]."""
    n, x, y, xx, yy, xy = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return (n * xy - x * y) / np.sqrt((n * xx - x**2) * (n * yy - y**2))


def estimate(statistic: Callable[[Array], Array], sums: Array, draws: int, n: int) -> Estimate | None:
    """Return a statistic of summed columns with its BCa interval (Efron 1987), resampling documents.

    statistic: [b, k] sums -> [b]; sums: one row a document, [g, k]. None for fewer than two documents, or where it is
    undefined.
    """
    if len(sums) < 2:
        return None
    total = sums.sum(0)
    value = float(statistic(total[None])[0])
    drawn = statistic(resamples(len(sums), draws) @ sums)
    drawn, without = drawn[np.isfinite(drawn)], statistic(total - sums)
    if not np.isfinite(value) or not len(drawn):
        return None
    if np.ptp(drawn) < TIE:
        return Estimate(value, value, value, n)
    below = (np.mean(drawn < value - TIE) + np.mean(drawn <= value + TIE)) / 2
    bias = NORMAL.inv_cdf(float(np.clip(below, 0.5 / len(drawn), 1 - 0.5 / len(drawn))))
    influence = np.nanmean(without) - without[np.isfinite(without)]
    acceleration = float((influence**3).sum() / (6 * (influence**2).sum() ** 1.5))
    tails = [bias + NORMAL.inv_cdf(tail) for tail in (0.025, 0.975)]
    bounds = [NORMAL.cdf(bias + z / (1 - acceleration * z)) for z in tails]
    low, high = np.quantile(drawn, bounds)
    return Estimate(value, float(low), float(high), n)


def by_document(doc: np.ndarray, *columns: np.ndarray) -> Array:
    """Return the columns summed over the rows of each document, [g, k]."""
    _, group = np.unique(doc, return_inverse=True)
    out = np.zeros((group.max() + 1, len(columns)))
    np.add.at(out, group, np.stack(columns, axis=1))
    return out


def mean_of(rows: pl.DataFrame, name: str, draws: int, weight: str = "") -> Estimate | None:
    """Return the mean of a column over the rows that have it, weighted by another if one is named."""
    kept = rows.drop_nulls(name)
    if not kept.height:
        return None
    w = kept[weight].to_numpy() if weight else np.ones(kept.height)
    sums = by_document(kept["doc"].to_numpy(), kept[name].to_numpy() * w, w)
    return estimate(ratio, sums, draws, kept["sequence"].n_unique())


def first_order_correlation(rows: pl.DataFrame, draws: int) -> Estimate | None:
    """Return the correlation of the first-order with the exact effect on the loss."""
    kept = rows.drop_nulls(["first_order", "loss"])
    if not kept.height:
        return None
    x, y = (kept[name].to_numpy() - kept[name].mean() for name in ("first_order", "loss"))
    sums = by_document(kept["doc"].to_numpy(), np.ones(len(x)), x, y, x * x, y * y, x * y)
    return estimate(correlation, sums, draws, kept["sequence"].n_unique())


def scalars_of(
    rows: pl.DataFrame, doc: np.ndarray, common: dict[str, np.ndarray], draws: int, exact: bool
) -> tuple[dict[str, Estimate | None], dict[str, str]]:
    """Return a run's scalars and why some are None.

    doc [n]: of the positions; common: sparsities of the baselines of all runs by kind, [n, number].
    """
    features, random = (rows.filter(pl.col("kind") == kind) for kind in ("feature", "random"))
    ablated = features.drop_nulls("size").with_columns(undefined=pl.col("sparsity").is_null().cast(pl.Float64))
    exact_ones: dict[str, Estimate | None] = {
        "effect_sparsity": mean_of(ablated, "sparsity", draws),
        "effect_sparsity_weighted": mean_of(ablated, "sparsity", draws, "activation"),
        "effect_sparsity_random": mean_of(random, "sparsity", draws),
        "effect_sparsity_difference": paired_difference(ablated, random, draws),
        "undefined_share": mean_of(ablated, "undefined", draws),
        "loss_effect": mean_of(ablated, "loss", draws),
        "first_order_correlation": first_order_correlation(ablated, draws),
    }
    for kind, values in common.items():
        exact_ones[f"effect_sparsity_{kind}"] = mean_of(baseline_rows(doc, values), "sparsity", draws)
    why = FEW if features.height else "no feature is active at any of the positions"
    reasons = {name: (why if exact else SKIPPED) for name, value in exact_ones.items() if value is None}
    first_order = mean_of(features, "first_order", draws)
    if first_order is None:
        reasons["first_order_effect"] = why
    return {**exact_ones, "first_order_effect": first_order}, reasons


def baseline_rows(doc: np.ndarray, sparsity: np.ndarray) -> pl.DataFrame:
    """Return the sparsities [n, number] of a baseline at positions of documents [n] as a table."""
    n, number = sparsity.shape
    frame = {"doc": doc.repeat(number), "sequence": np.arange(n).repeat(number), "sparsity": sparsity.ravel()}
    return pl.DataFrame(frame).with_columns(pl.col("sparsity").fill_nan(None))


def paired_difference(one: pl.DataFrame, other: pl.DataFrame, draws: int) -> Estimate | None:
    """Return the difference of the mean sparsities of two kinds of ablations, one minus other.

    Both were made at the same positions, so documents are resampled for both together.
    """
    sides = [
        rows.drop_nulls("sparsity").group_by("doc").agg(pl.col("sparsity").sum(), pl.len().alias("n"))
        for rows in (one, other)
    ]
    both = sides[0].join(sides[1], "doc", "full", coalesce=True).fill_null(0).sort("doc")
    sums = both.select("sparsity", "n", "sparsity_right", "n_right").to_numpy().astype(np.float64)
    n = one.drop_nulls("sparsity")["sequence"].n_unique()
    return estimate(lambda s: ratio(s[:, :2]) - ratio(s[:, 2:]), sums, draws, n)
