"""What an explanation is measured against: a ceiling, two rivals that need no explanation, a floor (section K.3).

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monosem.evals.autointerp.records import Preset, Split
from monosem.firings import Fires
from monosem.metrics import Array
from monosem.passages import Passages

CONTROLS = ("shuffled", "oracle", "token_mean", "chance")


def oracle(split: Split, preset: Preset) -> list[Array]:
    """Return the true activations of the scored records on the judge's scale: what a perfect simulator scores."""
    return [preset.scale(record.values, split.peak).astype(np.float64) for record in split.score]


def token_mean(split: Split, fires: Fires, passages: Passages) -> list[Array]:
    """Return for each scored token the mean activation of its id in the documents for explaining; 0 if not there.

    All measured tokens of these documents count, also those outside of the examples.
    """
    doc, _ = passages.measured_positions()
    ids = passages.token[passages.measured][np.isin(doc, split.explain_documents)]
    times = np.bincount(ids, minlength=int(passages.token.max()) + 1)
    inside = np.isin(fires.doc, split.explain_documents)
    place = fires.doc[inside].astype(np.int64) << 32 | fires.pos[inside]
    firing = passages.token[np.searchsorted(passages.place, place)]
    total = np.bincount(firing, fires.value[inside], minlength=len(times))
    mean = np.divide(total, times, out=np.zeros(len(times)), where=times > 0)
    return [mean[record.ids] for record in split.score]


def chance(split: Split, seed: int = 0) -> list[Array]:
    """Return activations drawn at random from those of the explanation examples: equally dense, knowing nothing."""
    rng = np.random.default_rng([seed, split.feature, 3])
    pool = np.concatenate([record.values[record.measured] for record in split.explain] or [np.zeros(1)])
    return [rng.choice(pool, len(record.ids)).astype(np.float64) for record in split.score]


def partners(features: Sequence[int] | np.ndarray, seed: int = 0) -> list[int | None]:
    """Return for each feature the place of another one, whose explanation it gets as a control; None for a single one.

    Each explanation is used once. Depends on the features' numbers only, never on their explanations.
    """
    n = len(features)
    if n < 2:
        return [None] * n
    order = np.random.default_rng([seed, 1]).permutation(n)
    found = np.zeros(n, dtype=np.int64)
    found[order] = np.roll(order, 1)
    return [*found.tolist()]
