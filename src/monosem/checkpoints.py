"""Checkpoints of runs in lockstep: at any moment one step is whole for all runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from monosem.store import write_bytes

if TYPE_CHECKING:
    from monosem.train import Trainer


def write_checkpoint(trainers: list[Trainer], folder: Path, step: int) -> None:
    """Write every run's state, then drop the older ones: at any moment one step is whole for all runs."""
    for trainer in trainers:
        facts = {
            "key": trainer.spec.key,
            "seconds": trainer.seconds,
            "steps": step,
            "sparse": trainer.sparse,
            "log": trainer.log,
        }
        data = save({name: t.cpu().contiguous() for name, t in trainer.state().items()}, {"facts": json.dumps(facts)})
        write_bytes(folder / trainer.spec.name / "checkpoint" / f"step-{step:09d}.safetensors", data)
    for trainer in trainers:
        for old in (folder / trainer.spec.name / "checkpoint").glob("step-*.safetensors"):
            if old.name != f"step-{step:09d}.safetensors":
                old.unlink()


def resume(trainers: list[Trainer], folder: Path) -> int:
    """Restore the latest step that every run has a checkpoint of, and return it (0: start afresh)."""
    steps = [
        {
            int(file.stem.removeprefix("step-"))
            for file in (folder / t.spec.name / "checkpoint").glob("step-*.safetensors")
        }
        for t in trainers
    ]
    for step in sorted(set.intersection(*steps) if steps else set(), reverse=True):
        states = [_read(folder / t.spec.name / "checkpoint" / f"step-{step:09d}.safetensors", t) for t in trainers]
        if all(state is not None for state in states):
            for trainer, state in zip(trainers, states, strict=True):
                assert state is not None
                trainer.restore(*state)
            return step
    return 0


def _read(path: Path, trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return a checkpoint's tensors and facts; None when it belongs to other settings or can't be read."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            if facts["key"] != trainer.spec.key:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError):
        return None


def drop_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a run that is finished; folder: of its SAE."""
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
