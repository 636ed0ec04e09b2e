"""The kernels on an NVIDIA GPU: the functions of `cpu` for CUDA tensors, by torch and Triton (`gpu_loops`).

The look at all products is a bfloat16 product on the tensor cores with float32 sums. It is wrong by at most
    |x - x'| |w_i|  +  |x'| |w_i - w'_i|  +  rounding of the sum,
where x' and w'_i are the rounded rows and the lengths are taken with the screen's scale: the certificate of `screen`,
only with other numbers. What is chosen, and its values, are those of float32 products.
Needs Triton (`pip install monosem[gpu]`), torch 2.8 and compute capability 8.0. On CPU tensors everything runs under
Triton's interpreter (TRITON_INTERPRET=1 in the environment), slowly, for tests. Not run on a GPU yet: only interpreted,
and compiled for compute capability 8.0 and 9.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from monosem.kernels import gpu_loops
from monosem.kernels.codes import Layout
from monosem.kernels.cpu import DENSE_ABOVE
from monosem.kernels.gpu_loops import COLUMNS, ENTRIES, FEATURES, TOKENS, WORD, blocks, launch, warps
from monosem.kernels.gradients import RowGradient
from monosem.kernels.screen import Screen, fitted_scale, require_finite

__all__ = ["active", "adam", "gradient_squares", "make_screen", "pair_products", "row_sums", "supports", "top"]

PRODUCTS = 1 << 27
"""Products of tokens with features that are in memory at a time: 512 MB."""

SUMS = 1 << 26
"""Numbers of a gradient that are in memory at a time: 256 MB."""

HEAD = 256
"""Tokens on which `active` first finds out whether the codes are dense."""

WIDEST = 1 << 14
"""Columns of the widest matrix: the optimiser keeps a row in registers."""

LOST = 1.25 * 2**-23
"""Bound on what is lost of |x| |w_i| for each term of a sum. Tensor cores may cut float32 sums off instead of rounding
them, once for each term and once more for each 16 terms; the exact products lose less than the rest."""

LAST = (1 << 31) - 1
"""The last feature that there can be."""


def supports(x: Tensor, W: Tensor) -> bool:
    """Whether these kernels can multiply x and W."""
    fits = min(W.shape) <= WIDEST and max(W.shape) <= LAST
    return x.device == W.device and x.dtype == W.dtype == torch.float32 and fits and _able(x.device)


@cache
def _able(device: torch.device) -> bool:
    """Whether the device is an NVIDIA GPU that Triton compiles these kernels for, and torch can add bfloat16 up."""
    if device.type != "cuda" or torch.version.cuda is None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    return tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 8)


def row_sums(layout: Layout, values: Tensor, rows: Tensor, start: Tensor | None = None) -> Tensor:
    """Return start + sum_e values[e] rows[indices[e]] for each row of the layout, [n, d]; start: [d]."""
    out = rows.new_empty(len(layout.offsets) - 1, rows.shape[1])
    _row_sums(layout.offsets, layout.indices, values, rows, start, out, "zero" if start is None else "vector")
    return out


def _row_sums(
    offsets: Tensor, indices: Tensor, values: Tensor, rows: Tensor, start: Tensor | None, out: Tensor, base: str
) -> None:
    """Write base + sum_e values[e] rows[indices[e]] for each row of a layout to `out [n, d]`."""
    d = rows.shape[1]
    tensors = _contiguous(offsets, indices, values, rows, out if start is None else start)
    grid = (len(out), blocks(d, COLUMNS))
    launch(gpu_loops.row_sums, grid, *tensors, out, d, START=base, ENTRIES=ENTRIES, COLUMNS=COLUMNS)


def pair_products(layout: Layout, x: Tensor, rows: Tensor) -> Tensor:
    """Return x[t] . rows[i] for every entry (t, i) of the layout, [nnz]."""
    nnz, d = len(layout.indices), rows.shape[1]
    out = rows.new_empty(nnz)
    tensors = _contiguous(layout.rows, layout.indices, x, rows)
    grid = (blocks(nnz, ENTRIES),)
    launch(gpu_loops.pair_products, grid, *tensors, out, nnz, d, ENTRIES=ENTRIES, COLUMNS=COLUMNS)
    return out


@dataclass
class HalfScreen(Screen):
    """A screen whose `quantised` are the rows rounded to bfloat16; unit: ones, for bfloat16 needs none."""

    def refresh(self) -> None:
        """Take over the values that `rows` has now."""
        assert self.quantised is not None
        self.quantised.copy_(self.rows)
        self.norm, self.error = _measure(self.rows, self.quantised, self.scale)
        self.error += LOST * self.rows.shape[1] * self.norm


def make_screen(W: Tensor, x: Tensor) -> Screen:
    """Return a screen of W [d_in, d_sae], its scale fitted to a batch x [n, d_in].

    The scale is that of 8-bit screens. It doesn't change how bfloat16 rounds, but how well that is known: without it,
    the rounding of an outlier dimension of x would count with whole rows.
    """
    rows = W.data.t().contiguous()  # .data: a view of W would keep W alive for ever
    scale = fitted_scale(rows, x)
    ones, empty = rows.new_ones(len(rows)), rows.new_empty(len(rows))
    screen = HalfScreen(rows, scale, torch.empty_like(rows, dtype=torch.bfloat16), ones, empty, empty)
    screen.refresh()
    return screen


def _measure(rows: Tensor, rounded: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lengths of rows_i scale and (rows_i - rounded_i) scale, [n]."""
    norm, error = (rows.new_empty(len(rows)) for _ in range(2))
    arguments = (rows, rounded, scale, norm, error, rows.shape[1])
    launch(gpu_loops.measure_rounding, (len(rows),), *arguments, COLUMNS=4 * COLUMNS)
    return norm, error


class _View:
    """Rows x [n, d_in] ready to be multiplied with a screen."""

    def __init__(self, x: Tensor, screen: Screen):
        """Round x to bfloat16. Raises UserError for NaN or infinite values."""
        assert screen.quantised is not None
        self.x, self.screen, self.features = x.contiguous(), screen, screen.quantised
        self.rounded = self.x.to(torch.bfloat16)
        self.norm, self.error = _measure(self.x, self.rounded, 1 / screen.scale)
        self.norm += self.error  # now no shorter than the rounded rows
        require_finite(self.norm)

    def chunks(self, head: int = 0) -> Iterator[slice]:
        """Return slices of the rows, so that PRODUCTS are in memory at a time; head: length of the first one."""
        n, size = len(self.x), max(1, PRODUCTS // len(self.features))
        cuts = [*range(min(head, size), n, size), n]
        cuts = cuts if cuts[0] == 0 else [0, *cuts]
        return (slice(first, last) for first, last in pairwise(cuts))

    def estimates(self, here: slice) -> Tensor:
        """Return about x . w_i for some rows, float32 [m, d_sae]."""
        if self.x.device.type == "cpu":
            return self.rounded[here].float() @ self.features.float().t()
        return torch.mm(self.rounded[here], self.features.t(), out_dtype=torch.float32)

    def candidates(self, here: slice, estimates: Tensor, b: Tensor, worst: Tensor) -> Layout:
        """Return where x . w_i + b_i >= worst[t] is possible, for some rows; features ascend within a row."""
        n, d_sae = estimates.shape
        tiles = blocks(d_sae, FEATURES)
        words = torch.empty(n, tiles, FEATURES // WORD, dtype=torch.int32, device=b.device)
        counts = torch.empty(n, tiles, dtype=torch.int32, device=b.device)
        bounds = (self.screen.norm, self.screen.error, b, self.norm[here], self.error[here], worst)
        sizes = {"FEATURES": FEATURES, "WORD": WORD}
        grid = (blocks(n, TOKENS), tiles)
        launch(gpu_loops.mark_candidates, grid, estimates, *bounds, words, counts, n, d_sae, TOKENS=TOKENS, **sizes)
        ends = counts.flatten().cumsum(0)  # int64
        offsets = torch.cat([ends.new_zeros(1), ends[tiles - 1 :: tiles]])
        indices = ends.new_empty(int(offsets[-1]))
        launch(gpu_loops.write_candidates, (n, tiles), words, counts, ends, indices, **sizes)
        return Layout(offsets, indices, d_sae)


def top(x: Tensor, screen: Screen, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k features with the largest x . w_i + b_i for each row of x, and x . w_i; both [n, k].

    Of the groups of features that look best, the best-looking features are computed exactly: k features reach the
    worst of them. Then every other feature that may reach it, too, is computed.
    """
    n = len(x)
    indices, values = x.new_empty((n, k), dtype=torch.int64), x.new_empty(n, k)
    if n == 0 or k == 0:
        return indices, values
    view, b = _View(x, screen), b.contiguous()
    for here in view.chunks():
        rows, estimates = view.x[here], view.estimates(here)
        first = _promising(estimates, b, k)
        regular = Layout(torch.arange(0, first.numel() + 1, k, device=x.device), first.flatten(), len(b))
        sure = pair_products(regular, rows, screen.rows).view(first.shape)
        worst = (sure + b[first]).amin(1)
        estimates.scatter_(1, first, float("-inf"))
        others = view.candidates(here, estimates, b, worst)
        indices[here], values[here] = _best(first, sure, others, pair_products(others, rows, screen.rows), b, k)
    return indices, values


def _promising(estimates: Tensor, b: Tensor, k: int) -> Tensor:
    """Return k features of each row that are hardly worse than the k with the largest estimate + b, [m, k]."""
    n, d_sae = estimates.shape
    group = 1
    while group < 16 and 16 * k * group <= d_sae:  # so many groups that few of the k best share one
        group *= 2
    groups = blocks(d_sae, group)
    best, where = estimates.new_empty(n, groups), estimates.new_empty((n, groups), dtype=torch.int64)
    size = 1024 // group
    grid = (n, blocks(groups, size))
    launch(gpu_loops.peaks, grid, estimates, b, best, where, d_sae, groups, GROUP=group, GROUPS=size)
    return where.gather(1, best.topk(k, dim=1, sorted=False).indices)


def _best(first: Tensor, sure: Tensor, others: Layout, exact: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k features with the largest values + b, in descending order (ties: the lower feature first).

    first, sure: features and values, [m, k]; others, exact: more of them.
    """
    n, counts = len(first), others.offsets.diff()
    width = k + int(counts.max())
    features, values = first.new_zeros(n, width), sure.new_zeros(n, width)
    keys = torch.full((n, width), -(1 << 63), device=b.device)
    place = torch.arange(len(exact), device=b.device) - others.offsets[others.rows] + k
    features[:, :k], values[:, :k], keys[:, :k] = first, sure, _key(sure + b[first], first)
    features[others.rows, place], values[others.rows, place] = others.indices, exact
    keys[others.rows, place] = _key(exact + b[others.indices], others.indices)
    chosen = keys.topk(k, dim=1).indices
    return features.gather(1, chosen), values.gather(1, chosen)


def _key(values: Tensor, features: Tensor) -> Tensor:
    """Return int64 that order as the values do and, where these are equal, as the features do backwards."""
    bits = (values + 0.0).view(torch.int32).long()  # + 0.0: -0.0 becomes 0.0
    return (torch.where(bits < 0, bits ^ LAST, bits) << 32) + (LAST - features)


def active(x: Tensor, screen: Screen, b: Tensor) -> tuple[Layout, Tensor] | None:
    """Return where x . w_i + b_i > 0 and the values of x . w_i there; None if it's often. Features ascend in a row."""
    view, b, d_sae = _View(x, screen), b.contiguous(), len(b)
    counts, indices, values = [b.new_zeros(1, dtype=torch.int64)], [], [b.new_empty(0)]
    for here in view.chunks(HEAD):
        rows = view.x[here]
        found = view.candidates(here, view.estimates(here), b, b.new_zeros(len(rows)))
        if len(found.indices) > DENSE_ABOVE * len(rows) * d_sae:
            return None
        exact = pair_products(found, rows, screen.rows)
        positive = exact + b[found.indices] > 0
        before = torch.cat([counts[0], positive.cumsum(0)])
        counts.append(before[found.offsets].diff())
        indices.append(found.indices[positive])
        values.append(exact[positive])
    features = torch.cat(indices) if indices else counts[0][:0]
    return Layout(torch.cat(counts).cumsum(0), features, d_sae), torch.cat(values)


def gradient_squares(gradient: RowGradient, dense: Tensor | None, W: Tensor, unit: bool) -> Tensor:
    """Return the squared length of each row of a gradient of W [d_sae, d], [d_sae].

    dense: a part of it that is stored as a whole [d_sae, d], or None; unit: whether the component along each row of W
    is left out.
    """
    out = W.new_empty(len(W))
    for here, parts, flags in _parts(gradient, dense, W):
        launch(gpu_loops.gradient_squares, (len(W[here]),), *parts, W[here], out[here], W.shape[1], UNIT=unit, **flags)
    return out


def adam(
    gradient: RowGradient,
    dense: Tensor | None,
    W: Tensor,
    moments: tuple[Tensor, Tensor],
    numbers: tuple[float, ...],
    unit: bool,
    screen: Screen | None = None,
) -> None:
    """Take an Adam step with W [d_sae, d], in place; see `loops.adam_rows` for the numbers.

    screen: of W, to be kept up with it, or None.
    """
    assert W.is_contiguous()
    for here, parts, flags in _parts(gradient, dense, W):
        state = [tensor[here] for tensor in (W, *moments)]
        launch(gpu_loops.adam_rows, (len(W[here]),), *parts, *state, *numbers, W.shape[1], UNIT=unit, **flags)
    if screen is not None:
        screen.refresh()


def _parts(
    gradient: RowGradient, dense: Tensor | None, W: Tensor
) -> Iterator[tuple[slice, tuple[Tensor, ...], dict[str, Any]]]:
    """Return, for some rows of W at a time, what the pairs add to their gradient and where to find its other parts.

    The sums are overwritten when the next ones are asked for.
    """
    d_sae, d = W.shape
    terms = []
    for pairs in gradient.pairs:
        turned, order = pairs.layout.by_feature
        terms.append((turned, pairs.values.flatten()[order], pairs.factors.contiguous()))
    size = max(1, min(d_sae, SUMS // d))
    sums, found = W.new_zeros(size, d), gradient.block(dense, d_sae)
    width = 1 << (d - 1).bit_length()
    flags = {"HAS_BLOCK": found is not None, "HAS_SCALE": gradient.multiples is not None, "WIDTH": width}
    flags["num_warps"] = warps(width)
    for first in range(0, d_sae, size):
        here = slice(first, min(first + size, d_sae))
        out = sums[: here.stop - first]
        for number, (turned, values, factors) in enumerate(terms):
            offsets = turned.offsets[first : here.stop + 1]
            _row_sums(offsets, turned.indices, values, factors, None, out, "out" if number else "zero")
        place, block = (out, out) if found is None else (found[0][here], found[1])
        scale = out if gradient.multiples is None else gradient.multiples[here].contiguous()
        yield here, (out, place, block, scale), flags


def _contiguous(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().contiguous() for tensor in tensors]
