"""Explanations of features: those that evaluations left, and a search by words in them, within a run or in all.

An evaluation explains features when its rows have a column `explanation` of words. Text comes from language models and
is escaped wherever it is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import polars as pl

from monosem.app.study import Run, Study
from monosem.app.table import EXPLANATION, LONGEST, contains

SCORES = ("pearson", "detection", "fuzzing")  # columns that tell how good an explanation is, the chief one first
SHOWN = 100  # explanations found that are listed


@dataclass(frozen=True)
class Explanation:
    """What an evaluation says a feature responds to. author: who explained it; scores: those of SCORES that it has."""

    text: str
    evaluation: str
    author: str
    scores: dict[str, float]


class Found(NamedTuple):
    """An explanation that was searched for, of a feature of a run."""

    run: Run
    feature: int
    explanation: Explanation


def explanations_of(study: Study, run: str, feature: int) -> list[Explanation]:
    """Return the explanations of a feature."""
    frames = ((evaluation, rows.filter(pl.col("feature") == feature)) for evaluation, rows in _explained(study, run))
    return [_explanation(study, run, name, row) for name, rows in frames for row in rows.iter_rows(named=True)]


def find(study: Study, runs: Iterable[Run], words: str, shown: int = SHOWN) -> tuple[list[Found], int]:
    """Return the explanations that contain all of some words, whatever the case, and how many there are.

    Those with the words next to each other come first, then higher scores; at most `shown` are returned.
    """
    wanted = " ".join(words[:LONGEST].lower().split())
    found: list[Found] = []
    for run in runs if wanted else ():
        for evaluation, rows in _explained(study, run.name):
            for row in rows.filter(contains(EXPLANATION, wanted)).iter_rows(named=True):
                found.append(Found(run, int(row["feature"]), _explanation(study, run.name, evaluation, row)))
    found.sort(key=lambda one: (wanted not in one.explanation.text.lower(), -one.explanation.scores.get(SCORES[0], -2)))
    return found[:shown], len(found)


def any_explained(study: Study, runs: Iterable[Run]) -> bool:
    """Return whether any feature of these runs has an explanation."""
    return any(rows.height for run in runs for _, rows in _explained(study, run.name))


def _explained(study: Study, run: str) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield the evaluations of a run that explain features, each with the rows that have an explanation."""
    for evaluation in study.evaluations(run):
        rows = study.rows(run, evaluation)
        if rows is not None and rows.schema.get(EXPLANATION) == pl.String:
            yield evaluation, rows.filter(pl.col(EXPLANATION).str.strip_chars() != "")


def _explanation(study: Study, run: str, evaluation: str, row: dict[str, object]) -> Explanation:
    author = study.settings(run, evaluation).get("explainer")
    values = {name: row.get(name) for name in SCORES}
    scores = {name: float(v) for name, v in values.items() if isinstance(v, int | float) and v == v}
    return Explanation(str(row[EXPLANATION]), evaluation, author if isinstance(author, str) else "", scores)
