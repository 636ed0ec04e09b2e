"""Remedies for dead features, and the geometric median: pure functions on tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from monosem.mesh import here, token_mean

GHOST_MAX = 20.0
"""Largest pre-activation that ghost gradients exponentiate; larger ones are clamped."""


def default_k_aux(d_in: int) -> int:
    """Return the power of two nearest to d_in / 2, the larger one at a tie (Gao et al. 2024, appendix A.2)."""
    low = 1 << max(0, (d_in // 2).bit_length() - 1)
    return low if d_in / 2 - low < 2 * low - d_in / 2 else 2 * low


def auxk_loss(residual: Tensor, estimate: Tensor) -> Tensor:
    """Return the AuxK loss `mean |e - ehat|^2 / mean |e - mean e|^2`, a scalar; 0 where the denominator is 0.

    residual: e = x - xhat [n, d_in], taken as constant; estimate: ehat [n, d_in], the residual as reconstructed by
    dead features. Source: Gao et al. 2024 (arXiv 2406.04093), section 2.4 and appendix A.2, normalised as in the
    code that they released.
    """
    e = residual.detach()
    variance = token_mean((e - token_mean(e)).square().sum(1))
    scale = torch.where(variance > 0, 1 / variance, 0.0)
    return scale * token_mean((e - estimate).square().sum(1))


def ghost_loss(x: Tensor, xhat: Tensor, h_dead: Tensor, W_dead: Tensor) -> Tensor:
    """Return the ghost-gradient loss, a scalar whose value is the mean squared error and whose gradient is another.

    With e = x - xhat and g = exp(h_dead) W_dead (per token): q = |e - s g|^2 with the constant s = |e| / (2 |g| +
    1e-6), and the loss is the mean of q times the constant |e|^2 / (q + 1e-6). e is constant, so that only dead
    features receive gradient.
    x, xhat: [n, d_in]; h_dead: pre-activations of the m dead features [n, m], clamped at 20; W_dead: their decoder
    rows [m, d_in]. Without dead features the loss is 0. Source: Anthropic, Circuits Updates January 2024.
    """
    features = here().features
    if not features.reduced(torch.tensor(h_dead.shape[1] > 0, device=x.device)):
        return x.new_zeros(())
    e = (x - xhat).detach()
    ghost = features.total(h_dead.clamp(max=GHOST_MAX).exp() @ W_dead)
    scale = (e.norm(dim=1) / (2 * ghost.norm(dim=1) + 1e-6)).detach()
    q = (e - scale[:, None] * ghost).square().sum(1)
    return token_mean(q * (e.square().sum(1) / (q + 1e-6)).detach())


def resample(
    weights: dict[str, Tensor], rows: Tensor, losses: Tensor, dead: Tensor, generator: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Point every dead feature at a row that is reconstructed badly; return new weights and what was reset.

    A row v is drawn with probability proportional to its squared loss, without repetition. Then w_i = v / |v| times
    the mean decoder norm of the features alive, the encoder column is v / |v| times 0.2 of their mean encoder norm,
    and the feature's biases are 0. If there are more dead features than rows to draw, the last ones stay as they are.
    weights: with W_enc [d_in, d_sae], W_dec [d_sae, d_in] and vectors b_enc, b_gate, b_mag, r_mag [d_sae], not
    changed; rows: [n, d_in], centred on b_dec if the encoder's input is; losses: [n], >= 0; dead: bool [d_sae];
    generator: on the CPU. The second dict has for each weight a bool tensor of its shape, true where it was reset:
    there the optimiser's moments have to be zeroed.
    Source: Bricken et al. 2023 (Towards Monosemanticity), appendix "Neuron resampling"; the decoder norm is our
    choice for SAEs whose norms are free (with unit norms it is 1, as published).
    """
    new = {name: weight.detach().clone() for name, weight in weights.items()}
    reset = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    chances = resampling_chances(torch.where(rows.norm(dim=1) > 0, losses, 0.0)).cpu()
    features = dead.nonzero().squeeze(1)[: int((chances > 0).sum())]
    if len(features) == 0:
        return new, reset
    drawn = torch.multinomial(chances, len(features), generator=generator).to(rows.device)
    directions = (rows[drawn] / rows[drawn].norm(dim=1, keepdim=True)).to(new["W_dec"].dtype)
    others = ~dead if bool((~dead).any()) else dead
    new["W_dec"][features] = directions * new["W_dec"][others].norm(dim=1).mean()
    new["W_enc"][:, features] = directions.t() * 0.2 * new["W_enc"][:, others].norm(dim=0).mean()
    reset["W_dec"][features] = True
    reset["W_enc"][:, features] = True
    for name in new.keys() & {"b_enc", "b_gate", "b_mag", "r_mag"}:
        new[name][features] = 0
        reset[name][features] = True
    return new, reset


def resampling_chances(losses: Tensor) -> Tensor:
    """Return the probability [n] of each row to be drawn by `resample`: its squared loss, normalised, in float64."""
    squares = losses.double().square()
    return squares / squares.sum().clamp_min(torch.finfo(torch.float64).tiny)


def geometric_median(points: Tensor, *, iterations: int = 100, tolerance: float = 1e-5) -> Tensor:
    """Return the point [d] whose summed distance to `points [n, d]` is least.

    Weiszfeld's iteration from the mean; distances count as at least 1e-6, so that it may stop on a point. It ends
    when a step is shorter than `tolerance` (in the units of the points) or after `iterations` steps.
    """
    centre = points.mean(0)
    for _ in range(iterations):
        weights = 1 / (points - centre).norm(dim=1).clamp_min(1e-6)
        previous, centre = centre, weights @ points / weights.sum()
        if (centre - previous).norm() < tolerance:
            break
    return centre
