"""What SAEBench reads off an SAE's weights, with numpy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from monosem.types import UserError

BLOCK_VALUES = 2**24  # cosines held at once: 64 MiB
TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Geometry:
    """Of each feature [d_sae], float64, with decoder norms folded into the encoder as SAEBench does before it measures.

    bias, norm: of the encoder; cosine: of encoder column and decoder row; nearest_encoder, nearest_decoder: the largest
    cosine with the encoder column, or decoder row, of another feature.
    """

    bias: np.ndarray
    norm: np.ndarray
    cosine: np.ndarray
    nearest_encoder: np.ndarray
    nearest_decoder: np.ndarray


def geometry(path: Path) -> Geometry:
    """Read the weights of an SAE in SAELens' names. Raises UserError when they can't be read."""
    try:
        weights = load_file(path)
        encoder, decoder = weights["W_enc"].T.astype(np.float32), weights["W_dec"].astype(np.float32)
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path}: can't be read ({error}); the file is missing, truncated or altered") from error
    bias = weights.get("b_mag", weights.get("b_enc", np.zeros(len(decoder), np.float32)))
    lengths, norms = np.linalg.norm(encoder, axis=1), np.linalg.norm(decoder, axis=1)
    encoder, decoder = _unit(encoder, lengths), _unit(decoder, norms)
    return Geometry(
        (bias * norms).astype(np.float64),
        (lengths * norms).astype(np.float64),
        np.einsum("nd,nd->n", encoder, decoder).astype(np.float64),
        nearest(encoder),
        nearest(decoder),
    )


def nearest(unit: np.ndarray) -> np.ndarray:
    """Return for each of `unit` [n, d], rows of length 1, the largest product with another row, float64 [n]."""
    n = len(unit)
    step = max(1, BLOCK_VALUES // n)
    found = np.empty(n)
    for first in range(0, n, step):
        products = unit[first : first + step] @ unit.T
        products[np.arange(len(products)), np.arange(first, first + len(products))] = -np.inf
        found[first : first + step] = products.max(axis=1)
    return found


def _unit(rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return rows / np.maximum(lengths, TINY)[:, None]
