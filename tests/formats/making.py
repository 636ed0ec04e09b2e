"""SAEs with nothing special about them: no unit rows, no zero biases; and the distance of two of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import monosem
from monosem.normaliser import Normaliser
from monosem.sae import Sae

D_IN, D_SAE = 8, 24
HYPER: dict[str, dict[str, Any]] = {
    "standard": {},
    "tanh": {"tanh_scale": 2.0},
    "p_anneal": {},
    "gated": {},
    "topk": {"k": 3},
    "batchtopk": {"k": 4},
    "matryoshka": {"k": 4, "fractions": (0.25, 0.5, 1.0)},
    "jumprelu": {},
}
"""Every variant, with hyperparameters that fit these widths."""

NORMALISERS = {
    "none": Normaliser(),
    "mean_norm": Normaliser("mean_norm", 0.31),
    "token_const": Normaliser("token_const", 0.31),
    "token_ln": Normaliser("token_ln", 0.31),
}


def random_sae(variant: str, hyper: dict[str, Any] | None = None, normaliser: str = "none", seed: int = 2) -> Sae:
    """Return an SAE with random weights; decoder rows have norms from 0.5 to 2, thresholds are above 0."""
    sae = monosem.make_sae(variant, d_in=D_IN, d_sae=D_SAE, seed=1, **{**HYPER[variant], **(hyper or {})})
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: value + 0.2 * torch.randn(value.shape, generator=generator)
        for name, value in sae.weights.items()
        if name not in sae.variant.scratch
    }
    norms = weights["W_dec"].norm(dim=1, keepdim=True)
    weights["W_dec"] *= (0.5 + 1.5 * torch.rand(norms.shape, generator=generator)) / norms
    if variant == "jumprelu":
        weights["threshold"] = 0.1 + torch.rand(D_SAE, generator=generator)
    elif "threshold" in weights:
        weights["threshold"] = torch.full((D_SAE,), 0.4)
    facts = {"site": "blocks.1.hook_resid_post", "model": "acme/tiny", "context": 64}
    return replace(sae, weights=weights, normaliser=NORMALISERS[normaliser], facts=facts)


def activations(rows: int = 300, seed: int = 5) -> Tensor:
    """Return raw activations [rows, D_IN] whose mean isn't 0."""
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, D_IN, generator=generator) + torch.randn(D_IN, generator=generator)


def distance(found: Tensor, wanted: Tensor) -> float:
    """Return |found - wanted| / |wanted|, in float64."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())
