"""A run's table, one row a task, and the scalars made from it. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl

from monosem.bootstrap import Cell, bca
from monosem.evals.probes.scores import SPARSE, Probe
from monosem.metrics import Array
from monosem.types import Estimate

PROBES = ("pre", "post", "dense", "neuron", "pca", "random")
COUNTS = ("read", "empty", "duplicates", "contradictory", "not drawn")
SCALARS = {
    "probe_loss": "pre_loss",
    "probe_accuracy": "pre_accuracy",
    "probe_loss_train": "pre_train_loss",
    "probe_loss_post": "post_loss",
    "probe_accuracy_post": "post_accuracy",
    "probe_loss_post_train": "post_train_loss",
    "dense_probe_loss": "dense_loss",
    "dense_probe_accuracy": "dense_accuracy",
    "neuron_probe_loss": "neuron_loss",
    "pca_probe_loss": "pca_loss",
    "random_probe_loss": "random_loss",
    **{f"sparse_accuracy_{k}": f"sparse_accuracy_{k}" for k in SPARSE},
}
NO_TASK = "no task could be used; the rows say why"
ONE_TASK = "one task has no interval over tasks"
Z95 = 1.959964
_KINDS: dict[str, Any] = {
    "task": pl.String,
    "reason": pl.String,  # why it was left out
    "pool": pl.String,
    "negative": pl.String,
    "positive": pl.String,
    **dict.fromkeys((name.replace(" ", "_") for name in COUNTS), pl.Int64),
    "train": pl.Int64,
    "test": pl.Int64,
    "tokens": pl.Int64,
    **{f"{probe}_feature": pl.Int64 for probe in PROBES},
    **{f"{probe}_{what}": pl.Float64 for probe in PROBES for what in ("train_loss", "loss", "error", "accuracy")},
    **{f"sparse_accuracy_{k}": pl.Float64 for k in SPARSE},
    "noise_loss": pl.Float64,
}


def left_out_row(name: str, counts: Mapping[str, int], reason: str) -> dict[str, Any]:
    """Return the row of a task that can't be used."""
    return {"task": name, "reason": reason, **{k.replace(" ", "_"): n for k, n in counts.items()}}


def task_row(
    name: str, pool: str, facts: Mapping[str, Any], texts: int, probes: Mapping[str, Probe], sparse: Mapping[int, float]
) -> dict[str, Any]:
    """Return the row of a task. facts: what its activations' file says; texts: on both sides together."""
    row = {"task": name, "pool": pool, **dict(zip(("negative", "positive"), facts["classes"], strict=True))}
    row |= {key.replace(" ", "_"): n for key, n in facts["counts"].items()}
    row |= {"train": facts["train"], "test": texts - facts["train"], "tokens": facts["tokens"]}
    for kind, probe in probes.items():
        row |= {f"{kind}_{what}": value for what, value in asdict(probe).items()}
    return row | {f"sparse_accuracy_{k}": value for k, value in sparse.items()}


def as_table(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Return rows as a table."""
    return pl.DataFrame({name: [row.get(name) for row in rows] for name in _KINDS}, schema=_KINDS, strict=False)


def used(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the tasks that were not left out."""
    return rows.filter(pl.col("reason").is_null())


def scalars_of(rows: pl.DataFrame, draws: int) -> tuple[dict[str, Estimate | None], dict[str, str]]:
    """Return the means over tasks with their intervals, and why one is None."""
    kept = used(rows)
    out = {name: task_mean(kept, column, draws) for name, column in SCALARS.items()}
    out["probe_gain"] = mean_over_tasks((kept["random_loss"] - kept["pre_loss"]).to_numpy(), draws)
    out["noise_probe_loss"] = None if not kept.height else Estimate.exact(float(kept["noise_loss"].mean()), kept.height)  # pyright: ignore[reportArgumentType]
    why = ONE_TASK if kept.height else NO_TASK
    return out, dict.fromkeys((name for name, value in out.items() if value is None), why)


def mean_over_tasks(values: Array, draws: int) -> Estimate | None:
    """Return a mean over tasks with its BCa interval; of a single task there is none, and None is returned."""
    if len(values) < 2:
        return None
    low, high = bca([Cell(values, np.ones(len(values)), 1.0)], draws)
    return Estimate(float(values.mean()), low, high, len(values))


def task_mean(kept: pl.DataFrame, column: str, draws: int) -> Estimate | None:
    """Return a column's mean over tasks with its BCa interval; of a single task with the normal one over its texts."""
    values = kept[column].to_numpy().astype(np.float64)
    if len(values) != 1:
        return mean_over_tasks(values, draws)
    value, texts = float(values[0]), int(kept["test"][0])
    if column.endswith("train_loss"):
        return Estimate.exact(value, int(kept["train"][0]))
    probe = column.removesuffix("_loss")
    error = kept[f"{probe}_error"][0] if probe in PROBES else math.sqrt(value * (1 - value) / texts)
    return Estimate(value, value - Z95 * error, value + Z95 * error, texts)
