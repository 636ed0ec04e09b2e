"""SAELens' layout (version 6): `cfg.json` + `sae_weights.safetensors`, with our own record under `monosem`.

The normaliser is folded into the weights, so that any reader gets raw activations in and out; per-token normalisers,
which don't fold, are named in `normalize_activations` instead. Our record keeps the scale, so that we can unfold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from monosem.normaliser import PER_TOKEN, Normaliser, fold
from monosem.sae import Sae
from monosem.store import file_hash, read_json, write_bytes, write_json
from monosem.types import UserError
from monosem.variants import make_variant

PER_TOKEN_NAMES = {"token_const": "constant_norm_rescale", "token_ln": "layer_norm"}
EXPECTED = {
    "standard": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "gated": ("W_enc", "b_gate", "b_mag", "r_mag", "W_dec", "b_dec"),
    "topk": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "jumprelu": ("W_enc", "b_enc", "threshold", "W_dec", "b_dec"),
}


def save_sae(sae: Sae, folder: str | Path) -> None:
    """Write `cfg.json` and `sae_weights.safetensors` into `folder`; cfg.json last, so that it marks a whole SAE."""
    folder = Path(folder)
    per_token = sae.normaliser.kind in PER_TOKEN
    scale = 1.0 if per_token else sae.normaliser.scale
    weights = {name: value.detach().cpu().contiguous() for name, value in fold(sae.weights, scale).items()}
    digest = write_bytes(folder / "sae_weights.safetensors", save(weights))
    write_json(folder / "cfg.json", _cfg(sae, digest))


def _cfg(sae: Sae, digest: str) -> dict[str, Any]:
    architecture = sae.variant.architecture
    cfg: dict[str, Any] = {
        "architecture": architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.variant.centres_input(),
        "normalize_activations": PER_TOKEN_NAMES.get(sae.normaliser.kind, "none"),
        "reshape_activations": "none",
        "metadata": {
            "hook_name": sae.facts.get("site"),
            "model_name": sae.facts.get("model"),
            "context_size": sae.facts.get("context"),
            "prepend_bos": False,
            "sae_lens_version": "6.54.12",
            "sae_lens_training_version": None,
        },
    }
    if architecture == "topk":
        cfg |= {"k": sae.hyper["k"], "rescale_acts_by_decoder_norm": False}
    cfg["monosem"] = {
        "variant": sae.variant_name,
        "hyper": sae.hyper,
        "normaliser": {"kind": sae.normaliser.kind, "scale": sae.normaliser.scale},
        "activation_units": "normalised",
        "weights_sha256": digest,
        **sae.facts,
    }
    return cfg


def load_sae(folder: str | Path) -> Sae:
    """Read an SAE in SAELens' layout; one that monosem wrote comes back with its normaliser unfolded.

    Raises UserError naming the file or the key that is missing, unsupported or damaged.
    """
    folder = Path(folder)
    cfg_path, weights_path = folder / "cfg.json", folder / "sae_weights.safetensors"
    if not cfg_path.exists():
        raise UserError(f"{folder}: no SAE here (no cfg.json); give a folder with cfg.json and sae_weights.safetensors")
    cfg = read_json(cfg_path)
    for key in ("architecture", "d_in", "d_sae"):
        if key not in cfg:
            raise UserError(f'{cfg_path}: "{key}" is missing')
    weights = _weights(weights_path, cfg, cfg_path)
    ours = cfg.get("monosem")
    if ours is None:
        return _foreign(cfg, cfg_path, weights)
    if file_hash(weights_path) != ours["weights_sha256"]:
        raise UserError(f"{weights_path}: altered (its SHA-256 is not the one in cfg.json); train this SAE again")
    normaliser = Normaliser(**ours["normaliser"])
    if normaliser.kind not in PER_TOKEN and normaliser.scale != 1.0:
        weights = fold(weights, 1 / normaliser.scale)
    known = ("variant", "hyper", "normaliser", "activation_units", "weights_sha256")
    facts = {key: value for key, value in ours.items() if key not in known}
    hyper = {key: tuple(v) if isinstance(v, list) else v for key, v in ours["hyper"].items()}
    return Sae(ours["variant"], make_variant(ours["variant"], hyper), weights, normaliser, facts)


def _weights(path: Path, cfg: dict[str, Any], cfg_path: Path) -> dict[str, torch.Tensor]:
    architecture = cfg["architecture"]
    if architecture not in EXPECTED:
        raise UserError(
            f'{cfg_path}: architecture = "{architecture}" is not supported; known are {", ".join(EXPECTED)}'
        )
    try:
        weights = {name: value.float() for name, value in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: can't be read ({error}); the file is missing, truncated or altered") from error
    d_in, d_sae = cfg["d_in"], cfg["d_sae"]
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    for name in EXPECTED[architecture]:
        if name not in weights:
            raise UserError(f'{path}: tensor "{name}" is missing; it holds {", ".join(sorted(weights))}')
        if tuple(weights[name].shape) != shapes.get(name, (d_sae,)):
            raise UserError(
                f"{path}: {name} has shape {tuple(weights[name].shape)}, cfg.json says {shapes.get(name, (d_sae,))}"
            )
    return weights


def _foreign(cfg: dict[str, Any], path: Path, weights: dict[str, torch.Tensor]) -> Sae:
    """Return an SAE that SAELens wrote (the architectures trained here; others come with the formats)."""
    mode = cfg.get("normalize_activations", "none")
    kinds = {"none": "none", "expected_average_only_in": "none", **{v: k for k, v in PER_TOKEN_NAMES.items()}}
    if mode not in kinds:
        raise UserError(f'{path}: normalize_activations = "{mode}" is not supported')
    centred = bool(cfg.get("apply_b_dec_to_input", False))
    architecture = cfg["architecture"]
    if architecture == "topk":
        if cfg.get("rescale_acts_by_decoder_norm"):
            norms = weights["W_dec"].norm(dim=1)
            if not torch.allclose(norms, torch.ones_like(norms), atol=1e-4):
                raise UserError(
                    f"{path}: rescale_acts_by_decoder_norm with decoder rows that are not unit is not supported"
                )
        if not centred:
            raise UserError(f"{path}: a TopK SAE with apply_b_dec_to_input = false is not supported")
        hyper: dict[str, Any] = {"k": cfg["k"]}
    else:
        hyper = {"subtract_b_dec": centred}
    facts = {"site": cfg.get("metadata", {}).get("hook_name"), "model": cfg.get("metadata", {}).get("model_name")}
    return Sae(architecture, make_variant(architecture, hyper), weights, Normaliser(kinds[mode]), facts)
