"""RAVEL on the embedded model: whole activations carry a city's country until the last layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from monosem.evals.ravel import some_entities
from monosem.evals.ravel.answers import answered
from monosem.evals.ravel.defaults import default_types
from monosem.evals.ravel.disentangle import Key, intervals
from monosem.evals.ravel.edits import Full
from monosem.evals.ravel.judging import interventions
from monosem.evals.ravel.sets import draw, make_world
from monosem.model import load_model
from monosem.progress import Ticker


@pytest.mark.slow
@pytest.mark.lm
def test_a_whole_activation_brings_the_country_at_layer_10_and_nothing_at_26(tmp_path: Path) -> None:
    model = load_model(dtype="float32", device="cpu")
    cities = some_entities(default_types(["city"])[0], 40, seed=0)
    some = {attribute: [own[i] for i in (0, 5, 7)] for attribute, own in cities.templates.items()}
    kind = replace(cities, templates={attribute: some[attribute] for attribute in ("Country", "Continent")})
    found = answered(tmp_path, model, kind, {}, 3, 4, Ticker())
    assert found.rows["right"].mean() > 0.7  # pyright: ignore[reportOperatorIssue]
    drawn = draw([found], 16, 8, 0)
    cause, isolate = {}, {}
    for layer in (10, 26):
        world = make_world(model, model.site(f"blocks.{layer}.hook_resid_post"), [found], drawn, 0, Ticker())
        rows = interventions(world, "full", ("city", "Country"), Full(model.lm.config.hidden_size))
        scores = intervals(rows, 100)[Key()]
        assert scores["cause"] is not None
        assert scores["isolate"] is not None
        assert scores["cause"].n == scores["isolate"].n == 32
        cause[layer], isolate[layer] = scores["cause"].value, scores["isolate"].value
    assert cause[10] > 0.6
    assert isolate[10] < 0.4
    assert cause[26] < 0.1
    assert isolate[26] > 0.9
