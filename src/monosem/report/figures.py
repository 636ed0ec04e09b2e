"""Charts (data) as plotly figures without colours: the page's script paints them for light, dark and print."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import Any

from monosem.report.inputs import finite
from monosem.report.numbers import short
from monosem.report.palette import Style
from monosem.schema import Axis, Chart, Series

DASHES = ("solid", "dash", "dot", "dashdot")
SIZES = {"triangle-up": 12, "triangle-down": 12, "star": 12, "circle": 10, "diamond": 10}  # of equal weight
MARKERS_UP_TO = 40  # points a series; longer lines are drawn without markers, their intervals as a band


@dataclass(frozen=True)
class Place:
    """Where a series stands among those of its group, which decides its shade and dash."""

    index: int
    count: int

    @property
    def shade(self) -> float:
        """-1 (towards the paper) to 1 (towards the ink); 0 for the only series of a group."""
        return 0.0 if self.count < 2 else 2 * self.index / (self.count - 1) - 1

    @property
    def dash(self) -> str:
        """The line's dash, which repeats after four series."""
        return DASHES[self.index % len(DASHES)]


def figure(chart: Chart, styles: dict[str, Style]) -> dict[str, Any]:
    """Return {"id", "series", "traces", "layout"}; every trace carries `meta` for the script to colour it."""
    groups = [group_of(series) for series in chart.series]
    looks = [styles[group].light for group in groups]  # groups share one when the palette is used up
    traces: list[dict[str, Any]] = []
    legend = []
    for index, series in enumerate(chart.series):
        group = groups[index]
        place = Place(looks[:index].count(looks[index]), looks.count(looks[index]))
        for trace in _traces(chart, series, styles[group], place):
            trace["meta"] = {"group": group, "shade": place.shade, "series": index, **trace.get("meta", {})}
            traces.append(trace)
        dash = "solid" if chart.kind == "steps" else place.dash
        legend.append({"name": series.name, "group": group, "dash": dash, "shade": place.shade})
    return {"id": chart.id, "series": legend, "traces": traces, "layout": _layout(chart)}


def group_of(series: Series) -> str:
    """Return the name that picks the colour: the group, or the series' own name without one."""
    return series.group or series.name


def _traces(chart: Chart, series: Series, style: Style, place: Place) -> list[dict[str, Any]]:
    if chart.kind == "bars":
        bars = {"type": "bar", "x": series.x, "y": [finite(y) for y in series.y], **_hover(chart, series)}
        return [{**bars, **_error_bars(series, list(range(len(series.x))))}]
    order = list(range(len(series.x))) if series.path else _drawable(chart, series)
    points = {
        "type": "scatter",
        "x": [series.x[i] for i in order],
        "y": [finite(series.y[i]) for i in order],
        **_hover(chart, series, order),
    }
    line = {"width": 2, "dash": place.dash}
    if chart.kind == "steps":
        return [{**points, "mode": "lines", "line": {"shape": "hvh", "width": 1.75}}]
    if len(order) > MARKERS_UP_TO and chart.kind == "line":
        return [*_band(series, order), {**points, "mode": "lines", "line": {**line, "width": 1.75}}]
    points |= {
        "mode": "markers",
        "marker": {"symbol": style.symbol, "size": SIZES.get(style.symbol, 9)},
        **_error_bars(series, order),
    }
    if chart.kind == "points":
        labelled = points | _labels(chart, series, order, points) if series.labels else points
        return [{**labelled, "mode": f"lines+{labelled['mode']}", "line": line} if series.path else labelled]
    if series.join is None or any(isinstance(x, str) for x in series.x):
        return [{**points, "mode": "lines+markers", "line": line}]
    return [_line_of_means(chart, series, order, line), points]


def _labels(chart: Chart, series: Series, order: list[int], points: dict[str, Any]) -> dict[str, Any]:
    """Return what writes a word beside each point; the hover texts make room for them.

    Words stand towards the middle; outside in a square chart, whose shape they would hide, and which has room there.
    """
    words = [_escape((series.labels or [])[i]) for i in order]
    every = [x for one in chart.series for x in one.x]
    middle = (min(every) + max(every)) / 2
    right, left = ("middle right", "middle left") if chart.square else ("top left", "top right")
    sides = [right if series.x[i] > middle else left for i in order]
    hover = {"hovertext": points["text"], "hovertemplate": "%{hovertext}<extra></extra>"} if "text" in points else {}
    return {"mode": "markers+text", "text": words, "textposition": sides, "cliponaxis": False} | hover


def _drawable(chart: Chart, series: Series) -> list[int]:
    """Return the indices of the points to draw, in x order (as given where x are not numbers)."""
    order = [i for i in range(len(series.x)) if finite(series.y[i]) is not None or chart.kind == "steps"]
    if all(finite(series.x[i]) is not None for i in order):
        return sorted(order, key=lambda i: series.x[i])
    if any(isinstance(x, str) for x in series.x):
        return order
    return sorted((i for i in order if finite(series.x[i]) is not None), key=lambda i: series.x[i])


def _line_of_means(chart: Chart, series: Series, order: list[int], line: dict[str, Any]) -> dict[str, Any]:
    """Return the line through the means of the points with equal `join` keys: geometric on a logarithmic axis."""
    keys: dict[str, list[int]] = {}
    for i in order:
        keys.setdefault(str((series.join or [])[i]), []).append(i)
    means = sorted(
        (_mean([series.x[i] for i in where], chart.x.log), _mean([series.y[i] for i in where], chart.y.log))
        for where in keys.values()
    )
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [x for x, _ in means],
        "y": [y for _, y in means],
        "line": line,
        "hoverinfo": "skip",
    }


def _mean(values: list[float], log: bool) -> float:
    if log and min(values) > 0:
        mean = math.exp(sum(math.log(value) for value in values) / len(values))
    else:
        mean = sum(values) / len(values)
    # Rounding must not move the mean of equal values: an axis would zoom in on the difference.
    return min(max(mean, min(values)), max(values))


def _error_bars(series: Series, order: list[int]) -> dict[str, Any]:
    bars = {}
    for axis, values, low, high in (
        ("error_y", series.y, series.y_low, series.y_high),
        ("error_x", series.x, series.x_low, series.x_high),
    ):
        if low is None or high is None:
            continue
        up = [_gap(high[i], values[i]) for i in order]
        down = [_gap(values[i], low[i]) for i in order]
        bars[axis] = {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "width": 0}
        bars[axis]["thickness"] = 1.5
    return bars


def _gap(high: Any, low: Any) -> float:
    upper, lower = finite(high), finite(low)
    return 0.0 if upper is None or lower is None else max(0.0, upper - lower)


def _band(series: Series, order: list[int]) -> list[dict[str, Any]]:
    if series.y_low is None or series.y_high is None:
        return []
    low, high = series.y_low, series.y_high
    order = [i for i in order if finite(low[i]) is not None and finite(high[i]) is not None]
    outline = {
        "x": [series.x[i] for i in order] + [series.x[i] for i in reversed(order)],
        "y": [high[i] for i in order] + [low[i] for i in reversed(order)],
    }
    return [
        {"type": "scatter", "mode": "lines", "line": {"width": 0}, "fill": "toself", "hoverinfo": "skip"}
        | outline
        | {"meta": {"band": True}}
    ]


def _hover(chart: Chart, series: Series, order: list[int] | None = None) -> dict[str, Any]:
    """Return hover texts. Long lines without texts of their own get one template instead of a text a point."""
    order = list(range(len(series.x))) if order is None else order
    name = f"<b>{_escape(series.name)}</b><br>"
    x, y = _escape(chart.x.label or "x"), _escape(chart.y.label or "y")
    if series.hover is None and len(order) > MARKERS_UP_TO:
        return {"hovertemplate": f"{name}{x}: %{{x:.4~g}}<br>{y}: %{{y:.4~g}}<extra></extra>"}
    texts = []
    for i in order:
        text = f"{name}{x}: {_with_interval(series.x, series.x_low, series.x_high, i)}"
        text += f"<br>{y}: {_with_interval(series.y, series.y_low, series.y_high, i)}"
        if series.hover is not None:
            text += f"<br>{_escape(series.hover[i])}"
        texts.append(text)
    hover = {"text": texts, "hovertemplate": "%{text}<extra></extra>"}
    return hover | {"textposition": "none"} if chart.kind == "bars" else hover


def _with_interval(values: list[Any], lows: list[Any] | None, highs: list[Any] | None, i: int) -> str:
    text = _escape(short(values[i]))
    if lows is None or highs is None or finite(lows[i]) is None or finite(highs[i]) is None:
        return text
    return f"{text} [{short(lows[i])}, {short(highs[i])}]"


def _escape(text: Any) -> str:
    """Return text for plotly's pseudo-HTML: no tags, no template fields; line breaks kept."""
    return html.escape(str(text), quote=False).replace("%", "&#37;").replace("\n", "<br>")


def _layout(chart: Chart) -> dict[str, Any]:
    layout: dict[str, Any] = {
        "xaxis": _axis(chart.x, [x for series in chart.series for x in series.x]),
        "yaxis": _axis(chart.y, [y for series in chart.series for y in series.y]),
        "hovermode": "closest",
        "barmode": "group",
        "shapes": [],
    }
    if chart.square:
        layout["yaxis"]["scaleanchor"] = "x"
    for axis, name in ((chart.x, "x"), (chart.y, "y")):
        if finite(axis.reference) is not None:
            other = "y" if name == "x" else "x"
            layout["shapes"].append(
                {"type": "line", "layer": "below", f"{name}0": axis.reference, f"{name}1": axis.reference}
                | {
                    f"{other}ref": "paper",
                    f"{other}0": 0,
                    f"{other}1": 1,
                    "line": {"width": 1, "dash": "dash"},
                }
            )
    return layout


def _axis(axis: Axis, values: list[Any]) -> dict[str, Any]:
    title = _escape(axis.label) + (f", {_escape(axis.unit)}" if axis.unit else "")
    result: dict[str, Any] = {"title": {"text": title}, "automargin": True}
    if not axis.log:
        return result
    positive = [number for number in map(finite, values) if number is not None and number > 0]
    decades = math.log10(max(positive) / min(positive)) if positive else 1
    if decades > 3:
        return result | {"type": "log", "exponentformat": "power", "dtick": 1 if decades <= 8 else 2}
    ticks = _log_ticks(min(positive), max(positive)) if positive else []
    if not ticks:  # too narrow for round numbers: there a linear axis is as straight, and labels itself better
        return result | ({"range": [positive[0] / 1.5, positive[0] * 1.5]} if len(set(positive)) == 1 else {})
    return result | {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers that cover low to high (and a decade around it, for zooming out) without crowding.

    Empty when the range is too narrow for any.
    """
    first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)):
        ticks = [float(f"{step}e{power}") for power in range(first, last) for step in steps]
        if sum(low <= tick <= high for tick in ticks) >= 4:
            return ticks
    return []
