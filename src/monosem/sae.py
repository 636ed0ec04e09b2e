"""An SAE as every later stage sees it: variant + weights + normaliser. `x` is raw model activations here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from monosem.normaliser import Normaliser
from monosem.types import UserError
from monosem.variants import Codes, DenseCodes, Loss, Step, Variant, Weights, make_variant


@dataclass
class Sae:
    """A sparse autoencoder over raw activations `x [n, d_in]`.

    weights act on normalised activations; the normaliser is applied inside. facts: name, site, model, seed, training
    record: what is known about its origin.
    """

    variant_name: str
    variant: Variant
    weights: Weights
    normaliser: Normaliser = field(default_factory=Normaliser)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.weights["W_dec"].shape[1]

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.weights["W_dec"].shape[0]

    def codes(self, x: Tensor) -> Codes:
        """Return the feature activations of raw activations, sparse or dense as the variant makes them."""
        return self.variant.encode(self.weights, self.normaliser.apply(self._checked(x))[0])

    def encode(self, x: Tensor) -> Tensor:
        """Return the feature activations as a dense tensor [n, d_sae], in the SAE's own (normalised) units."""
        return self.codes(x).dense()

    def decode(self, codes: Codes | Tensor) -> Tensor:
        """Return raw reconstructions [n, d_in] of feature activations (dense [n, d_sae] or Codes)."""
        dense = DenseCodes(codes) if isinstance(codes, Tensor) else codes
        return self.normaliser.undo(self.variant.decode(self.weights, dense))

    def reconstruct(self, x: Tensor) -> tuple[Codes, Tensor]:
        """Return the codes and the raw reconstruction of raw activations."""
        normalised, undo = self.normaliser.apply(self._checked(x))
        codes = self.variant.encode(self.weights, normalised)
        return codes, undo(self.variant.decode(self.weights, codes))

    def __call__(self, x: Tensor) -> Tensor:
        """Return the raw reconstruction [n, d_in]."""
        return self.reconstruct(x)[1]

    def loss(self, x: Tensor, step: Step | None = None) -> Loss:
        """Return the training loss (named terms and their sum) on raw activations; gradients reach `weights`."""
        return self.variant.loss(self.weights, self.normaliser.apply(self._checked(x))[0], step or Step())

    def to(self, device: str | torch.device) -> Sae:
        """Return the SAE on another device."""
        return replace(self, weights={name: value.to(device) for name, value in self.weights.items()})

    def as_module(self) -> SaeModule:
        """Return a torch module with these weights as parameters."""
        return SaeModule(self)

    @property
    def hyper(self) -> dict[str, Any]:
        """The variant's hyperparameters."""
        return asdict(self.variant)

    def _checked(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.d_in:
            raise UserError(f"activations of shape {tuple(x.shape)}: this SAE reads [n, {self.d_in}]")
        return x.to(self.weights["W_dec"].dtype)


class SaeModule(nn.Module):
    """A torch module around an `Sae`: `forward(x)` reconstructs raw activations [n, d_in]."""

    def __init__(self, sae: Sae):
        """Register the weights as parameters."""
        super().__init__()
        self.sae = replace(sae, weights={})
        for name, value in sae.weights.items():
            self.register_parameter(name, nn.Parameter(value))

    def _bound(self) -> Sae:
        return replace(self.sae, weights=dict(self.named_parameters()))

    def encode(self, x: Tensor) -> Tensor:
        """Return feature activations [n, d_sae]."""
        return self._bound().encode(x)

    def decode(self, codes: Tensor) -> Tensor:
        """Return raw reconstructions [n, d_in]."""
        return self._bound().decode(codes)

    def forward(self, x: Tensor) -> Tensor:
        """Return raw reconstructions [n, d_in]."""
        return self._bound()(x)


def make_sae(variant: str, *, d_in: int, d_sae: int, seed: int = 0, **hyper: Any) -> Sae:
    """Return a freshly initialised SAE (float32 weights, no normaliser).

    Raises UserError for an unknown variant or hyperparameter, or widths that can't work.
    """
    made = make_variant(variant, hyper)
    made.check(d_in, d_sae)
    weights = made.init(d_in, d_sae, torch.Generator().manual_seed(seed))
    return Sae(variant, made, weights, facts={"seed": seed})
