"""Cyclic tasks: weekdays and months, the day after, and sums of days. Imports no torch.

Sums: Engels et al. 2024 (arXiv 2405.14860), section 5; the wording is ours. Successors are ours: small models know what
comes next where they can't add.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from monosem.types import UserError

SOLVES = 0.5  # share of prompts: below, a task says nothing about how the model does it (ours)
NUMBERS = ("One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip


@dataclass(frozen=True)
class Cycle:
    """Words in a circle. successors: templates with {word}, whose next word is the one after; sums: with {count} too.

    one, many: what is counted.
    """

    words: tuple[str, ...]
    one: str
    many: str
    successors: tuple[str, ...]
    sums: tuple[str, ...]

    def count(self, beta: int) -> str:
        """Return "Two days" for 2."""
        return f"{NUMBERS[beta - 1]} {self.one if beta == 1 else self.many}"


CYCLES = {
    "weekdays": Cycle(
        DAYS,
        "day",
        "days",
        (
            "Today is {word}. Tomorrow will be",
            "It was {word} yesterday, so today it is",
            "If today is {word}, then tomorrow is",
            "Today is {word}. Tomorrow is",
            "The day after {word} is",
        ),
        ("A question about the days of the week. {count} after {word} comes",),
    ),
    "months": Cycle(
        MONTHS,
        "month",
        "months",
        (
            "This month is {word}. Next month is",
            "The current month is {word}. The next month is",
            "It is {word} now. Next month will be",
            "If this month is {word}, then next month is",
            "The month after {word} is",
        ),
        ("A question about the months of the year. {count} after {word} comes",),
    ),
}


@dataclass(frozen=True)
class Prompt:
    """text: what the model reads; begin: up to the end of the word; alpha: the word, beta: how far on, both numbers."""

    text: str
    begin: str
    alpha: int
    beta: int


@dataclass(frozen=True)
class Task:
    """A template of a cycle. kind: "successor" or "sum"."""

    cycle: str
    kind: str
    template: str

    @property
    def name(self) -> str:
        """What rows call it."""
        return f"{self.cycle}: {self.template}"

    @property
    def words(self) -> tuple[str, ...]:
        """The words, in their order."""
        return CYCLES[self.cycle].words

    @property
    def prompts(self) -> list[Prompt]:
        """All words, and for sums all distances from 1 to the number of words."""
        cycle = CYCLES[self.cycle]
        betas = range(1, len(cycle.words) + 1) if self.kind == "sum" else (1,)
        before, _, behind = self.template.partition("{word}")
        out = []
        for beta in betas:
            counted = before.replace("{count}", cycle.count(beta))
            out += [Prompt(counted + w + behind, counted + w, alpha, beta) for alpha, w in enumerate(cycle.words)]
        return out


def tasks_of(names: list[str]) -> Iterator[Task]:
    """Yield the tasks of cycles. Raises UserError for an unknown cycle."""
    for name in names:
        if name not in CYCLES:
            raise UserError(f'tasks: "{name}" is not known; known are {", ".join(CYCLES)}')
        for kind in ("successor", "sum"):
            templates: Any = CYCLES[name].successors if kind == "successor" else CYCLES[name].sums
            yield from (Task(name, kind, template) for template in templates)
