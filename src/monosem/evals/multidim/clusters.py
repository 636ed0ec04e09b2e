"""Clusters of features whose decoder rows point in similar directions: candidates for multi-dimensional features.

Source: Engels et al. 2024 (arXiv 2405.14860), section 4.1.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import SpectralClustering
from torch import Tensor

from monosem.types import UserError

METHODS = ("graph", "spectral")
ROWS = 512  # whose cosines with all others are in memory at once
DIGITS = 5  # of a cosine: those that are equal but for the order of summation tie
SPECTRAL_NEIGHBOURS = 64  # a row of the spectral method's affinity (ours)


def cluster_decoder(
    W_dec: Tensor | ArrayLike,
    method: str = "graph",
    k: int = 2,
    threshold: float = 0.5,
    smallest: int = 2,
    largest: int = 1000,
    n_clusters: int = 1000,
    seed: int = 0,
) -> list[np.ndarray]:
    """Return clusters of decoder rows [n, d]: ascending int64 row numbers, the clusters by their first.

    graph (the paper's for Mistral): each row is tied to its k nearest by cosine where that is above the threshold;
    clusters are what hangs together. spectral (the paper's for GPT-2): sklearn's, seeded, at most `n_clusters` and half
    as many as rows; the affinity is max(cos, 0) to the 64 nearest rows. The paper's affinity, 1 - angle / pi, is .5 for
    orthogonal rows and can't tell two planes apart; max(cos, 0) is ours. Clusters with fewer rows than `smallest` or
    more than `largest` are left out, as are rows that are zero. Of equally near rows the first count. 16,384 rows take
    seconds (graph); 4,096 rows in 250 spectral clusters take half a minute, more of both far longer.

    Raises UserError for a matrix that isn't finite or not [n, d], an unknown method, and k, threshold, sizes or a
    number of clusters that make no sense.
    """
    if method not in METHODS:
        raise UserError(f'method "{method}": must be "graph" or "spectral"')
    if k < 1 or not 1 <= smallest <= largest or n_clusters < 2 or not -1 <= threshold <= 1:
        raise UserError(
            f"k {k}, threshold {threshold}, sizes {smallest} to {largest}, n_clusters {n_clusters}: must be k >= 1, "
            "-1 <= threshold <= 1, 1 <= smallest <= largest, n_clusters >= 2"
        )
    numbers, units = _unit_rows(W_dec)
    if len(units) < 2:
        return []
    if method == "graph":
        _, labels = connected_components(_neighbours(units, k, threshold), directed=False)
    else:
        numbers, labels = _spectral(numbers, units, n_clusters, seed)
    return _members(numbers, labels, smallest, largest)


def _unit_rows(W_dec: Tensor | ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return (the numbers of rows that aren't zero, int64 [m]; these rows with length 1, float32 [m, d])."""
    W = W_dec.detach().cpu().float().numpy() if isinstance(W_dec, Tensor) else np.asarray(W_dec, dtype=np.float32)
    if W.ndim != 2 or not np.isfinite(W).all():
        raise UserError(f"W_dec of shape {W.shape}: must be [n, d] and finite")
    lengths = np.linalg.norm(W, axis=1)
    numbers = np.flatnonzero(lengths)
    return numbers, W[numbers] / lengths[numbers, None]


def _neighbours(units: np.ndarray, k: int, threshold: float) -> sparse.csr_array:
    """Return the cosines above a threshold with each row's k nearest others, float32 [m, m]."""
    m, k = len(units), min(k, len(units) - 1)
    nearest, cosines = np.empty((m, k), dtype=np.int32), np.empty((m, k), dtype=np.float32)
    for start in range(0, m, ROWS):
        block = np.round(units[start : start + ROWS] @ units.T, DIGITS)
        here = np.arange(len(block))
        block[here, start + here] = -np.inf
        for rank in range(k):
            best = block.argmax(1)
            nearest[start + here, rank], cosines[start + here, rank] = best, block[here, best]
            block[here, best] = -np.inf
    above = cosines > threshold
    row = np.repeat(np.arange(m, dtype=np.int32), above.sum(1))  # int32: sklearn takes no other
    return sparse.csr_array((cosines[above], (row, nearest[above])), shape=(m, m))


def _spectral(numbers: np.ndarray, units: np.ndarray, n_clusters: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (the numbers of rows that have any neighbour, each one's cluster)."""
    nearest = _neighbours(units, SPECTRAL_NEIGHBOURS, 0.0)
    affinity = sparse.csr_array(nearest.maximum(nearest.T))
    tied = np.flatnonzero(affinity.sum(axis=0)).astype(np.int32)
    n_clusters = min(n_clusters, len(tied) // 2)
    if n_clusters < 2:
        return numbers[tied], np.zeros(len(tied), dtype=np.int64)
    method = SpectralClustering(n_clusters, affinity="precomputed", random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Graph is not fully connected"
        )  # clusters that are apart are found all the same
        return numbers[tied], method.fit_predict(affinity[tied][:, tied])


def _members(numbers: np.ndarray, labels: np.ndarray, smallest: int, largest: int) -> list[np.ndarray]:
    """Return the row numbers of each label, those of a fitting size, by their first."""
    order = np.argsort(labels, kind="stable")
    groups = np.split(numbers[order], np.flatnonzero(np.diff(labels[order])) + 1)
    return sorted((group for group in groups if smallest <= len(group) <= largest), key=lambda group: int(group[0]))
