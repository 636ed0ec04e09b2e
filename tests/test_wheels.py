"""Wheels as data: download, verification, the cache."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from monosem import wheels
from monosem.types import UserError
from monosem.wheels import Package, made_once, wheel

CONTENT = b"the bytes of a wheel" * 1000
THING = Package(
    "test data", "thing", "1.0", "thing-1.0-py3-none-any.whl", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT)
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MONOSEM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pip(monkeypatch):
    """A pip that writes `content` and answers `code` and `stderr`; it records its commands."""

    class Pip:
        content: bytes | None = CONTENT
        code = 0
        stderr = ""
        commands: list[list[str]]

        def run(self, command, **_):
            self.commands.append(command)
            if self.content is not None:
                folder = Path(command[command.index("--dest") + 1])
                (folder / THING.file).write_bytes(self.content)
            return subprocess.CompletedProcess(command, self.code, "", self.stderr)

    fake = Pip()
    fake.commands = []
    monkeypatch.setattr(wheels.subprocess, "run", fake.run)
    return fake


def left(folder: Path) -> list[str]:
    """Everything in the cache but the lock files."""
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock"))


def test_a_wheel_is_downloaded_once(cache, pip, capsys):
    path = wheel(THING)
    assert path == cache / "wheels" / THING.file
    assert path.read_bytes() == CONTENT
    assert wheel(THING) == path
    (command,) = pip.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--no-cache-dir", "--only-binary=:all:", "thing==1.0"} <= set(command)
    message = capsys.readouterr().err
    for part in ("thing 1.0", "test data", "0 MB", str(cache / "wheels")):
        assert part in message
    assert left(cache) == [THING.file]


def test_the_platform_of_a_compiled_wheel_is_fixed():
    options = " ".join(wheels.ENCYCLOPEDIA.options)
    for part in ("--platform manylinux_2_28_x86_64", "--python-version 3.11", "--abi cp311", "--implementation cp"):
        assert part in options


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"?", CONTENT[:100], b""])
def test_an_altered_or_cut_download_is_refused(cache, pip, content):
    pip.content = content
    with pytest.raises(UserError, match=r"thing==1\.0: the downloaded .* has SHA-256 .* altered") as caught:
        wheel(THING)
    assert "run again" in str(caught.value)
    assert left(cache) == []
    pip.content = CONTENT
    assert wheel(THING).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "code", "stderr", "said"),
    [
        (None, 1, "WARNING: x\nERROR: No matching distribution found for thing==1.0\n", "No matching distribution"),
        (CONTENT[:50], 1, "ERROR: Connection broken", "Connection broken"),
        (None, 0, "", "pip wrote no thing-1.0"),
        (None, 1, "/usr/bin/python: No module named pip", "ensurepip"),
    ],
)
def test_a_failed_download_says_what_to_do(cache, pip, content, code, stderr, said):
    pip.content, pip.code, pip.stderr = content, code, stderr
    with pytest.raises(UserError, match=r"thing==1\.0") as caught:
        wheel(THING)
    assert said in str(caught.value)
    assert "run again" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert left(cache) == []


def test_a_damaged_wheel_in_the_cache_is_fetched_again(cache, pip, capsys):
    path = wheel(THING)
    path.write_bytes(b"x" + CONTENT[1:])
    assert wheel(THING).read_bytes() == CONTENT
    assert len(pip.commands) == 2
    assert "damaged" in capsys.readouterr().err
    path.write_bytes(b"")
    pip.content, pip.code, pip.stderr = None, 1, "ERROR: offline"
    with pytest.raises(UserError, match="offline"):
        wheel(THING)
    assert left(cache) == []


def test_an_interrupted_download_leaves_nothing(cache, pip, monkeypatch):
    def interrupted(command, **_):
        pip.run(command)
        raise KeyboardInterrupt

    monkeypatch.setattr(wheels.subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        wheel(THING)
    assert left(cache) == []


def test_leftovers_of_a_killed_process_are_swept(cache, pip):
    stale = cache / "wheels" / f".{THING.file}.abc.part"
    stale.mkdir(parents=True)
    (stale / "half").write_bytes(b"x")
    wheel(THING)
    assert left(cache) == [THING.file]


def test_concurrent_callers_download_once(cache, pip):
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(wheel(THING))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 4
    assert len(pip.commands) == 1


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MONOSEM_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="MONOSEM_CACHE"):
        wheel(THING)


def test_the_cache_is_the_users_unless_named(monkeypatch):
    monkeypatch.delenv("MONOSEM_CACHE", raising=False)
    assert wheels.cache_folder().name == "monosem"
    monkeypatch.setenv("MONOSEM_CACHE", "~/elsewhere")
    assert wheels.cache_folder() == Path.home() / "elsewhere"


def test_made_once(cache, capsys):
    calls = []

    def make(folder):
        calls.append(folder)
        (folder / "a.txt").write_text("content")

    target = cache / "thing-1"
    for _ in range(2):
        assert made_once(target, make, "a thing") == target
    assert len(calls) == 1
    for damage in (
        lambda: (target / "a.txt").write_text("CONTENT"),
        lambda: (target / "a.txt").write_text("cont"),
        lambda: (target / "a.txt").unlink(),
        lambda: (target / "monosem.json").write_text("{"),
        lambda: (target / "monosem.json").write_text("[]"),
    ):
        damage()
        made_once(target, make, "a thing")
        assert (target / "a.txt").read_text() == "content"
    assert len(calls) == 6
    assert "damaged" in capsys.readouterr().err

    def fail(folder):
        (folder / "a.txt").write_text("half")
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        made_once(cache / "other", fail, "a thing")
    assert left(cache) == ["a.txt", "monosem.json"]


def test_package_table():
    for package in (wheels.MODEL, wheels.NEWS, wheels.SPEECHES, wheels.ENCYCLOPEDIA):
        fields = dataclasses.asdict(package)
        assert len(fields["sha256"]) == 64
        assert package.file.startswith(f"{package.name.replace('-', '_')}-{package.version}-")
