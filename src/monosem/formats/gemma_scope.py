"""Gemma Scope: `params.npz` (release 1), or `config.json` + `params.safetensors` (release 2). JumpReLU SAEs.

The weights have SAELens' names and shapes (release 2 in small letters); b_dec is not subtracted from the input. Release
1 has no configuration: layer and kind of site are in the path, `.../gemma-scope-2b-pt-res/layer_20/width_16k/...`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from monosem.equivalents import Plain, as_jumprelu, plain, recentred, sae_of
from monosem.formats import configuration
from monosem.sae import Sae
from monosem.store import write_atomic
from monosem.types import UserError
from monosem.untrusted import Place, check_shapes, numbers, read_npz, read_object, read_safetensors, shown

NAMES = ("W_enc", "b_enc", "threshold", "W_dec", "b_dec")
HOOKS = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}
POINTS = {"output": "hook_resid_post", "mlp.output": "hook_mlp_out", "self_attn.o_proj.input": "attn.hook_z"}


class Config(BaseModel):
    """`config.json` of release 2."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())
    architecture: str
    model_name: str | None = None
    hf_hook_point_in: str | None = None
    hf_hook_point_out: str | None = None
    width: int | None = None
    l0: float | None = None
    affine_connection: bool = False
    type: str | None = None


def recognises(place: Place) -> bool:
    return place.has("params.npz") or place.has("params.safetensors")


def read(place: Place) -> Sae:
    facts: dict[str, Any] = {}
    if place.has("params.npz"):
        path = place.file("params.npz")
        raw = read_npz(path)
        facts = _from_path(str(place.folder.absolute()))
    else:
        path = place.file("params.safetensors")
        raw = read_safetensors(path)
        facts = _from_config(place.file("config.json"), raw)
    raw = {re.sub("^w_", "W_", name): value for name, value in raw.items()}
    weights = numbers(raw, NAMES, path)
    if weights["W_enc"].ndim != 2:
        raise UserError(f"{path}: W_enc has shape {tuple(weights['W_enc'].shape)}; a matrix [d_in, d_sae] is wanted")
    d_in, d_sae = weights["W_enc"].shape
    shapes = {"b_enc": (d_sae,), "threshold": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    check_shapes(weights, shapes, path, f"W_enc [{d_in}, {d_sae}]")
    return sae_of(Plain("jumprelu", weights, centred=False), facts)


def _from_path(text: str) -> dict[str, Any]:
    """Return site and model as a path of release 1 tells them; what it doesn't tell is left out."""
    layer, release = re.search(r"layer_(\d{1,4})", text), re.search(r"gemma-scope-(\w+)-(pt|it)-(res|mlp|att)", text)
    facts: dict[str, Any] = {}
    if release:
        facts["model"] = f"google/gemma-2-{release[1]}" + ("-it" if release[2] == "it" else "")
        if "embedding" in text:
            facts["site"] = "model.embed_tokens"  # where Hugging Face's model has not multiplied by sqrt(d_model) yet
    if layer:
        facts["site"] = f"blocks.{int(layer[1])}.{HOOKS[release[3] if release else 'res']}"
    return facts


def _from_config(path: Path, raw: dict[str, Any]) -> dict[str, Any]:
    config = configuration(Config, read_object(path), str(path))
    if config.architecture != "jump_relu":
        raise UserError(f'{path}: architecture = {shown(config.architecture)} is not supported; "jump_relu" is')
    if "affine_skip_connection" in raw or config.hf_hook_point_out not in (None, config.hf_hook_point_in):
        raise UserError(f"{path}: a transcoder (it reads one site and writes another); only SAEs are read")
    point = re.fullmatch(r"(?:model\.)?layers\.(\d{1,4})\.(.+)", config.hf_hook_point_in or "")
    hook = POINTS.get(point[2]) if point else None
    site = f"blocks.{int(point[1])}.{hook}" if point and hook else config.hf_hook_point_in
    return {"site": site, "model": config.model_name}


def write(sae: Sae, folder: Path) -> None:
    found = plain(sae)
    if found.per_token:
        raise UserError(f'gemma_scope: has no word for normalise = "{found.per_token}"; write the SAE as saelens')
    weights = recentred(as_jumprelu(found), centred=False).weights
    arrays: dict[str, Any] = {name: weights[name].numpy() for name in NAMES}

    def save(path: Path) -> None:
        with open(path, "wb") as file:  # numpy would add .npz to a path
            np.savez(file, **arrays)

    write_atomic(folder / "params.npz", save)
