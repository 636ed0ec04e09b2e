"""Train all runs of a study in lockstep over one stream of activations.

Checkpoints are written on the way, that a killed training goes on from with bit-identical results.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from monosem.activations import Activations, prefetched, training_order
from monosem.checkpoints import drop_checkpoints, in_step, resume, write_checkpoint
from monosem.formats.saelens import save_sae
from monosem.kernels.threads import run_all, thread_count
from monosem.mesh import ALONE, Mesh
from monosem.normaliser import fit_normaliser
from monosem.remote import keep
from monosem.store import write_atomic
from monosem.trainer import Plan, Preparation, RunSpec, Trainer
from monosem.types import UserError

TRAIN_VERSION = 2
SAMPLE_ROWS = 2_000_000  # at most this many tokens, or 1,000 batches, set the normaliser and the variance
BDEC_ROWS = 32_768  # rows behind data-dependent biases


def prepare(store: Activations, plan: Plan) -> Preparation:
    """Fit the normaliser, the total variance and a sample for data-dependent biases. Deterministic."""
    rows = min(store.n, SAMPLE_ROWS, 1000 * plan.batch_size)
    index = np.sort(np.random.default_rng(plan.shuffle_seed).choice(store.n, size=rows, replace=False))
    raw = store.rows(index)
    normaliser = fit_normaliser(plan.normalise, raw)
    x = normaliser.apply(raw)[0]
    variance = float(x.double().var(dim=0, correction=0).sum())
    pick = np.random.default_rng(plan.shuffle_seed + 1).choice(rows, size=min(rows, BDEC_ROWS), replace=False)
    return Preparation(normaliser, variance, x[torch.from_numpy(np.sort(pick))])


Report = Callable[[int, "list[Trainer]"], object]


def train(
    specs: list[RunSpec],
    plan: Plan,
    store: Activations,
    folder: Path,
    *,
    device: torch.device | None = None,
    mesh: Mesh = ALONE,
    report: Report = lambda _step, _trainers: None,
) -> None:
    """Train `specs` over `store` and write each into `folder/<run>/` (SAE, log.parquet).

    Runs go on from their checkpoints; those that have one of the same step are trained in lockstep, and so are those
    that have none. `report(step, trainers)` is called after every step. mesh: of the processes that all call this, with
    the same arguments; tokens or features are split over them.
    Raises UserError when a batch can't be split evenly.
    """
    where = device or torch.device("cpu")
    if plan.batch_size % mesh.data.size:
        raise UserError(f"train.batch_size = {plan.batch_size}: must be a multiple of data_parallel = {mesh.data.size}")
    start = prepare(store, plan)
    for together in in_step([spec.name for spec in specs], folder, mesh):
        trainers = [Trainer(spec, plan, start, where, mesh) for spec in specs if spec.name in together]
        _train_in_step(trainers, store, folder, report)


def _train_in_step(trainers: list[Trainer], store: Activations, folder: Path, report: Report) -> None:
    """Train runs of one plan in lockstep, from the last checkpoint that all of them have."""
    plan, start, mesh = trainers[0].plan, trainers[0].start, trainers[0].mesh
    first, where = resume(trainers, folder), trainers[0].silent.device
    log_every = plan.log_every or max(1, plan.steps // 100)
    order = training_order(
        store.n,
        plan.batch_size,
        plan.steps,
        capacity=plan.shuffle_rows or max(2**19, 64 * plan.batch_size),
        seed=plan.shuffle_seed,
        first=first,
    )
    saved = time.monotonic()
    mine = mesh.data.span(plan.batch_size)
    for step, raw in enumerate(prefetched(store, (index[mine] for index in order)), start=first):
        x = start.normaliser.apply(raw.to(where))[0]
        log = step % log_every == 0 or step == plan.steps - 1
        for trainer in trainers:
            trainer.maybe_resample(store, step)
        step_all(trainers, x, step, log)
        report(step, trainers)
        due = torch.tensor(time.monotonic() - saved >= plan.checkpoint_seconds)
        if step + 1 < plan.steps and mesh.both.reduced(due):
            write_checkpoint(trainers, folder, step + 1)
            saved = time.monotonic()
    for trainer in trainers:  # all of them, before a store that doesn't answer can stop this
        _write_sae(trainer, folder / trainer.spec.name)
    for trainer in trainers:
        _keep_sae(trainer, folder / trainer.spec.name)


def step_all(trainers: list[Trainer], x: Tensor, index: int, log: bool) -> None:
    """Advance all runs by one batch.

    With at least as many runs as threads, each run has one thread: its kernels then need no synchronisation, and its
    numbers don't depend on how many threads there are. The slowest runs go first, so that no thread waits long.
    """
    if len(trainers) < thread_count() or trainers[0].mesh.both.size > 1:  # there, all in the same order
        for trainer in trainers:
            trainer.step(x, index, log)
    else:
        slowest_first = sorted(trainers, key=lambda trainer: -trainer.seconds)
        run_all([partial(trainer.step, x, index, log) for trainer in slowest_first])


def _write_sae(trainer: Trainer, folder: Path) -> None:
    sae = trainer.sae()

    def write() -> None:
        if trainer.mesh.both.rank == 0:
            frame = pl.DataFrame(trainer.log, infer_schema_length=None)
            write_atomic(folder / "log.parquet", frame.write_parquet)
            save_sae(sae, folder)

    trainer.mesh.both.agreed(write)
    drop_checkpoints(folder)


def _keep_sae(trainer: Trainer, folder: Path) -> None:
    both = trainer.mesh.both
    both.agreed(lambda: keep(folder) if both.rank == 0 else None)
    both.agreed(partial(keep, folder / "checkpoint"))
