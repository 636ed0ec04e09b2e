"""The evaluation `autointerp` against a real server, llama.cpp's, with the embedded model as explainer and simulator.

A model of 135 million parameters answers badly; asserted is what holds whatever it answers.
"""

from __future__ import annotations

import functools
import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.conftest import cli
from tests.evals.test_autointerp_story import RUN, result

from monosem.evals.autointerp.detection import detection_trial
from monosem.evals.autointerp.fuzzing import fuzzing_trial
from monosem.evals.autointerp.pipeline import SCORERS
from monosem.evals.autointerp.prompts import EXPLAINER, SIMULATOR
from monosem.evals.autointerp.records import PRESETS, Preset, Quota

pytestmark = [pytest.mark.oracle, pytest.mark.lm, pytest.mark.slow]

FEATURES = 2
# 8 examples for explaining, 6 for scoring, of 5 tokens
FEW = Preset(Quota(4, 0, 2, 2), Quota(2, 0, 2, 2), 5, 9, "nearest")
SCORES = ("pearson", "pearson_shuffled", "detection", "fuzzing")


def test_the_whole_evaluation(
    study: Path, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PRESETS, "clerp", FEW)
    monkeypatch.setattr("monosem.evals.autointerp.explain.ANSWER_TOKENS", 100)
    for name, trial in (("detection", detection_trial), ("fuzzing", fuzzing_trial)):
        monkeypatch.setitem(SCORERS, name, (functools.partial(trial, each=6), *SCORERS[name][1:]))
    line = ["eval", "autointerp", study, "--explainer", f"smollm@{url}", "--runs", RUN, "--features", str(FEATURES)]
    settings = ['scorers=["detection","fuzzing"]', "per_request=3", "concurrency=2", "timeout=120"]
    line += [word for setting in settings for word in ("--set", setting)]
    began = time.monotonic()
    assert cli(*line) == 0
    seconds = time.monotonic() - began
    assert "1 runs judged, 0 reused" in capsys.readouterr().out
    stored, rows = result(study)
    check_rows(rows, stored)
    log = answers(study)
    check_tokens(log, rows, url.removesuffix("/v1"))
    report(rows, stored, log, seconds)
    (path,) = (study / "judges").glob("*.jsonl")
    before = path.read_bytes()
    (study / "results" / RUN / "autointerp" / "result.json").unlink()
    assert cli(*line) == 0
    assert path.read_bytes() == before  # nothing was asked
    left_out = ["seconds"]
    again, same = result(study)
    assert same.equals(rows)
    assert {k: v for k, v in again["scalars"].items() if k not in left_out} == {
        k: v for k, v in stored["scalars"].items() if k not in left_out
    }


def check_rows(rows: pl.DataFrame, stored: dict[str, Any]) -> None:
    """Every row is there; each score is finite or null with a reason; own and shuffled stand side by side."""
    assert rows.height == FEATURES
    reasons = {"pearson": "reason", "detection": "detection_reason", "fuzzing": "fuzzing_reason"}
    for row in rows.iter_rows(named=True):
        for score, reason in reasons.items():
            assert row[score] is not None or row[reason], (row["feature"], score)
        assert row["pearson"] is None or -1 <= row["pearson"] <= 1
        assert not row["failed"] or row["pearson"] is None
        assert row["pearson_shuffled"] is None or not row["shuffled_failed"]
        assert bool(row["shuffled_reason"]) == row["shuffled_failed"]
        assert row["explanation"] or row["failed"]
        assert all(row[name] is None or 0 <= row[name] <= 1 for name in ("detection", "fuzzing"))
        assert row["pearson_oracle"] > 0.9
        assert (row["mismatched"] is None) == (row["undecided"] is None) == row["failed"]
        assert row["prompt_tokens"] > 200
        assert row["completion_tokens"] > 0
    assert "incomplete" not in stored  # the server answered everything; what can't be read is final
    for name in SCORES:
        assert stored["scalars"][name] is not None or stored["reasons"][name]
    assert stored["scalars"]["failed_share"]["value"] == pytest.approx(rows["failed"].mean())
    assert stored["scalars"]["prompt_tokens"]["value"] == rows["prompt_tokens"].sum()


def answers(study: Path) -> list[dict[str, Any]]:
    """Return the answers on disk, without the probe."""
    (path,) = (study / "judges").glob("*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if "text" in line["answer"]]


def check_tokens(log: list[dict[str, Any]], rows: pl.DataFrame, server: str) -> None:
    """Tokens of prompts are those of the server's own template and tokenizer; rows add up to the answers' tokens."""
    for line in log:
        messages = [{"role": role, "content": text} for role, text in line["asked"]["messages"]]
        prompt = post(f"{server}/apply-template", {"messages": messages})["prompt"]
        asked = {"content": prompt, "add_special": True, "parse_special": True}
        tokens = post(f"{server}/tokenize", asked)["tokens"]
        assert line["answer"]["prompt_tokens"] == len(tokens)
        assert 0 < line["answer"]["completion_tokens"] <= line["asked"]["max_tokens"]
    roles = tuple(text.format(levels=FEW.levels, unknown="each ?") for text in (EXPLAINER, SIMULATOR))
    counted = [line["answer"] for line in log if line["asked"]["messages"][0][1] in roles]
    simulated = [line for line in log if line["asked"]["messages"][0][1] == roles[1]]
    assert simulated
    assert all(line["answer"]["tokens"] for line in simulated)  # log probabilities came along
    for name in ("prompt_tokens", "completion_tokens"):
        total = sum(answer[name] for answer in counted)
        assert rows[name].sum() >= total
        if rows["explanation"].n_unique() == FEATURES:  # else one answer serves two
            assert rows[name].sum() == total


def post(address: str, value: Any) -> Any:
    request = urllib.request.Request(address, json.dumps(value).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def report(rows: pl.DataFrame, stored: dict[str, Any], log: list[dict[str, Any]], seconds: float) -> None:
    """Print what was measured."""
    scalars = stored["scalars"]
    for name in (*SCORES, "failed_share", "mismatched_share", "prompt_tokens", "completion_tokens"):
        print(name, scalars[name] and scalars[name]["value"], stored["reasons"].get(name, ""))
    again = sum(line["asked"]["temperature"] > 0 or "Mind the form" in line["asked"]["messages"][-1][1] for line in log)
    size = sum(line["answer"]["prompt_tokens"] + line["answer"]["completion_tokens"] for line in log)
    print(f"{len(log)} answers, {again} of them asked again, {size} tokens, {seconds:.0f} s")
    print(rows.select("explanation", "pearson", "mismatched", "undecided", "detection_failed", "fuzzing_failed"))
