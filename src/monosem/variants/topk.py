"""The TopK sparse autoencoder: the k largest pre-activations are the code, without any penalty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from monosem.autoencoder import require_at_least_zero, squared_error, tied_weights, total_variance
from monosem.dead import auxk_loss, default_k_aux, geometric_median
from monosem.kernels import SparseCodes, decode, take_columns, take_rows, top_products
from monosem.types import UserError
from monosem.variants import Architecture, Loss, Recipe, Step, Variant, Weights

MEDIAN_ROWS = 32_768
"""Rows of the sample whose geometric median the decoder bias starts from."""


@dataclass(frozen=True, kw_only=True)
class TopK(Variant):
    """k-sparse autoencoder, Gao et al. 2024 (arXiv 2406.04093), sections 2.3 and 2.4 and appendix A.

    Forward, for a row x [d_in]:
        h    = (x - b_dec) W_enc + b_enc                  [d_sae]
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

    decoder_norm: ClassVar[Literal["unit", "free"]] = "unit"
    architecture: ClassVar[Architecture] = "topk"

    k: int = 32
    auxk: bool = False
    auxk_alpha: float = 1 / 32
    k_aux: int = 0
    aux_relu: bool = True

    def check(self, d_in: int, d_sae: int) -> None:
        super().check(d_in, d_sae)
        require_at_least_zero(auxk_alpha=self.auxk_alpha, k_aux=self.k_aux)
        if not 1 <= self.k <= d_sae:
            raise UserError(f"k = {self.k}: must be at least 1 and at most d_sae = {d_sae}")

    def recipe(self, d_sae: int) -> Recipe:
        return Recipe(lr=2e-4 / (d_sae / 2**14) ** 0.5, eps=6.25e-10)

    def centres_input(self) -> bool:
        return True

    def init(self, d_in: int, d_sae: int, generator: torch.Generator, sample: Tensor | None = None) -> Weights:
        self.check(d_in, d_sae)
        w = tied_weights(d_in, d_sae, 1.0, generator)
        if sample is not None:
            w["b_dec"] = geometric_median(sample[:MEDIAN_ROWS].float())
        return w

    def encode(self, w: Weights, x: Tensor) -> SparseCodes:
        products = top_products(x, w["W_enc"], w["b_enc"], self.k, centre=w["b_dec"])
        return products.like(torch.relu(products.values + products.at(w["b_enc"])))

    def loss(self, w: Weights, x: Tensor, step: Step) -> Loss:
        codes = self.encode(w, x)
        xhat = self.decode(w, codes)
        variance = total_variance(x) if step.variance is None else x.new_tensor(step.variance)
        terms = {"mse": squared_error(x, xhat) / torch.where(variance > 0, variance, 1.0)}
        if self.auxk:
            dead = step.dead(codes)
            terms["auxk"] = x.new_zeros(())
            if dead.any():
                terms["auxk"] = self.auxk_alpha * auxk_loss(x - xhat, self._dead_estimate(w, x, dead))
        return Loss(terms, codes)

    def _dead_estimate(self, w: Weights, x: Tensor, dead: Tensor) -> Tensor:
        """Return ehat [n, d_in]: the residual as the features `dead`, bool [d_sae], reconstruct it."""
        features = dead.nonzero().squeeze(1)
        k = min(self.k_aux or default_k_aux(x.shape[1]), len(features))
        b_enc = w["b_enc"][features]
        products = top_products(x, take_columns(w["W_enc"], features), b_enc, k, centre=w["b_dec"])
        h = products.values + products.at(b_enc)
        return decode(products.like(torch.relu(h) if self.aux_relu else h), take_rows(w["W_dec"], features))
