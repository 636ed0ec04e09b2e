"""A text's codes: those of its last token, or their mean or maximum over its tokens. Streamed in batches."""

from __future__ import annotations

import torch
from torch import Tensor

from monosem.evals.probes.tasks import Pool
from monosem.evals.probes.texts import Texts
from monosem.kernels import Codes, DenseCodes
from monosem.normaliser import Normaliser
from monosem.sae import Sae

BATCH = 2048  # tokens encoded at once


def pooled_activations(texts: Texts, normaliser: Normaliser) -> Tensor:
    """Return the pooled activations as an SAE sees them, [N, d_in]; the mean where the pool is the maximum."""
    total = torch.zeros(len(texts.ends), texts.x.shape[1])
    for x, text in texts.batches(BATCH):
        total.index_add_(0, text, normaliser.apply(x)[0])
    return total / texts.lengths[:, None]


def pooled_products(texts: Texts, normaliser: Normaliser, W: Tensor) -> Tensor:
    """Return the products of activations with the columns of W [d_in, n], pooled, [N, n].

    These are pre-activations without their bias (of Gated: of both its paths, up to a factor), which no probe sees.
    """
    if texts.pool != "max":
        return (pooled_activations(texts, normaliser).to(W.device) @ W).cpu()  # a mean of products is that of the mean
    out = torch.full((len(texts.ends), W.shape[1]), -torch.inf, device=W.device)
    for x, text in texts.batches(BATCH):
        _largest(out, normaliser.apply(x.to(W.device))[0] @ W, text.to(W.device))
    return out.cpu()


@torch.no_grad()
def pooled_codes(texts: Texts, sae: Sae) -> Tensor:
    """Return the feature activations, pooled, [N, d_sae]."""
    device = sae.weights["W_dec"].device
    out = torch.zeros(len(texts.ends), sae.d_sae, device=device)
    for x, text in texts.batches(BATCH):
        _pool(out, sae.codes(x.to(device)), text.to(device), texts.pool)
    return out.cpu().div_(texts.lengths[:, None]) if texts.pool == "mean" else out.cpu()


def _pool(out: Tensor, codes: Codes, text: Tensor, pool: Pool) -> None:
    """Add the codes of some tokens to their texts' rows of `out`, or take the maximum. text: int64 [n]."""
    if isinstance(codes, DenseCodes):
        if pool == "max":
            _largest(out, codes.values, text)
        else:
            out.index_add_(0, text, codes.values)
        return
    at = text[codes.layout.rows] * out.shape[1] + codes.layout.indices
    if pool == "max":
        out.view(-1).scatter_reduce_(0, at, codes.values.flatten(), "amax")
    else:
        out.view(-1).index_add_(0, at, codes.values.flatten())


def _largest(out: Tensor, values: Tensor, text: Tensor) -> None:
    """Raise the rows `text`, int64 [n], of `out` to values [n, width], where these are larger."""
    out.scatter_reduce_(0, text[:, None].expand_as(values), values, "amax")
