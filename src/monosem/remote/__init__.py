"""Study folders in an object store: `s3://`, `gs://`, or whatever else fsspec reaches. Imports no torch.

A study there is worked on in a copy of it in the cache, by the same code as any study folder. `fetch` brings here what
changed there, `keep` brings there what changed here; for an ordinary folder both do nothing. Activations and
checkpoints are fetched when they are opened, everything else when a study is.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from monosem.remote.lease import leased
from monosem.remote.place import Place
from monosem.remote.working_copy import URL, WorkingCopy, copy_of
from monosem.store import cache_folder, study_lock, write_text

__all__ = ["address", "at_hand", "fetch", "held", "is_url", "keep", "local", "storage"]


def is_url(place: str | Path) -> bool:
    """Return whether a place is one in an object store."""
    return "://" in str(place) and not str(place).startswith("file://")


def local(place: str | Path) -> Path:
    """Return the folder to work in: the place itself, or the working copy of one in an object store, maybe empty.

    place: a study folder, or saes/<run> in one.

    Raises UserError when there is no such kind of store, or what reaches it isn't installed.
    """
    if not is_url(place):
        return Path(str(place).removeprefix("file://"))
    url, _, run = str(place).rstrip("/").partition("/saes/")
    Place(url).connect()
    folder = cache_folder() / "studies" / f"{url.rpartition('/')[2]}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    if not (folder / URL).exists():
        write_text(folder / URL, url)
    return folder / "saes" / run if run else folder


def address(folder: Path) -> str:
    """Return what another machine finds a study folder by: the URL that it is a copy of, or its path."""
    found = copy_of(folder)
    return found.place.url if found else str(folder.resolve())


def storage(folder: Path) -> tuple[Any, str]:
    """Return fsspec's file system for a folder and its path there, for libraries that store by themselves."""
    if copy := copy_of(folder):
        files, root = copy.place.connect()
        return files, f"{root}/{folder.absolute().relative_to(copy.folder.absolute()).as_posix()}"
    from fsspec.implementations.local import LocalFileSystem

    return LocalFileSystem(), str(folder.resolve())


def fetch(path: Path, pattern: str = "*") -> None:
    """Have under `path`, a study folder or what lies in it, what the store has; pattern: of names below it.

    Of a whole study, all but what is fetched when it is opened. Raises UserError when the store can't be read.
    """
    if copy := copy_of(path):
        with copy.lock():
            copy.fetch(path, pattern)


def keep(path: Path) -> None:
    """Have the store have what lies under `path`, and not what is gone there.

    Raises UserError when the store can't be written; what is here stays.
    """
    if copy := copy_of(path):
        with contextlib.nullcontext() if path.is_file() else copy.lock():  # a file is its writer's own
            copy.keep(path)


@contextlib.contextmanager
def at_hand(place: str | Path) -> Iterator[Path]:
    """Have a study folder at hand for as long as the context lasts; what changes in a working copy is kept."""
    folder = local(place)
    if copy := copy_of(folder):
        with _kept(copy):
            yield folder
    else:
        yield folder


@contextlib.contextmanager
def held(place: str | Path, say: Callable[[str], object] = lambda _line: None) -> Iterator[Path]:
    """Hold a study folder for this process, and have it at hand.

    Raises UserError when another process works on it.
    """
    folder = local(place)
    with study_lock(folder):
        if copy := copy_of(folder):
            with leased(copy.place, folder, say) as still_ours, _kept(copy, still_ours):
                say(f"{copy.place.url}: worked on in {folder}")
                yield folder
        else:
            yield folder


@contextlib.contextmanager
def _kept(copy: WorkingCopy, allowed: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Fetch a study, and keep what changes, now and then and at the end. allowed: raises when others hold it now."""
    with copy.lock():
        copy.forget_missing()
        copy.fetch(copy.folder)
    over = threading.Event()
    keeping = threading.Thread(target=copy.keep_on, args=(over, allowed), name="keep", daemon=True)
    keeping.start()
    try:
        yield
    finally:
        over.set()
        keeping.join()
        allowed()
        keep(copy.folder)
