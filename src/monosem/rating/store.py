"""Ratings on disk: appended one by one and flushed, never rewritten (section J.4). Imports no torch.

`ratings/ratings.jsonl` has one JSON object a line: a rating, or a step back. A line that a kill cut short is ignored
and closed by the next one. Of several ratings of an item by one rater the last counts; all stay.
"""

from __future__ import annotations

import errno
import json
import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from monosem.rating.rubric import SCALES
from monosem.rating.shapes import is_record, read_frozen, read_key, read_packet
from monosem.store import file_hash, write_json
from monosem.types import UserError

AXES = tuple(scale.field for scale in SCALES)
UNWRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT)


class Frozen(UserError):
    """The ratings are frozen: nothing is stored any more."""


class Conflict(UserError):
    """Something else was stored with this `submission`."""


@dataclass(frozen=True)
class Files:
    """Where a study's rating lies. study: the study folder."""

    study: Path

    @property
    def folder(self) -> Path:
        """The folder of all of it."""
        return self.study / "ratings"

    @property
    def packet(self) -> Path:
        """What raters see."""
        return self.folder / "packet.json"

    @property
    def key(self) -> Path:
        """Which feature an item shows; the rating page never reads it."""
        return self.folder / "key.json"

    @property
    def ratings(self) -> Path:
        """The ratings, one a line."""
        return self.folder / "ratings.jsonl"

    @property
    def frozen(self) -> Path:
        """Hashes of packet, key and ratings, from the moment on that nothing may be added."""
        return self.folder / "frozen.json"

    @property
    def analysis(self) -> Path:
        """What came out."""
        return self.folder / "analysis.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the ratings for this process: for the moment of an addition, of freezing, or of a new draw.

        Raises UserError when the folder can't be written.
        """
        with writable(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock"):
                yield


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Raise UserError with advice that fits a rating, which has no --out, where something can't be written."""
    try:
        yield
    except (OSError, UserError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, OSError) and cause.errno in UNWRITABLE:
            raise UserError(
                f"{folder}: can't be written ({cause.strerror}); make it writable or make room, or work on a copy of "
                "the study folder"
            ) from error
        raise


def append(files: Files, record: dict[str, Any]) -> bool:
    """Store a record and return once it is on disk; False if the same one was there already.

    Raises Frozen after `freeze`, Conflict when another record has its `submission`.
    """
    with files.locked():
        return add(files, record)


def add(files: Files, record: dict[str, Any]) -> bool:
    """Do what `append` does, where `files.locked()` is held."""
    if files.frozen.exists():
        raise Frozen(f"{files.ratings}: frozen; nothing is stored any more")
    for one in read_records(files.ratings)[0]:
        if one["submission"] == record["submission"]:
            if {**record, "t_stored": one.get("t_stored")} != one:
                raise Conflict(f"submission {record['submission']}: another record was stored under it")
            return False
    line = json.dumps({**record, "t_stored": now()}, ensure_ascii=False, allow_nan=False) + "\n"
    new = not files.ratings.exists()
    handle = os.open(files.ratings, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":  # a kill cut the last line short: close it
            line = "\n" + line
        data = line.encode()
        while data:
            data = data[os.write(handle, data) :]
        os.fsync(handle)
    finally:
        os.close(handle)
    if new:
        sync(files.folder)
    return True


def sync(folder: Path) -> None:
    """Flush the names in a folder to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def now() -> str:
    """Return the time, to the millisecond, as text."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def read_records(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return all whole records in the order in which they were stored, and the number of lines that are none."""
    if not path.exists():
        return [], 0
    records, damaged = [], 0
    for line in path.read_bytes().split(b"\n"):
        if not line.strip():
            continue
        record: Any = None
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
        if is_record(record):
            records.append({**record, "rater_id": one_spelling(record["rater_id"])})
        else:
            damaged += 1
    return records, damaged


def one_spelling(name: str) -> str:
    """Return a name in composed letters (NFC), so that an é typed in two ways is one rater."""
    return unicodedata.normalize("NFC", name)


def latest(records: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the last rating of each (rater, item)."""
    return {(r["rater_id"], r["item_id"]): r for r in records if r["event"] == "rating"}


def check_scored(files: Files, axes: tuple[str, ...]) -> None:
    """Raise UserError where there is nothing to analyse, before ratings are locked for good."""
    if not files.packet.exists() and not files.ratings.exists():
        raise UserError(f"{files.packet}: nothing drawn yet; run `monosem rate draw` first")
    items = {item["id"] for item in read_packet(files.packet)["items"]}
    counted = latest(read_records(files.ratings)[0])
    if not counted:
        raise UserError(f"{files.ratings}: no ratings yet; rate with `monosem serve` first")
    for axis in axes:
        if not any(item in items and rating[axis] is not None for (_, item), rating in counted.items()):
            raise UserError(
                f"{files.ratings}: no item of the study has a score for {axis} (practice items and "
                "'cannot tell' count nowhere); rate some first"
            )


def freeze(files: Files) -> dict[str, Any]:
    """Lock the ratings: write their hash and refuse what comes later. Frozen ones stay as they are.

    Returns the content of frozen.json. Raises UserError when there is nothing to analyse, when the key is not the
    packet's, or when frozen files were changed.
    """
    if not files.frozen.exists():
        check_scored(files, AXES)
    with files.locked():
        if files.frozen.exists():
            return _unchanged(files)
        check_scored(files, AXES)
        read_key(files.key, files.packet)
        counted = latest(read_records(files.ratings)[0])
        value = {
            "frozen": now(),
            "ratings_sha256": file_hash(files.ratings),
            "packet_sha256": file_hash(files.packet),
            "key_sha256": file_hash(files.key),
            "ratings": len(counted),
            "raters": sorted({rater for rater, _ in counted}),
        }
        write_json(files.frozen, value)
        return value


def _unchanged(files: Files) -> dict[str, Any]:
    value = read_frozen(files.frozen)
    for path, name in ((files.ratings, "ratings_sha256"), (files.packet, "packet_sha256"), (files.key, "key_sha256")):
        if not path.exists() or file_hash(path) != value[name]:
            what = "was changed" if path.exists() else "was removed"
            raise UserError(
                f"{path}: {what} after it was frozen; restore it from a copy, its SHA-256 was {value[name]}"
            )
    return value
