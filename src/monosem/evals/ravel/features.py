"""An SAE's features as a method: chosen by a classifier or by masks trained through the model, then swapped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import torch
from torch import Tensor

from monosem.evals.ravel.baselines import Fitting
from monosem.evals.ravel.edits import ROWS, Features
from monosem.evals.ravel.judging import best_on_validation, interventions, number_of
from monosem.evals.ravel.selection import GRID, svm_path
from monosem.evals.ravel.sets import VALIDATION
from monosem.evals.ravel.training import FEATURES, Progress, train_features
from monosem.progress import Ticker
from monosem.sae import Sae

TESTED = 5  # methods on the test splits: two selections, with and without the error, and no feature
CURVE = len(GRID) + 2  # selections on the validation splits: none, of each C, all


def judge_features(run: str, sae: Sae, weights: str, fitting: Fitting, ticker: Ticker) -> pl.DataFrame:
    """Return a run's interventions: SVM and MDBM selection, each with and without the error, and no feature at all.

    weights: hash of the SAE's. On the validation splits also those of every C and of all features.
    """
    world = fitting.world
    places = world.targets()
    masks: dict[tuple[str, str], Tensor] = {}
    with ticker.bar(f"{run}: masks", len(places) * fitting.mask_steps, "steps") as bar:
        for place in places:
            wanted, cause, pairs = world.training(*place, isolate=True)
            settings = replace(FEATURES, steps=fitting.mask_steps, seed=fitting.seed)
            checkpoint = fitting.checkpoint(f"mdbm-{run}", place, pairs, sae=weights)
            masks[place] = train_features(wanted, cause, sae, settings, checkpoint, bar.add).chosen
    tables: list[pl.DataFrame] = []
    total = TESTED * number_of(world) + CURVE * number_of(world, VALIDATION)
    with ticker.bar(run, total, "interventions") as bar:
        for place in places:
            chosen, c, curve = _by_classifier(sae, place, fitting, bar.add)
            tables += curve
            for name, features, at in (("svm", chosen, c), ("mdbm", masks[place], None)):
                for method, error in ((name, False), (f"{name}+error", True)):
                    edit = Features(sae, features, error)
                    tables.append(interventions(world, method, place, edit, c=at, progress=bar.add))
            nothing = Features(sae, chosen[:0])
            tables.append(interventions(world, "none", place, nothing, progress=bar.add))
    return pl.concat(tables)


def _by_classifier(
    sae: Sae, place: tuple[str, str], fitting: Fitting, progress: Progress
) -> tuple[Tensor, float, list[pl.DataFrame]]:
    """Return the features of the C that does best on the validation splits, this C, and all selections' rows there."""
    world, (kind, target) = fitting.world, place
    x, values = world.contexts[kind].of(target)
    path = svm_path(coefficients(sae, x), values, GRID, fitting.seed)

    done: dict[bytes, pl.DataFrame] = {}

    def tried(method: str, chosen: np.ndarray, c: float | None = None) -> pl.DataFrame:
        """Judge a selection, or take the rows of an equal one: small C often choose nothing."""
        key = chosen.tobytes()
        if key in done:
            progress(done[key].height)
        else:
            edit = Features(sae, torch.from_numpy(chosen).to(x.device))
            done[key] = interventions(world, method, place, edit, VALIDATION, c, progress)
        return done[key].with_columns(method=pl.lit(method), c=pl.lit(c, pl.Float64))

    none, every = np.zeros(0, np.int64), np.arange(sae.d_sae)
    first = tried("none", none)
    rows = {c: tried("svm", chosen, c) for c, chosen in path.items()}
    best = best_on_validation(rows)
    return torch.from_numpy(path[best]).to(x.device), best, [first, *rows.values(), tried("all", every)]


def coefficients(sae: Sae, x: Tensor) -> np.ndarray:
    """Return the codes of activations x [n, d_in] as coefficients of unit vectors: decoder norms folded in."""
    norms = torch.linalg.vector_norm(sae.weights["W_dec"], dim=1)
    return np.concatenate([(sae.encode(part) * norms).cpu().numpy() for part in x.split(ROWS)])
