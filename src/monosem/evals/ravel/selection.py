"""Which features tell an attribute's values apart: the support of an L1-penalised linear SVM.

Source: Huang et al. 2024 (RAVEL, arXiv 2402.17700), section 4, "SAE" and "PCA". Imports no torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from monosem.types import UserError

Indices = NDArray[np.int64]
GRID = (1e-3, 3e-3, 0.01, 0.03, 0.1, 1.0)  # C: from nothing chosen to nearly all that helps
CLASSES = 32
ROWS = 2000
VARIANCE = 10.0
TINY = 1e-5  # weights below are zero, as in scikit-learn's SelectFromModel


def svm_path(codes: Any, labels: ArrayLike, grid: Sequence[float] = GRID, seed: int = 0) -> dict[float, Indices]:
    """Return for each C of the grid which features have a weight for any class, ascending, int64 [k]; k may be 0.

    codes: [n, m], numpy, torch (CPU) or scipy sparse: true coefficients, decoder norms folded in; or coordinates of
    principal components. labels: [n], the attribute's values, of any type. One class against the rest, squared hinge
    loss summed over rows times C, plus the L1 norm of the weights (scikit-learn's LinearSVC).

    All codes are multiplied by one number, such that the variances of the columns add up to 10. They then sum to the
    same for every SAE and a constant doesn't count, whatever units the SAE works in: like their reconstructions, SAEs
    of one site differ in how the variance is split among features, not in its sum. 10, because the grid reaches from
    no feature to most then, for 1,000 rows of 5 to 30 classes and 3 to 50 active features.

    Labels with very many values (each verb its own past tense) keep the 32 most frequent, ties broken by the seed;
    rows beyond 2,000 are left out, evenly over classes. Where no column varies, nothing is chosen. Raises UserError
    for fewer than two values.
    """
    values, y = np.unique(np.asarray(labels), return_inverse=True)
    if len(values) < 2:
        raise UserError(f"labels: {len(values)} different value(s); an SVM needs at least 2")
    rows = _kept_rows(y, np.random.default_rng(seed))
    x = sparse.csr_matrix(codes)[rows].astype(np.float64)
    square, mean = np.asarray(x.multiply(x).mean(0)).ravel(), np.asarray(x.mean(0)).ravel()
    variance = square - mean**2
    varying = np.flatnonzero(variance > 1e-12 * square)
    if not len(varying):
        return dict.fromkeys(grid, varying)
    x = x[:, varying] * np.sqrt(VARIANCE / variance[varying].sum())
    return {C: varying[_support(x, y[rows], C, seed)] for C in grid}


def _kept_rows(y: Indices, rng: np.random.Generator) -> Indices:
    """Return the rows that are fitted to, ascending: of the most frequent classes, as many of each as there may be."""
    count = np.bincount(y)
    frequent = np.lexsort((rng.random(len(count)), -count))[:CLASSES]
    drawn = rng.permutation(np.flatnonzero(np.isin(y, frequent)))
    drawn = drawn[np.argsort(y[drawn], kind="stable")]
    number = np.arange(len(drawn)) - np.searchsorted(y[drawn], y[drawn])  # of the row in its class
    return np.sort(drawn[np.argsort(number, kind="stable")][:ROWS])


def _support(x: sparse.csr_matrix, y: Indices, C: float, seed: int) -> Indices:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    options: dict[str, Any] = {"penalty": "l1", "dual": False, "max_iter": 5000, "tol": 0.01}
    svm = LinearSVC(C=C, random_state=seed, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        svm.fit(x, y)
    return np.flatnonzero((np.abs(svm.coef_) > TINY).any(0))
