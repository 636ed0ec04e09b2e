"""A study being worked on: its folder, its language model once it is loaded, its runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monosem.config import Study
from monosem.evals import Inputs, RunInfo
from monosem.model import Model, load_model
from monosem.processes import World
from monosem.progress import Ticker
from monosem.spread import Spread
from monosem.store import read_json
from monosem.types import UserError


@dataclass
class Work:
    """A study being worked on: its folder, the language model once it is loaded, what was done, the processes."""

    study: Study
    folder: Path
    say: Callable[[str], object] = lambda _line: None
    ticker: Ticker = field(default_factory=Ticker)
    model: Model | None = None
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    world: World = field(default_factory=World)

    def get_model(self) -> Model:
        """Load the study's language model, once."""
        if self.model is None:
            m = self.study.file.model
            spread = Spread(m.device_map, m.max_memory)
            self.model = load_model(m.name, dtype=m.dtype, device=m.device, revision=m.revision, spread=spread)
        return self.model

    def infos(self) -> list[RunInfo]:
        """Return what is known of the study's runs, trained and then loaded ones; the variant of the latter is their
        family's name. Raises UserError naming one that is not trained or loaded yet.
        """
        runs = [(run.name, run.variant_name, run.seed) for run in self.study.runs]
        loads = [(load.name, load.family, 0) for load in self.study.loads]
        return [_info(self, *run) for run in (*runs, *loads)]

    def inputs(self, runs: list[RunInfo]) -> Inputs:
        """Return what evaluations of these runs get."""
        file = self.study.file
        return Inputs(self.folder, runs, file.measure.bootstrap, file.model.site, self.get_model, self.ticker)

    @property
    def activations(self) -> Path:
        """Where activations lie."""
        return self.folder / "activations"

    def sae_folder(self, run: str) -> Path:
        """Where a run's SAE lies."""
        return self.folder / "saes" / run


def _info(work: Work, name: str, variant: str, seed: int) -> RunInfo:
    cfg_path = work.sae_folder(name) / "cfg.json"
    if not cfg_path.exists():
        raise UserError(f"{cfg_path}: run {name} is not there yet; run `monosem train {work.folder}` first")
    cfg = read_json(cfg_path)
    ours = cfg["monosem"]
    hyper = ours["hyper"]
    if "loaded" in ours:  # the rest says how it would be trained here
        hyper = {"architecture": ours["variant"], **({"k": hyper["k"]} if "k" in hyper else {})}
    return RunInfo(name, variant, hyper, seed, cfg["d_sae"], ours["weights_sha256"], cfg_path.parent)
