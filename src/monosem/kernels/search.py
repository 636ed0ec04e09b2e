"""Compiled loops that find the largest or the positive products of a row with all features (numba).

Products come rounded, with a bound on how wrong they are; only those that may matter are computed exactly. For how
these loops are run and what fast-math means for callers, see `loops`.
"""

from __future__ import annotations

import numpy as np

from monosem.kernels.loops import jit, pair_products, quantise_row, transpose, two_dots

LOWEST = np.float32(-3e38)
"""Below every activation: stands for minus infinity, which fast-math must not see."""

CARE = np.float32(4e-7)
"""Allowance for rounding when a bias is added, relative to the sum."""

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
def _group_maxima(values):
    """Return the largest of `values [d]` in each group, [groups]."""
    maxima = np.full(group_count(len(values)), LOWEST)
    for i in range(len(values)):
        g = i % len(maxima)
        maxima[g] = max(maxima[g], values[i])
    return maxima


@jit
def _reaching(estimate, peaks, bar, chosen, found, n):
    """Write the features whose estimate reaches the bar to `found`, from place n on; return the place after them.

    chosen: room for the groups that reach it. There are no branches: which ones do can't be foretold.
    """
    m = 0
    for g in range(len(peaks)):
        chosen[m] = g
        m += peaks[g] >= bar
    for c in range(m):
        for j in range(chosen[c], len(estimate), len(peaks)):
            found[n] = j
            n += estimate[j] >= bar
    return n


@jit
def _in_reach(estimate, peaks, bar, size, spread, chosen, found, n):
    """Write the features whose exact value may reach the bar to `found`, from place n on; return the place after them.

    size: x_norm and x_error; spread: norm and error of all features, and the largest of each group.
    """
    (x_norm, x_error), (norm, error, group_norm, group_error) = size, spread
    low = bar - CARE * abs(bar)
    m = 0
    for g in range(len(peaks)):
        chosen[m] = g
        m += peaks[g] + (x_error * group_norm[g] + x_norm * group_error[g]) >= low
    last = n
    for c in range(m):
        g = chosen[c]
        here = low - (x_error * group_norm[g] + x_norm * group_error[g])
        for j in range(g, len(estimate), len(peaks)):
            found[last] = j
            last += estimate[j] >= here
    kept = n
    for c in range(n, last):
        j = found[c]
        found[kept] = j
        kept += estimate[j] + (x_error * norm[j] + x_norm * error[j]) >= low
    return kept


@jit
def top_candidates(products, x, x_unit, x_norm, x_error, rows, unit, norm, error, b, k, heads, counts, found, exact):
    """Find the features that may be among the k with the largest x . w_i + b_i, for every row of x.

    products [m, d_sae]: x . rows_i in units of x_unit[t] unit[i], wrong by at most x_error[t] norm[i] + x_norm[t]
    error[i]. Those that look best are computed exactly; every feature that could still beat the worst of them is a
    candidate, too. Writes the candidates, row after row, to `found`, how many a row to `counts [m]`, how many of them
    are computed to `heads [m]`, and x . rows_i (without b) of those to `exact`. Returns how many there are.
    """
    m, d_sae = products.shape
    estimate, peaks = np.empty(d_sae, np.float32), np.empty(group_count(d_sae), np.float32)
    keys = np.empty(d_sae + 1, np.float32)
    chosen, spread = np.empty(len(peaks) + 1, np.int64), (norm, error, _group_maxima(norm), _group_maxima(error))
    n = 0
    for t in range(m):
        _estimate(products[t], x_unit[t], unit, b, estimate, peaks)
        bar = _bar(peaks, k) if len(peaks) >= k else _bar(estimate, k)
        head = _reaching(estimate, peaks, bar, chosen, found, n)
        for c in range(n, head, 2):
            d = min(c + 1, head - 1)
            exact[c], exact[d] = two_dots(x[t], rows[found[c]], rows[found[d]])
        for c in range(n, head):
            keys[c - n] = exact[c] + b[found[c]]
            estimate[found[c]] = LOWEST
        worst = _bar(keys[: head - n], k)  # k features reach it, exactly
        last = _in_reach(estimate, peaks, worst, (x_norm[t], x_error[t]), spread, chosen, found, head)
        heads[t], counts[t], n = head - n, last - n, last
    return n


@jit
def active_candidates(products, x_unit, x_norm, x_error, unit, norm, error, b, limit, counts, found):
    """Find the features whose x . w_i + b_i may be above 0, for every row of x; arguments as in `top_candidates`.

    Returns how many there are, or -1 if more than `limit`.
    """
    m, d = products.shape
    estimate, peaks = np.empty(d, np.float32), np.empty(group_count(d), np.float32)
    chosen, spread = np.empty(len(peaks) + 1, np.int64), (norm, error, _group_maxima(norm), _group_maxima(error))
    n = 0
    for t in range(m):
        _estimate(products[t], x_unit[t], unit, b, estimate, peaks)
        last = _in_reach(estimate, peaks, np.float32(0), (x_norm[t], x_error[t]), spread, chosen, found, n)
        counts[t], n = last - n, last
        if n > limit:
            return -1
    return n


@jit
def _exact_products(offsets, features, x, rows, exact):
    """Write x[t] . rows[i] to `exact` for pairs (t, i), token after token; offsets: where each token's pairs begin.

    Goes through the pairs feature by feature: rows come from memory once, the tokens stay in the cache.
    """
    n, d = len(features), len(rows)
    begins, tokens, order = np.empty(d + 1, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    transpose(offsets, features, d, begins, tokens, order)
    pair_products(begins, tokens, order, x, rows, exact, 0, d)


@jit
def choose_top(offsets, heads, found, exact, x, rows, b, k, indices, values):
    """Choose the k candidates with the largest x . rows_i + b_i for every row of x.

    offsets [m + 1]: where each row's candidates begin; heads, found, exact: as `top_candidates` wrote them, overwritten
    here. Writes, for each row in descending order (ties: the lower index first), the features to `indices` and
    x . rows_i (without b) to `values`, both [m, k].
    """
    m = len(x)
    rest, rest_from = np.empty(len(found), np.int64), np.zeros(m + 1, np.int64)
    for t in range(m):
        size = offsets[t + 1] - offsets[t] - heads[t]
        rest[rest_from[t] : rest_from[t] + size] = found[offsets[t] + heads[t] : offsets[t + 1]]
        rest_from[t + 1] = rest_from[t] + size
    rest_exact = np.empty(rest_from[m], np.float32)
    _exact_products(rest_from, rest[: rest_from[m]], x, rows, rest_exact)
    keys = np.empty(len(rows) + 1, np.float32)
    for t in range(m):
        here, start = slice(offsets[t], offsets[t + 1]), offsets[t] + heads[t]
        exact[start : offsets[t + 1]] = rest_exact[rest_from[t] : rest_from[t + 1]]
        chosen, of = found[here], exact[here]
        for c in range(len(chosen)):
            keys[c] = of[c] + b[chosen[c]]
        _best(chosen, of, keys, len(chosen), k, indices[t], values[t])


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
def choose_active(offsets, found, x, rows, b, counts, indices, values):
    """Keep the candidates with x . rows_i + b_i > 0, exactly; arguments as in `choose_top`.

    Writes the number of them to `counts [m]`, the features and x . rows_i, row after row, to `indices` and `values`.
    Within a row, features are in an order that depends on d_sae only. Returns how many there are.
    """
    exact = np.empty(len(found), np.float32)
    _exact_products(offsets, found, x, rows, exact)
    n = 0
    for t in range(len(x)):
        before = n
        for c in range(offsets[t], offsets[t + 1]):
            if exact[c] + b[found[c]] > 0:
                indices[n], values[n] = found[c], exact[c]
                n += 1
        counts[t] = n - before
    return n
