"""SAEBench's `ravel`, from the evaluation of the same name: scores of features in a learned mask (MDBM)."""

from __future__ import annotations

from typing import Any

import polars as pl

from monosem.exports.facts import Facts
from monosem.exports.saebench.content import MISSING, Part, filled
from monosem.exports.saebench.results import Results, Stored

NAMES = {"disentanglement_score": "disentangle", "cause_score": "cause", "isolation_score": "isolate"}


def ravel(results: Results, facts: Facts) -> Part | None:
    """Return the part, None where `ravel` was not run. Raises UserError for results of other weights."""
    found = results.of("ravel")
    if found is None:
        return None
    values = {name: found.value(ours) for name, ours in NAMES.items()}
    missing = {name: found.reasons.get(NAMES[name], "") for name, value in values.items() if value is None}
    sources = {name: f"ravel.{ours}" for name, ours in NAMES.items()}
    return Part(_config(found, facts), {"ravel": filled(values)}, sources, missing, {"ravel": found})


def _config(found: Stored, facts: Facts) -> dict[str, Any]:
    """Return RAVELEvalConfig; -1 where it has no setting of ours: epochs, learning rate, batch size, one split."""
    settings, asked = found.settings, found.rows().filter(pl.col("split").is_in(["entity", "context"]))
    selection = {
        kind: asked.filter(pl.col("type") == kind)["attribute"].unique(maintain_order=True).to_list()
        for kind in asked["type"].unique(maintain_order=True)
    }
    return {
        "entity_attribute_selection": selection,
        "top_n_entities": settings.get("entities", MISSING),
        "top_n_templates": settings.get("templates", MISSING),
        "full_dataset_downsample": None,
        "num_pairs_per_attribute": settings.get("train_pairs", MISSING),
        "train_test_split": MISSING,
        "force_dataset_recompute": False,
        "model_name": facts.model,
        "llm_dtype": facts.dtype,
        "llm_batch_size": MISSING,
        "learning_rate": MISSING,
        "num_epochs": MISSING,
        "train_mdas": False,
        "n_generated_tokens": settings.get("answer_tokens", MISSING),
        "random_seed": settings.get("seed", MISSING),
        "artifact_dir": "",
    }
