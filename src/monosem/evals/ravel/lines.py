"""Methods of runs, and baselines: their scores, rows and names. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from monosem.evals import Judged
from monosem.evals.ravel.disentangle import Key, differences
from monosem.evals.ravel.table import BASELINES, SAE_METHODS, prefix, tested
from monosem.types import Estimate

SECTION = "RAVEL"
DRAWS = 1000
BARS = "95 % intervals, base entities resampled"


@dataclass(frozen=True)
class Line:
    """A method with the rows of one run. run: "" for a baseline, which is the same for every run."""

    method: str
    run: str
    one: Judged

    @property
    def label(self) -> str:
        """The method in words."""
        return {**SAE_METHODS, **BASELINES}[self.method]

    @property
    def name(self) -> str:
        """The method in words, behind its run."""
        return f"{self.run}, {self.label}" if self.run else self.label

    @property
    def rows(self) -> pl.DataFrame:
        """Its interventions on the test splits."""
        return tested(self.one.result.rows, self.method)

    def score(self, name: str) -> Estimate | None:
        """Return one of its scalars."""
        return self.one.result.scalars.get(f"{prefix(self.method)}_{name}")

    @property
    def disentangle(self) -> float:
        """Its point value, below all others where undefined."""
        return -1.0 if (found := self.score("disentangle")) is None else found.value


def difference(line: Line, other: Line) -> Estimate | None:
    """Return by how much a line's Disentangle is above another's, on the pairs that both have."""
    return differences(line.rows, other.rows, DRAWS)[Key()]["disentangle"]


def lines_of(judged: list[Judged], methods: Sequence[str]) -> list[Line]:
    """Return the methods of the runs, those that have scores."""
    lines = [Line(method, one.info.name, one) for one in judged for method in methods]
    return [line for line in lines if line.disentangle >= 0]
