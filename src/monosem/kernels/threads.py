"""Rows and tasks spread over threads. Compiled loops and torch operators release the interpreter lock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

T = TypeVar("T")


@cache
def _pool(count: int) -> ThreadPoolExecutor:
    """Return a pool whose threads run torch operators on one thread each."""
    before, started = torch.get_num_threads(), threading.Barrier(count + 1)
    pool = ThreadPoolExecutor(count, "monosem", initializer=torch.set_num_threads, initargs=(1,))
    for _ in range(count):
        pool.submit(started.wait)
    started.wait()
    torch.set_num_threads(before)  # the workers' setting is theirs alone, but new threads would inherit it
    return pool


def run_all(tasks: Iterable[Callable[[], T]]) -> list[T]:
    """Run tasks on as many threads as torch may use here, and return their results in order.

    The first exception is raised after all tasks have ended.
    """
    todo, count = list(tasks), torch.get_num_threads()
    if count == 1 or len(todo) <= 1:
        return [task() for task in todo]
    futures: list[Future[T]] = [_pool(count).submit(task) for task in todo]
    for future in futures:
        future.exception()
    return [future.result() for future in futures]


def spread(work: Callable[[int, int], object], n: int, least: int = 256) -> None:
    """Call `work(first, last)` on blocks of at least `least` of the rows 0 to n - 1."""
    blocks = max(1, min(torch.get_num_threads(), n // least))
    ends = [n * part // blocks for part in range(blocks + 1)]
    run_all([lambda first=first, last=last: work(first, last) for first, last in zip(ends, ends[1:], strict=False)])
