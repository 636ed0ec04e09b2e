"""An edit's interventions: the answers that it changes and those that it keeps."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from monosem.evals.ravel.disentangle import Key, intervals
from monosem.evals.ravel.edits import Edit, identity_error
from monosem.evals.ravel.sets import VALIDATION, Asked, World
from monosem.evals.ravel.table import TEST, as_table
from monosem.evals.ravel.training import Progress, silent

TOLERANCE = 1e-3  # of the identity test, relative to the activations


def interventions(
    world: World,
    method: str,
    place: tuple[str, str],
    edit: Edit,
    splits: Iterable[str] = TEST,
    c: float | None = None,
    progress: Progress = silent,
) -> pl.DataFrame:
    """Return the rows of an edit that swaps an attribute; place: (type, target).

    Raises ValueError for an edit that moves activations swapped for themselves: it would score for what it breaks.
    """
    kind, target = place
    rows = []
    for split in splits:
        for attribute in world.attributes[kind]:
            asked = world.asked[kind, attribute, split]
            if not asked.pairs:
                continue
            if (error := identity_error(edit, asked.base)) > TOLERANCE:
                raise ValueError(f"{method} moves activations that are swapped for themselves, by {error:.2g} of them")
            questions = asked.change if attribute == target else asked.keep
            said = world.exchange.answers(questions, edit(asked.base, asked.source), progress)
            rows.append(_rows(world, method, place, attribute, split, edit.size, c, asked, said))
    return pl.concat(rows) if rows else as_table({})


def number_of(world: World, splits: Iterable[str] = TEST) -> int:
    """Return how many interventions an edit of every target takes."""
    sizes = {place: len(asked.pairs) for place, asked in world.asked.items()}
    return sum(
        sizes[kind, attribute, split]
        for kind, _ in world.targets()
        for attribute in world.attributes[kind]
        for split in splits
    )


def best_on_validation(rows: dict[float, pl.DataFrame]) -> float:
    """Return the C whose interventions on the validation splits score best; the smallest of equal ones."""
    found = {c: intervals(table, 1)[Key()]["disentangle"] for c, table in rows.items()}
    return max(sorted(rows), key=lambda c: 0.0 if (score := found[c]) is None else score.value)


def _rows(
    world: World,
    method: str,
    place: tuple[str, str],
    attribute: str,
    split: str,
    size: int,
    c: float | None,
    asked: Asked,
    said: list[tuple[int, ...]],
) -> pl.DataFrame:
    kind, target = place
    pairs, n = asked.pairs, len(asked.pairs)
    tokenizer = world.exchange.model.tokenizer
    wanted = [pair.source_answer if attribute == target else pair.base_answer for pair in pairs]
    columns = {"method": method, "type": kind, "target": target, "attribute": attribute, "size": size, "c": c}
    columns["split"] = "val" if split in VALIDATION else split
    return as_table(
        {
            **{name: [value] * n for name, value in columns.items()},
            **{
                name: [getattr(pair, name) for pair in pairs]
                for name in ("base", "source", "template", "source_template")
            },
            "base_answer": tokenizer.batch_decode([list(pair.base_answer) for pair in pairs]),
            "source_answer": tokenizer.batch_decode([list(pair.source_answer) for pair in pairs]),
            "answer": tokenizer.batch_decode([list(answer) for answer in said]),
            "hit": [answer == want for answer, want in zip(said, wanted, strict=True)],
        }
    )
