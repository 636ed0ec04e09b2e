"""Compiled loops that find the largest or the positive products of a row with all features (numba).

Products come rounded, with a bound on how wrong they are; only those that may matter are computed exactly. For how
these loops are run and what fast-math means for callers, see `loops`.
"""

from __future__ import annotations

import numpy as np

from monosem.kernels.loops import dot, jit

LOWEST = np.float32(-3e38)
"""Below every activation: stands for minus infinity, which fast-math must not see."""

GROUP = 16
"""Features a group; the maximum of a group decides whether its members are looked at one by one."""


@jit
def group_count(d):
    """Return the number of groups: members of one, so many features apart, shouldn't share a line of the cache."""
    least = (d + GROUP - 1) // GROUP
    return (least + 31) // 32 * 32 + 16 if d > 1024 else least


@jit
def quantise_row(row, factor, q):
    """Write row * factor, rounded to -127..127 in units of its maximum / 127, to q; return (unit, norm, |rounding|)."""
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
    return unit, np.sqrt(square), np.sqrt(wrong)


@jit
def quantise_rows(rows, factor, q, unit, norm, error, first, last):
    """Quantise rows `first` to `last - 1` (see `quantise_row`)."""
    for i in range(first, last):
        unit[i], norm[i], error[i] = quantise_row(rows[i], factor, q[i])


@jit
def _bar(values, k):
    """Return a number that at least k of `values` reach, and hardly more than k (bisection between two of them)."""
    low, high = values[0], values[0]
    for i in range(len(values)):
        low, high = min(low, values[i]), max(high, values[i])
    for _ in range(24):
        middle = low + np.float32(0.5) * (high - low)
        if middle <= low or middle >= high:
            break
        count = 0
        for i in range(len(values)):
            count += values[i] >= middle
        if count >= k:
            low = middle
            if count <= k + k // 8:
                break
        else:
            high = middle
    return low


@jit
def _estimate(products, x_unit, unit, b, estimate, peaks):
    """Write products * x_unit * unit + b to `estimate`, and to peaks[g] the maximum over features g, g + groups ..."""
    d, groups = len(products), len(peaks)
    for g in range(groups):
        peaks[g] = LOWEST
    for r in range(GROUP):
        here = slice(r * groups, min(r * groups + groups, d))
        p, u, bias, out = products[here], unit[here], b[here], estimate[here]  # views, so that the loop is vectorised
        for g in range(len(p)):
            h = np.float32(p[g]) * (x_unit * u[g]) + bias[g]
            out[g] = h
            peaks[g] = max(peaks[g], h)


@jit
def top_rows(products, x, x_unit, x_norm, x_error, rows, unit, norm, error, b, k, indices, values):
    """Choose the k features with the largest x . rows_i + b_i for every row of x, exactly.

    products [m, d_sae]: x . rows_i in units of x_unit[t] unit[i], wrong by at most x_error[t] norm[i] + x_norm[t]
    error[i]. The k that look best are computed exactly; every feature that could still beat the worst of them is
    computed, too. Writes, for each row in descending order (ties: the lower index first), the features to `indices`
    and x . rows_i (without b) to `values`, both [m, k]. Returns how many products were computed exactly.
    """
    m, d = products.shape
    estimate = np.empty(d, np.float32)
    groups = group_count(d)
    peaks = np.empty(groups, np.float32)
    found = np.empty(d + 1, np.int64)
    exact = np.empty(d, np.float32)
    keys = np.empty(d, np.float32)
    norm_max = norm.max()
    error_max = error.max()
    work = 0
    for t in range(m):
        _estimate(products[t], x_unit[t], unit, b, estimate, peaks)
        bar = _bar(peaks, k) if groups >= k else _bar(estimate, k)
        n = _reaching(estimate, peaks, bar, found, 0)
        _exact(x[t], rows, b, found, 0, n, exact, keys)
        worst = _bar(keys[:n], k)  # k features reach it, exactly
        for c in range(n):
            estimate[found[c]] = LOWEST
        slack = x_error[t] * norm_max + x_norm[t] * error_max
        more = _reaching(estimate, peaks, worst - slack, found, n)
        kept = n
        for c in range(n, more):
            j = found[c]
            found[kept] = j
            kept += estimate[j] + (x_error[t] * norm[j] + x_norm[t] * error[j]) >= worst
        _exact(x[t], rows, b, found, n, kept, exact, keys)
        work += kept
        _best(found, exact, keys, kept, k, indices[t], values[t])
    return work


@jit
def _reaching(estimate, peaks, bar, found, n):
    """Write the features whose estimate reaches the bar to `found`, from place n on; return the place after them."""
    groups = len(peaks)
    for g in range(groups):
        if peaks[g] >= bar:
            for j in range(g, len(estimate), groups):
                found[n] = j
                n += estimate[j] >= bar
    return n


@jit
def _exact(x, rows, b, found, first, last, exact, keys):
    """Write x . rows_i for the features found[first:last] to `exact`, with their bias to `keys`."""
    for c in range(first, last):
        exact[c] = dot(x, rows[found[c]])
        keys[c] = exact[c] + b[found[c]]


@jit
def _best(found, exact, keys, n, k, indices, values):
    """Write the k of the n candidates with the largest keys, in descending order (ties: the lower feature first)."""
    bar = _bar(keys[:n], k)
    filled = 0
    for c in range(n):
        key, j, value = keys[c], found[c], exact[c]
        if key < bar:
            continue
        place = filled
        while place > 0 and (keys[place - 1] < key or (keys[place - 1] == key and found[place - 1] > j)):
            place -= 1
            keys[place + 1], found[place + 1], exact[place + 1] = keys[place], found[place], exact[place]
        keys[place], found[place], exact[place] = key, j, value
        filled += 1
    for c in range(k):
        indices[c] = found[c]
        values[c] = exact[c]


@jit
def active_rows(products, x, x_unit, x_norm, x_error, rows, unit, norm, error, b, limit, counts, indices, values):
    """Find the features with x . rows_i + b_i > 0 for every row of x, exactly; arguments as in `top_rows`.

    Writes the number of them to `counts [m]`, the features and x . rows_i, row after row, to `indices` and `values`.
    Within a row, features are in an order that depends on d_sae only. Returns how many there are, or -1 if there's no
    room for them or if there are more than `limit` candidates.
    """
    m, d = products.shape
    estimate = np.empty(d, np.float32)
    groups = group_count(d)
    peaks = np.empty(groups, np.float32)
    found = np.empty(d + 1, np.int64)
    exact = np.empty(d, np.float32)
    norm_max = norm.max()
    error_max = error.max()
    n = 0
    work = 0
    for t in range(m):
        _estimate(products[t], x_unit[t], unit, b, estimate, peaks)
        slack = x_error[t] * norm_max + x_norm[t] * error_max
        more = _reaching(estimate, peaks, -slack, found, 0)
        kept = 0
        for c in range(more):
            j = found[c]
            found[kept] = j
            kept += estimate[j] + (x_error[t] * norm[j] + x_norm[t] * error[j]) >= 0
        work += kept
        if work > limit or n + kept > len(indices):
            return -1
        before = n
        for c in range(kept):
            exact[c] = dot(x[t], rows[found[c]])
        for c in range(kept):
            indices[n] = found[c]
            values[n] = exact[c]
            n += exact[c] + b[found[c]] > 0
        counts[t] = n - before
    return n
