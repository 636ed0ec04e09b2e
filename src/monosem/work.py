"""A study being worked on: its folder, its language model once it is loaded, its runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monosem.config import Study
from monosem.evals import RunInfo
from monosem.model import Model, load_model
from monosem.progress import Ticker
from monosem.store import read_json
from monosem.types import UserError


@dataclass
class Work:
    """A study being worked on: its folder, the language model once it is loaded, and what was done."""

    study: Study
    folder: Path
    say: Callable[[str], object] = lambda _line: None
    ticker: Ticker = field(default_factory=Ticker)
    model: Model | None = None
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    def get_model(self) -> Model:
        """Load the study's language model, once."""
        if self.model is None:
            m = self.study.file.model
            self.model = load_model(m.name, dtype=m.dtype, device=m.device, revision=m.revision)
        return self.model

    @property
    def activations(self) -> Path:
        """Where activations lie."""
        return self.folder / "activations"

    def sae_folder(self, run: str) -> Path:
        """Where a run's SAE lies."""
        return self.folder / "saes" / run


def run_infos(work: Work) -> list[RunInfo]:
    """Return what is known of the study's trained runs. Raises UserError naming one that is not trained yet."""
    infos = []
    for run in work.study.runs:
        cfg_path = work.sae_folder(run.name) / "cfg.json"
        if not cfg_path.exists():
            raise UserError(f"{cfg_path}: run {run.name} is not trained yet; run `monosem train {work.folder}` first")
        cfg = read_json(cfg_path)
        ours = cfg["monosem"]
        infos.append(
            RunInfo(
                run.name,
                run.variant_name,
                ours["hyper"],
                run.seed,
                cfg["d_sae"],
                ours["weights_sha256"],
                cfg_path.parent,
            )
        )
    return infos
