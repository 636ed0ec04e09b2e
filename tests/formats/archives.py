"""Archives that no library would write: members that claim what isn't so, zip bombs, pickles made by hand."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

MIB = 2**20


def npy(array: np.ndarray, header: tuple[bytes, bytes] = (b"", b"")) -> bytes:
    """Return an array as a `.npy` file; header: a piece of its header and what takes its place, of the same length."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    assert len(header[0]) == len(header[1])
    return stream.getvalue().replace(*header) if header[0] else stream.getvalue()


def zipped(members: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> bytes:
    """Return an archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", packing) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def zeros(size: int) -> bytes:
    """Return `size` zero bytes, a multiple of a MiB, packed by deflate to a thousandth, without ever having them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    one = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + one * (size // MIB - 1) + packer.flush(zlib.Z_FINISH)


def raw_zip(names: list[str], packed: bytes, claimed: int) -> bytes:
    """Return an archive whose members all are the same packed bytes, said to unpack to `claimed` bytes each."""
    large = struct.pack("<HHQ", 1, 8, claimed)
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 45, 0, 8, 0, 33, 0, len(packed), 2**32 - 1, len(names[0]), 0)
    body = local + names[0].encode() + packed
    fields = (45, 45, 0, 8, 0, 33, 0, len(packed), 2**32 - 1)
    entries = b"".join(
        struct.pack("<4s6H3L5H2L", b"PK\1\2", *fields, len(name), len(large), 0, 0, 0, 0, 0) + name.encode() + large
        for name in names
    )
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, len(names), len(names), len(entries), len(body), 0)
    return body + entries + end


def repickled(state: dict[str, Any], change: Any) -> bytes:
    """Return a file of torch.save whose pickle went through `change: bytes -> bytes`, with its checksums right."""
    stream = io.BytesIO()
    torch.save(state, stream)
    with zipfile.ZipFile(stream) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return zipped({name: change(data) if name.endswith("data.pkl") else data for name, data in members.items()})


def torch_file(pickle: bytes) -> bytes:
    """Return a file of torch.save with this pickle."""
    return repickled({}, lambda _: pickle)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files into a new folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder
