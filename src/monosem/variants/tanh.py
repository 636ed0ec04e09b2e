"""The standard sparse autoencoder with a saturating penalty: tanh instead of L1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monosem.autoencoder import require_above_zero
from monosem.variants import Penalised, Step


@dataclass(frozen=True, kw_only=True)
class Tanh(Penalised):
    """Sparse autoencoder with the tanh penalty of Anthropic's Circuits Updates, February 2024.

    Forward, for a row x [d_in]:
        f = ReLU(c W_enc + b_enc)          [d_sae]    c = x, or x - b_dec with `subtract_b_dec`
        xhat = f W_dec + b_dec             [d_in]
    Loss, mean over rows, with A = l1_coefficient, B = tanh_scale and w_i row i of W_dec:
        |x - xhat|^2  +  A_t sum_i tanh(B f_i |w_i|) / B,    A_t = A min(1, t / (l1_warmup T))
    at step t of T. The penalty has slope A at 0, as L1 has, and never exceeds A / B, so that strong activations are
    not shrunk; as B goes to 0 it becomes L1. (February 2024, "tanh penalty in dictionary learning". The factor
    |w_i|, for free decoder norms, is our choice; Anthropic's January 2025 update has it too, with lambda_S = A / B
    and c = B.) Start and remedies for dead features are those of the standard variant.
    """

    tanh_scale: float = 1.0

    def check(self, d_in: int, d_sae: int) -> None:
        super().check(d_in, d_sae)
        require_above_zero(tanh_scale=self.tanh_scale)

    def penalty(self, fbar: Tensor, step: Step) -> Tensor:
        return torch.tanh(self.tanh_scale * fbar) / self.tanh_scale
