"""SAE variants: one short file each, found by file name.

A variant is a frozen dataclass of hyperparameters with pure methods on a dict of weights. It knows no optimiser, no
normaliser and no file: `x` below is always the *normalised* activation. The names and shapes of weights are those of
SAELens: `W_enc [d_in, d_sae]`, `b_enc [d_sae]`, `W_dec [d_sae, d_in]`, `b_dec [d_in]`, gated `b_gate`, `b_mag`,
`r_mag [d_sae]`.

The loss unit is "sum over d_in, mean over tokens"; every coefficient is for that unit.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from monosem.types import UserError

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class SparseCodes:
    """Feature activations as `k` (index, value) pairs a token; pairs with value 0 are inactive.

    indices: int64 [n, k]; values: [n, k], >= 0; d_sae: number of features.
    """

    indices: Tensor
    values: Tensor
    d_sae: int

    def dense(self) -> Tensor:
        """Return the activations as a dense tensor [n, d_sae]."""
        shape = (self.values.shape[0], self.d_sae)
        return torch.zeros(shape, dtype=self.values.dtype, device=self.values.device).scatter(
            1, self.indices, self.values
        )

    def fired(self) -> Tensor:
        """Return bool [d_sae]: which features are active on at least one token."""
        fired = torch.zeros(self.d_sae, dtype=torch.bool, device=self.values.device)
        fired[self.indices[self.values > 0]] = True
        return fired

    def l0(self) -> Tensor:
        """Return the mean number of active features a token, a scalar."""
        return (self.values > 0).sum() / self.values.shape[0]


@dataclass(frozen=True)
class DenseCodes:
    """Feature activations as a dense tensor `values [n, d_sae]`, >= 0."""

    values: Tensor

    def dense(self) -> Tensor:
        """Return the activations, [n, d_sae]."""
        return self.values

    def fired(self) -> Tensor:
        """Return bool [d_sae]: which features are active on at least one token."""
        return (self.values > 0).any(dim=0)

    def l0(self) -> Tensor:
        """Return the mean number of active features a token, a scalar."""
        return (self.values > 0).sum() / self.values.shape[0]


Codes = SparseCodes | DenseCodes


@dataclass(frozen=True)
class Step:
    """What a loss may know of training.

    index, total: this step (from 0) and the number of steps, for warm-ups; the default is "after every warm-up".
    variance: total variance of the training activations around their mean (sum over d_in, mean over tokens); None
        takes that of the batch.
    silent_tokens: int64 [d_sae], tokens seen since each feature last fired, before this batch; None: no feature is dead.
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

    def dead(self, codes: Codes) -> Tensor:
        """Return bool [d_sae]: the features that are dead once this batch (`codes`) has been counted."""
        fired = codes.fired()
        if self.silent_tokens is None:
            return torch.zeros_like(fired)
        n_tokens = codes.values.shape[0]
        return ~fired & (self.silent_tokens + n_tokens > self.dead_after)


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
    """Interface of a variant; subclasses are frozen dataclasses that add hyperparameters and the five methods.

    decoder_norm: `"unit"` keeps every decoder row at norm 1 during training, `"free"` leaves it to the loss.
    """

    decoder_norm: ClassVar[Literal["unit", "free"]] = "free"

    def check(self, d_in: int, d_sae: int) -> None:
        """Raise UserError when these hyperparameters can't work with these widths."""

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
        """Return the reconstruction [n, d_in] of feature activations."""
        raise NotImplementedError

    def loss(self, w: Weights, x: Tensor, step: Step) -> Loss:
        """Return the training loss of a batch `x [n, d_in]`, as named terms."""
        raise NotImplementedError


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
    adapter = TypeAdapter(cls, config=ConfigDict(strict=True))
    try:
        return adapter.validate_python(hyper, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f'{where} = {first["input"]!r}: {first["msg"]} (variant "{name}")') from error
