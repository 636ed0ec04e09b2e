"""Interleaved timing, and the peak memory of this process."""

from __future__ import annotations

import gc
import random
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

WARM_STEPS = 2
MIN_ROUNDS = 3
MAX_STEPS = 20  # steps of one library in one turn


@dataclass
class Times:
    """Seconds of each timed step: CPU seconds of the whole process (all threads) and wall seconds."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Return medians and quartiles in seconds, and the number of steps."""
        return {"steps": len(self.cpu), "cpu_seconds": _quartiles(self.cpu), "wall_seconds": _quartiles(self.wall)}


def _quartiles(values: list[float]) -> dict[str, float]:
    low, median, high = (float(v) for v in np.quantile(values, (0.25, 0.5, 0.75)))
    return {"median": median, "q1": low, "q3": high}


def rotate(
    steps: dict[str, Callable[[Tensor], object]], batches: list[Tensor], seconds: float, turn: float = 1.0
) -> dict[str, Times]:
    """Time every library of `steps` in turns until `seconds` of wall time are over; at least three rounds.

    A turn lasts about `turn` seconds: at least one step and at most 20. The order of the libraries is drawn anew in
    each round, so that none always follows the same other one. All go through the same batches in the same order.
    The first two steps of each are not counted (allocation of moments, compilation).
    """
    times = {name: Times() for name in steps}
    done = dict.fromkeys(steps, 0)

    def one(name: str) -> tuple[float, float]:
        x = batches[done[name] % len(batches)]
        done[name] += 1
        wall, cpu = time.perf_counter(), time.process_time()
        steps[name](x)
        return time.process_time() - cpu, time.perf_counter() - wall

    for name in steps:
        for _ in range(WARM_STEPS):
            one(name)
    gc.collect()
    order, chance = list(steps), random.Random(0)
    began, rounds = time.perf_counter(), 0
    while rounds < MIN_ROUNDS or time.perf_counter() - began < seconds:
        chance.shuffle(order)
        for name in order:
            turn_began = time.perf_counter()
            for _ in range(MAX_STEPS):
                cpu, wall = one(name)
                times[name].cpu.append(cpu)
                times[name].wall.append(wall)
                if time.perf_counter() - turn_began >= turn:
                    break
        rounds += 1
    return times


def peak_bytes() -> int:
    """Return the largest resident memory that this process has had, in bytes.

    Linux: VmHWM. ru_maxrss says the same, but for a child it starts from what the parent held when it forked.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
