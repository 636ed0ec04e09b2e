"""SAEs that were trained elsewhere, as runs of a study: the same function, the study's units, refusals with reasons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import monosem
from monosem.activations import open_activations
from monosem.config import make_study
from monosem.loading import in_units_of
from monosem.normaliser import Normaliser, fold
from monosem.sae import Sae
from monosem.types import UserError
from tests.conftest import cli, study_of

SITE = "blocks.1.hook_resid_post"
OWN = {"variant": "topk", "k": 8}


def stranger(variant: str = "topk", d_in: int = 32, **facts: Any) -> Sae:
    """An SAE over raw activations whose weights fit them loosely."""
    hyper = {"k": 6} if variant == "topk" else {"subtract_b_dec": True}
    sae = monosem.make_sae(variant, d_in=d_in, d_sae=48, seed=3, **hyper)
    generator = torch.Generator().manual_seed(4)
    weights = {k: v + 0.02 * torch.randn(v.shape, generator=generator) for k, v in sae.weights.items()}
    return Sae(variant, sae.variant, weights, Normaliser(), facts)


def with_loads(study: Path, *families: dict[str, Any]) -> dict[str, Any]:
    import tomllib

    data = tomllib.loads((study / "study.toml").read_text())
    return {**data, "run": [*data["run"], *families]}


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    """Three files of other libraries' formats."""
    monosem.save_sae(stranger("topk", site=SITE), tmp_path / "s" / "layers.1", "sparsify")
    monosem.save_sae(stranger("standard", site=SITE, model="x/none"), tmp_path / "d", "dictionary_learning")
    monosem.save_sae(stranger("standard"), tmp_path / "o", "openai")
    return {"sparsify": tmp_path / "s" / "layers.1", "dl": tmp_path / "d", "openai": tmp_path / "o" / "autoencoder.pt"}


def test_foreign_saes_stand_beside_the_studys_own(study: Path, sources: dict[str, Path], tiny_lm: Path) -> None:
    said: list[str] = []
    loads = [
        {"name": "eleuther", "load": str(sources["sparsify"])},
        {"name": "dl", "load": [str(sources["dl"])], "model": str(tiny_lm)},
        {"load": str(sources["openai"])},
    ]
    data = with_loads(study, *loads)
    monosem.compare(data, study, say=said.append)
    assert any("3 SAEs loaded" in line for line in said)
    summary = json.loads((study / "summary.json").read_text())
    runs = {run["name"]: run for run in summary["runs"]}
    assert [*runs] == ["standard-l1_0.5-d_sae_32", "topk-k8", "eleuther", "dl", "loaded-autoencoder.pt"]
    assert [run["variant"] for run in runs.values()] == ["standard", "topk", "eleuther", "dl", "loaded"]
    store = open_activations(study / "activations", "eval")
    batches = [(store.rows(np.arange(store.n)), store.columns["doc"])]
    for name, source in (("eleuther", sources["sparsify"]), ("loaded-autoencoder.pt", sources["openai"])):
        before = monosem.measure(monosem.load_sae(source), batches, draws=100)
        for metric in ("l0", "nmse", "gamma"):  # "mse" is in the units of each
            assert runs[name][metric]["value"] == pytest.approx(before[metric]["value"], rel=1e-5), metric
        assert runs[name]["tokens"] is None
        assert "not trained here" in runs[name]["reasons"]["tokens"]
    assert runs["loaded-autoencoder.pt"]["loaded"]["unsaid"] == ["site", "model"]
    assert sum("trained elsewhere" in caveat for caveat in summary["caveats"]) == 3
    assert "eleuther" in (study / "report.html").read_text()
    again: list[str] = []
    monosem.compare(data, study, say=again.append)
    assert all("reused" in line for line in again)


def test_a_changed_file_is_loaded_again_and_a_lost_one_stays(study: Path, sources: dict[str, Path]) -> None:
    data = with_loads(study, {"name": "a", "load": str(sources["openai"])})
    monosem.compare(data, study)
    first = json.loads((study / "summary.json").read_text())["runs"][-1]["mse"]["value"]
    changed = stranger("standard")
    changed.weights["W_dec"] *= 2
    monosem.save_sae(changed, sources["openai"].parent, "openai")
    monosem.compare(data, study)
    second = json.loads((study / "summary.json").read_text())["runs"][-1]["mse"]["value"]
    assert second != pytest.approx(first, rel=1e-3)
    sources["openai"].unlink()
    said: list[str] = []
    monosem.compare(data, study, say=said.append)
    assert any("stays as it was loaded" in line for line in said)
    assert json.loads((study / "summary.json").read_text())["runs"][-1]["mse"]["value"] == second


def test_units_are_the_studys_and_the_function_is_kept() -> None:
    sae, x = stranger("topk"), torch.randn(50, 32) * 7
    turned = in_units_of(sae, Normaliser("mean_norm", 0.25))
    assert turned.normaliser == Normaliser("mean_norm", 0.25)
    torch.testing.assert_close(turned(x), sae(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(turned.encode(x), sae.encode(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(turned.weights["W_dec"], sae.weights["W_dec"] * 0.25)  # norms in the study's units
    own = Sae("topk", sae.variant, fold(sae.weights, 2.0), Normaliser("rms_norm", 0.5))
    assert in_units_of(own, Normaliser("mean_norm", 0.25)) is own
    layer_norm = Sae("topk", sae.variant, sae.weights, Normaliser("token_ln"))
    assert in_units_of(layer_norm, Normaliser("mean_norm", 0.25)).normaliser == Normaliser("token_ln", 0.25)


@pytest.mark.parametrize(
    ("facts", "more", "words"),
    [
        ({"site": "blocks.2.hook_resid_post"}, {}, r'site "blocks.2.hook_resid_post", the study reads'),
        ({"model": "google/gemma-2-2b"}, {}, r'model "google/gemma-2-2b", the study reads'),
        ({"scale_missing": True}, {}, "don't tell the scale"),
        ({"d_in": 16}, {}, "width 16, .* has 32"),
    ],
)
def test_what_does_not_fit_is_refused(
    study: Path, tmp_path: Path, facts: dict[str, Any], more: dict[str, Any], words: str
) -> None:
    monosem.save_sae(stranger(**facts), tmp_path / "sae")
    with pytest.raises(UserError, match=words) as caught:
        monosem.compare(with_loads(study, {"name": "a", "load": str(tmp_path / "sae"), **more}), study)
    assert "run a" in str(caught.value)
    assert not (study / "saes" / "a").exists()


def test_notations_of_the_same_site_and_model_agree(study: Path, tmp_path: Path, tiny_lm: Path) -> None:
    for number, site in enumerate(("model.layers.1", "layers.1.output", "blocks.2.hook_resid_pre")):
        monosem.save_sae(stranger(site=site, model=f"HF/{tiny_lm.name.upper()}"), tmp_path / f"sae{number}")
    loads = [str(tmp_path / f"sae{number}") for number in range(3)]
    monosem.compare(with_loads(study, {"load": loads}), study, only="train")
    assert (study / "saes" / "loaded-sae2" / "cfg.json").exists()


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ({"load": "x", "k": 3}, "k: unknown key for a run with `load`"),
        ({"load": []}, "give at least one"),
        ({"load": [3]}, "load = 3"),
        ({"load": "x", "site": 4}, "site = 4: write a text"),
        ({"load": "x", "name": "a b"}, "use letters"),
        ({"load": ["x/a", "y/a"]}, 'two runs are called "loaded-a"'),
    ],
)
def test_bad_load_families(tiny_lm: Path, corpus: Path, family: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_study(study_of(tiny_lm, corpus, [OWN, family]))


def test_a_study_of_loaded_saes_alone(tmp_path: Path, sources: dict[str, Path], tiny_lm: Path, corpus: Path) -> None:
    data = study_of(tiny_lm, corpus, [{"name": "a", "load": str(sources["sparsify"])}])
    report = monosem.compare(data, tmp_path / "study")
    assert "eleuther" not in report.read_text()
    assert json.loads((tmp_path / "study" / "summary.json").read_text())["training"] == {}


def test_convert_on_the_command_line(
    tmp_path: Path, sources: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("convert", sources["sparsify"], tmp_path / "new", "--to", "dictionary_learning", "--site", SITE) == 0
    assert "topk, 48 features, d_in 32, of blocks.1.hook_resid_post" in capsys.readouterr().out
    x = torch.randn(20, 32)
    torch.testing.assert_close(monosem.load_sae(tmp_path / "new")(x), monosem.load_sae(sources["sparsify"])(x))
    assert cli("convert", sources["sparsify"], tmp_path / "new", "--to", "saelens") == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert cli("convert", sources["sparsify"], tmp_path / "g", "--to", "gemma_scope") == 2
    assert "no fixed threshold" in capsys.readouterr().err
    assert not (tmp_path / "g").exists()
    assert cli("convert", sources["sparsify"], tmp_path / "g", "--to", "sae_vis") == 2
    assert "known are dictionary_learning, gemma_scope" in capsys.readouterr().err
    assert cli("convert", sources["dl"], tmp_path / "scaled", "--scale", "2") == 0
    scaled = monosem.load_sae(tmp_path / "scaled")
    torch.testing.assert_close(scaled(x), monosem.load_sae(sources["dl"])(2 * x) / 2)


def test_unknown_keys_warn_on_the_command_line(
    tmp_path: Path, sources: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = sources["sparsify"] / "cfg.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": "red"}))
    assert cli("convert", sources["sparsify"], tmp_path / "new") == 0
    assert 'cfg.json: unknown key "colour"' in capsys.readouterr().err
