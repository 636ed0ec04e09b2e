"""Study folders in an object store: `s3://`, `gs://`, or whatever else fsspec reaches. Imports no torch.

A study there is worked on in a copy of it in the cache, by the same code as any study folder. `fetch` brings here what
changed there, `keep` brings there what changed here; for an ordinary folder both do nothing. Activations and
checkpoints are fetched when they are opened, everything else when a study is.

One command holds a study (`held`): its own files count, and what it removes is removed in the store. Processes that
work for it on other machines (`fetch_as_helper`) begin with what the store has, and remove checkpoints only.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from monosem.remote.lease import leased
from monosem.remote.place import Place, Unreachable
from monosem.remote.working_copy import URL, Wins, WorkingCopy, copy_of
from monosem.store import cache_folder, study_lock, write_text
from monosem.types import UserError

__all__ = [
    "RATING",
    "Unreachable",
    "address",
    "at_hand",
    "fetch",
    "fetch_as_helper",
    "held",
    "is_study",
    "is_url",
    "keep",
    "local",
    "named",
    "storage",
]

LEASE, RATING = ".lease", ".lease-rating"  # of a study; of its ratings, which one process at a time may add to
_HELD: dict[Path, Callable[[], None]] = {}  # working copies that this process holds; raises when it has lost them
_URLS: dict[str, str] = {}  # of working copies that this process has opened
_WINS: dict[Path, Wins] = {}  # those that it helps with: which side counts


def is_url(place: str | Path) -> bool:
    """Return whether a place is one in an object store."""
    return "://" in str(place) and not str(place).startswith("file://")


def is_study(url: str) -> bool:
    """Return whether there is a study at a place in an object store."""
    return "study.toml" in Place(url).listed("study.toml")


def local(place: str | Path) -> Path:
    """Return the folder to work in: the place itself, or the working copy of one in an object store, maybe empty.

    Raises UserError when there is no such kind of store, or what reaches it isn't installed.
    """
    if not is_url(place):
        return Path(str(place).removeprefix("file://"))
    url = str(place).rstrip("/")
    if "://" not in url:
        raise UserError(f"{place}: a bucket and a folder in it are wanted, as {url}//BUCKET/DIR")
    Place(url).connect()
    folder = cache_folder() / "studies" / f"{url.rpartition('/')[2]}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    if not (folder / URL).exists():
        write_text(folder / URL, url)
    _URLS[str(folder)] = url
    return folder


def named(message: str) -> str:
    """Return a message with URLs in place of the working copies that this process has opened."""
    for folder, url in _URLS.items():
        if folder in message:
            message = f"{message.replace(folder, url)} (the copy here: {folder})"
    return message


def address(folder: Path) -> str:
    """Return what another machine finds a study folder by: the URL that it is a copy of, or its path."""
    found = copy_of(folder)
    return found.place.url if found else str(folder.resolve())


def storage(folder: Path) -> tuple[Any, str]:
    """Return fsspec's file system for a folder and its path there, for libraries that store by themselves."""
    if copy := copy_of(folder):
        files, root = copy.place.connect()
        return files, f"{root}/{copy.name(folder)}"
    from fsspec.implementations.local import LocalFileSystem

    return LocalFileSystem(), str(folder.resolve())


def fetch(path: Path, pattern: str = "*") -> None:
    """Have under `path`, a study folder or what lies in it, what the store has; pattern: of names below it.

    Of a whole study, all but what is fetched when it is opened. Raises UserError when the store can't be read.
    """
    if copy := copy_of(path):
        _check(copy)
        with copy.lock():
            copy.fetch(path, pattern, "here" if copy.folder in _HELD else _WINS.get(copy.folder, "changed"))


def fetch_as_helper(path: Path) -> None:
    """Fetch for the command that holds the study: on another machine, this and all that is fetched later is as the
    store has it, whatever an earlier command has left here.
    """
    if copy := copy_of(path):
        same = copy.place.read_json(LEASE).get("copy") == copy.identity
        _WINS[copy.folder] = "here" if same else "store"
        fetch(path)


def keep(path: Path) -> None:
    """Have the store have what lies under `path`, and not what the holder of the study has removed there.

    Raises UserError when the store can't be written; what is here stays.
    """
    if copy := copy_of(path):
        _check(copy)
        with contextlib.nullcontext() if path.is_file() else copy.lock():  # a file is its writer's own
            copy.keep(path, removing=copy.folder in _HELD or path.name == "checkpoint")


@contextlib.contextmanager
def at_hand(place: str | Path, lease: str = "") -> Iterator[Path]:
    """Have a study folder at hand for as long as the context lasts; what changes in a working copy is kept.

    lease: name of one that is held meanwhile, for what only one command at a time may do.
    """
    folder = local(place)
    if copy := copy_of(folder):
        with contextlib.ExitStack() as stack:
            if lease:
                stack.enter_context(leased(copy.place, lease, copy.identity, lambda _line: None))
            stack.enter_context(_kept(copy))
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
            with leased(copy.place, LEASE, copy.identity, say) as check:
                _HELD[copy.folder] = check
                try:
                    with _kept(copy):
                        say(f"{copy.place.url}: worked on in {folder}")
                        yield folder
                finally:
                    _HELD.pop(copy.folder)
        else:
            yield folder


@contextlib.contextmanager
def _kept(copy: WorkingCopy) -> Iterator[None]:
    """Fetch a study, and keep what changes, now and then and at the end, also of an error."""
    with copy.lock():
        copy.forget_missing()
        copy.fetch(copy.folder)
    over = threading.Event()
    keeping = threading.Thread(target=copy.keep_on, args=(over, partial(keep, copy.folder)), name="keep", daemon=True)
    keeping.start()
    try:
        yield
        keep(copy.folder)
    except BaseException:
        with contextlib.suppress(UserError):  # the first error is the one to be said
            keep(copy.folder)
        raise
    finally:
        over.set()
        keeping.join()


def _check(copy: WorkingCopy) -> None:
    """Raise UserError when this process has held a study, and another one does now."""
    _HELD.get(copy.folder, lambda: None)()
