"""What an SAE computes, apart from how it was trained, and its equal in another architecture.

Foreign formats know four architectures and each only some of their settings; the functions here rewrite weights so that
the same function of raw activations fits into what a format can say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from monosem.normaliser import PER_TOKEN, Normaliser, fold
from monosem.sae import Sae
from monosem.types import UserError
from monosem.variants import Architecture, Weights, make_variant


@dataclass(frozen=True)
class Plain:
    """An SAE as a function of raw activations a [d_in], with names and shapes of weights as in `monosem.variants`.

    Let c = a - b_dec if `centred`, else a, and h = c W_enc + b_enc. Then xhat = f W_dec + b_dec with
    standard: f = ReLU(h); topk: the k largest of ReLU(h); jumprelu: f = ReLU(h) 1[h > threshold];
    gated: f = 1[c W_enc + b_gate > 0] ReLU(exp(r_mag) c W_enc + b_mag).
    per_token: "" or the kind of `monosem.normaliser.Normaliser` that a goes through first, and xhat back.
    """

    architecture: Architecture
    weights: Weights
    centred: bool
    k: int = 0
    per_token: str = ""


def plain(sae: Sae) -> Plain:
    """Return what `sae` computes; a scalar normaliser is folded into the weights (float32, contiguous)."""
    per_token = sae.normaliser.kind if sae.normaliser.kind in PER_TOKEN else ""
    folded = fold(sae.weights, 1.0 if per_token else sae.normaliser.scale)
    weights = {name: value.detach().float().cpu().contiguous() for name, value in folded.items()}
    architecture = sae.variant.architecture
    k = sae.hyper["k"] if architecture == "topk" else 0
    return Plain(architecture, weights, sae.variant.centres_input(), k, per_token)


def sae_of(found: Plain, facts: dict[str, Any]) -> Sae:
    """Return an `Sae` that computes `found`, of the variant with the architecture's name."""
    hyper: dict[str, Any] = {"subtract_b_dec": found.centred}
    if found.architecture == "topk":
        hyper["k"] = found.k
    variant = make_variant(found.architecture, hyper)
    variant.check(*found.weights["W_enc"].shape)
    return Sae(found.architecture, variant, found.weights, Normaliser(found.per_token or "none"), facts)


def recentred(found: Plain, centred: bool) -> Plain:
    """Return the same function with or without b_dec subtracted from the input; encoder biases take up the difference.

    (a - b_dec) W_enc + b = a W_enc + (b - b_dec W_enc), and the gated magnitude's bias takes exp(r_mag) times that.
    """
    if found.centred == centred:
        return found
    w = {name: value.double() for name, value in found.weights.items()}
    shift = w["b_dec"] @ w["W_enc"] * (1.0 if centred else -1.0)
    for name in ("b_enc", "b_gate"):
        if name in w:
            w[name] = w[name] + shift
    if "b_mag" in w:
        w["b_mag"] = w["b_mag"] + w["r_mag"].exp() * shift
    return replace(found, weights=_narrowed(w), centred=centred)


def as_jumprelu(found: Plain) -> Plain:
    """Return the same function as a JumpReLU SAE. Raises UserError for TopK, whose threshold differs by token.

    ReLU(h) has threshold 0; gated: W_enc exp(r_mag), b_mag and threshold max(0, b_mag - exp(r_mag) b_gate)
    (Rajamanoharan et al. 2024, arXiv 2404.16014, appendix E).
    """
    w = found.weights
    if found.architecture == "jumprelu":
        return found
    if found.architecture == "topk":
        raise UserError(
            "a TopK SAE keeps k features of each token, which no fixed threshold does; write it as saelens, "
            "dictionary_learning or sparsify"
        )
    if found.architecture == "standard":
        made = {**w, "threshold": torch.zeros_like(w["b_enc"])}
    else:
        scale = w["r_mag"].double().exp()
        threshold = (w["b_mag"].double() - scale * w["b_gate"].double()).clamp_min(0)
        made = {
            "W_enc": w["W_enc"].double() * scale,
            "b_enc": w["b_mag"],
            "threshold": threshold,
            "W_dec": w["W_dec"],
            "b_dec": w["b_dec"],
        }
    return replace(found, architecture="jumprelu", weights=_narrowed(made))


def _narrowed(weights: Weights) -> Weights:
    out = {name: value.float() for name, value in weights.items()}
    if not all(bool(value.isfinite().all()) for value in out.values()):
        raise UserError("its weights are too large to be rewritten in float32; write the SAE as saelens")
    return out
