"""Result files in SAEBench's names: planted sums, hand-made tables, a real study's summary, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monosem.definitions import METRICS
from monosem.exports import export_results
from monosem.exports.saebench.weights import nearest
from monosem.store import read_json, write_json
from monosem.types import UserError
from tests.conftest import cli

from .planted import D_SAE, PROBED, RUN, TOKENS, Planted, plant, plant_evaluations

GROUPS = {
    "model_behavior_preservation": {"kl_div_score", "kl_div_with_ablation", "kl_div_with_sae"},
    "model_performance_preservation": {
        "ce_loss_score", "ce_loss_with_ablation", "ce_loss_with_sae", "ce_loss_without_sae",
    },
    "reconstruction_quality": {"explained_variance", "explained_variance_legacy", "mse", "cossim"},
    "shrinkage": {"l2_norm_in", "l2_norm_out", "l2_ratio", "relative_reconstruction_bias"},
    "sparsity": {"l0", "l1"},
    "token_stats": {"total_tokens_eval_reconstruction", "total_tokens_eval_sparsity_variance"},
    "misc_metrics": {
        "freq_over_1_percent", "freq_over_10_percent", "normalized_freq_over_1_percent",
        "normalized_freq_over_10_percent", "average_max_encoder_cosine_sim", "average_max_decoder_cosine_sim",
        "frac_alive",
    },
}  # fmt: skip
NAMES = {
    "kl_div_with_sae": "kl",
    "ce_loss_score": "ce_recovered",
    "ce_loss_with_ablation": "ce_zero",
    "ce_loss_with_sae": "ce_sae",
    "ce_loss_without_sae": "ce_clean",
    "explained_variance": "explained_variance",
    "relative_reconstruction_bias": "gamma",
    "l0": "l0",
}


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    return plant(tmp_path / "study")


def exported(folder: Path, out: Path, kind: str = "core", run: str = RUN) -> dict[str, Any]:
    files = {path.parent.name: path for path in export_results(folder, out, runs=run)}
    return read_json(files[kind])


def flat(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for group in found["eval_result_metrics"].values() for name, value in group.items()}


def test_core_follows_its_definitions(planted: Planted, tmp_path: Path) -> None:
    found = exported(planted.folder, tmp_path / "out")
    assert {group: set(values) for group, values in found["eval_result_metrics"].items()} == GROUPS
    p, values = planted, flat(found)
    r = ((p.x - p.xhat) ** 2).sum(1)
    variance = ((p.x - p.x.mean(0)) ** 2).sum()
    norms = np.linalg.norm(p.weights["W_dec"], axis=1)
    clean, zero, sae = (p.losses[name].mean() for name in ("clean", "zero", "sae"))
    wanted = {
        "explained_variance": 1 - r.sum() / variance,
        "explained_variance_legacy": (1 - r / ((p.x - p.x[:32].mean(0)) ** 2).sum(1)).mean(),
        "mse": r.mean(),
        "relative_reconstruction_bias": (p.xhat**2).sum() / (p.x * p.xhat).sum(),
        "l0": 1 + 1 / 20 + 1 / TOKENS + 1 / 4,
        "l1": (p.codes * norms).sum(1).mean(),
        "ce_loss_score": (zero - sae) / (zero - clean),
        "ce_loss_with_ablation": zero,
        "kl_div_with_sae": p.losses["kl"].mean(),
        "freq_over_1_percent": 3 / 5,
        "freq_over_10_percent": 2 / 5,
        "normalized_freq_over_10_percent": 1.25 / 1.305,
        "frac_alive": 4 / 5,
        "total_tokens_eval_sparsity_variance": TOKENS,
    }
    assert {name: values[name] for name in wanted} == pytest.approx(wanted)


def test_what_was_not_measured_is_minus_one_with_a_reason(planted: Planted, tmp_path: Path) -> None:
    found = exported(planted.folder, tmp_path / "out")
    missing = {name for name, value in flat(found).items() if value == -1}
    told = found["eval_result_unstructured"]["monosem"]["not_measured"]
    assert missing == {"kl_div_score", "kl_div_with_ablation", "cossim", "l2_norm_in", "l2_norm_out", "l2_ratio"}
    assert set(told) == missing | {"consistent_activation_heuristic"}
    assert all(told.values())
    assert {row["consistent_activation_heuristic"] for row in found["eval_result_details"]} == {-1}


def test_activations_of_a_normaliser_for_each_token_have_no_raw_unit(planted: Planted, tmp_path: Path) -> None:
    path = planted.folder / "saes" / RUN / "cfg.json"
    cfg = read_json(path)
    cfg["monosem"]["normaliser"]["kind"] = "token_ln"
    write_json(path, cfg)
    found = exported(planted.folder, tmp_path / "out")
    assert flat(found)["l1"] == -1
    assert "depends on the token" in found["eval_result_unstructured"]["monosem"]["not_measured"]["l1"]


def test_without_spliced_tokens_the_cross_entropies_are_missing(planted: Planted, tmp_path: Path) -> None:
    path = planted.folder / "results" / RUN / "frontier" / "result.json"
    stored = read_json(path)
    stored["scalars"] = {k: v for k, v in stored["scalars"].items() if "ce_" not in k and k != "kl"}
    write_json(path, stored)
    found = exported(planted.folder, tmp_path / "out")
    assert all(value == -1 for value in found["eval_result_metrics"]["model_performance_preservation"].values())
    assert "ce_tokens" in found["eval_result_unstructured"]["monosem"]["not_measured"]["ce_loss_score"]


def test_weights_are_judged_with_decoder_norms_folded_in(planted: Planted, tmp_path: Path) -> None:
    found = exported(planted.folder, tmp_path / "out")
    w, rows = planted.weights, found["eval_result_details"]
    assert [row["index"] for row in rows] == list(range(D_SAE))
    encoder, decoder = w["W_enc"].T, w["W_dec"]
    norms = np.linalg.norm(decoder, axis=1)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (encoder, decoder)]
    others = [(m @ m.T - 9 * np.eye(D_SAE)).max(1) for m in unit]
    wanted = {
        "encoder_bias": w["b_mag"] * norms,
        "encoder_norm": np.linalg.norm(encoder, axis=1) * norms,
        "encoder_decoder_cosine_sim": (unit[0] * unit[1]).sum(1),
        "max_encoder_cosine_sim": others[0],
        "max_decoder_cosine_sim": others[1],
        "feature_density": (planted.codes > 0).mean(0),
    }
    for name, values in wanted.items():
        assert [row[name] for row in rows] == pytest.approx(values.tolist(), abs=1e-6), name
    misc = found["eval_result_metrics"]["misc_metrics"]
    assert misc["average_max_encoder_cosine_sim"] == pytest.approx(others[0].mean(), abs=1e-6)
    assert misc["average_max_decoder_cosine_sim"] == pytest.approx(others[1].mean(), abs=1e-6)


def test_the_nearest_row_is_found_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(1).normal(size=(23, 3)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    whole = nearest(rows)
    monkeypatch.setattr("monosem.exports.saebench.weights.BLOCK_VALUES", 23 * 4)
    assert nearest(rows) == pytest.approx(whole)
    assert whole == pytest.approx(np.sort(rows @ rows.T, axis=1)[:, -2], abs=1e-6)


def test_intervals_and_definitions_stand_beside(planted: Planted, tmp_path: Path) -> None:
    beside = exported(planted.folder, tmp_path / "out")["eval_result_unstructured"]["monosem"]
    metrics = beside["results"]["frontier"]["metrics"]
    nmse = metrics["nmse"]
    assert nmse["low"] < nmse["value"] < nmse["high"]
    assert nmse["n"] == TOKENS
    for name, found in metrics.items():
        assert found["definition"] == METRICS[name].definition
    for name, source in beside["sources"].items():
        evaluation, _, ours = source.partition(".")
        assert evaluation not in beside["results"] or ours in beside["results"][evaluation]["metrics"], name


def test_the_frame_says_who_measured_what(planted: Planted, tmp_path: Path) -> None:
    found = exported(planted.folder, tmp_path / "out")
    again = exported(planted.folder, tmp_path / "again")
    assert found == again
    assert found["eval_type_id"] == "core"
    assert (found["sae_lens_release_id"], found["sae_lens_id"]) == ("planted", RUN)
    assert found["sae_lens_version"] is None
    assert found["sae_bench_commit_hash"].startswith("none; monosem")
    assert found["datetime_epoch_millis"] == 1767323045000
    assert found["sae_cfg_dict"] == read_json(planted.folder / "saes" / RUN / "cfg.json")
    config = found["eval_config"]
    assert (config["model_name"], config["dataset"], config["context_size"]) == (
        "owner/Some-Model-It",
        "owner/texts",
        64,
    )
    assert (tmp_path / "out" / "core" / f"planted_{RUN}_eval_results.json").is_file()


def test_probes_become_sparse_probing(planted: Planted, tmp_path: Path) -> None:
    plant_evaluations(planted.folder, RUN)
    found = exported(planted.folder, tmp_path / "out", "sparse_probing")
    llm, sae = found["eval_result_metrics"]["llm"], found["eval_result_metrics"]["sae"]
    assert llm["llm_test_accuracy"] == pytest.approx(0.8)
    assert [sae[f"sae_top_{k}_test_accuracy"] for k in (1, 2, 5)] == pytest.approx([0.55, 0.6, 0.85])
    assert {name for name, value in (llm | sae).items() if value is None} == {
        *(f"llm_top_{k}_test_accuracy" for k in (1, 2, 5, 10, 20, 50, 100)),
        *(f"sae_top_{k}_test_accuracy" for k in (10, 20, 50, 100)),
        "sae_test_accuracy",
    }
    details = {row["dataset_name"]: row for row in found["eval_result_details"]}
    assert set(details) == set(found["eval_config"]["dataset_names"]) == set(PROBED)
    assert details["steep"]["llm_test_accuracy"] == 0.7
    assert details["flat"]["sae_top_5_test_accuracy"] == 0.8
    assert found["eval_config"]["probe_train_set_size"] == 100
    assert len(found["eval_result_unstructured"]["monosem"]["tasks"]["rows"]) == 3


def test_ravel_is_that_of_the_learned_mask(planted: Planted, tmp_path: Path) -> None:
    plant_evaluations(planted.folder, RUN)
    found = exported(planted.folder, tmp_path / "out", "ravel")
    scores = found["eval_result_metrics"]["ravel"]
    assert scores["cause_score"] == pytest.approx((1 / 2 + 1) / 2)
    assert scores["isolation_score"] == pytest.approx((1 + 1 / 2) / 2)
    assert scores["disentanglement_score"] == pytest.approx(0.75)
    assert found["eval_config"]["entity_attribute_selection"] == {"verb": ["Past", "Plural"]}
    assert found["eval_config"]["n_generated_tokens"] == 3


def test_autointerp_is_the_detection_score(planted: Planted, tmp_path: Path) -> None:
    plant_evaluations(planted.folder, RUN)
    found = exported(planted.folder, tmp_path / "out", "autointerp")
    scores = found["eval_result_metrics"]["autointerp"]
    assert scores == pytest.approx({"autointerp_score": 0.7, "autointerp_std_dev": 0.4 / 2**0.5})
    assert found["eval_config"]["n_latents"] == 2
    features = found["eval_result_unstructured"]["monosem"]["features"]
    assert [(row["feature"], row["explanation"]) for row in features] == [(1, "months"), (2, "days"), (4, None)]


def test_explanations_without_detection_are_no_autointerp_file(planted: Planted, tmp_path: Path) -> None:
    plant_evaluations(planted.folder, RUN)
    path = planted.folder / "results" / RUN / "autointerp" / "result.json"
    stored = read_json(path)
    del stored["scalars"]["detection"]
    write_json(path, stored)
    kinds = [path.parent.name for path in export_results(planted.folder, tmp_path / "out")]
    assert kinds == ["core", "sparse_probing", "ravel"]


def test_an_exported_core_file_reads_as_the_summary(finished_study: Path, tmp_path: Path) -> None:
    summary = read_json(finished_study / "summary.json")
    for run in summary["runs"]:
        found = exported(finished_study, tmp_path / "out", run=run["name"])
        values = flat(found)
        assert {name: values[name] for name in NAMES} == {name: run[ours]["value"] for name, ours in NAMES.items()}
        assert values["frac_alive"] == pytest.approx(1 - run["dead_fraction"]["value"])
        assert values["total_tokens_eval_sparsity_variance"] == summary["tokens"]["eval"]
        assert values["total_tokens_eval_reconstruction"] == summary["tokens"]["ce"]
        beside = found["eval_result_unstructured"]["monosem"]["results"]["frontier"]["metrics"]
        for name in ("nmse", "mse", "gamma_centered", "ce_recovered_mean"):
            assert {key: beside[name][key] for key in run[name]} == run[name]
        scale = found["sae_cfg_dict"]["monosem"]["normaliser"]["scale"]
        assert values["mse"] * scale**2 == pytest.approx(run["mse"]["value"])
        assert values["l1"] * scale == pytest.approx(run["l1"]["value"])


def test_what_cannot_be_exported_is_named(planted: Planted, tmp_path: Path) -> None:
    folder, where = planted.folder, planted.folder / "results" / RUN
    with pytest.raises(UserError, match='"csv": unknown; known are saebench'):
        export_results(folder, tmp_path, format="csv")
    with pytest.raises(UserError, match=f"runs are {RUN}"):
        export_results(folder, tmp_path, runs="x*")
    with pytest.raises(UserError, match="a study folder is wanted"):
        export_results(folder / "none", tmp_path)
    (where / "measure" / "sums.safetensors").write_bytes(b"PK\3\4" + bytes(100))
    with pytest.raises(UserError, match=r"sums\.safetensors: can't be read"):
        export_results(folder, tmp_path)
    path = where / "density" / "result.json"
    write_json(path, [])
    with pytest.raises(UserError, match="not a result"):
        export_results(folder, tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="no result of density; run `monosem measure"):
        export_results(folder, tmp_path)
    assert not list(tmp_path.glob("*/*_eval_results.json"))


def test_results_and_weights_that_are_lost_are_named(planted: Planted, tmp_path: Path) -> None:
    plant_evaluations(planted.folder, RUN)
    rows = planted.folder / "results" / RUN / "ravel" / "rows.parquet"
    whole = rows.read_bytes()
    rows.write_bytes(whole[:100])
    with pytest.raises(UserError, match=r"rows\.parquet: can't be read"):
        export_results(planted.folder, tmp_path / "out")
    rows.write_bytes(whole)
    result = planted.folder / "results" / RUN / "probes" / "result.json"
    stored = json.loads(result.read_text())
    write_json(result, stored | {"header": stored["header"] | {"sae": "other"}})
    with pytest.raises(UserError, match="belongs to other weights"):
        export_results(planted.folder, tmp_path / "out")
    (planted.folder / "saes" / RUN / "sae_weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"sae_weights\.safetensors: can't be read"):
        export_results(planted.folder, tmp_path / "out")


def test_sums_of_other_tokens_than_the_results_are_refused(planted: Planted, tmp_path: Path) -> None:
    path = planted.folder / "results" / RUN / "frontier" / "result.json"
    stored = read_json(path)
    write_json(path, stored | {"header": stored["header"] | {"inputs": {"tokens": "other"}}})
    with pytest.raises(UserError, match="of other tokens or weights"):
        export_results(planted.folder, tmp_path)


def test_the_command_says_what_it_wrote(planted: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("export-results", planted.folder) == 2
    assert "not a study folder" in capsys.readouterr().err
    (planted.folder / "study.toml").touch()  # what a study folder is known by
    assert cli("export-results", planted.folder) == 0
    assert capsys.readouterr().out == f"{RUN}: core\n1 files in {planted.folder / 'saebench'}\n"
    assert cli("export-results", planted.folder, "--format", "x") == 2
