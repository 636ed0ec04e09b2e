"""Activation normalisers: what an SAE does to raw activations before its encoder sees them, and how it is undone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from monosem.types import UserError

SCALAR = ("mean_norm", "rms_norm", "unit_rms", "none")
PER_TOKEN = ("token_const", "token_ln")
Kind = Literal["mean_norm", "rms_norm", "unit_rms", "none", "token_const", "token_ln"]


@dataclass(frozen=True)
class Normaliser:
    """A normaliser of raw activations `a [n, d_in]`; the SAE works on x.

    mean_norm: x = a sqrt(d) / E|a| (April 2024 update); rms_norm: x = a sqrt(d / E|a|^2) (Scaling Monosemanticity);
    unit_rms: x = a / sqrt(E|a|^2) (Gemma Scope); none: x = a. These fold into the weights.
    token_const: x = a sqrt(d) / |a| for each token (February 2024 update); token_ln: (a - mean a) / (std a + 1e-5)
    over dimensions, std with ddof 1 (OpenAI's TopK release). These don't fold.

    scale: x = scale * a for scalar kinds. For per-token kinds it is mean_norm's scale, used for reporting units only.
    """

    kind: str = "none"
    scale: float = 1.0

    def apply(self, raw: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the normalised activations and the function that takes reconstructions back to raw units."""
        if self.kind == "token_const":
            norm = raw.norm(dim=-1, keepdim=True).clamp_min(1e-12) / math.sqrt(raw.shape[-1])
            return raw / norm, lambda xhat: xhat * norm
        if self.kind == "token_ln":
            mean, std = raw.mean(dim=-1, keepdim=True), raw.std(dim=-1, keepdim=True)
            return (raw - mean) / (std + 1e-5), lambda xhat: xhat * std + mean
        scale = self.scale
        return (raw, lambda xhat: xhat) if scale == 1.0 else (raw * scale, lambda xhat: xhat / scale)

    def undo(self, xhat: Tensor) -> Tensor:
        """Return a reconstruction in raw units without its tokens; raises UserError for per-token kinds."""
        if self.kind in PER_TOKEN:
            raise UserError(
                f'normalise = "{self.kind}": codes alone can\'t be decoded, as this normaliser depends on each token; '
                "call sae(x) instead"
            )
        return xhat if self.scale == 1.0 else xhat / self.scale


def fit_normaliser(kind: Kind, raw: Tensor) -> Normaliser:
    """Return the normaliser of `kind` fitted on a sample of raw activations [n, d_in] (specials left out already).

    Raises UserError when the sample is empty or all zero.
    """
    norms = raw.double().norm(dim=1)
    mean, square = float(norms.mean()), float((norms**2).mean())
    if not (math.isfinite(mean) and mean > 0):
        raise UserError(f"the activations have mean norm {mean}; a normaliser needs finite, non-zero activations")
    d = raw.shape[1]
    scale = {
        "rms_norm": math.sqrt(d / square),
        "unit_rms": 1 / math.sqrt(square),
        "none": 1.0,
    }.get(kind, math.sqrt(d) / mean)
    return Normaliser(kind, scale)


def fold(weights: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return weights that act on raw activations instead of `scale * raw`; feature activations keep their values.

    W_enc *= scale; W_dec, b_dec /= scale; other biases and thresholds stay (SAELens' rule). `fold(w, 1 / scale)` takes
    it back.
    """
    factor = {"W_enc": scale, "W_dec": 1 / scale, "b_dec": 1 / scale}
    return {name: (value * factor[name] if name in factor else value.clone()) for name, value in weights.items()}


def fold_decoder_norms(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with unit decoder rows and the same reconstructions; activations become f * |w|.

    Rows of norm 0 become silent (zero encoder column and biases). Not for TopK with free decoder norms, where it would
    change the selection.
    """
    norms = weights["W_dec"].norm(dim=1)
    safe = torch.where(norms > 0, norms, torch.ones_like(norms))
    out = {name: value.clone() for name, value in weights.items()}
    out["W_enc"] *= norms
    out["W_dec"] /= safe[:, None]
    for name in ("b_enc", "b_gate", "b_mag", "threshold"):
        if name in out:
            out[name] *= norms
    return out
