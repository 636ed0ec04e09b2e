"""The shape that all SAEBench result files share (its `base_eval_output.py`), and what stands beside its metrics."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from monosem.definitions import METRICS
from monosem.exports.facts import Facts
from monosem.exports.saebench.results import Stored

MISSING = -1  # SAEBench writes this in the place of an undefined number
NOTE = (
    "Measured by monosem, not by SAEBench: names and shapes are SAEBench's, values follow the definitions given here. "
    f"{MISSING} in a field that takes no null means: not measured."
)


@dataclass(frozen=True)
class Part:
    """What one of SAEBench's evaluations says of a run.

    config, metrics, details: as its schema has them. sources: what fills a metric, or, as a whole sentence, how it is
    defined; missing: why one is -1. results: scalars that go along with their intervals, by evaluation; more: tables.
    """

    config: dict[str, Any]
    metrics: dict[str, dict[str, Any]]
    sources: dict[str, str]
    missing: dict[str, str]
    results: dict[str, Stored]
    details: list[dict[str, Any]] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)


def content(kind: str, part: Part, facts: Facts) -> dict[str, Any]:
    """Return the content of a file. Deterministic: id and date are those of the results, not of the export."""
    made = facts.created.isoformat()
    program = f"monosem {facts.version}".strip() + (f" ({facts.commit})" if facts.commit else "")
    return {
        "eval_type_id": kind,
        "eval_config": part.config,
        "eval_id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"monosem {kind} {facts.study} {made}")),
        "datetime_epoch_millis": int(facts.created.timestamp() * 1000),
        "eval_result_metrics": part.metrics,
        "eval_result_details": part.details,
        "sae_bench_commit_hash": f"none; {program}",
        "sae_lens_id": facts.run,
        "sae_lens_release_id": facts.study,
        "sae_lens_version": None,
        "sae_cfg_dict": facts.cfg,
        "eval_result_unstructured": {"monosem": _beside(part, facts, program)},
    }


def filled(values: Mapping[str, float | None]) -> dict[str, float]:
    """Return metrics with MISSING in the place of None."""
    return {name: MISSING if value is None else value for name, value in values.items()}


def _beside(part: Part, facts: Facts, program: str) -> dict[str, Any]:
    return {
        "note": NOTE,
        "program": program,
        "study": facts.study,
        "dataset": facts.dataset,
        "sources": part.sources,
        "not_measured": part.missing,
        "results": {name: _result(stored) for name, stored in part.results.items()},
        **part.more,
    }


def _result(stored: Stored) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, estimate in stored.scalars.items():
        known = METRICS.get(name)
        words = {"label": known.label, "unit": known.unit, "definition": known.definition} if known else {}
        value = {"reason": stored.reasons.get(name, "")} if estimate is None else estimate.as_dict()
        found[name] = value | words
    incomplete = {"incomplete": stored.incomplete} if stored.incomplete else {}
    return {"settings": stored.settings, **incomplete, "metrics": found}
