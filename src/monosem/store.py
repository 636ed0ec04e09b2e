"""Files: atomic writes, hashes, the lock of a study folder, where the cache is. Imports no torch.

Every file appears under its final name only when it is complete: it is written beside the target under a temporary
name, flushed to disk and renamed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from monosem.types import UserError


def cache_folder() -> Path:
    """Return the cache folder: $MONOSEM_CACHE, or the user's cache folder of the operating system."""
    named = os.environ.get("MONOSEM_CACHE")
    return Path(named).expanduser() if named else platformdirs.user_cache_path("monosem")


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary_path)`, flush the result to disk and rename it to `path`.

    Raises UserError when the disk is full or the folder can't be written; the target keeps its old content then and
    no temporary file stays behind.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.{os.getpid()}.", suffix=".part", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        _sync_folder(path.parent)
    except Exception as error:
        if _is_disk_full(error):
            raise UserError(
                f"{path}: no space left on the device; free some space (or choose another --out folder) and run the "
                "same command again, finished work is kept"
            ) from error
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{path}: can't be written ({error.strerror}); choose another folder with --out") from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # safetensors and polars raise their own types, with the operating system's words inside; numpy only says
    # "120000 requested and 28656 written"
    return any(words in str(error) for words in ("No space left on device", "os error 28", " requested and "))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON (NaN and infinities refused), atomically."""
    text = json.dumps(value, indent=2, allow_nan=False, default=str) + "\n"
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, data: bytes) -> str:
    """Write bytes atomically and return their SHA-256, as hex."""
    write_atomic(path, lambda temporary: temporary.write_bytes(data))
    return hashlib.sha256(data).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, atomically."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Read JSON; raises UserError naming the file when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; run the stage that writes it first (monosem compare)") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete it and run the stage again") from error


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def value_hash(value: Any) -> str:
    """Return the SHA-256 of a JSON-able value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def study_lock(folder: Path) -> Iterator[None]:
    """Hold the study folder for this process.

    Raises UserError when another process holds it, or when the folder can't be written. The lock is the operating
    system's and vanishes with its process, also after kill -9; half files that dead processes left are removed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"{folder}: another monosem process is working on this study folder; wait for it or choose another --out"
        ) from error
    except OSError as error:
        if _is_disk_full(error):
            raise UserError(f"{folder}: no space left on the device; free some space first") from error
        raise UserError(f"{folder}: can't be written ({error.strerror}); choose another folder with --out") from error
    try:
        for half in folder.rglob(".*.part"):
            if not _is_being_written(half):
                half.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def _is_being_written(half: Path) -> bool:
    """Return whether the process that a half file names is alive; an export writes here without the lock."""
    process = half.name.split(".")[-3]
    if not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except PermissionError:
        return True
    except (OSError, OverflowError, ValueError):
        return False
    return True
