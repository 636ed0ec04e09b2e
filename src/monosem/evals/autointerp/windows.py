"""The held-out text cut into windows, with the true activation of a feature in each. Imports no torch.

Windows never overlap and hold measured tokens only, so that whether a feature is silent in one is known, not assumed.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from monosem.examples import shade
from monosem.firings import Fires
from monosem.passages import Passages, Window

LENGTHS = (32, 24, 16, 12, 8, 6, 4)  # tokens; few lengths, so that the text is cut a few times only
GROUPS = 10  # of activating windows by rank, from each of which as many are drawn (section K.4)


class Windows(NamedTuple):
    """Windows [n]: start and stop in the positions of the passages, and the document, each int64 [n]."""

    start: np.ndarray
    stop: np.ndarray
    doc: np.ndarray

    def take(self, which: np.ndarray) -> Windows:
        """Return some of them, in that order."""
        return Windows(self.start[which], self.stop[which], self.doc[which])


def window_length(density: float) -> int | None:
    """Return how many tokens a window has for a feature of this density (0 to 1); None: windows don't serve.

    The longest of LENGTHS with length <= ln .5 / ln(1 - density): of independent tokens, half of such windows or more
    are silent. A denser feature than 1 - .5^(1/4) = .159 has hardly any silent window, so single tokens are asked for.
    """
    if density <= 0:
        return LENGTHS[0]
    longest = math.log(0.5) / math.log1p(-density) if density < 1 else 0.0
    return next((length for length in LENGTHS if length <= longest), None)


@lru_cache(maxsize=16)
def cut(passages: Passages, length: int) -> Windows:
    """Cut the measured tokens into windows of at most `length` tokens.

    A stretch of neighbouring measured tokens of one document and packed row falls into as few windows as possible, of
    equal length within one token; a stretch shorter than half a window is left out.
    """
    measured = np.flatnonzero(passages.measured)
    begins = np.diff(measured, prepend=-2) != 1
    begins |= np.isin(measured, passages.bounds)
    first = measured[begins]
    sizes = np.diff(np.flatnonzero(begins), append=len(measured))
    kept = 2 * sizes >= length
    first, sizes = first[kept], sizes[kept]
    pieces = -(-sizes // length)
    number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    first, sizes, pieces = (np.repeat(values, pieces) for values in (first, sizes, pieces))
    start, stop = first + number * sizes // pieces, first + (number + 1) * sizes // pieces
    return Windows(start, stop, passages.place[start] >> 32)


def elsewhere(windows: Windows, documents: Collection[int]) -> Windows:
    """Return the windows of other documents than these, which the explanation was made from."""
    kept = windows.take(np.flatnonzero(~np.isin(windows.doc, list(documents))))
    assert not set(kept.doc.tolist()) & set(documents), "a scored window is of a document that was explained from"
    return kept


def peaks(windows: Windows, fires: Fires, passages: Passages) -> np.ndarray:
    """Return the largest activation in each window, float32 [n]; 0 where the feature is silent."""
    found = np.zeros(len(windows.start), dtype=np.float32)
    if not len(found):
        return found
    at = np.searchsorted(passages.place, fires.doc.astype(np.int64) << 32 | fires.pos)
    window = np.searchsorted(windows.start, at, side="right") - 1
    inside = (window >= 0) & (at < windows.stop[window])
    np.maximum.at(found, window[inside], fires.value[inside])
    return found


def look(passages: Passages, start: int, stop: int, fires: Fires) -> tuple[Window, np.ndarray]:
    """Return the positions `start` to `stop` as a window, and the activation of each of its tokens, float32."""
    place = int(passages.place[start])
    window = passages.window(place >> 32, place & 0xFFFFFFFF, 0, int(stop - start) - 1)
    return window, shade(window, fires)


def from_ranks(value: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Return `number` indices, about equally many of each tenth of `value` [n] by rank; all where there are fewer."""
    order = np.argsort(-value, kind="stable")
    if len(order) <= number:
        return order
    shares = np.diff(np.linspace(0, number, GROUPS + 1).round().astype(int))
    parts = np.array_split(order, GROUPS)
    drawn = [rng.choice(p, min(len(p), n), replace=False) for p, n in zip(parts, shares, strict=True)]
    chosen = np.concatenate(drawn)
    rest = np.setdiff1d(order, chosen)
    return np.append(chosen, rng.choice(rest, number - len(chosen), replace=False))


def some(indices: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Return at most `number` of the indices, drawn uniformly."""
    return rng.choice(indices, min(number, len(indices)), replace=False)
