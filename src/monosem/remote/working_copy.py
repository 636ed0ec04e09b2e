"""The copy of a study in an object store that work is done on: files go to and fro.

It notes which version of each file the store had when both sides were last alike. What has changed on one side since
is brought to the other. Files are handed over whole, and those that name others (JSON) last.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from monosem.remote.place import Place
from monosem.store import write_atomic, write_text
from monosem.types import UserError

LAZY = ("activations/*.safetensors", "saes/*/checkpoint/*")  # fetched when they are opened
PASSING = ("ray/*", "codes/*/sorting/*", "saes/*/checkpoint/unfinished/*")  # work under way
EVERY = 10.0  # seconds between two looks at what has changed here
TRANSFERS = 8  # at a time
SHOWN = 50_000_000  # bytes from which on transfers have a bar
URL = ".remote/url"
Wins = Literal["store", "changed", "here"]
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

    @property
    def identity(self) -> str:
        """What tells this copy from those on other machines."""
        path = self.folder / ".remote" / "id"
        if not path.exists():
            write_text(path, secrets.token_hex(8))
        return path.read_text(encoding="utf-8")

    def fetch(self, path: Path, pattern: str = "*", wins: Wins = "changed") -> None:
        """Download what the store has under `path` in a version that isn't here; remove what it no longer has.

        wins: where a file has changed here since both were alike, or was made here: the `store`, also over what only
        changed here; the store if it has `changed` there, too; or what is `here`.
        """
        below = self.name(path)
        listed = self.place.listed(below)
        there = {name: found for name, found in listed.items() if _is_wanted(name, below, pattern)}
        with self._notes() as notes:
            noted = {name: note for name, note in _noted(notes, below).items() if _is_wanted(name, below, pattern)}
            for name, note in noted.items():
                if name not in there:
                    if _stamp(self.folder / name) == note[:2]:
                        (self.folder / name).unlink()
                    _forget(notes, name)
            todo = {name: found for name, found in there.items() if self._is_older(name, found[1], noted, wins)}
            self._transfer(notes, "fetching", todo, self._download)
        if wins == "store":
            for name, _ in list(self._here(path)):
                if name not in listed and _is_wanted(name, below, pattern):
                    (self.folder / name).unlink(missing_ok=True)

    def _is_older(self, name: str, version: str, noted: dict[str, Note], wins: Wins) -> bool:
        """Return whether the store's version of a file has to be fetched."""
        stamp, note = _stamp(self.folder / name), noted.get(name)
        if stamp is None:  # who holds the study has removed what is noted
            return wins != "here" or note is None or note.version != version
        if note is not None and stamp == note[:2]:
            return note.version != version
        return wins == "store" or (wins == "changed" and (note is None or note.version != version))

    def keep(self, path: Path, *, removing: bool) -> None:
        """Upload what has changed under `path`; with `removing`, remove in the store what is no longer here."""
        here = dict(self._here(path))
        with self._notes() as notes:
            noted = _noted(notes, self.name(path))
            changed = {name: stamp for name, stamp in here.items() if name not in noted or noted[name][:2] != stamp}
            for last in (False, True):
                todo = {name: (stamp[0], stamp) for name, stamp in changed.items() if name.endswith(".json") == last}
                self._transfer(notes, "keeping", todo, self._upload)
            for name in noted if removing else ():
                if name not in here and not (self.folder / name).exists():
                    self.place.remove(name)
                    _forget(notes, name)

    def keep_on(self, over: threading.Event, keep: Callable[[], object]) -> None:
        """Keep everything now and then until it is over; what fails is tried again."""
        pause = EVERY
        while not over.wait(pause):
            began = time.monotonic()
            with contextlib.suppress(UserError, OSError):
                keep()
            pause = max(EVERY, 5 * (time.monotonic() - began))

    def forget_missing(self) -> None:
        """Forget files that are not here: whoever frees space in the cache doesn't want to lose them in the store."""
        with self._notes() as notes:
            for name in _noted(notes, ""):
                if not (self.folder / name).exists():
                    _forget(notes, name)

    def name(self, path: Path) -> str:
        """Return what a file or folder in this copy is called in the store, "" for the copy itself."""
        name = path.absolute().relative_to(self.folder.absolute()).as_posix()
        return "" if name == "." else name

    def _here(self, path: Path) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield name and stamp of each file under `path`; folders may come and go meanwhile."""
        walked = [(str(path.parent), [], [path.name])] if path.is_file() else os.walk(path)
        for folder, below, names in walked:
            below[:] = [name for name in below if not name.startswith(".")]
            for one in (Path(folder) / name for name in names):
                name = self.name(one)
                if not _is_passing(name) and (stamp := _stamp(one)):
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
            moving = {threads.submit(move, name, value): name for name, (_, value) in todo.items()}
            try:
                for moved in as_completed(moving):
                    bar.advance(task, todo[moving[moved]][0])
                    if error := moved.exception():
                        raise error
            finally:
                threads.shutdown(cancel_futures=True)
                for moved, name in moving.items():
                    if not moved.cancelled() and not moved.exception() and (note := moved.result()):
                        notes.execute("INSERT OR REPLACE INTO notes VALUES (?, ?, ?, ?)", (name, *note))

    @contextlib.contextmanager
    def _notes(self) -> Iterator[sqlite3.Connection]:
        path = self.folder / ".remote" / "notes.db"
        try:
            with contextlib.closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as notes:
                columns = "name TEXT PRIMARY KEY, size INT, changed INT, version TEXT"
                notes.execute("PRAGMA synchronous = OFF")  # a note that is lost costs a transfer
                notes.execute(f"CREATE TABLE IF NOT EXISTS notes ({columns})")
                yield notes
        except sqlite3.Error as error:
            raise UserError(f"{path}: can't be used ({error}); make room on that disk, or delete the file") from error


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
    hidden = any(part.startswith(".") for part in name.split("/"))
    return hidden or any(fnmatch.fnmatch(name, passing) for passing in PASSING)
