"""Ratings on disk: appended one by one and flushed, never rewritten (section J.4). Imports no torch.

`ratings/ratings.jsonl` has one JSON object a line: a rating, or a step back. A line that a kill cut short is ignored
and closed by the next one. Of several ratings of an item by one rater the last counts; all stay.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from monosem.store import file_hash, read_json, write_json
from monosem.types import UserError


class Frozen(UserError):
    """The ratings are frozen: nothing is stored any more."""


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
        """Hashes of packet and ratings, from the moment on that nothing may be added."""
        return self.folder / "frozen.json"

    @property
    def analysis(self) -> Path:
        """What came out."""
        return self.folder / "analysis.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the ratings for this process: for the moment of an addition, or of freezing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            yield


def append(files: Files, record: dict[str, Any]) -> bool:
    """Store a record and return once it is on disk; False if one with the same `submission` was there already.

    Raises Frozen after `freeze`.
    """
    with files.locked():
        if files.frozen.exists():
            raise Frozen(f"{files.ratings}: frozen; nothing is stored any more")
        known, _ = read_records(files.ratings)
        if any(one["submission"] == record["submission"] for one in known):
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
            _sync(files.folder)
        return True


def _sync(folder: Path) -> None:
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
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and {"event", "submission", "rater_id", "item_id"} <= set(record):
            records.append(record)
        else:
            damaged += 1
    return records, damaged


def latest(records: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the last rating of each (rater, item)."""
    return {(r["rater_id"], r["item_id"]): r for r in records if r["event"] == "rating"}


def freeze(files: Files) -> dict[str, Any]:
    """Lock the ratings: write their hash and refuse what comes later. Frozen ones stay as they are.

    Returns the content of frozen.json. Raises UserError when there is nothing to freeze, or when frozen files were
    changed.
    """
    if not files.packet.exists():
        raise UserError(f"{files.packet}: nothing drawn yet; run `monosem rate draw` first")
    with files.locked():
        if files.frozen.exists():
            return _unchanged(files)
        counted = latest(read_records(files.ratings)[0])
        if not counted:
            raise UserError(f"{files.ratings}: no ratings yet; rate with `monosem serve` first")
        value = {
            "frozen": now(),
            "ratings_sha256": file_hash(files.ratings),
            "packet_sha256": file_hash(files.packet),
            "ratings": len(counted),
            "raters": sorted({rater for rater, _ in counted}),
        }
        write_json(files.frozen, value)
        return value


def _unchanged(files: Files) -> dict[str, Any]:
    value = read_json(files.frozen)
    for path, name in ((files.ratings, "ratings_sha256"), (files.packet, "packet_sha256")):
        if not path.exists() or file_hash(path) != value.get(name):
            raise UserError(f"{path}: was changed after it was frozen; restore it, its SHA-256 was {value.get(name)}")
    return value
