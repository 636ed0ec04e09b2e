"""Words on a circle: a probe for it, what chance gives, and edits that move a word round it.

Source: Engels et al. 2024 (arXiv 2405.14860), section 5. Centring is consistent here: the probe is fitted to centred
coordinates, so edits add its plane to the mean as it is. The published code takes the mean's projection away once more,
and its PCA baseline drops it, which turns the result wherever the mean doesn't stand at right angles to the plane.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from monosem.evals.multidim.regression import circle as turned
from monosem.types import Estimate, UserError

DRAWS = 200  # permutations of words
FLAT = 1e-6  # of the largest singular value: components with less are rounding


@dataclass(frozen=True, eq=False)
class Circle:
    """A circular probe. mean: [d]; W: principal components, orthonormal rows [k, d]; Q: basis of the probe's plane in
    these, orthonormal columns [k, 2]; R: [2, 2], plane coordinates times R^-1 are (cos, sin); m: words on the circle;
    frequency: turns of it over all words.
    """

    mean: Tensor
    W: Tensor
    Q: Tensor
    R: Tensor
    m: int
    frequency: int = 1

    @property
    def plane(self) -> Tensor:
        """An orthonormal basis of the plane, rows [2, d]."""
        return self.Q.T @ self.W

    def read(self, x: Tensor) -> Tensor:
        """Return (cos, sin) as the probe reads it off activations [n, d], [n, 2]."""
        return (x - self.mean) @ self.W.T @ self.Q @ self.R

    def angle(self, x: Tensor) -> Tensor:
        """Return the angles that the probe reads off, in words, [n], from 0 to m / frequency."""
        place = self.read(x)
        turn = torch.atan2(place[:, 1], place[:, 0]) / (2 * math.pi)
        return turn % 1 * self.m / self.frequency

    def point(self, word: Tensor, radius: float | Tensor = 1.0) -> Tensor:
        """Return where words [n], whole or between two, lie in the plane, relative to the mean, [n, d]."""
        return (turned(word, self.m, self.frequency) * radius) @ torch.linalg.inv(self.R) @ self.plane


def fit_circle(x: Tensor, word: Tensor, m: int, k: int = 5, frequency: int = 1) -> Circle:
    """Return the circular probe of activations x [n, d] of words, int64 [n], 0 to m - 1.

    Least squares from k principal components (fewer where x has a smaller rank) to cos and sin of 2 pi frequency word /
    m; the QR decomposition of its matrix gives the plane. Raises UserError for shapes that don't fit and when x has
    fewer than 2 components.
    """
    if x.ndim != 2 or word.shape != (len(x),):
        raise UserError(f"x of shape {tuple(x.shape)}, words {tuple(word.shape)}: must be [n, d] and [n]")
    x = x.double()
    mean = x.mean(0)
    _, lengths, V = torch.linalg.svd(x - mean, full_matrices=False)
    k = min(k, int((lengths > FLAT * lengths[0]).sum()) if lengths[0] > 0 else 0)
    if k < 2:
        raise UserError(f"{len(x)} activations of {m} words have {k} components of any size: a circle needs 2")
    W = V[:k]
    P = torch.linalg.lstsq((x - mean) @ W.T, turned(word, m, frequency)).solution
    Q, R = torch.linalg.qr(P)
    return Circle(mean, W, Q, R, m, frequency)


@dataclass(frozen=True, eq=False)
class Order:
    """Whether words lie in order on a circle, each seen by a probe fitted without it.

    error: mean angular error in words, with its interval over words; null: the same with words permuted, mean; p: how
    often a permutation is as good. place: (cos, sin) as read off, [m, 2]; errors: of each word, [m]; next: words whose
    neighbour, going round, is the word that comes next; next_fitted: the same where the probe has seen all
    words. r2, r2_null: in the sample, which says little as few words fit any circle.
    """

    error: Estimate
    null: float
    p: float
    place: Tensor
    errors: Tensor
    next: int
    next_fitted: int
    r2: float
    r2_null: float


def order(x: Tensor, word: Tensor, m: int, k: int = 5, draws: int = DRAWS, seed: int = 0) -> Order:
    """Return how well the order can be read off words left out: all rows of a word at a time, from components, too.

    x: [n, d]; word: int64 [n], each of 0 to m - 1 at least once. Raises UserError as `fit_circle`, and for a word
    without a row.
    """
    missing = sorted(set(range(m)) - set(word.tolist()))
    if missing:
        raise UserError(f"word {missing[0]}: no activation; each of the {m} words needs one")
    folds = [_Fold(x, word, w, k) for w in range(m)]
    place, errors = _read(folds, np.arange(m), m)
    rng = np.random.default_rng(seed)
    permuted = [rng.permutation(m) for _ in range(draws)]
    chance = np.array([float(_read(folds, p, m)[1].mean()) for p in permuted])
    mean = float(errors.mean())
    low, high = np.quantile([float(errors[rng.integers(m, size=m)].mean()) for _ in range(1000)], [0.025, 0.975])
    p = (1 + int((chance <= mean + 1e-9).sum())) / (1 + draws)
    r2 = [_r2(x, torch.as_tensor(one)[word], m, k) for one in (np.arange(m), *permuted[:20])]
    fitted = fit_circle(x, word, m, k).read(x)
    seen = torch.stack([fitted[word == w].mean(0) for w in range(m)])
    return Order(
        error=Estimate(mean, float(low), float(high), m),
        null=float(chance.mean()),
        p=p,
        place=place,
        errors=errors,
        next=_following(place),
        next_fitted=_following(seen),
        r2=r2[0],
        r2_null=float(np.mean(r2[1:])),
    )


def _following(place: Tensor) -> int:
    """Return how many words have the next one as their neighbour. place: [m, 2]."""
    going_round = torch.atan2(place[:, 1], place[:, 0]).argsort()
    return int(((going_round.roll(-1) - going_round) % len(place) == 1).sum())


class _Fold:
    """Activations without a word's, in their components, and the word's own."""

    def __init__(self, x: Tensor, word: Tensor, out: int, k: int):
        own = word == out
        kept = x[~own].double()
        mean = kept.mean(0)
        _, lengths, V = torch.linalg.svd(kept - mean, full_matrices=False)
        W = V[: min(k, int((lengths > FLAT * lengths[0]).sum()))]
        self.out, self.words = out, word[~own]
        self.inverse = torch.linalg.pinv((kept - mean) @ W.T)
        self.own = ((x[own].double() - mean) @ W.T).mean(0)


def _read(folds: list[_Fold], called: np.ndarray, m: int) -> tuple[Tensor, Tensor]:
    """Return (what is read off each word [m, 2], errors in words [m]) when word w is called `called[w]`."""
    names = torch.as_tensor(called)
    # No intercept: the mean of the other words' targets points away from the word left out, which would be no chance.
    place = torch.stack([fold.own @ (fold.inverse @ turned(names[fold.words], m)) for fold in folds])
    turn = torch.atan2(place[:, 1], place[:, 0]) / (2 * math.pi) * m - names
    return place, (turn - m * torch.round(turn / m)).abs()


def _r2(x: Tensor, word: Tensor, m: int, k: int) -> float:
    wanted = turned(word, m, 1)
    found = fit_circle(x, word, m, k).read(x)
    return float(1 - (wanted - found).square().sum() / (wanted - wanted.mean(0)).square().sum())


Edit = Callable[["Move"], Tensor]


@dataclass(frozen=True, eq=False)
class Move:
    """Base activations that are to say another word. x, source: [n, d], of the base and of the other word in the same
    prompt; word: the other word, [n]; circle: the probe; means: of each word, [m, d]; seed: of random planes.
    """

    x: Tensor
    source: Tensor
    word: Tensor
    circle: Circle
    means: Tensor
    seed: int = 0

    @property
    def mean(self) -> Tensor:
        """The mean activation, a row for each base."""
        return self.circle.mean.expand(self.x.shape).to(self.x)

    def swap(self, basis: Tensor) -> Tensor:
        """Return the base with its part in the span of orthonormal rows [q, d] exchanged."""
        return self.x + (self.source - self.x) @ basis.T @ basis


def _random(move: Move, within: Tensor | None) -> Tensor:
    generator = torch.Generator().manual_seed(move.seed)
    d = move.x.shape[1]
    span = torch.eye(d, dtype=torch.float64) if within is None else within
    rows = torch.randn(2, len(span), generator=generator, dtype=torch.float64) @ span
    return move.swap(torch.linalg.qr(rows.T).Q.T.to(move.x))


def _span(means: Tensor) -> Tensor:
    """Return an orthonormal basis of the span of word means around their mean, rows [q, d]."""
    _, lengths, V = torch.linalg.svd(means.double() - means.double().mean(0), full_matrices=False)
    return V[lengths > FLAT * lengths[0]]


EDITS: dict[str, Edit] = {
    "unpatched": lambda move: move.x,
    "circle": lambda move: move.mean + move.circle.point(move.word).to(move.x),
    "circle_swap": lambda move: move.swap(move.circle.plane.to(move.x)),
    "pca": lambda move: move.swap(move.circle.W.to(move.x)),
    "whole": lambda move: move.source,
    "complement": lambda move: move.source - (move.source - move.x) @ _projection(move),
    "mean": lambda move: move.mean,
    "zero_circle": lambda move: move.x - (move.x - move.mean) @ _projection(move),
    "only_circle": lambda move: move.mean + (move.x - move.mean) @ _projection(move),
    "random_plane": lambda move: _random(move, None),
    "random_in_span": lambda move: _random(move, _span(move.means)),
}
"""Edits by name, [n, d]. unpatched: none; circle: the mean with the other word's point in the plane; circle_swap, pca,
whole: the plane, the components, everything exchanged; complement: everything but the plane; mean: of all words;
zero_circle: the plane at its mean; only_circle: all but the plane at its mean; random_plane, random_in_span: another
plane exchanged, of all directions or of the span of word means.
"""
ONE_WORD = ("unpatched", "mean", "zero_circle", "only_circle")  # the same whatever the other word is


def _projection(move: Move) -> Tensor:
    plane = move.circle.plane.to(move.x)
    return plane.T @ plane
