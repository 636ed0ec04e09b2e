"""Work on a cluster that is reached through a Ray Client server: what leads it runs on the cluster, too."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import ray

from monosem.cluster.connection import connected
from monosem.cluster.meter import FarTicker, Say, followed, start_meter
from monosem.cluster.parts import moved
from monosem.processes import RESTARTS
from monosem.progress import Ticker
from monosem.types import UserError


def led(address: str, job: Callable[..., Any], say: Say, ticker: Ticker) -> Any:
    """Call `job(say=..., ticker=...)` in a process of the cluster, which starts all others, and return its result.

    It is called again when that process is lost. What it says and draws appears here. Raises its UserError.
    """
    with connected(address):
        meter = start_meter()
        task: Any = ray.remote(_lead).options(num_cpus=0, max_retries=RESTARTS)
        place = os.getcwd()
        result = followed(meter, say, ticker, lambda: ray.get(task.remote(job, meter, place)))
    if isinstance(result, UserError):
        raise result
    return result


def _lead(job: Callable[..., Any], meter: Any, start: str) -> Any:
    try:
        with moved(start):
            return job(say=partial(_tell, meter), ticker=FarTicker(meter))
    except UserError as error:
        return error


def _tell(meter: Any, line: str) -> None:
    ray.get(meter.tell.remote(("say", line)))
