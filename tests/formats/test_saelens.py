"""SAELens' layout: what is written, what comes back, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import monosem
from monosem.normaliser import Normaliser
from monosem.sae import Sae
from monosem.types import UserError

CASES: list[tuple[str, dict[str, Any]]] = [
    ("standard", {"l1_coefficient": 2.0}),
    ("standard", {"subtract_b_dec": True, "dead": "resample", "resample_at": (0.2, 0.4)}),
    ("tanh", {"tanh_scale": 2.0}),
    ("gated", {}),
    ("gated", {"mode": "paper"}),
    ("topk", {"k": 3}),
]


def random_sae(variant: str, hyper: dict[str, Any], normaliser: Normaliser) -> Sae:
    sae = monosem.make_sae(variant, d_in=8, d_sae=24, seed=1, **hyper)
    generator = torch.Generator().manual_seed(2)
    weights = {k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in sae.weights.items()}
    return Sae(variant, sae.variant, weights, normaliser, {"site": "blocks.1.hook_resid_post", "name": "a"})


@pytest.mark.parametrize(("variant", "hyper"), CASES)
@pytest.mark.parametrize("kind", ["mean_norm", "none", "token_ln"])
def test_round_trip(tmp_path: Path, variant: str, hyper: dict[str, Any], kind: str) -> None:
    sae = random_sae(variant, hyper, Normaliser(kind, 0.31 if kind == "mean_norm" else 1.0))
    monosem.save_sae(sae, tmp_path)
    back = monosem.load_sae(str(tmp_path))
    x = torch.randn(40, 8) * 3
    assert torch.allclose(back.encode(x), sae.encode(x), atol=1e-5)
    assert torch.allclose(back(x), sae(x), atol=1e-5)
    assert (back.variant, back.normaliser) == (sae.variant, sae.normaliser)
    assert back.facts["site"] == "blocks.1.hook_resid_post"
    assert torch.allclose(back.loss(x).total, sae.loss(x).total, rtol=1e-4)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert cfg["architecture"] in ("standard", "gated", "topk")
    assert set(load_file(tmp_path / "sae_weights.safetensors")) == set(sae.weights)


def test_an_sae_that_was_changed_is_saved_with_its_own_hash(tmp_path: Path) -> None:
    monosem.save_sae(monosem.make_sae("topk", d_in=8, d_sae=32, seed=0, k=4), tmp_path / "first")
    sae = monosem.load_sae(tmp_path / "first")
    sae.weights["W_dec"] *= 2
    monosem.save_sae(sae, tmp_path / "second")
    assert torch.equal(monosem.load_sae(tmp_path / "second").weights["W_dec"], sae.weights["W_dec"])


def test_module_has_parameters_that_train() -> None:
    sae = random_sae("standard", {}, Normaliser("mean_norm", 0.5))
    module = sae.as_module()
    x = torch.randn(10, 8)
    assert torch.allclose(module(x), sae(x))
    assert torch.allclose(module.decode(module.encode(x)), sae(x), atol=1e-5)
    module(x).sum().backward()
    assert {n for n, p in module.named_parameters() if p.grad is not None} == set(sae.weights)


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no cfg\.json"):
        monosem.load_sae(tmp_path)
    monosem.save_sae(random_sae("standard", {}, Normaliser()), tmp_path)
    weights_path, cfg_path = tmp_path / "sae_weights.safetensors", tmp_path / "cfg.json"
    good, cfg = weights_path.read_bytes(), json.loads(cfg_path.read_text())
    weights_path.write_bytes(good[:-8])
    with pytest.raises(UserError, match="missing, truncated or altered"):
        monosem.load_sae(tmp_path)
    tensors = load_file_bytes(good)
    save_file({k: v for k, v in tensors.items() if k != "b_enc"}, weights_path)
    with pytest.raises(UserError, match='"b_enc" is missing'):
        monosem.load_sae(tmp_path)
    save_file({**tensors, "W_enc": torch.zeros(3, 3)}, weights_path)
    with pytest.raises(UserError, match=r"W_enc has shape \(3, 3\)"):
        monosem.load_sae(tmp_path)
    save_file({**tensors, "b_enc": tensors["b_enc"] + 1}, weights_path)
    with pytest.raises(UserError, match="altered"):
        monosem.load_sae(tmp_path)
    weights_path.write_bytes(good)
    cfg_path.write_text(json.dumps({**cfg, "architecture": "temporal"}))
    with pytest.raises(UserError, match='"temporal" is not supported'):
        monosem.load_sae(tmp_path)
    cfg_path.write_text(json.dumps({k: v for k, v in cfg.items() if k != "d_in"}))
    with pytest.raises(UserError, match='"d_in" is missing'):
        monosem.load_sae(tmp_path)
    cfg_path.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        monosem.load_sae(tmp_path)


def load_file_bytes(data: bytes) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    return load(data)


def test_an_sae_of_saelens_own_making_loads(tmp_path: Path) -> None:
    monosem.save_sae(random_sae("topk", {"k": 3}, Normaliser()), tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    del cfg["monosem"]
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    loaded = monosem.load_sae(tmp_path)
    x = torch.randn(5, 8)
    assert torch.equal(loaded.encode(x), random_sae("topk", {"k": 3}, Normaliser()).encode(x))
    (tmp_path / "cfg.json").write_text(json.dumps({**cfg, "normalize_activations": "covariance_whitening"}))
    with pytest.raises(UserError, match="covariance_whitening"):
        monosem.load_sae(tmp_path)
