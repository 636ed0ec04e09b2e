"""Encoding and decoding: five verbs with gradients, each beside a slow, readable reference.

Of the five dense products of a training step (encoder, decoder, gradient of the codes, of W_dec, of W_enc) only the
encoder's has to look at every feature, and 8 bits are enough for that look (`screen`). The others need the active
(token, feature) pairs only: they are sums of rows. No atomics: a sum is always taken in the same order, so results
repeat bit for bit. While gradients are being collected (`gradients`), backward passes hand over parts, which the
optimiser adds up row by row; otherwise they return whole gradients, as autograd expects.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from monosem.kernels import cpu
from monosem.kernels.codes import Codes, DenseCodes, Layout, RaggedCodes, SparseCodes
from monosem.kernels.gradients import Pairs, RowGradient, collected
from monosem.kernels.screen import screen_of
from monosem.kernels.settings import reference

SMALL = 1 << 14
"""Matrices with fewer weights than this are always multiplied densely."""

DENSE_DECODE_ABOVE = 0.3
"""Density of the codes above which a dense decoder product is faster."""

DENSE_TOP_ABOVE = 1 / 32
"""Share of the features to be chosen above which all products are computed in full precision."""


def fast_kernels(x: Tensor, W: Tensor) -> ModuleType | None:
    """Return the module of fast kernels that can multiply x and W, or None: use the reference."""
    if reference.get() or W.numel() < SMALL:
        return None
    fast = cpu if x.device.type == "cpu" else _gpu_kernels()
    return fast if fast is not None and fast.supports(x, W) else None


@cache
def _gpu_kernels() -> ModuleType | None:
    """Return the kernels for GPUs; None without Triton."""
    try:
        from monosem.kernels import gpu
    except ImportError:
        return None
    return gpu


def active_products(x: Tensor, W: Tensor, b: Tensor, centre: Tensor | None = None) -> DenseCodes | RaggedCodes:
    """Return the products `p = (x - centre) W` at (at least) every entry where `p + b > 0`.

    The biases are *not* in the values: the caller adds those it needs with `codes.at`, and must map every entry with
    `p + b <= 0` to 0, since the ragged form leaves them out.
    x: [n, d_in]; W: [d_in, d_sae]; b: [d_sae]; centre: [d_in] or None for 0. Gradients flow to x, W and centre.
    Raises UserError for NaN or infinite x.
    """
    fast = fast_kernels(x, W)
    if fast is None:
        return active_products_reference(x, W, b, centre)
    c = _centred(x, centre).detach().contiguous()
    found = fast.active(c, screen_of(W, c), b.detach())
    if found is None:
        return active_products_reference(x, W, b, centre)
    layout, values = found
    return RaggedCodes(layout, _Pick.apply(x, centre, W, c, values, layout, fast))


def active_products_reference(x: Tensor, W: Tensor, b: Tensor, centre: Tensor | None = None) -> DenseCodes:
    """Return what `active_products` means, by one dense product: every entry of `(x - centre) W`."""
    return DenseCodes(_centred(x, centre) @ W)


def top_products(x: Tensor, W: Tensor, b: Tensor, k: int, centre: Tensor | None = None) -> SparseCodes:
    """Return the products `p = (x - centre) W` at the `k` entries of every row where `p + b` is largest, descending.

    The biases are *not* in the values; the caller adds them with `codes.at`. Of equal entries the kernels take the
    first ones.
    x: [n, d_in]; W: [d_in, d_sae]; b: [d_sae]; centre: [d_in] or None for 0. Gradients flow to x, W and centre.
    Raises UserError for NaN or infinite x.
    """
    fast = fast_kernels(x, W)
    if fast is None:
        return top_products_reference(x, W, b, k, centre)
    with torch.no_grad():
        c = _centred(x, centre).contiguous()
        if k > DENSE_TOP_ABOVE * W.shape[1]:
            p = c @ W
            indices = (p + b).topk(k, dim=1, sorted=False).indices
            values = p.gather(1, indices)
        else:
            indices, values = fast.top(c, screen_of(W, c), b.detach(), k)
    codes = SparseCodes(indices, values, W.shape[1])
    return codes.like(_Pick.apply(x, centre, W, c, values.flatten(), codes.layout, fast).view(values.shape))


def top_products_reference(x: Tensor, W: Tensor, b: Tensor, k: int, centre: Tensor | None = None) -> SparseCodes:
    """Return what `top_products` means, by one dense product and `torch.topk`."""
    p = _centred(x, centre) @ W
    indices = (p + b).topk(k, dim=1).indices
    return SparseCodes(indices, p.gather(1, indices), W.shape[1])


def decode(codes: Codes, W_dec: Tensor, b_dec: Tensor | None = None) -> Tensor:
    """Return the reconstruction `f W_dec + b_dec`, [n, d_in].

    codes: f [n, d_sae] in any form; W_dec: [d_sae, d_in]; b_dec: [d_in] or None for 0. Gradients flow to the values
    of the codes, W_dec and b_dec.
    """
    fast = fast_kernels(codes.values, W_dec)
    share = codes.values.numel() / max(1, codes.n_tokens * W_dec.shape[0])
    if fast is None or isinstance(codes, DenseCodes) or share > DENSE_DECODE_ABOVE:
        return decode_reference(codes, W_dec, b_dec)
    return _Decode.apply(codes.values.flatten(), W_dec, b_dec, codes.layout, fast)


def decode_reference(codes: Codes, W_dec: Tensor, b_dec: Tensor | None = None) -> Tensor:
    """Return what `decode` means, by one dense product."""
    out = codes.dense() @ W_dec
    return out if b_dec is None else out + b_dec


def row_norms(W_dec: Tensor) -> Tensor:
    """Return the length of each row of `W_dec [d_sae, d_in]`, [d_sae]. A row of zeros has gradient 0."""
    return _RowNorms.apply(W_dec)


def take_rows(W_dec: Tensor, features: Tensor) -> Tensor:
    """Return the rows of `W_dec [d_sae, d_in]` of some features (int64 [m], distinct), [m, d_in]."""
    return _TakeRows.apply(W_dec, W_dec, features)


def take_columns(W_enc: Tensor, features: Tensor) -> Tensor:
    """Return the columns of `W_enc [d_in, d_sae]` of some features (int64 [m], distinct), [d_in, m]."""
    return _TakeRows.apply(W_enc.t(), W_enc, features).t()


def squared_distances(x: Tensor, xhat: Tensor) -> Tensor:
    """Return |x - xhat|^2 of each row of [n, d_in], [n]."""
    return _SquaredDistances.apply(x, xhat)


class _Pick(torch.autograd.Function):
    """values = ((x - centre) W) at the entries of `layout`, already computed; the backward pass is sparse.

    With g the gradient of the values and G [n, d_sae] the sparse matrix that holds it: dW = (x - centre)^T G,
    dx = G W^T, dcentre = -W (sum of the rows of G), the last one summed over the batch before the product.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, centre: Tensor | None, W: Tensor, c: Tensor, values: Tensor, *rest: Any) -> Tensor:
        ctx.layout, ctx.fast = rest
        ctx.save_for_backward(W, c)
        ctx.part = collected(W)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        W, c = ctx.saved_tensors
        layout: Layout = ctx.layout
        dx = dcentre = dW = None
        if ctx.needs_input_grad[0]:
            dx = ctx.fast.row_sums(layout, g, W.t().contiguous())
        if ctx.needs_input_grad[1]:
            turned, order = layout.by_feature
            dcentre = -(W @ ctx.fast.row_sums(turned, g.index_select(0, order), g.new_ones(len(c), 1)).squeeze(1))
        if ctx.needs_input_grad[2]:
            dW = _pair_gradient(ctx.part, Pairs(layout, g, c), ctx.fast)
            dW = None if dW is None else dW.t()
        return dx, dcentre, dW, *[None] * 4


class _Decode(torch.autograd.Function):
    """out = V W_dec + b_dec, where V [n, d_sae] holds `values` at the entries of `layout`."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, W_dec: Tensor, b_dec: Tensor | None, layout: Layout, fast: ModuleType
    ) -> Tensor:
        ctx.layout, ctx.fast = layout, fast
        ctx.save_for_backward(values, W_dec)
        ctx.part = collected(W_dec)
        return fast.row_sums(layout, values, W_dec, b_dec)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        values, W_dec = ctx.saved_tensors
        g = g.contiguous()
        dvalues = dW = db = None
        if ctx.needs_input_grad[0]:
            dvalues = ctx.fast.pair_products(ctx.layout, g, W_dec)
        if ctx.needs_input_grad[1]:
            dW = _pair_gradient(ctx.part, Pairs(ctx.layout, values.detach(), g), ctx.fast)
        if ctx.needs_input_grad[2]:
            db = g.sum(0)
        return dvalues, dW, db, None, None


def _pair_gradient(part: RowGradient | None, pairs: Pairs, fast: ModuleType) -> Tensor | None:
    """Hand `pairs` over to whoever collects, or return them as a gradient with a row for each feature."""
    if part is not None:
        part.pairs.append(pairs)
        return None
    turned, order = pairs.layout.by_feature
    return fast.row_sums(turned, pairs.values.index_select(0, order), pairs.factors)


class _RowNorms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, W: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(W, dim=1)
        ctx.save_for_backward(W, norms)
        ctx.part = collected(W)
        return norms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor | None:  # type: ignore[override]
        W, norms = ctx.saved_tensors
        scale = torch.where(norms > 0, g / norms, 0.0)
        if ctx.part is None:
            return scale[:, None] * W
        ctx.part.add_multiples(scale)
        return None


class _TakeRows(torch.autograd.Function):
    """rows[features]; `matrix` is the weight that `rows` is, or is the transpose of."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, matrix: Tensor, features: Tensor) -> Tensor:
        ctx.features, ctx.shape, ctx.part = features, rows.shape, collected(matrix)
        return rows[features]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None]:  # type: ignore[override]
        if ctx.part is not None:
            ctx.part.rows.append((ctx.features, g))
            return None, None, None
        return g.new_zeros(ctx.shape).index_copy(0, ctx.features, g), None, None


class _SquaredDistances(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, xhat: Tensor) -> Tensor:
        error = x - xhat
        ctx.save_for_backward(error)
        return torch.linalg.vector_norm(error, dim=1).square()  # one pass; vecdot stores the products

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        (error,) = ctx.saved_tensors
        dxhat = error * (-2 * g)[:, None]
        return (-dxhat if ctx.needs_input_grad[0] else None), dxhat


def _centred(x: Tensor, centre: Tensor | None) -> Tensor:
    return x if centre is None else x - centre
