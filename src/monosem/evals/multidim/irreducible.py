"""Whether a cloud of points in a plane is one thing: the separability and the epsilon-mixture index. Imports no torch.

Source: Engels et al. 2024 (arXiv 2405.14860), section 3 and appendix B. An irreducible cloud, such as a circle, has a
high separability (no rotation makes its two coordinates independent) and a low mixture index (no line holds much of
it). Both stay the same when the cloud is moved, rotated or scaled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from monosem.types import UserError

FEWEST = 100  # points; with fewer, both indices are mostly chance (ours)
MANY = 20_000  # points from which on 40 bins an axis are no noise (ours)
REACH = 3.0  # the 40 bins span [-3, 3], in units of the RMS of a coordinate
FINER = 4  # times that the search for the smallest information is finer near the best angles, twice
SHUFFLES = 10  # whose mean is the null
DIRECTIONS = 720  # over half a turn
COARSE = 8  # every 8th direction is looked at first: 2 degrees, well inside the width of a line's band
WINDOWS = 512  # offsets that a direction is judged by, before the best ones are searched exactly
BEST = 8  # angles or directions that are searched further
FLAT = 1e-10  # of the larger variance: a cloud with less than this in the other direction is a line
BLOCK = 2**16  # coordinates that are worked on at once: they stay in the cache


@dataclass(frozen=True)
class Separability:
    """The separability index with what chance gives.

    value: mutual information of both coordinates at the angle where it is smallest, bits. null: the same at this angle
    with one coordinate shuffled, mean of 10. angle: radians, 0 <= angle < pi / 2. bins: for each axis.
    """

    value: float
    null: float
    angle: float
    bins: int

    @property
    def excess(self) -> float:
        """Return the bits above chance, 0 or more."""
        return max(self.value - self.null, 0.0)


@dataclass(frozen=True)
class Indices:
    """Both indices of one cloud. mixture: 0 to 1, low when irreducible. n: points behind them."""

    separability: Separability
    mixture: float
    n: int

    @property
    def irreducible(self) -> float:
        """Return (1 - mixture) * bits of separability above chance, by which clusters are ranked.

        The paper ranks by (1 - mixture) * separability; to take chance away is ours.
        """
        return (1 - self.mixture) * self.separability.excess


def indices(points: ArrayLike, bins: int | None = None, seed: int = 0) -> Indices:
    """Return both indices of points [N, 2]. Arguments and errors: those of `separability`."""
    found = separability(points, bins, seed=seed)
    return Indices(found, epsilon_mixture_index(points), len(np.asarray(points)))


def separability_index(points: ArrayLike, bins: int | None = None, angles: int = 1000) -> float:
    """Return the separability index of points [N, 2] in bits, not corrected for chance; see `separability`."""
    return _least_information(_checked(points), _bins(points, bins), angles)[0]


def separability(points: ArrayLike, bins: int | None = None, angles: int = 1000, seed: int = 0) -> Separability:
    """Return the least mutual information, over rotations, of the coordinates of points [N, 2], and what chance gives.

    bins: for each axis. 40 or more span [-3, 3] after the points are centred and divided by the RMS of a coordinate, as
    in appendix B.2; fewer span the data, as the authors' script for GPT-2 does with 10. None: 40 from 20,000 points on,
    10 below, where 40 would measure chance (.69 bits for 1,000 independent points); compare clouds by the same number
    only. angles: over a quarter turn; every 4th is tried first, then near the best 8 all, then steps of a quarter of
    that, as lines make narrow minima. A line within .001 of a bin's edge can still be missed with 40 bins.

    Raises UserError for fewer than 100 points, for points that aren't [N, 2], not finite or all the same, and for fewer
    than 2 or more than 100 bins or no angle.
    """
    cloud, size = _checked(points), _bins(points, bins)
    value, angle = _least_information(cloud, size, angles)
    if value == 0.0:
        return Separability(value, 0.0, angle, size)
    rng = np.random.default_rng(seed)
    a, b = _rotated(cloud, np.array([angle]))
    shuffled = np.stack([rng.permutation(b[0]) for _ in range(SHUFFLES)])
    null = float(_information(np.repeat(a, SHUFFLES, axis=0), shuffled, size).mean())
    return Separability(value, null, angle, size)


def epsilon_mixture_index(points: ArrayLike, epsilon: float = 0.1) -> float:
    """Return the largest part of points f [N, 2] with |v.f + c| < epsilon sqrt(E[(v.f + c)^2]), over v and c.

    Searched, where the paper climbs a gradient that often ends at a poor place: 720 directions v, even steps once the
    cloud is stretched to variance 1 everywhere (which leaves the index as it is), first every 8th and then all near the
    best; at the best ones all offsets c. Chance adds some .01 at 20,000 points and .03 at 2,000. Raises UserError for
    the points that `separability` refuses, and unless 0 < epsilon < 1.
    """
    if not 0 < epsilon < 1:
        raise UserError(f"epsilon {epsilon}: must be between 0 and 1; the paper has 0.1")
    cloud = _whitened(_checked(points))
    if cloud.shape[1] == 1:
        return float(_most_within(cloud.T, epsilon, 1)[0])
    coarse = np.arange(0, DIRECTIONS, COARSE)
    top = coarse[_largest(_counts(cloud, coarse, epsilon))]
    near = np.unique((top[:, None] + np.arange(-COARSE, COARSE + 1)) % DIRECTIONS)
    top = near[_largest(_counts(cloud, near, epsilon))]
    return float(_most_within(_projections(cloud, top), epsilon, 1).max())


def _checked(points: ArrayLike) -> np.ndarray:
    """Return the points, centred and divided by the RMS of a coordinate, float64 [N, 2]."""
    found = np.asarray(points, dtype=np.float64)
    if found.ndim != 2 or found.shape[1] != 2:
        raise UserError(f"points of shape {found.shape}: must be [N, 2]")
    if len(found) < FEWEST:
        raise UserError(f"{len(found)} points: the indices need at least {FEWEST}; use more tokens")
    if not np.isfinite(found).all():
        raise UserError("points: some are NaN or infinite; leave those out")
    centred = found - found.mean(0)
    rms = math.sqrt(np.square(centred).mean())
    if rms <= 1e-9 * np.abs(found).max():
        raise UserError("points: all are the same, so there is no shape to judge; leave this cloud out")
    return centred / rms


def _bins(points: ArrayLike, bins: int | None) -> int:
    if bins is None:
        return 40 if len(np.asarray(points)) >= MANY else 10
    if not 2 <= bins <= 100:
        raise UserError(f"bins {bins}: must be from 2 to 100; 40 and 10 are usual")
    return bins


def _least_information(cloud: np.ndarray, bins: int, angles: int) -> tuple[float, float]:
    """Return (the smallest mutual information of the coordinates, bits; its angle, radians)."""
    if angles < 1:
        raise UserError(f"angles {angles}: must be at least 1; the paper has 1000")
    variances, axes = np.linalg.eigh(cloud.T @ cloud)
    if variances[0] <= FLAT * variances[1]:
        return 0.0, float(np.arctan2(axes[1, 1], axes[0, 1]) % (np.pi / 2))
    step = np.pi / 2 / max(angles // FINER, 1)
    tried = np.arange(0, np.pi / 2, step)
    bits = _at(cloud, tried, bins)
    for _ in range(2):
        near = tried[_largest(-bits), None] + step / FINER * np.arange(1 - FINER, FINER)
        step /= FINER
        tried = np.append(tried, near)
        bits = np.append(bits, _at(cloud, near.ravel(), bins))
    best = int(bits.argmin())
    return float(bits[best]), float(tried[best] % (np.pi / 2))


def _at(cloud: np.ndarray, angles: np.ndarray, bins: int) -> np.ndarray:
    """Return the mutual information of the coordinates after each rotation, bits [angles]."""
    blocks = np.array_split(angles, -(-len(angles) * len(cloud) // BLOCK))
    return np.concatenate([_information(*_rotated(cloud, block), bins) for block in blocks if len(block)])


def _rotated(cloud: np.ndarray, angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both coordinates after each rotation, float32 [angles, N]."""
    axes = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    transposed = cloud.T.astype(np.float32)
    return axes @ transposed, (axes[:, ::-1] * np.array([-1, 1], dtype=np.float32)) @ transposed


def _information(a: np.ndarray, b: np.ndarray, bins: int) -> np.ndarray:
    """Return the mutual information of a and b [angles, N] in bits [angles]."""
    rows, n = a.shape
    cell = np.floor(_scaled(a, bins))
    cell += bins * np.arange(rows, dtype=np.float32)[:, None]
    cell *= bins
    cell += np.floor(_scaled(b, bins))
    joint = np.bincount(cell.ravel().astype(np.int32), minlength=rows * bins**2).reshape(rows, bins, bins)
    sums = _weighted(joint).sum((1, 2)) - _weighted(joint.sum(1)).sum(1) - _weighted(joint.sum(2)).sum(1)
    return sums / n + np.log2(n)


def _weighted(counts: np.ndarray) -> np.ndarray:
    return counts * np.log2(np.maximum(counts, 1))


def _scaled(values: np.ndarray, bins: int) -> np.ndarray:
    """Return values [angles, N] such that floor tells the bin."""
    if bins >= 40:
        low, width = np.float32(-REACH), np.float32(2 * REACH)
    else:
        low = values.min(1, keepdims=True)
        width = values.max(1, keepdims=True) - low
    scaled = values - low
    scaled *= np.float32(bins) / width
    return np.clip(scaled, 0, bins - 1, out=scaled)


def _whitened(cloud: np.ndarray) -> np.ndarray:
    """Return the cloud with variance 1 in all directions, [N, 2], or [N, 1] when it is a line."""
    variances, axes = np.linalg.eigh(cloud.T @ cloud / len(cloud))
    kept = variances > FLAT * variances[1]
    return (cloud @ axes / np.sqrt(np.maximum(variances, FLAT)))[:, kept]


def _projections(cloud: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Return the cloud seen along each direction, float32 [directions, N]."""
    turn = np.pi * directions / DIRECTIONS
    return np.stack([np.cos(turn), np.sin(turn)], 1).astype(np.float32) @ cloud.T.astype(np.float32)


def _counts(cloud: np.ndarray, directions: np.ndarray, epsilon: float) -> np.ndarray:
    """Return the mixture index along each direction, a little too small, as not all offsets are tried."""
    stride = max(len(cloud) // WINDOWS, 1)
    blocks = np.array_split(directions, -(-len(directions) * len(cloud) // BLOCK))
    return np.concatenate([_most_within(_projections(cloud, block), epsilon, stride) for block in blocks if len(block)])


def _most_within(values: np.ndarray, epsilon: float, stride: int) -> np.ndarray:
    """Return the largest part of each row [rows, N] of variance 1 in a window, over windows that begin at every value.

    A window round m reaches epsilon sqrt(1 + m^2) to either side, so that m follows from where it begins, and the best
    window of all begins at a value. stride: of the values, only every so-manieth begins a window.
    """
    ordered = np.sort(values, axis=1).astype(np.float64)
    begin = ordered[:, ::stride]
    middle = (begin + epsilon * np.sqrt(begin**2 + 1 - epsilon**2)) / (1 - epsilon**2)
    end = 2 * middle - begin
    apart = (end.max() - ordered.min() + 1) * np.arange(len(values))[:, None]  # one search serves all rows
    found = np.searchsorted((ordered + apart).ravel(), (end + apart).ravel()).reshape(end.shape)
    first = np.arange(len(values))[:, None] * values.shape[1] + np.arange(0, values.shape[1], stride)
    return (found - first).max(1) / values.shape[1]


def _largest(values: np.ndarray) -> np.ndarray:
    """Return where the largest are, at most `BEST`."""
    return np.argsort(-values, kind="stable")[:BEST]
