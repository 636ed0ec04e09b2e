"""What a cluster of features reconstructs, the planes in which it lies, and how irreducible the cluster is in these.

Source: Engels et al. 2024 (arXiv 2405.14860), section 4. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse

from monosem.evals.multidim.irreducible import FEWEST, Indices, indices
from monosem.types import UserError

COMPONENTS = 5  # principal components, so at most 4 planes
TOKENS = 20_000  # sampled at most
FLAT = 1e-10  # of the variance: components with less are rounding


@dataclass(frozen=True, eq=False)
class Planes:
    """A cluster's reconstruction R_t, the sum of its features' contributions at a token, in its principal components.

    tokens: those that count, int64 [n], ascending. coordinates: R - mean along the components, float64 [n, k], k <= 5;
    plane i are the columns i and i + 1. components: of length 1, the entry that is furthest from 0 positive, float64
    [k, d]. mean: of R, float64 [d]. explained: part of R's variance along each component, [k]. active: on how many
    tokens a feature of the cluster fires, of which `tokens` are a sample.
    """

    tokens: np.ndarray
    coordinates: np.ndarray
    components: np.ndarray
    mean: np.ndarray
    explained: np.ndarray
    active: int


@dataclass(frozen=True)
class ClusterScore:
    """How irreducible a cluster is: the indices in each of its planes, none when nothing can be told."""

    planes: tuple[Indices, ...]

    @property
    def mean(self) -> float:
        """Return the mean over the planes of (1 - mixture) * separability above chance, 0 without planes.

        The paper's; its authors' script divides by one plane more, which counts against clusters with few planes.
        """
        return sum(plane.irreducible for plane in self.planes) / max(len(self.planes), 1)

    @property
    def best(self) -> float:
        """Return the highest value of one plane, 0 without planes: a circle isn't hidden by planes of noise (ours)."""
        return max((plane.irreducible for plane in self.planes), default=0.0)


def restricted(
    rows: ArrayLike, tokens: np.ndarray, features: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (the tokens on which a feature of the cluster fires [N], what the cluster reconstructs there [N, d]).

    rows: the decoder rows of the c features, [c, d]. tokens, features, values: one entry a firing, [nnz] each: the
    token, which of the c features, and its coefficient. Codes on disk have the coefficients of unit-norm rows. The
    decoder's bias is not added. Raises UserError when the arrays don't fit each other or aren't finite.
    """
    W = _checked(rows, tokens, features, values)
    kept, row = np.unique(tokens, return_inverse=True)
    return kept, _codes(row, features, values, (len(kept), len(W))) @ W


def planes(
    rows: ArrayLike,
    tokens: np.ndarray,
    features: np.ndarray,
    values: np.ndarray,
    most: int = TOKENS,
    seed: int = 0,
) -> Planes:
    """Return the first 5 principal components of what the cluster reconstructs where one of its features fires.

    Arguments: those of `restricted`, whose [N, d] is not built: all is done on the codes. most: tokens; of more, every
    so-manieth counts, from a start that the seed draws. Components without variance are left out. Raises UserError as
    `restricted` does, and for fewer than 2 tokens.
    """
    W = _checked(rows, tokens, features, values)
    kept, row = np.unique(tokens, return_inverse=True)
    if min(len(kept), most) < 2:
        raise UserError(f"{min(len(kept), most)} tokens in a cluster: planes need at least 2; leave this cluster out")
    active = len(kept)
    if active > most:
        chosen = ((np.arange(most) + np.random.default_rng(seed).random()) * (active / most)).astype(np.int64)
        place = np.full(active, -1)
        place[chosen] = np.arange(most)
        row, kept = place[row], kept[chosen]
        features, values, row = features[row >= 0], values[row >= 0], row[row >= 0]
    Z = _codes(row, features, values, (len(kept), len(W)))
    middle = np.asarray(Z.mean(axis=0)).ravel()
    spread = (Z.T @ Z).toarray() / len(kept) - np.outer(middle, middle)
    axes, variances, total = _principal(W, spread)
    coordinates = Z @ (W @ axes.T) - middle @ W @ axes.T
    return Planes(kept, coordinates, axes, middle @ W, variances / total, active)


def score(coordinates: np.ndarray, bins: int = 10, seed: int = 0) -> ClusterScore:
    """Return the indices of a cluster in the planes of neighbouring principal components, [n, k] (`Planes`).

    bins: 10, whatever n is (ours): clusters can be ranked by the same number only. No planes for fewer than 100 tokens
    or 2 components. The paper drops planes with a mixture index below .01, where its search has failed; the exact
    search doesn't fail. Raises UserError as `irreducible.separability` does.
    """
    if len(coordinates) < FEWEST:
        return ClusterScore(())
    pairs = range(coordinates.shape[1] - 1)
    return ClusterScore(tuple(indices(coordinates[:, i : i + 2], bins, seed) for i in pairs))


def rank(scores: Sequence[ClusterScore], by: str = "best") -> np.ndarray:
    """Return the clusters' numbers, the most irreducible first, int64; ties in the order given.

    by: "best" (ours), the best plane, or "mean" (the paper's), the mean over planes, which ranks a circle below pairs
    of exclusive features when the circle's cluster has planes of noise, too. Such pairs have .5 either way, as much as
    a circle whose radius varies by some 15 %. Raises UserError for any other.
    """
    if by not in ("best", "mean"):
        raise UserError(f'by "{by}": must be "best" or "mean"')
    values = np.array([one.best if by == "best" else one.mean for one in scores])
    return np.argsort(-values, kind="stable")


def _checked(rows: ArrayLike, tokens: np.ndarray, features: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the rows, float64 [c, d]."""
    W = np.asarray(rows, dtype=np.float64)
    if W.ndim != 2:
        raise UserError(f"rows of shape {W.shape}: must be [c, d], a decoder row for each feature of the cluster")
    if not tokens.shape == features.shape == values.shape == (len(tokens),):
        raise UserError(
            f"tokens {tokens.shape}, features {features.shape}, values {values.shape}: must be [nnz], one a firing"
        )
    if len(features) and not 0 <= features.min() <= features.max() < len(W):
        raise UserError(f"features {features.min()} to {features.max()}: the cluster has 0 to {len(W) - 1}")
    if not (np.isfinite(W).all() and np.isfinite(values).all()):
        raise UserError("rows or values: some are NaN or infinite; leave those features out")
    return W


def _codes(row: np.ndarray, features: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    return sparse.csr_array((values.astype(np.float64), (row, features)), shape=shape)


def _principal(W: np.ndarray, spread: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return (components [k, d], their variances [k], all variance) of codes with covariance [c, c] times W [c, d]."""
    U, lengths, V = np.linalg.svd(W, full_matrices=False)
    inner = U * lengths  # W = inner @ V, so that the covariance in the rows' own space is min(c, d) wide
    variances, axes = np.linalg.eigh(inner.T @ spread @ inner)
    total = variances.sum()
    top = [i for i in np.argsort(-variances)[:COMPONENTS] if variances[i] > FLAT * total]
    components = axes[:, top].T @ V
    furthest = np.abs(components).argmax(1)
    components *= np.sign(components[np.arange(len(top)), furthest])[:, None]
    return components, variances[top], float(total)
