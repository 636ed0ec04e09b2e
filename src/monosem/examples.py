"""Examples of a feature: its strongest contexts, and samples from evenly spaced intervals of activation (section I).

Whatever shows features (browser, rating, auto-interpretation) shows these. Reads codes and passages, never the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from monosem.firings import Fires
from monosem.passages import Passages, Window

TOP, INTERVALS, SAMPLES, SHOWN, MIN_FIRINGS = 20, 12, 5, 7, 20
RANDOM = 10
AROUND = 4  # tokens before and after an example, in the windows that raters see
Rule = Literal["edges", "centres"]


class Example(NamedTuple):
    """One token of the held-out text: its document, its position there, and the feature's activation (0: silent)."""

    doc: int
    pos: int
    value: float


@dataclass(frozen=True)
class Examples:
    """What is shown of a feature.

    peak: the largest activation M, in normalised units with the decoder norm folded in; count: tokens it fires on.
    top: the strongest, at most one a document. intervals: samples of each, from the strongest interval on, from other
    documents than those of `top` as far as there are enough, and never a window that overlaps one of `top`. shares: of
    all firings, by interval; missing: how many samples each lacks. random: tokens drawn whatever the activation.
    """

    feature: int
    peak: float
    count: int
    top: list[Example]
    intervals: list[list[Example]]
    shares: list[float]
    random: list[Example]
    missing: list[int]


def interval_of(value: np.ndarray, peak: float, n: int = INTERVALS, rule: Rule = "edges") -> np.ndarray:
    """Return the interval 0 to n-1 of activations `value` [k] > 0 (0: the strongest), int64 [k].

    edges: floor(n (1 - a/M)), at most n-1. centres: nearest of M (n-i)/n, ties to the smaller i (section I).
    """
    scaled = np.round(n * np.asarray(value, dtype=np.float64) / peak, 6)  # float32: an edge is an edge within rounding
    found = np.floor(n - scaled) if rule == "edges" else n - np.floor(scaled + 0.5)
    return np.clip(found, 0, n - 1).astype(np.int64)


def examples_of(
    feature: int, fires: Fires, passages: Passages, *, seed: int = 0, rule: Rule = "edges", per_document: int = 0
) -> Examples:
    """Return the examples of a feature; the same for the same arguments.

    per_document: at most so many measured tokens of each document are looked at, chosen without regard to activations
    (the source takes 10 of each on 100 M tokens); 0: all.
    """
    rng = np.random.default_rng([seed, feature])
    doc, pos = _looked_at(passages, per_document, seed if per_document else 0)
    seen = fires
    if per_document:
        here = np.isin(_key(fires.doc, fires.pos), _key(doc, pos))
        seen = Fires(fires.doc[here], fires.pos[here], fires.value[here])
    drawn = np.sort(rng.choice(len(doc), min(RANDOM, len(doc)), replace=False))
    values = activations_at(fires, doc[drawn], pos[drawn])
    random = [Example(int(d), int(p), float(v)) for d, p, v in zip(doc[drawn], pos[drawn], values, strict=True)]
    if not len(seen.value):
        return Examples(feature, 0.0, 0, [], [[]] * INTERVALS, [0.0] * INTERVALS, random, [SAMPLES] * INTERVALS)
    top = _top(seen)
    peak = float(seen.value.max())
    interval = interval_of(seen.value, peak, rule=rule)
    elsewhere, apart = _places(seen, top)
    samples = []
    for i in range(INTERVALS):
        chosen = np.zeros(0, dtype=np.int64)
        for free in (elsewhere, apart):  # few documents hold most of the strong firings of a small held-out text
            candidates = np.flatnonzero(free & (interval == i))
            more = rng.choice(candidates, min(SAMPLES - len(chosen), len(candidates)), replace=False)
            chosen = np.append(chosen, more)
        samples.append(_examples(seen, chosen[np.argsort(-seen.value[chosen], kind="stable")]))
    shares = (np.bincount(interval, minlength=INTERVALS) / len(interval)).tolist()
    missing = [SAMPLES - len(sample) for sample in samples]
    return Examples(feature, peak, len(seen.value), _examples(seen, top), samples, shares, random, missing)


def _top(fires: Fires) -> np.ndarray:
    """Return the rows of the strongest firings, one a document, so that no two windows overlap."""
    begins = np.flatnonzero(np.diff(fires.doc, prepend=-1))  # by document: no sort of what may be a million firings
    peaks = np.maximum.reduceat(fires.value, begins)
    documents = np.argsort(-peaks, kind="stable")[:TOP]  # ties: in the order of the text
    ends = np.append(begins[1:], len(fires.doc))
    return np.array([begins[d] + np.argmax(fires.value[begins[d] : ends[d]]) for d in documents])


def _places(fires: Fires, top: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which firings are in other documents than those of `top`, and which in the same ones but apart, bool."""
    by_doc = top[np.argsort(fires.doc[top])]  # one a document
    at = by_doc[np.minimum(np.searchsorted(fires.doc[by_doc], fires.doc), len(by_doc) - 1)]
    same = fires.doc[at] == fires.doc
    return ~same, same & (np.abs(fires.pos - fires.pos[at]) > 2 * AROUND)


def _examples(fires: Fires, rows: np.ndarray) -> list[Example]:
    return [Example(int(fires.doc[r]), int(fires.pos[r]), float(fires.value[r])) for r in rows]


def activations_at(fires: Fires, doc: np.ndarray, pos: np.ndarray) -> np.ndarray:
    """Return the activation at each place (`doc`, `pos` [k]), float32 [k]; 0 where the feature is silent."""
    if not len(fires.value):
        return np.zeros(len(pos), dtype=np.float32)
    wanted, known = _key(doc, pos), _key(fires.doc, fires.pos)
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[at] == wanted, fires.value[at], 0).astype(np.float32)


def shade(window: Window, fires: Fires) -> np.ndarray:
    """Return the activation of each token of a window, float32 [tokens]; 0 where the feature is silent."""
    lo, hi = np.searchsorted(fires.doc, [window.doc, window.doc + 1])
    here = Fires(fires.doc[lo:hi], fires.pos[lo:hi], fires.value[lo:hi])
    return activations_at(here, np.full(len(window.pos), window.doc), window.pos)


def _key(doc: np.ndarray, pos: np.ndarray) -> np.ndarray:
    return doc.astype(np.int64) << 32 | pos.astype(np.int64)


@lru_cache(maxsize=2)  # it takes a pass over the whole text, and every feature of a study needs the same one
def _looked_at(passages: Passages, per_document: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return document and position of the measured tokens that are looked at, int32, in the order of the text."""
    doc, pos = passages.measured_positions()
    if not per_document:
        return doc, pos
    shuffled = np.random.default_rng(seed).permutation(len(doc))
    by_doc = shuffled[np.argsort(doc[shuffled], kind="stable")]
    rank = np.arange(len(doc)) - np.searchsorted(doc[by_doc], doc[by_doc])
    keep = np.sort(by_doc[rank < per_document])
    return doc[keep], pos[keep]
