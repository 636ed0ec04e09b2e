"""Files of other libraries, written by hand here, against each library's own formula in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import monosem
from tests.formats.archives import npy, zipped
from tests.formats.making import D_IN, D_SAE, activations, distance, random_sae

K = 3
Choice = Callable[[Tensor], Tensor]
W = random_sae("jumprelu").weights
GATED = random_sae("gated").weights
LINEAR = {"encoder.weight": W["W_enc"].T, "encoder.bias": W["b_enc"], "decoder.weight": W["W_dec"].T}
DIRECT = {name: W[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}


def top(h: Tensor) -> Tensor:
    """Return the K largest of each row, ReLU applied."""
    return torch.where(h >= h.sort(1).values[:, -K, None], h, 0).relu()


def above(threshold: Tensor | float) -> Choice:
    return lambda h: torch.where(h > threshold, h, 0).relu()


def computed(x: Tensor, choose: Choice, centred: bool) -> tuple[Tensor, Tensor]:
    """Return codes and reconstruction: f = choose((x - b_dec) W_enc + b_enc), with b_dec or without."""
    w = {name: value.double() for name, value in W.items()}
    f = choose((x.double() - (w["b_dec"] if centred else 0)) @ w["W_enc"] + w["b_enc"])
    return f, f @ w["W_dec"] + w["b_dec"]


def agrees(place: Path, codes: Tensor, wanted: Tensor) -> None:
    sae, x = monosem.load_sae(place), activations()
    assert distance(sae.encode(x), codes) < 1e-6
    assert distance(sae(x), wanted) < 1e-6


CLASSES: dict[str, tuple[dict[str, Tensor], Choice, bool]] = {
    "AutoEncoder": ({**LINEAR, "bias": W["b_dec"]}, torch.relu, True),
    "AutoEncoderNew": ({**LINEAR, "decoder.bias": W["b_dec"]}, torch.relu, False),
    "AutoEncoderTopK": (
        {**LINEAR, "b_dec": W["b_dec"], "k": torch.tensor(K), "threshold": torch.tensor(9.0)},
        top,
        True,
    ),
    "BatchTopKSAE": (
        {**LINEAR, "b_dec": W["b_dec"], "k": torch.tensor(K), "threshold": torch.tensor(0.7)},
        above(0.7),
        True,
    ),
    "MatryoshkaBatchTopKSAE": (
        {**DIRECT, "k": torch.tensor(K), "threshold": torch.tensor(0.7), "group_sizes": torch.tensor([6, 18])},
        above(0.7),
        True,
    ),
    "JumpReluAutoEncoder": ({**DIRECT, "threshold": W["threshold"]}, above(W["threshold"].double()), False),
}


def dictionary(folder: Path, name: str, state: dict[str, Tensor]) -> Path:
    trainer = {"dict_class": name, "activation_dim": D_IN, "dict_size": D_SAE, "k": K, "lr": 1e-4}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
    torch.save(state, folder / "ae.pt")
    return folder


@pytest.mark.parametrize("name", CLASSES)
def test_classes_of_dictionary_learning(tmp_path: Path, name: str) -> None:
    state, choose, centred = CLASSES[name]
    agrees(dictionary(tmp_path, name, state), *computed(activations(), choose, centred))


def test_the_gated_class_of_dictionary_learning(tmp_path: Path) -> None:
    w = {name: value.double() for name, value in GATED.items()}
    x = activations().double()
    pi = (x - w["b_dec"]) @ w["W_enc"]
    f = (pi + w["b_gate"] > 0) * (w["r_mag"].exp() * pi + w["b_mag"]).relu()
    state = {"encoder.weight": GATED["W_enc"].T, "decoder.weight": GATED["W_dec"].T, "r_mag": GATED["r_mag"]}
    state |= {"gate_bias": GATED["b_gate"], "mag_bias": GATED["b_mag"], "decoder_bias": GATED["b_dec"]}
    agrees(dictionary(tmp_path, "GatedAutoEncoder", state), f, f @ w["W_dec"] + w["b_dec"])


@pytest.mark.parametrize("latents", [D_SAE, 0])
def test_sparsify(tmp_path: Path, latents: int) -> None:
    tensors = {"encoder.weight": W["W_enc"].T.contiguous(), "encoder.bias": W["b_enc"]}
    save_file({**tensors, "W_dec": W["W_dec"], "b_dec": W["b_dec"]}, tmp_path / "sae.safetensors")
    cfg = {"activation": "topk", "expansion_factor": D_SAE // D_IN, "normalize_decoder": True, "num_latents": latents}
    cfg |= {"k": K, "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D_IN}
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    agrees(tmp_path, *computed(activations(), top, True))


def test_gemma_scope(tmp_path: Path) -> None:
    (tmp_path / "params.npz").write_bytes(zipped({f"{name}.npy": npy(value.numpy()) for name, value in W.items()}))
    agrees(tmp_path, *computed(activations(), above(W["threshold"].double()), False))


def test_gemma_scope_2(tmp_path: Path) -> None:
    save_file({name.replace("W_", "w_"): value for name, value in W.items()}, tmp_path / "params.safetensors")
    config = {"architecture": "jump_relu", "model_name": "google/gemma-3-270m", "width": D_SAE, "l0": 10}
    config |= {"hf_hook_point_in": "model.layers.5.self_attn.o_proj.input"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    agrees(tmp_path, *computed(activations(), above(W["threshold"].double()), False))
    facts = monosem.load_sae(tmp_path).facts
    assert (facts["site"], facts["model"]) == ("blocks.5.attn.hook_z", "google/gemma-3-270m")


@pytest.mark.parametrize("activation", ["TopK", "ReLU"])
def test_openai(tmp_path: Path, activation: str) -> None:
    own = {"k": K, "postact_fn": "ReLU"} if activation == "TopK" else {}
    state = {"pre_bias": W["b_dec"], "latent_bias": W["b_enc"], "encoder.weight": W["W_enc"].T.contiguous()}
    state |= {"decoder.weight": W["W_dec"].T.contiguous(), "stats_last_nonzero": torch.zeros(D_SAE, dtype=torch.long)}
    torch.save({**state, "activation": activation, "activation_state_dict": own}, tmp_path / "7.pt")
    x = activations().double()
    mean, deviation = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    if activation == "TopK":
        codes, found = computed((x - mean) / (deviation + 1e-5), top, True)
        agrees(tmp_path, codes, found * deviation + mean)
    else:
        agrees(tmp_path, *computed(x, torch.relu, True))
