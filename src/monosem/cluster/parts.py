"""What other processes of a cluster do: make shards, train, measure, judge. Each says what users can mend.

Exceptions would come back wrapped, and would be taken for lost processes, whose work is done again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

from monosem.activations import load_tokens
from monosem.cluster.meter import FarTicker
from monosem.config import Study
from monosem.engine import kernels_of
from monosem.evals import Evaluation
from monosem.evaluate import evaluate
from monosem.harvest import Shard, columns_of, write_shard
from monosem.measuring import measure_runs
from monosem.model import resolve_device, resolve_dtype
from monosem.processes import joined
from monosem.remote import address, fetch_as_helper, keep, local
from monosem.store import read_json
from monosem.text import Rows
from monosem.training import join_training
from monosem.types import UserError
from monosem.work import Work


def moved(start: str) -> contextlib.AbstractContextManager[None]:
    """Have relative paths start from a folder, where this machine has it."""
    return contextlib.chdir(start) if Path(start).is_dir() else contextlib.nullcontext()


@dataclass(frozen=True)
class Place:
    """A study, where its folder lies and what relative paths in it start from, as sent to another process."""

    study: Study
    folder: str
    start: str

    @contextlib.contextmanager
    def work(self) -> Iterator[Work]:
        """Work on the study in this process."""
        with moved(self.start), kernels_of(self.study):
            yield Work(self.study, local(self.folder))


def place_of(work: Work) -> Place:
    """Return what another process needs to go on with this work.

    All compute in the arithmetic that is `auto` here, as the headers of what they make say.
    """
    file = work.study.file
    dtype = str(resolve_dtype(file.model.dtype, resolve_device(file.model.device))).removeprefix("torch.")
    file = file.model_copy(update={"model": file.model.model_copy(update={"dtype": dtype})})
    return Place(replace(work.study, file=file), address(work.folder), os.getcwd())


class Harvester:
    """Makes shards, one after another, with one language model."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.rows: dict[str, Rows] = {}

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard = Shard(**row)
        try:
            return {"name": shard.name, "error": "", **self._made(shard)}
        except UserError as error:
            return {"name": shard.name, "error": str(error), "sha256": "", "rows": 0, "outliers": 0}

    def _made(self, shard: Shard) -> dict[str, Any]:
        with self.place.work() as work:
            file = work.study.file
            if not self.rows:
                fetch_as_helper(work.activations / "partial.json")
                self.model = work.get_model()
                digest = read_json(work.activations / "partial.json")["tokens"]
                for split in ("eval", "train"):
                    columns = load_tokens(work.activations, split, digest)
                    self.rows[split] = Rows(**{name: column.numpy() for name, column in columns.items()})
            site, limit = self.model.site(file.model.site), file.text.max_norm_ratio
            columns, outliers = columns_of(
                self.model, site, self.rows[shard.split], shard, file.model.batch_rows, limit
            )
            made = write_shard(work.activations, shard.name, columns, outliers)
            keep(work.activations / shard.name)
            return made


P = ParamSpec("P")


def _saying(part: Callable[P, object]) -> Callable[P, str]:
    """Have a part return what the user can mend, "" for nothing."""

    @wraps(part)
    def say(*arguments: P.args, **named: P.kwargs) -> str:
        try:
            part(*arguments, **named)
        except UserError as error:
            return str(error)
        return ""

    return say


@contextlib.contextmanager
def _brought(work: Work) -> Iterator[None]:
    """Have on this machine what others have made, and elsewhere what is made here."""
    fetch_as_helper(work.folder)
    try:
        yield
    finally:
        keep(work.folder)


@_saying
def train_part(config: dict[str, Any]) -> None:
    """Train as one of the processes of a TorchTrainer."""
    with config["work"].work() as work, joined() as world:
        if world.rank == 0:
            work.ticker = FarTicker(config["meter"])
        join_training(replace(work, world=world), config["names"])


@_saying
def measure_part(place: Place, names: list[str], shared: dict[str, Any]) -> None:
    """Measure some runs."""
    with place.work() as work, _brought(work):
        measure_runs(work, [info for info in work.infos() if info.name in names], shared)


@_saying
def judge_part(place: Place, names: list[str], evaluation: Evaluation, name: str, shared: dict[str, Any]) -> None:
    """Run an evaluation over some runs."""
    with place.work() as work, _brought(work):
        evaluate(evaluation, name, work.inputs(work.infos()), shared, names)
