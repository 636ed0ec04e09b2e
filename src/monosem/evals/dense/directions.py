"""Where a feature's decoder row points: mean activation, principal components, antipodes, the same feature elsewhere.

On arrays; imports no torch. Rows of norm 0 have cosine 0 with everything.
"""

from __future__ import annotations

import numpy as np

from monosem.metrics import Array

CHUNK = 16_384  # rows of a dictionary that are compared at once


def unit(rows: np.ndarray) -> Array:
    """Return rows [n, d] divided by their norms."""
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norm > 0, norm, 1)


def principal_components(x: np.ndarray, number: int = 10) -> Array:
    """Return the first principal components [number, d] of x [n, d], unit rows, the largest first."""
    centred = x - x.mean(0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    return vectors[:, ::-1][:, :number].T


def nearest(rows: np.ndarray, others: np.ndarray, sign: int = 1) -> tuple[Array, np.ndarray]:
    """Return for each of rows [k, d] the largest cosine (sign = -1: the smallest) with others [n, d], and whose it is.

    Without others the cosine is 0 and the index -1.
    """
    best, where = np.full(len(rows), -np.inf), np.full(len(rows), -1)
    wanted = unit(rows)
    for start in range(0, len(others), CHUNK):
        cosines = sign * (wanted @ unit(others[start : start + CHUNK]).T)
        at = cosines.argmax(1)
        top = cosines[np.arange(len(rows)), at]
        better = top > best
        best[better], where[better] = top[better], at[better] + start
    return np.where(where >= 0, sign * best, 0.0), where


def directions(rows: np.ndarray, others: np.ndarray, mean: np.ndarray, components: np.ndarray) -> dict[str, Array]:
    """Return, for each of rows [k, d], what its direction is close to.

    others: the live decoder rows [n, d] of the same SAE; mean: mean activation [d]; components [c, d]: unit.
    mean_cosine; pc: number (from 1) of the principal component with the largest |cosine|, pc_cosine: that cosine;
    antipode_cosine: the smallest cosine with another row, antipode: its index in `others`.
    """
    wanted = unit(rows)
    with_components = wanted @ components.T
    pc = np.abs(with_components).argmax(1)
    cosine, where = nearest(rows, others, sign=-1)
    return {
        "mean_cosine": wanted @ unit(mean[None])[0],
        "pc": pc + 1,
        "pc_cosine": with_components[np.arange(len(rows)), pc],
        "antipode_cosine": cosine,
        "antipode": where,
    }


def found_again(rows: np.ndarray, dictionaries: list[np.ndarray]) -> Array:
    """Return for each of rows [k, d] the largest cosine with each dictionary [n, d], and of these the median.

    NaN without dictionaries.
    """
    if not dictionaries:
        return np.full(len(rows), np.nan)
    return np.median([nearest(rows, others)[0] for others in dictionaries], axis=0)
