"""Files made to run code, to fill the memory or never to end: each is refused, in words, at no cost.

They are all read by one process of its own, which may take 1.5 GiB more than it has and reports what happened.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

import monosem
from monosem.types import UserError
from tests.formats.archives import MIB, npy, raw_zip, repickled, torch_file, write, zeros, zipped
from tests.formats.making import D_IN, D_SAE, random_sae

ROOT = Path(__file__).resolve().parents[2]
GIB, TIB = 2**30, 2**40
WEIGHTS = {name: value.numpy() for name, value in random_sae("jumprelu").weights.items()}
STATE = {"encoder.weight": torch.ones(6, 4), "latent_bias": torch.ones(6), "pre_bias": torch.ones(4)}
DICTIONARY = json.dumps({"trainer": {"dict_class": "AutoEncoder", "activation_dim": 4, "dict_size": 6}}).encode()
CFG: dict[str, Any] = {"architecture": "standard", "d_in": D_IN, "d_sae": D_SAE, "metadata": {}}


def run(d_sae: int) -> dict[str, bytes]:
    """Return an unfinished run of SAELens, whose threshold is one number."""
    tensors = {name: torch.from_numpy(value) for name, value in WEIGHTS.items() if name != "threshold"}
    cfg = {**CFG, "architecture": "batchtopk", "d_sae": d_sae, "k": 2.5}
    return {
        "cfg.json": json.dumps(cfg).encode(),
        "sae_weights.safetensors": save({**tensors, "topk_threshold": torch.ones(())}),
    }


def npz(**changed: bytes) -> dict[str, bytes]:
    """Return Gemma Scope's file with some of its members replaced."""
    return {"params.npz": zipped({f"{name}.npy": changed.get(name, npy(value)) for name, value in WEIGHTS.items()})}


def safetensors(header: Any, claimed: int | None = None, cfg: Any = None) -> dict[str, bytes]:
    """Return SAELens' files with this header, and 96 bytes behind it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = struct.pack("<Q", len(text) if claimed is None else claimed) + text + bytes(96)
    return {"cfg.json": json.dumps(CFG if cfg is None else cfg).encode(), "sae_weights.safetensors": body}


def tensor(shape: list[int], end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"W_enc": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


def json_of(text: bytes) -> dict[str, bytes]:
    return {**safetensors({}), "cfg.json": text}


def state(items: bytes) -> dict[str, bytes]:
    """Return OpenAI's file whose pickle is a dict with one item, made by instructions."""
    return {"7.pt": torch_file(b"\x80\x02}X\x01\x00\x00\x00a" + items + b"s.")}


def storage(old: bytes, new: bytes) -> dict[str, bytes]:
    def change(data: bytes) -> bytes:
        assert old in data, "the pickle of torch.save has changed"
        return data.replace(old, new)

    return {"7.pt": repickled({"encoder.weight": torch.ones(200)}, change)}


DOUBLED = b"K\x01" + b"q\x00h\x00\x86" * 60
"""A tuple that holds one tuple twice, which holds one tuple twice, ...: 2^60 parts for whoever hashes or prints it."""
LISTS = b"".join(b"]q%c(" % n for n in range(60)) + b"]q%c" % 60 + b"".join(b"h%ce" % n for n in range(60, 0, -1))
LONG = b"J\x00\x00\x00\x40"  # 2^30
NAME = b"X\x0a\x00\x00\x00activation"

BOMBS: dict[str, tuple[Callable[[], dict[str, bytes]], str]] = {
    "bytearray of 16 GiB": (
        lambda: state(b"c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x04\x85R"),
        r"7\.pt: can't be read \(calls \"__builtin__.bytearray\"\); .* code, which isn't run",
    ),
    "constructor of a tensor": (lambda: state(b"ctorch\nFloatTensor\n" + LONG + b"\x85R"), 'calls "torch.FloatTensor"'),
    "doubled tuples as a key": (
        lambda: {"7.pt": torch_file(b"\x80\x02}" + DOUBLED + b"K\x02s.")},
        "a key that is no text",
    ),
    "doubled tuples as an activation": (
        lambda: {"7.pt": torch_file(b"\x80\x02}" + NAME + DOUBLED + b"s.")},
        '7.pt: tensor "encoder.weight" is missing; it holds nothing',
    ),
    "doubled lists as a state": (
        lambda: {"ae.pt": torch_file(b"\x80\x02" + LISTS + b"."), "config.json": DICTIONARY},
        "holds a list instead of named tensors",
    ),
    "doubled lists as settings": (
        lambda: {"7.pt": repickled({**STATE, "decoder.weight": torch.ones(4, 6), "activation": "TopK"}, settings)},
        "activation_state_dict",
    ),
    "a memo of 2^31": (lambda: state(b"K\x01r\xff\xff\xff\x7f0K\x01"), "the instruction POP"),
    "a text of 2 GiB": (lambda: state(b"X\xff\xff\xff\x7fabc"), "expected 2147483647 bytes"),
    "a large pickle": (lambda: state(b"K\x01" + b"q\x00h\x00" * 400_000), "data.pkl, or one of more than 1 MiB"),
    "a storage of 4 TiB": (
        lambda: storage(b"K\xc8tq", b"\x8a\x06\x00\x00\x00\x00\x00\x01tq"),
        "claims 1,099,511,627,776",
    ),
    "a view of 4 TiB": (
        lambda: storage(b"K\xc8\x85", b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85"),
        "there are 200 numbers",
    ),
    "a view repeated by stride 0": (
        lambda: storage(b"K\xc8\x85q\x08K\x01\x85", LONG + b"\x85q\x08K\x00\x85"),
        "there are 200",
    ),
    "10 GiB of zeros": (
        lambda: {"params.npz": raw_zip(["W_enc.npy"], zeros(10 * GIB), 10 * GIB)},
        "would unpack to 10,737,418,240 bytes from",
    ),
    "10 GiB of zeros that claim to be few": (
        lambda: {"params.npz": raw_zip(["W_enc.npy"], zeros(10 * GIB), 4096)},
        r"params\.npz: can't be read \(.*\); it is truncated or altered",
    ),
    "overlapping members": (
        lambda: {"params.npz": raw_zip([f"{i}.npy" for i in range(900)], zeros(8 * MIB), 8 * MIB)},
        "would unpack to 7,549,747,200 bytes",
    ),
    "a directory of 60,000 members": (
        lambda: {"params.npz": raw_zip([f"{i}" for i in range(60_000)], b"", 0)},
        "a directory of .* bytes",
    ),
    "members packed by bzip2": (
        lambda: {"params.npz": zipped({"W_enc.npy": bytes(9)}, zipfile.ZIP_BZIP2)},
        "packed in a way that such files never are",
    ),
    "a packed pickle": (
        lambda: {"7.pt": zipped({"a/data.pkl": bytes(MIB)}, zipfile.ZIP_DEFLATED)},
        "would unpack to 1,048,576",
    ),
    "an array of 1 TiB": (
        lambda: npz(W_enc=npy(WEIGHTS["W_enc"], (b"(8, 24), }        ", b"(2**40, 24), }    "))),
        "can't be read",
    ),
    "an array of 10^12": (
        lambda: npz(W_enc=npy(WEIGHTS["W_enc"], (b"(8, 24), }           ", b"(1000000000000, 1), }"))),
        r"claims shape \(1000000000000, 1\)",
    ),
    "an array nested a thousand times": (
        lambda: npz(W_enc=b"\x93NUMPY\x02\x00" + struct.pack("<I", 9000) + b"(" * 9000),
        r"params\.npz: can't be read",
    ),
    "an array whose shape is nested": (
        lambda: npz(W_enc=b"\x93NUMPY\x01\x00" + struct.pack("<H", 2514) + b"{'shape': (" + b"(-1, " * 500 + b" \n}"),
        r"params\.npz: can't be read \(Header info length \(2514\) is large",
    ),
    "an array of nothing, of endless width": (
        lambda: npz(W_enc=npy(WEIGHTS["W_enc"], (b"(8, 24), }          ", b"(0, 99999999999), } "))),
        "can't be read",
    ),
    "a header of 1 TiB": (
        lambda: safetensors({}, claimed=TIB),
        "its header claims 1,099,511,627,776 bytes, the file has 106",
    ),
    "a header of 2^64 - 1": (
        lambda: safetensors({}, claimed=2**64 - 1),
        "its header claims 18,446,744,073,709,551,615",
    ),
    "a header of 64 MiB": (lambda: safetensors(b"{" + b" " * 64 * MIB + b"}"), "its header claims 67,108,866 bytes"),
    "a tensor of 1 TiB": (lambda: safetensors(tensor([2**38], TIB)), r"safetensors: can't be read \("),
    "a shape that overflows": (lambda: safetensors(tensor([2**62, 16], 96)), r"safetensors: can't be read \("),
    "a shape without its numbers": (lambda: safetensors(tensor([2**38], 96)), r"safetensors: can't be read \("),
    "a header nested a thousand times": (lambda: safetensors(b'{"a":' * 100_000), r"safetensors: can't be read \("),
    "JSON nested a million times": (lambda: json_of(b"[" * 10**6), r"cfg\.json: not valid JSON"),
    "JSON nested nearly too deep": (
        lambda: json_of(b'{"architecture": ' + b"[" * 900 + b"]" * 900 + b"}"),
        r"architecture = [^a-z]*: input should be a valid string",
    ),
    "JSON of 5 MiB": (lambda: json_of(b'{"a": "' + b"x" * 5 * MIB + b'"}'), r"cfg\.json: larger than 4 MiB"),
    "JSON with many keys, one twice": (
        lambda: json_of(("{" + ",".join(f'"{i}":0' for i in [*range(200_000), 199_999]) + "}").encode()),
        'the key "199999" comes twice',
    ),
    "a number of 5,000 digits": (lambda: json_of(b'{"d_sae": ' + b"9" * 5000 + b"}"), r"cfg\.json: not valid JSON"),
    "a d_sae of 10^30": (
        lambda: safetensors(tensor([24], 96), cfg={**CFG, "d_sae": 10**30}),
        'tensor "b_enc" is missing',
    ),
    **{
        f"a d_sae of {size}, and one threshold": (
            lambda size=size: run(size),
            r"W_enc has shape \(8, 24\), cfg\.json says",
        )
        for size in (2**34, 2**62, 10**30)
    },
    "a k of 10^400": (
        lambda: json_of(json.dumps({**CFG, "architecture": "topk"}).encode()[:-1] + b', "k": 1e400}'),
        "k = inf: input should be a finite number",
    ),
}


def settings(data: bytes) -> bytes:
    """Add `activation_state_dict`, a dict of doubled lists, to the pickle of a dict."""
    assert data.endswith(b"u.")
    return data[:-1] + b"X\x15\x00\x00\x00activation_state_dict}X\x01\x00\x00\x00k" + LISTS + b"ss."


READER = """
import json, os, resource, sys, warnings
import monosem
from monosem.types import UserError
warnings.simplefilter("ignore")
folders = json.load(sys.stdin)
monosem.load_sae(folders.pop("valid")); monosem.load_sae(folders.pop("valid too"))
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 3 * 2**29
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
ended, before = {}, peak()
for name, folder in folders.items():
    try:
        monosem.load_sae(folder)
        ended[name] = "was read"
    except UserError as error:
        ended[name] = str(error)
        while error is not None:
            if isinstance(error, MemoryError) or "allocate" in str(error):
                ended[name] = "asked for too much memory"
            error = error.__cause__
    except BaseException as error:
        ended[name] = repr(error)
print(json.dumps({"ended": ended, "mib": peak() - before}))
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process says after it has read all bombs."""
    base = tmp_path_factory.mktemp("bombs")
    folders = {name: str(write(base / str(i), made())) for i, (name, (made, _)) in enumerate(BOMBS.items())}
    for name, form in (("valid", "gemma_scope"), ("valid too", "dictionary_learning")):
        monosem.save_sae(random_sae("jumprelu"), base / name, form)
        folders[name] = str(base / name)
    done = subprocess.run(
        [sys.executable, "-c", READER],
        input=json.dumps(folders),
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {**json.loads(done.stdout), "base": str(base)}


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory by RLIMIT_AS and /proc")
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_words(report: dict[str, Any], name: str) -> None:
    ended = report["ended"][name]
    assert re.search(BOMBS[name][1], ended), ended
    assert ended.startswith(report["base"])
    assert ended.isprintable()
    assert report["mib"] < 200


class Bomb:
    """An object that creates a file when it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.sentinel}",)


def test_no_code_in_a_file_runs(tmp_path: Path) -> None:
    sentinel = tmp_path / "ran"
    data = pickle.dumps(Bomb(sentinel), protocol=2)
    pickle.loads(data)
    assert sentinel.exists(), "the bomb must work, or the test shows nothing"
    sentinel.unlink()
    objects = np.empty(1, dtype=object)
    objects[0] = Bomb(sentinel)
    torch.save({"encoder.weight": Bomb(sentinel)}, tmp_path / "saved.pt")
    torch.save(Bomb(sentinel), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for number, files in enumerate(
        [
            {"7.pt": (tmp_path / "saved.pt").read_bytes()},
            {"7.pt": (tmp_path / "old.pt").read_bytes()},
            {"7.pt": data},
            {"7.pt": torch_file(data)},
            {"ae.pt": (tmp_path / "saved.pt").read_bytes(), "config.json": DICTIONARY},
            {"params.npz": data},
            npz(W_enc=npy(objects)),
            npz(W_enc=data),
            {"cfg.json": json.dumps(CFG).encode(), "sae_weights.safetensors": data},
        ]
    ):
        with pytest.raises(UserError):
            monosem.load_sae(write(tmp_path / str(number), files))
        assert not sentinel.exists(), sorted(files)


def test_arrays_of_objects_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"W_enc\.npy holds Python objects, which are not read"):
        monosem.load_sae(write(tmp_path, npz(W_enc=npy(np.array([{}, {}], dtype=object)))))
