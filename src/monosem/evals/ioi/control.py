"""Edits of an attribute by few features of a dictionary, and what they leave of an activation; the paper's first tests.

Source: Makelov, Lange, Nanda 2024 (arXiv 2405.08366): tests 1 (approximation) and 2 (sparse control), and the code
published with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import embedding_bag

from monosem.evals.ioi.lines import SMALLEST
from monosem.types import UserError


@dataclass(frozen=True, eq=False)
class Edit:
    """An edit of N activations.

    delta: is added to the base's activations, [N, d]. chosen: numbers of the features that are changed, int64 [N, k];
    -1 where there are fewer than k; no feature twice.
    """

    delta: Tensor
    chosen: Tensor


def greedy(
    difference: Tensor, z_base: Tensor, z_source: Tensor, W_dec: Tensor, budgets: Sequence[int]
) -> dict[int, Edit]:
    """Return for each budget k the edit that takes over k features of the source, chosen one after the other.

    difference: source minus base activations (not reconstructions), [N, d]. z_base, z_source: codes, [N, F]. W_dec:
    [F, d]. Each step takes the feature that brings the sum of contributions (z_source - z_base)_j W_dec[j] nearest to
    the difference; a feature is taken once, and none where all would lead away: the distance never rises. An exchange
    of two features costs 2, and is missed where either alone would lead away. Raises UserError for
    shapes that don't fit and budgets below 1. Source: the published code.
    """
    _check_codes(z_base, z_source, W_dec)
    if difference.shape != (len(z_base), W_dec.shape[1]):
        raise UserError(f"difference of shape {tuple(difference.shape)}: must be {(len(z_base), W_dec.shape[1])}")
    if not budgets or min(budgets) < 1:
        raise UserError(f"budgets {list(budgets)}: needs at least one, each at least 1")
    differs = z_base != z_source
    number = torch.nonzero(differs.any(0))[:, 0]
    D, change = W_dec[number], (z_source - z_base)[:, number]
    # |rest - change_j D_j|^2 - |rest|^2 = own_j - 2 change_j (rest . D_j): no [N, F, d] is needed.
    own = change.square() * D.square().sum(1)
    free = differs[:, number]
    rest, row = difference.clone(), torch.arange(len(difference), device=difference.device)
    chosen = torch.full((len(rest), max(budgets)), -1, device=rest.device)
    edits: dict[int, Edit] = {}
    for step in range(max(budgets) if len(number) else 0):
        gain = (own - 2 * change * (rest @ D.T)).masked_fill_(~free, 0.0)
        lowest, best = gain.min(1)
        taken = lowest < 0
        rest -= (change[row, best] * taken)[:, None] * D[best]
        free[row[taken], best[taken]] = False
        chosen[:, step] = torch.where(taken, number[best], -1)
        if step + 1 in budgets:
            edits[step + 1] = Edit(difference - rest, chosen[:, : step + 1].clone())
    return edits or {k: Edit(torch.zeros_like(difference), chosen[:, :k].clone()) for k in budgets}


def by_ranking(z_base: Tensor, z_source: Tensor, W_dec: Tensor, rank_old: Tensor, rank_new: Tensor, m: int) -> Edit:
    """Return the edit that removes m features of the base and adds m of the source, chosen by what they stand for.

    z_base, z_source: codes, [N, F]. W_dec: [F, d]. rank_old, rank_new: features that stand for the base's and the
    source's value of the attribute, best first (`interpret.ranked`), int64 [N, R], -1: none. Removed are the first m
    that are active (not 0) in the base, added the first m that are active in the source: up to 2 m changed features.
    Raises UserError for shapes that don't fit, numbers of features that there aren't, and m below 1. Source: the
    paper's interpretation-aware edits.
    """
    _check_codes(z_base, z_source, W_dec)
    if m < 1:
        raise UserError(f"m is {m}: at least one feature must be removed and added")
    old, z_old = _first_active(z_base, rank_old, m)
    new, z_new = _first_active(z_source, rank_new, m)
    number, z = torch.cat([old, new], 1), torch.cat([-z_old, z_new], 1)
    delta = embedding_bag(number.clamp(min=0), W_dec, per_sample_weights=z.to(W_dec.dtype), mode="sum")
    again = (new[:, :, None] == old[:, None, :]).any(2)
    return Edit(delta, torch.cat([old, new.masked_fill(again, -1)], 1))


def weights(z: Tensor, W_dec: Tensor) -> Tensor:
    """Return each feature's share in a reconstruction, [N, F]: z_j d_j . (x_hat - b_dec) / |x_hat - b_dec|^2.

    z: codes, [N, F]. W_dec: [F, d]. Shares sum to 1 over features, and may be negative; all are 0 where nothing is
    active. Raises UserError for shapes that don't fit. Source: the paper's "magnitude" of an edit.
    """
    _check_codes(z, z, W_dec)
    x = z @ W_dec
    square = x.square().sum(1, keepdim=True)
    return z * (x @ W_dec.T) / torch.where(square > 0, square, 1.0)


def removed(weights: Tensor, chosen: Tensor) -> Tensor:
    """Return the share of the base's reconstruction that an edit changes, [N]: the sum over the changed features.

    weights: of the base, [N, F]; features that it lacks weigh 0. chosen: an edit's, int64 [N, k], -1: none.
    """
    return (weights.gather(1, chosen.clamp(min=0)) * (chosen >= 0)).sum(1)


def rescaled(removed: float, floor: float) -> float | None:
    """Return a removed share on a scale from 0, the supervised edit's (`floor`), to 1, everything.

    None when the supervised edit itself removes more than .95.
    """
    return _ratio(removed - floor, 1 - floor)


def sufficiency(ld_reconstructed: ArrayLike, ld_clean: ArrayLike) -> float | None:
    """Return which part of the logit difference reconstructions keep: the ratio of the means over prompts.

    Both: logit(IO) - logit(S) of each prompt, [N]. 1 is best, more is an overshoot. None when the clean mean is within
    .05 logits of 0. Source: test 1.
    """
    return _ratio(_mean(ld_reconstructed), _mean(ld_clean))


def necessity(ld_mean_ablated: ArrayLike, ld_intervened: ArrayLike, ld_clean: ArrayLike) -> float | None:
    """Return how much of the effect of mean ablation is there when only what the dictionary leaves out stays.

    intervened: activations replaced by mean + a - a_hat. 1 - |m - i| / |m - c| of the means over prompts: 1 is best,
    0 for a dictionary without features. All [N], logit differences. None when mean ablation moves the mean by .05
    logits or less. Source: test 1.
    """
    ablated = _mean(ld_mean_ablated)
    ratio = _ratio(abs(ablated - _mean(ld_intervened)), abs(ablated - _mean(ld_clean)))
    return None if ratio is None else 1 - ratio


def recovered(ld_reconstructed: ArrayLike, ld_mean_ablated: ArrayLike, ld_clean: ArrayLike) -> float | None:
    """Return how far a reconstruction is from mean ablation: |r - m| / |c - m| of the means over prompts.

    All [N], logit differences. 1 is best, 0 is no better than the mean; more than 1 is an overshoot, and the absolute
    values hide one to the other side. None when mean ablation moves the mean by .05 logits or less. Source: the code
    published with the paper.
    """
    ablated = _mean(ld_mean_ablated)
    return _ratio(abs(_mean(ld_reconstructed) - ablated), abs(_mean(ld_clean) - ablated))


def _first_active(z: Tensor, rank: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Return the first m active features of each row of a ranking, int64 [N, m], -1 padded, and their codes."""
    if rank.ndim != 2 or len(rank) != len(z) or not rank.shape[1]:
        raise UserError(f"a ranking of shape {tuple(rank.shape)} for {len(z)} prompts: must be [N, R]")
    if rank.max() >= z.shape[1]:
        raise UserError(f"a ranking names feature {int(rank.max())}: there are {z.shape[1]}")
    codes = z.gather(1, rank.clamp(min=0)).masked_fill(rank < 0, 0)
    first = torch.argsort((codes == 0).byte(), dim=1, stable=True)[:, :m]
    codes = codes.gather(1, first)
    return rank.gather(1, first).masked_fill(codes == 0, -1), codes


def _check_codes(z_base: Tensor, z_source: Tensor, W_dec: Tensor) -> None:
    if z_base.shape != z_source.shape or z_base.ndim != 2 or z_base.shape[1] != len(W_dec):
        shapes = f"{tuple(z_base.shape)} and {tuple(z_source.shape)}"
        raise UserError(f"codes of shape {shapes} for {len(W_dec)} features: must both be [N, {len(W_dec)}]")


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if abs(whole) > SMALLEST else None


def _mean(values: ArrayLike) -> float:
    return float(np.mean(np.asarray(values, dtype=np.float64)))
