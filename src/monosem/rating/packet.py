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
Slots = list[dict[str, Any] | None]
GROUPS = ("Strongest examples", *(f"Interval {i}" for i in range(SHOWN)))


def view_of(feature: int, fires: Fires, passages: Passages, seed: int) -> list[Slots]:
    """Return one feature's windows by group: TOP, then intervals 0 to 6; None where it has no example.

    A window is {"tokens": texts, "shades": 0 to STEPS for each, "at": index of the example's token}.
    """
    examples = examples_of(feature, fires, passages, seed=seed)
    rng = np.random.default_rng([seed, feature, 1])
    interval = interval_of(fires.value, examples.peak)
    groups = [(examples.top, TOP)]
    for i in range(SHOWN):
        groups.append(
            (_filled(examples.intervals[i], np.flatnonzero(interval == i), fires, examples.top, rng), SAMPLES)
        )
    return [[_window(e, fires, passages, examples.peak) for e in g] + [None] * (size - len(g)) for g, size in groups]


def _filled(
    found: list[Example], rows: np.ndarray, fires: Fires, top: list[Example], rng: np.random.Generator
) -> list[Example]:
    """Fill an interval up to SAMPLES from documents of the TOP set, with tokens of that set last.

    Short texts have few other documents; without this most intervals would be empty there.
    """
    known = {(e.doc, e.pos) for e in found}
    shown = {(e.doc, e.pos) for e in top}
    rest = [Example(int(fires.doc[r]), int(fires.pos[r]), float(fires.value[r])) for r in rng.permutation(rows)]
    rest = [e for e in rest if (e.doc, e.pos) not in known]
    rest.sort(key=lambda e: (e.doc, e.pos) in shown)
    return sorted([*found, *rest][:SAMPLES], key=lambda e: -e.value)


def _window(example: Example, fires: Fires, passages: Passages, peak: float) -> dict[str, Any]:
    window = passages.window(example.doc, example.pos)
    shades = np.rint(STEPS * np.clip(shade(window, fires) / peak, 0, 1)).astype(int)
    return {"tokens": window.text, "shades": shades.tolist(), "at": window.at}


def lay_out(views: list[list[Slots]], drop: bool) -> tuple[list[str], list[list[Slots]], list[str]]:
    """Return group names and views in one layout for all items, and the names of the groups that were left out.

    Slots that no item fills are cut off; what else is missing stays as a placeholder (None). drop: groups that are
    empty in any item are left out of all.
    """
    sizes = [[sum(slot is not None for slot in view[g]) for view in views] for g in range(len(GROUPS))]
    kept = [g for g, counts in enumerate(sizes) if max(counts) and (min(counts) or not drop)]
    laid = [[view[g][: max(sizes[g])] for g in kept] for view in views]
    return [GROUPS[g] for g in kept], laid, [name for g, name in enumerate(GROUPS) if g not in kept]
