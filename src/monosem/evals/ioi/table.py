"""A run's table, long: one row a prompt and intervention, or a score; and the scalars made from it. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from monosem.evals.ioi.lines import FEW, MANY, Line, average, necessity, sufficiency
from monosem.types import Estimate

KINDS: dict[str, Any] = {
    "kind": pl.String,  # full (the run's own SAE), task, supervised, none
    "name": pl.String,
    "variant": pl.String,
    "place": pl.String,
    "criterion": pl.String,  # approximation, edit, f1, occlusion, splitting, layers, heads, accuracy
    "attribute": pl.String,
    "method": pl.String,
    "x": pl.Float64,  # features changed, size of a union, alpha, layer
    "value": pl.String,
    "prompt": pl.Int64,
    "template": pl.Int64,
    "ld": pl.Float64,  # logit(IO) - logit(S), logits
    "hit": pl.Boolean,
    "removed": pl.Float64,
    "score": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "text": pl.String,
    "answer": pl.String,
    "wanted": pl.String,
}
MEASURED = ("sufficiency", "necessity", "edit_success", "edit_success_32", "f1", "f1_union")
CARRIES = 0.05  # of the answers, at least: what patching an attribute that a place carries changes
NOTHING = "no place carries an attribute: patching it changes fewer answers than can be told apart"


def as_table(columns: Mapping[str, Any]) -> pl.DataFrame:
    """Return rows. columns: lists by name of KINDS, or one value for all rows; those that are missing are null."""
    height = max((len(v) for v in columns.values() if isinstance(v, (list, np.ndarray))), default=1 if columns else 0)
    full = {
        name: (list(v) if isinstance(v, (list, np.ndarray)) else [v] * height)
        for name in KINDS
        for v in [columns.get(name)]
    }
    return pl.DataFrame(full, schema=KINDS).with_columns(pl.col(pl.Float64).fill_nan(None))


def measured(line: Line, draws: int) -> dict[str, Estimate | None]:
    """Return MEASURED of one dictionary."""
    return {
        "sufficiency": sufficiency(line.approximations, draws),
        "necessity": necessity(line.approximations, draws),
        "edit_success": line.success(FEW, draws=draws),
        "edit_success_32": line.success(MANY, draws=draws),
        "f1": line.f1("single", draws),
        "f1_union": line.f1("union", draws),
    }


def carrying(rows: pl.DataFrame, draws: int) -> tuple[dict[str, Estimate | None], dict[str, str]]:
    """Return for each place and attribute the share of answers that patching changes, and why it is None.

    None where the interval reaches below CARRIES: edits can't be told from no edit there.
    """
    scalars: dict[str, Estimate | None] = {}
    reasons: dict[str, str] = {}
    floor = rows.filter((pl.col("criterion") == "edit") & (pl.col("method") == "unchanged"))
    for (place, attribute), own in floor.group_by("place", "attribute", maintain_order=True):
        kept = average(own.with_columns(changed=~pl.col("hit")), "changed", draws)
        assert kept is not None
        name = f"carries/{place}/{attribute}"
        scalars[name] = kept if kept.low >= CARRIES else None
        if scalars[name] is None:
            reasons[name] = (
                f"{place} does not carry {attribute}: patching it changes {kept.value:.1%} of the answers "
                f"[{kept.low:.1%}, {kept.high:.1%}]; choose another of `places`"
            )
    return scalars, reasons
