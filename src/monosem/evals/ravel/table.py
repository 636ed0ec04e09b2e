"""A run's table, one row an intervention, the scalars made from it, and a fair sample of it. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from monosem.evals import fair_sample
from monosem.evals.ravel.disentangle import NAMES, Key, Scores, intervals
from monosem.metrics import proportion
from monosem.types import Estimate

KINDS: dict[str, Any] = {
    "method": pl.String,
    "type": pl.String,
    "target": pl.String,  # the attribute that is swapped
    "attribute": pl.String,  # the attribute that is asked for
    "split": pl.String,  # entity, context; val, on which C is chosen
    "c": pl.Float64,  # of the linear classifier that chose the features
    "size": pl.Int64,  # features, directions or dimensions that are swapped
    "base": pl.String,
    "source": pl.String,
    "template": pl.String,
    "source_template": pl.String,
    "base_answer": pl.String,
    "source_answer": pl.String,
    "answer": pl.String,
    "hit": pl.Boolean,
}
TEST = ("entity", "context")
MAIN = "mdbm"  # whose scores stand without a prefix
SAE_METHODS = {
    "svm": "SVM",
    "svm+error": "SVM + error",
    "mdbm": "MDBM mask",
    "mdbm+error": "MDBM mask + error",
    "none": "no feature",
    "all": "all features",
}
BASELINES = {
    "mdas": "MDAS",
    "das": "DAS",
    "dbm": "DBM",
    "rlap": "RLAP",
    "pca": "PCA",
    "random": "random directions",
    "full": "whole activation",
}
SUPERVISED = ("mdas", "das", "dbm", "rlap")
NO_ROWS = "no intervention was made on the test splits"
COVERAGE = ("answered", "entities", "templates", "train_pairs")


def as_table(columns: Mapping[str, Any]) -> pl.DataFrame:
    """Return the table of interventions. columns: lists by name of KINDS, [n] each, or one value for all of them.

    Columns that are missing are null. Raises KeyError for a name that the table doesn't have.
    """
    if unknown := set(columns) - set(KINDS):
        raise KeyError(f"no such column: {', '.join(sorted(unknown))}")
    return pl.DataFrame({name: columns.get(name, None if columns else []) for name in KINDS}, schema=KINDS)


def prefix(method: str) -> str:
    """Return what a method's scalars begin with."""
    return method.replace("+", "_with_")


def tested(rows: pl.DataFrame, method: str) -> pl.DataFrame:
    """Return a method's interventions on the test splits."""
    return rows.filter((pl.col("method") == method) & pl.col("split").is_in(TEST))


def scalars_of(rows: pl.DataFrame, draws: int) -> tuple[dict[str, Estimate | None], dict[str, str]]:
    """Return the scores of all methods with their intervals, and why one is None.

    Names: {method}_cause, _isolate, _disentangle, _disentangle_entity, _disentangle_context and _size (swapped, mean
    over attributes) of each method with rows on the test splits, "+" written as "_with_"; and those of MAIN again
    without a prefix.
    """
    scalars: dict[str, Estimate | None] = {}
    for method in rows.filter(pl.col("split").is_in(TEST))["method"].unique(maintain_order=True):
        scalars |= {f"{prefix(method)}_{name}": value for name, value in _scores(tested(rows, method), draws).items()}
    names = ("cause", "isolate", "disentangle", *(f"disentangle_{split}" for split in TEST))
    scalars |= {name: scalars.get(f"{MAIN}_{name}") for name in names}
    return scalars, {name: NO_ROWS for name, value in scalars.items() if value is None}


def estimates(rows: pl.DataFrame, draws: int) -> Scores:
    """Return cause, isolate and disentangle of one method's interventions; all None where there are none."""
    return intervals(rows, draws)[Key()] if rows.height else dict.fromkeys(NAMES)


def _scores(rows: pl.DataFrame, draws: int) -> Scores:
    found = intervals(rows, draws)
    scores = dict(found[Key()])
    scores |= {f"disentangle_{split}": found.get(Key(split), {}).get("disentangle") for split in TEST}
    sizes = rows.group_by("type", "target").agg(pl.col("size").mean())["size"].to_numpy()
    return scores | {"size": Estimate.exact(float(np.mean(sizes)), len(sizes))}


def coverage_scalars(coverage: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Estimate | None], dict[str, str]]:
    """Return what the model's own answers left of the data as scalars, and why an attribute was left out.

    coverage: one an attribute, with the keys type, attribute, entities and templates (kept), asked and answered
    (prompts, and those with the right answer), train_pairs, too_few (a sentence, "" where there are enough).
    Names: {COVERAGE}/{type}/{attribute}.
    """
    scalars: dict[str, Estimate | None] = {}
    reasons: dict[str, str] = {}
    for one in coverage:
        place = f"{one['type']}/{one['attribute']}"
        asked, answered = one["asked"], one["answered"]
        scalars[f"answered/{place}"] = proportion(answered, asked) if asked else Estimate(0.0, 0.0, 1.0, 0)
        scalars |= {f"{name}/{place}": Estimate.exact(one[name], one[name]) for name in COVERAGE[1:]}
        if one["too_few"]:
            scalars[f"train_pairs/{place}"] = None
            reasons[f"train_pairs/{place}"] = one["too_few"]
    return scalars, reasons


def sampled(rows: pl.DataFrame, size: int, seed: int = 0) -> pl.DataFrame:
    """Return some interventions on the test splits of each type, target and method, in the order of the rows.

    Half of `size` ask for the target, half for other attributes (fewer where there are no more). Each half is
    a `fair_sample`, in which hits and misses keep their proportion.
    """
    tested = rows.filter(pl.col("split").is_in(TEST)).with_columns(own=pl.col("target") == pl.col("attribute"))
    by = ["type", "target", "method", "own"]
    return fair_sample(tested, by, ["hit", "attribute"], size // 2, seed).drop("own")
