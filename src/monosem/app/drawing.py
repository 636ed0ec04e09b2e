"""The histogram of a feature's activations, as SVG without scripts or styles of its own."""

from __future__ import annotations

import math

import numpy as np
from markupsafe import Markup

from monosem.examples import INTERVALS
from monosem.report.numbers import short

WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM, TOP = 420, 170, 40, 18, 34, 8
BINS = 4 * INTERVALS


def histogram(values: np.ndarray, peak: float) -> tuple[np.ndarray, np.ndarray]:
    """Return (counts [48], edges [49]) of activations in (0, peak]: four bins an interval of section I."""
    return np.histogram(np.minimum(values, peak), bins=BINS, range=(0.0, peak))


def histogram_svg(values: np.ndarray, peak: float) -> Markup:
    """Return the histogram with a logarithmic axis of counts; a bin with one token is as high as the axis' first step.

    values: activations > 0 [n].
    """
    counts, edges = histogram(values, peak)
    top = max(1.0, math.log10(counts.max()) if counts.max() else 1.0)
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - BOTTOM - TOP
    unit = height / (top + 0.35)  # a third of a decade for a single token
    parts = []
    for decade in range(math.floor(top) + 1):
        y = TOP + height - unit * (decade + 0.35)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 6}" y="{y + 4:.1f}">{short(10**decade)}</text>')
    for i, count in enumerate(counts.tolist()):
        if count:
            high = unit * (math.log10(count) + 0.35)
            x, w = LEFT + width * i / BINS, width / BINS - 1
            tip = f"{short(float(f'{edges[i]:.3g}'))} to {short(float(f'{edges[i + 1]:.3g}'))}: {short(count)}"
            box = f'x="{x:.1f}" y="{TOP + height - high:.1f}" width="{w:.1f}" height="{high:.1f}"'
            parts.append(f'<rect class="column" data-tip="{tip}" {box}/>')
    base = TOP + height
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    for i in range(0, INTERVALS + 1, 3):
        x = LEFT + width * i / INTERVALS
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}"/>')
        label = short(float(f"{peak * i / INTERVALS:.3g}"))
        parts.append(f'<text class="tick mid" x="{x:.1f}" y="{base + 16}">{label}</text>')
    parts.append(
        f'<text class="tick mid" x="{LEFT + width / 2:.0f}" y="{HEIGHT - 3}">activation, normalised units</text>'
    )
    label = f"Histogram of {len(values)} activations from 0 to {peak:.3g}; tokens on a logarithmic axis"
    return Markup(
        f'<svg class="histogram" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )
