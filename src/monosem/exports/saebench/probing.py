"""SAEBench's `sparse_probing`, from the evaluation `probes`."""

from __future__ import annotations

from typing import Any

import polars as pl

from monosem.exports.facts import Facts
from monosem.exports.saebench.content import MISSING, Part, filled
from monosem.exports.saebench.results import Results

K = (1, 2, 5)
COLUMNS = {"llm_test_accuracy": "dense_accuracy", **{f"sae_top_{k}_test_accuracy": f"sparse_accuracy_{k}" for k in K}}
OTHERS = (10, 20, 50, 100)
NULL = {
    **{f"llm_top_{k}_test_accuracy": None for k in (*K, *OTHERS)},
    "sae_test_accuracy": None,
    **{f"sae_top_{k}_test_accuracy": None for k in OTHERS},
}
SOURCES = {
    "llm_test_accuracy": "Held-out accuracy of a logistic regression on all dimensions of the activation; mean over "
    "tasks (probes.dense_probe_accuracy).",
    **{f"sae_top_{k}_test_accuracy": f"probes.sparse_accuracy_{k}" for k in K},
}
TASKS = "Texts are pooled as `pool` says in each task's row, and are not SAEBench's data sets."


def sparse_probing(results: Results, facts: Facts) -> Part | None:
    """Return the part, None where `probes` was not run. Raises UserError for results of other weights."""
    found = results.of("probes")
    if found is None:
        return None
    rows = found.rows()
    used = rows.filter(pl.col("reason").is_null())
    dense = found.value("dense_probe_accuracy")
    sae = {f"sae_top_{k}_test_accuracy": found.value(f"sparse_accuracy_{k}") for k in K}
    missing = {} if dense is not None else {"llm_test_accuracy": found.reasons.get("dense_probe_accuracy", "")}
    metrics = {
        "llm": filled({"llm_test_accuracy": dense}) | _part(NULL, "llm"),
        "sae": sae | _part(NULL, "sae"),
    }
    details = [
        {"dataset_name": row["task"], **{name: row[column] for name, column in COLUMNS.items()}, **NULL}
        for row in used.iter_rows(named=True)
    ]
    more = {"tasks": {"note": TASKS, "rows": rows.to_dicts()}}
    return Part(_config(found.settings, used, facts), metrics, SOURCES, missing, {"probes": found}, details, more)


def _part(values: dict[str, None], prefix: str) -> dict[str, None]:
    return {name: value for name, value in values.items() if name.startswith(prefix)}


def _config(settings: dict[str, Any], used: pl.DataFrame, facts: Facts) -> dict[str, Any]:
    return {
        "random_seed": settings.get("seed", MISSING),
        "dataset_names": used["task"].to_list(),
        "probe_train_set_size": settings.get("train", MISSING),
        "probe_test_set_size": settings.get("test", MISSING),
        "context_length": settings.get("context", MISSING),
        "sae_batch_size": MISSING,
        "llm_batch_size": None,
        "llm_dtype": facts.dtype,
        "model_name": facts.model,
        "k_values": list(K),
        "lower_vram_usage": False,
    }
