"""Progress of long work: bars with throughput and time left. The default says nothing, for use from Python."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

SHORT = 0.05  # seconds; a speed over less says nothing


class Bar:
    """A bar that goes nowhere; `TerminalBar` draws it."""

    def add(self, amount: int) -> None:
        """Advance by `amount`."""

    def to(self, amount: int) -> None:
        """Advance to `amount`."""

    def table(self, rows: dict[str, dict[str, float]]) -> None:
        """Show the latest numbers of each run."""


class Ticker:
    """Opens bars; this one is silent."""

    @contextlib.contextmanager
    def bar(self, what: str, total: int, unit: str) -> Iterator[Bar]:
        """Open a bar for `total` units of work."""
        yield Bar()


class _Throughput(ProgressColumn):
    """Units a second."""

    def render(self, task: Task) -> Text:
        """Return the text of a task."""
        speed = task.finished_speed or task.speed
        return Text("-" if speed is None else f"{speed:,.0f} {task.fields['unit']}/s", style="cyan")


class TerminalBar(Bar):
    """A bar on a terminal."""

    def __init__(self, live: Live, progress: Progress, total: int, what: str, unit: str):
        """Start the bar."""
        self.live, self.progress = live, progress
        self.task = progress.add_task(what, total=total, unit=unit)

    def add(self, amount: int) -> None:
        """Advance by `amount`."""
        self.progress.advance(self.task, amount)

    def to(self, amount: int) -> None:
        """Advance to `amount`."""
        self.progress.update(self.task, completed=amount)

    def table(self, rows: dict[str, dict[str, Any]]) -> None:
        """Show the latest numbers of each run under the bar."""
        if not rows:
            return
        names = list(next(iter(rows.values())))
        table = Table("run", *(name.upper() for name in names), box=None, padding=(0, 2))
        for run, numbers in rows.items():
            table.add_row(run, *(f"{numbers[name]:.4g}" for name in names))
        self.live.update(Group(self.progress, table))


class TerminalTicker(Ticker):
    """Draws bars on a terminal (stderr); without a terminal it prints a line now and then."""

    def __init__(self, console: Console):
        """Remember the console."""
        self.console = console

    @contextlib.contextmanager
    def bar(self, what: str, total: int, unit: str) -> Iterator[Bar]:
        """Open a bar for `total` units of work."""
        progress = Progress(
            TextColumn("{task.description:>9}"),
            BarColumn(),
            TaskProgressColumn(),
            _Throughput(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
        )
        if not self.console.is_terminal:
            yield PlainBar(self.console, total, what, unit)
            return
        with Live(progress, console=self.console, refresh_per_second=4, transient=True) as live:
            yield TerminalBar(live, progress, total, what, unit)


class PlainBar(Bar):
    """Prints a line each tenth of the way, for logs.

    Speed and time left are of what has been done since the first advance: that one brings what an earlier command has
    left. rich's bars count so too.
    """

    def __init__(self, console: Console, total: int, what: str, unit: str, clock: Callable[[], float] = monotonic):
        """Start at zero."""
        self.clock = clock
        self.console, self.total, self.what, self.unit = console, total, what, unit
        self.done, self.said = 0, 0
        self.first: tuple[float, int] | None = None
        self.latest = ""

    def add(self, amount: int) -> None:
        """Advance by `amount`."""
        self.to(self.done + amount)

    def to(self, amount: int) -> None:
        """Advance to `amount`."""
        self.done = amount
        self.first = self.first or (self.clock(), amount)
        tenth = 10 * self.done // max(self.total, 1)
        if tenth > self.said:
            self.said = tenth
            self.console.print(f"{self.what}: {10 * tenth} %{self._pace()}{self.latest}", highlight=False)

    def table(self, rows: dict[str, dict[str, float]]) -> None:
        """Remember the latest numbers for the next line."""
        self.latest = "".join(f"\n    {run}: L0 {r['l0']:.4g}, NMSE {r['nmse']:.4g}" for run, r in rows.items())

    def _pace(self) -> str:
        assert self.first is not None
        passed, made = self.clock() - self.first[0], self.done - self.first[1]
        if passed < SHORT or made <= 0:
            return ""
        left = passed * max(self.total - self.done, 0) / made
        return f", {made / passed:,.0f} {self.unit}/s, {left:.0f} s left"
