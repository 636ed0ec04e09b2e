"""dictionary_learning: `config.json` + `ae.pt`, a state dict; `trainer.dict_class` says which of seven classes.

AutoEncoder, AutoEncoderTopK, BatchTopKSAE, MatryoshkaBatchTopKSAE and GatedAutoEncoder subtract their bias from the
input, AutoEncoderNew and JumpReluAutoEncoder don't. A TopK's saved `threshold` is not used; that of the batch rules is.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from monosem.equivalents import Plain, plain, recentred, sae_of
from monosem.formats import Origin, configuration
from monosem.sae import Sae
from monosem.store import write_atomic, write_json
from monosem.types import UserError
from monosem.untrusted import Place, check_shapes, numbers, read_object, read_torch, shown

LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
DIRECT = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
GATED = {"b_gate": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag", "b_dec": "decoder_bias"}
CLASSES: dict[str, tuple[Any, bool, dict[str, str]]] = {
    "AutoEncoder": ("standard", True, {**LINEAR, "b_dec": "bias"}),
    "AutoEncoderNew": ("standard", False, {**LINEAR, "b_dec": "decoder.bias"}),
    "GatedAutoEncoder": ("gated", True, {"W_enc": "encoder.weight", "W_dec": "decoder.weight", **GATED}),
    "AutoEncoderTopK": ("topk", True, {**LINEAR, "b_dec": "b_dec"}),
    "BatchTopKSAE": ("jumprelu", True, {**LINEAR, "b_dec": "b_dec", "threshold": "threshold"}),
    "MatryoshkaBatchTopKSAE": ("jumprelu", True, DIRECT),
    "JumpReluAutoEncoder": ("jumprelu", False, DIRECT),
}
"""Class -> architecture, whether the input is centred, our name of each tensor -> theirs."""


class Trainer(BaseModel):
    """`trainer` of config.json: what is needed to read the weights; the rest says how they were trained."""

    model_config = ConfigDict(extra="ignore", strict=True)
    dict_class: str
    activation_dim: int = Field(ge=1)
    dict_size: int = Field(ge=1)
    k: int | None = Field(default=None, ge=1)
    layer: int | str | None = None
    lm_name: str | None = None
    submodule_name: str | None = None


class Buffer(BaseModel):
    """`buffer` of config.json."""

    model_config = ConfigDict(extra="ignore", strict=True)
    ctx_len: int | None = None


class Config(BaseModel):
    """`config.json`."""

    model_config = ConfigDict(extra="allow", strict=True)
    trainer: Trainer
    buffer: Buffer = Buffer()
    monosem: Origin = Origin()


def recognises(place: Place) -> bool:
    return place.has("ae.pt") and place.known.get("file", "ae.pt") == "ae.pt"


def read(place: Place) -> Sae:
    cfg_path, path = place.file("config.json"), place.file("ae.pt")
    config = configuration(Config, read_object(cfg_path), str(cfg_path))
    trainer = config.trainer
    if trainer.dict_class not in CLASSES:
        raise UserError(
            f"{cfg_path}: trainer.dict_class = {shown(trainer.dict_class)} is not supported; "
            f"known are {', '.join(CLASSES)}"
        )
    architecture, centred, names = CLASSES[trainer.dict_class]
    if architecture == "topk" and trainer.k is None:
        raise UserError(f'{cfg_path}: "trainer.k" is missing')
    state = numbers(read_torch(path), names.values(), path)
    d_in, d_sae = trainer.activation_dim, trainer.dict_size
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    weights: dict[str, Tensor] = {}
    for ours, theirs in names.items():
        shape = shapes.get(ours, (d_sae,))
        if ours == "threshold" and state[theirs].ndim == 0:
            state[theirs] = state[theirs].repeat(d_sae)  # W_enc comes before it: d_sae is no mere claim
        turned = theirs in ("encoder.weight", "decoder.weight")  # torch.nn.Linear has [out, in]
        check_shapes(state, {theirs: shape[::-1] if turned else shape}, path, "config.json")
        weights[ours] = state[theirs].t().contiguous() if turned else state[theirs]
    facts = {
        "site": _site(trainer),
        "model": trainer.lm_name,
        "context": config.buffer.ctx_len,
        "dict_class": trainer.dict_class,
        **config.monosem.model_dump(exclude_none=True),
    }
    return sae_of(Plain(architecture, weights, centred, trainer.k or 0 if architecture == "topk" else 0), facts)


def _site(trainer: Trainer) -> str | None:
    layer = re.fullmatch(r"\d{1,4}", str(trainer.layer))
    if not layer:
        return None
    name = trainer.submodule_name or ""
    hook = "hook_mlp_out" if "mlp" in name else "hook_attn_out" if "att" in name else "hook_resid_post"
    return f"blocks.{int(layer[0])}.{hook}"


def _class_for(found: Plain) -> str:
    """Return the class that says the most of `found`."""
    if found.architecture == "jumprelu":
        one = bool((found.weights["threshold"] == found.weights["threshold"][0]).all())
        return "BatchTopKSAE" if found.centred and one else "JumpReluAutoEncoder"
    if found.architecture == "standard":
        return "AutoEncoder" if found.centred else "AutoEncoderNew"
    return {"gated": "GatedAutoEncoder", "topk": "AutoEncoderTopK"}[found.architecture]


def write(sae: Sae, folder: Path) -> None:
    found = plain(sae)
    if found.per_token:
        raise UserError(
            f'dictionary_learning: has no word for normalise = "{found.per_token}"; write the SAE as saelens'
        )
    name = _class_for(found)
    _, centred, names = CLASSES[name]
    weights = recentred(found, centred).weights
    k = round(sae.hyper.get("k") or 1)
    state: dict[str, Tensor] = {}
    for ours, theirs in names.items():
        turned = theirs in ("encoder.weight", "decoder.weight")
        state[theirs] = weights[ours].t().contiguous() if turned else weights[ours]
    if name in ("AutoEncoderTopK", "BatchTopKSAE"):
        state["k"] = torch.tensor(k, dtype=torch.int)
        state["threshold"] = state["threshold"][0].clone() if "threshold" in state else torch.tensor(-1.0)
    layer = re.search(r"\d+", str(sae.facts.get("site") or ""))
    trainer = {
        "dict_class": name,
        "activation_dim": sae.d_in,
        "dict_size": sae.d_sae,
        "layer": int(layer[0]) if layer else None,
        "lm_name": sae.facts.get("model"),
        "submodule_name": sae.facts.get("site"),
    }
    if "k" in state:
        trainer["k"] = k
    write_atomic(folder / "ae.pt", lambda temporary: torch.save(state, temporary))
    buffer = {"ctx_len": sae.facts.get("context")}
    write_json(folder / "config.json", {"trainer": trainer, "buffer": buffer, "monosem": Origin.of(sae)})
