"""Compiled loops over rows of logits (numba): medians by selection, not by sorting; each row is in the cache meanwhile.

They work on numpy arrays, release the interpreter lock and run on one thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

SAMPLE = 1024  # values of a row that say between which bounds its median will be
MARGIN = 64  # how far from the sample's middle the bounds are; about four standard deviations of its median

jit: Any = njit(nogil=True, fastmath={"reassoc", "contract", "arcp", "nsz"}, error_model="numpy", cache=True)


@jit
def middle(row, kept):
    """Return the median of a row [V], the mean of the two middle values where V is even; kept: scratch, float32 [V].

    What lies between two bounds, taken from a sample, is collected and searched; if the middle isn't there, the row is.
    """
    v = len(row)
    if v >= 4 * SAMPLE:
        sample = np.sort(row[:: v // SAMPLE])
        half = len(sample) // 2
        low, high = sample[half - MARGIN], sample[half + MARGIN]
        below, inside = 0, 0
        for x in row:
            below += x < low
            kept[inside] = x
            inside += (x >= low) & (x <= high)
        first, second = (v - 1) // 2 - below, v // 2 - below
        if first >= 0 and second < inside:
            return two_middle(kept[:inside], first, second)
    return two_middle(row, (v - 1) // 2, v // 2)


@jit
def two_middle(values, first, second):
    """Return the mean of the values that stand at places `first` and `second` (the same or the next) in order."""
    parted = np.partition(values, second)
    if first == second:
        return parted[second]
    return (parted[:second].max() + parted[second]) / np.float32(2)


@jit
def centred_sums(rows, out):
    """Subtract the medians from rows [T, V] in place; write sums of absolute values and of squares to out [T, 2]."""
    kept = np.empty(rows.shape[1], dtype=np.float32)
    for t in range(len(rows)):
        row = rows[t]
        median = middle(row, kept)
        l1, squares = np.float32(0), np.float32(0)
        for j in range(len(row)):
            x = row[j] - median
            row[j] = x
            l1 += abs(x)
            squares += x * x
        out[t, 0] = l1
        out[t, 1] = squares
