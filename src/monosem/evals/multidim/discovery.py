"""A run's clusters of features, judged on the held-out tokens on which they fire. Imports no torch.

Source: Engels et al. 2024 (arXiv 2405.14860), section 4.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from monosem.evals.multidim.planes import ClusterScore, Planes, planes, rank, score
from monosem.evals.multidim.table import as_table
from monosem.evals.multidim.tasks import DAYS, MONTHS, NUMBERS
from monosem.firings import Firings
from monosem.passages import Passages
from monosem.types import Estimate

BITS, MIXTURE = 0.25, 0.4  # irreducible: at least so separable above chance, at most such a mixture (ours)
GALLERY = 12  # clusters whose points are kept
POINTS = 400  # of each
NAMED = 8  # tokens with a colour of their own
AROUND = 8  # tokens on either side of a point
FOLDS = 10  # of documents, for intervals
LISTED = 6  # tokens that a cluster is described by
WORDS = frozenset((*DAYS, *MONTHS))
COUNTS = frozenset(number.lower() for number in NUMBERS)


@dataclass(frozen=True, eq=False)
class Cluster:
    """A cluster with its planes. features: int64 [c]; place: doc * 2^32 + pos of its planes' tokens, int64 [n]."""

    features: np.ndarray
    place: np.ndarray
    planes: Planes
    score: ClusterScore

    @property
    def best(self) -> int:
        """The number of its most irreducible plane, from 0."""
        return int(np.argmax([one.irreducible for one in self.score.planes]))


def judged(
    firings: Firings,
    rows: np.ndarray,
    clusters: Sequence[np.ndarray],
    fewest: int,
    bins: int,
    seed: int,
    progress: Callable[[int], object] = lambda _n: None,
) -> list[Cluster]:
    """Return the clusters that fire on at least `fewest` tokens, the most irreducible first.

    rows: the decoder's, of length 1, [d_sae, d]. bins: of the separability index.
    """
    found = []
    for features in clusters:
        progress(1)
        if firings.counts[features].sum() < fewest:
            continue
        fires = [one for _, one in firings.each(features.tolist())]
        place = np.concatenate([one.doc.astype(np.int64) << 32 | one.pos for one in fires])
        number = np.repeat(np.arange(len(features)), [len(one.doc) for one in fires])
        if len(np.unique(place)) < fewest:
            continue
        own = planes(rows[features], place, number, np.concatenate([one.value for one in fires]), seed=seed)
        indices = score(own.coordinates, bins, seed)
        if indices.planes:
            found.append(Cluster(features, own.tokens, own, indices))
    return [found[i] for i in rank([one.score for one in found])]


def is_irreducible(separability: float, mixture: float) -> bool:
    """Return whether a plane counts as irreducible. separability: above chance, bits."""
    return separability >= BITS and mixture <= MIXTURE


def above_chance(cluster: Cluster, bins: int, seed: int) -> tuple[Estimate, Estimate, Estimate]:
    """Return (separability above chance, mixture, the score of both) of the best plane, jackknifed over documents.

    The planes stay as they are; a tenth of the documents is left out at a time.
    """
    points = cluster.planes.coordinates[:, cluster.best : cluster.best + 2]
    whole = cluster.score.planes[cluster.best]
    fold = (cluster.place >> 32) % FOLDS
    parts = [score(points[fold != f], bins, seed).planes for f in range(FOLDS) if 0 < (fold == f).sum() < len(fold)]
    ones = [part[0] for part in parts if part]
    n = whole.n
    return (
        _jackknifed(whole.separability.excess, [one.separability.excess for one in ones], n),
        _jackknifed(whole.mixture, [one.mixture for one in ones], n),
        _jackknifed(whole.irreducible, [one.irreducible for one in ones], n),
    )


def _jackknifed(value: float, without: list[float], n: int) -> Estimate:
    left = np.array(without)
    error = np.sqrt((len(left) - 1) * left.var()) if len(left) > 1 else np.inf
    return Estimate(value, max(value - 1.96 * error, 0.0), value + 1.96 * error, n)


def plane_rows(
    clusters: Sequence[Cluster], passages: Passages, bests: Sequence[tuple[Estimate, Estimate, Estimate]]
) -> pl.DataFrame:
    """Return a row of each plane of each cluster. bests: `above_chance` of the first clusters, for their intervals."""
    tables = []
    for number, cluster in enumerate(clusters):
        tokens = [text for text, _ in Counter(_texts(passages, cluster.place)).most_common(LISTED)]
        score = bests[number][2] if number < len(bests) else None
        for index, one in enumerate(cluster.score.planes):
            fine = is_irreducible(one.separability.excess, one.mixture)
            columns: dict[str, Any] = {
                "kind": "plane", "cluster": number + 1, "plane": index + 1, "score": one.irreducible, "n": one.n,
                "separability": one.separability.value, "null": one.separability.null, "mixture": one.mixture,
                "method": "irreducible" if fine else "reducible",
                "features": [cluster.features.tolist()], "tokens": [tokens],
            }  # fmt: skip
            if score is not None and index == cluster.best:
                columns |= {"low": score.low, "high": score.high}
            tables.append(as_table(columns))
    return pl.concat(tables) if tables else as_table({})


def point_rows(clusters: Sequence[Cluster], passages: Passages, seed: int) -> pl.DataFrame:
    """Return a sample of the tokens of the best planes of the first clusters, with what stands around them."""
    tables = [_points(number + 1, one, passages, seed) for number, one in enumerate(clusters[:GALLERY])]
    return pl.concat(tables) if tables else as_table({})


def _points(number: int, cluster: Cluster, passages: Passages, seed: int) -> pl.DataFrame:
    drawn = np.random.default_rng(seed).permutation(len(cluster.place))[:POINTS]
    drawn.sort()
    place, plane = cluster.place[drawn], cluster.best
    labels = _texts(passages, place)
    often = {text for text, _ in Counter(_texts(passages, cluster.place)).most_common(NAMED)}
    windows = [passages.window(int(p >> 32), int(p & 0xFFFFFFFF), AROUND, AROUND) for p in place]
    return as_table(
        {
            "kind": "point",
            "cluster": number,
            "plane": plane + 1,
            "x": cluster.planes.coordinates[drawn, plane].tolist(),
            "y": cluster.planes.coordinates[drawn, plane + 1].tolist(),
            "label": labels,
            "group": [group_of(text, often) for text in labels],
            "doc": (place >> 32).tolist(),
            "pos": (place & 0xFFFFFFFF).tolist(),
            "before": ["".join(w.text[: w.at]) for w in windows],
            "after": ["".join(w.text[w.at + 1 :]) for w in windows],
        }
    )


def group_of(text: str, often: set[str]) -> str:
    """Return what a token is coloured by: a day, a month, a decade, a number, itself where it is among `often`."""
    word = text.strip()
    if word.capitalize() in WORDS:
        return word.capitalize()
    if re.fullmatch(r"1[5-9]\d\d|20\d\d", word):
        return f"{word[:3]}0s"
    if re.fullmatch(r"\d+", word) or word.lower() in COUNTS:
        return word.lower()
    return text if text in often else "other"


def _texts(passages: Passages, place: np.ndarray) -> list[str]:
    return passages.text(passages.token[np.searchsorted(passages.place, place)])
