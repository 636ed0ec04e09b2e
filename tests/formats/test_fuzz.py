"""Some 1,500 mutated files of all formats; `make fuzz` reads 100,000. And the fuzzer notices what it is there for."""

from __future__ import annotations

import importlib
import random
import sys
from pathlib import Path
from typing import Any

import pytest

import monosem
from monosem import formats
from monosem.types import UserError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="stops a file that takes too long by SIGALRM")


@pytest.fixture
def fuzzer(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("fuzz_formats")


def test_mutated_files_are_read_or_refused(fuzzer: Any, tmp_path: Path) -> None:
    counts, failures = fuzzer.fuzz(range(1500), 0, tmp_path)
    assert failures == []
    assert counts.total() == 1500
    read = {name for name in formats.format_names() if counts[f"{name} sae"] > 5 and counts[f"{name} refused"] > 25}
    assert read == set(formats.format_names()), counts


@pytest.mark.parametrize(
    "raised", [ValueError("x"), MemoryError(), SystemExit(), UserError("no file"), UserError("two\nlines")]
)
def test_the_fuzzer_keeps_what_fails(
    fuzzer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException
) -> None:
    def fail(spec: str) -> None:
        raise raised

    monkeypatch.setattr(monosem, "load_sae", fail)
    counts, failures = fuzzer.fuzz(range(7, 9), 3, tmp_path)
    assert len(failures) == 2
    assert {key.split()[1] for key in counts} == {"FAILED"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3-7", "3-8"]


def test_the_same_number_makes_the_same_files(fuzzer: Any) -> None:
    valid = fuzzer.valid_files()
    made = [fuzzer.mutated(valid["openai:topk"], random.Random("0 5"), valid) for _ in range(2)]
    assert made[0] == made[1] != valid["openai:topk"]


def test_valid_files_are_valid(fuzzer: Any, tmp_path: Path) -> None:
    for number, (kind, files) in enumerate(fuzzer.valid_files().items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        assert monosem.load_sae(folder).facts["format"] == kind.split(":")[0]
