"""How each variant looks: colours for light and dark, and a marker symbol, the same in every chart and table.

The colours keep apart for the common colour-vision deficiencies and reach 3:1 on their background; the symbol says the
same without colour. The baseline is neutral ink, so that colour means "something else than standard".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """The look of one group of series."""

    label: str
    light: str
    dark: str
    symbol: str


FIXED = {
    "standard": Style("Standard", "#4a525c", "#bac3cc", "circle"),
    "tanh": Style("Tanh", "#c2500a", "#f2a154", "diamond"),
    "gated": Style("Gated", "#00835e", "#41c99b", "triangle-up"),
    "topk": Style("TopK", "#0a66b0", "#64b5f6", "square"),
}
OTHERS = (
    ("#a43c86", "#e38fca", "cross"),
    ("#7a6400", "#d9c24e", "pentagon"),
    ("#5a45b8", "#a99bf5", "triangle-down"),
    ("#b3263b", "#f28b94", "x"),
    ("#14747e", "#5fd0d8", "hexagon"),
    ("#6b4a2b", "#cfa67e", "star"),
)
LABELS = {"jumprelu": "JumpReLU", "batchtopk": "BatchTopK", "matryoshka": "Matryoshka", "": "All"}

# Outlines in a 16 x 16 box, so that tables and legends show the marker of the charts.
MARKER_PATHS = {
    "circle": "M8 2.5a5.5 5.5 0 1 0 0 11a5.5 5.5 0 1 0 0-11z",
    "diamond": "M8 1.2L14.8 8L8 14.8L1.2 8z",
    "triangle-up": "M8 2L14.6 13.4H1.4z",
    "square": "M3 3h10v10H3z",
    "cross": "M6 2h4v4h4v4h-4v4H6v-4H2V6h4z",
    "pentagon": "M8 1.6L14.4 6.2L12 13.8H4L1.6 6.2z",
    "triangle-down": "M8 14L14.6 2.6H1.4z",
    "x": "M4.5 2L8 5.5L11.5 2L14 4.5L10.5 8L14 11.5L11.5 14L8 10.5L4.5 14L2 11.5L5.5 8L2 4.5z",
    "hexagon": "M8 1.4L13.8 4.7V11.3L8 14.6L2.2 11.3V4.7z",
    "star": "M8 1L9.9 5.9L15 6.2L11 9.5L12.3 14.6L8 11.8L3.7 14.6L5 9.5L1 6.2L6.1 5.9z",
}


def styles_for(groups: Iterable[str]) -> dict[str, Style]:
    """Return a style a group: fixed for the four first variants, chosen by the name's hash for all others.

    Two other groups of one report share a look only when the palette is used up.
    """
    styles: dict[str, Style] = {}
    taken: set[int] = set()
    for group in sorted(set(groups)):
        if group in FIXED:
            styles[group] = FIXED[group]
            continue
        slot = int(hashlib.sha256(group.encode()).hexdigest(), 16) % len(OTHERS)
        while slot in taken and len(taken) < len(OTHERS):
            slot = (slot + 1) % len(OTHERS)
        taken.add(slot)
        light, dark, symbol = OTHERS[slot]
        styles[group] = Style(LABELS.get(group, group), light, dark, symbol)
    return styles
