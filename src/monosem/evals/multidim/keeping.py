"""The report's table of the clusters that hold most of a circle, with their ranks and indices. Imports no torch."""

from __future__ import annotations

from typing import Any

import polars as pl

from monosem.evals import Judged, cell, short
from monosem.evals.multidim.lines import SECTION, estimate
from monosem.schema import Chart


def keeping(judged: list[Judged], found: list[str]) -> Chart:
    """Return a row for each run and cycle: the cluster that reproduces most of the circle, and its indices."""
    columns = ["Run", "Circle", "Whole", "Best cluster", "Size", "Fires on", "Rank", "Separability", "By chance"]
    columns += ["Mixture", "Tokens", "Error, best cluster", "Error, all features", "Best feature"]
    cells: list[list[Any]] = []
    for one in judged:
        for cycle in found:
            held = {row["method"]: row for row in one.result.rows.filter(kind="held", cycle=cycle).to_dicts()}
            if "whole" in held:
                cells.append([one.info.name, cycle, *_row(one.result.rows, held)])
    ranked = [row for row in cells if row[6] == 1]
    told = f"{len(ranked)} of {len(cells)} are the most irreducible of their run" if cells else ""
    return Chart(
        "multidim-keeping",
        f"Clusters that hold most of a circle: {told}",
        "table",
        columns=columns,
        cells=cells,
        note="Of each run, the cluster that alone reproduces most of the model's circle at the study's site. Whole, "
        "best cluster, best feature: shares of the variance of the words' means in the circle's plane. Rank: among the "
        "clusters judged, the most irreducible first; without one the cluster fires on too few held-out tokens. "
        "Separability (bits, not corrected), what chance gives, and mixture are of its best plane. Error: of the "
        "words' order, each word left out, read off what the features reconstruct, in words; none where they span no "
        "plane.",
        section=SECTION,
    )


def _row(rows: pl.DataFrame, held: dict[str, dict[str, Any]]) -> list[Any]:
    best, own = held.get("best cluster"), held.get("best feature")
    whole, alone = cell(estimate(held["whole"])), None if own is None else cell(estimate(own))
    if best is None:
        return [whole, *[None] * 9, short(held["whole"]["x"]), alone]
    planes = rows.filter(pl.col("kind") == "plane", pl.col("cluster") == (best["cluster"] or 0))
    facts: dict[str, Any] = planes.sort("score", descending=True).row(0, named=True) if planes.height else {}
    tokens = ", ".join(token.strip() or "␣" for token in facts.get("tokens") or []) or None
    indices = [short(facts.get(name)) for name in ("separability", "null", "mixture")]
    row = [whole, cell(estimate(best)), len(best["features"]), tokens, best["cluster"], *indices, facts.get("n")]
    return [*row, short(best["x"]), short(held["whole"]["x"]), alone]
