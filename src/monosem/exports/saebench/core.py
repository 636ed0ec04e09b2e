"""SAEBench's `core`: reconstruction, sparsity, what the splice costs the model, densities and the weights' geometry."""

from __future__ import annotations

from typing import Any

import numpy as np

from monosem.exports.facts import Facts
from monosem.exports.saebench.content import MISSING, Part, filled
from monosem.exports.saebench.results import Results
from monosem.exports.saebench.weights import Geometry, geometry
from monosem.metrics import SaeSums
from monosem.sums import read_header, read_heldout, read_sums, sums_path
from monosem.types import UserError

SCALAR = ("mean_norm", "rms_norm", "unit_rms", "none")  # normalisers that are one number for all tokens
FROM_FRONTIER = {
    "kl_div_with_sae": "kl",
    "ce_loss_score": "ce_recovered",
    "ce_loss_with_ablation": "ce_zero",
    "ce_loss_with_sae": "ce_sae",
    "ce_loss_without_sae": "ce_clean",
    "explained_variance": "explained_variance",
    "relative_reconstruction_bias": "gamma",
    "l0": "l0",
}
OWN = {
    "mse": "Squared error summed over dimensions, mean over tokens, in the site's own units (our mse is in normalised "
    "ones; theirs divides by the number of tokens in a batch once more).",
    "explained_variance_legacy": "Mean over tokens of 1 - |x - xhat|^2 / |x - c|^2, c the mean of the first batch "
    "(theirs: of each batch). Unbounded below; use explained_variance.",
    "l1": "Mean over tokens of the summed activations with decoder norms folded in, in the site's own units, as for an "
    "SAE with decoder rows of length 1.",
    "freq_over_1_percent": "Share of features that are active on more than 1 % of tokens.",
    "freq_over_10_percent": "Share of features that are active on more than 10 % of tokens.",
    "normalized_freq_over_1_percent": "Share of all firings that belongs to features active on over 1 % of tokens.",
    "normalized_freq_over_10_percent": "The same for 10 % of tokens.",
    "average_max_encoder_cosine_sim": "Mean over features of the largest cosine with another encoder column.",
    "average_max_decoder_cosine_sim": "Mean over features of the largest cosine with another decoder row.",
    "frac_alive": "1 - dead_fraction: share of features that fire on the held-out tokens.",
    "total_tokens_eval_reconstruction": "Tokens whose cross-entropies were read.",
    "total_tokens_eval_sparsity_variance": "Held-out tokens that everything else was read on.",
}
ABSENT = {
    "kl_div_score": "the KL of zero ablation is not measured",
    "kl_div_with_ablation": "not measured: the KL is read for the splice only",
    "cossim": "not measured: sums hold squared lengths and products over tokens, no cosine of each token",
    "l2_norm_in": "not measured: sums hold squared lengths, not lengths",
    "l2_norm_out": "not measured: sums hold squared lengths, not lengths",
    "l2_ratio": "not measured: sums hold squared lengths, not lengths; see relative_reconstruction_bias",
    "consistent_activation_heuristic": "not measured: firings are counted by feature, not by feature and context",
}
PER_TOKEN = "undefined: this SAE's normaliser depends on the token, so activations have no unit of the site's"


def core(results: Results, facts: Facts) -> Part:
    """Return the part. Raises UserError when sums or results are missing, damaged or of other weights."""
    frontier, density = results.required("frontier"), results.required("density")
    data, (sums, ce) = read_heldout(results.folder), read_sums(results.folder, results.run)
    path = sums_path(results.folder, results.run)
    if read_header(path) != frontier.inputs | {"sae": results.weights}:
        raise UserError(
            f"{path}: of other tokens or weights than {frontier.path}; run `monosem measure {results.folder}`"
        )
    n = int(data.n.sum())
    shape = geometry(results.folder / "saes" / results.run / "sae_weights.safetensors")
    values: dict[str, float | None] = dict.fromkeys(ABSENT)
    values |= {name: frontier.value(ours) for name, ours in FROM_FRONTIER.items()}
    values |= _from_sums(sums, n, facts) | _frequencies(sums.count / n)
    values |= {
        "average_max_encoder_cosine_sim": float(shape.nearest_encoder.mean()),
        "average_max_decoder_cosine_sim": float(shape.nearest_decoder.mean()),
        "total_tokens_eval_reconstruction": 0 if ce is None else int(ce.n.sum()),
        "total_tokens_eval_sparsity_variance": n,
    }
    missing = {name: ABSENT.get(name) or _why(name, frontier.reasons) for name, v in values.items() if v is None}
    return Part(
        _config(facts, ce is not None),
        _grouped(filled(values)),
        {name: f"frontier.{ours}" for name, ours in FROM_FRONTIER.items()} | OWN,
        missing,
        {"frontier": frontier, "density": density},
        _details(sums.count / n, shape),
    )


def _why(name: str, reasons: dict[str, str]) -> str:
    if name == "l1":
        return PER_TOKEN
    return reasons.get(FROM_FRONTIER.get(name, ""), "not measured: measure.ce_tokens = 0")


def _from_sums(sums: SaeSums, n: int, facts: Facts) -> dict[str, float | None]:
    kind = facts.cfg.get("monosem", {}).get("normaliser", {}).get("kind")
    l1 = float(sums.activation.sum() / n / sums.scale) if kind in SCALAR else None
    return {"mse": float(sums.r.sum() / n), "explained_variance_legacy": sums.ev_token / n, "l1": l1}


def _frequencies(density: np.ndarray) -> dict[str, float]:
    total = max(float(density.sum()), 1e-30)
    found = {"frac_alive": float((density > 0).mean())}
    for name, least in (("1_percent", 0.01), ("10_percent", 0.1)):
        found[f"freq_over_{name}"] = float((density > least).mean())
        found[f"normalized_freq_over_{name}"] = float(density[density > least].sum()) / total
    return found


def _grouped(values: dict[str, float]) -> dict[str, dict[str, Any]]:
    groups = {
        "model_behavior_preservation": ("kl_div_score", "kl_div_with_ablation", "kl_div_with_sae"),
        "model_performance_preservation": (
            "ce_loss_score", "ce_loss_with_ablation", "ce_loss_with_sae", "ce_loss_without_sae",
        ),
        "reconstruction_quality": ("explained_variance", "explained_variance_legacy", "mse", "cossim"),
        "shrinkage": ("l2_norm_in", "l2_norm_out", "l2_ratio", "relative_reconstruction_bias"),
        "sparsity": ("l0", "l1"),
        "token_stats": ("total_tokens_eval_reconstruction", "total_tokens_eval_sparsity_variance"),
        "misc_metrics": (
            "freq_over_1_percent", "freq_over_10_percent", "normalized_freq_over_1_percent",
            "normalized_freq_over_10_percent", "average_max_encoder_cosine_sim", "average_max_decoder_cosine_sim",
            "frac_alive",
        ),
    }  # fmt: skip
    return {group: {name: values[name] for name in names} for group, names in groups.items()}


def _config(facts: Facts, spliced: bool) -> dict[str, Any]:
    """Return CoreEvalConfig. Tokens are not drawn in batches of prompts, so the sizes of these are -1."""
    return {
        "model_name": facts.model,
        "llm_dtype": facts.dtype,
        "batch_size_prompts": MISSING,
        "n_eval_reconstruction_batches": MISSING,
        "n_eval_sparsity_variance_batches": MISSING,
        "dataset": facts.dataset,
        "context_size": facts.context,
        "compute_kl": spliced,
        "compute_ce_loss": spliced,
        "compute_l2_norms": False,
        "compute_sparsity_metrics": True,
        "compute_variance_metrics": True,
        "compute_featurewise_density_statistics": True,
        "compute_featurewise_weight_based_metrics": True,
        "exclude_special_tokens_from_reconstruction": True,
        "verbose": False,
    }


def _details(density: np.ndarray, shape: Geometry) -> list[dict[str, Any]]:
    columns = {
        "feature_density": density,
        "encoder_bias": shape.bias,
        "encoder_norm": shape.norm,
        "encoder_decoder_cosine_sim": shape.cosine,
        "max_decoder_cosine_sim": shape.nearest_decoder,
        "max_encoder_cosine_sim": shape.nearest_encoder,
    }
    rows = zip(*(values.round(10).tolist() for values in columns.values()), strict=True)
    return [
        {"index": i, "consistent_activation_heuristic": MISSING, **dict(zip(columns, row, strict=True))}
        for i, row in enumerate(rows)
    ]
