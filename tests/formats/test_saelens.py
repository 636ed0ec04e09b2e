"""SAELens' layout: what is written, what comes back, and how files of its own making are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import monosem
from monosem.types import FormatWarning, UserError
from tests.formats.making import D_IN, D_SAE, activations, distance, random_sae

CASES: list[tuple[str, dict[str, Any]]] = [
    ("standard", {"l1_coefficient": 2.0}),
    ("standard", {"subtract_b_dec": True, "dead": "resample", "resample_at": (0.2, 0.4)}),
    ("tanh", {"tanh_scale": 2.0}),
    ("p_anneal", {}),
    ("gated", {}),
    ("gated", {"mode": "paper"}),
    ("topk", {"k": 3}),
    ("batchtopk", {"k": 3}),
    ("matryoshka", {"k": 3}),
    ("jumprelu", {"bandwidth": 0.5}),
]


@pytest.mark.parametrize(("variant", "hyper"), CASES)
@pytest.mark.parametrize("kind", ["mean_norm", "none", "token_ln"])
def test_round_trip(tmp_path: Path, variant: str, hyper: dict[str, Any], kind: str) -> None:
    sae, x = random_sae(variant, hyper, kind), activations()
    monosem.save_sae(sae, tmp_path)
    back = monosem.load_sae(str(tmp_path))
    assert distance(back.encode(x), sae.encode(x)) < 1e-6
    assert distance(back(x), sae(x)) < 1e-6
    assert (back.variant, back.normaliser) == (sae.variant, sae.normaliser)
    assert back.facts["site"] == "blocks.1.hook_resid_post"
    assert torch.allclose(back.loss(x).total, sae.loss(x).total, rtol=1e-4)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert cfg["architecture"] == sae.variant.architecture
    assert set(load_file(tmp_path / "sae_weights.safetensors")) == set(sae.weights)


def test_buffers_that_only_training_needs_are_not_saved(tmp_path: Path) -> None:
    sae = monosem.make_sae("p_anneal", d_in=D_IN, d_sae=D_SAE)
    assert set(sae.variant.scratch) <= set(sae.weights)
    monosem.save_sae(sae, tmp_path)
    assert set(load_file(tmp_path / "sae_weights.safetensors")) == {"W_enc", "b_enc", "W_dec", "b_dec"}


def test_an_sae_that_was_changed_is_saved_with_its_own_hash(tmp_path: Path) -> None:
    monosem.save_sae(monosem.make_sae("topk", d_in=8, d_sae=32, seed=0, k=4), tmp_path / "first")
    sae = monosem.load_sae(tmp_path / "first")
    sae.weights["W_dec"] *= 2
    monosem.save_sae(sae, tmp_path / "second")
    assert torch.equal(monosem.load_sae(tmp_path / "second").weights["W_dec"], sae.weights["W_dec"])


def test_module_has_parameters_that_train() -> None:
    sae, x = random_sae("standard", normaliser="mean_norm"), activations(10)
    module = sae.as_module()
    assert torch.allclose(module(x), sae(x))
    assert torch.allclose(module.decode(module.encode(x)), sae(x), atol=1e-5)
    module(x).sum().backward()
    assert {n for n, p in module.named_parameters() if p.grad is not None} == set(sae.weights)


def test_damage_to_our_own_files_is_named(tmp_path: Path) -> None:
    monosem.save_sae(random_sae("standard", normaliser="mean_norm"), tmp_path)
    weights, cfg_path = tmp_path / "sae_weights.safetensors", tmp_path / "cfg.json"
    good, cfg = weights.read_bytes(), json.loads(cfg_path.read_text())
    tensors = load_file(weights)
    save_file({**tensors, "b_enc": tensors["b_enc"] + 1}, weights)
    with pytest.raises(UserError, match="altered"):
        monosem.load_sae(tmp_path)
    weights.write_bytes(good)
    for scale in (0.0, -1.0, 1e-320, 1e300, None):
        cfg_path.write_text(
            json.dumps({**cfg, "monosem": {**cfg["monosem"], "normaliser": {"kind": "none", "scale": scale}}})
        )
        with pytest.raises(UserError, match=r"monosem\.normaliser\.scale = "):
            monosem.load_sae(tmp_path)
    for variant, words in (
        ("gated", '"gated" is no "standard"'),
        ("\x1b[31m", "should match pattern"),
        ("x", "unknown"),
    ):
        cfg_path.write_text(json.dumps({**cfg, "monosem": {**cfg["monosem"], "variant": variant, "hyper": {}}}))
        with pytest.raises(UserError, match=words):
            monosem.load_sae(tmp_path)
    cfg_path.write_text(json.dumps({**cfg, "monosem": {**cfg["monosem"], "site": 3}}))
    with pytest.raises(UserError, match="site = 3: input should be a valid string"):
        monosem.load_sae(tmp_path)


def foreign(folder: Path, tensors: dict[str, Tensor], **keys: Any) -> Path:
    """Write files as SAELens does, with `keys` instead of its usual ones."""
    cfg = {"d_in": D_IN, "d_sae": D_SAE, "apply_b_dec_to_input": True, "metadata": {}, **keys}
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps({key: value for key, value in cfg.items() if value is not ...}))
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "sae_weights.safetensors")
    return folder


def reading(x: Tensor, w: dict[str, Tensor], choose: Callable[[Tensor], Tensor], centred: bool = True) -> Tensor:
    """Return the reconstruction by formula: f = choose(h), in float64."""
    w = {name: value.double() for name, value in w.items()}
    h = (x.double() - (w["b_dec"] if centred else 0)) @ w["W_enc"] + w["b_enc"]
    return choose(h) @ w["W_dec"] + w["b_dec"]


def top(h: Tensor, k: int = 3) -> Tensor:
    return torch.where(h >= h.sort(1).values[:, -k, None], h, 0).relu()


@pytest.mark.parametrize(("given", "centred"), [(True, True), (False, False), (..., True)])
def test_the_decoder_bias_is_subtracted_unless_the_file_says_no(tmp_path: Path, given: Any, centred: bool) -> None:
    w, x = random_sae("standard").weights, activations()
    sae = monosem.load_sae(foreign(tmp_path, w, architecture="standard", apply_b_dec_to_input=given))
    assert distance(sae(x), reading(x, w, torch.relu, centred)) < 1e-6


def test_selection_by_activation_times_decoder_norm(tmp_path: Path) -> None:
    w, x = random_sae("topk").weights, activations()
    norms = w["W_dec"].double().norm(dim=1)
    plain = monosem.load_sae(foreign(tmp_path / "a", w, architecture="topk", k=3))
    assert distance(plain(x), reading(x, w, top)) < 1e-6
    keys = {"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": True}
    sae = monosem.load_sae(foreign(tmp_path / "b", w, **keys))
    assert distance(sae(x), reading(x, w, lambda h: top(h * norms) / norms)) < 1e-6
    assert distance(sae(x), plain(x)) > 0.1


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_runs_with_a_threshold_and_a_scale_of_their_own(tmp_path: Path, architecture: str, rescale: bool) -> None:
    w, x, scale = random_sae("standard").weights, activations(), 0.4
    units = w["W_dec"].double().norm(dim=1) if rescale else torch.ones(D_SAE, dtype=torch.float64)
    tensors = {**w, "topk_threshold": torch.tensor(0.5, dtype=torch.float64)}
    mode = "expected_average_only_in"
    keys = {"k": 2.5, "rescale_acts_by_decoder_norm": rescale, "normalize_activations": mode}
    foreign(tmp_path, tensors, architecture=architecture, **keys)
    with pytest.warns(FormatWarning, match="the scale is not in the files"):
        assert monosem.load_sae(tmp_path).facts["scale_missing"]
    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": scale}))
    sae = monosem.load_sae(tmp_path)
    wanted = reading(x * scale, w, lambda h: torch.where(h * units > 0.5, h, 0).relu()) / scale
    assert distance(sae(x), wanted) < 1e-6
    assert "scale_missing" not in sae.facts
    (tmp_path / "activation_scaler.json").write_text('{"scaling_factor": 0}')
    with pytest.raises(UserError, match=r"activation_scaler\.json: scaling_factor = 0: input should be greater than"):
        monosem.load_sae(tmp_path)


def test_flat_configurations_of_old_versions(tmp_path: Path) -> None:
    w, x = random_sae("topk").weights, activations()
    flat = {
        "metadata": ...,
        "apply_b_dec_to_input": ...,
        "hook_point": "blocks.3.hook_resid_pre",
        "model_name": "gpt2-small",
    }
    flat |= {
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 3},
        "normalize_activations": False,
        "context_size": 128,
    }
    sae = monosem.load_sae(foreign(tmp_path, w, **flat))
    assert distance(sae(x), reading(x, w, top)) < 1e-6
    facts = {name: sae.facts[name] for name in ("site", "model", "context", "prepend_bos")}
    assert facts == {"site": "blocks.3.hook_resid_pre", "model": "gpt2-small", "context": 128, "prepend_bos": True}


def test_factors_of_fine_tuning(tmp_path: Path) -> None:
    w, x = random_sae("standard").weights, activations()
    factor = torch.linspace(0.5, 2.0, D_SAE)
    tensors = {**w, "scaling_factor": factor}
    sae = monosem.load_sae(foreign(tmp_path, tensors, architecture="standard", finetuning_scaling_factor=True))
    assert distance(sae(x), reading(x, w, lambda h: h.relu() * factor)) < 1e-6
    foreign(tmp_path, tensors, architecture="standard")
    with pytest.raises(UserError, match="no finetuning_scaling_factor = true"):
        monosem.load_sae(tmp_path)
    sae = monosem.load_sae(foreign(tmp_path, {**w, "scaling_factor": torch.ones(D_SAE)}, architecture="standard"))
    assert distance(sae(x), reading(x, w, torch.relu)) < 1e-6
