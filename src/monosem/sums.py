"""The sums of the measure stage on disk: `results/heldout.safetensors` and `results/<run>/measure/sums.safetensors`.

Imports no torch: whoever reads measurements reads them here.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from monosem.metrics import DataSums, Downstream, SaeSums
from monosem.store import write_bytes
from monosem.types import UserError


def heldout_path(folder: Path) -> Path:
    """Where the sums over the held-out tokens themselves lie."""
    return folder / "results" / "heldout.safetensors"


def sums_path(folder: Path, run: str) -> Path:
    """Where a run's sums lie."""
    return folder / "results" / run / "measure" / "sums.safetensors"


def write_heldout(folder: Path, data: DataSums, header: dict[str, Any]) -> None:
    """Write the sums over the tokens themselves."""
    _write(heldout_path(folder), {f.name: getattr(data, f.name) for f in fields(data)}, header)


def write_sums(folder: Path, run: str, sae: SaeSums, ce: Downstream | None, header: dict[str, Any]) -> None:
    """Write a run's sums; header: what they depend on."""
    arrays = {f.name: np.asarray(getattr(sae, f.name)) for f in fields(sae)}
    if ce is not None:
        arrays |= {f"ce.{f.name}": getattr(ce, f.name) for f in fields(ce)}
    _write(sums_path(folder, run), arrays, header)


def _write(path: Path, arrays: dict[str, np.ndarray], header: dict[str, Any]) -> None:
    data = {name: np.ascontiguousarray(value).reshape(value.shape) for name, value in arrays.items()}
    write_bytes(path, save(data, {"header": json.dumps(header, sort_keys=True)}))


def read_header(path: Path) -> dict[str, Any] | None:
    """Return a sums file's header, None when there is no whole file."""
    try:
        with safe_open(path, framework="numpy") as file:
            return json.loads(file.metadata()["header"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: can't be read ({error}); run `monosem measure` first") from error


def read_heldout(folder: Path) -> DataSums:
    """Read the sums over the held-out tokens themselves. Raises UserError when they are missing."""
    return DataSums(**_read(heldout_path(folder)))


def read_sums(folder: Path, run: str) -> tuple[SaeSums, Downstream | None]:
    """Read a run's sums. Raises UserError when they are missing."""
    arrays = _read(sums_path(folder, run))
    ce = {name.removeprefix("ce."): arrays.pop(name) for name in list(arrays) if name.startswith("ce.")}
    ev_token, scale = float(arrays.pop("ev_token")), float(arrays.pop("scale"))
    return SaeSums(**arrays, ev_token=ev_token, scale=scale), Downstream(**ce) if ce else None
