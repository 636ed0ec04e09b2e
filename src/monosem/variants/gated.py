"""The gated sparse autoencoder: one path decides which features are active, another how strongly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BeforeValidator
from torch import Tensor

from monosem.autoencoder import (
    reconstruct,
    require_above_zero,
    require_at_least_zero,
    squared_error,
    tied_weights,
)
from monosem.kernels import active_products, row_norms
from monosem.mesh import per_token
from monosem.types import UserError
from monosem.variants import Architecture, Codes, Loss, Recipe, Step, Variant, Weights


def _refuse_mixed(mode: str) -> str:
    if mode == "mixed":
        raise UserError(
            'mode = "mixed": a live decoder norm in the penalty with a frozen decoder in the auxiliary loss collapses '
            '(the norms shrink to escape the penalty and every feature turns on); use "norm_uu", "norm_ff" or "paper"'
        )
    return mode


@dataclass(frozen=True, kw_only=True)
class Gated(Variant):
    """Gated sparse autoencoder, Rajamanoharan et al. 2024 (arXiv 2404.16014), section 3.2 and figures 16 and 17.

    Forward, for a row x [d_in], with weights tied by W_mag = W_enc exp(r_mag) (equations 6 and 7):
        pi   = c W_enc                                    [d_sae]   c = x - b_dec if `subtract_b_dec`, else x
        gate = pi + b_gate,   mag = exp(r_mag) pi + b_mag [d_sae]
        f    = 1[gate > 0] ReLU(mag)                      [d_sae]
        xhat = f W_dec + b_dec                            [d_in]
    Loss, mean over rows, with a = ReLU(gate), w_i row i of W_dec, sg() the stop-gradient (equation 8):
        paper:    |x - xhat|^2 + lambda_t sum_i a_i             + |x - (a sg(W_dec) + sg(b_dec))|^2, |w_i| = 1
        norm_uu:  |x - xhat|^2 + lambda_t sum_i a_i |w_i|       + |x - (a W_dec + b_dec)|^2
        norm_ff:  |x - xhat|^2 + lambda_t sum_i a_i sg(|w_i|)   + |x - (a sg(W_dec) + sg(b_dec))|^2
    where lambda_t = l1_coefficient min(1, t / (l1_warmup T)) at step t of T. The norm modes leave decoder norms free;
    the rule "both unfrozen or both frozen" is from a comment by the paper's first author on its LessWrong post.

    Start: rows of W_dec of random direction and norm `decoder_init_norm` (None: 1 for paper, else 0.1),
    W_enc = W_dec^T, biases and r_mag 0. `subtract_b_dec` None: true for paper, else false.
    """

    architecture: ClassVar[Architecture] = "gated"

    mode: Annotated[Literal["norm_uu", "norm_ff", "paper"], BeforeValidator(_refuse_mixed)] = "norm_uu"
    l1_coefficient: float = 5.0
    l1_warmup: float = 0.05
    subtract_b_dec: bool | None = None
    decoder_init_norm: float | None = None

    def __post_init__(self) -> None:
        _refuse_mixed(self.mode)

    def check(self, d_in: int, d_sae: int) -> None:
        super().check(d_in, d_sae)
        require_at_least_zero(l1_coefficient=self.l1_coefficient, l1_warmup=self.l1_warmup)
        require_above_zero(decoder_init_norm=self._init_norm())
        if self.constraint() == "unit" and self._init_norm() != 1:
            raise UserError(f"decoder_init_norm = {self._init_norm()}: must be 1 in mode paper, whose rows are unit")

    def recipe(self, d_sae: int) -> Recipe:
        paper = Recipe(lr=3e-4, beta1=0.0, lr_warmup=1000, lr_decay=0.0, clip=0.0)
        return paper if self.mode == "paper" else Recipe()

    def constraint(self) -> Literal["unit", "free"]:
        return "unit" if self.mode == "paper" else "free"

    def centres_input(self) -> bool:
        return self.mode == "paper" if self.subtract_b_dec is None else self.subtract_b_dec

    def init(self, d_in: int, d_sae: int, generator: torch.Generator, sample: Tensor | None = None) -> Weights:
        self.check(d_in, d_sae)
        w = tied_weights(d_in, d_sae, self._init_norm(), generator)
        zeros = w.pop("b_enc")
        return {**w, "b_gate": zeros, "b_mag": zeros.clone(), "r_mag": zeros.clone()}

    def encode(self, w: Weights, x: Tensor) -> Codes:
        return self._gate_and_codes(w, x)[1]

    def loss(self, w: Weights, x: Tensor, step: Step) -> Loss:
        gate, codes = self._gate_and_codes(w, x)
        W_dec, b_dec, norms = w["W_dec"], w["b_dec"], row_norms(w["W_dec"])
        if self.mode != "norm_uu":
            W_dec, b_dec, norms = W_dec.detach(), b_dec.detach(), norms.detach()
        weighted = gate.values if self.mode == "paper" else gate.values * gate.at(norms)
        coefficient = self.l1_coefficient * step.ramp(self.l1_warmup)
        terms = {
            "mse": squared_error(x, self.decode(w, codes)),
            "sparsity": coefficient * per_token(weighted, len(x)),
            "aux": squared_error(x, reconstruct(gate, W_dec, b_dec)),
        }
        return Loss(terms, codes)

    def thresholds(self, w: Weights) -> Tensor:
        """Return theta = b_mag - exp(r_mag) b_gate [d_sae]: f = ReLU(mag 1[mag > theta]) (the paper's appendix E)."""
        return w["b_mag"] - w["r_mag"].exp() * w["b_gate"]

    def _gate_and_codes(self, w: Weights, x: Tensor) -> tuple[Codes, Codes]:
        """Return ReLU(gate) and f as codes."""
        products = active_products(x, w["W_enc"], w["b_gate"], w["b_dec"] if self.centres_input() else None)
        gate = torch.relu(products.values + products.at(w["b_gate"]))
        mag = products.at(w["r_mag"].exp()) * products.values + products.at(w["b_mag"])
        return products.like(gate), products.like((gate > 0) * torch.relu(mag))

    def _init_norm(self) -> float:
        default = 1.0 if self.mode == "paper" else 0.1
        return default if self.decoder_init_norm is None else self.decoder_init_norm
