"""The kernels on a CPU: `loops` on tensors, spread over threads. `gpu` has the same functions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from monosem.kernels import loops, memory, search
from monosem.kernels.codes import Layout
from monosem.kernels.gradients import RowGradient
from monosem.kernels.screen import Screen, int8_product, quantise, require_finite
from monosem.kernels.threads import run_all, spread, thread_count

T = TypeVar("T")

CHUNK = 256
"""Tokens whose products with all features are in memory at a time: they should stay in the cache."""

CHUNK_ENTRIES = 1 << 25
"""Products that are in memory at a time, at most."""

DENSE_ABOVE = 0.2
"""Density of ReLU codes above which dense products are faster (measured break-even: 0.2 to 0.25)."""

WORK_ABOVE = 0.2
"""Share of candidates among the products above which computing all products in float32 is faster."""


def supports(x: Tensor, W: Tensor) -> bool:
    """Whether these kernels can multiply x and W."""
    return x.device.type == W.device.type == "cpu" and x.dtype == W.dtype == torch.float32


def row_sums(layout: Layout, values: Tensor, rows: Tensor, start: Tensor | None = None) -> Tensor:
    """Return start + sum_e values[e] rows[indices[e]] for each row of the layout, [n, d]; start: [d]."""
    n, d = len(layout.offsets) - 1, rows.shape[1]
    out = torch.empty(n, d)
    first = torch.zeros(d) if start is None else start
    arrays = _arrays(layout.offsets, layout.indices, values, rows, first, out)
    spread(lambda a, b: loops.row_sums(*arrays, a, b), n)
    return out


def pair_products(layout: Layout, x: Tensor, rows: Tensor) -> Tensor:
    """Return x[t] . rows[i] for every entry (t, i) of the layout, [nnz]."""
    out = torch.empty(len(layout.indices))
    turned, order = layout.by_feature
    arrays = _arrays(turned.offsets, turned.indices, order, x, rows, out)
    spread(lambda a, b: loops.pair_products(*arrays, a, b), len(rows))
    return out


def top(x: Tensor, screen: Screen, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k features with the largest x . w_i + b_i for each row of x, and x . w_i; both [n, k]."""
    n, look = len(x), _Look(x, screen)
    indices, values, heads = np.empty((n, k), np.int64), np.empty((n, k), np.float32), np.empty(n, np.int64)
    rows, *sizes, bias = _arrays(screen.rows, screen.unit, screen.norm, screen.error, b)

    def find(here: slice) -> list[np.ndarray]:
        counts, found, exact = look.room(here)
        products, *of_x = look.products(here)
        size = search.top_candidates(
            products, look.x[here], *of_x, rows, *sizes, bias, k, heads[here], counts, found, exact
        )
        return [counts, found[:size].copy(), exact[:size].copy()]

    offsets, found, exact = _joined(run_all(look.tasks(find)))

    def choose(first: int, last: int) -> None:
        here, begin, end = slice(first, last), offsets[first], offsets[last]
        candidates = offsets[first : last + 1] - begin, heads[here], found[begin:end], exact[begin:end]
        search.choose_top(*candidates, look.x[here], rows, bias, k, indices[here], values[here])

    spread(choose, n)
    return torch.from_numpy(indices), torch.from_numpy(values)


def active(x: Tensor, screen: Screen, b: Tensor) -> tuple[Layout, Tensor] | None:
    """Return where x . w_i + b_i > 0 and the values of x . w_i there; None if the first rows show that it's often."""
    look, candidates = screen, None
    if screen.narrow:
        candidates = _active_candidates(x, screen, b)
    if candidates is None and screen.quantised is not None:
        look = screen.exact()
        candidates = _active_candidates(x, look, b)
    if candidates is None:
        return None
    offsets, found = candidates
    (tokens, *shared), pieces = _arrays(x, screen.rows, b), {}

    def choose(first: int, last: int) -> None:
        begin, end = offsets[first], offsets[last]
        counts, indices = np.empty(last - first, np.int64), np.empty(end - begin, np.int64)
        values = np.empty(end - begin, np.float32)
        arrays = offsets[first : last + 1] - begin, found[begin:end], tokens[first:last]
        size = search.choose_active(*arrays, *shared, counts, indices, values)
        pieces[first] = [counts, indices[:size], values[:size]]

    spread(choose, len(x))
    joined = _joined([pieces[first] for first in sorted(pieces)])
    offsets, indices, values = (torch.from_numpy(array) for array in joined)
    if look is not screen:  # 8 bits leave about three times as many candidates as are active
        screen.narrow = len(indices) < WORK_ABOVE / 3 * len(x) * len(screen.rows)
    return Layout(offsets, indices, len(screen.rows)), values


def _active_candidates(x: Tensor, screen: Screen, b: Tensor) -> tuple[np.ndarray, ...] | None:
    """Return offsets and features of all candidates; None where they're more than pays."""
    look = _Look(x, screen)
    shared = _arrays(screen.unit, screen.norm, screen.error, b)
    share = DENSE_ABOVE if screen.quantised is None else WORK_ABOVE

    def find(here: slice) -> list[np.ndarray] | None:
        counts, found, _ = look.room(here)
        limit = max(64, int(share * len(counts) * len(screen.rows)))
        size = search.active_candidates(*look.products(here), *shared, limit, counts, found)
        return None if size < 0 else [counts, found[:size].copy()]

    tasks = look.tasks(find)
    pieces = run_all(tasks[:1])  # alone: where codes are dense, this is all that is done in vain
    if pieces[0] is not None:
        pieces += run_all(tasks[1:])
    whole = [piece for piece in pieces if piece is not None]
    return _joined(whole) if len(whole) == len(tasks) else None


def _joined(pieces: list[list[np.ndarray]]) -> tuple[np.ndarray, ...]:
    """Return offsets and what else each piece holds, from pieces that begin with the counts of their rows."""
    counts, *rest = (np.concatenate(part) for part in zip(*pieces, strict=True))
    return np.concatenate([[0], counts.cumsum()]), *rest


class _Look:
    """Rows x [n, d_in] ready to be multiplied with a screen."""

    def __init__(self, x: Tensor, screen: Screen):
        """Round x to 8 bits if the screen is. Raises UserError for NaN or infinite values."""
        self.screen = screen
        if screen.quantised is None:
            self.left = x
            norm = torch.linalg.vector_norm(x, dim=1)
            unit, error = torch.ones(len(x)), torch.zeros(len(x))
        else:
            self.left = torch.empty(x.shape, dtype=torch.int8)
            unit, norm, error = quantise(x, 1 / screen.scale, self.left)
            norm += error
        require_finite(norm)
        self.x, *self.sizes = _arrays(x, unit, norm, error)

    def tasks(self, find: Callable[[slice], T]) -> list[Callable[[], T]]:
        """Return `find` bound to each chunk of rows, at least one."""
        n = len(self.x)
        size = max(1, min(CHUNK, -(-n // thread_count()), CHUNK_ENTRIES // len(self.screen.rows)))
        return [partial(find, slice(first, min(first + size, n))) for first in range(0, max(1, n), size)]

    def room(self, here: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return room for the counts, the candidates and their values of some rows. Memory is taken when used."""
        rows = here.stop - here.start
        most = (rows + 1) * len(self.screen.rows) + 1
        return np.empty(rows, np.int64), np.empty(most, np.int64), np.empty(most, np.float32)

    def products(self, here: slice) -> list[np.ndarray]:
        """Return products, unit, norm and error of some rows."""
        rows, d_sae = here.stop - here.start, len(self.screen.rows)
        if self.screen.quantised is None:
            out = _buffer(rows, d_sae, torch.float32)
            torch.mm(self.left[here], self.screen.rows.t(), out=out)
        else:
            out = _buffer(rows, d_sae, torch.int32)
            int8_product(self.left[here], self.screen.quantised, out)
        return [out.numpy(), *(size[here] for size in self.sizes)]


_buffers = threading.local()


def _buffer(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Return this thread's buffer [rows, columns]: fresh memory of this size would cost more than a product."""
    flat = getattr(_buffers, "flat", None)
    if flat is None or len(flat) < rows * columns:
        flat = _buffers.flat = memory.zeros((rows * columns,), torch.int32)
    return flat[: rows * columns].view(dtype).view(rows, columns)


def gradient_squares(gradient: RowGradient, dense: Tensor | None, W: Tensor, unit: bool) -> Tensor:
    """Return the squared length of each row of a gradient of W [d_sae, d], [d_sae].

    dense: a part of it that is stored as a whole [d_sae, d], or None; unit: whether the component along each row of W
    is left out.
    """
    out = torch.empty(len(W))
    parts = _parts(gradient, dense, W)
    matrix, target = W.numpy(), out.numpy()
    spread(lambda a, b: loops.gradient_squares(*parts, matrix, unit, target, a, b), len(W))
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
    parts = _parts(gradient, dense, W)
    arrays = _arrays(W, *moments)
    look = _NO_LOOK
    if screen is not None and screen.quantised is not None:
        look = tuple(_arrays(screen.scale, screen.quantised, screen.unit, screen.norm, screen.error))
    scalars = [np.float32(number) for number in numbers]
    spread(lambda a, b: loops.adam_rows(*parts, arrays[0], unit, *arrays[1:], look, *scalars, a, b), len(W))


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


_NO_LOOK = tuple(_arrays(torch.empty(0), torch.empty(0, 0, dtype=torch.int8), *[torch.empty(0)] * 3))


def _parts(gradient: RowGradient, dense: Tensor | None, W: Tensor) -> tuple:
    terms = []
    for pairs in gradient.pairs:
        turned, order = pairs.layout.by_feature
        terms.append(tuple(_arrays(turned.offsets, turned.indices, pairs.values.index_select(0, order), pairs.factors)))
    if not terms:  # a tuple of one kind of tuples has to hold one
        none, number = np.empty(0, np.int64), np.empty((0, W.shape[1]), np.float32)
        terms.append((np.zeros(len(W) + 1, np.int64), none, np.empty(0, np.float32), number))
    found = gradient.block(dense, len(W))
    place, block = (np.empty(0, np.int64), np.empty((0, W.shape[1]), np.float32)) if found is None else _arrays(*found)
    scale = np.empty(0, np.float32) if gradient.multiples is None else gradient.multiples.contiguous().numpy()
    return tuple(terms), place, block, scale
