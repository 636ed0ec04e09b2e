"""Progress that one process makes and another one draws."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from monosem.progress import Bar, Ticker

SECONDS = 0.5  # between two messages of a bar, and between two looks at them
Say = Callable[[str], object]
T = TypeVar("T")


class Meter:
    """What one process says and how far it is, kept until another one reads it; lives in a process of its own."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def tell(self, *events: tuple[Any, ...]) -> None:
        """Keep events: ("say", line), ("bar", what, total, unit), ("to", amount, rows) or ("end",)."""
        self.events += events

    def read(self) -> list[tuple[Any, ...]]:
        """Return what was told since this was last called."""
        events, self.events = self.events, []
        return events


def start_meter() -> Any:
    """Start a meter on the cluster; it ends with what holds it. Where it is lost, another one begins anew."""
    return ray.remote(Meter).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()


class FarBar(Bar):
    """A bar that is drawn by another process."""

    def __init__(self, meter: Any) -> None:
        self.meter, self.told, self.amount = meter, 0.0, 0
        self.rows: dict[str, dict[str, float]] = {}

    def add(self, amount: int) -> None:
        """Advance by `amount`."""
        self.to(self.amount + amount)

    def to(self, amount: int) -> None:
        """Advance to `amount`."""
        self.amount = amount
        if time.monotonic() - self.told >= SECONDS:
            self.tell()

    def table(self, rows: dict[str, dict[str, float]]) -> None:
        """Show the latest numbers of each run, with the next message."""
        self.rows = rows

    def tell(self) -> None:
        """Tell the amount and the numbers now."""
        self.told = time.monotonic()
        self.meter.tell.remote(("to", self.amount, self.rows))


class FarTicker(Ticker):
    """Opens bars that are drawn by another process."""

    def __init__(self, meter: Any) -> None:
        self.meter = meter

    @contextlib.contextmanager
    def bar(self, what: str, total: int, unit: str) -> Iterator[Bar]:
        """Open a bar."""
        self.meter.tell.remote(("bar", what, total, unit))
        bar = FarBar(self.meter)
        try:
            yield bar
        finally:
            bar.tell()
            ray.get(self.meter.tell.remote(("end",)))


class _Drawing:
    """Says and draws events."""

    def __init__(self, say: Say, ticker: Ticker) -> None:
        self.say, self.ticker = say, ticker
        self.opened = contextlib.ExitStack()
        self.bar = Bar()

    def draw(self, event: tuple[Any, ...]) -> None:
        kind, *values = event
        if kind == "say":
            self.say(values[0])
        elif kind == "to":
            self.bar.to(values[0])
            self.bar.table(values[1])
        else:  # a process that was lost and replaced ends no bar, and opens another one
            self.opened.close()
            self.bar = Bar() if kind == "end" else self.opened.enter_context(self.ticker.bar(*values))


def followed(meter: Any, say: Say, ticker: Ticker, work: Callable[[], T]) -> T:
    """Return what `work()` returns, which runs in a thread; say and draw here what other processes tell a meter.

    Ray Train would handle Ctrl-C by itself in the main thread, and leave its handler behind.
    """
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="cluster", daemon=True).start()
    drawing, done = _Drawing(say, ticker), False
    with drawing.opened:
        while not done:
            done = bool(wait([result], SECONDS).done)
            with contextlib.suppress(RayError):
                for event in ray.get(meter.read.remote()):
                    drawing.draw(event)
    return result.result()
