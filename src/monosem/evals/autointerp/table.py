"""A run's table, one row a feature, and the scalars made from it. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from monosem.bootstrap import Cell, bca
from monosem.evals.autointerp.controls import CONTROLS
from monosem.evals.autointerp.scores import SCORED_GROUPS
from monosem.metrics import Array, proportion
from monosem.types import Estimate

SCORES = ("pearson", "spearman", *SCORED_GROUPS)
COLUMNS = (*SCORES, *(f"{name}_{control}" for control in CONTROLS for name in SCORES))
SCORER_COLUMNS = ("detection", "fuzzing")
_KINDS = {
    "feature": pl.Int32,
    "explanation": pl.String,
    **dict.fromkeys(COLUMNS, pl.Float64),
    "failed": pl.Boolean,
    "reason": pl.String,
    "shuffled_failed": pl.Boolean,
    "shuffled_reason": pl.String,
    "mismatched": pl.Float64,  # share of the scored records that the judge did not repeat exactly
    "undecided": pl.Float64,  # share of the scored tokens without any integer among the judge's candidates
    "missed": pl.Float64,  # share of the firing examples for which N2G found no short pattern
    "peak": pl.Float64,
    "density": pl.Float64,
    "explain_examples": pl.Int32,
    "score_examples": pl.Int32,
    "explain_missing": pl.String,
    "score_missing": pl.String,
    "score_tokens": pl.Int32,
    "prompt_tokens": pl.Int64,
    "completion_tokens": pl.Int64,
}


def as_table(rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    """Return rows as a table; columns of `_KINDS` always, those of the other scorers where there are any."""
    extra = dict.fromkeys(name for row in rows for name in row if name not in _KINDS)
    kinds = {**_KINDS, **{name: pl.String if name.endswith("reason") else pl.Float64 for name in extra}}
    data = {name: [row.get(name) for row in rows] for name in kinds}
    return pl.DataFrame(data, schema=kinds, strict=False)


def values_of(rows: pl.DataFrame, name: str) -> Array:
    """Return a score of each feature that counts, undefined ones as 0: failed ones are left out."""
    kept = rows.filter(~pl.col("shuffled_failed" if name.endswith("_shuffled") else "failed"))
    return kept[name].fill_null(0).to_numpy().astype(np.float64)


def mean_of(values: Array, draws: int, seed: int = 0) -> Estimate | None:
    """Return a mean over features with its BCa interval, None without features."""
    if not len(values):
        return None
    cells = [Cell(values, np.ones(len(values)), 1.0)]
    low, high = bca(cells, draws, seed)
    return Estimate(float(values.mean()), low, high, len(values))


def share_of(holds: Sequence[bool]) -> Estimate | None:
    """Return a share of features with its Wilson interval, None without features."""
    return proportion(sum(holds), len(holds)) if len(holds) else None


def scalars_of(rows: pl.DataFrame, draws: int) -> tuple[dict[str, Estimate | None], dict[str, str]]:
    """Return the means over features with BCa intervals, the paired difference to the shuffled explanations, and the
    shares of failed and undefined scores; and why a scalar is None.
    """
    out: dict[str, Estimate | None] = {name: mean_of(values_of(rows, name), draws) for name in COLUMNS}
    both = rows.filter(~pl.col("failed") & ~pl.col("shuffled_failed")).select("pearson", "pearson_shuffled")
    own, other = (both[name].fill_null(0).to_numpy() for name in both.columns)
    out["pearson_above_shuffled"] = mean_of(own - other, draws)
    for name in SCORER_COLUMNS:
        if name in rows.columns:
            out[name] = mean_of(rows[name].drop_nulls().to_numpy(), draws)
    scored = rows.filter(~pl.col("failed"))
    out["failed_share"] = share_of(rows["failed"].to_list())
    out["null_share"] = share_of(scored["pearson"].is_null().to_list())
    out["mismatched_share"] = mean_of(scored["mismatched"].drop_nulls().to_numpy(), draws)
    why = first_reason(rows)
    reasons = {name: why for name, value in out.items() if value is None}
    for name in SCORER_COLUMNS:
        if name in rows.columns and out[name] is None:
            found = rows[f"{name}_reason"].drop_nulls().to_list()
            reasons[name] = Counter(found).most_common(1)[0][0] if found else "no feature was scored"
    return out, reasons


def first_reason(rows: pl.DataFrame) -> str:
    """Return the commonest reason of failure."""
    found = Counter(rows["reason"].drop_nulls().to_list()).most_common(1)
    return found[0][0] if found else "no feature of this run fires often enough in at least two documents"
