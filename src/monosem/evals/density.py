"""How often features fire and how strongly: the table of the June 2024 update, density and activation levels.

One row a feature: count, density with its Wilson interval, mean activation when active, coefficient of variation, peak.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from monosem.definitions import METRICS
from monosem.evals import Evaluation, Inputs, Judged, Result, RunInfo, at_like_l0
from monosem.metrics import MIN_FIRINGS, activation_level, dead_fraction, features_above, mean_activations, wilson
from monosem.schema import Axis, Chart, Series
from monosem.sums import read_heldout, read_sums
from monosem.types import Estimate


@dataclass(frozen=True)
class Density(Evaluation):
    """Feature density, dead features and activation levels (sections H.5 to H.7)."""

    needs = ("sums",)

    def prepare(self, inputs: Inputs) -> Any:
        return inputs.folder, int(read_heldout(inputs.folder).n.sum())

    def run(self, info: RunInfo, prepared: Any) -> Result:
        folder, n = prepared
        sae, _ = read_sums(folder, info.name)
        low, high = wilson(sae.count, n)
        mean = np.divide(sae.total, sae.count, out=np.full(len(sae.total), np.nan), where=sae.count > 0)
        variance = np.divide(sae.square, sae.count, out=np.full(len(mean), np.nan), where=sae.count > 0) - mean**2
        l0 = sae.active.sum() / n
        scalars: dict[str, Estimate | None] = {
            "l0": Estimate.exact(float(l0), n),
            "dead_fraction": dead_fraction(sae.count, n),
            "dead": Estimate.exact(int((sae.count == 0).sum()), n),
            "features_above_1e-2": features_above(sae.count, n, 1e-2),
            "features_above_1e-3": features_above(sae.count, n, 1e-3),
            "density_sum": Estimate.exact(float((sae.count / n).sum()), n),
            **activation_level(sae),
        }
        rows = pl.DataFrame(
            {
                "feature": np.arange(len(sae.count), dtype=np.int32),
                "count": sae.count,
                "density": sae.count / n,
                "density_low": low,
                "density_high": high,
                "mean_activation": mean,
                "cv": np.sqrt(np.maximum(variance, 0)) / mean,
                "peak": sae.peak,
                "enough": np.isfinite(mean_activations(sae)),
            }
        ).with_columns(pl.col("mean_activation", "cv").fill_nan(None))
        few = f"fewer than two features fire on {MIN_FIRINGS} held-out tokens"
        return Result(scalars, rows, {name: few for name, value in scalars.items() if value is None})

    def figure(self, judged: list[Judged]) -> list[Chart]:
        l0 = {j.info.name: j.value("l0") for j in judged}
        chosen = at_like_l0(judged, l0)
        where = "Shown: " + "; ".join(f"{j.info.name} at L0 {l0[j.info.name]:.3g}" for j in chosen) + ". "
        never = "Features that never fire are not drawn; the table counts them."
        enough = f"Features with at least {MIN_FIRINGS} firings on held-out tokens; decoder norms folded in."
        legend = "Click a name in the legend to hide it. "
        density, level = "density", "mean_activation"
        return [
            _histograms("density", "Feature density, one run a variant at like L0", chosen, density, l0, where + never),
            _histograms("density-all", "Feature density, all runs", judged, density, l0, legend + never),
            _histograms(
                "activation-levels",
                "Average activation level, one run a variant at like L0",
                chosen,
                level,
                l0,
                where + enough,
            ),
            Chart(
                "activation-spread",
                "Spread of average activation levels",
                "line",
                Axis("L0", "features a token", log=True),
                Axis("Spread of mean activation", "decades, sd of log10"),
                _spread(judged),
                note=METRICS["activation_spread"].definition + " Bars: 95 % bootstrap over features.",
                section="Activation levels",
            ),
            Chart(
                "level-density",
                "Average activation against density, at like L0",
                "points",
                Axis("Feature density", "share of tokens", log=True),
                Axis("Mean activation when active", "normalised units", log=True),
                [_cloud(j) for j in chosen],
                note=f"At most 1,500 features a run, drawn evenly. {enough}",
                section="Activation levels",
            ),
        ]


def _histograms(id: str, title: str, runs: list[Judged], column: str, l0: dict[str, float], note: str) -> Chart:
    """Return a chart of log10 of a column of the rows, one outline a run, in bins of 0.1 decades."""
    if column == "density":
        low, high, axis, section = -6, 0, Axis("Feature density", "log10 share of tokens"), "Density"
    else:
        axis = Axis("Mean activation when active", "log10 normalised units")
        low, high, section = -3, 3, "Activation levels"
    counts = Axis("Features", "count in a bin of 0.1 decades")
    return Chart(
        id,
        title,
        "steps",
        axis,
        counts,
        [_histogram(j, column, low, high, l0) for j in runs],
        note=note,
        section=section,
    )


def _histogram(one: Judged, column: str, low: int, high: int, l0: dict[str, float]) -> Series:
    rows = one.result.rows
    if column == "mean_activation":
        rows = rows.filter(pl.col("enough"))
    values = rows[column].drop_nulls().to_numpy()
    logs = np.log10(values[values > 0])
    edges = np.linspace(low, high, (high - low) * 10 + 1)
    heights, _ = np.histogram(np.clip(logs, low, high), bins=edges)
    middles = (edges[:-1] + edges[1:]) / 2
    on = np.flatnonzero(heights)
    span = slice(max(0, on[0] - 1), min(len(middles), on[-1] + 2)) if len(on) else slice(0, 1)
    name = f"{one.info.name} (L0 {l0[one.info.name]:.3g})"
    return Series(name, middles[span].round(3).tolist(), heights[span].tolist(), group=one.info.variant)


def _spread(judged: list[Judged]) -> list[Series]:
    lines = []
    for variant in dict.fromkeys(j.info.variant for j in judged):
        points = [j for j in judged if j.info.variant == variant and j.result.scalars["activation_spread"]]
        points.sort(key=lambda j: j.value("l0"))
        spreads = [e for j in points if (e := j.result.scalars["activation_spread"])]
        lines.append(
            Series(
                variant,
                [j.value("l0") for j in points],
                [e.value for e in spreads],
                group=variant,
                y_low=[e.low for e in spreads],
                y_high=[e.high for e in spreads],
                hover=[j.info.name for j in points],
            )
        )
    return [line for line in lines if line.x]


def _cloud(one: Judged) -> Series:
    rows = one.result.rows.filter(pl.col("enough"))
    rows = rows.gather_every(max(1, rows.height // 1500))
    return Series(
        one.info.name,
        rows["density"].round_sig_figs(4).to_list(),
        rows["mean_activation"].round_sig_figs(4).to_list(),
        group=one.info.variant,
        hover=[f"{one.info.name}\nfeature {feature}" for feature in rows["feature"]],
    )
