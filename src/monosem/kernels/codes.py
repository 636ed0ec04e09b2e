"""Feature activations ("codes") of a batch, in three forms with the same four verbs.

Every form has `values` (the entries it stores) and `n_tokens`; `at` and `like` let the mathematics of a variant be
written once for all forms: `codes.like(relu(codes.values + codes.at(b_enc)))`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from monosem.kernels import loops


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the entries of a sparse matrix `[n, d_sae]` lie, row by row (the index half of a CSR matrix).

    offsets: int64 [n + 1], the entries of row r are offsets[r] to offsets[r + 1]; indices: int64 [nnz], their
    features; d_sae: number of features. Several value vectors and products may share one layout.
    """

    offsets: Tensor
    indices: Tensor
    d_sae: int

    @cached_property
    def rows(self) -> Tensor:
        """Return the row of every entry, int64 [nnz]."""
        counts = self.offsets.diff()
        return torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=len(self.indices))

    @cached_property
    def by_feature(self) -> tuple[Layout, Tensor]:
        """Return the layout of the transposed matrix `[d_sae, n]` and the permutation int64 [nnz] that leads there: its
        e-th entry is our entry `order[e]`. Within a feature, rows ascend."""
        n, nnz = len(self.offsets) - 1, len(self.indices)
        if self.indices.device.type == "cpu":
            offsets, rows, order = (self.indices.new_empty(size) for size in (self.d_sae + 1, nnz, nnz))
            arrays = [t.contiguous().numpy() for t in (self.offsets, self.indices)]
            loops.transpose(*arrays, self.d_sae, offsets.numpy(), rows.numpy(), order.numpy())
            return Layout(offsets, rows, n), order
        order = self.indices.argsort(stable=True)
        counts = torch.bincount(self.indices, minlength=self.d_sae)
        return Layout(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), self.rows[order], n), order


@dataclass(frozen=True, eq=False)
class DenseCodes:
    """Feature activations as a dense tensor `values [n, d_sae]`, >= 0."""

    values: Tensor

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens n."""
        return self.values.shape[0]

    def at(self, per_feature: Tensor) -> Tensor:
        """Return the entries of `per_feature [d_sae]` in a shape that broadcasts against `values`."""
        return per_feature

    def like(self, values: Tensor) -> DenseCodes:
        """Return codes with other values at the same places."""
        return DenseCodes(values)

    def dense(self) -> Tensor:
        """Return the activations, [n, d_sae]."""
        return self.values

    def fired(self) -> Tensor:
        """Return bool [d_sae]: which features are active on at least one token."""
        return (self.values > 0).any(dim=0)

    def l0(self) -> Tensor:
        """Return the mean number of active features a token, a scalar."""
        return (self.values > 0).sum() / self.n_tokens


@dataclass(frozen=True, eq=False)
class SparseCodes:
    """Feature activations as `k` (index, value) pairs a token; pairs with value 0 are inactive.

    indices: int64 [n, k], distinct within a row; values: [n, k], >= 0; d_sae: number of features.
    """

    indices: Tensor
    values: Tensor
    d_sae: int

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens n."""
        return self.values.shape[0]

    @cached_property
    def layout(self) -> Layout:
        """Return where the pairs lie, for sparse products."""
        n, k = self.indices.shape
        offsets = torch.arange(0, n * k + 1, k, device=self.indices.device) if k else self.indices.new_zeros(n + 1)
        return Layout(offsets, self.indices.reshape(-1), self.d_sae)

    def at(self, per_feature: Tensor) -> Tensor:
        """Return the entries of `per_feature [d_sae]` that belong to the pairs, [n, k]."""
        return per_feature.index_select(0, self.indices.reshape(-1)).view(self.indices.shape)

    def like(self, values: Tensor) -> SparseCodes:
        """Return codes with other values at the same places."""
        codes = replace(self, values=values)
        codes.__dict__["layout"] = self.layout  # the cached property: sorted once, used by every product
        return codes

    def dense(self) -> Tensor:
        """Return the activations as a dense tensor [n, d_sae]."""
        shape = (self.values.shape[0], self.d_sae)
        return torch.zeros(shape, dtype=self.values.dtype, device=self.values.device).scatter(
            1, self.indices, self.values
        )

    def fired(self) -> Tensor:
        """Return bool [d_sae]: which features are active on at least one token."""
        return _fired(self.indices, self.values, self.d_sae)

    def l0(self) -> Tensor:
        """Return the mean number of active features a token, a scalar."""
        return (self.values > 0).sum() / self.n_tokens


@dataclass(frozen=True, eq=False)
class RaggedCodes:
    """Feature activations as any number of (index, value) pairs a token; pairs with value 0 are inactive.

    layout: where the pairs lie; values: [nnz], >= 0.
    """

    layout: Layout
    values: Tensor

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens n."""
        return len(self.layout.offsets) - 1

    @property
    def indices(self) -> Tensor:
        """Return the feature of every pair, int64 [nnz]."""
        return self.layout.indices

    @property
    def d_sae(self) -> int:
        """Return the number of features."""
        return self.layout.d_sae

    def at(self, per_feature: Tensor) -> Tensor:
        """Return the entries of `per_feature [d_sae]` that belong to the pairs, [nnz]."""
        return per_feature.index_select(0, self.layout.indices)

    def like(self, values: Tensor) -> RaggedCodes:
        """Return codes with other values at the same places."""
        return RaggedCodes(self.layout, values)

    def dense(self) -> Tensor:
        """Return the activations as a dense tensor [n, d_sae]."""
        shape = (self.n_tokens, self.d_sae)
        zeros = torch.zeros(shape, dtype=self.values.dtype, device=self.values.device)
        return zeros.index_put((self.layout.rows, self.layout.indices), self.values)

    def fired(self) -> Tensor:
        """Return bool [d_sae]: which features are active on at least one token."""
        return _fired(self.layout.indices, self.values, self.d_sae)

    def l0(self) -> Tensor:
        """Return the mean number of active features a token, a scalar."""
        return (self.values > 0).sum() / self.n_tokens


Codes = DenseCodes | SparseCodes | RaggedCodes


def _fired(indices: Tensor, values: Tensor, d_sae: int) -> Tensor:
    on = (values > 0).flatten().to(torch.int32)
    return torch.zeros(d_sae, dtype=torch.int32, device=values.device).index_add_(0, indices.flatten(), on) > 0
