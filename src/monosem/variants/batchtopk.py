"""The BatchTopK sparse autoencoder: as many activations as k a token, but shared out over the tokens of a batch."""

from __future__ import annotations

from dataclasses import dataclass

from monosem.variants import BatchSparse


@dataclass(frozen=True, kw_only=True)
class BatchTopK(BatchSparse):
    """BatchTopK autoencoder, Bussmann, Leask and Nanda 2024 (arXiv 2412.06410), sections 3 and 3.1.

    Forward, for rows x [n, d_in] of a training batch:
        a    = ReLU(c W_enc + b_enc)                      [n, d_sae]   c = x - b_dec, or x without `subtract_b_dec`
        f    = a where it is among the n k largest of all n d_sae entries (of equal ones the first, row by row), else 0
        xhat = f W_dec + b_dec                            [n, d_in]
    Everywhere else, so that a token's code does not depend on its batch:
        f    = a 1[a > theta],      theta = E over batches of min {f_ti : f_ti > 0}
    The mean is exponential, with `threshold_decay`, from step `threshold_from` on, and starts as the first minimum.
    .95 from the start fits runs of a hundred steps and more: one minimum of many activations has little noise, but
    theta moves as long as the learning rate does. (SAELens has .99, dictionary_learning .999 from step 1,000 on; after
    some hundred steps these still remember the start.) theta is the same for all features, JumpReLU's `threshold`.

    Loss, remedy for dead features, unit decoder rows, start and optimiser settings are those of TopK:
        mean |x - xhat|^2 / V   +   auxk_alpha mean |e - ehat|^2 / mean |e - mean e|^2
    """
