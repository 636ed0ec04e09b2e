"""The standard sparse autoencoder: ReLU and an L1 penalty weighted by decoder norms."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from monosem.variants import Penalised, Step


@dataclass(frozen=True, kw_only=True)
class Standard(Penalised):
    """Sparse autoencoder with an L1 penalty, as in Anthropic's Circuits Updates, April 2024.

    Forward, for a row x [d_in]:
        f = ReLU(c W_enc + b_enc)          [d_sae]    c = x, or x - b_dec with `subtract_b_dec`
        xhat = f W_dec + b_dec             [d_in]
    Loss, mean over rows, with w_i row i of W_dec:
        |x - xhat|^2  +  lambda_t sum_i f_i |w_i|,    lambda_t = l1_coefficient min(1, t / (l1_warmup T))
    at step t of T. Decoder norms are free: they get gradient through the penalty, which is the same however scale
    is shared between f_i and w_i. (April 2024, "Training Sparse Autoencoders"; the same loss in Templeton et al.
    2024, "Scaling Monosemanticity", section "Sparse Autoencoders". No pre-encoder bias: February 2024.)

    Start: rows of W_dec of random direction and norm `decoder_init_norm`, W_enc = W_dec^T, biases 0 (April 2024).

    Remedies for dead features, `dead`: "none", as in April 2024; "ghost", the ghost gradients of January 2024
    (`monosem.dead.ghost_loss`); "resample", as in Bricken et al. 2023, "Towards Monosemanticity"
    (`monosem.dead.resample`), when the fractions `resample_at` of training are done.
    """

    def penalty(self, fbar: Tensor, step: Step) -> Tensor:
        return fbar
