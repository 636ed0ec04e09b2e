"""Reconstruction error against sparsity as an SVG without scripts, drawn from the summary's runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader

from monosem.report.figures import figure
from monosem.report.frontier import first_screen
from monosem.report.inputs import finite
from monosem.report.numbers import short
from monosem.report.palette import MARKER_PATHS, styles_for

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 470, 84, 24, 62, 62
PER_LEGEND_ROW, LEGEND_ROW = 5, 22


@dataclass(frozen=True)
class Scale:
    """A logarithmic axis: from values `low` to `high` onto pixels `start` to `end`; ticks with their labels."""

    low: float
    high: float
    start: float
    end: float
    ticks: list[tuple[float, str]]

    def __call__(self, value: float) -> float:
        """Return the place of a value in pixels, rounded for the file."""
        share = (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return round(self.start + share * (self.end - self.start), 1)


def error_figure(runs: list[dict[str, Any]], marked: str | None = None) -> str | None:
    """Return NMSE against L0 as SVG text, both logarithmic, with 95 % intervals, or None if there is nothing to draw.

    runs: objects of summary.json; those without a positive L0 and NMSE have no place on it. marked: the name of the
    run that gets a ring.
    """
    drawn = [run for run in runs if all(_positive(run, metric) for metric in ("l0", "nmse"))]
    if not drawn:
        return None
    styles = styles_for(run["variant"] for run in drawn)
    chart = first_screen([], drawn, styles)[0]
    layout = figure(chart, styles)["layout"]
    x = _scale(_bounds(drawn, "l0"), LEFT, WIDTH - RIGHT, layout["xaxis"].get("tickvals"))
    top = TOP + LEGEND_ROW * ((len(chart.series) - 1) // PER_LEGEND_ROW)
    y = _scale(_bounds(drawn, "nmse"), HEIGHT - BOTTOM, top, layout["yaxis"].get("tickvals"))
    groups = []
    for index, series in enumerate(chart.series):
        row, column = divmod(index, PER_LEGEND_ROW)
        own = [run for run in drawn if run["variant"] == series.group]
        line = sorted(_means(own, series.join or []))
        groups.append(
            {
                "name": series.name,
                "colour": styles[series.group].light,
                "legend": (LEFT + column * (WIDTH - RIGHT - LEFT) / PER_LEGEND_ROW, 37 + LEGEND_ROW * row),
                "marker": MARKER_PATHS[styles[series.group].symbol],
                "line": " ".join(f"{x(l0)},{y(nmse)}" for l0, nmse in line),
                "points": [_point(run, x, y) | {"ringed": run["name"] == marked} for run in own],
            }
        )
    environment = Environment(
        loader=PackageLoader("monosem.card"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    size = {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": top,
        "bottom": HEIGHT - BOTTOM,
    }
    return environment.get_template("error.svg.j2").render(size, chart=chart, groups=groups, x=x, y=y)


def _positive(run: dict[str, Any], metric: str) -> bool:
    value = finite((run.get(metric) or {}).get("value"))
    return value is not None and value > 0


def _interval(run: dict[str, Any], metric: str) -> tuple[float, float, float]:
    """Return (value, low, high); an end that is missing, or has no place on a logarithmic axis, is the value."""
    value = run[metric]["value"]
    low, high = (finite(run[metric].get(key)) for key in ("low", "high"))
    return value, low if low and low > 0 else value, high if high and high > 0 else value


def _bounds(runs: list[dict[str, Any]], metric: str) -> tuple[float, float]:
    ends = [end for run in runs for end in _interval(run, metric)]
    low, high = min(ends), max(ends)
    margin = max((high / low) ** 0.06, 1.04)
    return low / margin, high * margin


def _scale(bounds: tuple[float, float], start: float, end: float, ticks: list[float] | None) -> Scale:
    low, high = bounds
    decades = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    chosen = [tick for tick in ticks or decades if low <= tick <= high]
    if len(chosen) < 2:
        chosen = [low * (high / low) ** share for share in (0.1, 0.5, 0.9)]
    return Scale(low, high, start, end, [(tick, short(float(f"{tick:.3g}"))) for tick in chosen])


def _means(runs: list[dict[str, Any]], join: list[str]) -> list[tuple[float, float]]:
    """Return the geometric mean of L0 and NMSE over the seeds of each setting."""
    settings: dict[str, list[dict[str, Any]]] = {}
    for run, key in zip(runs, join, strict=True):
        settings.setdefault(key, []).append(run)
    return [
        (_geometric([run["l0"]["value"] for run in seeds]), _geometric([run["nmse"]["value"] for run in seeds]))
        for seeds in settings.values()
    ]


def _geometric(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def _point(run: dict[str, Any], x: Scale, y: Scale) -> dict[str, Any]:
    l0, l0_low, l0_high = _interval(run, "l0")
    nmse, nmse_low, nmse_high = _interval(run, "nmse")
    return {
        "name": run["name"],
        "x": x(l0),
        "y": y(nmse),
        "across": (x(l0_low), x(l0_high)),
        "along": (y(nmse_low), y(nmse_high)),
        "words": f"{run['name']}: L0 {short(l0)}, NMSE {short(nmse)} [{short(nmse_low)}, {short(nmse_high)}]",
    }
