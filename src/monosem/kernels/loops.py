"""Compiled loops for CPUs (numba): what the fast paths do to rows of float32 matrices.

Everything here works on numpy arrays, releases the interpreter lock and runs on one thread; `kernels.threads` spreads
rows over threads. Sums are taken in a fixed order, so that results repeat bit for bit. Fast-math flags let the
compiler reorder sums within a row and assume finite numbers: callers check for NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

ROUNDING = np.float32(4e-6)
"""Allowance for float32 arithmetic in sums of some thousand terms, relative to the lengths of the factors."""

jit: Any = njit(nogil=True, fastmath=True, error_model="numpy", cache=True)


@jit
def dot(a, b):
    """Return the inner product of two rows."""
    total = np.float32(0)
    for j in range(len(a)):
        total += a[j] * b[j]
    return total


@jit
def two_dots(a, b, c):
    """Return a . b and a . c: two rows on their way from memory at once take less time than one after the other.

    All values of codes come from here, never from `dot`, so that they don't depend on which rows are together.
    """
    first, second = np.float32(0), np.float32(0)
    for j in range(len(a)):
        first += a[j] * b[j]
        second += a[j] * c[j]
    return first, second


@jit
def quantise_row(row, factor, q):
    """Write row * factor, rounded to -127..127 in units of its maximum / 127, to q; return (unit, norm, error)."""
    d = len(row)
    top = np.float32(0)
    for j in range(d):
        top = max(top, abs(row[j] * factor[j]))
    unit = top / np.float32(127)
    inverse = np.float32(1) / unit if unit > 0 else np.float32(0)
    square = np.float32(0)
    wrong = np.float32(0)
    for j in range(d):
        y = row[j] * factor[j]
        r = np.floor(y * inverse + np.float32(0.5))
        q[j] = np.int8(np.int32(r))
        e = r * unit - y
        square += y * y
        wrong += e * e
    return unit, np.sqrt(square), np.sqrt(wrong) + ROUNDING * np.sqrt(square)


@jit
def row_sums(offsets, indices, values, rows, start, out, first, last):
    """Write start + sum_e values[e] rows[indices[e]] over the entries e of each row of a layout to `out [n, d]`."""
    for t in range(first, last):
        out[t] = start
        _add_rows(offsets[t], offsets[t + 1], indices, values, rows, out[t])


@jit
def _add_rows(begin, end, indices, values, rows, out):
    """Add values[e] rows[indices[e]] to `out` for the entries e from `begin` to `end` - 1."""
    d = len(out)
    e = begin
    while e + 4 <= end:
        a, b, c, f = rows[indices[e]], rows[indices[e + 1]], rows[indices[e + 2]], rows[indices[e + 3]]
        va, vb, vc, vf = values[e], values[e + 1], values[e + 2], values[e + 3]
        for j in range(d):
            out[j] += (va * a[j] + vb * b[j]) + (vc * c[j] + vf * f[j])
        e += 4
    while e < end:
        a, va = rows[indices[e]], values[e]
        for j in range(d):
            out[j] += va * a[j]
        e += 1


@jit
def pair_products(begins, tokens, order, x, rows, out, first, last):
    """Write x[t] . rows[i] to `out` for the entries (t, i) of features `first` to `last - 1` of a layout.

    begins, tokens, order: the layout by feature. Rows come from memory once, one after another.
    """
    for i in range(first, last):
        row, end = rows[i], begins[i + 1]
        for e in range(begins[i], end, 2):
            f = min(e + 1, end - 1)
            out[order[e]], out[order[f]] = two_dots(row, x[tokens[e]], x[tokens[f]])


@jit
def transpose(offsets, indices, columns, new_offsets, new_indices, order):
    """Sort the entries of a layout by column, then by row: a counting sort."""
    for i in range(columns + 1):
        new_offsets[i] = 0
    for e in range(len(indices)):
        new_offsets[indices[e] + 1] += 1
    for i in range(columns):
        new_offsets[i + 1] += new_offsets[i]
    for t in range(len(offsets) - 1):
        for e in range(offsets[t], offsets[t + 1]):
            place = new_offsets[indices[e]]
            new_offsets[indices[e]] = place + 1
            new_indices[place] = t
            order[place] = e
    for i in range(columns, 0, -1):
        new_offsets[i] = new_offsets[i - 1]
    new_offsets[0] = 0


@jit
def gradient_row(i, terms, block_of, block, scale, row, unit, g):
    """Write row i of a gradient to g; see `monosem.kernels.gradients.RowGradient` for its parts.

    terms: (offsets, tokens, values, factors) each, adding values[e] factors[tokens[e]] over the entries e of feature i;
    block_of [d_sae]: the row of `block` to add, or -1; scale [d_sae] or empty: adds scale[i] row; unit:
    whether the component along `row` is then taken out.
    """
    d = len(g)
    for j in range(d):
        g[j] = 0
    for term in terms:
        offsets, tokens, values, factors = term
        _add_rows(offsets[i], offsets[i + 1], tokens, values, factors, g)
    if len(block_of) > 0 and block_of[i] >= 0:
        a = block[block_of[i]]
        for j in range(d):
            g[j] += a[j]
    if len(scale) > 0:
        va = scale[i]
        for j in range(d):
            g[j] += va * row[j]
    if unit:
        va = dot(g, row)
        for j in range(d):
            g[j] -= va * row[j]


@jit
def gradient_squares(terms, block_of, block, scale, W, unit, out, first, last):
    """Write the squared norm of rows `first` to `last - 1` of a gradient to `out`."""
    g = np.empty(W.shape[1], np.float32)
    for i in range(first, last):
        gradient_row(i, terms, block_of, block, scale, W[i], unit, g)
        out[i] = dot(g, g)


@jit
def adam_rows(
    terms, block_of, block, scale, W, unit, m, v, look, factor, rate, beta1, rest1, beta2, rest2, root, eps, first, last
):
    """Take an Adam step with rows `first` to `last - 1` of a gradient times `factor`; the gradient is never stored.

    rate: learning rate over bias correction 1; rest1, rest2: 1 - beta1 and 1 - beta2, which float32 can't subtract to
    full accuracy; root: square root of bias correction 2; unit: the row is then scaled to length 1.
    look: (scale, quantised, unit, norm, error) of the screen of W to keep up with it, or empty arrays.
    """
    d = W.shape[1]
    g = np.empty(d, np.float32)
    one = np.float32(1)
    for i in range(first, last):
        row, mi, vi = W[i], m[i], v[i]
        gradient_row(i, terms, block_of, block, scale, row, unit, g)
        square = np.float32(0)
        for j in range(d):
            gj = factor * g[j]
            mj = beta1 * mi[j] + rest1 * gj
            vj = beta2 * vi[j] + rest2 * gj * gj
            mi[j] = mj
            vi[j] = vj
            w = row[j] - rate * mj / (np.sqrt(vj) / root + eps)
            row[j] = w
            square += w * w
        if unit and square > 0:
            scaled = one / np.sqrt(square)
            for j in range(d):
                row[j] *= scaled
        if len(look[1]) > 0:
            look[2][i], look[3][i], look[4][i] = quantise_row(row, look[0], look[1][i])
