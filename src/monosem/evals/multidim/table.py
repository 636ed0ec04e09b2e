"""A run's table, long: one row a plane, point, word, or score. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

COLUMNS: dict[str, Any] = {
    "kind": pl.String,  # plane, point, held; accuracy, probe, word, patch, effect, sweep, parts, regression
    "cycle": pl.String,  # weekdays, months
    "template": pl.String,
    "method": pl.String,
    "layer": pl.Int64,
    "cluster": pl.Int64,  # its rank, from 1
    "plane": pl.Int64,  # 1: components 1 and 2
    "features": pl.List(pl.Int32),
    "tokens": pl.List(pl.String),  # the most frequent ones on which they fire
    "x": pl.Float64,
    "y": pl.Float64,
    "label": pl.String,  # a point's token, a word
    "group": pl.String,  # what a point is coloured by: day, month, year, number, or the token
    "doc": pl.Int32,
    "pos": pl.Int32,
    "before": pl.String,
    "after": pl.String,
    "separability": pl.Float64,  # bits
    "null": pl.Float64,  # what chance gives: of separability, or of a probe's error
    "mixture": pl.Float64,
    "score": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p": pl.Float64,
    "n": pl.Int64,
}


def as_table(columns: Mapping[str, Any]) -> pl.DataFrame:
    """Return rows. columns: lists by name of COLUMNS, or one value for all rows; those that are missing are null."""
    several = [v for v in columns.values() if isinstance(v, (list, np.ndarray))]
    height = max((len(v) for v in several), default=1 if columns else 0)
    full = {
        name: (list(v) if isinstance(v, (list, np.ndarray)) else [v] * height)
        for name in COLUMNS
        for v in [columns.get(name)]
    }
    return pl.DataFrame(full, schema=COLUMNS).with_columns(pl.col(pl.Float64).fill_nan(None))
