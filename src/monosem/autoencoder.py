"""The pieces from which several variants are made: pure functions on weights and codes.

Shapes and names are those of `monosem.variants`: W_enc [d_in, d_sae], W_dec [d_sae, d_in], b_enc [d_sae], b_dec [d_in].
"""

from __future__ import annotations

import torch
from torch import Tensor

from monosem.dead import ghost_loss
from monosem.kernels import Codes, active_products, row_norms, squared_distances, take_columns, take_rows
from monosem.types import UserError

Weights = dict[str, Tensor]


def tied_weights(d_in: int, d_sae: int, norm: float, generator: torch.Generator) -> Weights:
    """Return W_dec with rows of random direction and length `norm`, W_enc = W_dec^T, and zero b_enc and b_dec.

    float32, on the generator's device. The tie holds at the start only: the two matrices do not share memory.
    Source: Anthropic, Circuits Updates April 2024, "Training Sparse Autoencoders" (norm 0.05 to 1).
    """
    W_dec = torch.randn((d_sae, d_in), generator=generator, device=generator.device)
    W_dec = norm * unit_rows(W_dec)
    zeros = torch.zeros(d_sae + d_in, device=generator.device)
    return {
        "W_enc": W_dec.t().clone(memory_format=torch.contiguous_format),
        "b_enc": zeros[:d_sae].clone(),
        "W_dec": W_dec,
        "b_dec": zeros[d_sae:].clone(),
    }


def unit_rows(W_dec: Tensor) -> Tensor:
    """Return `W_dec [d_sae, d_in]` with every row scaled to length 1; rows of length 0 stay 0."""
    return W_dec / W_dec.norm(dim=1, keepdim=True).clamp_min(torch.finfo(W_dec.dtype).tiny)


def tangential(W_dec: Tensor, gradient: Tensor) -> Tensor:
    """Return `gradient [d_sae, d_in]` without its component along each (unit) row of `W_dec [d_sae, d_in]`.

    Source: Bricken et al. 2023; Gao et al. 2024 (arXiv 2406.04093), section 2.1.
    """
    return gradient - (gradient * W_dec).sum(1, keepdim=True) * W_dec


def row_errors(x: Tensor, xhat: Tensor) -> Tensor:
    """Return the squared reconstruction error of each row, [n] (sum over d_in)."""
    return squared_distances(x, xhat)


def squared_error(x: Tensor, xhat: Tensor) -> Tensor:
    """Return the squared reconstruction error, a scalar (sum over d_in, mean over tokens)."""
    return row_errors(x, xhat).mean()


def total_variance(x: Tensor) -> Tensor:
    """Return the variance of `x [n, d_in]` around its mean, a scalar (sum over d_in, mean over tokens)."""
    return squared_error(x, x.mean(0))


def relu_codes(w: Weights, x: Tensor, centred: bool) -> Codes:
    """Return f = ReLU(c W_enc + b_enc), where c = x - b_dec if `centred`, else x; x: [n, d_in]."""
    products = active_products(x, w["W_enc"], w["b_enc"], w["b_dec"] if centred else None)
    return products.like(torch.relu(products.values + products.at(w["b_enc"])))


def effective(w: Weights, codes: Codes) -> Tensor:
    """Return the effective activations f_i |w_i|, in the shape of `codes.values`; w_i is row i of W_dec."""
    return codes.values * codes.at(row_norms(w["W_dec"]))


def ghost_term(w: Weights, x: Tensor, xhat: Tensor, dead: Tensor, centred: bool) -> Tensor:
    """Return the ghost-gradient loss (`monosem.dead.ghost_loss`) of the features marked in `dead`, bool [d_sae]."""
    c = x - w["b_dec"].detach() if centred else x
    features = dead.nonzero().squeeze(1)
    h = c @ take_columns(w["W_enc"], features) + w["b_enc"][features]
    return ghost_loss(x, xhat, h, take_rows(w["W_dec"], features))


def require_at_least_zero(**values: float) -> None:
    """Raise UserError if a value is negative or not a number."""
    for name, value in values.items():
        if not value >= 0:
            raise UserError(f"{name} = {value}: must be a number of at least 0")


def require_above_zero(**values: float) -> None:
    """Raise UserError if a value is not a number above 0."""
    for name, value in values.items():
        if not value > 0:
            raise UserError(f"{name} = {value}: must be a number above 0")


def require_fractions(**values: tuple[float, ...]) -> None:
    """Raise UserError if a value is not a sequence of numbers between 0 and 1."""
    for name, fractions in values.items():
        if not all(0 < fraction < 1 for fraction in fractions):
            raise UserError(f"{name} = {list(fractions)}: must be fractions of training, each between 0 and 1")
