"""Reading files that a stranger wrote: nothing in them is executed, believed or allowed to fill the memory.

Every fault of a file becomes a UserError that names it. A file's claims (header lengths, shapes, numbers of bytes) are
compared with its real size before anything is allocated for them.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from monosem.types import UserError

MAX_JSON = 16 * 2**20
MAX_HEADER = 16 * 2**20
MAX_PICKLE = 16 * 2**20
MAX_INFLATION = 16
"""An archive may unpack to this many times its size; weights in float32 shrink by less than a third."""

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
    """Return the JSON object in a file of at most 16 MiB. Raises UserError."""
    if os.path.getsize(path) > MAX_JSON:
        raise UserError(f"{path}: larger than {MAX_JSON // 2**20} MiB, no configuration of an SAE; replace the file")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); replace the file") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a JSON {type(value).__name__} instead of an object; replace the file")
    return value


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
        raise UserError(f"{path}: can't be read ({_words(error)}); the file is truncated or altered") from error


def read_npz(path: Path) -> Tensors:
    """Return the arrays of a numpy archive as tensors; arrays of objects (pickles) are refused. Raises UserError."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sizes(path, archive)
            return {i.filename.removesuffix(".npy"): _array(path, archive, i) for i in archive.infolist()}
    except UserError:
        raise
    except Exception as error:  # zipfile raises zlib's, struct's and its own
        raise UserError(f"{path}: can't be read ({_words(error)}); the file is truncated or altered") from error


def _check_sizes(path: Path, archive: zipfile.ZipFile) -> None:
    size, unpacked = os.path.getsize(path), sum(info.file_size for info in archive.infolist())
    if unpacked > MAX_INFLATION * size:
        raise UserError(f"{path}: would unpack to {unpacked:,} bytes from {size:,}; that isn't an SAE's weights")


def _array(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Tensor:
    data = archive.read(info)
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise UserError(f"{path}: {info.filename} holds Python objects, which are not read; save plain arrays")
    body = data[stream.tell() :]
    if int(np.prod(shape, dtype=object)) * dtype.itemsize != len(body):
        raise UserError(f"{path}: {info.filename} claims shape {shape}, but has {len(body):,} bytes; it is truncated")
    flat = np.frombuffer(body, dtype=dtype)
    array = flat.reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(np.array(array, dtype=dtype.newbyteorder("="), order="C"))


def read_torch(path: Path) -> dict[str, Any]:
    """Return the dict in a torch file: tensors, numbers, texts and dicts of them. Raises UserError.

    Read with `weights_only`, by which torch takes the pickle for a list of tensors and calls nothing that it names.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED or (
                    info.filename.endswith("data.pkl") and info.file_size > MAX_PICKLE
                ):
                    raise UserError(f"{path}: {info.filename} is packed or too large; torch.save writes no such file")
            _check_sizes(path, archive)
    except zipfile.BadZipFile as error:
        raise UserError(
            f"{path}: truncated, or in torch's format from before 1.6, which isn't read; load it with torch where you "
            "trust it and save it anew"
        ) from error
    except (OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: can't be read ({_words(error)}); the file is truncated or altered") from error
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # any: the pickle may fail in every way
        raise UserError(
            f"{path}: can't be read as weights alone ({_words(error)}); it is altered, or holds code, which isn't run"
        ) from error
    if not isinstance(value, dict | OrderedDict):
        raise UserError(f"{path}: holds a {type(value).__name__} instead of named tensors")
    return dict(value)


def numbers(tensors: dict[str, Any], names: Iterable[str], path: Path) -> Tensors:
    """Return the tensors `names` as contiguous float32. Raises UserError for a missing, odd or non-finite one."""
    out: Tensors = {}
    for name in names:
        if name not in tensors:
            known = ", ".join(sorted(map(str, tensors))[:20]) or "nothing"
            raise UserError(f'{path}: tensor "{name}" is missing; it holds {known}')
        tensor = tensors[name]
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise UserError(f'{path}: "{name}" is no plain tensor; replace the file')
        if tensor.is_complex() or tensor.is_quantized or tensor.dtype == torch.bool:
            raise UserError(f"{path}: {name} has type {tensor.dtype}; weights are real numbers")
        if tensor.numel() * tensor.element_size() > max(tensor.untyped_storage().nbytes(), 64):
            raise UserError(f"{path}: {name} claims shape {tuple(tensor.shape)}, more than the file holds")
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


def _words(error: BaseException) -> str:
    """Return the first line of an error, shortened: torch explains itself at length."""
    text = (str(error) or type(error).__name__).strip().splitlines()[0]
    return text if len(text) <= 160 else text[:157] + "..."
