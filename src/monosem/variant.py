"""What a variant is: its interface, what its loss may know of training, and what it gives back.

A variant is a frozen dataclass of hyperparameters with pure methods on a dict of weights. It knows no optimiser, no
normaliser and no file: `x` below is always the *normalised* activation. The names and shapes of weights are those of
SAELens: `W_enc [d_in, d_sae]`, `b_enc [d_sae]`, `W_dec [d_sae, d_in]`, `b_dec [d_in]`, gated `b_gate`, `b_mag`,
`r_mag [d_sae]`, `threshold [d_sae]`.

The loss unit is "sum over d_in, mean over tokens"; every coefficient is for that unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from monosem.autoencoder import Weights, reconstruct, row_errors
from monosem.dead import resample
from monosem.kernels import Codes
from monosem.mesh import here
from monosem.types import UserError

Architecture = Literal["standard", "gated", "topk", "jumprelu"]


@dataclass(frozen=True)
class Step:
    """What a loss may know of training.

    index, total: this step (from 0) and the number of steps, for warm-ups; the default is "after every warm-up".
    variance: total variance of the training activations around their mean (sum over d_in, mean over tokens); None
        takes that of the batch.
    silent_tokens: int64 [d_sae], tokens seen since each feature last fired, before this batch; None: none is dead.
    dead_after: a feature is dead when it has been silent for more than this many tokens.
    """

    index: int = 1
    total: int = 1
    variance: float | None = None
    silent_tokens: Tensor | None = None
    dead_after: int = 10_000_000

    def ramp(self, fraction: float) -> float:
        """Return min(1, index / (fraction * total)): a linear warm-up over the first `fraction` of the steps."""
        return 1.0 if fraction * self.total <= 0 else min(1.0, self.index / (fraction * self.total))

    def due(self, fractions: tuple[float, ...]) -> bool:
        """Return whether this step is one of `fractions` of training (step 0 never is)."""
        return self.index > 0 and any(self.index == round(fraction * self.total) for fraction in fractions)

    def dead(self, codes: Codes) -> Tensor:
        """Return bool [d_sae]: the features that are dead once this batch (`codes`) has been counted."""
        data = here().data
        fired = data.reduced(codes.fired())
        if self.silent_tokens is None:
            return torch.zeros_like(fired)
        return ~fired & (self.silent_tokens + codes.n_tokens * data.size > self.dead_after)


@dataclass(frozen=True)
class Loss:
    """Named terms (scalars, already weighted) whose sum is the loss, and the codes that made them."""

    terms: dict[str, Tensor]
    codes: Codes

    @property
    def total(self) -> Tensor:
        """Return the sum of the terms, a scalar."""
        return torch.stack(list(self.terms.values())).sum()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A variant's published optimiser settings; a study may override each.

    lr_warmup: steps of linear learning-rate warm-up; lr_decay: last fraction of the steps over which it falls to 0;
    clip: global gradient norm, 0 for none.
    """

    lr: float = 5e-5
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    lr_warmup: int = 0
    lr_decay: float = 0.2
    clip: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Interface of a variant; subclasses are frozen dataclasses that add hyperparameters, `init`, `encode` and `loss`.

    decoder_norm: `"unit"` keeps every decoder row at norm 1 during training, `"free"` leaves it to the loss.
    architecture: what SAELens calls an SAE that encodes and decodes like this one; the format it is saved in.
    buffers: entries of the weights that no gradient reaches, such as running statistics; `settle` moves them.
    scratch: those buffers that only training needs; a saved SAE doesn't hold them, and `loss` works without them.
    whole: entries that all features share. All others have one column (W_enc) or one row a feature.
    """

    decoder_norm: ClassVar[Literal["unit", "free"]] = "free"
    architecture: ClassVar[Architecture] = "standard"
    buffers: ClassVar[tuple[str, ...]] = ()
    scratch: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[tuple[str, ...]] = ("b_dec",)

    def check(self, d_in: int, d_sae: int) -> None:
        """Raise UserError when these hyperparameters can't work with these widths."""
        for name, width in (("d_in", d_in), ("d_sae", d_sae)):
            if width < 1:
                raise UserError(f"{name} = {width}: must be at least 1")

    def recipe(self, d_sae: int) -> Recipe:
        """Return the published optimiser settings for a dictionary of `d_sae` features."""
        return Recipe()

    def constraint(self) -> Literal["unit", "free"]:
        """Return how training treats decoder norms; by default the class constant."""
        return self.decoder_norm

    def init(self, d_in: int, d_sae: int, generator: torch.Generator, sample: Tensor | None = None) -> Weights:
        """Return fresh float32 weights. sample: some normalised activations [n, d_in], for data-dependent biases."""
        raise NotImplementedError

    def encode(self, w: Weights, x: Tensor) -> Codes:
        """Return the feature activations of `x [n, d_in]`."""
        raise NotImplementedError

    def decode(self, w: Weights, codes: Codes) -> Tensor:
        """Return the reconstruction f W_dec + b_dec, [n, d_in], of feature activations f."""
        return reconstruct(codes, w["W_dec"], w["b_dec"])

    def loss(self, w: Weights, x: Tensor, step: Step) -> Loss:
        """Return the training loss of a batch `x [n, d_in]`, as named terms."""
        raise NotImplementedError

    def settle(self, w: Weights, loss: Loss, step: Step) -> Weights:
        """Return what replaces entries of `w` once the optimiser has taken its step: buffers, projections.

        w: the weights after the step; loss: what this variant's `loss` gave for the weights before it. Called without
        gradients being recorded.
        """
        return {}

    def resamples(self, step: Step) -> bool:
        """Return whether dead features have to be drawn anew (`resample`) before this step."""
        return False

    def resample(
        self, w: Weights, x: Tensor, dead: Tensor, generator: torch.Generator
    ) -> tuple[Weights, dict[str, Tensor]]:
        """Return weights with the features `dead`, bool [d_sae], drawn anew from `x [n, d_in]`, and what was reset.

        See `monosem.dead.resample`; the loss of a row is its squared reconstruction error.
        """
        losses = torch.cat([row_errors(part, self.decode(w, self.encode(w, part))) for part in x.split(4096)])
        return resample(w, x - w["b_dec"] if self.centres_input() else x, losses, dead, generator)

    def centres_input(self) -> bool:
        """Return whether the encoder sees x - b_dec instead of x."""
        return False
