"""The evaluation `multidim` on studies: with a model that has the words and one that hasn't, on the embedded model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from monosem.evals.multidim import Multidim
from monosem.evals.multidim.asking import ask
from monosem.evals.multidim.tasks import tasks_of
from monosem.evals.multidim.use import used
from monosem.model import load_model
from monosem.progress import Ticker

from ..conftest import cli
from .days import day_model

RUN = "topk-k8"
SMALL = [part for one in ("fewest=100", "threshold=0.1", "layers=3") for part in ("--set", one)]


def result(folder: Path, run: str = RUN) -> tuple[dict[str, Any], pl.DataFrame]:
    where = folder / "results" / run / "multidim"
    return json.loads((where / "result.json").read_text()), pl.read_parquet(where / "rows.parquet")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, finished_study: Path) -> Path:
    """A study whose model has the words, counts them round by chance, and is said to do the tasks."""
    folder = Path(shutil.copytree(finished_study, tmp_path_factory.mktemp("multi") / "study"))
    model = day_model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("monosem.work.load_model", lambda *_a, **_k: model)
        patch.setattr("monosem.evals.multidim.use.SOLVES", 0.0)
        assert cli("eval", "multidim", folder, *SMALL) == 0
    return folder


def test_a_study_is_judged_and_shown(finished: Path) -> None:
    for run in (RUN, "standard-l1_0.5-d_sae_32"):
        stored, rows = result(finished, run)
        scalars = stored["scalars"]
        assert scalars["clusters"]["value"] >= scalars["judged_clusters"]["value"] > 0
        planes = rows.filter(kind="plane")
        assert planes["cluster"].n_unique() == scalars["judged_clusters"]["value"]
        assert planes["n"].min() >= 100  # pyright: ignore[reportOperatorIssue]
        best = planes.group_by("cluster").agg(pl.col("score").max()).sort("cluster")["score"]
        assert best.is_sorted(descending=True)
        shown = planes.filter(pl.col("low").is_not_null())
        assert ((shown["low"] <= shown["score"]) & (shown["score"] <= shown["high"])).all()
        points = rows.filter(kind="point")
        assert set(points["cluster"]) == set(shown["cluster"])
        assert points.null_count().select("x", "y", "doc", "pos", "label", "group").row(0) == (0,) * 6
        for cycle, m in (("weekdays", 7), ("months", 12)):
            held = rows.filter(kind="held", cycle=cycle)
            assert {"whole", "best feature"} <= set(held["method"])
            assert scalars[f"whole/{cycle}"]["n"] == scalars[f"circle_error/{cycle}"]["n"] == m
            patches = rows.filter(kind="patch", cycle=cycle)
            assert set(patches["n"]) == {m * (m - 1)}
            assert patches.height == 11 * 4  # three layers and the study's own
    assert cli("report", finished) == 0
    assert "Multi-dimensional features" in (finished / "report.html").read_text()


def test_effects_are_shares_of_that_of_the_whole_activation(finished: Path) -> None:
    _, rows = result(finished)
    effect = rows.filter(kind="effect", cycle="weekdays", method="whole")
    assert effect.sort("layer")["score"].to_list() == [pytest.approx(1), pytest.approx(1), pytest.approx(1), None]
    none = rows.filter(kind="effect", cycle="weekdays", method="unpatched")
    assert none.sort("layer")["score"].to_list() == [0.0, 0.0, 0.0, None]  # behind the last block, a word has none
    last = rows.filter(kind="parts", cycle="weekdays", method="residual", label="last token", layer=3)
    assert last["score"].item() == pytest.approx(1, abs=1e-4)  # behind the last block, nothing else counts


def test_what_is_known_of_the_model_is_not_asked_again(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "study"))
    before = (folder / "multidim" / "weekdays.parquet").stat().st_mtime_ns
    model = day_model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("monosem.work.load_model", lambda *_a, **_k: model)
        patch.setattr("monosem.evals.multidim.used", lambda *_a, **_k: pytest.fail("asked again"))
        assert cli("eval", "multidim", folder, *SMALL, "--set", "fewest=150") == 0
    assert (folder / "multidim" / "weekdays.parquet").stat().st_mtime_ns == before


def test_a_tokenizer_without_the_words_leaves_the_clusters(study: Path) -> None:
    assert cli("eval", "multidim", study, "--runs", RUN, *SMALL) == 0
    stored, rows = result(study)
    assert stored["scalars"]["clusters"]["value"] > 0
    assert stored["scalars"]["whole/weekdays"] is None
    assert "begin with the same token" in stored["reasons"]["whole/weekdays"]
    assert set(rows["kind"]) <= {"plane", "point"}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ('tasks=["years"]', 'tasks: "years" is not known; known are weekdays, months'),
        ("fewest=10", "fewest = 10: Input should be greater than or equal to 100"),
        ("method=kmeans", "method = 'kmeans'"),
        ("threshold=2", "threshold = 2"),
        ("depth=2", 'depth: unknown setting of evaluation "multidim"'),
    ],
)
def test_settings_that_make_no_sense_are_named(
    study: Path, capsys: pytest.CaptureFixture[str], setting: str, message: str
) -> None:
    assert cli("eval", "multidim", study, "--runs", RUN, "--set", setting) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert message in said
    assert not (study / "results" / RUN / "multidim").exists()


def test_settings_have_the_documented_defaults() -> None:
    found = Multidim()
    assert (found.method, found.k, found.threshold, found.fewest, found.bins) == ("graph", 2, 0.5, 200, 10)
    assert found.tasks == ["weekdays", "months"]


@pytest.mark.slow
@pytest.mark.lm
def test_the_embedded_model_keeps_weekdays_on_a_circle_and_uses_it() -> None:
    model = load_model(dtype="float32", device="cpu")
    asked = [ask(model, task) for task in tasks_of(["weekdays"])]
    with torch.random.fork_rng():
        rows = used([asked[0], asked[-1]], [10], 10, 0, Ticker())
    right = dict(rows.filter(kind="accuracy").select("method", "score").iter_rows())
    assert right["successor"] == pytest.approx(6 / 7)
    assert right["sum"] < 0.3  # it can't add days: nothing is patched there
    assert rows.filter(kind="patch")["template"].n_unique() == 1
    probe = rows.filter(kind="probe").row(0, named=True)
    assert probe["label"] == "7 of 7 (7 when left out)"
    assert 0.15 < probe["score"] < 0.4
    assert 1.5 < probe["null"] < 2
    assert probe["p"] < 0.01
    score = dict(rows.filter(kind="patch").select("method", "score").iter_rows())
    assert score["unpatched"] == pytest.approx(0.91, abs=0.05)
    assert score["circle"] == pytest.approx(-0.67, abs=0.05)
    assert score["whole"] == pytest.approx(-1.03, abs=0.05)
    assert score["random_plane"] == pytest.approx(0.9, abs=0.1)
    assert -0.2 < score["random_in_span"] < 0.6
