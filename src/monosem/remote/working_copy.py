"""The copy of a study in an object store that work is done on: files go to and fro.

It notes which version of each file the store had when both sides were last alike. What has changed on one side since
is brought to the other; what has changed on both is as in the store. Files are handed over whole, and those that name
others (JSON) last.
"""

from __future__ import annotations

import contextlib
import fnmatch
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from monosem.remote.place import Place
from monosem.store import write_atomic
from monosem.types import UserError

LAZY = ("activations/*.safetensors", "saes/*/checkpoint/*")  # fetched when they are opened
PASSING = frozenset({"unfinished", "sorting", "ray"})  # folders of work under way
EVERY = 10.0  # seconds between two looks at what has changed here
TRANSFERS = 8  # at a time
SHOWN = 50_000_000  # bytes from which on transfers have a bar
URL = ".remote/url"
Move = Callable[[str, Any], "Note | None"]


class Note(NamedTuple):
    """A file when both sides were alike: size and time of change (ns) here, version there."""

    size: int
    changed: int
    version: str


@dataclass(frozen=True)
class WorkingCopy:
    """A folder that is a copy of a place in an object store."""

    place: Place
    folder: Path

    def lock(self) -> FileLock:
        """Return the lock under which files go to and fro between this machine and the store."""
        return FileLock(self.folder / ".remote" / "lock")

    def fetch(self, path: Path, pattern: str = "*") -> None:
        """Download what the store has under `path` in a version that isn't here; remove what it no longer has."""
        below = self._name(path)
        listed = self.place.listed(below)
        there = {name: found for name, found in listed.items() if _is_wanted(name, below, pattern)}
        with self._notes() as notes:
            noted = {name: note for name, note in _noted(notes, below).items() if _is_wanted(name, below, pattern)}
            for name, note in noted.items():
                if name not in there:
                    if _stamp(self.folder / name) == note[:2]:
                        (self.folder / name).unlink()
                    _forget(notes, name)
            todo = {
                name: found
                for name, found in there.items()
                if _stamp(self.folder / name) is None or name not in noted or noted[name].version != found[1]
            }
            self._transfer(notes, "fetching", todo, self._download)

    def keep(self, path: Path) -> None:
        """Upload what has changed under `path`; remove in the store what is no longer here."""
        here = dict(self._here(path))
        with self._notes() as notes:
            noted = _noted(notes, self._name(path))
            changed = {name: stamp for name, stamp in here.items() if name not in noted or noted[name][:2] != stamp}
            for last in (False, True):
                todo = {name: (stamp[0], stamp) for name, stamp in changed.items() if name.endswith(".json") == last}
                self._transfer(notes, "keeping", todo, self._upload)
            for name in noted:
                if name not in here and not (self.folder / name).exists():
                    self.place.remove(name)
                    _forget(notes, name)

    def keep_on(self, over: threading.Event, allowed: Callable[[], object]) -> None:
        """Keep everything now and then until it is over; what fails is tried again. allowed: raises when it isn't."""
        pause = EVERY
        while not over.wait(pause):
            began = time.monotonic()
            with contextlib.suppress(UserError):
                allowed()
                with self.lock():
                    self.keep(self.folder)
            pause = max(EVERY, 5 * (time.monotonic() - began))

    def forget_missing(self) -> None:
        """Forget files that are not here: whoever frees space in the cache doesn't want to lose them in the store."""
        with self._notes() as notes:
            for name in _noted(notes, ""):
                if not (self.folder / name).exists():
                    _forget(notes, name)

    def _name(self, path: Path) -> str:
        name = path.absolute().relative_to(self.folder.absolute()).as_posix()
        return "" if name == "." else name

    def _here(self, path: Path) -> Iterator[tuple[str, tuple[int, int]]]:
        for one in [path] if path.is_file() else path.rglob("*"):
            name = self._name(one)
            if not _is_passing(name) and one.is_file() and (stamp := _stamp(one)):
                yield name, stamp

    def _download(self, name: str, version: str) -> Note | None:
        target = self.folder / name
        write_atomic(target, lambda half: self.place.download(name, half))
        stamp = _stamp(target)
        return Note(*stamp, version) if stamp else None

    def _upload(self, name: str, stamp: tuple[int, int]) -> Note | None:
        version = self.place.upload(name, self.folder / name)
        return Note(*stamp, version) if version else None

    def _transfer(self, notes: sqlite3.Connection, what: str, todo: dict[str, tuple[int, Any]], move: Move) -> None:
        """Call `move(name, value)` for each name with its (size, value), some at a time, and note what it returns."""
        total = sum(size for size, _ in todo.values())
        shown = total >= SHOWN and threading.current_thread() is threading.main_thread()
        columns = (TextColumn("{task.description:>9}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True, disable=not shown)
        with bar, ThreadPoolExecutor(TRANSFERS) as threads:
            task = bar.add_task(what, total=total)
            moving = {name: threads.submit(move, name, value) for name, (_, value) in todo.items()}
            try:
                for name, moved in moving.items():
                    if note := moved.result():
                        notes.execute("INSERT OR REPLACE INTO notes VALUES (?, ?, ?, ?)", (name, *note))
                    bar.advance(task, todo[name][0])
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    @contextlib.contextmanager
    def _notes(self) -> Iterator[sqlite3.Connection]:
        path = self.folder / ".remote" / "notes.db"
        with contextlib.closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as notes:
            columns = "name TEXT PRIMARY KEY, size INT, changed INT, version TEXT"
            notes.execute(f"CREATE TABLE IF NOT EXISTS notes ({columns})")
            yield notes


def copy_of(path: Path) -> WorkingCopy | None:
    """Return the working copy that a folder is, or that it lies in."""
    for folder in (path.absolute(), *path.absolute().parents):
        if (folder / URL).exists():
            return WorkingCopy(Place((folder / URL).read_text(encoding="utf-8")), folder)
    return None


def _noted(notes: sqlite3.Connection, below: str) -> dict[str, Note]:
    rows = notes.execute("SELECT name, size, changed, version FROM notes").fetchall()
    return {name: Note(*note) for name, *note in rows if _is_below(name, below)}


def _forget(notes: sqlite3.Connection, name: str) -> None:
    notes.execute("DELETE FROM notes WHERE name = ?", (name,))


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stat.st_size, stat.st_mtime_ns


def _is_below(name: str, below: str) -> bool:
    return not below or name == below or name.startswith(f"{below}/")


def _is_wanted(name: str, below: str, pattern: str) -> bool:
    if _is_passing(name) or not _is_below(name, below):
        return False
    if not below and pattern == "*":
        return not any(fnmatch.fnmatch(name, lazy) for lazy in LAZY)
    return name == below or fnmatch.fnmatch(name.removeprefix(below).lstrip("/"), pattern)


def _is_passing(name: str) -> bool:
    """Return whether a file is none of a study's: a half one, a lock, work under way."""
    parts = name.split("/")
    return any(part.startswith(".") for part in parts) or not PASSING.isdisjoint(parts)
