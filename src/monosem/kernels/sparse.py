"""Encoding and decoding in pure PyTorch without dense decode or dense backward.

Of the five dense products of a training step (encoder, decoder, gradient of the codes, of W_dec, of W_enc) only the
encoder's has to look at every feature. The other four need the active (token, feature) pairs only; here they are sums
of gathered rows, each computed by `embedding_bag` with the pairs sorted by token (decoder) or by feature (gradients
of the weights). No atomics: a sum is always taken in the same order, so results repeat bit for bit. Elsewhere than on
a CPU the references run.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from monosem.kernels.codes import Codes, DenseCodes, Layout, RaggedCodes, SparseCodes

DENSE_ABOVE = 0.1
"""Density of the codes above which dense products are faster (measured break-even: 0.1 to 0.2)."""

CHUNK_ENTRIES = 1 << 22
"""Pre-activations that are computed and searched at a time: few, to stay in cache, but enough for a fast product."""

SMALL = 1 << 14
"""Matrices with fewer weights than this are always multiplied densely."""


def active_products(x: Tensor, W: Tensor, b: Tensor, centre: Tensor | None = None) -> DenseCodes | RaggedCodes:
    """Return the products `p = (x - centre) W` at (at least) every entry where `p + b > 0`.

    The biases are *not* in the values: the caller adds those it needs with `codes.at`, and must map every entry with
    `p + b <= 0` to 0, since the ragged form leaves them out.
    x: [n, d_in]; W: [d_in, d_sae]; b: [d_sae]; centre: [d_in] or None for 0. Gradients flow to x, W and centre.
    """
    if not _sparse_products_pay(W):
        return active_products_reference(x, W, b, centre)
    found = _active_entries(_centred(x, centre).detach(), W.detach(), b.detach())
    if found is None:
        return active_products_reference(x, W, b, centre)
    layout, values = found
    return RaggedCodes(layout, _Pick.apply(x, centre, W, values, layout))


def _active_entries(c: Tensor, W: Tensor, b: Tensor) -> tuple[Layout, Tensor] | None:
    """Return where `c W + b > 0` and the values of c W there, or None if the first rows show that it's often."""
    places, values = [], []
    for start, stop in _chunks(len(c), W.shape[1]):
        p = (c[start:stop] @ W).flatten()
        active = (p.view(-1, W.shape[1]) > -b).flatten().nonzero().squeeze(1)
        if start == 0 and len(active) > DENSE_ABOVE * p.numel():
            return None
        values.append(p[active])
        places.append(active + start * W.shape[1])
    where = torch.cat(places)
    row_ends = torch.arange(len(c) + 1, device=c.device) * W.shape[1]
    return Layout(torch.searchsorted(where, row_ends), where % W.shape[1], W.shape[1]), torch.cat(values)


def active_products_reference(x: Tensor, W: Tensor, b: Tensor, centre: Tensor | None = None) -> DenseCodes:
    """Return what `active_products` means, by one dense product: every entry of `(x - centre) W`."""
    return DenseCodes(_centred(x, centre) @ W)


def top_products(
    x: Tensor, W: Tensor, b: Tensor, k: int, centre: Tensor | None = None, among: Tensor | None = None
) -> SparseCodes:
    """Return the products `p = (x - centre) W` at the `k` entries of every row where `p + b` is largest.

    The biases are *not* in the values; the caller adds them with `codes.at`. Ties go as `torch.topk` has them.
    x: [n, d_in]; W: [d_in, d_sae]; b: [d_sae]; centre: [d_in] or None for 0; among: bool [d_sae], the features to
    choose from (at least k), or None for all. Gradients flow to x, W and centre.
    """
    if not _sparse_products_pay(W, k / W.shape[1]):
        return top_products_reference(x, W, b, k, centre, among)
    with torch.no_grad():
        c = _centred(x, centre)
        chosen = None if among is None else among.nonzero().squeeze(1)
        W_among, b_among = (W, b) if chosen is None else (W[:, chosen], b[chosen])
        indices = x.new_empty((len(x), k), dtype=torch.int64)
        values = x.new_empty((len(x), k))
        for start, stop in _chunks(len(x), W_among.shape[1]):
            p = c[start:stop] @ W_among
            picked = (p + b_among).topk(k, dim=1).indices
            torch.gather(p, 1, picked, out=values[start:stop])
            indices[start:stop] = picked if chosen is None else chosen[picked]
    codes = SparseCodes(indices, values, W.shape[1])
    return codes.like(_Pick.apply(x, centre, W, values.flatten(), codes.layout).view(values.shape))


def top_products_reference(
    x: Tensor, W: Tensor, b: Tensor, k: int, centre: Tensor | None = None, among: Tensor | None = None
) -> SparseCodes:
    """Return what `top_products` means, by one dense product and `torch.topk`."""
    p = _centred(x, centre) @ W
    h = p + b
    if among is not None:
        h = h.masked_fill(~among, -torch.inf)
    indices = h.topk(k, dim=1).indices
    return SparseCodes(indices, p.gather(1, indices), W.shape[1])


def decode(codes: Codes, W_dec: Tensor, b_dec: Tensor | None = None) -> Tensor:
    """Return the reconstruction `f W_dec + b_dec`, [n, d_in].

    codes: f [n, d_sae] in any form; W_dec: [d_sae, d_in]; b_dec: [d_in] or None for 0. Gradients flow to the values
    of the codes, W_dec and b_dec.
    """
    if isinstance(codes, DenseCodes):
        return decode_reference(codes, W_dec, b_dec)
    if not _sparse_products_pay(W_dec, codes.values.numel() / max(1, codes.n_tokens * codes.d_sae)):
        return decode_reference(codes, W_dec, b_dec)
    values = codes.values.flatten()
    out = _row_sums(codes.layout, values, W_dec.detach())  # autograd of embedding_bag gives the gradient of values
    out = _WeightGradient.apply(out, values.detach(), W_dec, codes.layout)
    return out if b_dec is None else out + b_dec


def decode_reference(codes: Codes, W_dec: Tensor, b_dec: Tensor | None = None) -> Tensor:
    """Return what `decode` means, by one dense product."""
    out = codes.dense() @ W_dec
    return out if b_dec is None else out + b_dec


class _Pick(torch.autograd.Function):
    """values = ((x - centre) W) at the entries of `layout`, already computed; the backward pass is sparse.

    With g the gradient of the values and G [n, d_sae] the sparse matrix that holds it: dW = (x - centre)^T G,
    dx = G W^T, dcentre = -W (sum of the rows of G), the last one summed over the batch before the product.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, centre: Tensor | None, W: Tensor, values: Tensor, layout: Layout) -> Tensor:
        ctx.save_for_backward(x, centre, W)
        ctx.layout = layout
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, centre, W = ctx.saved_tensors
        layout: Layout = ctx.layout
        dx = dcentre = dW = None
        if ctx.needs_input_grad[0]:
            dx = _row_sums(layout, g, W.t().contiguous())
        if centre is not None and ctx.needs_input_grad[1]:
            dcentre = -(W @ g.new_zeros(layout.d_sae).index_add_(0, layout.indices, g))
        if ctx.needs_input_grad[2]:
            dW = _row_sums(layout.transposed, g[layout.order], _centred(x, centre)).t()
        return dx, dcentre, dW, None, None


class _WeightGradient(torch.autograd.Function):
    """out unchanged; hands W_dec its gradient V^T g, where V [n, d_sae] holds `values` and g is the gradient of out."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, values: Tensor, W_dec: Tensor, layout: Layout) -> Tensor:
        ctx.save_for_backward(values)
        ctx.layout = layout
        return out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (values,) = ctx.saved_tensors
        layout: Layout = ctx.layout
        dW = None
        if ctx.needs_input_grad[2]:
            dW = _row_sums(layout.transposed, values[layout.order], g.contiguous())
        return g, None, dW, None


def _row_sums(layout: Layout, values: Tensor, rows: Tensor) -> Tensor:
    """Return the sparse-dense product of (layout, values) `[n, m]` and `rows [m, d]`, `[n, d]`."""
    return F.embedding_bag(
        layout.indices, rows, layout.offsets, mode="sum", per_sample_weights=values, include_last_offset=True
    )


def _centred(x: Tensor, centre: Tensor | None) -> Tensor:
    return x if centre is None else x - centre


def _chunks(n: int, d_sae: int) -> list[tuple[int, int]]:
    size = max(1, CHUNK_ENTRIES // max(1, d_sae))
    return [(start, min(start + size, n)) for start in range(0, n, size)] or [(0, 0)]


def _sparse_products_pay(W: Tensor, density: float = 0.0) -> bool:
    """Whether sums of gathered rows are faster than dense products with W for codes of this density."""
    fits = W.device.type == "cpu" and W.dtype in (torch.float32, torch.float64)
    return fits and W.numel() >= SMALL and density <= DENSE_ABOVE
