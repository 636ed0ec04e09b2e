"""Nearest features by the cosine of their decoder rows, within a run and in every other. Reads weights by numpy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from monosem.types import UserError

CHUNK_VALUES = 2**21  # of a decoder read at once: 8 MiB


class Near(NamedTuple):
    """A feature and the cosine of its decoder row with the one asked for."""

    feature: int
    cosine: float


def decoder_rows(folder: Path, run: str, features: Sequence[int]) -> np.ndarray:
    """Return the decoder rows of some features [k], float32 [k, d_in]. Raises UserError when they can't be read."""
    return np.concatenate([next(_decoder(folder, run, i, i + 1)) for i in features])


def nearest(folder: Path, run: str, rows: np.ndarray, number: int, leave_out: Sequence[int] = ()) -> list[list[Near]]:
    """Return, for each of `rows` [k, d_in], the `number` features of a run whose decoder rows have the largest cosine.

    leave_out: for each row a feature that doesn't count (its own), or nothing. Empty lists for a run of another width.
    One pass over the weights; k * d_sae cosines are held. Raises UserError when the weights can't be read.
    """
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    pieces = []
    for part in _decoder(folder, run):
        if part.shape[1] != rows.shape[1]:
            return [[] for _ in rows]
        lengths = np.sqrt(np.einsum("nd,nd->n", part, part))
        pieces.append(unit @ part.T / np.maximum(lengths, 1e-30))
    cosines = np.concatenate(pieces, axis=1)
    cosines[np.arange(len(leave_out)), list(leave_out)] = -2.0
    found = []
    for cosine in cosines:
        best = np.argsort(-cosine, kind="stable")[:number]
        found.append([Near(int(i), float(cosine[i])) for i in best if cosine[i] > -2.0])
    return found


def _decoder(folder: Path, run: str, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
    """Yield the decoder rows `start` to `stop`, float32 [n, d_in], from the mapped file, which is closed again."""
    path = folder / "saes" / run / "sae_weights.safetensors"
    try:
        with safe_open(path, framework="numpy") as file:
            rows: Any = file.get_slice("W_dec")
            n, d = rows.get_shape()
            step, end = max(1, CHUNK_VALUES // d), n if stop is None else min(n, stop)
            for first in range(start, end, step):
                yield rows[first : min(first + step, end)].astype(np.float32, copy=False)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: can't be read ({error}); the file is missing, truncated or altered") from error
