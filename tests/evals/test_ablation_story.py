"""The evaluation `ablation` on a whole study: exact and to first order, repeats, what is missing, report and pages."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file, save_file
from starlette.testclient import TestClient

from monosem.app import make_app
from monosem.app.effects import effects_of
from monosem.app.study import Study
from monosem.evals import Inputs, Judged, Result, RunInfo, make_evaluation
from monosem.evals.ablation import starts
from monosem.evals.ablation.charts import ablation_charts
from monosem.evals.ablation.table import KINDS, as_table, paired_difference, scalars_of
from monosem.passages import open_passages
from monosem.store import file_hash
from monosem.types import Estimate, UserError

from ..conftest import cli

RUN, OTHER = "topk-k8", "standard-l1_0.5-d_sae_32"
EXACT = {"effect_sparsity", "effect_sparsity_weighted", "effect_sparsity_random", "effect_sparsity_neuron"}
EXACT |= {"effect_sparsity_pca", "effect_sparsity_difference", "undefined_share", "loss_effect"}
EXACT |= {"first_order_correlation"}
SMALL = ["--set", "sequences=10", "--set", "features=3"]


def result(folder: Path, run: str = RUN) -> tuple[dict[str, Any], pl.DataFrame]:
    where = folder / "results" / run / "ablation"
    return json.loads((where / "result.json").read_text()), pl.read_parquet(where / "rows.parquet")


def test_story(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("eval", "ablation", study, *SMALL) == 0
    assert "2 runs judged, 0 reused" in capsys.readouterr().out
    stored, rows = result(study)
    assert set(stored["scalars"]) == EXACT | {"first_order_effect", "l0", "seconds"}
    assert all(stored["scalars"].values())
    assert stored["scalars"]["l0"]["value"] == 8
    for name in EXACT - {"undefined_share", "loss_effect", "effect_sparsity_difference", "first_order_correlation"}:
        e = stored["scalars"][name]
        assert 0 < e["low"] < e["value"] < e["high"] < 1, name
    assert stored["scalars"]["first_order_correlation"]["value"] > 0.5
    features = rows.filter(pl.col("kind") == "feature")
    assert features.height == 80  # all eight active ones at ten positions, three of them ablated
    assert features["size"].count() == 30
    assert features["first_order"].count() == 80
    assert rows.filter(pl.col("kind") == "random").height == 20
    assert rows.filter(pl.col("kind") == "random")["feature"].null_count() == 20
    other = result(study, OTHER)[1]
    assert set(other["sequence"]) <= set(rows["sequence"])  # the same positions for all runs
    assert paired_difference(rows, other, 200) is not None
    charts = {c["id"]: c for c in json.loads((study / "results" / "ablation.charts.json").read_text())}
    assert set(charts) == {"ablation-l0", "ablation-difference", "ablation-answer", "ablation-paired"}
    names = [series["name"] for series in charts["ablation-l0"]["series"]]
    assert names == ["standard", "topk", "random directions", "residual coordinates", "principal components"]
    assert "Smaller is sparser" in charts["ablation-l0"]["note"]
    assert cli("report", study) == 0
    assert "Ablation effects" in (study / "report.html").read_text()


def test_repeated_and_interrupted(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise KeyboardInterrupt

    class_ = type(make_evaluation("ablation"))
    run = class_.run
    monkeypatch.setattr(class_, "run", lambda s, info, p: run(s, info, p) if info.name == OTHER else broken())
    assert cli("eval", "ablation", study, *SMALL) == 130
    monkeypatch.setattr(class_, "run", run)
    assert (study / "results" / OTHER / "ablation" / "result.json").exists()
    assert not (study / "results" / RUN / "ablation").exists()
    capsys.readouterr()
    monkeypatch.setattr(starts, "start_at", broken)  # what is common to all runs is on disk
    assert cli("eval", "ablation", study, *SMALL) == 0
    assert "1 runs judged, 1 reused" in capsys.readouterr().out
    before = result(study)[1]
    shutil.rmtree(study / "results" / RUN / "ablation")
    assert cli("eval", "ablation", study) == 0  # the last settings hold
    assert "1 runs judged, 1 reused" in capsys.readouterr().out
    assert result(study)[1].equals(before)
    monkeypatch.undo()
    (study / "ablation" / "starts.safetensors").write_bytes(b"cut off")
    assert cli("eval", "ablation", study, "--runs", RUN, *SMALL[:2], "--set", "features=2") == 0  # made anew
    assert result(study)[1]["size"].count() == 40
    assert cli("eval", "ablation", study, "--runs", RUN, "--set", "sequences=7") == 0  # so are other positions
    assert result(study)[1]["sequence"].n_unique() == 7


def test_first_order_alone(study: Path) -> None:
    assert cli("eval", "ablation", study, "--set", "method=gradient", "--set", "sequences=12") == 0
    stored, rows = result(study)
    assert {name for name, value in stored["scalars"].items() if value is None} == EXACT - {
        "effect_sparsity_neuron",
        "effect_sparsity_pca",
    }
    assert "gradient" in stored["reasons"]["effect_sparsity"]
    assert rows.height == 96
    assert rows["first_order"].count() == 96
    assert rows["size"].count() == 0
    assert (study / "ablation" / "starts.safetensors").stat().st_size < 50_000  # no prefixes
    charts = json.loads((study / "results" / "ablation.charts.json").read_text())
    assert charts[0]["title"] == "Effects of features on the loss, to first order"
    assert cli("eval", "ablation", study, *SMALL) == 0
    exact = result(study)[1].filter(pl.col("kind") == "feature")
    both = exact.join(rows, ["sequence", "pos", "feature"], suffix="_gradient")
    assert both.height > 0
    assert np.allclose(both["first_order"], both["first_order_gradient"], rtol=1e-4, atol=1e-7)


def test_a_text_that_is_too_short_is_told(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = study / "activations" / "tokens.safetensors"
    tensors = load_file(path)
    tensors["eval.doc"] = np.arange(tensors["eval.doc"].size, dtype=np.int32).reshape(tensors["eval.doc"].shape)
    save_file(tensors, path)
    meta = json.loads((study / "activations" / "meta.json").read_text())
    meta["tokens_sha256"] = file_hash(path)
    (study / "activations" / "meta.json").write_text(json.dumps(meta))
    assert cli("eval", "ablation", study) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "no held-out token has 8 tokens before it and 16 of its document behind it" in said
    assert "model.context of at least 25" in said


def test_without_a_model_it_says_so(study: Path) -> None:
    with pytest.raises(UserError, match="language model"):
        make_evaluation("ablation").prepare(Inputs(study, []))


def test_runs_without_active_features_and_single_documents_have_reasons() -> None:
    empty = as_table([])
    scalars, reasons = scalars_of(empty, np.array([0, 1]), {}, 100, True)
    assert all(value is None for value in scalars.values())
    assert set(reasons.values()) == {"no feature is active at any of the positions"}
    row = {"kind": "feature", "sequence": 0, "doc": 0, "pos": 9, "token": 1, "feature": 3, "first_order": 0.1}
    row |= {"sparsity": float("nan"), "size": 0.0, "loss": 0.0, "activation": 1.0}
    scalars, reasons = scalars_of(as_table([row]), np.array([0]), {"pca": np.full((1, 1), np.nan)}, 100, True)
    assert scalars["effect_sparsity"] is None
    assert "fewer than two documents" in reasons["effect_sparsity"]
    two = as_table([row, {**row, "doc": 1, "sequence": 1, "sparsity": 0.25}])
    assert two["sparsity"].null_count() == 1  # undefined
    scalars, _ = scalars_of(two, np.array([0, 1]), {}, 100, True)
    assert scalars["undefined_share"] is not None
    assert scalars["undefined_share"].value == 0.5
    info = RunInfo("a", "topk", {}, 0, 4, "x", Path())
    charts = ablation_charts([Judged(info, Result({"l0": Estimate.exact(0, 9)}, empty))])
    assert [chart.id for chart in charts] == ["ablation-answer"]


def write_rows(folder: Path, run: str, sae: str, rows: list[dict[str, Any]]) -> None:
    where = folder / "results" / run / "ablation"
    where.mkdir(parents=True, exist_ok=True)
    as_table(rows).write_parquet(where / "rows.parquet")
    (where / "result.json").write_text(json.dumps({"header": {"sae": sae}, "scalars": {}, "reasons": {}}))


def test_pages_show_what_a_feature_does(study: Path) -> None:
    sae = json.loads((study / "saes" / RUN / "cfg.json").read_text())["monosem"]["weights_sha256"]
    lists = {name: [] for name in KINDS if name.startswith(("raised", "lowered"))}
    base: dict[str, Any] = {"kind": "feature", "sequence": 0, "doc": 0, "pos": 9, "token": 1, "feature": 5, **lists}
    ablated = {**base, "size": 1.0, "sparsity": 0.25, "loss": 0.5, "first_order": 0.75}
    rows = [
        {**ablated, "raised_here": [40, 41], "raised_here_by": [3.0, 1.0]},
        {**ablated, "raised_here": [41, 42], "raised_here_by": [4.0, 0.5], "sparsity": 0.75},
        {**base, "first_order": 0.0},
        {**base, "kind": "random", "feature": None, "size": 2.0},
    ]
    write_rows(study, RUN, sae, rows)
    found = effects_of(Study(study), RUN, 5, open_passages(study))
    assert found is not None
    assert (found.active, found.number, found.sparsity, found.loss, found.first_order) == (3, 2, 0.5, 0.5, 0.5)
    assert [title for title, _, _ in found.sides] == ["At this token", "At the 15 after it"]
    vocabulary = open_passages(study).vocabulary
    raised = [(one.text, one.value) for one in found.sides[0][1]]
    assert raised == [(vocabulary[41], 2.5), (vocabulary[40], 1.5), (vocabulary[42], 0.25)]
    assert found.sides[1][1:] == ([], [])
    assert effects_of(Study(study), RUN, 6, open_passages(study)) is None
    page = TestClient(make_app(study), base_url="http://127.0.0.1").get(f"/run/{RUN}/feature/5").text
    assert "Effects, by ablation" in page
    assert re.search(r"2 of 3 sampled firings ablated", page)
    assert (
        "Effects, by ablation"
        not in TestClient(make_app(study), base_url="http://127.0.0.1").get(f"/run/{RUN}/feature/6").text
    )
    write_rows(study, RUN, "other weights", rows)
    assert effects_of(Study(study), RUN, 5, open_passages(study)) is None
    (study / "results" / RUN / "ablation" / "rows.parquet").write_bytes(b"damaged")
    assert effects_of(Study(study), RUN, 5, open_passages(study)) is None


def test_the_benchmark_runs(tiny_lm: Path, corpus: Path, tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "ablation.py"
    small = ["--site", "blocks.1.hook_mlp_out", "--context", "32", "--positions", "2", "--features", "4"]
    command = [sys.executable, str(script), "--model", str(tiny_lm), "--text", str(corpus), *small]
    out = tmp_path / "ablation.json"
    done = subprocess.run([*command, "--json", str(out)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["ablations"] == 8
    assert found["largest_difference"] < 1e-4 < found["largest_effect"]
    assert found["largest_difference_sparsity"] < 1e-2  # torch's median of an even number is the lower one
    assert "loop_to_ours" in done.stdout
