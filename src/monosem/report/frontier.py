"""The two charts of the first screen, drawn from the summary where no evaluation has supplied them."""

from __future__ import annotations

from typing import Any

from monosem.definitions import METRICS
from monosem.report.inputs import finite
from monosem.report.numbers import plain
from monosem.report.palette import Style
from monosem.schema import Axis, Chart, Series


def first_screen(charts: list[Chart], runs: list[dict[str, Any]], styles: dict[str, Style]) -> list[Chart]:
    """Return the charts of the first screen: those that ask for it, else error and CE recovered against L0."""
    chosen = [chart for chart in charts if chart.first_screen]
    if chosen:
        return chosen
    drawn = [
        _against_l0(runs, styles, "nmse", "Reconstruction error at each sparsity", log=True),
        _against_l0(runs, styles, "ce_recovered", "Loss recovered at each sparsity", log=False),
    ]
    return [chart for chart in drawn if chart.series]


def _against_l0(runs: list[dict[str, Any]], styles: dict[str, Style], metric: str, title: str, log: bool) -> Chart:
    series = []
    for variant in dict.fromkeys(run["variant"] for run in runs):
        chosen = [r for r in runs if r["variant"] == variant and _value(r, "l0") and _value(r, metric) is not None]
        if not chosen:
            continue
        columns: dict[str, Any] = {
            f"{axis}{suffix}": [_value(run, name, key) for run in chosen]
            for axis, name in (("x", "l0"), ("y", metric))
            for suffix, key in (("", "value"), ("_low", "low"), ("_high", "high"))
        }
        series.append(
            Series(
                name=styles[variant].label,
                group=variant,
                hover=[describe(run) for run in chosen],
                join=[hyper_text(run) for run in chosen],
                **columns,
            )
        )
    shown = METRICS[metric]
    l0 = Axis(METRICS["l0"].label, METRICS["l0"].unit, log=True)
    return Chart(
        id=f"first-{metric}",
        title=title,
        kind="line",
        x=l0,
        y=Axis(shown.label, shown.unit, log=log),
        series=series,
        note=f"{shown.label}: {shown.definition}",
        first_screen=True,
    )


def _value(run: dict[str, Any], metric: str, key: str = "value") -> Any:
    estimate = run.get(metric)
    return finite(estimate.get(key)) if isinstance(estimate, dict) else None


def hyper_text(run: dict[str, Any]) -> str:
    """Return the hyperparameters in one line: `k = 20, lr = 0.0003`."""
    return ", ".join(f"{key} = {plain(value)}" for key, value in (run.get("hyper") or {}).items())


def describe(run: dict[str, Any]) -> str:
    """Return name, hyperparameters and seed of a run, one a line."""
    lines = [run["name"], hyper_text(run), f"seed = {run['seed']}" if run.get("seed") is not None else ""]
    return "\n".join(line for line in lines if line)
