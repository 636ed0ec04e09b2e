"""An engine that does the work of the stages on a Ray cluster (the optional dependency group `ray`).

Harvest is a Ray Data pipeline over shards, training a TorchTrainer whose processes do what those of torchrun do, and
measurements and evaluations are tasks, some runs each. Ray places the work, and does it again where a process or a
machine was lost. All machines see the study folder under the same path; results are handed on as files there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from dataclasses import asdict
from functools import partial
from typing import Any

import ray
import ray.data
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

from monosem.cluster.connection import connected
from monosem.cluster.lead import led
from monosem.cluster.meter import followed, start_meter
from monosem.cluster.parts import Harvester, judge_part, measure_part, place_of, train_part
from monosem.cluster.slots import Slots, slots
from monosem.engine import Engine
from monosem.evals import Evaluation, Inputs, RunInfo
from monosem.evaluate import evaluate, to_judge
from monosem.harvest import Make, Progress, Record, Shard
from monosem.measuring import measure_runs, unmeasured
from monosem.processes import PATIENCE, RESTARTS, World
from monosem.remote import fetch, keep, storage
from monosem.training import train_runs
from monosem.types import UserError
from monosem.work import Work

__all__ = ["RayEngine", "Slots", "connected", "led", "slots"]


class RayEngine(Engine):
    """Does the work on the cluster that this process is connected to."""

    def __init__(self, processes: int = 0) -> None:
        """processes: how many train together; 0 for as many as there is room for."""
        self.processes = processes

    def check(self, work: Work) -> None:
        """Raise UserError when the cluster has no room for the processes that training wants."""
        compute = work.study.file.compute
        wanted = self.processes or compute.data_parallel * compute.feature_parallel
        World(size=wanted).check(compute.data_parallel, compute.feature_parallel)
        self._slots(work, wanted)

    def shards(self, work: Work) -> Make:
        """Return what makes shards in as many processes as there is room for, each with the language model."""
        return partial(self._make_shards, work)

    def _make_shards(self, work: Work, todo: list[Shard], record: Record, progress: Progress) -> None:
        if not todo:
            return
        keep(work.folder)
        room = self._slots(work)
        context, sizes = work.study.file.model.context, {shard.name: shard.stop - shard.start for shard in todo}
        made = ray.data.from_items([asdict(shard) for shard in todo], override_num_blocks=len(todo)).map(
            Harvester,  # pyright: ignore[reportArgumentType]  # Ray makes one in each process
            fn_constructor_args=(place_of(work),),
            concurrency=min(room.count, len(todo)),
            num_cpus=room.cpus,
            num_gpus=room.gpus,
        )
        for row in made.iter_rows():
            if row["error"]:
                raise UserError(row["error"])
            record(row["name"], {key: row[key] for key in ("sha256", "rows", "outliers")})
            progress(sizes[row["name"]] * context)

    def train(self, work: Work, meta: dict[str, Any]) -> str | None:
        """Train the runs that lack an SAE by Ray Train; return what was done, in words, None for nothing."""
        return train_runs(work, meta, self._train)

    def _train(self, work: Work, names: list[str]) -> int:
        compute, room = work.study.file.compute, self._slots(work, self.processes)
        together = compute.data_parallel * compute.feature_parallel
        count = self.processes or max(1, min(room.count // together, len(names))) * together
        room = self._slots(work, count)
        meter = start_meter()
        files, path = storage(work.folder / "ray")
        trainer = TorchTrainer(
            train_part,
            train_loop_config={"work": place_of(work), "names": names, "meter": meter},
            torch_config=TorchConfig(
                backend="cpu:gloo,cuda:nccl" if room.gpus else "gloo", timeout_s=int(PATIENCE.total_seconds())
            ),
            scaling_config=ScalingConfig(
                num_workers=count, use_gpu=bool(room.gpus), resources_per_worker=_resources(room)
            ),
            run_config=RunConfig(
                name="train",
                storage_path=path,
                storage_filesystem=PyFileSystem(FSSpecHandler(files)),
                failure_config=FailureConfig(max_failures=RESTARTS, controller_failure_limit=RESTARTS),
            ),
        )
        try:
            failure = followed(meter, work.say, work.ticker, trainer.fit).return_value
        except ControllerError as error:
            raise UserError(
                f"training on Ray: the cluster has no room for {count} processes any more; what was finished is kept, "
                "and the same command goes on once nodes are back, or with a smaller --nproc"
            ) from error
        except TrainingFailedError as error:
            failures = getattr(error, "worker_failures", {}).values()
            if failures and not any(isinstance(failure, RayActorError) for failure in failures):
                raise  # nothing was lost: a mistake of ours, with its traceback
            reason = str(error).strip().rpartition("\n")[2]
            raise UserError(
                f"training on Ray failed {RESTARTS + 1} times ({reason}); what was finished is kept, and the same "
                "command goes on"
            ) from error
        finally:
            with contextlib.suppress(Exception):  # each store has errors of its own; nothing there is needed
                files.rm(path, recursive=True)
        if failure:
            raise UserError(failure)
        return count

    def measure(self, work: Work, infos: list[RunInfo], shared: dict[str, Any]) -> int:
        """Measure the runs that lack sums or codes, in tasks; return how many."""
        todo = set.union(*unmeasured(work, infos, shared))
        self._in_tasks(work, "measure", measure_part, [info for info in infos if info.name in todo], shared)
        return len(todo) or measure_runs(work, infos, shared)

    def judge(
        self,
        work: Work,
        evaluation: Evaluation,
        name: str,
        inputs: Inputs,
        shared: dict[str, Any],
        only: Collection[str] | None = None,
    ) -> int:
        """Run an evaluation over the runs, `only` among these names, that lack its result, in tasks."""
        todo = to_judge(evaluation, name, inputs, shared, only)
        self._in_tasks(work, name, judge_part, todo, evaluation, name, shared)
        evaluate(evaluation, name, inputs, shared, only=())  # the charts, of all
        return len(todo)

    def _in_tasks(self, work: Work, what: str, part: Callable[..., str], infos: list[RunInfo], *arguments: Any) -> None:
        """Call `part(work, names, *arguments)` in tasks, for some of the runs each. Raises what one of them returns."""
        if not infos:
            return
        keep(work.folder)
        room, names = self._slots(work), [info.name for info in infos]
        task: Any = ray.remote(part).options(num_cpus=room.cpus, num_gpus=room.gpus, max_retries=RESTARTS)
        chunks = [chunk for start in range(room.count) if (chunk := names[start :: room.count])]
        waiting = {task.remote(place_of(work), chunk, *arguments): len(chunk) for chunk in chunks}
        with work.ticker.bar(what, len(names), "runs") as bar:
            while waiting:
                done, _ = ray.wait(list(waiting))
                if failure := ray.get(done[0]):
                    raise UserError(failure)
                bar.add(waiting.pop(done[0]))
        fetch(work.folder)

    def _slots(self, work: Work, wanted: int = 0) -> Slots:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        device = work.study.file.model.device
        if device.startswith("cuda:"):
            raise UserError(f'model.device = "{device}": a cluster chooses the devices of its processes; use "cuda"')
        gpu = device.startswith("cuda") or (device == "auto" and any(node.get("GPU", 0) >= 1 for node in nodes))
        return slots(nodes, wanted, gpu=gpu)


def _resources(room: Slots) -> dict[str, float]:
    return {"CPU": room.cpus, **({"GPU": room.gpus} if room.gpus else {})}
