"""The JumpReLU sparse autoencoder: each feature has a threshold that is trained, and the penalty counts features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from monosem.autoencoder import jump_codes, require_above_zero, require_at_least_zero, squared_error, tied_weights
from monosem.kernels import active_products
from monosem.mesh import per_token
from monosem.variants import Architecture, Codes, Loss, Recipe, Step, Variant, Weights


@dataclass(frozen=True, kw_only=True)
class JumpReLU(Variant):
    """JumpReLU autoencoder, Rajamanoharan et al. 2024 (arXiv 2407.14435), sections 3 and 4.

    Forward, for a row x [d_in], with theta = `threshold` [d_sae] >= 0:
        h    = c W_enc + b_enc                            [d_sae]   c = x, or x - b_dec with `subtract_b_dec`
        f    = ReLU(h) 1[h > theta]                       [d_sae]
        xhat = f W_dec + b_dec                            [d_in]
    Loss, mean over rows:
        |x - xhat|^2  +  lambda_t sum_i 1[h_i > theta_i],    lambda_t = l0_coefficient min(1, t / (l0_warmup T))
    at step t of T. Steps have no slope, so gradients of theta are those of the loss smoothed over a band of width
    eps = `bandwidth` (section 4): with K(u) = 1[|u| < 1/2],
        df/dtheta := -(theta / eps) K((h - theta) / eps),    d1[h > theta]/dtheta := -(1 / eps) K((h - theta) / eps)
    while df/dh = 1[h > theta] and d1[h > theta]/dh = 0. theta itself is trained and kept at 0 or more, not log theta
    as in the paper, which hardly moves under Adam.

    `bandwidth` and `threshold_init` None: 0.001 sqrt(d_in), as the paper's 0.001 is for inputs of mean squared norm 1.
    Decoder rows have norm 1; start: random unit rows, W_enc = W_dec^T, biases 0.
    lr 7e-5 with 1,000 steps of warm-up, beta1 0, no clipping (section 5 and appendix).
    """

    decoder_norm: ClassVar[Literal["unit", "free"]] = "unit"
    architecture: ClassVar[Architecture] = "jumprelu"

    l0_coefficient: float = 1.0
    l0_warmup: float = 0.05
    bandwidth: float | None = None
    threshold_init: float | None = None
    subtract_b_dec: bool = False

    def check(self, d_in: int, d_sae: int) -> None:
        super().check(d_in, d_sae)
        require_at_least_zero(l0_coefficient=self.l0_coefficient, l0_warmup=self.l0_warmup)
        require_above_zero(bandwidth=_scaled(self.bandwidth, d_in))
        require_at_least_zero(threshold_init=_scaled(self.threshold_init, d_in))

    def recipe(self, d_sae: int) -> Recipe:
        return Recipe(lr=7e-5, beta1=0.0, lr_warmup=1000, lr_decay=0.0, clip=0.0)

    def centres_input(self) -> bool:
        return self.subtract_b_dec

    def init(self, d_in: int, d_sae: int, generator: torch.Generator, sample: Tensor | None = None) -> Weights:
        self.check(d_in, d_sae)
        w = tied_weights(d_in, d_sae, 1.0, generator)
        return {**w, "threshold": torch.full_like(w["b_enc"], _scaled(self.threshold_init, d_in))}

    def encode(self, w: Weights, x: Tensor) -> Codes:
        return jump_codes(w, x, centred=self.subtract_b_dec)

    def loss(self, w: Weights, x: Tensor, step: Step) -> Loss:
        eps = _scaled(self.bandwidth, x.shape[1])
        looked_at = w["b_enc"] - (w["threshold"] - eps / 2)
        products = active_products(x, w["W_enc"], looked_at, w["b_dec"] if self.subtract_b_dec else None)
        h, theta = products.values + products.at(w["b_enc"]), products.at(w["threshold"])
        on, fixed = h > theta, theta.detach()
        slope = (theta - fixed) * (((h - fixed).abs() < eps / 2) / eps)  # 0; its gradient is K / eps
        codes = products.like(on * torch.relu(h) - fixed * slope)
        count = per_token(on.to(h.dtype) - slope, len(x))
        coefficient = self.l0_coefficient * step.ramp(self.l0_warmup)
        return Loss({"mse": squared_error(x, self.decode(w, codes)), "sparsity": coefficient * count}, codes)

    def settle(self, w: Weights, loss: Loss, step: Step) -> Weights:
        return {"threshold": w["threshold"].clamp_min(0)}


def _scaled(value: float | None, d_in: int) -> float:
    """Return `value`, or the paper's 0.001 in units of inputs whose mean norm is sqrt(d_in)."""
    return 0.001 * math.sqrt(d_in) if value is None else value
