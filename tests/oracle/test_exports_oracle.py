"""Exported files, read by those they are for: SAEBench's schemas and classes, SAEDashboard's classes."""

from __future__ import annotations

import importlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from tests.exports.planted import plant_evaluations

from monosem.exports import export_features, export_results
from monosem.store import read_json

pytestmark = pytest.mark.oracle
pytest.importorskip("sae_bench")
jsonschema: Any = pytest.importorskip("jsonschema")
dashboard: Any = pytest.importorskip("sae_dashboard.neuronpedia.neuronpedia_dashboard")

CLASSES = {
    "core": "CoreEvalOutput",
    "sparse_probing": "SparseProbingEvalOutput",
    "ravel": "RAVELEvalOutput",
    "autointerp": "AutoInterpEvalOutput",
}
NAMES = {
    ("model_performance_preservation", "ce_loss_score"): "ce_recovered",
    ("model_performance_preservation", "ce_loss_with_sae"): "ce_sae",
    ("model_behavior_preservation", "kl_div_with_sae"): "kl",
    ("reconstruction_quality", "explained_variance"): "explained_variance",
    ("shrinkage", "relative_reconstruction_bias"): "gamma",
    ("sparsity", "l0"): "l0",
}


@pytest.fixture
def files(study: Path, tmp_path: Path) -> list[Path]:
    """The result files of a study with everything that SAEBench has a file for, of every run."""
    for path in (study / "saes").iterdir():
        plant_evaluations(study, path.name)
    return export_results(study, tmp_path / "out")


def read_by_saebench(path: Path) -> Any:
    """Return the file as SAEBench's own class."""
    from pydantic import TypeAdapter

    kind = path.parent.name
    module = importlib.import_module(f"sae_bench.evals.{kind}.eval_output")
    return TypeAdapter(getattr(module, CLASSES[kind])).validate_python(read_json(path))


def test_every_file_validates_against_its_schema(files: list[Path]) -> None:
    assert sorted({path.parent.name for path in files}) == sorted(CLASSES)
    assert len(files) == 2 * len(CLASSES)
    for path in files:
        kind = path.parent.name
        schema = resources.files("sae_bench") / "evals" / kind / f"eval_output_schema_{kind}.json"
        validator = jsonschema.Draft202012Validator(json.loads(schema.read_text()))
        assert [error.message for error in validator.iter_errors(read_json(path))] == [], path


def test_their_classes_have_no_field_that_is_ours_alone_or_left_to_a_default(files: list[Path]) -> None:
    for path in files:
        read, written = json.loads(read_by_saebench(path).to_json()), read_json(path)
        assert set(written) == set(read)
        assert written["eval_config"] == {k: v for k, v in read["eval_config"].items() if k in written["eval_config"]}
        assert set(written["eval_config"]) == set(read["eval_config"]), path
        assert written["eval_result_metrics"] == read["eval_result_metrics"], path
        if path.parent.name != "ravel":
            assert written["eval_result_details"] == read["eval_result_details"], path


def test_what_saebench_reads_are_the_numbers_of_the_summary(study: Path, files: list[Path]) -> None:
    runs = {run["name"]: run for run in read_json(study / "summary.json")["runs"]}
    cores = [read_by_saebench(path) for path in files if path.parent.name == "core"]
    assert {core.sae_lens_id for core in cores} == set(runs)
    for core in cores:
        run, metrics = runs[core.sae_lens_id], core.eval_result_metrics
        assert {name: getattr(getattr(metrics, group), name) for group, name in NAMES} == {
            name: run[ours]["value"] for (_, name), ours in NAMES.items()
        }
        assert len(core.eval_result_details) == run["d_sae"]


def test_saedashboard_reads_the_batches_and_writes_them_alike(study: Path, tmp_path: Path) -> None:
    export_features(study, tmp_path / "features", features=0, format="saedashboard")
    paths = sorted((tmp_path / "features").rglob("batch-*.json"))
    assert len(paths) == 2
    for path in paths:
        written = read_json(path)
        assert dashboard.NeuronpediaDashboardBatch(**written).to_dict() == written


def test_a_schema_would_notice(files: list[Path]) -> None:
    path = next(path for path in files if path.parent.name == "core")
    schema = resources.files("sae_bench") / "evals" / "core" / "eval_output_schema_core.json"
    validator = jsonschema.Draft202012Validator(json.loads(schema.read_text()))
    spoilt = read_json(path)
    del spoilt["eval_result_metrics"]["sparsity"]["l0"]
    spoilt["eval_result_metrics"]["shrinkage"]["l2_ratio"] = None
    assert len(list(validator.iter_errors(spoilt))) == 2
