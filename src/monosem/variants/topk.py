"""The TopK sparse autoencoder: the k largest pre-activations are the code, without any penalty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from monosem.autoencoder import top_entries
from monosem.variants import Architecture, Codes, KSparse, Weights


@dataclass(frozen=True, kw_only=True)
class TopK(KSparse):
    """k-sparse autoencoder, Gao et al. 2024 (arXiv 2406.04093), sections 2.3 and 2.4 and appendix A.

    Forward, for a row x [d_in]:
        h    = c W_enc + b_enc                            [d_sae]   c = x - b_dec, or x without `subtract_b_dec`
        f    = ReLU(TopK_k(h))                            [d_sae]   at most k entries are above 0
        xhat = f W_dec + b_dec                            [d_in]
    Loss, with V the total variance of the training activations (of the batch if the step does not tell):
        mean |x - xhat|^2 / V   +   auxk_alpha mean |e - ehat|^2 / mean |e - mean e|^2
    The second term, only with `auxk`, trains dead features on the residual e = sg(x - xhat), sg() the stop-gradient:
        ehat = ReLU(TopK_k_aux(h restricted to dead features)) W_dec     [d_in]   no bias; no ReLU with `aux_relu` false
    at most as many features as are dead; the term is 0 if none is, or if e does not vary. `k_aux` 0: the power of two
    nearest to d_in / 2 (appendix A.2). The ReLU inside and the batch variance of e are those of the released code.

    Decoder rows have norm 1 throughout. Start: random unit rows, W_enc = W_dec^T, b_enc = 0, b_dec the geometric
    median of up to 32,768 rows (0 without any). lr = 2e-4 / sqrt(d_sae / 2^14), eps 6.25e-10 (appendix A.3).
    """

    architecture: ClassVar[Architecture] = "topk"

    def encode(self, w: Weights, x: Tensor) -> Codes:
        centre = w["b_dec"] if self.subtract_b_dec else None
        products = top_entries(x, w["W_enc"], w["b_enc"], self.k, centre)
        return products.like(torch.relu(products.values + products.at(w["b_enc"])))
