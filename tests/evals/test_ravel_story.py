"""The evaluation `ravel` on a whole study: scores, repeats, interruptions, report, what is missing.

The tiny model is random, so the data are made from its own answers: it knows all of them.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from monosem.evals.ravel import interchange
from monosem.evals.ravel.answers import greedy
from monosem.evals.ravel.prompts import prompts_of
from monosem.evals.ravel.table import BASELINES, SAE_METHODS
from monosem.evals.ravel.training import Checkpoint
from monosem.model import load_model

from ..conftest import cli

RUN = "topk-k8"
SMALL = ["--set", "pairs=24", "--set", "train_pairs=48", "--set", "steps=8", "--set", "rank=4"]
SMALL += ["--set", "mask_steps=8"]
SMALL += ["--set", "answer_tokens=1"]
TEMPLATES = {
    "Colour": {"train": ["the %s in", "it was %s of"], "val": ["a %s"], "test": ["old %s and"]},
    "Sound": {"train": ["%s then", "under %s it"], "val": ["of the %s"], "test": ["sees %s over"]},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path) -> Path:
    """Return a folder in the authors' layout: 720 made-up words, whose attributes are what the model says of them."""
    folder = tmp_path_factory.mktemp("ravel_data")
    model = load_model(str(tiny_lm), dtype="float32", device="cpu")
    entities = ["".join(parts) for parts in product("bcdfghklmnpr", "aeiou", ("t", "g", "n", "x"), ("ee", "ox", "um"))]
    attributes: dict[str, dict[str, str]] = {entity: {} for entity in entities}
    for attribute, templates in TEMPLATES.items():
        every = [template for some in templates.values() for template in some]
        texts = {}
        for template in every:
            prompts = [p for p in prompts_of(model.tokenizer, [(template, e) for e in entities]) if p is not None]
            for prompt, tokens in zip(prompts, greedy(model, prompts, 1), strict=True):
                texts[template, prompt.entity] = model.tokenizer.decode(tokens).strip()
        for i, entity in enumerate(entities):  # one template's answer, another one's for the next entity
            said = [texts.get((every[(i + step) % len(every)], entity), "") for step in range(len(every))]
            attributes[entity][attribute] = next((text for text in said if text.isalnum()), "nothing")
    splits = {entity: ("train", "val", "train", "test")[i // 4 % 4] for i, entity in enumerate(entities)}
    prompts = {a: [t for some in templates.values() for t in some] for a, templates in TEMPLATES.items()}
    prompt_splits = {t: split for templates in TEMPLATES.values() for split, some in templates.items() for t in some}
    files = {
        "ravel_word_entity_attributes": attributes,
        "ravel_word_attribute_to_prompts": prompts,
        "ravel_word_entity_to_split": splits,
        "ravel_word_prompt_to_split": prompt_splits,
        "wikipedia_word_entity_prompts": {"then the %s was": {"split": "train", "entity": None}},
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, finished_study: Path, data: Path) -> Path:
    """Return a study folder with two runs, one of them judged."""
    folder = Path(shutil.copytree(finished_study, tmp_path_factory.mktemp("ravelled") / "study"))
    assert cli("eval", "ravel", folder, "--runs", RUN, "--set", f"data={data}", *SMALL) == 0
    return folder


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "study"))


def result(folder: Path, run: str = RUN) -> tuple[dict[str, Any], pl.DataFrame]:
    where = folder / "results" / run / "ravel"
    return json.loads((where / "result.json").read_text()), pl.read_parquet(where / "rows.parquet")


def test_every_method_is_scored_on_the_same_pairs(finished: Path) -> None:
    stored, rows = result(finished)
    tested = rows.filter(pl.col("split") != "val")
    methods = {"svm", "svm+error", "mdbm", "mdbm+error", "none", *BASELINES}
    assert set(tested["method"]) == methods <= {*SAE_METHODS, *BASELINES}
    pair = ["target", "attribute", "split", "base", "source", "template", "source_template"]
    by_method = {method: own.select(pair) for (method,), own in tested.group_by("method", maintain_order=True)}
    assert by_method["full"].height == 2 * 2 * 2 * 24  # targets, attributes asked, splits, pairs
    assert all(own.equals(by_method["full"]) for own in by_method.values())
    for name in ("cause", "isolate", "disentangle"):
        for method in ("full", "mdbm", "svm_with_error", "random"):
            e = stored["scalars"][f"{method}_{name}"]
            assert 0 <= e["low"] <= e["value"] <= e["high"] <= 1
        assert stored["scalars"][name] == stored["scalars"][f"mdbm_{name}"]
    assert stored["scalars"]["full_cause"]["n"] == 2 * 2 * 24
    assert stored["scalars"]["l0"]["value"] == 8


def test_rows_say_what_was_answered(finished: Path) -> None:
    _, rows = result(finished)
    assert (rows["base_answer"] != rows["source_answer"]).all()
    own = pl.col("target") == pl.col("attribute")
    wanted = pl.when(own).then("source_answer").otherwise("base_answer")
    assert rows.filter(pl.col("hit"))["answer"].equals(rows.filter(pl.col("hit")).select(wanted).to_series())
    assert rows.filter(~pl.col("hit") & (pl.col("answer") == wanted)).height == 0  # a token is a text here
    curve = rows.filter(pl.col("split") == "val")
    assert set(curve["method"]) == {"none", "svm", "all"}
    sizes = curve.filter(pl.col("method") == "svm").group_by("target", "c").agg(pl.col("size").first()).sort("c")
    for _, one in sizes.group_by("target"):
        assert one["size"].is_sorted()
    assert curve.filter(method="all")["size"].unique().to_list() == [64]


def test_what_the_model_answers_is_in_the_scalars(finished: Path) -> None:
    stored, _ = result(finished)
    for attribute in TEMPLATES:
        assert stored["scalars"][f"templates/word/{attribute}"]["value"] == 4
        assert stored["scalars"][f"train_pairs/word/{attribute}"]["value"] == 48
        assert 0.2 < stored["scalars"][f"answered/word/{attribute}"]["value"] < 0.6


def test_the_other_run_uses_the_same_baselines_and_a_repeat_does_nothing(
    study: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the baselines were judged before")

    monkeypatch.setattr("monosem.evals.ravel.baselines._judged", never)
    monkeypatch.setattr("monosem.evals.ravel.answers.greedy", never)
    arguments = ["eval", "ravel", study, "--set", f"data={data}", *SMALL]
    assert cli(*arguments) == 0
    assert "1 runs judged, 1 reused" in capsys.readouterr().out
    one, other = (
        result(study, run)[1].filter(pl.col("method").is_in(list(BASELINES)))
        for run in (RUN, "standard-l1_0.5-d_sae_32")
    )
    assert one.equals(other)
    assert cli(*arguments) == 0
    assert "0 runs judged, 2 reused" in capsys.readouterr().out
    assert cli("report", study) == 0
    page = (study / "report.html").read_text()
    assert "RAVEL" in page
    assert "Single interventions" in page


@pytest.mark.parametrize("stop", [4, 60])  # in MDAS, and an SAE's mask
def test_an_interrupted_training_goes_on_to_the_same_result(
    study: Path, data: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    expected = result(study)[1]
    shutil.rmtree(study / "ravel")
    shutil.rmtree(study / "results" / RUN / "ravel")
    monkeypatch.setattr("monosem.evals.ravel.baselines.Checkpoint", partial(Checkpoint, every=0.0))
    arguments = ["eval", "ravel", study, "--runs", RUN, "--set", f"data={data}", *SMALL]
    losses, calls = interchange.Interchange.losses, []

    def interrupted(self: Any, at: Any, edited: Any) -> Any:
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return losses(self, at, edited)

    monkeypatch.setattr(interchange.Interchange, "losses", interrupted)
    assert cli(*arguments) == 130
    assert not (study / "results" / RUN / "ravel").exists()
    assert cli(*arguments) == 0
    assert len(calls) == 2 * (3 + 1) * 8 + 1  # steps of four trainings of two attributes: none was taken twice
    assert result(study)[1].equals(expected)


KILLED = """
import os, signal, sys
from functools import partial
from monosem.cli import run
from monosem.evals.ravel import baselines, interchange
from monosem.evals.ravel.training import Checkpoint

baselines.Checkpoint = partial(Checkpoint, every=0.0)
losses, calls = interchange.Interchange.losses, []

def killed(self, at, edited):
    calls.append(1)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return losses(self, at, edited)

interchange.Interchange.losses = killed
sys.argv[0] = "monosem"
run()
"""


def test_mdas_killed_midway_goes_on_to_the_same_result(
    study: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = result(study)[1]
    shutil.rmtree(study / "ravel")
    shutil.rmtree(study / "results" / RUN / "ravel")
    arguments = ["eval", "ravel", str(study), "--runs", RUN, "--set", f"data={data}", *SMALL]
    dead = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, check=False)
    assert dead.returncode == -signal.SIGKILL
    assert list((study / "ravel" / "trained").glob("mdas-*"))
    losses, calls = interchange.Interchange.losses, []

    def counted(self: Any, at: Any, edited: Any) -> Any:
        calls.append(1)
        return losses(self, at, edited)

    monkeypatch.setattr(interchange.Interchange, "losses", counted)
    assert cli(*arguments) == 0
    assert len(calls) == 2 * (3 + 1) * 8 - 3  # three steps were on disk
    assert result(study)[1].equals(expected)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["--set", "data=/nowhere"], "/nowhere"),
        (["--set", 'types=["planet"]'], "planet"),
        (["--set", 'attributes=["Smell"]'], 'attributes: "Smell" is not known; the types have Colour, Sound'),
        (
            ["--set", "rank=33"],
            "rank = 33: more directions than blocks.1.hook_resid_post has dimensions; use at most 32",
        ),
        (["--set", "pairs=3"], "pairs"),
        (["--set", "colour=3"], "colour: unknown setting"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(
    study: Path, data: Path, capsys: pytest.CaptureFixture[str], change: list[str], told: str
) -> None:
    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    assert cli("eval", "ravel", study, "--set", f"data={data}", *SMALL, *change) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error
    assert {path: path.read_bytes() for path in study.rglob("*") if path.is_file()} == before


def broken(data: Path, tmp_path: Path, file: str, change: Callable[[Any], Any]) -> Path:
    folder = Path(shutil.copytree(data, tmp_path / "broken"))
    path = folder / file
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    return folder


def test_an_entity_without_tokens_is_refused(
    study: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = broken(data, tmp_path, "ravel_word_entity_attributes.json", lambda all_: {**all_, "  ": {"Colour": "red"}})
    splits = folder / "ravel_word_entity_to_split.json"
    splits.write_text(json.dumps({**json.loads(splits.read_text()), "  ": "train"}))
    assert cli("eval", "ravel", study, "--set", f"data={folder}", *SMALL) == 2
    error = capsys.readouterr().err
    assert "ravel_word_entity_attributes.json" in error
    assert "Traceback" not in error


def test_too_few_answers_are_said(study: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = broken(
        data, tmp_path, "ravel_word_entity_attributes.json", lambda all_: {e: {"Colour": "zebra"} for e in all_}
    )
    assert cli("eval", "ravel", study, "--set", f"data={wrong}", *SMALL) == 0
    stored, rows = result(study)
    assert not rows.height
    assert {stored["scalars"][name] for name in ("cause", "isolate", "disentangle")} == {None}
    assert stored["reasons"]["disentangle"] == "no intervention was made on the test splits"
    assert stored["reasons"]["train_pairs/word/Colour"].startswith(
        "left out: too few pairs (0 on train, 0 on val entity"
    )
    assert cli("report", study) == 0
    assert "left out: too few pairs" in (study / "report.html").read_text()
