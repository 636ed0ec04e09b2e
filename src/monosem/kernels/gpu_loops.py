"""Triton kernels for NVIDIA GPUs: what `loops` does on a CPU. `gpu` launches them on tensors.

Matrices are float32, row-major and contiguous; d is the number of columns of `rows`. Every program owns what it writes
and adds in a fixed order, without atomics, so results repeat bit for bit. Products are sums of float32 products: no
tensor core rounds them to TF32. Names in capitals are compiled in.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl

ENTRIES = 16
"""Entries of a layout that a program works on at a time: enough loads under way to hide the memory's latency."""

COLUMNS = 128
"""Columns that a program works on at a time: 512 bytes of a row."""

WORD = 16
"""Features a word of a bit mask (int32 words, so that sums of bits never overflow)."""

TOKENS, FEATURES = 4, 512
"""Tokens and features that a program looks through: the tokens share what is loaded for the features."""


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run a kernel on the device of its first argument."""
    device = arguments[0].device
    if 0 not in grid:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            kernel[grid](*arguments, **constants)


def blocks(n: int, size: int) -> int:
    """Return how many blocks of `size` cover n."""
    return -(-n // size)


def warps(width: int) -> int:
    """Return how many warps should share a row of `width` numbers: about 8 numbers a thread."""
    return max(1, min(16, width // 256))


@triton.jit
def row_sums(
    offsets, indices, values, rows, start, out, d, START: tl.constexpr, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr
):
    """Write base + sum_e values[e] rows[indices[e]] over the entries e of a row of a layout to a row of out [n, d].

    START: the base is 0, the vector start [d] or what `out` holds, for "zero", "vector" and "out". One program for each
    row and block of columns.
    """
    row = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = j < d
    last = tl.load(offsets + row + 1)
    total = tl.zeros((ENTRIES, COLUMNS), tl.float32)
    for first in range(tl.load(offsets + row), last, ENTRIES):
        e = first + tl.arange(0, ENTRIES)
        there = e < last
        i = tl.load(indices + e, mask=there, other=0)
        v = tl.load(values + e, mask=there, other=0.0)
        places = rows + i[:, None] * d + j[None, :]
        total += v[:, None] * tl.load(places, mask=there[:, None] & inside[None, :], other=0.0)
    result = tl.sum(total, 0)
    if START == "vector":
        result += tl.load(start + j, mask=inside, other=0.0)
    if START == "out":
        result += tl.load(out + row * d + j, mask=inside, other=0.0)
    tl.store(out + row * d + j, result, mask=inside)


@triton.jit
def pair_products(tokens, indices, x, rows, out, nnz, d, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr):
    """Write x[tokens[e]] . rows[indices[e]] to out[e] for ENTRIES entries e of the nnz.

    All entries of a program are added up in the same order: equal rows have equal products.
    """
    e = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    there = e < nnz
    t = tl.load(tokens + e, mask=there, other=0)
    i = tl.load(indices + e, mask=there, other=0)
    total = tl.zeros((ENTRIES, COLUMNS), tl.float32)
    for first in range(0, d, COLUMNS):
        j = first + tl.arange(0, COLUMNS)
        inside = there[:, None] & (j < d)[None, :]
        a = tl.load(x + t[:, None] * d + j[None, :], mask=inside, other=0.0)
        total += a * tl.load(rows + i[:, None] * d + j[None, :], mask=inside, other=0.0)
    tl.store(out + e, tl.sum(total, 1), mask=there)


@triton.jit
def measure_rounding(rows, rounded, scale, norm, error, d, COLUMNS: tl.constexpr):
    """Write the lengths of rows_i scale and of (rows_i - rounded_i) scale to norm and error; rounded: bfloat16."""
    row = tl.program_id(0).to(tl.int64)
    square = tl.zeros((COLUMNS,), tl.float32)
    wrong = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, d, COLUMNS):
        j = first + tl.arange(0, COLUMNS)
        inside = j < d
        f = tl.load(scale + j, mask=inside, other=0.0)
        exact = tl.load(rows + row * d + j, mask=inside, other=0.0)
        off = (exact - tl.load(rounded + row * d + j, mask=inside, other=0.0).to(tl.float32)) * f
        square += (exact * f) * (exact * f)
        wrong += off * off
    tl.store(norm + row, tl.sqrt_rn(tl.sum(square, 0)))
    tl.store(error + row, tl.sqrt_rn(tl.sum(wrong, 0)))


@triton.jit
def peaks(estimates, b, best, where, d_sae, groups, GROUP: tl.constexpr, GROUPS: tl.constexpr):
    """Write the largest estimate + b of each group of GROUP features, and its feature, to best and where [n, groups].

    One program for each row of `estimates [n, d_sae]` and GROUPS groups.
    """
    t = tl.program_id(0).to(tl.int64)
    g = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    i = g[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = i < d_sae
    h = tl.load(estimates + t * d_sae + i, mask=inside, other=0.0) + tl.load(b + i, mask=inside, other=0.0)
    h = tl.where(inside, h, float("-inf"))
    tl.store(best + t * groups + g, tl.max(h, 1), mask=g < groups)
    tl.store(where + t * groups + g, (g * GROUP + tl.argmax(h, 1)).to(tl.int64), mask=g < groups)


@triton.jit
def mark_candidates(
    estimates,
    norm,
    error,
    b,
    x_norm,
    x_error,
    worst,
    words,
    counts,
    n,
    d_sae,
    TOKENS: tl.constexpr,
    FEATURES: tl.constexpr,
    WORD: tl.constexpr,
):
    """Mark the features that reach worst[t] if the estimates are as wrong as they can be: x_error[t] norm[i] +
    x_norm[t] error[i].

    Writes bit i % WORD of words [n, tiles, FEATURES / WORD], and how many there are of a tile of FEATURES features to
    counts [n, tiles]. The sum is rounded only where that can't hide a candidate: first the bound, then b, as in the
    exact product.
    """
    t = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    i = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    here, inside = t < n, i < d_sae
    both = here[:, None] & inside[None, :]
    h = tl.load(estimates + t[:, None] * d_sae + i[None, :], mask=both, other=0.0)
    far = tl.load(x_error + t, mask=here, other=0.0)[:, None] * tl.load(norm + i, mask=inside, other=0.0)[None, :]
    far += tl.load(x_norm + t, mask=here, other=0.0)[:, None] * tl.load(error + i, mask=inside, other=0.0)[None, :]
    h = (h + far) + tl.load(b + i, mask=inside, other=0.0)[None, :]
    found = ((h >= tl.load(worst + t, mask=here, other=0.0)[:, None]) & both).to(tl.int32)
    tile = t * tl.num_programs(1) + tl.program_id(1)
    tl.store(counts + tile, tl.sum(found, 1), mask=here)
    bits = tl.reshape(found, (TOKENS, FEATURES // WORD, WORD)) << tl.arange(0, WORD)[None, None, :]
    places = tile[:, None] * (FEATURES // WORD) + tl.arange(0, FEATURES // WORD)[None, :]
    tl.store(words + places, tl.sum(bits, 2), mask=here[:, None])


@triton.jit
def write_candidates(words, counts, ends, indices, FEATURES: tl.constexpr, WORD: tl.constexpr):
    """Write the marked features in ascending order; ends [n, tiles]: the place in `indices` after each tile's last."""
    tile = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    count = tl.load(counts + tile)
    if count > 0:
        i = tl.arange(0, FEATURES)
        found = (tl.load(words + tile * (FEATURES // WORD) + i // WORD) >> (i % WORD)) & 1
        place = tl.load(ends + tile) - count + tl.cumsum(found, 0) - 1
        tl.store(indices + place, (tl.program_id(1) * FEATURES + i).to(tl.int64), mask=found > 0)


@triton.jit
def _row_gradient(i, row, j, inside, sums, place, block, scale, d, HAS_BLOCK, HAS_SCALE, UNIT):
    """Return row i of a gradient; see `loops.gradient_row`. sums: what the pairs add; row: the matrix's own row."""
    g = tl.load(sums + i * d + j, mask=inside, other=0.0)
    if HAS_BLOCK:
        p = tl.load(place + i)
        g += tl.load(block + p * d + j, mask=inside & (p >= 0), other=0.0)
    if HAS_SCALE:
        g += tl.load(scale + i) * row
    if UNIT:
        g -= tl.sum(g * row, 0) * row
    return g


@triton.jit
def gradient_squares(
    sums,
    place,
    block,
    scale,
    W,
    out,
    d,
    HAS_BLOCK: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    UNIT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Write the squared norm of a row of a gradient to `out`; a program a row, WIDTH >= d."""
    i = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, WIDTH)
    inside = j < d
    row = tl.load(W + i * d + j, mask=inside, other=0.0)
    g = _row_gradient(i, row, j, inside, sums, place, block, scale, d, HAS_BLOCK, HAS_SCALE, UNIT)
    tl.store(out + i, tl.sum(g * g, 0))


@triton.jit
def adam_rows(
    sums,
    place,
    block,
    scale,
    W,
    m,
    v,
    factor,
    rate,
    beta1,
    rest1,
    beta2,
    rest2,
    root,
    eps,
    d,
    HAS_BLOCK: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    UNIT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Take an Adam step with a row of a gradient times `factor`; see `loops.adam_rows`. A program a row, WIDTH >= d."""
    i = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, WIDTH)
    inside = j < d
    row = tl.load(W + i * d + j, mask=inside, other=0.0)
    g = factor * _row_gradient(i, row, j, inside, sums, place, block, scale, d, HAS_BLOCK, HAS_SCALE, UNIT)
    first = beta1 * tl.load(m + i * d + j, mask=inside, other=0.0) + rest1 * g
    second = beta2 * tl.load(v + i * d + j, mask=inside, other=0.0) + rest2 * g * g
    tl.store(m + i * d + j, first, mask=inside)
    tl.store(v + i * d + j, second, mask=inside)
    row -= tl.div_rn(rate * first, tl.div_rn(tl.sqrt_rn(second), root) + eps)
    row = tl.where(inside, row, 0.0)  # eps may be 0
    if UNIT:
        square = tl.sum(row * row, 0)
        row *= tl.where(square > 0, tl.div_rn(1.0, tl.sqrt_rn(square)), 1.0)
    tl.store(W + i * d + j, row, mask=inside)
