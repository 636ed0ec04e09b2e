"""Features in SAEDashboard's and Neuronpedia's files: keys, numbers, and what a second export leaves of the first."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from monosem.app.export import pick
from monosem.app.study import Study
from monosem.exports import export_features
from monosem.exports import saedashboard as dashboard
from monosem.exports.facts import facts_of
from monosem.store import read_json, write_json
from monosem.types import UserError
from tests.app.study import D_IN, D_SAE, DEAD, DENSE, make_study

RUN = "topk-k4"
BATCH = {"model_id", "layer", "sae_set", "sae_id_suffix", "features"}
FEATURE = {
    "feature_index", "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1",
    "correlated_neurons_indices", "correlated_neurons_l1", "correlated_neurons_pearson", "correlated_features_indices",
    "correlated_features_l1", "correlated_features_pearson", "neg_str", "neg_values", "pos_str", "pos_values",
    "frac_nonzero", "freq_hist_data_bar_values", "freq_hist_data_bar_heights", "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values", "n_prompts_total", "n_tokens_in_prompt", "dataset", "decoder_weights_dist",
    "activations", "vector",
}  # fmt: skip
TEXT = {"bin_min", "bin_max", "bin_contains", "tokens", "values", "qualifying_token_index"}
NEURONPEDIA = {
    "release": {
        "name", "description", "creatorName", "creatorId", "visibility", "isNewUi", "featured", "descriptionShort",
        "urls", "creatorEmail", "creatorNameShort", "defaultSourceSetName", "defaultSourceId", "defaultUmapSourceIds",
        "createdAt",
    },
    "model": {
        "id", "instruct", "creatorId", "displayNameShort", "displayName", "tlensId", "dimension", "visibility",
        "defaultSourceSetName", "defaultSourceId", "inferenceEnabled", "layers", "neuronsPerLayer", "createdAt",
        "owner", "updatedAt", "website",
    },
    "sourceset": {
        "modelId", "name", "creatorId", "hasDashboards", "visibility", "description", "type", "creatorName", "urls",
        "creatorEmail", "releaseName", "defaultOfModelId", "defaultRange", "defaultShowBreaks", "showDfa",
        "showCorrelated", "showHeadAttribution", "showUmap", "createdAt",
    },
    "source": {
        "id", "modelId", "setName", "creatorId", "hasDashboards", "inferenceEnabled", "inferenceHosts",
        "saelensConfig", "saelensRelease", "saelensSaeId", "hfRepoId", "hfFolderId", "visibility", "defaultOfModelId",
        "hasUmap", "hasUmapLogSparsity", "hasUmapClusters", "num_prompts", "num_tokens_in_prompt", "dataset", "notes",
        "createdAt",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made-up study, with what real ones say of model and text."""
    folder = make_study(tmp_path_factory.mktemp("study"))
    header = {"context": 24, "text": {"source": "owner/texts"}}
    write_json(folder / "activations" / "meta.json", {"header": header})
    for path in folder.glob("saes/*/cfg.json"):
        cfg = read_json(path)
        write_json(path, cfg | {"monosem": cfg["monosem"] | {"model": "owner/Tiny Model-Instruct"}})
    return folder


def features_of(where: Path) -> list[dict[str, Any]]:
    return [one for path in sorted(where.glob("batch-*.json")) for one in read_json(path)["features"]]


def lines_of(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    return [json.loads(line) for line in text.splitlines()]


def test_batches_have_every_key_and_say_whose_they_are(folder: Path, tmp_path: Path) -> None:
    where = export_features(folder, tmp_path, runs="topk*", features=0, format="saedashboard")
    assert where == tmp_path / RUN
    batch = read_json(where / "batch-0.json")
    assert set(batch) == BATCH
    assert [batch[key] for key in ("model_id", "layer", "sae_set", "sae_id_suffix")] == [
        "tiny-model-instruct", 1, "made-up", RUN,
    ]  # fmt: skip
    assert [one["feature_index"] for one in batch["features"]] == list(range(D_SAE))
    for one in batch["features"]:
        assert set(one) == FEATURE
        assert all(set(text) == TEXT for text in one["activations"])
        assert (one["n_prompts_total"], one["n_tokens_in_prompt"], one["dataset"]) == (40, 24, "owner/texts")


def test_numbers_are_those_of_the_codes(folder: Path, tmp_path: Path) -> None:
    one = features_of(export_features(folder, tmp_path, runs=RUN, features=0, format="saedashboard"))[DENSE]
    firings = Study(folder).firings(RUN)
    fires = firings.of(DENSE)
    assert one["frac_nonzero"] == len(fires.value) / firings.tokens
    assert sum(one["freq_hist_data_bar_heights"]) == len(fires.value)
    assert len(one["freq_hist_data_bar_heights"]) == len(one["freq_hist_data_bar_values"])
    peak = float(fires.value.max())
    middles = np.array(one["freq_hist_data_bar_values"])
    assert middles == pytest.approx((np.arange(48) + 0.5) * peak / 48, rel=1e-3)
    assert one["pos_values"] == sorted(one["pos_values"], reverse=True)
    assert one["neg_values"] == sorted(one["neg_values"])
    assert len(one["pos_str"]) == len(one["pos_values"]) == len(one["neg_str"]) == len(one["neg_values"]) == 10


def test_each_text_lies_in_its_interval(folder: Path, tmp_path: Path) -> None:
    one = features_of(export_features(folder, tmp_path, runs=RUN, features=0, format="saedashboard"))[DENSE]
    firings = Study(folder).firings(RUN)
    fires = firings.of(DENSE)
    peak = float(fires.value.max())
    top = [text for text in one["activations"] if text["bin_contains"] == -1]
    rest = one["activations"][len(top) :]
    assert len(top) == 20
    for text in top:
        assert (text["bin_min"], text["bin_max"]) == (-1, pytest.approx(peak, rel=1e-3))
    assert top[0]["values"][top[0]["qualifying_token_index"]] == pytest.approx(peak, rel=1e-3)
    assert len({text["bin_min"] for text in rest}) > 4
    for text in rest:
        value = text["values"][text["qualifying_token_index"]]
        assert len(text["tokens"]) == len(text["values"])
        assert text["bin_min"] * 0.999 <= value <= text["bin_max"] * 1.001
        inside = (fires.value >= text["bin_min"] * 0.9999) & (fires.value <= text["bin_max"] * 1.0001)
        assert text["bin_contains"] == pytest.approx(inside.sum() / firings.tokens, abs=2 / firings.tokens)


def test_alignment_is_that_of_the_unit_decoder_row(folder: Path, tmp_path: Path) -> None:
    one = features_of(export_features(folder, tmp_path, runs=RUN, features=0, format="saedashboard"))[9]
    row = load_file(folder / "saes" / RUN / "sae_weights.safetensors")["W_dec"][9]
    order = sorted(range(D_IN), key=lambda i: -row[i])[:3]
    assert one["neuron_alignment_indices"] == order
    assert one["neuron_alignment_values"] == pytest.approx(row[order] / np.linalg.norm(row), rel=1e-3)
    assert one["neuron_alignment_l1"] == pytest.approx(abs(row[order]) / abs(row).sum(), rel=1e-3)


def test_a_dead_feature_has_empty_lists(folder: Path, tmp_path: Path) -> None:
    one = features_of(export_features(folder, tmp_path, runs=RUN, features=0, format="saedashboard"))[DEAD]
    assert one["frac_nonzero"] == 0
    assert one["activations"] == one["freq_hist_data_bar_heights"] == one["freq_hist_data_bar_values"] == []
    assert len(one["pos_str"]) == 10


def test_files_hold_a_batch_each_and_old_ones_go(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "BATCH", 25)
    export_features(folder, tmp_path, runs=RUN, features=0, format="saedashboard")
    sizes = [len(read_json(tmp_path / RUN / f"batch-{i}.json")["features"]) for i in range(3)]
    assert sizes == [25, 25, 10]
    (tmp_path / RUN / "notes.json").write_text("{}")
    export_features(folder, tmp_path, runs=RUN, features=30, format="saedashboard")
    assert sorted(path.name for path in (tmp_path / RUN).iterdir()) == ["batch-0.json", "batch-1.json", "notes.json"]
    assert len(features_of(tmp_path / RUN)) == 30
    where = export_features(folder, tmp_path, runs=RUN, features=0, format="neuronpedia")
    explained = [row["index"] for path in sorted(where.glob("explanations/*")) for row in lines_of(path)]
    assert explained == ["1", "9", "11"]
    export_features(folder, tmp_path, runs=RUN, features=5, format="neuronpedia")
    assert [path.name for path in (where / "features").iterdir()] == ["batch-0.jsonl.gz"]


def test_features_are_spread_evenly_over_those_that_fire(folder: Path) -> None:
    study = Study(folder)
    picked = pick(study, study.runs()[RUN], 5)
    assert len(picked) == 5
    assert DEAD not in picked
    assert (np.diff(picked) > 8).all()


def test_neuronpedia_gets_the_rows_of_its_tables(folder: Path, tmp_path: Path) -> None:
    where = export_features(folder, tmp_path, runs=RUN, features=0, format="neuronpedia")
    assert where == tmp_path / "tiny-model-instruct" / f"1-made-up__{RUN}"
    rows = {name: lines_of(where / f"{name}.jsonl") for name in NEURONPEDIA}
    assert {name: set(found[0]) for name, found in rows.items()} == NEURONPEDIA
    assert all(len(found) == 1 for found in rows.values())
    model, release, source_set, source = (rows[name][0] for name in ("model", "release", "sourceset", "source"))
    assert (model["id"], model["instruct"]) == ("tiny-model-instruct", True)
    assert source_set["releaseName"] == release["name"]
    assert source["setName"] == source_set["name"]
    assert source["modelId"] == source_set["modelId"] == model["id"]
    assert source["id"] == where.name
    features, texts = (lines_of(where / name / "batch-0.jsonl.gz") for name in ("features", "activations"))
    assert [one["index"] for one in features] == [str(i) for i in range(D_SAE)]
    places = {(one["modelId"], one["layer"], one["index"]) for one in features}
    assert places == {("tiny-model-instruct", source["id"], str(i)) for i in range(D_SAE)}
    assert {(text["modelId"], text["layer"], text["index"]) for text in texts} < places
    assert len({text["id"] for text in texts}) == len(texts)
    assert all(len(text["id"]) == 25 and text["id"][0] == "c" for text in texts)
    assert {one["hookName"] for one in features} == {"blocks.1.hook_resid_post"}


def test_neuronpedia_has_the_numbers_of_the_batches(folder: Path, tmp_path: Path) -> None:
    batch = features_of(export_features(folder, tmp_path / "a", runs=RUN, features=0, format="saedashboard"))
    where = export_features(folder, tmp_path / "b", runs=RUN, features=0, format="neuronpedia")
    features, texts = (lines_of(where / name / "batch-0.jsonl.gz") for name in ("features", "activations"))
    firings = Study(folder).firings(RUN)
    for one, theirs in zip(batch, features, strict=True):
        shared = set(one) & set(theirs) - {"vector"}
        assert len(shared) == 19
        assert {key: one[key] for key in shared} == {key: theirs[key] for key in shared}
        peak = firings.of(one["feature_index"]).value.max(initial=0)
        assert theirs["maxActApprox"] == pytest.approx(peak, rel=1e-3)
        own = [text for text in texts if text["index"] == theirs["index"]]
        assert [text["tokens"] for text in own] == [text["tokens"] for text in one["activations"]]
    for text in texts:
        assert text["values"][text["maxValueTokenIndex"]] == text["maxValue"] == max(text["values"])
        assert text["minValue"] == min(text["values"])


def test_explanations_name_no_row_of_tables_that_are_not_ours(folder: Path, tmp_path: Path) -> None:
    where = export_features(folder, tmp_path, runs=RUN, features=0, format="neuronpedia")
    rows = lines_of(where / "explanations" / "batch-0.jsonl.gz")
    assert [(row["index"], row["description"]) for row in rows] == [
        ("1", f"Names of months, {RUN}"),
        ("9", "<script>alert(2)</script> a date"),
        ("11", "months and the names of days"),
    ]
    assert {(row["typeName"], row["explanationModelName"]) for row in rows} == {(None, None)}
    assert rows[0]["notes"] == "monosem autointerp; by tiny@http://127.0.0.1:8080/v1; pearson 0.5; detection 0.875"


def test_exporting_again_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    study = read_json(folder / "summary.json")
    write_json(folder / "summary.json", study | {"created": "2026-01-02T03:04:05+00:00"})
    for name in ("a", "b"):
        export_features(folder, tmp_path / name, runs=RUN, features=4, format="neuronpedia")
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*") if path.is_file()]
    assert len(files) >= 6
    for path in files:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes(), path


@pytest.mark.parametrize(
    ("site", "layer"),
    [("blocks.10.hook_resid_post", 10), ("transformer.h.3.mlp", 3), ("layers.7", 7), ("embed", 0), ("gpt2.wte", 0)],
)
def test_the_layer_is_the_number_in_the_site(folder: Path, site: str, layer: int) -> None:
    study = Study(folder)
    run = study.runs()[RUN]
    assert facts_of(study, type(run)(run.name, run.variant, run.d_sae, site, {})).layer == layer


def test_a_study_cannot_name_a_folder_elsewhere(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", (RUN,))
    summary = read_json(folder / "summary.json")
    write_json(folder / "summary.json", summary | {"study": "../../../../../outside", "model": "../.."})
    where = export_features(folder, tmp_path / "out" / "deep", features=2, format="neuronpedia")
    assert where.resolve().is_relative_to(tmp_path / "out" / "deep")
    assert {path.name for path in tmp_path.iterdir()} == {"study", "out"}


def test_unknown_formats_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="known are html, saedashboard, neuronpedia"):
        export_features(folder, tmp_path, format="pdf")
