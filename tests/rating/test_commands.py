"""`monosem rate` on a real (tiny) study: draw, rate, freeze, analyse, and the part of the report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import monosem
from monosem.cli import run
from monosem.rating.store import Files

from .study import make_study, packet_of, rate_all


def cli(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["monosem", *map(str, arguments)])
    return run()


def test_the_commands_say_what_they_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path / "study")
    (study / "study.toml").touch()
    assert cli(monkeypatch, "rate", "freeze", study) == 2
    assert "nothing drawn yet; run `monosem rate draw` first" in capsys.readouterr().err
    assert cli(monkeypatch, "rate", "draw", study, "--features", "5", "--sampling", "mass", "--runs", "*k*") == 0
    said = capsys.readouterr().out
    assert "topk-k7731: 5 of" in said
    assert "6 items in one random order, 1 of them shown for the second time; 5 training items from other runs" in said
    assert cli(monkeypatch, "rate", "draw", study) == 2
    assert "already drawn" in capsys.readouterr().err
    rate_all(study, ("ann",), lambda *_: {"consistency": 4})
    assert cli(monkeypatch, "rate", "freeze", study / "study.toml") == 0
    assert "11 ratings by ann are frozen" in capsys.readouterr().out
    assert cli(monkeypatch, "rate", "analyse", study, "--axis", "consistency") == 0
    assert (
        "Consistency: topk-k7731 has a mean of 4.00 (no interval: all scores of a stratum are equal)."
        in capsys.readouterr().out
    )
    assert cli(monkeypatch, "rate", "analyse", study, "--axis", "beauty") == 2
    assert "unknown; known are consistency, complexity" in capsys.readouterr().err


def test_only_a_study_folder_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for target, message in (("quickstart", "a study folder is wanted here"), (tmp_path, "not a study folder")):
        assert cli(monkeypatch, "rate", "draw", target) == 2
        assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_gets_advice_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    study = make_study(tmp_path / "study")
    (study / "study.toml").touch()
    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    assert cli(monkeypatch, "rate", "draw", study) == 2
    said = capsys.readouterr().err
    assert "can't be written (Read-only file system); make it writable" in said
    assert "--out" not in said


@pytest.mark.slow
def test_the_report_gets_a_section_of_its_own(
    tiny_study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    study = Path("runs") / "tiny"
    monosem.compare(tiny_study)
    assert "Human rating" not in (study / "report.html").read_text()
    assert cli(monkeypatch, "rate", "draw", study, "--features", "3", "--runs", "topk*", "--empty", "drop") == 0
    assert packet_of(study)["groups"]
    rate_all(study, ("ann", "bob"), lambda _run, feature, rater: {"consistency": 1 + feature % 5, "guess": "topk"})
    assert cli(monkeypatch, "rate", "analyse", study) == 0
    capsys.readouterr()
    assert cli(monkeypatch, "report", study) == 0
    assert "report: done" in capsys.readouterr().out
    page = (study / "report.html").read_text()
    assert "Human rating" in page
    assert "Activation Consistency, pairs of runs" in page
    assert cli(monkeypatch, "report", study) == 0
    assert "report: reused" in capsys.readouterr().out
    assert Files(study).frozen.exists()
