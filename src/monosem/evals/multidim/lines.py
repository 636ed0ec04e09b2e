"""What the report asks of a run's rows: verdicts, shares and their intervals, which template and layer. No torch.

Rows are those of the table. All kinds but plane, point and held are about the model, and the same in every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import polars as pl

from monosem.evals import Judged
from monosem.evals.multidim.tasks import CYCLES
from monosem.metrics import estimated, once_and_resampled
from monosem.schema import Series
from monosem.types import Estimate

SECTION = "Multi-dimensional features"
WHOLE, BEST = 0.5, 0.5  # the least that is not lost; the least of it in one cluster that is not split (ours)
SIDE = 0.025  # share of draws on the other side, at most, of what is said to lie below
SURE = 0.05  # p below which an error is below chance
SWAPS = ("random_plane", "random_in_span")
CONTROLS = ("mean", *SWAPS)  # what a circle has to beat
DRAWS = 1000
METHODS = {  # in the order of the legend
    "unpatched": "unpatched",
    "circle": "circle, rest at its mean",
    "circle_swap": "circle's plane, rest kept",
    "pca": "5 components",
    "whole": "whole activation",
    "mean": "mean",
    "zero_circle": "plane at its mean",
    "only_circle": "all but the plane at its mean",
    "complement": "all but the plane",
    "random_plane": "random plane",
    "random_in_span": "random plane among the words",
}


def of_model(judged: Sequence[Judged], kind: str) -> pl.DataFrame:
    """Return the rows of a kind that is about the model: those of the first run that has any."""
    found = [rows for one in judged if (rows := one.result.rows.filter(kind=kind)).height]
    return found[0] if found else judged[0].result.rows.head(0)


def cycles(judged: Sequence[Judged]) -> list[str]:
    """Return the cycles of which there are rows."""
    seen = {cycle for one in judged for cycle in one.result.rows["cycle"].unique() if cycle is not None}
    return [cycle for cycle in CYCLES if cycle in seen] + sorted(seen - set(CYCLES))


def estimate(row: dict[str, Any]) -> Estimate:
    """Return the score of a row; one without an interval counts as exact."""
    low, high = (row["score"] if row[name] is None else row[name] for name in ("low", "high"))
    return Estimate(row["score"], low, high, row["n"] or 0)


def known(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows that have a score."""
    return rows.filter(pl.col("score").is_not_null() & pl.col("score").is_not_nan())


def held_as(whole: Estimate, best: Estimate | None) -> tuple[str, bool]:
    """Return how a circle is held ("lost", "together", "split") by the point values, and if the intervals say so too.

    whole: share of the circle's plane that all features reproduce; best: the best cluster alone, None without clusters.
    Lost: whole < 0.5. Together: best >= whole / 2. Sure: no values within the two intervals, however they are paired,
    give another answer.
    """

    def of(whole: float, best: float) -> str:
        return "lost" if whole < WHOLE else "together" if best >= BEST * whole else "split"

    part = Estimate.exact(0.0, 0) if best is None else best
    others = {of(*pair) for pair in product((whole.low, whole.high), (part.low, part.high))}
    verdict = of(whole.value, part.value)
    return verdict, others == {verdict}


def share_of_rows(rows: pl.DataFrame) -> Estimate:
    """Return the mean score; the interval comes from drawing labels (base words), which bring all their rows."""
    sums = rows.group_by("label", maintain_order=True).agg(total=pl.col("score").sum(), count=pl.len())
    total, count = sums["total"].to_numpy(), sums["count"].to_numpy()
    weights = once_and_resampled(len(count), DRAWS)
    found = estimated((weights @ total) / (weights @ count), rows.height)
    assert found is not None
    return found


def template_of(judged: Sequence[Judged], rows: pl.DataFrame) -> str:
    """Return the template of these rows (of one cycle) that the model answers best; the first where several are."""
    right = of_model(judged, "accuracy").select("cycle", "template", right="score")
    there = rows.select("cycle", "template").unique(maintain_order=True)
    scored = there.join(right, on=["cycle", "template"], how="left", maintain_order="left")
    return scored.sort("right", descending=True, nulls_last=True, maintain_order=True)["template"][0]


def layer_of(judged: Sequence[Judged], rows: pl.DataFrame) -> int:
    """Return the layer of these rows nearest to the study's own, as rows of kind held tell it; else the middle."""
    layers = sorted(rows["layer"].drop_nulls().unique())
    own = of_model(judged, "held")["layer"].drop_nulls()
    return min(layers, key=lambda layer: abs(layer - own[0])) if len(own) else layers[len(layers) // 2]


def below_chance(row: dict[str, Any]) -> bool:
    """Return whether a probe's error is below that of permuted words: its interval is, and p < 0.05."""
    return estimate(row).high < row["null"] and (row["p"] is None or row["p"] < SURE)


def line(name: str, group: str, rows: pl.DataFrame, x: str = "layer", hover: list[str] | None = None) -> Series:
    """Return the scores of rows against a column, with their intervals."""
    found = [estimate(row) for row in rows.iter_rows(named=True)]
    low, high = [one.low for one in found], [one.high for one in found]
    return Series(name, rows[x].to_list(), [one.value for one in found], group, y_low=low, y_high=high, hover=hover)


def leading(rows: pl.DataFrame) -> tuple[dict[str, Any], int]:
    """Return the row with the highest score, and how many of the others can't be told from it: intervals overlap."""
    ordered = list(rows.sort("score", descending=True, maintain_order=True).iter_rows(named=True))
    return ordered[0], sum(estimate(row).high >= estimate(ordered[0]).low for row in ordered[1:])


def counted(n: int, what: str) -> str:
    """Return "1 run" or "2 runs"."""
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def shown(token: str) -> str:
    """Return a token for reading: no space around it, line breaks visible."""
    return token.replace("\n", "⏎").strip() or "␣"
