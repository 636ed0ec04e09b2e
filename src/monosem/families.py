"""Families of variants: what several of them have in common, apart from the one formula that is a variant's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from monosem.autoencoder import (
    Weights,
    batch_top_codes,
    dead_estimate,
    effective,
    ghost_term,
    jump_codes,
    relu_codes,
    require_above_zero,
    require_at_least_zero,
    require_fractions,
    squared_error,
    tied_weights,
    total_variance,
)
from monosem.dead import auxk_loss, default_k_aux, geometric_median
from monosem.kernels import Codes
from monosem.mesh import here, per_token
from monosem.types import UserError
from monosem.variant import Architecture, Loss, Recipe, Step, Variant

MEDIAN_ROWS = 32_768
"""Rows of the sample whose geometric median the decoder bias starts from."""

HINT = 0.95
"""A batch's smallest activation kept is probably above this share of the mean of those before it."""


@dataclass(frozen=True, kw_only=True)
class Penalised(Variant):
    """What `standard`, `tanh` and `p_anneal` share: a ReLU autoencoder with free decoder norms and a sparsity penalty.

    f = ReLU(c W_enc + b_enc), where c = x, or x - b_dec with `subtract_b_dec`; the loss is
    |x - xhat|^2 + lambda_t sum_i p(f_i |w_i|), where lambda_t = l1_coefficient min(1, t / (l1_warmup T)) at step t of
    T and a subclass gives the penalty p.
    decoder_init_norm: length of the rows of W_dec at the start. dead: the remedy for dead features, `"none"`,
    `"ghost"` (adds `monosem.dead.ghost_loss`) or `"resample"` (`monosem.dead.resample`, when the fractions
    `resample_at` of training are done).
    """

    l1_coefficient: float = 5.0
    l1_warmup: float = 0.05
    subtract_b_dec: bool = False
    decoder_init_norm: float = 0.1
    dead: Literal["none", "ghost", "resample"] = "none"
    resample_at: tuple[float, ...] = (0.125, 0.25, 0.375, 0.5)

    def penalty(self, fbar: Tensor, step: Step) -> Tensor:
        """Return p of effective activations `fbar` (any shape), elementwise; p(0) must be 0."""
        raise NotImplementedError

    def coefficient(self, w: Weights, step: Step) -> float | Tensor:
        """Return lambda_t, a number or a scalar."""
        return self.l1_coefficient * step.ramp(self.l1_warmup)

    def check(self, d_in: int, d_sae: int) -> None:
        super().check(d_in, d_sae)
        require_at_least_zero(l1_coefficient=self.l1_coefficient, l1_warmup=self.l1_warmup)
        require_above_zero(decoder_init_norm=self.decoder_init_norm)
        require_fractions(resample_at=self.resample_at)

    def init(self, d_in: int, d_sae: int, generator: torch.Generator, sample: Tensor | None = None) -> Weights:
        self.check(d_in, d_sae)
        return tied_weights(d_in, d_sae, self.decoder_init_norm, generator)

    def encode(self, w: Weights, x: Tensor) -> Codes:
        return relu_codes(w, x, centred=self.subtract_b_dec)

    def loss(self, w: Weights, x: Tensor, step: Step) -> Loss:
        codes = self.encode(w, x)
        xhat = self.decode(w, codes)
        sparsity = per_token(self.penalty(effective(w, codes), step), len(x))
        terms = {"mse": squared_error(x, xhat), "sparsity": self.coefficient(w, step) * sparsity}
        if self.dead == "ghost":
            terms["ghost"] = ghost_term(w, x, xhat, step.dead(codes), centred=self.subtract_b_dec)
        return Loss(terms, codes)

    def centres_input(self) -> bool:
        return self.subtract_b_dec

    def resamples(self, step: Step) -> bool:
        return self.dead == "resample" and step.due(self.resample_at)


@dataclass(frozen=True, kw_only=True)
class KSparse(Variant):
    """What `topk`, `batchtopk` and `matryoshka` share: about `k` features a token, and no penalty.

    The loss is sum_l mean |x - xhat_l|^2 / V + auxk_alpha mean |e - ehat|^2 / mean |e - mean e|^2, where V is the total
    variance of the training activations (of the batch if the step does not tell) and xhat_l are the reconstructions
    that a subclass asks for, the last one of them xhat. The second term, only with `auxk`, trains dead features on the
    residual e = sg(x - xhat), sg() the stop-gradient: ehat is `monosem.autoencoder.dead_estimate`, of `k_aux` features
    (0: the power of two nearest to d_in / 2); the term is 0 if no feature is dead, or if e does not vary.
    Decoder rows have norm 1 throughout. Start: random unit rows, W_enc = W_dec^T, b_enc = 0, b_dec the geometric median
    of up to 32,768 rows (0 without any).
    """

    decoder_norm: ClassVar[Literal["unit", "free"]] = "unit"

    k: int = 32
    subtract_b_dec: bool = True
    auxk: bool = False
    auxk_alpha: float = 1 / 32
    k_aux: int = 0
    aux_relu: bool = True

    def chosen(self, w: Weights, x: Tensor) -> Codes:
        """Return the codes of a training batch; by default those of `encode`."""
        return self.encode(w, x)

    def reconstructions(self, w: Weights, codes: Codes) -> list[Tensor]:
        """Return the reconstructions [n, d_in] whose errors make the loss, that of all features last."""
        return [self.decode(w, codes)]

    def check(self, d_in: int, d_sae: int) -> None:
        super().check(d_in, d_sae)
        require_at_least_zero(auxk_alpha=self.auxk_alpha, k_aux=self.k_aux)
        if not 1 <= self.k <= d_sae:
            raise UserError(f"k = {self.k}: must be at least 1 and at most d_sae = {d_sae}")

    def recipe(self, d_sae: int) -> Recipe:
        return Recipe(lr=2e-4 / (d_sae / 2**14) ** 0.5, eps=6.25e-10)

    def centres_input(self) -> bool:
        return self.subtract_b_dec

    def init(self, d_in: int, d_sae: int, generator: torch.Generator, sample: Tensor | None = None) -> Weights:
        self.check(d_in, d_sae)
        w = tied_weights(d_in, d_sae, 1.0, generator)
        if sample is not None:
            w["b_dec"] = geometric_median(sample[:MEDIAN_ROWS].float())
        return w

    def loss(self, w: Weights, x: Tensor, step: Step) -> Loss:
        codes = self.chosen(w, x)
        *nested, xhat = self.reconstructions(w, codes)
        variance = total_variance(x) if step.variance is None else x.new_tensor(step.variance)
        scale = 1 / torch.where(variance > 0, variance, 1.0)
        terms = {"mse": scale * squared_error(x, xhat)}
        if nested:
            terms["nested"] = scale * torch.stack([squared_error(x, part) for part in nested]).sum()
        if self.auxk:
            dead = step.dead(codes)
            terms["auxk"] = x.new_zeros(())
            if here().features.reduced(dead.any()):
                k = self.k_aux or default_k_aux(x.shape[1])
                estimate = dead_estimate(w, x, dead, k, relu=self.aux_relu, centred=self.subtract_b_dec)
                terms["auxk"] = self.auxk_alpha * auxk_loss(x - xhat, estimate)
        return Loss(terms, codes)


@dataclass(frozen=True, kw_only=True)
class BatchSparse(KSparse):
    """What `batchtopk` and `matryoshka` share: k features a token on average, chosen by a batch's largest activations.

    A saved SAE has to encode a token without its batch: f = ReLU(h) 1[h > theta], h the pre-activations. theta is the
    mean over batches, exponentially weighted, of the smallest activation kept: theta <- beta theta + (1 - beta)
    smallest, with beta = `threshold_decay`, from step `threshold_from` on, where it starts as that batch's smallest.
    """

    architecture: ClassVar[Architecture] = "jumprelu"
    buffers: ClassVar[tuple[str, ...]] = ("threshold",)

    threshold_decay: float = 0.95
    threshold_from: int = 0

    def check(self, d_in: int, d_sae: int) -> None:
        super().check(d_in, d_sae)
        require_at_least_zero(threshold_decay=self.threshold_decay, threshold_from=self.threshold_from)
        if self.threshold_decay >= 1:
            raise UserError(f"threshold_decay = {self.threshold_decay}: must be below 1")

    def init(self, d_in: int, d_sae: int, generator: torch.Generator, sample: Tensor | None = None) -> Weights:
        w = super().init(d_in, d_sae, generator, sample)
        return {**w, "threshold": torch.zeros_like(w["b_enc"])}

    def encode(self, w: Weights, x: Tensor) -> Codes:
        return jump_codes(w, x, centred=self.subtract_b_dec)

    def chosen(self, w: Weights, x: Tensor) -> Codes:
        hint = HINT * float(w["threshold"][0])
        return batch_top_codes(w, x, self.k, centred=self.subtract_b_dec, hint=hint)

    def settle(self, w: Weights, loss: Loss, step: Step) -> Weights:
        kept = loss.codes.values.detach()
        smallest = torch.where(kept > 0, kept, torch.inf).min() if kept.numel() else kept.new_tensor(torch.inf)
        smallest, theta = here().both.reduced(smallest, dist.ReduceOp.MIN), w["threshold"]
        if step.index < self.threshold_from or not torch.isfinite(smallest):
            return {}
        # theta is 0 as long as no batch has told it
        return {"threshold": torch.where(theta > 0, theta.lerp(smallest, 1 - self.threshold_decay), smallest)}
