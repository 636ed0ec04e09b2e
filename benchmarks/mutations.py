"""Mutations of files, from single bytes to instructions of a pickle: what `fuzz_formats.py` damages files with."""

from __future__ import annotations

import io
import json
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

Files = dict[str, bytes]
LENGTHS = (0, 1, 2, 7, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
TOKENS = r"""
null true false 0 -1 1 2 6 1.5 -0.0 1e400 -1e400 1e-320 NaN Infinity 1000000000000000000000000000000 [] {} "" "x" "4"
[[[]]] [1,2,3] {"a":{"b":[null]}} "\ud800" "\u0000" "\u001b[2J\n" "topk" "jumprelu" "standard" "gated" "ReLU" "none"
"layer_norm" "expected_average_only_in" "../../x" 4611686018427387904 18446744073709551616 "F32" "BF16" "U8" [4,6] [6,4]
[0,4] [-1,4] [4611686018427387904,4] [0,96] [96,0] [0,1099511627776]
""".split()  # noqa: SIM905
DEEP = ("[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900, "[" * 100_000, "9" * 5000, '"' + "x" * 5000 + '"')
INSTRUCTIONS = (
    b"cposix\nsystem\n",
    b"cbuiltins\nbytearray\n",
    b"c__builtin__\nset\n",
    b"ctorch\nFloatTensor\n",
    b"ctorch._utils\n_rebuild_sparse_tensor\n",
    b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"X\x07\x00\x00\x00echo hi",
    b"\x8a\x05\x00\x00\x00\x00\x04",
    b"J\xff\xff\xff\x7f",
    b"M\xff\xff",
    b"K\x04",
    b"G\x7f\xf0\x00\x00\x00\x00\x00\x00",
    b"R",
    b"b",
    b"Q",
    b"(",
    b"t",
    b"u",
    b"s",
    b"e",
    b"a",
    b"\x85",
    b"\x86",
    b"\x87",
    b")",
    b"]",
    b"}",
    b"N",
    b"\x88",
    b"h\x00",
    b"q\x00",
    b"h\x01",
    b"q\x01",
    b"j\xff\xff\xff\x7f",
    b"r\xff\xff\xff\x7f",
    b"q\x00h\x00\x86" * 40,
    b"0",
    b"2",
    b"\x81",
    b"\x93",
    b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"B\xff\xff\xff\x7f",
    b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
    b".",
)


def mutated(files: Files, rng: random.Random, others: dict[str, Files]) -> Files:
    """Return the files with one to three mutations. others: valid files of all formats, to swap with."""
    made = dict(files)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if rng.random() < 0.04:
            made = _files(made, rng, others)
        elif made:
            name = rng.choice(sorted(made))
            made[name] = rng.choice(_mutators(name))(made[name], rng)
    return made


def _mutators(name: str) -> list[Callable[[bytes, random.Random], bytes]]:
    by_kind: dict[str, list[Callable[[bytes, random.Random], bytes]]] = {
        "json": [_json, _json, _json, _json_text],
        "safetensors": [_header, _header, _length],
        "npz": [_members, _members, _length],
        "pt": [_members, _members, _members, _length],
    }
    return [_bytes, *by_kind.get(name.rsplit(".", 1)[-1], [_bytes])]


def _files(files: Files, rng: random.Random, others: dict[str, Files]) -> Files:
    """Lose, empty, rename or swap a file, or add one of another format."""
    if not files:
        return files
    made, name = dict(files), rng.choice(sorted(files))
    other = others[rng.choice(sorted(others))]
    stranger = rng.choice(sorted(other))
    what = rng.randrange(5)
    if what == 0:
        del made[name]
    elif what == 1:
        made[name] = b""
    elif what == 2:
        made[rng.choice(("ae.pt", "cfg.json", "params.npz", "x.pt", "sae.safetensors"))] = made.pop(name)
    elif what == 3:
        made[name] = other[stranger]
    else:
        made[stranger] = other[stranger]
    return made


def _bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, insert, repeat or drop bytes."""
    made, what = bytearray(data), rng.randrange(5)
    at = rng.randrange(len(made) + 1)
    if what == 0 and made:
        for _ in range(rng.choice((1, 2, 8, 32))):
            made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    elif what == 1:
        del made[at:]
    elif what == 2:
        made[at:at] = rng.randbytes(rng.choice((1, 4, 100)))
    elif what == 3:
        made[at:at] = made[at : at + rng.choice((1, 8, 200))]
    else:
        del made[at : at + rng.choice((1, 8, 200))]
    return bytes(made)


def _length(data: bytes, rng: random.Random) -> bytes:
    """Write a length that is too large, or odd, where a length is or anywhere."""
    made, size = bytearray(data), rng.choice((2, 4, 8))
    places = [0, rng.randrange(max(1, len(made)))]
    for mark, width in ((b"PK\1\2", 46), (b"PK\3\4", 30), (b"PK\5\6", 22)):
        found = [i for i in range(len(data) - 3) if data[i : i + 4] == mark]
        places += [rng.choice(found) + rng.randrange(4, width)] if found else []
    at = rng.choice(places)
    made[at : at + size] = (rng.choice(LENGTHS) % 256**size).to_bytes(size, "little")
    return bytes(made)


def _token(rng: random.Random) -> str:
    return rng.choice(DEEP) if rng.random() < 0.05 else rng.choice(TOKENS)


def _json(data: bytes, rng: random.Random) -> bytes:
    """Drop, add, double, rename, replace or exchange keys and values, anywhere in a JSON object."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return _bytes(data, rng)
    marks: dict[str, str] = {}
    _change(value, rng, marks)
    text = json.dumps(value)
    for mark, token in marks.items():
        text = text.replace(f'"{mark}"', token)
    return text.encode()


def _change(value: Any, rng: random.Random, marks: dict[str, str]) -> None:
    if isinstance(value, list):
        if value:
            marks[mark := f"@{len(marks)}"] = _token(rng)
            value[rng.randrange(len(value))] = mark
        return
    if not isinstance(value, dict) or not value:
        return
    key = rng.choice(sorted(value))
    if isinstance(value[key], dict | list) and value[key] and rng.random() < 0.7:
        return _change(value[key], rng, marks)
    what = rng.randrange(6)
    if what == 0:
        del value[key]
    elif what == 1:
        value[rng.choice(("extra", "k", "architecture", "\x1b[31m", "x" * 300, "", "threshold"))] = value[key]
    elif what == 2:
        other = rng.choice(sorted(value))
        value[key], value[other] = value[other], value[key]
    elif what == 3:
        marks["@twice"] = f"{json.dumps(value[key])}, {json.dumps(key)}: {_token(rng)}"
        value[key] = "@twice"
    else:
        marks[mark := f"@{len(marks)}"] = _token(rng)
        value[key] = mark
    return None


def _json_text(data: bytes, rng: random.Random) -> bytes:
    """Encode otherwise, wrap, or replace the whole value."""
    return rng.choice(
        (
            data.decode("utf-8", "replace").encode("utf-16"),
            b"\xef\xbb\xbf" + data,
            data.replace(b"a", b"\xff", 1),
            b"[" + data + b"]",
            _token(rng).encode("utf-8", "surrogatepass"),
            b'{"a":' * 2000 + data + b"}" * 2000,
        )
    )


def _header(data: bytes, rng: random.Random) -> bytes:
    """Mutate the header of a safetensors file as JSON, with its length put right."""
    size = int.from_bytes(data[:8], "little")
    header = _json(data[8 : 8 + size], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def _members(data: bytes, rng: random.Random) -> bytes:
    """Mutate the members of an archive and write it anew, so that its checksums are right."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info), info.compress_type) for info in archive.infolist()]
    except Exception:
        return _bytes(data, rng)
    if not members:
        return data
    at = rng.randrange(len(members))
    pickles = [i for i, member in enumerate(members) if member[0].endswith("data.pkl")]
    if pickles and rng.random() < 0.75:
        at = pickles[0]
    name, content, packing = members[at]
    what = rng.randrange(10)
    if what == 0:
        del members[at]
    elif what == 1:
        members[at] = (
            rng.choice(("x", "data.pkl", "a/data.pkl", "W_enc.npy", "\x1b/data/0", name * 9)),
            content,
            packing,
        )
    elif what == 2:
        members.append((name, members[rng.randrange(len(members))][1], packing))
    elif what == 3:
        members[at] = (name, content, rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))
    elif name.endswith("data.pkl"):
        members[at] = (name, _pickle(content, rng), packing)
    else:
        members[at] = (name, (_npy if name.endswith(".npy") else _bytes)(content, rng), packing)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content, packing in members:
            archive.writestr(name, content, packing)
    return stream.getvalue()


def _npy(data: bytes, rng: random.Random) -> bytes:
    """Replace parts of the header of an array, with its length put right half of the time."""
    end = data.find(b"\n")
    if end < 0 or rng.random() < 0.3:
        return _bytes(data, rng)
    header = data[10:end].decode("latin1").rstrip()
    old, new = rng.choice(
        (
            ("<f4", "|O"),
            ("<f4", "<f8"),
            ("<f4", "<c16"),
            ("<f4", "<U9"),
            ("<f4", "|V0"),
            ("<f4", ">f4"),
            ("'<f4'", "[('a','<f4')]"),
            ("(4, 6)", "(6, 4)"),
            ("(4,", "(10**12,"),
            ("(", "(99999999999999999999,"),
            ("(", "(" * 300),
            ("(", "(-1, -1, "),
            ("(", "(0, "),
            ("False", "True"),
            ("'shape'", "'shapes'"),
            ("{", "{'a': __import__('os'), "),
        )
    )
    made = header.replace(old, new).encode("latin1") + b"\n"
    if rng.random() < 0.5:
        return data[:8] + struct.pack("<H", len(made) % 2**16) + made + data[end + 1 :]
    return data[:10] + made + data[end + 1 :]


def _pickle(data: bytes, rng: random.Random) -> bytes:
    """Drop, double, exchange, insert or alter instructions of a pickle."""
    try:
        starts = [position for *_, position in pickletools.genops(data) if position is not None]
    except Exception:
        return _bytes(data, rng)
    pieces = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, other, what = rng.randrange(len(pieces)), rng.randrange(len(pieces)), rng.randrange(6)
        if what == 0 and len(pieces) > 1:
            del pieces[at]
        elif what == 1:
            pieces.insert(at, pieces[other])
        elif what == 2:
            pieces[at], pieces[other] = pieces[other], pieces[at]
        elif what == 3 and len(pieces[at]) > 1:
            piece = bytearray(pieces[at])
            piece[rng.randrange(1, len(piece))] = rng.randrange(256)
            pieces[at] = bytes(piece)
        else:
            pieces.insert(at, rng.choice(INSTRUCTIONS))
    return b"".join(pieces)
