"""Compiled loops that find the largest or the positive products of a row with all features (numba).

Products come rounded, with a bound on how wrong they are; only those that may matter are computed exactly. For how
these loops are run and what fast-math means for callers, see `loops`.
"""

from __future__ import annotations

import numpy as np

from monosem.kernels.loops import dot, jit, quantise_row, transpose

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
def _in_reach(estimate, peaks, bar, x_norm, x_error, norm, error, limits, found, n):
    """Write the features whose exact value may reach the bar to `found`, from place n on; return the place after them.

    limits: the largest norm and the largest error of all features.
    """
    rounding = np.float32(4e-7) * abs(bar)
    last = _reaching(estimate, peaks, bar - (x_error * limits[0] + x_norm * limits[1] + rounding), found, n)
    kept = n
    for c in range(n, last):
        j = found[c]
        found[kept] = j
        kept += estimate[j] + (x_error * norm[j] + x_norm * error[j] + rounding) >= bar
    return kept


@jit
def _exact_products(offsets, features, x, rows, exact):
    """Write x[t] . rows[i] to `exact` for pairs (t, i), token after token; offsets: where each token's pairs begin.

    Goes through the pairs feature by feature: rows come from memory once, the tokens stay in the cache.
    """
    n, d = len(features), len(rows)
    begins, tokens, order = np.empty(d + 1, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    transpose(offsets, features, d, begins, tokens, order)
    for i in range(d):
        row = rows[i]
        for e in range(begins[i], begins[i + 1]):
            exact[order[e]] = dot(x[tokens[e]], row)


@jit
def top_rows(products, x, x_unit, x_norm, x_error, rows, unit, norm, error, b, k, indices, values):
    """Choose the k features with the largest x . rows_i + b_i for every row of x, exactly.

    products [m, d_sae], overwritten: x . rows_i in units of x_unit[t] unit[i], wrong by at most x_error[t] norm[i] +
    x_norm[t] error[i]. The k that look best are computed exactly; every feature that could still beat the worst of
    them is computed, too. Writes, for each row in descending order (ties: the lower index first), the features to
    `indices` and x . rows_i (without b) to `values`, both [m, k]. Returns how many products were computed exactly.
    """
    m, d = products.shape
    estimates, groups = products.view(np.float32), group_count(d)  # estimates take the place of the products
    peaks = np.empty((m, groups), np.float32)
    best, found = np.empty(m * d + 1, np.int64), np.empty(m * d + 1, np.int64)  # touched as far as they're used
    best_from, found_from = np.zeros(m + 1, np.int64), np.zeros(m + 1, np.int64)
    limits = norm.max(), error.max()
    for t in range(m):
        _estimate(products[t], x_unit[t], unit, b, estimates[t], peaks[t])
        bar = _bar(peaks[t], k) if groups >= k else _bar(estimates[t], k)
        best_from[t + 1] = _reaching(estimates[t], peaks[t], bar, best, best_from[t])
    best_exact = np.empty(best_from[m], np.float32)
    _exact_products(best_from, best[: best_from[m]], x, rows, best_exact)
    keys = np.empty(d + 1, np.float32)
    for t in range(m):
        first, n = best_from[t], best_from[t + 1] - best_from[t]
        for c in range(n):
            keys[c] = best_exact[first + c] + b[best[first + c]]
            estimates[t, best[first + c]] = LOWEST
        worst = _bar(keys[:n], k)  # k features reach it, exactly
        looks = estimates[t], peaks[t], worst, x_norm[t], x_error[t]
        found_from[t + 1] = _in_reach(*looks, norm, error, limits, found, found_from[t])
    exact = np.empty(found_from[m], np.float32)
    _exact_products(found_from, found[: found_from[m]], x, rows, exact)
    chosen, products_of = np.empty(d + 1, np.int64), np.empty(d + 1, np.float32)
    for t in range(m):
        n = 0
        for e in range(best_from[t], best_from[t + 1]):
            chosen[n], products_of[n], keys[n] = best[e], best_exact[e], best_exact[e] + b[best[e]]
            n += 1
        for e in range(found_from[t], found_from[t + 1]):
            chosen[n], products_of[n], keys[n] = found[e], exact[e], exact[e] + b[found[e]]
            n += 1
        _best(chosen, products_of, keys, n, k, indices[t], values[t])
    return best_from[m] + found_from[m]


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
    estimate, peaks = np.empty(d, np.float32), np.empty(group_count(d), np.float32)
    found = np.empty(min(limit, m * d) + d + 1, np.int64)  # touched as far as it's used
    found_from = np.zeros(m + 1, np.int64)
    limits = norm.max(), error.max()
    for t in range(m):
        _estimate(products[t], x_unit[t], unit, b, estimate, peaks)
        looks = estimate, peaks, np.float32(0), x_norm[t], x_error[t]
        found_from[t + 1] = _in_reach(*looks, norm, error, limits, found, found_from[t])
        if found_from[t + 1] > limit:
            return -1
    exact = np.empty(found_from[m], np.float32)
    _exact_products(found_from, found[: found_from[m]], x, rows, exact)
    n = 0
    for t in range(m):
        before = n
        if n + found_from[t + 1] - found_from[t] > len(indices):
            return -1
        for e in range(found_from[t], found_from[t + 1]):
            indices[n], values[n] = found[e], exact[e]
            n += exact[e] + b[found[e]] > 0
        counts[t] = n - before
    return n
