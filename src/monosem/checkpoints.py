"""Checkpoints of runs in lockstep: at any moment one step is whole for all runs.

A process alone writes `step-N.safetensors`. Processes that train together write a folder `step-N`, each its part, by
torch.distributed.checkpoint in its safetensors form (its other form is a pickle). Either can be gone on from by any
number of processes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from monosem.mesh import Mesh
from monosem.remote import Unreachable, keep
from monosem.store import read_json, write_bytes, write_json
from monosem.types import UserError

if TYPE_CHECKING:
    from monosem.trainer import Trainer

UNFINISHED = "unfinished"


def write_checkpoint(trainers: list[Trainer], folder: Path, step: int) -> None:
    """Write every run's state, then drop the older ones: at any moment one step is whole for all runs.

    All processes of a mesh have to call this.
    """
    for trainer in trainers:
        facts = {
            "key": trainer.spec.key,
            "seconds": trainer.seconds,
            "steps": step,
            "sparse": trainer.sparse,
            "log": trainer.log,
        }
        place = folder / trainer.spec.name / "checkpoint"
        if trainer.mesh.both.size > 1:
            _write_parts(trainer, place, step, facts)
        else:
            tensors = {name: t.cpu().contiguous() for name, t in trainer.state().items()}
            write_bytes(place / _name(step, trainer), save(tensors, {"facts": json.dumps(facts)}))
    for trainer in trainers:
        if trainer.mesh.both.size == 1:
            with contextlib.suppress(Unreachable):  # tried again now and then, and when training has ended
                keep(folder / trainer.spec.name / "checkpoint")
    for trainer in trainers:
        new = _name(step, trainer)
        for old in (folder / trainer.spec.name / "checkpoint").glob("step-*"):
            if old.name != new:
                shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink(missing_ok=True)


def resume(trainers: list[Trainer], folder: Path) -> int:
    """Restore the latest step that every run has a checkpoint of, and return it (0: start afresh)."""
    mesh = trainers[0].mesh
    found = [_whole(folder / trainer.spec.name, mesh) for trainer in trainers]
    for step in sorted(set.intersection(*map(set, found)), reverse=True):
        states = [_read(paths[step], trainer) for paths, trainer in zip(found, trainers, strict=True)]
        if all(state is not None for state in states):
            for trainer, state in zip(trainers, states, strict=True):
                assert state is not None
                trainer.restore(*state)
            return step
    return 0


def in_step(names: list[str], folder: Path, mesh: Mesh) -> list[list[str]]:
    """Return the runs in parts that can be trained in lockstep: those of a part have a checkpoint of the same step.

    Runs that other processes have trained may be at other steps. Those without any are a part of their own.
    """
    parts: list[tuple[set[int], list[str]]] = []
    for name in names:
        steps = set(_whole(folder / name, mesh))
        for common, part in parts:
            if steps & common or not (steps or common):
                common &= steps
                part.append(name)
                break
        else:
            parts.append((steps, [name]))
    return [part for _, part in parts]


def _whole(folder: Path, mesh: Mesh) -> dict[int, Path]:
    """Return the whole checkpoints of a run that all processes of a mesh have, by step; folder: of its SAE."""
    paths = folder.glob("checkpoint/step-*")
    found = {_step(path): path for path in paths if path.is_file() or (path / "facts.json").exists()}
    steps, having = mesh.both.joined(torch.tensor(sorted(found), dtype=torch.int64)).unique(return_counts=True)
    return {step: found[step] for step in steps[having == mesh.both.size].tolist()}


def _name(step: int, trainer: Trainer) -> str:
    return f"step-{step:09d}" + (".safetensors" if trainer.mesh.both.size == 1 else "")


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-").partition(".")[0])


def _write_parts(trainer: Trainer, place: Path, step: int, facts: dict[str, Any]) -> None:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save as save_parts

    both, unfinished, whole = trainer.mesh.both, place / UNFINISHED, place / _name(step, trainer)
    shutil.rmtree(unfinished, ignore_errors=True)
    both.wait()
    parts = {name: _placed(trainer, name, tensor) for name, tensor in trainer.state().items()}
    writer, failure = HuggingFaceStorageWriter(str(unfinished), save_distributed=True), None
    try:
        save_parts(parts, storage_writer=writer, process_group=both.group)
        shutil.rmtree(whole, ignore_errors=True)  # of a start before, in which another run's wasn't whole yet
    except (CheckpointException, OSError, UserError) as error:
        _pass_on_interrupt(error)
        failure = UserError(f"{unfinished}: the checkpoint can't be written ({_cause(error)}); free some space there")
        shutil.rmtree(unfinished, ignore_errors=True)
    both.agree(failure)
    try:
        unfinished.rename(whole)
    except OSError as error:
        if not whole.is_dir():  # another process of this machine was first
            failure = UserError(f"{whole}: the checkpoint can't be written ({error.strerror})")
    both.agree(failure)
    both.agreed(partial(keep, place))

    def finish() -> None:
        if both.rank == 0:
            write_json(whole / "facts.json", facts)  # what makes it a whole one
            keep(place)

    both.agreed(finish)


def _pass_on_interrupt(error: BaseException) -> None:
    """Raise KeyboardInterrupt if one of the processes met it; torch collects it among what went wrong."""
    if any(isinstance(cause, KeyboardInterrupt) for cause, _ in getattr(error, "failures", {}).values()):
        raise KeyboardInterrupt from error


def _cause(error: BaseException) -> str:
    """Return the last line of what went wrong; torch's own error tells of each process at length."""
    return str(error).strip().splitlines()[-1]


def _placed(trainer: Trainer, name: str, tensor: Tensor) -> Tensor:
    """Return a process's part of an entry of the state as a DTensor, which knows the rest; alone, itself."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    mesh, along = trainer.mesh, trainer.split_along(_weight(name))
    if mesh.devices is None:
        return tensor
    tensor = tensor.cpu()
    if along is None:
        return DTensor.from_local(tensor, mesh.devices, [Replicate(), Replicate()], run_check=False)
    shape = list(tensor.shape)
    shape[along] = trainer.spec.d_sae
    whole = torch.empty(shape, device="meta")
    return DTensor.from_local(
        tensor.contiguous(),
        mesh.devices,
        [Replicate(), Shard(along)],
        run_check=False,
        shape=whole.shape,
        stride=whole.stride(),
    )


def _weight(name: str) -> str:
    """Return which weight an entry of a state belongs to: `w.W_enc` and `adam.W_enc.first` to `W_enc`."""
    return name.split(".")[1] if "." in name else name


def _read(path: Path, trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return a checkpoint's tensors, this process's part, and facts; None when it is of other settings or damaged."""
    try:
        if path.is_dir():
            facts = read_json(path / "facts.json")
            return (_read_parts(path, trainer), facts) if facts["key"] == trainer.spec.key else None
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            if facts["key"] != trainer.spec.key:
                return None
            names = list(file.keys())
            return {name: trainer.own(_weight(name), file.get_tensor(name)) for name in names}, facts
    except (SafetensorError, OSError, KeyError, ValueError, UserError):
        return None


def _read_parts(path: Path, trainer: Trainer) -> dict[str, Tensor]:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load as load_parts
    from torch.distributed.tensor import DTensor

    mesh = trainer.mesh
    blank = {name: _placed(trainer, name, tensor) for name, tensor in trainer.blank_state().items()}
    reader = HuggingFaceStorageReader(str(path))
    try:
        with warnings.catch_warnings(action="ignore"):  # that one process is alone is known
            load_parts(blank, storage_reader=reader, process_group=mesh.both.group, no_dist=mesh.devices is None)
    except CheckpointException as error:
        _pass_on_interrupt(error)
        raise ValueError(f"{path}: not a whole checkpoint") from error
    return {name: value.to_local() if isinstance(value, DTensor) else value for name, value in blank.items()}


def drop_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a run that is finished; folder: of its SAE."""
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
