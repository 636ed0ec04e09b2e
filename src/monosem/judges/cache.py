"""Answers on disk: appended one by one and flushed, never rewritten, so that a killed run pays nothing twice.

`<judge>-<hash>.jsonl` has one JSON object a line: `key` (SHA-256 of judge and question), `asked`, `answer`. A line that
a kill cut short is ignored and closed by the next one. Imports no torch.
"""

from __future__ import annotations

import json
import os
import re
import threading
from pathlib import Path
from typing import Any

from monosem.store import value_hash
from monosem.types import UserError

_START = re.compile(rb'\{"key": "([0-9a-f]{64})", ')


class AnswerLog:
    """The answers of one judge. Only where they lie is kept in memory.

    folder: the cache; name, identity: of the judge, they make the file's name. Several processes and threads may add.
    """

    def __init__(self, folder: Path, name: str, identity: Any):
        """Remember the path; the file is read on first use."""
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60]
        self.path = folder / f"{slug}-{value_hash(identity)[:12]}.jsonl"
        self._places: dict[str, tuple[int, int]] | None = None
        self._lock = threading.Lock()

    def get(self, key: str) -> Any:
        """Return the answer stored under a key, None when there is no whole one."""
        with self._lock:
            place = self._index().get(key)
            if place is None:
                return None
            with open(self.path, "rb") as file:
                file.seek(place[0])
                line = file.read(place[1])
        try:
            record = json.loads(line)
        except ValueError:
            return None
        return record.get("answer") if record.get("key") == key else None

    def put(self, key: str, asked: Any, answer: Any) -> None:
        """Store an answer and return once it is on disk. Raises UserError when it can't be written."""
        line = json.dumps({"key": key, "asked": asked, "answer": answer}, ensure_ascii=True, allow_nan=False) + "\n"
        with self._lock:
            index = self._index()
            try:
                start = self._append(line.encode())
            except OSError as error:
                raise UserError(
                    f"{self.path}: an answer can't be stored ({error.strerror}); free some space or choose another "
                    "folder and run the same command again, stored answers are kept"
                ) from error
            index[key] = (start, len(line))

    def _append(self, line: bytes) -> int:
        """Append a line in one write, flush it, and return where it starts."""
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":  # a kill cut the last line short: close it
                os.write(handle, b"\n")
            left = line
            while left:
                left = left[os.write(handle, left) :]
            end = os.lseek(handle, 0, os.SEEK_CUR)  # with O_APPEND a write ends where the file ended
            os.fsync(handle)
        finally:
            os.close(handle)
        if new:
            _sync(self.path.parent)
        return end - len(line)

    def _index(self) -> dict[str, tuple[int, int]]:
        if self._places is None:
            self._places = {}
            if self.path.exists():
                with open(self.path, "rb") as file:
                    start = 0
                    for line in file:
                        found = _START.match(line)
                        if found and line.endswith(b"}\n"):
                            self._places[found[1].decode()] = (start, len(line))
                        start += len(line)
        return self._places


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
