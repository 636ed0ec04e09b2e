"""OpenAI's checkpoints (Gao et al. 2024): one `.pt` file, a state dict with the name of its activation.

latents = activation((x - pre_bias) encoder^T + latent_bias), reconstruction = latents decoder^T + pre_bias. With
`activation` TopK the input is standardised over its dimensions first (and the reconstruction put back), with ReLU not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from monosem.equivalents import Plain, plain, recentred, sae_of
from monosem.formats import configuration
from monosem.sae import Sae
from monosem.store import write_atomic
from monosem.types import UserError
from monosem.untrusted import Place, check_shapes, numbers, read_torch, shown

NAMES = ("encoder.weight", "latent_bias", "decoder.weight", "pre_bias")


class Activation(BaseModel):
    """`activation_state_dict`."""

    model_config = ConfigDict(extra="allow", strict=True)
    k: int = Field(ge=1)
    postact_fn: str = "ReLU"


def recognises(place: Place) -> bool:
    return _file(place) is not None


def _file(place: Place) -> str | None:
    """Return the name of the checkpoint: the file that was asked for, or the only .pt file of the folder."""
    if "file" in place.known:
        name = place.known["file"]
        return name if name.endswith(".pt") and name != "ae.pt" else None
    names = [path.name for path in place.folder.glob("*.pt") if path.is_file()]
    return names[0] if len(names) == 1 and names != ["ae.pt"] and not place.has("cfg.json") else None


def read(place: Place) -> Sae:
    path = place.file(_file(place) or "autoencoder.pt")
    state = read_torch(path)
    activation = state.get("activation", "ReLU")
    if activation not in ("ReLU", "TopK"):
        raise UserError(f"{path}: activation = {shown(activation)} is not supported; ReLU and TopK are")
    raw = numbers(state, NAMES, path)
    if raw["encoder.weight"].ndim != 2:
        raise UserError(f"{path}: encoder.weight has shape {tuple(raw['encoder.weight'].shape)}; a matrix is wanted")
    d_sae, d_in = raw["encoder.weight"].shape
    shapes = {"latent_bias": (d_sae,), "decoder.weight": (d_in, d_sae), "pre_bias": (d_in,)}
    check_shapes(raw, shapes, path, f"encoder.weight [{d_sae}, {d_in}]")
    weights = {
        "W_enc": raw["encoder.weight"].t().contiguous(),
        "b_enc": raw["latent_bias"],
        "W_dec": raw["decoder.weight"].t().contiguous(),
        "b_dec": raw["pre_bias"],
    }
    if activation == "ReLU":
        return sae_of(Plain("standard", weights, centred=True), {})
    settings = configuration(Activation, state.get("activation_state_dict"), f"{path}: activation_state_dict")
    if settings.postact_fn != "ReLU":
        raise UserError(f"{path}: postact_fn = {shown(settings.postact_fn)} is not supported; ReLU is")
    return sae_of(Plain("topk", weights, centred=True, k=settings.k, per_token="token_ln"), {})


def write(sae: Sae, folder: Path) -> None:
    found = recentred(plain(sae), centred=True)
    normal = {"topk": "token_ln", "standard": ""}
    if found.architecture not in normal or found.per_token != normal[found.architecture]:
        raise UserError(
            "openai: has TopK SAEs with token_ln and ReLU SAEs without a per-token normaliser only, no word for "
            f"{found.architecture} with {found.per_token or 'none'}; write it as saelens"
        )
    w = found.weights
    state: dict[str, Any] = {
        "pre_bias": w["b_dec"],
        "latent_bias": w["b_enc"],
        "stats_last_nonzero": torch.zeros(sae.d_sae, dtype=torch.long),
        "latents_activation_frequency": torch.ones(sae.d_sae),
        "latents_mean_square": torch.zeros(sae.d_sae),
        "encoder.weight": w["W_enc"].t().contiguous(),
        "decoder.weight": w["W_dec"].t().contiguous(),
        "activation": "TopK" if found.architecture == "topk" else "ReLU",
    }
    if found.architecture == "topk":
        state["activation_state_dict"] = {"k": found.k, "postact_fn": "ReLU"}
    write_atomic(folder / "autoencoder.pt", lambda temporary: torch.save(state, temporary))
