"""How much is reconstructed with how many active features, and what the splice costs the model.

One row a bootstrap draw: the same document resamples for every run, so that runs can be compared in pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from monosem.definitions import METRICS
from monosem.evals import Evaluation, Inputs, Judged, Result, RunInfo, against_l0, hyper_text, setting
from monosem.metrics import Curve, compare_at_matched_l0, downstream, intervals, reconstruction, resamples
from monosem.schema import Axis, Chart, Series
from monosem.sums import read_heldout, read_sums
from monosem.types import Estimate


@dataclass(frozen=True)
class Frontier(Evaluation):
    """L0, MSE, NMSE, explained variance, shrinkage and cross-entropy (sections H.1 to H.4, H.8)."""

    needs = ("sums",)

    def prepare(self, inputs: Inputs) -> Any:
        data = read_heldout(inputs.folder)
        return inputs.folder, data, resamples(len(data.n), inputs.bootstrap)

    def run(self, info: RunInfo, prepared: Any) -> Result:
        folder, data, weights = prepared
        sae, ce = read_sums(folder, info.name)
        drawn = reconstruction(data, sae, weights)
        scalars = intervals(reconstruction(data, sae), drawn, int(data.n.sum()))
        if ce is not None:
            drawn_ce = downstream(ce, weights)
            scalars |= intervals(downstream(ce), drawn_ce, int(ce.n.sum()))
            drawn |= drawn_ce
        reasons = {name: "undefined: a denominator is zero" for name, value in scalars.items() if value is None}
        return Result(scalars, pl.DataFrame({"draw": np.arange(len(weights)), **drawn}), reasons)

    def figure(self, judged: list[Judged]) -> list[Chart]:
        l0 = Axis("L0", "features a token", log=True)
        charts = [
            Chart(
                "frontier",
                "Reconstruction against sparsity",
                "line",
                l0,
                Axis("NMSE", "fraction of variance", log=True),
                _lines(judged, "nmse"),
                note=f"Lower left is better. {METRICS['l0'].definition} {METRICS['nmse'].definition} "
                "Bars: 95 % document bootstrap.",
                first_screen=True,
                section="Frontier",
            )
        ]
        for name, first in (("ce_recovered", True), ("ce_recovered_mean", False), ("delta_ce", False), ("kl", False)):
            lines = _lines(judged, name)
            if lines:
                metric = METRICS[name]
                axis = Axis(metric.label, metric.unit, reference=1.0 if metric.unit == "fraction" else 0.0)
                charts.append(
                    Chart(
                        name.replace("_", "-"),
                        f"{metric.label} against sparsity",
                        "line",
                        l0,
                        axis,
                        lines,
                        note=metric.definition,
                        first_screen=first,
                        section="Downstream",
                    )
                )
        for name in ("gamma", "gamma_centered"):
            charts.append(
                Chart(
                    name.replace("_", "-"),
                    f"{METRICS[name].label} against sparsity",
                    "line",
                    l0,
                    Axis(METRICS[name].label, "ratio", reference=1.0),
                    _lines(judged, name),
                    note=METRICS[name].definition,
                    section="Shrinkage",
                )
            )
        return charts


def _lines(judged: list[Judged], name: str) -> list[Series]:
    """Return one line a variant, through the means over seeds, with the intervals of each point."""
    lines = []
    for variant in dict.fromkeys(j.info.variant for j in judged):
        lines += against_l0(variant, [j for j in judged if j.info.variant == variant], name, _hover)
    return lines


def _hover(one: Judged, _: Estimate) -> str:
    return f"{one.info.name}\n{hyper_text(one.info)}\nseed {one.info.seed}, d_sae {one.info.d_sae}"


def curve(judged: list[Judged], variant: str) -> Curve | None:
    """Return a variant's curve: one point a setting, the mean over its seeds in log space; None with none.

    In the draws, seeds are resampled too where a setting has several.
    """
    groups: dict[str, list[Judged]] = {}
    for one in judged:
        if one.info.variant == variant and one.value("l0") > 0 and one.value("nmse") > 0:
            groups.setdefault(setting(one.info), []).append(one)
    if not groups:
        return None
    rng = np.random.default_rng(0)
    columns: dict[str, list[np.ndarray]] = {"l0": [], "nmse": []}
    values: dict[str, list[float]] = {"l0": [], "nmse": []}
    for members in groups.values():
        draws = members[0].result.rows.height
        picks = rng.integers(0, len(members), size=(draws, len(members)))
        for name in columns:
            logs = np.log(np.stack([m.result.rows[name].to_numpy() for m in members], axis=1))
            columns[name].append(np.exp(np.take_along_axis(logs, picks, axis=1).mean(1)))
            values[name].append(float(np.exp(np.mean([np.log(m.value(name)) for m in members]))))
    return Curve(
        np.array(values["l0"]), np.array(values["nmse"]), np.stack(columns["l0"], 1), np.stack(columns["nmse"], 1)
    )


def compare_variants(judged: list[Judged], variant: str, baseline: str) -> dict[str, Any]:
    """Compare a variant's L0/NMSE curve with another's at matched L0 (see metrics.compare_at_matched_l0)."""
    mine, against = curve(judged, variant), curve(judged, baseline)
    if mine is None or against is None or len(mine.l0) + len(against.l0) < 3:
        found: dict[str, Any] = {"reason": "one of the two needs at least two settings with L0 and NMSE above 0"}
    else:
        tokens = judged[0].result.scalars["nmse"]
        found = compare_at_matched_l0(mine, against, tokens.n if tokens else 0)
    ratio = found.get("ratio")
    if ratio is None:
        verdict = "not comparable"
    else:
        verdict = "lower" if ratio["high"] < 1 else "higher" if ratio["low"] > 1 else "undecided"
    return {"variant": variant, "baseline": baseline, **found, "verdict": verdict}


def comparisons(judged: list[Judged], baseline: str) -> list[dict[str, Any]]:
    """Compare every other variant with the baseline, the lowest error first."""
    others = [v for v in dict.fromkeys(j.info.variant for j in judged) if v != baseline]
    found = [compare_variants(judged, variant, baseline) for variant in others]
    return sorted(found, key=lambda c: c["ratio"]["value"] if "ratio" in c else np.inf)
