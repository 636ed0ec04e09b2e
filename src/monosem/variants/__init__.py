"""SAE variants: one short file each, found by file name.

A variant is a frozen dataclass of hyperparameters with pure methods on a dict of weights. It knows no optimiser, no
normaliser and no file: `x` below is always the *normalised* activation. The names and shapes of weights are those of
SAELens: `W_enc [d_in, d_sae]`, `b_enc [d_sae]`, `W_dec [d_sae, d_in]`, `b_dec [d_in]`, gated `b_gate`, `b_mag`,
`r_mag [d_sae]`.

The loss unit is "sum over d_in, mean over tokens"; every coefficient is for that unit.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from monosem.autoencoder import (
    Weights,
    effective,
    ghost_term,
    relu_codes,
    require_above_zero,
    require_at_least_zero,
    require_fractions,
    row_errors,
    squared_error,
    tied_weights,
)
from monosem.dead import resample
from monosem.kernels import Codes, DenseCodes, RaggedCodes, SparseCodes, decode
from monosem.types import UserError

__all__ = [
    "Architecture",
    "Codes",
    "DenseCodes",
    "Loss",
    "Penalised",
    "RaggedCodes",
    "Recipe",
    "SparseCodes",
    "Step",
    "Variant",
    "Weights",
    "make_variant",
    "variant_class",
    "variant_names",
]


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
        fired = codes.fired()
        if self.silent_tokens is None:
            return torch.zeros_like(fired)
        return ~fired & (self.silent_tokens + codes.n_tokens > self.dead_after)


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
    """

    decoder_norm: ClassVar[Literal["unit", "free"]] = "free"
    architecture: ClassVar[Architecture] = "standard"

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
        return decode(codes, w["W_dec"], w["b_dec"])

    def loss(self, w: Weights, x: Tensor, step: Step) -> Loss:
        """Return the training loss of a batch `x [n, d_in]`, as named terms."""
        raise NotImplementedError

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


@dataclass(frozen=True, kw_only=True)
class Penalised(Variant):
    """What `standard` and `tanh` share: a ReLU autoencoder with free decoder norms and a sparsity penalty.

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

    def penalty(self, fbar: Tensor) -> Tensor:
        """Return p of effective activations `fbar` (any shape), elementwise; p(0) must be 0."""
        raise NotImplementedError

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
        coefficient = self.l1_coefficient * step.ramp(self.l1_warmup)
        sparsity = self.penalty(effective(w, codes)).sum() / len(x)
        terms = {"mse": squared_error(x, xhat), "sparsity": coefficient * sparsity}
        if self.dead == "ghost":
            terms["ghost"] = ghost_term(w, x, xhat, step.dead(codes), centred=self.subtract_b_dec)
        return Loss(terms, codes)

    def centres_input(self) -> bool:
        return self.subtract_b_dec

    def resamples(self, step: Step) -> bool:
        return self.dead == "resample" and step.due(self.resample_at)


def variant_names() -> list[str]:
    """Return the names of all variants: the modules of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def variant_class(name: str) -> type[Variant]:
    """Return the variant class that the module `name` of this folder defines.

    Raises UserError when there is no such variant.
    """
    if name not in variant_names():
        raise UserError(f'variant = "{name}": unknown variant; known are {", ".join(variant_names())}')
    module = importlib.import_module(f"{__name__}.{name}")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Variant) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define exactly one Variant, found {len(found)}")
    return found[0]


def make_variant(name: str, hyper: dict[str, Any]) -> Variant:
    """Return the variant `name` with checked hyperparameters.

    Raises UserError for an unknown variant, an unknown hyperparameter (naming the known ones) or a wrong type.
    """
    cls = variant_class(name)
    known = [f.name for f in fields(cls)]
    for key in hyper:
        if key not in known:
            raise UserError(f'{key}: unknown key for variant "{name}"; known are {", ".join(known)}')
    try:  # strict as JSON is: 5 for 5.0 and a list for a tuple, but no "5" and no true for 1
        return TypeAdapter(cls).validate_json(json.dumps(hyper, default=repr), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f'{where} = {first["input"]!r}: {first["msg"]} (variant "{name}")') from error
