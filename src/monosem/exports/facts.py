"""What every export says of a study and a run besides numbers: model, site, text, dates, versions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from monosem.app.study import Run, Study
from monosem.store import read_json
from monosem.types import UserError


@dataclass(frozen=True)
class Facts:
    """Facts of a study and one of its runs.

    cfg: the run's cfg.json; weights: SHA-256 of its weights. model: name; dtype: its arithmetic. context: tokens that
    the model sees at once, 0 where no file says so. dataset: where the held-out text is from. created: when the
    results were put together. version, commit: of the monosem that did it.
    """

    study: str
    description: str
    run: str
    cfg: dict[str, Any]
    weights: str
    model: str
    dtype: str
    site: str
    context: int
    dataset: str
    created: datetime
    version: str
    commit: str

    @property
    def layer(self) -> int:
        """The number of the block in the site's name; 0 for a site outside the blocks."""
        found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", self.site)
        return int(found[1]) if found else 0

    @property
    def model_id(self) -> str:
        """The model's name as dashboards write it: lower case, without its owner."""
        last = self.model.rstrip("/").rsplit("/", 1)[-1].lower()
        return re.sub(r"[^a-z0-9._-]+", "-", last).strip("-.") or "unknown"

    @property
    def set_name(self) -> str:
        """The study's name, fit for a path."""
        return re.sub(r"[^\w.-]+", "-", self.study)


def facts_of(study: Study, run: Run) -> Facts:
    """Return the facts. Raises UserError when the run's cfg.json can't be read; what other files lack stays empty."""
    cfg = read_json(study.folder / "saes" / run.name / "cfg.json")
    ours, meta = _table(cfg, "monosem"), _table(cfg, "metadata")
    header = _table(_object(study, "activations/meta.json"), "header")
    summary, environment = study.summary(), _object(study, "environment.json")
    model = ours.get("model") or meta.get("model_name") or summary.get("model") or ""
    return Facts(
        study=str(summary.get("study") or study.folder.resolve().name),
        description=str(summary.get("description") or ""),
        run=run.name,
        cfg=cfg,
        weights=str(ours.get("weights_sha256") or ""),
        model=str(model),
        dtype=str(summary.get("dtype") or _table(header, "model").get("dtype") or ""),
        site=run.site or str(meta.get("hook_name") or ""),
        context=int(header.get("context") or meta.get("context_size") or 0),
        dataset=_dataset(header, summary),
        created=_date(summary.get("created")),
        version=str(_table(environment, "versions").get("monosem") or ""),
        commit=str(environment.get("commit") or ""),
    )


def _dataset(header: dict[str, Any], summary: dict[str, Any]) -> str:
    source = _table(header, "text").get("source")
    if source:
        return str(source)
    names = [f"{one.get('name')} ({one.get('package')})" for one in summary.get("sources", []) if isinstance(one, dict)]
    return ", ".join(names)


def _date(text: object) -> datetime:
    try:
        return datetime.fromisoformat(str(text)).astimezone(UTC)
    except ValueError:
        return datetime.now(UTC)


def _object(study: Study, name: str) -> dict[str, Any]:
    try:
        found = read_json(study.folder / name)
    except UserError:
        return {}
    return found if isinstance(found, dict) else {}


def _table(values: dict[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key)
    return found if isinstance(found, dict) else {}
