"""How much the number of active features differs from document to document. One row a document group.

TopK gives every token the same budget; a penalty lets a token have as many features as it needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from monosem.evals import Evaluation, Inputs, Judged, Result, RunInfo
from monosem.metrics import Array, intervals, resamples
from monosem.schema import Axis, Chart, Series
from monosem.sums import read_heldout, read_sums


def spread(l0: Array, weights: Array) -> Array:
    """Return the standard deviation of `l0 [g]` under each row of `weights [b, g]`, [b]."""
    share = weights / weights.sum(1, keepdims=True)
    return np.sqrt(np.maximum(share @ l0**2 - (share @ l0) ** 2, 0))


@dataclass(frozen=True)
class Spread(Evaluation):
    """Standard deviation over documents of a document's L0. min_tokens: shorter documents are left out."""

    needs = ("sums",)
    min_tokens: int = 16

    def prepare(self, inputs: Inputs) -> Any:
        n = read_heldout(inputs.folder).n
        return inputs.folder, n, n >= self.min_tokens, inputs.bootstrap

    def run(self, info: RunInfo, prepared: Any) -> Result:
        folder, n, enough, draws = prepared
        if enough.sum() < 2:
            reason = f"fewer than two documents have {self.min_tokens} held-out tokens"
            return Result({"l0_spread": None}, pl.DataFrame({"l0": []}), {"l0_spread": reason})
        l0 = read_sums(folder, info.name)[0].active[enough] / n[enough]
        point = {"l0_spread": spread(l0, np.ones((1, len(l0))))}
        drawn = {"l0_spread": spread(l0, resamples(len(l0), draws))}
        return Result(intervals(point, drawn, len(l0)), pl.DataFrame({"tokens": n[enough], "l0": l0}))

    def figure(self, judged: list[Judged]) -> list[Chart]:
        measured = [(j, e) for j in judged if (e := j.result.scalars["l0_spread"]) is not None]
        series = [
            Series(
                j.info.name,
                [float(j.result.rows["l0"].mean())],  # pyright: ignore[reportArgumentType]
                [e.value],
                group=j.info.variant,
                y_low=[e.low],
                y_high=[e.high],
            )
            for j, e in measured
        ]
        x = Axis("L0", "features a token, mean over documents")
        y = Axis("Spread of L0", "features a token, sd over documents")
        title, note = "L0 from document to document", "Each point is a run. Bars: 95 % document bootstrap."
        return [Chart("l0-spread", title, "points", x, y, series, note=note, section="Documents")]
