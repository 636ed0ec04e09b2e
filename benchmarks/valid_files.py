"""Small valid files of every format, as other libraries and we write them: what `fuzz_formats.py` starts from."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

import monosem
from monosem.normaliser import Normaliser

Files = dict[str, bytes]
D_IN, D_SAE = 4, 6


def valid_files() -> dict[str, Files]:
    """Return "format:what" -> name -> content."""
    made: dict[str, Files] = {}
    for variant, form, normaliser in (
        ("standard", "saelens", "mean_norm"),
        ("gated", "saelens", "token_ln"),
        ("batchtopk", "saelens", "none"),
        ("jumprelu", "gemma_scope", "none"),
        ("standard", "dictionary_learning", "none"),
        ("gated", "dictionary_learning", "none"),
        ("topk", "dictionary_learning", "none"),
        ("batchtopk", "dictionary_learning", "mean_norm"),
        ("jumprelu", "dictionary_learning", "none"),
        ("topk", "sparsify", "none"),
        ("topk", "openai", "token_ln"),
        ("standard", "openai", "none"),
    ):
        made[f"{form}:{variant}"] = _written(variant, form, normaliser)
    made["saelens:foreign"] = _foreign(architecture="topk", k=2, rescale_acts_by_decoder_norm=True)
    made["saelens:flat"] = _flat()
    made["saelens:run"] = _run()
    made["gemma_scope:packed"] = {"params.npz": _npz(_weights(threshold=True))}
    made["gemma_scope:two"] = _gemma_two()
    return made


def _written(variant: str, form: str, normaliser: str) -> Files:
    hyper: dict[str, Any] = {"k": 2} if "topk" in variant else {}
    sae = monosem.make_sae(variant, d_in=D_IN, d_sae=D_SAE, **hyper)
    sae.normaliser = Normaliser(normaliser, 0.5)
    sae.facts |= {"site": "blocks.3.hook_resid_post", "model": "acme/tiny", "context": 64}
    with tempfile.TemporaryDirectory() as folder:
        monosem.save_sae(sae, folder, form)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _weights(threshold: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (D_IN, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)}
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**made, "threshold": torch.full((D_SAE,), 0.1)} if threshold else made


def _foreign(**keys: Any) -> Files:
    cfg = {
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"hook_name": "blocks.3.hook_resid_post", "model_name": "acme/tiny", "prepend_bos": True},
        **keys,
    }
    return {"cfg.json": json.dumps(cfg).encode(), "sae_weights.safetensors": save(_weights())}


def _flat() -> Files:
    cfg = {
        "d_in": D_IN,
        "d_sae": D_SAE,
        "hook_point": "blocks.3.hook_resid_pre",
        "model_name": "acme/tiny",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 2},
        "normalize_activations": False,
        "finetuning_scaling_factor": True,
        "context_size": 128,
    }
    tensors = {**_weights(), "scaling_factor": torch.full((D_SAE,), 1.5)}
    return {"cfg.json": json.dumps(cfg).encode(), "sae_weights.safetensors": save(tensors)}


def _run() -> Files:
    files = _foreign(architecture="batchtopk", k=2.5, normalize_activations="expected_average_only_in")
    tensors = {**_weights(), "topk_threshold": torch.tensor(0.2, dtype=torch.float64)}
    scaler = {"scaling_factor": 0.7, "n_batches": 100}
    return {
        **files,
        "sae_weights.safetensors": save(tensors),
        "activation_scaler.json": json.dumps(scaler).encode(),
    }


def _gemma_two() -> Files:
    tensors = {name.replace("W_", "w_"): value.half() for name, value in _weights(threshold=True).items()}
    config = {
        "architecture": "jump_relu",
        "model_name": "google/gemma-3-270m",
        "hf_hook_point_in": "model.layers.5.output",
        "width": D_SAE,
        "l0": 10,
    }
    return {"config.json": json.dumps(config).encode(), "params.safetensors": save(tensors)}


def _npz(tensors: dict[str, Tensor]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in tensors.items():
            member = io.BytesIO()
            np.save(member, value.numpy())
            archive.writestr(f"{name}.npy", member.getvalue())
    return stream.getvalue()
