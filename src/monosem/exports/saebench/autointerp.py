"""SAEBench's `autointerp`, a detection score, from the evaluation of the same name where it scored by detection."""

from __future__ import annotations

from typing import Any

import numpy as np

from monosem.exports.facts import Facts
from monosem.exports.saebench.content import MISSING, Part, filled
from monosem.exports.saebench.results import Results, Stored

SHOWN = ("feature", "explanation", "detection", "fuzzing", "pearson", "spearman", "peak", "density", "failed", "reason")
SOURCES = {
    "autointerp_score": "autointerp.detection: balanced accuracy, so 0.5 is chance (theirs: the share of 14 texts that "
    "is told rightly)",
    "autointerp_std_dev": "Standard deviation of the same over the scored features.",
}
FEW = "undefined: fewer than two features were scored"


def autointerp(results: Results, facts: Facts) -> Part | None:
    """Return the part, None where no explanation was scored by detection. Raises UserError for other weights."""
    found = results.of("autointerp")
    score = None if found is None else found.value("detection")
    if found is None or score is None:
        return None
    rows = found.rows()
    scored = rows["detection"].drop_nulls().to_numpy()
    spread = float(np.std(scored, ddof=1)) if len(scored) > 1 else None
    missing = {} if spread is not None else {"autointerp_std_dev": FEW}
    metrics = {"autointerp": filled({"autointerp_score": score, "autointerp_std_dev": spread})}
    shown = rows.select(name for name in SHOWN if name in rows.columns)
    config = _config(found, len(scored), facts)
    return Part(config, metrics, SOURCES, missing, {"autointerp": found}, more={"features": shown.to_dicts()})


def _config(found: Stored, latents: int, facts: Facts) -> dict[str, Any]:
    """Return AutoInterpEvalConfig; -1 where it has no setting of ours, as for the numbers of examples."""
    unlike = (
        "dead_latent_threshold", "llm_batch_size", "buffer", "act_threshold_frac", "max_tokens_in_explanation",
        "n_top_ex_for_generation", "n_iw_sampled_ex_for_generation", "n_top_ex_for_scoring", "n_random_ex_for_scoring",
        "n_iw_sampled_ex_for_scoring", "total_tokens",
    )  # fmt: skip
    return {
        "model_name": facts.model,
        "n_latents": latents,
        "override_latents": None,
        "random_seed": found.settings.get("seed", MISSING),
        "dataset_name": facts.dataset,
        "llm_context_size": facts.context,
        "llm_dtype": facts.dtype,
        "no_overlap": True,
        "scoring": True,
        "use_demos_in_explanation": True,
        **dict.fromkeys(unlike, MISSING),
    }
