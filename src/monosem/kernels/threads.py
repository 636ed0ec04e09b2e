"""Rows and tasks spread over threads. Compiled loops and torch operators release the interpreter lock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import cache
from itertools import pairwise
from typing import TypeVar

import torch

T = TypeVar("T")

_count: ContextVar[int | None] = ContextVar("count", default=None)


def thread_count() -> int:
    """Return how many threads `run_all` and `spread` use here: torch's number, 1 inside their own tasks."""
    count = _count.get()
    return torch.get_num_threads() if count is None else count


@contextmanager
def own_threads() -> Iterator[None]:
    """Leave all threads to `run_all` and `spread` inside this context.

    torch's own threads spin for a while after each operator and would take the cores from the compiled loops.
    """
    count = torch.get_num_threads()
    token = _count.set(thread_count())
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
        _count.reset(token)


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
    todo, count = list(tasks), thread_count()
    if count == 1 or len(todo) <= 1:
        return [task() for task in todo]
    futures: list[Future[T]] = [_pool(count).submit(copy_context().run, _alone, task) for task in todo]
    for future in futures:
        future.exception()
    return [future.result() for future in futures]


def _alone(task: Callable[[], T]) -> T:
    _count.set(1)
    return task()


def spread(work: Callable[[int, int], object], n: int, least: int = 256) -> None:
    """Call `work(first, last)` on blocks of at least `least` of the rows 0 to n - 1."""
    blocks = max(1, min(thread_count(), n // least))
    ends = [n * part // blocks for part in range(blocks + 1)]
    run_all([lambda first=first, last=last: work(first, last) for first, last in pairwise(ends)])
