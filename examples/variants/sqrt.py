"""A sparse autoencoder with a square-root penalty: L1 for weak activations, less and less for strong ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monosem.autoencoder import require_above_zero
from monosem.variants import Penalised, Step


@dataclass(frozen=True, kw_only=True)
class Sqrt(Penalised):
    """Sparse autoencoder with a square-root penalty (an example, from no paper).

    Forward as the standard variant. Loss, mean over rows, with A = l1_coefficient and w_i row i of W_dec:
        |x - xhat|^2  +  A_t sum_i 2 K (sqrt(1 + f_i |w_i| / K) - 1),    A_t = A min(1, t / (l1_warmup T))
    at step t of T, with K = knee. The penalty has slope A at 0, as L1 has, and grows as a square root far above K; as
    K goes to infinity it becomes L1.
    """

    knee: float = 1.0

    def check(self, d_in: int, d_sae: int) -> None:
        super().check(d_in, d_sae)
        require_above_zero(knee=self.knee)

    def penalty(self, fbar: Tensor, step: Step) -> Tensor:
        return 2 * self.knee * (torch.sqrt(1 + fbar / self.knee) - 1)
