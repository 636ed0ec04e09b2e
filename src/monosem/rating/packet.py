"""What raters see of a drawn feature: its TOP set and the first intervals, without anything that names it.

Imports no torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from monosem.examples import SAMPLES, SHOWN, TOP, Example, examples_of, interval_of, shade
from monosem.firings import Fires
from monosem.passages import Passages

STEPS = 10  # shades of a token: tenths of the feature's largest activation
Slots = list[tuple[float, dict[str, Any]]]  # activations and windows
GROUPS = ("Strongest examples", *(f"Interval {i}" for i in range(SHOWN)))


def view_of(feature: int, fires: Fires, passages: Passages, seed: int) -> list[Slots]:
    """Return one feature's activations and windows by group, TOP and intervals 0 to 6, in order of preference.

    A window is {"tokens": texts, "shades": 0 to STEPS for each, "at": index of the example's token}.
    """
    examples = examples_of(feature, fires, passages, seed=seed)
    rng = np.random.default_rng([seed, feature, 1])
    interval = interval_of(fires.value, examples.peak)
    strongest = np.argsort(-fires.value, kind="stable")
    groups = [_filled(examples.top, strongest, fires, examples.top, TOP)]
    for i in range(SHOWN):
        found = [examples.intervals[i][k] for k in rng.permutation(len(examples.intervals[i]))]
        rows = rng.permutation(np.flatnonzero(interval == i))
        groups.append(_filled(found, rows, fires, examples.top, SAMPLES))
    return [[(e.value, _window(e, fires, passages, examples.peak)) for e in group] for group in groups]


def _filled(found: list[Example], rows: np.ndarray, fires: Fires, top: list[Example], size: int) -> list[Example]:
    """Return `found`, up to `size` filled with other firings in the order of `rows`, those of the TOP set last.

    Short texts have few documents; without this most intervals would be empty there, and some TOP sets short.
    """
    if len(found) == size:
        return found
    known = {(e.doc, e.pos) for e in found}
    shown = {(e.doc, e.pos) for e in top}
    rest = [Example(int(fires.doc[r]), int(fires.pos[r]), float(fires.value[r])) for r in rows]
    rest = [e for e in rest if (e.doc, e.pos) not in known]
    rest.sort(key=lambda e: (e.doc, e.pos) in shown)
    return [*found, *rest][:size]


def _window(example: Example, fires: Fires, passages: Passages, peak: float) -> dict[str, Any]:
    window = passages.window(example.doc, example.pos)
    shades = np.rint(STEPS * np.clip(shade(window, fires) / peak, 0, 1)).astype(int)
    return {"tokens": window.text, "shades": shades.tolist(), "at": window.at}


def lay_out(views: list[list[Slots]]) -> tuple[list[str], list[list[list[dict[str, Any]]]], list[str]]:
    """Return group names and windows in one layout for all items, and the names of the groups that were left out.

    A group is cut to the number of examples that every item has, so that no count tells items apart; one that is empty
    in any item is left out of all. What stays is in order of activation.
    """
    sizes = [min(len(view[g]) for view in views) for g in range(len(GROUPS))]
    kept = [g for g, size in enumerate(sizes) if size]
    laid = [
        [[window for _, window in sorted(view[g][: sizes[g]], key=lambda slot: -slot[0])] for g in kept]
        for view in views
    ]
    return [GROUPS[g] for g in kept], laid, [name for g, name in enumerate(GROUPS) if g not in kept]
