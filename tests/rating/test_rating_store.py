"""Ratings on disk: appended durably, never corrupted by a torn line, locked by freezing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from monosem.rating.store import Files, Frozen, append, freeze, latest, read_records
from monosem.types import UserError

PACKET = {"study_id": "s"}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    files = Files(tmp_path)
    files.folder.mkdir()
    files.packet.write_text(json.dumps(PACKET))
    return files


def record(item: str, submission: str, rater: str = "ann", **values: Any) -> dict[str, Any]:
    return {"event": "rating", "submission": submission, "rater_id": rater, "item_id": item, **values}


def test_the_last_submission_of_a_rater_and_item_counts_and_all_stay(files: Files) -> None:
    for values in (record("x", "1", consistency=1), record("y", "2"), record("x", "3", "bob"), record("x", "4")):
        assert append(files, values)
    assert append(files, record("x", "5", consistency=5))
    assert append(files, {**record("x", "6"), "event": "back"})
    records, damaged = read_records(files.ratings)
    assert damaged == 0
    assert [r["submission"] for r in records] == ["1", "2", "3", "4", "5", "6"]
    assert all(r["t_stored"] for r in records)
    counted = latest(records)
    assert {key: r["submission"] for key, r in counted.items()} == {
        ("ann", "x"): "5",
        ("ann", "y"): "2",
        ("bob", "x"): "3",
    }


def test_a_submission_that_is_sent_twice_is_stored_once(files: Files) -> None:
    assert append(files, record("x", "1"))
    assert not append(files, record("x", "1"))
    assert len(read_records(files.ratings)[0]) == 1


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_is_ignored_and_does_not_spoil_the_next(files: Files, cut: int) -> None:
    append(files, record("x", "1"))
    append(files, record("y", "2", note="ein Käfer"))
    data = files.ratings.read_bytes()
    files.ratings.write_bytes(data[:-cut])
    records, damaged = read_records(files.ratings)
    assert [r["submission"] for r in records] == (["1", "2"] if cut == 1 else ["1"])
    assert damaged == (cut != 1)
    append(files, record("z", "3"))
    records, after = read_records(files.ratings)
    assert [r["submission"] for r in records][-1] == "3"
    assert after == damaged
    assert files.ratings.read_bytes().startswith(data[:-cut])


def test_a_line_cut_inside_a_letter_is_ignored(files: Files) -> None:
    append(files, record("x", "1", note="ä"))
    data = files.ratings.read_bytes()
    files.ratings.write_bytes(data + data[: data.index("ä".encode()) + 1])
    assert read_records(files.ratings)[1] == 1
    append(files, record("y", "2"))
    assert [r["submission"] for r in read_records(files.ratings)[0]] == ["1", "2"]


def test_every_rating_is_flushed_before_the_answer(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size) or real(handle))
    append(files, record("x", "1"))
    assert synced[0] == files.ratings.stat().st_size
    assert len(synced) == 2  # the new name in the folder, too
    append(files, record("y", "2"))
    assert synced[2] == files.ratings.stat().st_size


def test_several_processes_append_whole_lines(files: Files) -> None:
    code = """
import sys
from pathlib import Path
from monosem.rating.store import Files, append
files = Files(Path(sys.argv[1]))
for i in range(25):
    who = sys.argv[2]
    append(files, dict(event="rating", submission=f"{who}-{i}", rater_id=who, item_id=str(i), note="n" * 3000))
"""
    running = [subprocess.Popen([sys.executable, "-c", code, str(files.study), who]) for who in ("ann", "bob", "cy")]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    records, damaged = read_records(files.ratings)
    assert damaged == 0
    assert len(latest(records)) == len(records) == 75


def test_freezing_locks_and_notices_changes(files: Files) -> None:
    with pytest.raises(UserError, match="no ratings yet"):
        freeze(files)
    append(files, record("x", "1"))
    append(files, record("x", "2", "bob"))
    frozen = freeze(files)
    assert (frozen["ratings"], frozen["raters"]) == (2, ["ann", "bob"])
    assert freeze(files) == frozen
    with pytest.raises(Frozen):
        append(files, record("y", "3"))
    assert len(read_records(files.ratings)[0]) == 2
    with open(files.ratings, "a") as file:
        file.write(json.dumps(record("y", "3")) + "\n")
    with pytest.raises(UserError, match="was changed after it was frozen"):
        freeze(files)


def test_freezing_needs_a_draw(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `monosem rate draw` first"):
        freeze(Files(tmp_path))
