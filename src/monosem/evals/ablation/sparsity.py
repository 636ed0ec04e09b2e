"""How sparse the effects of an ablation are (Gao et al. 2024, section 4.5), as pure functions on arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from monosem.evals.ablation.loops import centred_sums
from monosem.metrics import Array

SMALLEST = 1e-6  # effects whose length is below this are none: their sparsity is undefined


def effect_sparsity(effects: ArrayLike | Tensor) -> Any:
    """Return (L1 / L2)^2 / (V T) of `effects [T, V]`, each position's median over the vocabulary subtracted.

    The effective share of (token, position) pairs that are affected: from 1 / (V T), one pair, to 1, all alike. NaN
    where the L2 norm is below 1e-6. effects: changes of logits, an array or a tensor; [..., T, V] gives an array [...],
    a single ablation a float.
    """
    values = effects.detach().cpu().numpy() if isinstance(effects, Tensor) else np.asarray(effects)
    values = values.astype(np.float64)
    centred = values - np.median(values, axis=-1, keepdims=True)
    found = from_norms(np.abs(centred).sum((-2, -1)), np.square(centred).sum((-2, -1)), values.shape[-2:])
    return float(found) if found.ndim == 0 else found


def from_norms(l1: Array, squares: Array, shape: tuple[int, ...]) -> Array:
    """Return the sparsity from sums of absolute values and of squares [...]; shape: of one ablation, (T, V)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(squares < SMALLEST**2, np.nan, l1**2 / squares / (shape[0] * shape[1]))


def centre(effects: Tensor) -> tuple[float, float]:
    """Subtract each row's median from `effects [T, V]` (float32), in place; return the sums of absolute values and of
    squares over the whole ablation.
    """
    if effects.device.type == "cpu":
        sums = np.empty((len(effects), 2))
        centred_sums(effects.numpy(), sums)
        l1, squares = sums.sum(0).tolist()
        return l1, squares
    v = effects.shape[1]
    ordered = effects.sort(dim=-1).values
    effects -= ((ordered[:, (v - 1) // 2] + ordered[:, v // 2]) / 2)[:, None]
    return float(effects.abs().sum(dtype=torch.float64)), float(effects.double().square().sum())
