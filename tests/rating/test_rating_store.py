"""Ratings on disk: appended durably, never corrupted by a torn line, locked by freezing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from monosem.rating.shapes import key_digest
from monosem.rating.store import Conflict, Files, Frozen, append, freeze, latest, read_records
from monosem.store import file_hash
from monosem.types import UserError

KEY = {
    **{"study_id": "s", "secret": "5e", "seed": 0, "sampling": "uniform", "features": 1, "empty": "drop"},
    **{"left_out": [], "cuts": [], "runs": {"a": {"variant": "topk", "sae": "1", "d_sae": 9, "eligible": 9}}},
    "items": {"x": {"run": "a", "feature": 3, "training": False, "stratum": 0, "weight": 1.0, "is_duplicate_of": None}},
}
PACKET = {
    **{"study_id": "s", "groups": [], "steps": 10, "families": ["topk"], "key_digest": key_digest(KEY)},
    **{"training": [], "items": [{"id": "x", "groups": []}]},
}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    files = Files(tmp_path)
    files.folder.mkdir()
    files.packet.write_text(json.dumps(PACKET))
    files.key.write_text(json.dumps({**KEY, "packet_sha256": file_hash(files.packet)}))
    return files


def record(item: str, submission: str, rater: str = "ann", **values: Any) -> dict[str, Any]:
    who = {"event": "rating", "submission": submission, "rater_id": rater, "item_id": item}
    return {**who, "consistency": 3, "complexity": 3, "cannot_tell": False, "note": "", "guess": None, **values}


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


def test_a_submission_is_not_used_for_something_else(files: Files) -> None:
    append(files, record("x", "1"))
    with pytest.raises(Conflict):
        append(files, record("x", "1", consistency=5))
    assert [r["consistency"] for r in read_records(files.ratings)[0]] == [3]


def test_a_name_has_one_spelling(files: Files) -> None:
    for submission, rater in (("1", "Ren\u00e9"), ("2", "Rene\u0301")):
        append(files, record("x", submission, rater))
    assert list(latest(read_records(files.ratings)[0])) == [("Ren\u00e9", "x")]


@pytest.mark.parametrize(
    "line",
    [
        *(
            b"{}",
            b"[]",
            b"7",
            b"[" * 100_000,
            b'{"event": "rating", "submission": "2", "rater_id": "b", "item_id": "x"}',
        ),
        *(json.dumps(record("x", "2", **wrong)).encode() for wrong in ({"rater_id": ["b"]}, {"consistency": 6})),
    ],
)
def test_a_line_of_another_shape_is_counted_and_left_out(files: Files, line: bytes) -> None:
    append(files, record("x", "1"))
    files.ratings.write_bytes(files.ratings.read_bytes() + line + b"\n")
    records, damaged = read_records(files.ratings)
    assert ([r["submission"] for r in records], damaged) == (["1"], 1)


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
    scores = dict(consistency=3, complexity=3, cannot_tell=False, note="n" * 3000, guess=None)
    append(files, dict(event="rating", submission=f"{who}-{i}", rater_id=who, item_id=str(i), **scores))
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


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("key", {"items": {**KEY["items"], "y": KEY["items"]["x"]}}, "key.json: was changed since the draw"),
        ("key", {"seed": 1}, "key.json: was changed since the draw"),
        ("key", {"runs": {"../../evil": KEY["runs"]["a"]}}, "key.json: is not what `monosem rate` wrote"),
        ("key", {"packet_sha256": "0"}, "key.json: belongs to another packet"),
        ("key", None, "key.json: not there; restore it from a copy: it can't be made again"),
        ("key", [], "key.json: is not what"),
        ("key", "{", "key.json: not valid JSON; restore it from a copy: it can't be made again"),
        ("packet", {"items": 3}, "packet.json: is not what"),
        ("packet", [], "packet.json: is not what"),
        ("packet", None, "packet.json: not there; restore it"),
    ],
)
def test_ratings_are_not_locked_with_a_key_or_packet_that_is_not_the_drawn_one(
    files: Files, name: str, change: Any, message: str
) -> None:
    append(files, record("x", "1"))
    path = getattr(files, name)
    whole = json.loads(path.read_text())
    path.unlink()
    if change is not None:
        path.write_text(change if isinstance(change, str) else json.dumps({**whole, **change} if change else change))
    with pytest.raises(UserError, match=message) as raised:
        freeze(files)
    assert not files.frozen.exists()
    assert "monosem compare" not in str(raised.value)
    path.write_text(json.dumps(whole))
    freeze(files)


def test_the_key_is_frozen_too(files: Files) -> None:
    append(files, record("x", "1"))
    freeze(files)
    files.key.write_text(files.key.read_text() + " ")
    with pytest.raises(UserError, match=r"key.json: was changed after it was frozen"):
        freeze(files)
    files.key.unlink()
    with pytest.raises(UserError, match=r"key.json: was removed after it was frozen"):
        freeze(files)


@pytest.mark.parametrize("content", ["{}", "[]", "{"])
def test_a_damaged_seal_is_named(files: Files, content: str) -> None:
    append(files, record("x", "1"))
    files.frozen.write_text(content)
    with pytest.raises(UserError, match=r"frozen.json: .*; restore it from a copy: it says what was frozen"):
        freeze(files)


def test_without_a_score_nothing_is_locked(files: Files) -> None:
    append(files, record("x", "1", consistency=None, complexity=None, cannot_tell=True))
    append(files, record("practice", "2"))
    with pytest.raises(UserError, match="no item of the study has a score for consistency"):
        freeze(files)
    assert not files.frozen.exists()


def test_a_folder_that_cannot_be_written_is_named(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    append(files, record("x", "1"))
    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with pytest.raises(UserError, match=r"ratings: can't be written \(Read-only file system\); make it writable"):
        freeze(files)
