"""Examples of a feature for explaining it and, from other documents, for scoring the explanation (sections K.1, K.3).

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monosem.examples import INTERVALS, MIN_FIRINGS, activations_at, interval_of
from monosem.firings import Fires, Firings
from monosem.passages import Passages

TOP, RANDOM, ELSEWHERE = "top", "random", "elsewhere"
INTERVAL_NAMES = tuple(f"interval {i}" for i in range(INTERVALS))
GROUPS = (TOP, *INTERVAL_NAMES, RANDOM, ELSEWHERE)
BEFORE = 16  # tokens before a window that a simulator without a language model may look at
TRIES = 8  # random places looked at for each that is wanted; more would only matter for documents nearly used up
PresetName = Literal["clerp", "oai"]
Rounding = Literal["floor", "nearest"]


class Quota(NamedTuple):
    """How many examples: the strongest, of each interval, of any tokens, of the strongest's tokens elsewhere."""

    top: int
    interval: int
    random: int
    elsewhere: int

    def wanted(self) -> dict[str, int]:
        """Return the number of each group in GROUPS that has any."""
        sizes = {TOP: self.top, **dict.fromkeys(INTERVAL_NAMES, self.interval)}
        return {g: n for g, n in {**sizes, RANDOM: self.random, ELSEWHERE: self.elsewhere}.items() if n}


@dataclass(frozen=True)
class Preset:
    """A sampling preset. width: tokens of a window; levels, rule: the scale on which judges see activations."""

    explain: Quota
    score: Quota
    width: int
    levels: int
    rule: Rounding

    def scale(self, values: np.ndarray, peak: float) -> np.ndarray:
        """Return activations as a judge sees them, int64."""
        return discretise(values, peak, self.levels, self.rule)


def discretise(values: ArrayLike, peak: float, levels: int = 10, rule: Rounding = "floor") -> NDArray[np.int64]:
    """Return activations on a scale of 0 to `levels`, int64: levels * a / peak rounded, and clipped to the scale.

    floor with 10 levels: OpenAI's; nearest (halves up) with 9: preset `clerp`. All 0 where the peak is 0.
    """
    a = np.asarray(values, dtype=np.float64)
    if peak <= 0:
        return np.zeros(a.shape, dtype=np.int64)
    scaled = np.round(levels * np.maximum(a, 0) / peak, 6)  # float32: .2 of 2 is an edge, within rounding
    return np.clip(np.floor(scaled + (0.5 if rule == "nearest" else 0)), 0, levels).astype(np.int64)


PRESETS: dict[str, Preset] = {  # clerp: 49 and 60 examples, after Towards Monosemanticity
    "clerp": Preset(Quota(10, 2, 5, 10), Quota(6, 2, 10, 20), 9, 9, "nearest"),
    "oai": Preset(Quota(5, 0, 0, 0), Quota(5, 0, 5, 0), 64, 10, "floor"),
}


@dataclass(frozen=True, eq=False)
class Record:
    """A window of the held-out text and a feature's activations in it.

    tokens: their texts [n]; ids: int32 [n]; values: float32 [n], 0 where silent; doc: its document; group: one of
    GROUPS; pos: int32 [n], positions in the document; measured: bool [n], only these are scored; at: index of the
    token for which it was drawn; before: ids of up to BEFORE tokens before it; starts: whether the text that the model
    saw of this document begins with `before`.
    """

    tokens: list[str]
    ids: np.ndarray
    values: np.ndarray
    doc: int
    group: str
    pos: np.ndarray
    measured: np.ndarray
    at: int
    before: np.ndarray
    starts: bool


@dataclass(frozen=True, eq=False)
class Split:
    """A feature's examples, those for scoring from other documents than those for explaining.

    peak: the largest activation in `explain` (0 if it has none), the scale of everything that a judge sees.
    explain_documents, score_documents: all documents of either side, sorted. explain_missing, score_missing: how many
    examples a group lacks, by name; groups that are full are left out.
    Raises ValueError if the two sides share a document.
    """

    feature: int
    explain: list[Record]
    score: list[Record]
    peak: float
    explain_documents: np.ndarray = field(repr=False)
    score_documents: np.ndarray = field(repr=False)
    explain_missing: dict[str, int]
    score_missing: dict[str, int]

    def __post_init__(self) -> None:
        """Check that the sides are apart."""
        sides = [set(side.tolist()) for side in (self.explain_documents, self.score_documents)]
        shown, scored = ({record.doc for record in records} for records in (self.explain, self.score))
        if sides[0] & sides[1] or not (shown <= sides[0] and scored <= sides[1]):
            raise ValueError(f"feature {self.feature}: documents for explaining and scoring are not disjoint")


def draw_features(firings: Firings, n: int, seed: int = 0) -> np.ndarray:
    """Return up to `n` features of a run, int64, ascending: uniform draws among those that can be split.

    These fire at least MIN_FIRINGS times, in at least two documents.
    """
    often = np.flatnonzero(firings.counts >= MIN_FIRINGS)
    order = np.random.default_rng([seed, 0]).permutation(often)
    chosen: list[int] = []
    for start in range(0, len(order), max(1, n)):
        block = order[start : start + max(1, n)].tolist()
        split = {feature for feature, fires in firings.each(block) if fires.doc[0] != fires.doc[-1]}
        chosen += [feature for feature in block if feature in split]
        if len(chosen) >= n:
            break
    return np.sort(np.array(chosen[:n], dtype=np.int64))


def sample_records(feature: int, fires: Fires, passages: Passages, preset: str = "clerp", seed: int = 0) -> Split:
    """Return the examples of a feature for explaining and for scoring; the same for the same arguments.

    Documents are dealt to the two sides in pairs of about equal strength. Windows of one side don't overlap, and no
    two of either side have the same text. Raises ValueError for a feature that fires in fewer than two documents.
    """
    rng = np.random.default_rng([seed, feature])
    text = _indexed(passages)
    mine, theirs = _deal(fires, text.documents, rng)
    rules = PRESETS[preset]
    seen: set[bytes] = set()
    peak = float(fires.value.max())
    explain = _Side(passages, text, fires, mine, rules.width, peak, rng, seen)
    shown, shown_missing = explain.draw(rules.explain, None)
    tokens = np.unique([record.ids[record.at] for record in shown if record.group == TOP])
    score = _Side(passages, text, fires, theirs, rules.width, peak, rng, seen)
    scored, scored_missing = score.draw(rules.score, tokens)
    scale = max((float(record.values.max()) for record in shown), default=0.0)
    return Split(feature, shown, scored, scale, mine, theirs, shown_missing, scored_missing)


class _Indexed(NamedTuple):
    """The measured tokens [t]: their places, and their row numbers sorted by token id."""

    doc: np.ndarray
    pos: np.ndarray
    documents: np.ndarray
    sorted_ids: np.ndarray
    by_id: np.ndarray


@lru_cache(maxsize=1)  # every feature of a study needs the same one
def _indexed(passages: Passages) -> _Indexed:
    doc, pos = passages.measured_positions()
    ids = passages.token[passages.measured]
    by_id = np.argsort(ids, kind="stable")
    return _Indexed(doc, pos, np.unique(doc), ids[by_id], by_id)


def _deal(fires: Fires, documents: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return two halves of the documents: sorted by their strongest activation, one of each two goes to each side."""
    firing, first = np.unique(fires.doc, return_index=True)
    if len(firing) < 2:
        raise ValueError("a feature that fires in fewer than two documents can't be split")
    strongest = np.maximum.reduceat(fires.value, first)
    silent = rng.permutation(np.setdiff1d(documents, firing))
    order = np.concatenate([firing[np.argsort(-strongest, kind="stable")], silent])
    flips = np.repeat(rng.random((len(order) + 1) // 2) < 0.5, 2)[: len(order)]
    one = flips ^ (np.arange(len(order)) % 2 == 0)
    return np.sort(order[one]), np.sort(order[~one])


class _Side:
    """Draws the examples of one side, without overlaps and repeats."""

    def __init__(
        self,
        passages: Passages,
        text: _Indexed,
        fires: Fires,
        documents: np.ndarray,
        width: int,
        peak: float,
        rng: np.random.Generator,
        seen: set[bytes],
    ):
        here = np.isin(fires.doc, documents)
        self.fires = Fires(fires.doc[here], fires.pos[here], fires.value[here])
        self.passages, self.text, self.documents, self.width = passages, text, documents, width
        self.peak, self.rng, self.seen = peak, rng, seen
        self.taken: dict[int, list[tuple[int, int]]] = {}
        self.records: list[Record] = []
        self.missing: dict[str, int] = {}

    def draw(self, quota: Quota, tokens: np.ndarray | None) -> tuple[list[Record], dict[str, int]]:
        """Return the examples and what is missing. tokens: ids that `elsewhere` looks for; None: those of its top."""
        wanted = quota.wanted()
        self._take(TOP, wanted.pop(TOP, 0), self._strongest())
        top = {record.doc for record in self.records}
        for group in INTERVAL_NAMES:
            self._take(group, wanted.get(group, 0), self._of_interval(INTERVAL_NAMES.index(group), top))
        self._take(RANDOM, wanted.get(RANDOM, 0), self._anywhere(wanted.get(RANDOM, 0)))
        if tokens is None:
            tokens = np.unique([record.ids[record.at] for record in self.records if record.group == TOP])
        self._take(ELSEWHERE, wanted.get(ELSEWHERE, 0), self._with_token(tokens))
        return self.records, self.missing

    def _take(self, group: str, n: int, places: Iterator[tuple[int, int]]) -> None:
        """Add the first n places whose windows neither overlap others nor repeat a text."""
        left = n
        while left:
            place = next(places, None)
            if place is None:
                self.missing[group] = left
                return
            left -= self._add(group, *place)

    def _add(self, group: str, doc: int, pos: int) -> bool:
        lead = self.width // 2 if self.width <= 2 * BEFORE else int(self.rng.integers(self.width))
        window = self.passages.window(doc, pos, lead, self.width - 1 - lead)
        span = int(window.pos[0]), int(window.pos[-1])
        key = window.token.tobytes()
        if key in self.seen or any(a <= span[1] and span[0] <= b for a, b in self.taken.get(doc, [])):
            return False
        self.seen.add(key)
        self.taken.setdefault(doc, []).append(span)
        lead_in = self.passages.window(doc, span[0], BEFORE + 1, 0)
        before = lead_in.token[: lead_in.at][-BEFORE:]
        values = activations_at(self.fires, np.full(len(window.pos), doc), window.pos)
        self.records.append(
            Record(
                window.text,
                window.token,
                values,
                doc,
                group,
                window.pos,
                window.measured,
                window.at,
                before,
                lead_in.at <= BEFORE,
            )
        )
        return True

    def _strongest(self) -> Iterator[tuple[int, int]]:
        """Yield firings by falling activation, one a document."""
        fires, used = self.fires, set()
        for row in np.argsort(-fires.value, kind="stable").tolist():
            if (doc := int(fires.doc[row])) not in used:
                used.add(doc)
                yield doc, int(fires.pos[row])

    def _of_interval(self, interval: int, top: set[int]) -> Iterator[tuple[int, int]]:
        """Yield firings of an interval of activation in random order, those in documents of the strongest last."""
        fires = self.fires
        rows = self.rng.permutation(np.flatnonzero(interval_of(fires.value, self.peak) == interval))
        late = np.isin(fires.doc[rows], list(top))
        for row in np.concatenate([rows[~late], rows[late]]).tolist():
            yield int(fires.doc[row]), int(fires.pos[row])

    def _anywhere(self, n: int) -> Iterator[tuple[int, int]]:
        """Yield measured tokens of this side, whatever the activation."""
        rows = self.rng.integers(len(self.text.doc), size=2 * TRIES * n)
        yield from self._places(rows)

    def _with_token(self, tokens: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield occurrences of the given token ids in random order, whatever the activation, the ids in turn."""
        queues = []
        for token in self.rng.permutation(tokens).tolist():
            low, high = np.searchsorted(self.text.sorted_ids, [token, token + 1])
            queues.append(self._places(self.rng.permutation(self.text.by_id[low:high])))
        while queues:
            for queue in list(queues):
                place = next(queue, None)
                if place is None:
                    queues.remove(queue)
                else:
                    yield place

    def _places(self, rows: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield the places of these measured tokens as far as they are on this side."""
        doc = self.text.doc[rows]
        at = np.minimum(np.searchsorted(self.documents, doc), len(self.documents) - 1)
        for row in rows[self.documents[at] == doc].tolist():
            yield int(self.text.doc[row]), int(self.text.pos[row])
