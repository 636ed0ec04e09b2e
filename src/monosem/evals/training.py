"""Training curves, from each run's log. One row a logged step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from monosem.evals import Evaluation, Inputs, Judged, Result, RunInfo
from monosem.schema import Axis, Chart, Series


@dataclass(frozen=True)
class Training(Evaluation):
    """NMSE and L0 on training batches, as training went on."""

    needs = ("log",)

    def prepare(self, inputs: Inputs) -> Any:
        return None

    def run(self, info: RunInfo, prepared: Any) -> Result:
        path = info.folder / "log.parquet"
        if not path.exists():  # an SAE that was loaded, not trained here
            return Result({}, pl.DataFrame({name: [] for name in ("step", "tokens", "nmse", "l0")}))
        return Result({}, pl.read_parquet(path))

    def figure(self, judged: list[Judged]) -> list[Chart]:
        tokens = Axis("Training tokens", "tokens")
        note = "Each point is one training batch, before the step that it causes."
        return [
            Chart(
                f"training-{column}",
                f"{label} in training",
                "line",
                tokens,
                Axis(label, unit, log=True),
                [
                    Series(
                        j.info.name, j.result.rows["tokens"].to_list(), j.result.rows[column].to_list(), j.info.variant
                    )
                    for j in judged
                    if j.result.rows.height
                ],
                note=note,
                section="Training",
            )
            for column, label, unit in (("nmse", "NMSE", "fraction of variance"), ("l0", "L0", "features a token"))
        ]
