"""Human ratings and automatic interpretation scores of single features, where other parts of a study left them."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from monosem.evals import Inputs, RunInfo

SOURCES = {"rating": "consistency", "autointerp": "pearson"}  # folder in results/<run>/, column of its rows.parquet


def evidence_files(inputs: Inputs, info: RunInfo) -> list[Path]:
    """Return those of results/<run>/rating/rows.parquet and .../autointerp/rows.parquet that there are."""
    paths = [inputs.folder / "results" / info.name / source / "rows.parquet" for source in SOURCES]
    return [path for path in paths if path.exists()]


def read_evidence(inputs: Inputs, info: RunInfo) -> tuple[dict[int, float], dict[int, float]]:
    """Return consistency (mean of a feature's ratings, 1 to 5) and score (Pearson correlation) by feature."""
    found: dict[str, dict[int, float]] = {source: {} for source in SOURCES}
    for path in evidence_files(inputs, info):
        source = path.parent.name
        rows = pl.read_parquet(path)
        if not {"feature", SOURCES[source]} <= set(rows.columns):
            continue
        means = rows.drop_nulls(SOURCES[source]).group_by("feature").agg(pl.col(SOURCES[source]).mean())
        found[source] = dict(means.iter_rows())
    return found["rating"], found["autointerp"]
