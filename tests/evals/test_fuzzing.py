"""Fuzzing: where right and wrong marks stand, also for dense features; scores of judges that know, guess and babble."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from monosem.evals.autointerp.fuzzing import by_count, fuzzing, fuzzing_requests, fuzzing_score, fuzzing_trial
from monosem.evals.autointerp.questions import Item, Trial, ask
from monosem.evals.autointerp.records import sample_records
from monosem.examples import activations_at
from monosem.firings import Fires
from monosem.judges import Request
from monosem.judges.scripted import ScriptedJudge
from monosem.passages import Passages

from .scored_text import firing, make_passages


@pytest.fixture(scope="module")
def passages(tmp_path_factory: pytest.TempPathFactory) -> Passages:
    return make_passages(tmp_path_factory.mktemp("text"))


def values_of(item: Item, fires: Fires) -> np.ndarray:
    return activations_at(
        fires, np.full(len(item.text), item.doc), item.pos + np.arange(len(item.text), dtype=np.int32)
    )


@pytest.mark.parametrize(
    ("density", "wrong_on", "length"),
    [(0.003, "silent", 32), (0.006, "active", 32), (0.12, "silent", 4), (0.4, "silent", 16), (0.9, "silent", 16)],
)
def test_marks_stand_where_they_should(
    passages: Passages,
    density: float,
    wrong_on,
    length: int,
) -> None:
    fires = firing(passages, density)
    split = sample_records(5, fires, passages)
    trial = fuzzing_trial(5, split, fires, passages, each=40, wrong_on=wrong_on, wrong_marks="mean")
    assert (trial.kind, trial.length, trial.reason) == ("marks", length, None)
    items = [item for group in trial.groups for item in group]
    right, wrong = ([item for item in items if item.label == label] for label in (True, False))
    assert len(right) == len(wrong) == 40
    assert len({(item.doc, item.pos) for item in items}) == 80
    active = []
    for item in right:
        values = values_of(item, fires)
        assert (np.array(item.marked) == (values >= np.float32(0.3) * values.max())).all()
        assert any(item.marked)
        active.append((values > 0).sum())
    number = math.ceil(np.mean(active))
    in_silent = density < 0.16 and wrong_on == "silent"
    for item in wrong:
        values = values_of(item, fires)
        assert not values[np.array(item.marked)].any()
        assert sum(item.marked) == min(number, (values == 0).sum()) > 0
        assert values.any() != in_silent
    assert not {item.doc for item in items} & set(split.explain_documents.tolist())
    assert trial == fuzzing_trial(5, split, fires, passages, each=40, wrong_on=wrong_on, wrong_marks="mean")


def test_what_counting_marks_scores_by_hand(passages: Passages) -> None:
    def item(marks: int, label: bool) -> Item:
        return Item((" a",) * 4, tuple(i < marks for i in range(4)), label, 0, 0)

    ones, twos = [item(1, True)] * 3 + [item(2, True)], [item(2, False)] * 4
    assert by_count(ones + twos) == pytest.approx((3 / 4 + 1) / 2)
    assert by_count([item(1, True), item(1, False)]) == 0.5
    assert by_count([item(3, True), item(1, False)]) == 1
    assert by_count(ones) is None
    fires = firing(passages, 0.006)
    split = sample_records(5, fires, passages)
    counted = []
    for wrong_marks in ("mean", "alike"):
        trial = fuzzing_trial(5, split, fires, passages, wrong_marks=wrong_marks)
        items = [item for group in trial.groups for item in group]
        found = by_count(items)
        assert found is not None
        counted.append(found)
        marks = {label: np.mean([sum(item.marked) for item in items if item.label == label]) for label in (True, False)}
        assert (marks[False] == 2) if wrong_marks == "mean" else (abs(marks[False] - marks[True]) < 0.25)
    assert counted[0] > 0.8
    assert counted[1] < 0.65


def judged(passages: Passages, density: float, judge_of: Callable[[Trial], ScriptedJudge]) -> dict:
    fires = firing(passages, density)
    trial = fuzzing_trial(5, sample_records(5, fires, passages), fires, passages)
    requests = fuzzing_requests(trial, "x")
    assert len(requests) == len(trial.groups)
    return fuzzing_score(trial, ask(trial, requests, judge_of(trial)))


def knowing(trial: Trial) -> ScriptedJudge:
    answers = {
        r.messages: [int(item.label) for item in group]
        for r, group in zip(fuzzing_requests(trial, "x"), trial.groups, strict=True)
    }
    return ScriptedJudge(lambda request: json.dumps(answers[request.messages]))


@pytest.mark.parametrize("density", [0.003, 0.12, 0.4])
def test_who_knows_scores_one(passages: Passages, density: float) -> None:
    scores = judged(passages, density, knowing)
    assert scores["fuzzing"] == scores["fuzzing_f1"] == 1
    assert scores["fuzzing_failed"] == 0


def test_chance_is_a_half_and_garbage_null(passages: Passages) -> None:
    rng = np.random.default_rng(0)

    def guess(request: Request) -> str:
        return json.dumps(rng.integers(0, 2, 5).tolist())

    scores = [judged(passages, 0.003, lambda _t: ScriptedJudge(guess))["fuzzing"] for _ in range(8)]
    assert np.mean(scores) == pytest.approx(0.5, abs=0.06)
    garbage = judged(passages, 0.003, lambda _t: ScriptedJudge(lambda _r: "[1, 1"))
    assert garbage["fuzzing"] is None
    assert garbage["fuzzing_failed"] == 1
    assert "malformed" in garbage["reason"]


def test_a_feature_that_always_fires_has_a_reason_instead_of_a_score(passages: Passages) -> None:
    doc, pos = passages.measured_positions()
    always = Fires(doc, pos, np.ones(len(doc), dtype=np.float32))
    split = sample_records(5, always, passages)
    judge = ScriptedJudge(lambda _r: "[1]")
    scores = fuzzing(5, "x", split, always, passages, judge)
    assert scores["fuzzing"] is None
    assert "0 for wrong ones" in str(scores["reason"])
    assert judge.asked == []


def test_the_question_shows_the_marks_and_nothing_of_the_labels(passages: Passages) -> None:
    fires = firing(passages, 0.003)
    trial = fuzzing_trial(5, sample_records(5, fires, passages), fires, passages)
    for request, group in zip(fuzzing_requests(trial, "x"), trial.groups, strict=True):
        lines = request.messages[-1][1].split("\n")[2:-1]
        for line, item in zip(lines, group, strict=True):
            marked = np.array(item.marked)
            assert line.count("«") == line.count("»") == int((np.diff(marked, prepend=False) & marked).sum())
    order = [item.label for group in trial.groups for item in group]
    assert sum(a != b for a, b in pairwise(order)) > 10
