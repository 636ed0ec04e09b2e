"""Who does the work of the stages: here, this process and those that were launched with it; or a cluster (cluster.py).

The stages decide what has to be done, in what order, and keep what was done; an engine does it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from monosem.config import Study
from monosem.evals import Evaluation, Inputs, RunInfo
from monosem.evaluate import evaluate
from monosem.harvest import Make
from monosem.kernels.settings import configure, reference_kernels
from monosem.measuring import measure_runs
from monosem.training import train_runs
from monosem.work import Work


class Engine:
    """Does the work here."""

    def shards(self, work: Work) -> Make | None:
        """Return what makes shards of activations; None: the harvest itself does."""
        return None

    def check(self, work: Work) -> None:
        """Raise UserError when training, which comes after hours of harvest, won't have the processes it wants."""
        compute = work.study.file.compute
        work.world.check(compute.data_parallel, compute.feature_parallel)

    def train(self, work: Work, meta: dict[str, Any]) -> str | None:
        """Train the runs that lack an SAE; return what was done, in words, None for nothing."""
        return train_runs(work, meta)

    def measure(self, work: Work, infos: list[RunInfo], shared: dict[str, Any]) -> int:
        """Measure the runs that lack sums or codes; return how many."""
        return measure_runs(work, infos, shared)

    def judge(
        self,
        work: Work,
        evaluation: Evaluation,
        name: str,
        inputs: Inputs,
        shared: dict[str, Any],
        only: Collection[str] | None = None,
    ) -> int:
        """Run an evaluation over the runs, `only` among these names, that lack its result; return how many."""
        return evaluate(evaluation, name, inputs, shared, only)


@contextmanager
def kernels_of(study: Study) -> Iterator[None]:
    """Have this process compute as a study's `[compute]` section says."""
    compute = study.file.compute
    configure(threads=compute.threads, chunk=compute.chunk, first_look=compute.first_look)
    with reference_kernels(compute.reference):
        yield
