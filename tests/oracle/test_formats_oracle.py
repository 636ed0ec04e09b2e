"""Files that other libraries read and write: they compute from ours what we do, and we from theirs what they do.

`--junitxml` keeps each error (`error`, `codes`): relative, of reconstructions of raw activations and of codes.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.formats.making import HYPER, NORMALISERS, activations, distance, random_sae
from torch import Tensor, nn

import monosem
from monosem.sae import Sae

pytestmark = pytest.mark.oracle
sae_lens = pytest.importorskip("sae_lens")
sparsify = pytest.importorskip("sparsify")
dl = pytest.importorskip("dictionary_learning.utils")

LIMIT = 1e-5
D_IN, D_SAE, K = 8, 24, 3
Record = Callable[[str, object], None]
Function = Callable[[Tensor], Tensor]


def agree(record: Record, ours: Sae, reconstruct: Function, encode: Function | None = None) -> None:
    """Compare on activations that fire something for every token; record the errors."""
    x = activations()
    with torch.no_grad():
        wanted, codes = reconstruct(x), encode(x) if encode else None
    assert bool((ours.encode(x) > 0).any(1).all())
    record("error", distance(ours(x), wanted))
    assert distance(ours(x), wanted) < LIMIT
    if codes is not None:
        record("codes", distance(ours.encode(x), codes))
        assert distance(ours.encode(x), codes) < LIMIT


def randomised(module: nn.Module, seed: int = 0) -> Any:
    """Return the module with random weights: decoder norms that aren't 1, biases that aren't 0, thresholds above 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.4)
            if name == "threshold":
                value.copy_(0.1 + torch.rand(value.shape, generator=generator))
        for name, value in module.named_buffers():
            if "threshold" in name:
                value.fill_(0.45)
    return module


# SAELens


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("normaliser", NORMALISERS)
@pytest.mark.parametrize("variant", HYPER)
def test_saelens_loads_ours(
    tmp_path: Path, record_property: Record, variant: str, normaliser: str, centred: bool
) -> None:
    sae = random_sae(variant, {"subtract_b_dec": centred}, normaliser)
    monosem.save_sae(sae, tmp_path)
    theirs = sae_lens.SAE.load_from_disk(tmp_path)
    agree(record_property, sae, theirs, theirs.encode)


def saelens(architecture: str, training: bool = False, **keys: Any) -> Any:
    """Return one of SAELens' SAEs with random weights."""
    registry = importlib.import_module("sae_lens.registry")
    kind, config = (registry.get_sae_training_class if training else registry.get_sae_class)(architecture)
    if architecture == "matryoshka_batchtopk":
        keys["matryoshka_widths"] = [6, 12, D_SAE]
    if "topk" in architecture:
        keys["k"] = K
    return randomised(kind(config(d_in=D_IN, d_sae=D_SAE, **keys)))


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("mode", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk"])
def test_we_load_saelens(tmp_path: Path, record_property: Record, architecture: str, mode: str, centred: bool) -> None:
    theirs = saelens(architecture, normalize_activations=mode, apply_b_dec_to_input=centred)
    theirs.save_model(tmp_path)
    agree(record_property, monosem.load_sae(tmp_path), theirs, theirs.encode)


TRAINED = ["standard", "gated", "jumprelu", "topk", "batchtopk", "matryoshka_batchtopk"]


@pytest.mark.parametrize("saved", ["save_inference_model", "save_model"])
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("architecture", TRAINED)
@pytest.mark.filterwarnings("error::monosem.types.FormatWarning")
def test_we_load_training_saes_of_saelens(
    tmp_path: Path, record_property: Record, architecture: str, rescale: bool, saved: str
) -> None:
    keys = {"rescale_acts_by_decoder_norm": rescale} if "topk" in architecture else {}
    trained = saelens(architecture, training=True, **keys)
    getattr(trained, saved)(tmp_path / "a")
    trained.save_inference_model(tmp_path / "b")
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "b")
    agree(record_property, monosem.load_sae(tmp_path / "a"), theirs, theirs.encode)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka_batchtopk"])
def test_we_load_runs_of_saelens_whose_scale_is_in_a_file_of_its_own(
    tmp_path: Path, record_property: Record, architecture: str, rescale: bool
) -> None:
    mode, scale = "expected_average_only_in", 0.37
    keys = {"normalize_activations": mode, "rescale_acts_by_decoder_norm": rescale}
    trained = saelens(architecture, training=True, **keys)
    trained.save_model(tmp_path / "a")
    (tmp_path / "a" / "activation_scaler.json").write_text(json.dumps({"scaling_factor": scale}))
    trained.fold_activation_norm_scaling_factor(scale)
    trained.save_inference_model(tmp_path / "b")
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "b")
    unit = scale if rescale else 1.0  # ours keep the units of training, theirs are times the folded decoder norms
    agree(record_property, monosem.load_sae(tmp_path / "a"), theirs, lambda x: theirs.encode(x) * unit)


FLAT: list[dict[str, Any]] = [
    {},
    {"architecture": "standard", "apply_b_dec_to_input": False, "normalize_activations": False},
    {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": "layer_norm"},
    {"architecture": "topk", "activation_fn": "topk", "activation_fn_kwargs": {"k": K}},
    {"architecture": "gated", "normalize_activations": "none", "sae_lens_version": "4.0.1"},
    {"architecture": "jumprelu", "apply_b_dec_to_input": False, "normalize_activations": "constant_norm_rescale"},
]


@pytest.mark.parametrize("keys", FLAT, ids=range(len(FLAT)))
def test_flat_configurations_are_read_as_saelens_reads_them(
    tmp_path: Path, record_property: Record, keys: dict[str, Any]
) -> None:
    architecture = "topk" if "activation_fn_kwargs" in keys else keys.get("architecture", "standard")
    saelens(architecture).save_model(tmp_path)
    flat = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "hook_point": "blocks.3.hook_resid_pre"}
    (tmp_path / "cfg.json").write_text(json.dumps({**flat, "model_name": "acme/tiny", "device": "cpu", **keys}))
    theirs, ours = sae_lens.SAE.load_from_disk(tmp_path), monosem.load_sae(tmp_path)
    assert (ours.facts["site"], ours.facts["model"]) == ("blocks.3.hook_resid_pre", "acme/tiny")
    agree(record_property, ours, theirs, theirs.encode)


@pytest.mark.parametrize("key", ["apply_b_dec_to_input", "normalize_activations", "rescale_acts_by_decoder_norm"])
def test_keys_that_are_missing_have_saelens_defaults(tmp_path: Path, record_property: Record, key: str) -> None:
    saelens("topk").save_model(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    del cfg[key]
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    theirs = sae_lens.SAE.load_from_disk(tmp_path)
    agree(record_property, monosem.load_sae(tmp_path), theirs, theirs.encode)


# Gemma Scope, as SAELens reads it


def locally(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str) -> Any:
    """Return what SAELens makes of local files with one of its loaders for the hub."""
    loaders = importlib.import_module("sae_lens.loading.pretrained_sae_loaders")

    def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
        with safe_open(folder / Path(filename).name, "pt") as file:
            return {key: list(file.get_tensor(key).shape) for key in file.keys()}  # noqa: SIM118

    def local(repo_id: str, filename: str, **_: Any) -> str:
        return str(folder / Path(filename).name)

    def convert(cfg_overrides: Any, **rest: Any) -> Any:
        return getattr(loaders, name)(cfg_overrides={**cfg_overrides, "d_in": D_IN, "d_sae": D_SAE}, **rest)

    monkeypatch.setattr(loaders, "hf_hub_download", local)
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", shapes)
    place = "resid_post/layer_20_width_16k" if "3" in name else "layer_20/width_16k/average_l0_71"
    return sae_lens.SAE.from_pretrained("acme/gemma-scope-2b-pt-res", place, converter=convert)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("normaliser", ["none", "mean_norm"])
@pytest.mark.parametrize("variant", ["standard", "gated", "batchtopk", "matryoshka", "jumprelu"])
def test_saelens_loads_our_gemma_scope_files(
    tmp_path: Path,
    record_property: Record,
    monkeypatch: pytest.MonkeyPatch,
    variant: str,
    normaliser: str,
    centred: bool,
) -> None:
    sae = random_sae(variant, {"subtract_b_dec": centred}, normaliser)
    monosem.save_sae(sae, tmp_path, "gemma_scope")
    theirs = locally(monkeypatch, tmp_path, "gemma_2_sae_huggingface_loader")
    agree(record_property, sae, theirs, theirs.encode)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gemma_scope_2_is_read_as_saelens_reads_it(
    tmp_path: Path, record_property: Record, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    weights = {name.replace("W_", "w_"): value.to(dtype) for name, value in random_sae("jumprelu").weights.items()}
    save_file(weights, tmp_path / "params.safetensors")
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "hf_hook_point_in": "model.layers.20.output"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs, ours = locally(monkeypatch, tmp_path, "gemma_3_sae_huggingface_loader"), monosem.load_sae(tmp_path)
    assert ours.facts["site"] == theirs.cfg.metadata.hook_name == "blocks.20.hook_resid_post"
    agree(record_property, ours, theirs, theirs.encode)


# dictionary_learning


def classes() -> dict[str, Callable[[], Any]]:
    """Return its classes, each as a function that makes one."""
    made: dict[str, Callable[[], Any]] = {
        name: partial(getattr(dl, name), D_IN, D_SAE)
        for name in ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder")
    }
    made |= {name: partial(getattr(dl, name), D_IN, D_SAE, K) for name in ("AutoEncoderTopK", "BatchTopKSAE")}
    made["MatryoshkaBatchTopKSAE"] = partial(dl.MatryoshkaBatchTopKSAE, D_IN, D_SAE, K, [6, 18])
    return made


@pytest.mark.parametrize("name", list(classes()))
def test_we_load_dictionary_learning(tmp_path: Path, record_property: Record, name: str) -> None:
    theirs = randomised(classes()[name]())
    torch.save(theirs.state_dict(), tmp_path / "ae.pt")
    trainer = {"dict_class": name, "activation_dim": D_IN, "dict_size": D_SAE, "layer": 12, "lm_name": "acme/tiny"}
    trainer |= {"k": K, "lr": 1e-4, "steps": 1000, "submodule_name": "resid_post_layer_12", "wandb_name": name}
    config = {"trainer": trainer, "buffer": {"d_submodule": D_IN, "ctx_len": 128, "io": "out"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = monosem.load_sae(tmp_path)
    assert (ours.facts["site"], ours.facts["context"]) == ("blocks.12.hook_resid_post", 128)
    agree(record_property, ours, theirs, theirs.encode)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("normaliser", ["none", "mean_norm"])
@pytest.mark.parametrize("variant", HYPER)
def test_dictionary_learning_loads_ours(
    tmp_path: Path, record_property: Record, variant: str, normaliser: str, centred: bool
) -> None:
    sae = random_sae(variant, {"subtract_b_dec": centred}, normaliser)
    monosem.save_sae(sae, tmp_path, "dictionary_learning")
    theirs, config = dl.load_dictionary(str(tmp_path), "cpu")
    encode = theirs.encode
    if config["trainer"]["dict_class"] == "AutoEncoder":  # brings decoder rows to norm 1 unless told not to
        encode = dl.AutoEncoder.from_pretrained(tmp_path / "ae.pt", normalize_decoder=False).encode
    agree(record_property, sae, theirs, encode)


# sparsify


def dense(encode: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """Return sparsify's codes [n, D_SAE] from values and places."""
    found = encode(x)
    return torch.zeros(len(x), D_SAE).scatter(1, found.top_indices, found.top_acts)


def decoded(theirs: Any, x: Tensor) -> Tensor:
    """Return sparsify's reconstruction by k features; with `multi_topk` its `forward` gives that by 4 k."""
    found = theirs.encode(x)
    return theirs.decode(found.top_acts, found.top_indices)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("normaliser", ["none", "mean_norm"])
def test_sparsify_loads_ours(tmp_path: Path, record_property: Record, normaliser: str, centred: bool) -> None:
    sae = random_sae("topk", {"subtract_b_dec": centred}, normaliser)
    monosem.save_sae(sae, tmp_path, "sparsify")
    theirs = sparsify.SparseCoder.load_from_disk(tmp_path)
    agree(record_property, sae, partial(decoded, theirs), partial(dense, theirs.encode))


@pytest.mark.parametrize("keys", [{"num_latents": D_SAE}, {"num_latents": 0}, {"num_latents": 0, "multi_topk": True}])
@pytest.mark.filterwarnings("error::monosem.types.FormatWarning")
def test_we_load_sparsify(tmp_path: Path, record_property: Record, keys: dict[str, Any]) -> None:
    cfg = sparsify.SparseCoderConfig(k=K, expansion_factor=D_SAE // D_IN, **keys)
    theirs = randomised(sparsify.SparseCoder(D_IN, cfg))
    theirs.save_to_disk(tmp_path / "layers.5.mlp")
    ours = monosem.load_sae(tmp_path / "layers.5.mlp")
    assert ours.facts["site"] == "blocks.5.hook_mlp_out"
    agree(record_property, ours, partial(decoded, theirs), partial(dense, theirs.encode))


# OpenAI's checkpoints: their code is in no registry, and is stated again here


class Theirs(nn.Module):
    """Gao et al.'s autoencoder: standardise the input if told, subtract a bias, encode, activate, decode, undo all."""

    def __init__(self, k: int) -> None:
        """k: 0 for ReLU without standardising, else TopK with it."""
        super().__init__()
        self.k = k
        self.pre_bias, self.latent_bias = nn.Parameter(torch.zeros(D_IN)), nn.Parameter(torch.zeros(D_SAE))
        self.encoder, self.decoder = nn.Linear(D_IN, D_SAE, bias=False), nn.Linear(D_SAE, D_IN, bias=False)
        self.register_buffer("stats_last_nonzero", torch.zeros(D_SAE, dtype=torch.long))
        self.register_buffer("latents_activation_frequency", torch.ones(D_SAE))
        self.register_buffer("latents_mean_square", torch.zeros(D_SAE))

    def standardised(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, deviation = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        if not self.k:
            return x, torch.zeros_like(mean), torch.ones_like(deviation)
        return (x - mean) / (deviation + 1e-5), mean, deviation

    def encode(self, x: Tensor) -> Tensor:
        before = self.encoder(self.standardised(x)[0] - self.pre_bias) + self.latent_bias
        if not self.k:
            return before.relu()
        values, places = before.topk(self.k)
        return torch.zeros_like(before).scatter(-1, places, values.relu())

    def forward(self, x: Tensor) -> Tensor:
        _, mean, deviation = self.standardised(x)
        return (self.decoder(self.encode(x)) + self.pre_bias) * deviation + mean

    def checkpoint(self) -> dict[str, Any]:
        """Return what is saved: the state, the name of the activation and the activation's own state."""
        own = {"k": self.k, "postact_fn": "ReLU"} if self.k else {}
        return {**self.state_dict(), "activation": "TopK" if self.k else "ReLU", "activation_state_dict": own}

    @classmethod
    def loaded(cls, path: Path) -> Theirs:
        """Return the autoencoder in a file; every key of the state must be there, and no other."""
        state = torch.load(path, weights_only=True)
        activation, own = state.pop("activation", "ReLU"), state.pop("activation_state_dict", {})
        made = cls(own["k"] if activation == "TopK" else 0)
        made.load_state_dict(state, strict=True)
        return made


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("variant", "normaliser"), [("topk", "token_ln"), ("standard", "none"), ("tanh", "mean_norm")])
def test_openai_code_loads_ours(
    tmp_path: Path, record_property: Record, variant: str, normaliser: str, centred: bool
) -> None:
    sae = random_sae(variant, {"subtract_b_dec": centred}, normaliser)
    monosem.save_sae(sae, tmp_path, "openai")
    theirs = Theirs.loaded(tmp_path / "autoencoder.pt")
    agree(record_property, sae, theirs, theirs.encode)


@pytest.mark.parametrize("k", [0, K])
def test_we_load_openai_checkpoints(tmp_path: Path, record_property: Record, k: int) -> None:
    theirs = randomised(Theirs(k))
    torch.save(theirs.checkpoint(), tmp_path / "7.pt")
    for place in (tmp_path, tmp_path / "7.pt"):
        agree(record_property, monosem.load_sae(place), theirs, theirs.encode)
