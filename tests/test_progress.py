"""Progress in logs: what an earlier command has left doesn't make this one look fast."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from monosem.progress import PlainBar


class Log:
    """A bar of 1,000 tokens that prints into a text, and its clock."""

    def __init__(self) -> None:
        self.now, self.text = 100.0, io.StringIO()
        self.bar = PlainBar(Console(file=self.text, width=200), 1000, "train", "tokens", lambda: self.now)

    def to(self, amount: int, after: float) -> str:
        """Advance after some seconds; return what is printed."""
        before = len(self.text.getvalue())
        self.now += after
        self.bar.to(amount)
        return self.text.getvalue()[before:]


@pytest.fixture
def log() -> Log:
    return Log()


def test_speed_and_time_left(log: Log) -> None:
    assert log.to(20, 3.0) == ""
    assert log.to(120, 2.0) == "train: 10 %, 50 tokens/s, 18 s left\n"
    assert log.to(140, 2.0) == ""
    assert log.to(1000, 1.0) == "train: 100 %, 196 tokens/s, 0 s left\n"


def test_what_was_there_before_is_not_counted(log: Log) -> None:
    assert log.to(700, 0.5) == "train: 70 %\n"
    assert log.to(800, 10.0) == "train: 80 %, 10 tokens/s, 20 s left\n"


def test_a_moment_has_no_speed(log: Log) -> None:
    assert log.to(100, 0.0) == "train: 10 %\n"
    assert log.to(1000, 1e-6) == "train: 100 %\n"


def test_more_than_was_expected_leaves_no_time(log: Log) -> None:
    log.to(500, 1.0)
    assert log.to(1010, 1.0) == "train: 100 %, 510 tokens/s, 0 s left\n"


def test_numbers_of_the_runs_follow(log: Log) -> None:
    log.bar.table({"topk-k8": {"l0": 8.0, "nmse": 0.25}})
    assert log.to(100, 1.0) == "train: 10 %\n    topk-k8: L0 8, NMSE 0.25\n"
