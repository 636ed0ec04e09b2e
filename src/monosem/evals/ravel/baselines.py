"""Methods that need no SAE: fitted and judged once for all runs, kept in `ravel/baselines.parquet`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch

from monosem.evals.ravel.edits import Edit, Full, Mask, Subspace, principal_components, random_subspace
from monosem.evals.ravel.judging import best_on_validation, interventions, number_of
from monosem.evals.ravel.rlace import rlace
from monosem.evals.ravel.selection import CLASSES, GRID, svm_path
from monosem.evals.ravel.sets import VALIDATION, World
from monosem.evals.ravel.table import BASELINES
from monosem.evals.ravel.training import MASK, SUBSPACE, Checkpoint, Progress, silent, train_mask, train_subspace
from monosem.progress import Ticker
from monosem.store import value_hash, write_atomic

VERSION = 1  # rises when other rows would be stored


@dataclass(frozen=True)
class Fitting:
    """What the methods are fitted with. folder: for trainings; depends: what these depend on besides their pairs.

    steps, mask_steps: of the baselines' trainings, and of a mask over features.
    """

    world: World
    folder: Path
    depends: dict[str, Any]
    rank: int
    steps: int
    mask_steps: int
    seed: int

    def checkpoint(self, method: str, place: tuple[str, str], pairs: str, **more: Any) -> Checkpoint:
        """Return where a training is kept. pairs: their hash; more: what it depends on besides."""
        path = self.folder / f"{method}-{value_hash(place)[:12]}.safetensors"  # attributes may have any name
        return Checkpoint(path, {**self.depends, "pairs": pairs, **more})


def baseline_rows(path: Path, fitting: Fitting, depends: dict[str, Any], ticker: Ticker) -> pl.DataFrame:
    """Return the interventions of all methods on all targets, from disk as far as they are there.

    depends: what they depend on; methods that are done aren't done again.
    """
    asked = {" ".join(place): [asdict(pair) for pair in one.pairs] for place, one in fitting.world.asked.items()}
    labels = {kind: [one.entities, one.values] for kind, one in fitting.world.contexts.items()}
    header = json.dumps({"version": VERSION, **depends, "asked": value_hash([asked, labels])}, sort_keys=True)
    rows = None
    if path.exists() and pl.read_parquet_metadata(path).get("header") == header:
        rows = pl.read_parquet(path)
    for method in BASELINES:
        if rows is not None and method in rows["method"]:
            continue
        more = _judged(method, fitting, ticker)
        rows = more if rows is None else pl.concat([rows, more])
        write_atomic(path, lambda to, rows=rows: rows.write_parquet(to, metadata={"header": header}))
    assert rows is not None
    return rows


def _judged(method: str, fitting: Fitting, ticker: Ticker) -> pl.DataFrame:
    world = fitting.world
    places = world.targets()
    trained = method in ("das", "mdas", "dbm")
    edits: dict[tuple[str, str], Edit] = {}
    with ticker.bar(f"{method}: fit", len(places) * (fitting.steps if trained else 1), "steps") as bar:
        for place in places:
            progress: Progress = bar.add if trained else silent
            edits[place] = FITS[method](fitting, place, progress)
            if not trained:
                bar.add(1)
    with ticker.bar(method, number_of(world), "interventions") as bar:
        return pl.concat([interventions(world, method, place, edit, progress=bar.add) for place, edit in edits.items()])


def _full(fitting: Fitting, place: tuple[str, str], progress: Progress) -> Full:
    return Full(fitting.world.exchange.x.shape[1])


def _random(fitting: Fitting, place: tuple[str, str], progress: Progress) -> Subspace:
    """Another subspace for every target, so that no single one decides."""
    x = fitting.world.exchange.x
    number = fitting.world.targets().index(place)
    drawn = random_subspace(x.shape[1], fitting.rank, fitting.seed + number)
    return replace(drawn, R=drawn.R.to(x.device))


def _pca(fitting: Fitting, place: tuple[str, str], progress: Progress) -> Subspace:
    """Components chosen by the classifier that features are chosen by, C on the validation splits."""
    world, (kind, target) = fitting.world, place
    found = principal_components(world.contexts[kind].x)
    x, values = world.contexts[kind].of(target)
    path = svm_path(found.coordinates(x).cpu(), values, GRID, fitting.seed)
    edits = {c: found.edit(torch.from_numpy(chosen).to(x.device)) for c, chosen in path.items()}
    best = best_on_validation({c: interventions(world, "pca", place, e, VALIDATION) for c, e in edits.items()})
    return edits[best]


def _rlap(fitting: Fitting, place: tuple[str, str], progress: Progress) -> Subspace:
    """As many directions as tell the values apart, or `rank`: any more are what the sample has by chance."""
    x, values = fitting.world.contexts[place[0]].of(place[1])
    often = [value for value, _ in Counter(values).most_common(CLASSES)]
    rows = [i for i, value in enumerate(values) if value in often]
    size = min(fitting.rank, len(often) - 1)
    return Subspace(rlace(x[torch.tensor(rows, device=x.device)], [values[i] for i in rows], size, fitting.seed))


def _subspace(isolate: bool) -> Callable[[Fitting, tuple[str, str], Progress], Subspace]:
    def fit(fitting: Fitting, place: tuple[str, str], progress: Progress) -> Subspace:
        wanted, cause, pairs = fitting.world.training(*place, isolate)
        settings = replace(SUBSPACE, steps=fitting.steps, seed=fitting.seed)
        checkpoint = fitting.checkpoint("mdas" if isolate else "das", place, pairs)
        return train_subspace(wanted, cause, fitting.rank, settings, checkpoint, progress)

    return fit


def _dbm(fitting: Fitting, place: tuple[str, str], progress: Progress) -> Mask:
    wanted, cause, pairs = fitting.world.training(*place, isolate=False)
    settings = replace(MASK, steps=fitting.steps, seed=fitting.seed)
    return train_mask(wanted, cause, settings, fitting.checkpoint("dbm", place, pairs), progress)


FITS: dict[str, Callable[[Fitting, tuple[str, str], Progress], Edit]] = {
    "full": _full,
    "random": _random,
    "pca": _pca,
    "rlap": _rlap,
    "dbm": _dbm,
    "das": _subspace(isolate=False),
    "mdas": _subspace(isolate=True),
}
