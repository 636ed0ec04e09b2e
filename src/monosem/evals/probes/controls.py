"""What the features are measured against: a probe on all dimensions, single ones, principal components, random ones.

They depend on the texts only, are computed once for all runs and kept: `probes/<task>.controls.json`.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monosem.activations import open_activations
from monosem.evals.probes.pooling import pooled_activations, pooled_products
from monosem.evals.probes.scores import Probe, best_feature, judged
from monosem.evals.probes.texts import Texts
from monosem.normaliser import Normaliser
from monosem.store import read_json, write_json

VERSION = 1
SAMPLE = 16_384  # held-out tokens for the principal components
PENALTIES = tuple(10.0**power for power in (-4, -3, -2, -1, 0))  # scikit-learn's C
FOLDS = 3
CHUNK = 8192  # directions multiplied at once
RAW = Normaliser()
Controls = dict[str, Probe]


def control_path(path: Path) -> Path:
    """Where the controls of a task lie, beside its activations."""
    return path.with_suffix(".controls.json")


def controls_of(path: Path, texts: Texts, study: Path, widths: list[int]) -> Controls:
    """Return the controls of a task by name: dense, neuron, pca, and `random n` for each number n in `widths`.

    path: of the task's activations; study: the study folder. Those that are on disk and current are read.
    """
    activations = read_json(study / "activations" / "meta.json")["hash"]
    header = {"version": VERSION, "texts": texts.facts["header"], "pool": texts.pool, "activations": activations}
    where, known = control_path(path), {}
    if where.exists() and (stored := read_json(where)).get("header") == header:
        known = {name: Probe(**probe) for name, probe in stored["controls"].items()}
    missing = [n for n in widths if f"random {n}" not in known]
    if known and not missing:
        return known
    labels, train = texts.labels, texts.train
    if not known:
        known["dense"] = dense_probe(pooled_activations(texts, RAW).numpy(), labels, train)
        known["neuron"] = best_product(texts, torch.eye(texts.x.shape[1]))
        known["pca"] = best_product(texts, principal_components(study, activations))
    for n in missing:
        known[f"random {n}"] = best_product(texts, random_directions(texts.x.shape[1], n))
    write_json(where, {"header": header, "controls": {name: asdict(probe) for name, probe in known.items()}})
    return known


def best_product(texts: Texts, W: Tensor, normaliser: Normaliser = RAW) -> Probe:
    """Return the best probe on one of the directions W [d_in, n], chosen on the texts that are fitted to."""
    found = []
    for start in range(0, W.shape[1], CHUNK):
        products = pooled_products(texts, normaliser, W[:, start : start + CHUNK]).numpy()
        probe = best_feature(products, texts.labels, texts.train)
        found.append(replace(probe, feature=start + probe.feature))
    return min(found, key=lambda probe: probe.train_loss)


def random_directions(d_in: int, n: int) -> Tensor:
    """Return n random directions, [d_in, n]; their length is irrelevant to a probe. The same ones for every task."""
    return torch.randn(d_in, n, generator=torch.Generator().manual_seed(n))


@lru_cache(maxsize=1)
def principal_components(study: Path, activations: str) -> Tensor:
    """Return all principal components [d_in, d_in] of a study's held-out activations, as columns.

    activations: their hash, so that others are not taken for the same.
    """
    store = open_activations(study / "activations", "eval")
    x = store.rows(np.linspace(0, store.n - 1, min(SAMPLE, store.n)).astype(np.int64)).double()
    x -= x.mean(0)
    return torch.linalg.eigh(x.T @ x).eigenvectors.float()


def dense_probe(x: np.ndarray, labels: np.ndarray, train: int) -> Probe:
    """Return a logistic probe on all dimensions of x [N, d_in] together (scikit-learn, L2).

    Dimensions are standardised by the texts that are fitted to, and the penalty is the one with the smallest loss in
    cross-validation among them.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    y, fitted = labels[:train], x[:train].astype(np.float64)
    mean, spread = fitted.mean(0), fitted.std(0)
    z = (x.astype(np.float64) - mean) / np.where(spread > 0, spread, 1)

    def probe(penalty: float, on: np.ndarray, feature: int = -1, held_out: np.ndarray | None = None) -> Probe:
        model: Any = LogisticRegression(C=penalty, max_iter=1000, tol=1e-3).fit(z[on], labels[on])
        own = judged(feature, 0.0, model.decision_function(z[on]), labels[on]).loss
        there = np.arange(train, len(z)) if held_out is None else held_out
        return judged(feature, own, model.decision_function(z[there]), labels[there])

    folds = list(StratifiedKFold(min(FOLDS, int(np.bincount(y).min()))).split(fitted, y))
    cost = [sum(probe(penalty, on, held_out=off).loss for on, off in folds) for penalty in PENALTIES]
    return probe(PENALTIES[int(np.argmin(cost))], np.arange(train))
