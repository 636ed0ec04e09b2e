"""Atomic writes, full disks, unwritable folders, locks."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
from pathlib import Path

import pytest

from monosem.store import file_hash, read_json, study_lock, value_hash, write_atomic, write_bytes, write_json
from monosem.types import UserError


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"old": 1})

    def half(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("cut")

    with pytest.raises(RuntimeError):
        write_atomic(target, half)
    assert read_json(target) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_hashes(tmp_path: Path) -> None:
    digest = write_bytes(tmp_path / "x", b"abc")
    assert digest == file_hash(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert value_hash({"a": 1, "b": [2]}) == value_hash({"b": [2], "a": 1})
    assert value_hash({"a": 1}) != value_hash({"a": 2})


def test_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


def test_missing_and_damaged_json_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.json: no such file"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.json: not valid JSON"):
        read_json(tmp_path / "a.json")


def hold(folder: str, ready: object, done: object) -> None:
    with study_lock(Path(folder)):
        ready.set()  # type: ignore[attr-defined]
        done.wait(20)  # type: ignore[attr-defined]


def test_two_processes_on_one_study_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(str(tmp_path), ready, done))
    other.start()
    try:
        assert ready.wait(30)
        with pytest.raises(UserError, match="another monosem process"), study_lock(tmp_path):
            pass
    finally:
        done.set()
        other.join()
    with study_lock(tmp_path):
        pass


def test_half_files_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    half = tmp_path / "saes" / "a" / "checkpoint" / ".step-000000001.safetensors.x.part"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    with study_lock(tmp_path):
        assert not half.exists()


def test_half_files_of_living_processes_are_kept(tmp_path: Path) -> None:
    """An export writes into the study folder without its lock."""
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=write_slowly, args=(str(tmp_path / "features.jsonl"), ready, done))
    other.start()
    try:
        assert ready.wait(30)
        with study_lock(tmp_path):
            assert len(list(tmp_path.glob(".*.part"))) == 1
    finally:
        done.set()
        other.join()
    assert (tmp_path / "features.jsonl").read_text() == "whole"
    dead = tmp_path / f".features.jsonl.{other.pid}.x.part"
    dead.write_text("half")
    with study_lock(tmp_path):
        assert not dead.exists()


def write_slowly(path: str, ready: object, done: object) -> None:
    def write(temporary: Path) -> None:
        ready.set()  # type: ignore[attr-defined]
        done.wait(20)  # type: ignore[attr-defined]
        temporary.write_text("whole")

    write_atomic(Path(path), write)


@pytest.mark.parametrize("target", ["file/page.html", "folder", "file/sub/page.html"])
def test_what_is_in_the_way_of_a_file_is_named(tmp_path: Path, target: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    with pytest.raises(UserError, match=r"can't be written .*--out"):
        write_json(tmp_path / target, {})
    with pytest.raises(UserError, match=r"can't be written .*--out"):
        write_json(Path("/proc/none") / target, {})


def test_a_file_in_the_way_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"can't be written .*--out"), study_lock(tmp_path / "file" / "study"):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"this machine mounts no tmpfs: {mounted.stderr.decode().strip()}")
    try:
        write_bytes(tmp_path / "small", b"x" * 1000)
        with pytest.raises(UserError, match="no space left on the device"):
            write_bytes(tmp_path / "large", b"x" * 200_000)
        assert [p.name for p in tmp_path.iterdir()] == ["small"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
