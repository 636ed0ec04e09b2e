"""Logistic regressions on one number each, compiled (numba): Newton's method, a feature at a time, in the cache.

Numpy arrays in, one thread, no interpreter lock. A feature's N numbers are read from memory once; every pass over them
gives loss, gradient and Hessian together. The exponential is Cephes' polynomial for float32, because the compiler can
do it for many texts at once. Inputs must be finite.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

jit: Any = njit(nogil=True, fastmath=True, error_model="numpy", cache=True)

BLOCK = 96  # texts whose factors 1 + exp(-|t|) are multiplied before their logarithm is taken: at most 2^96
COLUMNS = 16  # features that are copied out of a row at once: one line of the cache
PASSES = 60  # reached on separable data with activations of very different sizes only
ENOUGH = 1e-7  # nats: half the Newton decrement, that is about how far the loss is above its minimum
HALVINGS = 16


@jit
def one_pass(x, y, a, w, c, sums):
    """Add up over the texts, for the logits t = a + w (x - c); x, y: float32 [N], y 0 or 1.

    sums, float64 [6]: gradient by a and w, Hessian by aa, aw and ww, loss. No mean is taken.
    """
    a, w, c = np.float32(a), np.float32(w), np.float32(c)
    one, zero = np.float32(1), np.float32(0)
    sums[:] = 0
    start = 0
    while start < len(x):
        end = min(start + BLOCK, len(x))
        g0, g1, h0, h1, h2, line, factors = zero, zero, zero, zero, zero, zero, one
        for j in range(start, end):
            d = x[j] - c
            t = a + w * d
            u = max(-abs(t), np.float32(-80))
            k = np.floor(u * np.float32(1.44269504) + np.float32(0.5))
            r = u - k * np.float32(0.693359375) + k * np.float32(2.12194440e-4)
            p = np.float32(1.9875691500e-4)
            p = p * r + np.float32(1.3981999507e-3)
            p = p * r + np.float32(8.3334519073e-3)
            p = p * r + np.float32(4.1665795894e-2)
            p = p * r + np.float32(1.6666665459e-1)
            p = p * r + np.float32(5.0000001201e-1)
            p = p * r * r + r + one
            e = p * np.int32((np.int32(k) + np.int32(127)) << np.int32(23)).view(np.float32)  # exp(-|t|)
            q = one / (one + e)
            s = e * q * q
            g = (q if t >= zero else e * q) - y[j]
            g0 += g
            g1 += g * d
            h0 += s
            h1 += s * d
            h2 += s * d * d
            line += max(t, zero) - y[j] * t
            factors *= one + e
        sums[0] += g0
        sums[1] += g1
        sums[2] += h0
        sums[3] += h1
        sums[4] += h2
        sums[5] += line + np.log(factors)
        start = end


@jit
def fit_one(x, y, a, ridge, sums):
    """Return (loss, weight, intercept) of the regression of y on x, from weight 0 and intercept a; float32 [N] each.

    What is minimised is the loss, a mean over texts, plus ridge w^2 / 2. It never rises: a Newton step that would raise
    it is halved. Between steps the origin moves to the mean of x under the Hessian's weights, so that its determinant
    doesn't cancel.
    """
    n = len(x)
    w, c = 0.0, 0.0
    penalty = ridge * n
    one_pass(x, y, a, w, c, sums)
    for _ in range(PASSES):
        g0, g1, h0, h1 = sums[0], sums[1] + penalty * w, sums[2], sums[3]
        h2, loss = sums[4] + penalty, sums[5]
        cost = loss + penalty * w * w / 2
        det = h0 * h2 - h1 * h1
        if not det > 1e-12 * h0 * h2:
            break  # what still has weight has one value of x: nothing left to gain
        da, dw = (h2 * g0 - h1 * g1) / det, (h0 * g1 - h1 * g0) / det
        if g0 * da + g1 * dw < 2 * ENOUGH * n:
            break
        shift = h1 / h0
        step, new_a, new_w = 1.0, a, w
        for _ in range(HALVINGS):
            new_w = w - step * dw
            new_a = a - step * da + new_w * shift
            one_pass(x, y, new_a, new_w, c + shift, sums)
            if sums[5] + penalty * new_w * new_w / 2 <= cost:
                break
            step /= 2
        if not sums[5] + penalty * new_w * new_w / 2 <= cost:
            sums[5] = loss
            break
        a, w, c = new_a, new_w, c + shift
    return sums[5] / n, w, a - w * c


@jit
def fit_columns(codes, y, ridge, loss, weight, intercept, first, last):
    """Fit columns `first` to `last - 1` of codes [N, n] to y, float32 [N]; write float64 [n] each.

    Columns are standardised in float64 first, which is what the ridge sees; constant ones get the entropy of the labels
    and weight 0.
    """
    n = len(y)
    share = 0.0
    for j in range(n):
        share += y[j]
    share /= n
    base = np.log(share / (1 - share))
    entropy = -share * np.log(share) - (1 - share) * np.log(1 - share)
    x = np.empty((COLUMNS, n), np.float64)
    z = np.empty(n, np.float32)
    sums = np.empty(6, np.float64)
    for begin in range(first, last, COLUMNS):
        width = min(COLUMNS, last - begin)
        for j in range(n):
            for i in range(width):
                x[i, j] = codes[j, begin + i]
        for i in range(width):
            mean, top = 0.0, 0.0
            for j in range(n):
                mean += x[i, j]
                top = max(top, abs(x[i, j]))
            mean /= n
            square = 0.0
            for j in range(n):
                square += (x[i, j] - mean) ** 2
            spread = np.sqrt(square / n)
            if not spread > 1e-12 * top:  # rounding of the mean
                loss[begin + i], weight[begin + i], intercept[begin + i] = entropy, 0.0, base
                continue
            for j in range(n):
                z[j] = np.float32((x[i, j] - mean) / spread)
            value, w, a = fit_one(z, y, base, ridge, sums)
            loss[begin + i], weight[begin + i] = value, w / spread
            intercept[begin + i] = a - w * mean / spread
