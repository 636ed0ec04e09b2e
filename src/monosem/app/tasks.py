"""The probe tasks that a feature is best for, of all features of its run: read from the evaluation `probes`."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from monosem.app.study import Run, Study

KINDS = {"pre": "pre-activation", "post": "activation"}
Z95 = 1.959964


@dataclass(frozen=True)
class BestFor:
    """A task that this feature tells apart best. on: what the probe sees of the feature; loss: of held-out texts, nats,
    with its interval over texts; random: the loss of the best random direction.
    """

    task: str
    on: str
    classes: str
    loss: float
    low: float
    high: float
    accuracy: float
    random: float


def tasks_of(study: Study, run: Run, feature: int) -> list[BestFor]:
    """Return the tasks, lowest loss first; none where there are no results, or those of other weights."""
    rows = study.rows(run.name, "probes", _used)
    if rows is None:
        return []
    found = []
    for kind, on in KINDS.items():
        for row in rows.filter(pl.col(f"{kind}_feature") == feature).iter_rows(named=True):
            loss, half = float(row[f"{kind}_loss"]), Z95 * float(row[f"{kind}_error"])
            classes = f"{row['negative']} / {row['positive']}"
            scores = (loss, loss - half, loss + half, float(row[f"{kind}_accuracy"]), float(row["random_loss"]))
            found.append(BestFor(row["task"], on, classes, *scores))
    return sorted(found, key=lambda one: one.loss)


def _used(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the tasks that were used, with the columns that are. Raises a PolarsError where one is missing."""
    numbers = [f"{kind}_{what}" for kind in KINDS for what in ("loss", "error", "accuracy")] + ["random_loss"]
    return (
        rows.filter(pl.col("reason").is_null())
        .select(
            pl.col("task", "negative", "positive").cast(pl.String),
            pl.col([f"{kind}_feature" for kind in KINDS]).cast(pl.Int64),
            pl.col(numbers).cast(pl.Float64),
        )
        .drop_nulls()
    )
