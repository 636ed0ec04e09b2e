"""The standard sparse autoencoder with an L_p penalty whose p falls from 1 during training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from monosem.autoencoder import effective
from monosem.mesh import per_token
from monosem.types import UserError
from monosem.variants import Loss, Penalised, Step, Weights

QUEUE = 10
"""Batches whose penalties decide how the coefficient is rescaled."""


@dataclass(frozen=True, kw_only=True)
class PAnneal(Penalised):
    """Sparse autoencoder with p-annealing, Karvonen et al. 2024 (arXiv 2408.00113), section 4.

    Forward, for a row x [d_in]:
        f = ReLU(c W_enc + b_enc)          [d_sae]    c = x, or x - b_dec with `subtract_b_dec`
        xhat = f W_dec + b_dec             [d_in]
    Loss, mean over rows, with w_i row i of W_dec, at step t of T:
        |x - xhat|^2  +  s lambda_t sum_i (f_i |w_i|)^p,    lambda_t = l1_coefficient min(1, t / (l1_warmup T))
    where p falls from 1 to `p_end` in `p_updates` equal changes, evenly spread from `anneal_start` T to `anneal_end` T,
    the last one at its end. At a change from p to q
        s  <-  s  (mean sum_i fbar_i^p) / (mean sum_i fbar_i^q),    fbar_i = f_i |w_i|,    s = 1 at the start
    over the last 10 batches, or those since the change before, so that the penalty stays what it was. With p < 1, 1e-8
    is added to active features, so that small ones have a finite slope. (The factor |w_i|, for free decoder norms
    instead of unit ones, and an annealing that ends before training does, are our choice.) Start and remedies for dead
    features are those of `standard`.
    """

    buffers: ClassVar[tuple[str, ...]] = ("penalty_scale", "penalty_sums")
    scratch: ClassVar[tuple[str, ...]] = buffers
    whole: ClassVar[tuple[str, ...]] = ("b_dec", *buffers)

    p_end: float = 0.2
    p_updates: int = 10
    anneal_start: float = 0.1
    anneal_end: float = 0.8

    def check(self, d_in: int, d_sae: int) -> None:
        super().check(d_in, d_sae)
        if not 0 < self.p_end <= 1:
            raise UserError(f"p_end = {self.p_end}: must be above 0 and at most 1")
        if self.p_updates < 1:
            raise UserError(f"p_updates = {self.p_updates}: must be at least 1")
        if not 0 <= self.anneal_start < self.anneal_end <= 1:
            raise UserError(f"anneal_start = {self.anneal_start}: must be from 0 to below anneal_end, at most 1")

    def init(self, d_in: int, d_sae: int, generator: torch.Generator, sample: Tensor | None = None) -> Weights:
        w = super().init(d_in, d_sae, generator, sample)
        zeros = w["b_dec"].new_zeros(QUEUE, 2)
        return {**w, "penalty_scale": zeros.new_ones(()), "penalty_sums": zeros}

    def changes(self, step: Step) -> list[int]:
        """Return the steps from which on p has its next value."""
        span = (self.anneal_end - self.anneal_start) / self.p_updates
        return [round((self.anneal_start + span * j) * step.total) for j in range(1, self.p_updates + 1)]

    def power(self, step: Step, index: int) -> float:
        """Return p at step `index`."""
        return 1 + (self.p_end - 1) * sum(change <= index for change in self.changes(step)) / self.p_updates

    def penalty(self, fbar: Tensor, step: Step) -> Tensor:
        return _powers(fbar, self.power(step, step.index))

    def coefficient(self, w: Weights, step: Step) -> float | Tensor:
        return super().coefficient(w, step) * w.get("penalty_scale", 1.0)

    def settle(self, w: Weights, loss: Loss, step: Step) -> Weights:
        change = min((change for change in self.changes(step) if change > step.index), default=step.total)
        if change >= step.total or step.index < change - QUEUE:
            return {}
        fbar = effective(w, loss.codes)
        powers = [self.power(step, index) for index in (step.index, change)]
        sums = [per_token(_powers(fbar, p), loss.codes.n_tokens) for p in powers]
        queue = torch.cat([w["penalty_sums"][1:], torch.stack(sums)[None]])
        if step.index + 1 < change:
            return {"penalty_sums": queue}
        before, after = queue.sum(0)
        scale = w["penalty_scale"] * torch.where(after > 0, before / after, 1.0)
        return {"penalty_scale": scale, "penalty_sums": torch.zeros_like(queue)}


def _powers(fbar: Tensor, p: float) -> Tensor:
    """Return (fbar + 1e-8)^p, and 0 where fbar is 0; fbar itself for p = 1."""
    return fbar if p == 1 else (fbar > 0) * (fbar + 1e-8).pow(p)
