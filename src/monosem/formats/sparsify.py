"""EleutherAI's sparsify: `cfg.json` + `sae.safetensors`. TopK SAEs over raw activations, b_dec subtracted first.

The folder is named after the module whose output it reads (`layers.10`, `layers.10.mlp`); the folder above may have a
`config.json` with the model. encoder.weight is [d_sae, d_in], W_dec [d_sae, d_in].
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save

from monosem.equivalents import Plain, plain, recentred, sae_of
from monosem.formats import Origin, configuration
from monosem.sae import Sae
from monosem.store import write_bytes, write_json
from monosem.types import UserError
from monosem.untrusted import Place, check_shapes, numbers, read_object, read_safetensors, shown

NAMES = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
HOOKS = {"": "hook_resid_post", ".mlp": "hook_mlp_out", ".self_attn": "hook_attn_out", ".attn": "hook_attn_out"}


class Config(BaseModel):
    """`cfg.json`."""

    model_config = ConfigDict(extra="allow", strict=True)
    d_in: int = Field(ge=1)
    k: int = Field(ge=1)
    activation: str = "topk"
    expansion_factor: int = 32
    num_latents: int = Field(default=0, ge=0)
    normalize_decoder: bool = True
    multi_topk: bool = False
    skip_connection: bool = False
    transcode: bool = False
    signed: bool = False
    monosem: Origin = Origin()


def recognises(place: Place) -> bool:
    return place.has("sae.safetensors")


def read(place: Place) -> Sae:
    cfg_path, path = place.file("cfg.json"), place.file("sae.safetensors")
    cfg = configuration(Config, read_object(cfg_path), str(cfg_path))
    for key, wrong in (("skip_connection", True), ("transcode", True), ("signed", True)):
        if getattr(cfg, key) == wrong:
            raise UserError(f"{cfg_path}: {key} = true is not supported; only SAEs without it are read")
    if cfg.activation != "topk":
        raise UserError(f'{cfg_path}: activation = {shown(cfg.activation)} is not supported; "topk" is')
    d_sae = cfg.num_latents or cfg.d_in * cfg.expansion_factor
    raw = numbers(read_safetensors(path), NAMES, path)
    shapes = {"encoder.weight": (d_sae, cfg.d_in), "encoder.bias": (d_sae,), "W_dec": (d_sae, cfg.d_in)}
    check_shapes(raw, {**shapes, "b_dec": (cfg.d_in,)}, path, "cfg.json")
    weights = {
        "W_enc": raw["encoder.weight"].t().contiguous(),
        "b_enc": raw["encoder.bias"],
        "W_dec": raw["W_dec"],
        "b_dec": raw["b_dec"],
    }
    return sae_of(
        Plain("topk", weights, centred=True, k=cfg.k), {**_origin(place), **cfg.monosem.model_dump(exclude_none=True)}
    )


def _origin(place: Place) -> dict[str, Any]:
    """Return site and model as the folder's name and the run's configuration above it tell them."""
    name = place.folder.absolute().name
    found = re.fullmatch(r"(?:.*\.)?(?:layers|h)\.(\d{1,4})(\.\w+)?", name)
    hook = HOOKS.get(found[2] or "") if found else None
    facts: dict[str, Any] = {"site": f"blocks.{int(found[1])}.{hook}" if found and hook else None}
    above = Place(place.folder.absolute().parent, place.root)
    if above.has("config.json") and facts["site"]:
        model = read_object(above.file("config.json")).get("model")
        facts["model"] = model if isinstance(model, str) else None
    return facts


def write(sae: Sae, folder: Path) -> None:
    found = plain(sae)
    if found.architecture != "topk" or found.per_token:
        what = f"a {found.architecture} SAE" if found.architecture != "topk" else f'normalise = "{found.per_token}"'
        raise UserError(f"sparsify: has TopK SAEs over raw activations only, no word for {what}; write it as saelens")
    found = recentred(found, centred=True)
    w = found.weights
    tensors = {
        "encoder.weight": w["W_enc"].t().contiguous(),
        "encoder.bias": w["b_enc"],
        "W_dec": w["W_dec"],
        "b_dec": w["b_dec"],
    }
    write_bytes(folder / "sae.safetensors", save(tensors))
    cfg = Config(d_in=sae.d_in, k=found.k, num_latents=sae.d_sae, normalize_decoder=False)
    write_json(folder / "cfg.json", {**cfg.model_dump(exclude={"signed", "monosem"}), "monosem": Origin.of(sae)})
