"""Gradients of weight matrices in parts, never stored as a whole.

A gradient of a matrix with one row a feature is, in a training step, a sum of three kinds of parts: (token, feature)
pairs times a row of the token; whole rows of a few features; multiples of the matrix's own rows. While `collecting`,
the backward passes of the kernels hand over parts, and the optimiser adds up a row's gradient when it updates the row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

from monosem.kernels.codes import Layout


@dataclass(frozen=True, eq=False)
class Pairs:
    """Adds values[e] factors[t] to row i for every entry e = (t, i) of a layout [n, d_sae].

    values: [nnz]; factors: [n, d].
    """

    layout: Layout
    values: Tensor
    factors: Tensor


@dataclass(eq=False)
class RowGradient:
    """The gradient of a matrix [d_sae, d]: pairs; rows to add, `(features [m], rows [m, d])`; multiples [d_sae] of its
    own rows."""

    pairs: list[Pairs] = field(default_factory=list)
    rows: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    multiples: Tensor | None = None

    def add_multiples(self, scale: Tensor) -> None:
        """Add scale[i] times its own row to each row i."""
        self.multiples = scale if self.multiples is None else self.multiples + scale

    def square_bound(self, dense: Tensor | None, W: Tensor) -> float:
        """Return a number that the squared length of the whole gradient of W [d_sae, d] doesn't exceed, quickly.

        By the triangle inequality, row by row. dense: rows [d_sae, d] to add, or None.
        """
        lengths = torch.zeros(len(W), device=W.device)
        for pairs in self.pairs:
            sizes = torch.linalg.vector_norm(pairs.factors, dim=1).index_select(0, pairs.layout.rows)
            lengths.index_add_(0, pairs.layout.indices, pairs.values.flatten().abs() * sizes)
        for features, rows in self.rows:
            lengths.index_add_(0, features, torch.linalg.vector_norm(rows, dim=1))
        if dense is not None:
            lengths += torch.linalg.vector_norm(dense, dim=1)
        if self.multiples is not None:
            lengths += self.multiples.abs() * torch.linalg.vector_norm(W, dim=1)
        return 1.0001 * float(lengths.double().square().sum())

    def block(self, dense: Tensor | None, d_sae: int) -> tuple[Tensor, Tensor] | None:
        """Return all whole rows as (place [d_sae], rows): row i is rows[place[i]], or nothing where place is -1.

        dense: rows [d_sae, d] to add, or None.
        """
        if dense is None and not self.rows:
            return None
        if dense is not None and not self.rows:
            return torch.arange(d_sae, device=dense.device), dense
        if dense is None and len(self.rows) == 1:
            features, rows = self.rows[0]
            place = features.new_full((d_sae,), -1)
            place[features] = torch.arange(len(features), device=features.device)
            return place, rows.contiguous()
        total = dense.clone() if dense is not None else self.rows[0][1].new_zeros(d_sae, self.rows[0][1].shape[1])
        for features, rows in self.rows:
            total.index_add_(0, features, rows)
        return torch.arange(d_sae, device=total.device), total.contiguous()


_collected: ContextVar[dict[int, RowGradient] | None] = ContextVar("collected", default=None)


@contextmanager
def collecting(gradients: dict[int, RowGradient]) -> Iterator[None]:
    """Collect gradients of matrices in parts. gradients: by `id(matrix)`; `backward` fills those of what is computed in
    this context. What autograd itself computes still arrives in `.grad`.
    """
    token = _collected.set(gradients)
    try:
        yield
    finally:
        _collected.reset(token)


def collected(matrix: Tensor) -> RowGradient | None:
    """Return where the gradient of `matrix` is being collected, or None if nowhere."""
    found = _collected.get()
    return None if found is None else found.get(id(matrix))
