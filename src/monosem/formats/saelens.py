"""SAELens' layout (version 6): `cfg.json` + `sae_weights.safetensors`, with our own record under `monosem`.

The normaliser is folded into the weights, so that any reader gets raw activations in and out; per-token normalisers,
which don't fold, are named in `normalize_activations` instead. Our record keeps the scale, so that we can unfold.
Flat configurations (before version 6) and unfinished training runs (batchtopk, matryoshka) are read, too.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from safetensors.torch import save

from monosem.equivalents import Plain, sae_of
from monosem.formats import Origin, configuration
from monosem.normaliser import PER_TOKEN, Kind, Normaliser, fold
from monosem.sae import Sae
from monosem.store import file_hash, write_bytes, write_json
from monosem.types import FormatWarning, UserError
from monosem.untrusted import Place, check_shapes, numbers, read_object, read_safetensors, shown
from monosem.variants import make_variant

WEIGHTS = "sae_weights.safetensors"
PER_TOKEN_NAMES = {"token_const": "constant_norm_rescale", "token_ln": "layer_norm"}
KINDS = {"none": "", "expected_average_only_in": "", **{theirs: ours for ours, theirs in PER_TOKEN_NAMES.items()}}
EXPECTED = {
    "standard": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "gated": ("W_enc", "b_gate", "b_mag", "r_mag", "W_dec", "b_dec"),
    "topk": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "jumprelu": ("W_enc", "b_enc", "threshold", "W_dec", "b_dec"),
}
TRAINED_AS = {"batchtopk": "jumprelu", "matryoshka_batchtopk": "jumprelu"}
"""Architectures of training runs -> what they are at inference: the threshold of a batch rule is kept as one number."""
OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
UNUSED = """
dtype device reshape_activations sae_lens_version sae_lens_training_version dataset_path dataset_trust_remote_code
neuronpedia_id hook_layer hook_point_layer seqpos_slice model_from_pretrained_kwargs noise_initial noise_level
l1_coefficient l1_warm_up_steps lr_warm_up_steps lr_decay_steps training_tokens train_batch_size_tokens lp_norm
aux_loss_coefficient decoder_init_norm topk_threshold_lr matryoshka_widths use_matryoshka_aux_loss l0_coefficient
l0_warm_up_steps jumprelu_bandwidth jumprelu_init_threshold jumprelu_sparsity_loss_mode pre_act_loss_coefficient
jumprelu_tanh_scale mse_loss_normalization use_ghost_grads model_class_name normalize_sae_decoder
decoder_heuristic_init init_encoder_as_decoder_transpose sae_id release b_dec_init_method tokens_per_buffer
from_pretrained_path checkpoint_path use_sparse_activations activation_fn_kwargs target_l0 jumprelu_ste_to_input
"""
"""Keys that SAELens writes and that the computation doesn't depend on."""


Setting = bool | int | float | str | None
Word = Annotated[str, StringConstraints(pattern=r"^\w{1,40}$")]


class Scaler(BaseModel):
    """`activation_scaler.json`: what activations of a run were multiplied with."""

    model_config = ConfigDict(extra="ignore", strict=True)
    scaling_factor: float | None = Field(default=None, gt=1e-12, lt=1e12)


class Metadata(BaseModel):
    """`metadata`: where the SAE was trained."""

    model_config = ConfigDict(extra="ignore", strict=True, protected_namespaces=())
    hook_name: str | None = None
    model_name: str | None = None
    context_size: int | None = None
    prepend_bos: bool | None = None
    hook_head_index: int | None = None


class Own(BaseModel):
    """`monosem`: our own record; what else stands in it are facts."""

    model_config = ConfigDict(extra="allow", strict=True)

    class Scale(BaseModel):
        """The normaliser that was folded."""

        model_config = ConfigDict(extra="forbid", strict=True)
        kind: Kind
        scale: float = Field(gt=1e-12, lt=1e12)

    variant: Word
    hyper: dict[Word, Setting | list[Setting]]
    normaliser: Scale
    weights_sha256: str
    activation_units: str = ""


class Config(BaseModel):
    """`cfg.json`."""

    model_config = ConfigDict(extra="allow", strict=True)
    architecture: str
    d_in: int = Field(ge=1)
    d_sae: int = Field(ge=1)
    k: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    apply_b_dec_to_input: bool = True
    normalize_activations: str = "none"
    rescale_acts_by_decoder_norm: bool = False
    finetuning_scaling_factor: bool = False
    activation_fn: Literal["relu", "topk"] = "relu"
    metadata: Metadata = Metadata()
    monosem: Own | None = None


def recognises(place: Place) -> bool:
    return place.has(WEIGHTS) or (place.has("cfg.json") and not place.has("sae.safetensors"))


def save_sae(sae: Sae, folder: str | Path) -> None:
    """Write `cfg.json` and `sae_weights.safetensors` into `folder`; cfg.json last, so that it marks a whole SAE."""
    folder = Path(folder)
    per_token = sae.normaliser.kind in PER_TOKEN
    scale = 1.0 if per_token else sae.normaliser.scale
    folded = fold(sae.weights, scale)
    weights = {name: folded[name].detach().cpu().contiguous() for name in EXPECTED[sae.variant.architecture]}
    digest = write_bytes(folder / WEIGHTS, save(weights))
    write_json(folder / "cfg.json", _cfg(sae, digest))


def write(sae: Sae, folder: Path) -> None:
    save_sae(sae, folder)


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
            "prepend_bos": sae.facts.get("prepend_bos", False),
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
    return read(Place(Path(folder)))


def read(place: Place) -> Sae:
    cfg_path, path = place.file("cfg.json"), place.file(WEIGHTS)
    cfg = configuration(Config, _flattened(read_object(cfg_path)), str(cfg_path))
    architecture = TRAINED_AS.get(cfg.architecture, cfg.architecture)
    if architecture not in EXPECTED:
        raise UserError(
            f"{cfg_path}: architecture = {shown(cfg.architecture)} is not supported; "
            f"known are {', '.join((*EXPECTED, *TRAINED_AS))}"
        )
    tensors = read_safetensors(path)
    names = list(EXPECTED[architecture])
    if cfg.architecture in TRAINED_AS and "threshold" not in tensors:
        names[names.index("threshold")] = "topk_threshold"
    weights = numbers(tensors, names, path)
    shapes = {
        "W_enc": (cfg.d_in, cfg.d_sae),
        "W_dec": (cfg.d_sae, cfg.d_in),
        "b_dec": (cfg.d_in,),
        "topk_threshold": (),
    }
    check_shapes(weights, {name: shapes.get(name, (cfg.d_sae,)) for name in weights}, path, "cfg.json")
    if "topk_threshold" in weights:  # only now is d_sae known to be no mere claim
        weights["threshold"] = weights.pop("topk_threshold").repeat(cfg.d_sae)
    if cfg.monosem is not None:
        return _own(cfg, cfg.monosem, weights, path)
    if "scaling_factor" in tensors:
        weights = _finetuned(cfg, numbers(tensors, ["scaling_factor"], path), weights, path)
    return _foreign(cfg, cfg_path, architecture, weights, place)


def _finetuned(
    cfg: Config, factor: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], path: Path
) -> dict[str, torch.Tensor]:
    """Return weights whose decoder rows have the factors that activations were multiplied with (before version 6)."""
    check_shapes(factor, {"scaling_factor": (cfg.d_sae,)}, path, "cfg.json")
    rows = factor["scaling_factor"][:, None]
    if not cfg.finetuning_scaling_factor and not torch.allclose(rows, torch.ones_like(rows)):
        raise UserError(f"{path}: has a scaling_factor, but cfg.json has no finetuning_scaling_factor = true; set it")
    return {**weights, "W_dec": rows * weights["W_dec"]}


def _flattened(raw: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration in the names of version 6, without the keys that don't matter."""
    metadata = raw.get("metadata")
    if metadata is None:  # before version 6, all keys lay side by side, and these were the defaults
        raw = {OLD_NAMES.get(key, key): value for key, value in raw.items()}
        given = raw.get("activation_fn_kwargs") or {}
        if raw.get("activation_fn") == "topk" and isinstance(given, dict) and "k" in given:
            raw |= {"architecture": "topk", "k": given["k"]}
        raw = {"architecture": "standard", "apply_b_dec_to_input": True, "prepend_bos": True, **raw}
        metadata = {name: raw.pop(name) for name in Metadata.model_fields if name in raw}
    unused, normalise = UNUSED.split(), raw.get("normalize_activations")
    if isinstance(normalise, bool) or normalise is None:
        normalise = "expected_average_only_in" if normalise else "none"
    kept = {key: value for key, value in raw.items() if key not in unused}
    return {**kept, "normalize_activations": normalise, "metadata": metadata}


def _own(cfg: Config, own: Own, weights: dict[str, torch.Tensor], path: Path) -> Sae:
    if file_hash(path) != own.weights_sha256:
        raise UserError(f"{path}: altered (its SHA-256 is not the one in cfg.json); train this SAE again")
    normaliser = Normaliser(own.normaliser.kind, own.normaliser.scale)
    if normaliser.kind not in PER_TOKEN and normaliser.scale != 1.0:
        weights = fold(weights, 1 / normaliser.scale)
    variant = make_variant(own.variant, own.hyper)
    if variant.architecture != TRAINED_AS.get(cfg.architecture, cfg.architecture):
        raise UserError(
            f"{path.parent}: monosem.variant = {shown(own.variant)} is no {shown(cfg.architecture)}; replace cfg.json"
        )
    variant.check(cfg.d_in, cfg.d_sae)
    facts = dict(own.model_extra or {})
    configuration(Origin, facts, f"{path.parent / 'cfg.json'}: monosem")
    return Sae(own.variant, variant, weights, normaliser, facts)


def _foreign(cfg: Config, path: Path, architecture: Any, weights: dict[str, torch.Tensor], place: Place) -> Sae:
    mode = cfg.normalize_activations
    if mode not in KINDS:
        raise UserError(f"{path}: normalize_activations = {shown(mode)} is not supported; known are {', '.join(KINDS)}")
    if cfg.metadata.hook_head_index is not None:
        raise UserError(f"{path}: hook_head_index = {cfg.metadata.hook_head_index}: SAEs of one head are not supported")
    scale = _scale(path, place) if mode == "expected_average_only_in" else 1.0
    if cfg.rescale_acts_by_decoder_norm and cfg.architecture in ("topk", *TRAINED_AS):
        weights = _unit(weights)  # before the scale: thresholds are in these units
    weights = weights if scale is None else fold(weights, scale)
    k = 0
    if architecture == "topk":
        if cfg.k is None or cfg.k != int(cfg.k):
            raise UserError(f'{path}: "k" is {"missing" if cfg.k is None else f"{cfg.k}, no whole number"}')
        k = int(cfg.k)
    facts = {
        "site": cfg.metadata.hook_name,
        "model": cfg.metadata.model_name,
        "context": cfg.metadata.context_size,
        "prepend_bos": cfg.metadata.prepend_bos,
        "trained_as": cfg.architecture,
        **({"scale_missing": True} if scale is None else {}),
    }
    return sae_of(Plain(architecture, weights, cfg.apply_b_dec_to_input, k, KINDS[mode]), facts)


def _scale(path: Path, place: Place) -> float | None:
    """Return the scale that a run was trained at but not saved with; None, with a warning, when nothing tells it."""
    scale = place.known.get("norm_scaling_factor")
    if scale is None and place.has("activation_scaler.json"):
        scaler = place.file("activation_scaler.json")
        scale = configuration(Scaler, read_object(scaler), str(scaler)).scaling_factor
    if scale is not None:
        return float(scale)
    warnings.warn(
        f"{path}: trained on scaled activations, and the scale is not in the files; `monosem doctor` estimates it",
        FormatWarning,
        stacklevel=2,
    )
    return None


def _unit(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights with unit decoder rows, where selection went by activation times decoder norm."""
    norms = weights["W_dec"].norm(dim=1).clamp_min(1e-8)
    out = {**weights, "W_enc": weights["W_enc"] * norms, "W_dec": weights["W_dec"] / norms[:, None]}
    return {**out, "b_enc": out["b_enc"] * norms}
