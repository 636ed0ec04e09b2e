"""Joining the processes that a launcher (torchrun, Ray, `monosem compare --nproc`) has started for one study.

The first process works through the stages; the others wait until it has something for all of them: training.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import import_module
from signal import SIGINT

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.rendezvous import rendezvous

from monosem.mesh import ALONE, Axis, Mesh, Traffic
from monosem.types import UserError

RESTARTS = 3
MOST = 8  # processes a core; more would only wait for each other
PATIENCE = timedelta(days=7)  # how long processes wait for each other; a dead one is noticed by the launcher


@dataclass
class World:
    """The processes of a launch. rank: which one this is, 0 leads; size: how many; traffic: of its collectives."""

    rank: int = 0
    size: int = 1
    store: Store | None = None
    traffic: Traffic = field(default_factory=Traffic)

    def announce(self, runs: list[str]) -> None:
        """Tell the other processes which runs are to be trained now; none: there is nothing for them. Counts once."""
        if self.store is not None and self.rank == 0 and not self.store.check([_KEY]):
            self.store.set(_KEY, json.dumps(runs))

    def announced(self) -> list[str]:
        """Wait for what the first process announces, and return it."""
        assert self.store is not None
        self.store.wait([_KEY], PATIENCE)
        return json.loads(self.store.get(_KEY))

    def meshes(self, data: int, features: int, device: str) -> tuple[Mesh, int, int]:
        """Split the processes into groups of `data` times `features`, each of which trains other runs.

        Returns this process's mesh, which group it is in and how many there are. Raises UserError when they don't fit.
        """
        together = self.check(data, features)
        if self.size == 1:
            return ALONE, 0, 1
        groups = self.size // together
        devices = init_device_mesh(device, (groups, data, features), mesh_dim_names=("runs", "data", "features"))
        shared = devices["data", "features"]
        both = self._axis(shared._flatten("both"))
        mesh = Mesh(self._axis(shared["data"]), self._axis(shared["features"]), both, shared)
        return mesh, devices["runs"].get_local_rank(), groups

    def check(self, data: int, features: int) -> int:
        """Return how many processes train an SAE together. Raises UserError when those of the launch don't fit."""
        together = data * features
        if self.size % together:
            raise UserError(
                f"compute.data_parallel = {data} times compute.feature_parallel = {features}: {self.size} processes "
                f"can't be split into groups of {together}; start a multiple of {together}, as with --nproc {together} "
                "or set both keys to 1"
            )
        return together

    @property
    def everyone(self) -> Axis:
        """All processes of the launch."""
        return Axis(self.size, self.rank, dist.group.WORLD if self.size > 1 else None)

    def threads_each(self) -> int:
        """Return how many threads one of the processes on this machine has for itself."""
        return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

    def _axis(self, line: DeviceMesh) -> Axis:
        return Axis(line.size(), line.get_local_rank(), line.get_group(), self.traffic)


_KEY = "monosem/train"


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that were launched with this one, as the launcher's environment variables tell."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    if dist.is_initialized():  # by Ray Train, which also ends it
        yield World(dist.get_rank(), dist.get_world_size())
        return
    import_module("torch.distributed.nn.functional")  # imported later, its functions would keep the group for ever
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        # a launcher keeps its store when it starts processes again, and gloo would connect to those that have died
        store = PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(store=store, rank=rank, world_size=size, timeout=PATIENCE)
    world = World(rank, size, store)
    try:
        yield world
        _end_groups_before_python()
    except UserError:  # of all processes; after other errors, an exchange may be open that would be waited for
        _end_groups_before_python()
        raise
    finally:
        world.announce([])
        dist.destroy_process_group()


def _end_groups_before_python() -> None:
    """Leave no group of processes to the interpreter's end.

    A group's threads end with it only, whatever `destroy_process_group` has shut down. One that drops a tensor while
    Python ends aborts the process (https://github.com/pytorch/pytorch/pull/179291), with all work done. Meshes, which
    hold groups, hold themselves.
    """
    atexit.register(gc.collect)


def launch(command: Callable[[list[str]], int], arguments: list[str], processes: int) -> int:
    """Run `command(arguments)` in several processes of this machine by torchrun's launcher; return the exit code.

    When a process dies, all of them are started again, up to RESTARTS times, and go on from the last checkpoint.
    Raises UserError when they die again and again, or for more than this machine could run.
    """
    if processes > (most := MOST * (os.cpu_count() or 1)):
        raise UserError(f"--nproc {processes}: this machine has {os.cpu_count()} cores; start at most {most}")
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=secrets.token_hex(4),
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=RESTARTS,
        monitor_interval=0.2,
    )
    try:
        return max(elastic_launch(config, command)(arguments).values())
    except SignalException as error:
        return 128 + int(error.sigval)
    except KeyboardInterrupt:  # before the launcher watches for signals
        return 128 + SIGINT
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise UserError(
            f"process {rank} of {processes} died {RESTARTS + 1} times, the last time with exit code "
            f"{failure.exitcode}; what was finished is kept, and the same command goes on"
        ) from error
