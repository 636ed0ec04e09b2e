"""IOI on the embedded model: it does the task, and codes made from true attributes change who is the subject."""

from __future__ import annotations

import polars as pl
import pytest

from monosem.evals.ioi.circuit import residual
from monosem.evals.ioi.judging import cases_of, floor_rows, supervised_rows
from monosem.evals.ioi.lines import necessity, success, sufficiency
from monosem.evals.ioi.patching import task_of, unedited
from monosem.evals.ioi.prompts import draw, words_of
from monosem.model import load_model


@pytest.mark.slow
@pytest.mark.lm
def test_supervised_codes_at_the_second_subject_stand_in_for_it_and_edit_it() -> None:
    model = load_model(dtype="float32", device="cpu")
    words = words_of(model.tokenizer, 16, model.name)
    test = task_of(model, draw(words, 36, 0, held_out=True))
    train = task_of(model, draw(words, 256, 0, held_out=False))
    clean = unedited(test)
    assert (clean.top == test.names[test.prompts.labels[:, 1]]).mean() > 0.8
    assert 4 < clean.ld.mean() < 7
    place = residual(model, "blocks.10.hook_resid_post", "S2", model.lm.config.hidden_size)
    (case,) = cases_of(train, test, [place], 0)
    floor, found = floor_rows(case), supervised_rows(case)
    unchanged = floor.filter(criterion="edit", method="unchanged")
    hits = {a: float(unchanged.filter(attribute=a)["hit"].cast(pl.Float64).to_numpy().mean()) for a in ("S", "Pos")}
    assert hits["S"] < 0.75  # patching S changes who is named
    assert hits["Pos"] > 0.9  # which of the two stood first is not told at this place yet
    codes = found.filter(name="least squares")
    edits = success(codes.filter(criterion="edit", attribute="S"))
    assert edits is not None
    assert edits.value > 0.8
    approximations = pl.concat([floor, codes]).filter(criterion="approximation")
    enough, needed = sufficiency(approximations), necessity(approximations)
    assert enough is not None
    assert needed is not None
    assert enough.value == pytest.approx(1, abs=0.1)
    assert needed.value > 0.8
