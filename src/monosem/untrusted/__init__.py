"""Reading files that a stranger wrote: nothing in them is executed, believed or allowed to fill the memory.

Every fault of a file becomes a UserError that names it. A file's claims (header lengths, shapes, numbers of bytes) are
compared with its real size before anything is allocated for them.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from monosem.types import UserError
from monosem.untrusted.archives import read_npz, read_torch
from monosem.untrusted.words import printable, shown, words

__all__ = [
    "Place",
    "check_shapes",
    "numbers",
    "printable",
    "read_npz",
    "read_object",
    "read_safetensors",
    "read_torch",
    "shown",
]

MAX_JSON = 4 * 2**20
MAX_HEADER = 2**20

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Place:
    """A folder with the files of one SAE.

    root: links may lead to files below this folder, by default the folder itself; a hub's cache keeps its files
    elsewhere in the repository's folder. known: what is known from outside the files (repository, release, model).
    """

    folder: Path
    root: Path | None = None
    known: dict[str, Any] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Return whether there is a file of that name."""
        return (self.folder / name).is_file()

    def file(self, name: str) -> Path:
        """Return the path of a file. Raises UserError when it is missing or a link out of `root`."""
        path = self.folder / name
        if not path.is_file():
            raise UserError(f"{path}: no such file; an SAE in this format needs it")
        root = (self.root or self.folder).resolve()
        if not path.resolve().is_relative_to(root):
            raise UserError(f"{path}: a link to a file outside {root}; put the file itself there")
        return path


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of at most 4 MiB. Raises UserError."""
    if os.path.getsize(path) > MAX_JSON:
        raise UserError(f"{path}: larger than {MAX_JSON // 2**20} MiB, no configuration of an SAE; replace the file")
    try:
        value = json.loads(path.read_bytes(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({words(error)}); replace the file") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a JSON {type(value).__name__} instead of an object; replace the file")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {shown(twice)} comes twice")
    return made


def read_safetensors(path: Path) -> Tensors:
    """Return the tensors of a safetensors file. Raises UserError when it is truncated, altered or another kind."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if size < 8 or header > min(size - 8, MAX_HEADER):
        raise UserError(
            f"{path}: truncated or no safetensors file (its header claims {header:,} bytes, the file has {size:,})"
        )
    try:
        return load_file(path)
    except Exception as error:  # safetensors and torch have many
        raise UserError(f"{path}: can't be read ({words(error)}); the file is truncated or altered") from error


def numbers(tensors: dict[str, Any], names: Iterable[str], path: Path) -> Tensors:
    """Return the tensors `names` as contiguous float32. Raises UserError for a missing, odd or non-finite one."""
    out: Tensors = {}
    for name in names:
        if name not in tensors:
            known = ", ".join(shown(held) for held in sorted(tensors)[:20]) or "nothing"
            raise UserError(f'{path}: tensor "{name}" is missing; it holds {known}')
        tensor = tensors[name]
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.element_size() < 2:
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise UserError(f"{path}: {name} has type {kind}; weights are numbers of 16, 32 or 64 bits with a point")
        value = tensor.detach().float().contiguous()
        if not value.isfinite().all():
            raise UserError(f"{path}: {name} holds NaN or infinity; the SAE was damaged in training or in storage")
        out[name] = value
    return out


def check_shapes(tensors: Tensors, shapes: dict[str, tuple[int, ...]], path: Path, source: str) -> None:
    """Raise UserError when a tensor hasn't the shape that `source` says."""
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise UserError(f"{path}: {name} has shape {tuple(tensors[name].shape)}, {source} says {shape}")
