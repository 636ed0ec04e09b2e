"""Zip archives of numbers that a stranger wrote: numpy's `.npz` and torch's `.pt`.

No member is unpacked before its size is known to be in proportion to the file's, and never to more than it claims.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monosem.types import UserError
from monosem.untrusted.pickled import Storage, View, state_of
from monosem.untrusted.words import shown, words

MAX_PICKLE = 2**20
MAX_DIRECTORY = 2**20
MAX_ARRAY_HEADER = 512
MAX_INFLATION = 16
"""An archive may unpack to this many times its size; weights in float32 shrink by less than a third."""
END, END_LOCATOR = b"PK\5\6", b"PK\6\7"


def read_npz(path: Path) -> dict[str, Tensor]:
    """Return the arrays of a numpy archive as tensors; arrays of objects (pickles) are refused. Raises UserError."""
    with _opened(path, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) as archive:
        return {info.filename.removesuffix(".npy"): _array(archive, info) for info in archive.infolist()}


def read_torch(path: Path) -> dict[str, Any]:
    """Return the state dict in a torch file: tensors, numbers, texts and dicts of them. Raises UserError.

    Its pickle is read by `monosem.untrusted.pickled`, which calls nothing.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":
            raise UserError(
                f"{path}: no file of torch.save, or in its format from before torch 1.6, which isn't read; load it "
                "with torch where you trust it and save it anew"
            )
    with _opened(path, zipfile.ZIP_STORED) as archive:
        found = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
        if len(found) != 1 or found[0].file_size > MAX_PICKLE:
            raise ValueError(f"{len(found)} data.pkl, or one of more than {MAX_PICKLE // 2**20} MiB")
        root = found[0].filename.removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in archive.namelist() and _bytes(archive, order) != sys.byteorder.encode():
            raise ValueError(f"its numbers are not {sys.byteorder}-endian")
        flat: dict[str, Tensor] = {}

        def tensor(view: View) -> Tensor:
            member = f"{root}data/{view.storage.member}"
            if member not in flat:
                flat[member] = _numbers(archive, member, view.storage)
            if flat[member].dtype != view.storage.dtype:
                raise ValueError("numbers of two kinds in one place")
            return view.of(flat[member])

        state = state_of(_bytes(archive, found[0].filename))
        return {name: tensor(value) if isinstance(value, View) else value for name, value in state.items()}


@contextlib.contextmanager
def _opened(path: Path, *packings: int) -> Iterator[zipfile.ZipFile]:
    """Give an archive whose members unpack to a size in proportion; whatever fails in it raises a UserError."""
    try:
        _check_directory(path)
        with zipfile.ZipFile(path) as archive:
            infos, size = archive.infolist(), os.path.getsize(path)
            unpacked, limit = sum(info.file_size for info in infos), 1 if len(packings) == 1 else MAX_INFLATION
            if unpacked > limit * size:
                raise UserError(f"{path}: would unpack to {unpacked:,} bytes from {size:,}; no SAE's weights do")
            odd = next((info.filename for info in infos if info.compress_type not in packings), None)
            if odd is not None:
                raise UserError(f"{path}: {shown(odd)} is packed in a way that such files never are; save it anew")
            yield archive
    except UserError:
        raise
    except Exception as error:  # zipfile raises zlib's, struct's and its own, pickles and numpy theirs
        raise UserError(
            f"{path}: can't be read ({words(error)}); it is truncated or altered, or holds code, which isn't run"
        ) from error


def _check_directory(path: Path) -> None:
    """Raise ValueError when the list of members, of which zipfile makes objects, is longer than any SAE's."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 98))
        tail = file.read().rjust(98, b"\0")
    if tail[76:80] != END or tail[96:] != b"\0\0":
        raise ValueError("no end of an archive")
    large = tail[56:60] == END_LOCATOR
    length = int.from_bytes(tail[40:48] if large else tail[88:92], "little")
    if length > MAX_DIRECTORY:
        raise ValueError(f"a directory of {length:,} bytes")


def _bytes(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return a member; never more than it claims, though packed data could go on."""
    size = archive.getinfo(name).file_size
    with archive.open(name) as member:
        data = member.read(size)
    if len(data) != size:
        raise ValueError(f"{shown(name)} claims {size:,} bytes and has {len(data):,}")
    return data


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Tensor:
    data = _bytes(archive, info.filename)
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream, max_header_size=MAX_ARRAY_HEADER)
    if dtype.hasobject:
        raise ValueError(f"{info.filename} holds Python objects, which are not read; save plain arrays")
    body = memoryview(data)[stream.tell() :]
    if math.prod(shape) * dtype.itemsize != len(body):
        raise ValueError(f"{info.filename} claims shape {shape}, but has {len(body):,} bytes")
    array = np.frombuffer(body, dtype=dtype).reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(np.array(array, dtype=dtype.newbyteorder("="), order="C"))


def _numbers(archive: zipfile.ZipFile, member: str, storage: Storage) -> Tensor:
    """Return all numbers of a storage, flat."""
    size = archive.getinfo(member).file_size
    if size != storage.numel * storage.dtype.itemsize:
        raise ValueError(f"{shown(member)} claims {storage.numel:,} numbers, and has {size:,} bytes")
    if not size:
        return torch.empty(0, dtype=storage.dtype)
    return torch.frombuffer(bytearray(_bytes(archive, member)), dtype=storage.dtype)
