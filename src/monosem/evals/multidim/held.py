"""How an SAE holds a circle of the model: in one cluster, split among several features, or not at all.

The question is Engels et al.'s (2024, arXiv 2405.14860); they answer it by looking at clusters, the measure is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor

from monosem.evals import scored
from monosem.evals.multidim.circle import order
from monosem.evals.multidim.table import as_table
from monosem.metrics import estimated, once_and_resampled
from monosem.sae import Sae
from monosem.types import Estimate, UserError

ENOUGH = 0.9  # of what all features hold: when no more features are needed
MOST = 512  # features that are looked for


HELD = ("together", "whole", "needed", "circle_rank", "circle_error")


@dataclass(frozen=True, eq=False)
class Words:
    """A cycle at a site. x: activations at its words, [n, d]; word: the number of each, int64 [n], of m; plane: of the
    circle on which the words lie, orthonormal rows [2, d]; error: of that circle, in words.
    """

    x: Tensor
    word: Tensor
    m: int
    plane: Tensor
    error: Estimate


@dataclass(frozen=True, eq=False)
class Parts:
    """What each feature adds to the words' places in a plane. target: the words' own places, centred, [m, 2]; of: those
    that each feature makes, centred, [F, m, 2].
    """

    target: Tensor
    of: Tensor

    def share(self, features: Iterable[int] | None = None) -> float:
        """Return the part of the variance in the plane that features reproduce, at most 1; None: all features."""
        return float(self._shares(features, np.ones((1, len(self.target))))[0])

    def estimate(self, features: Iterable[int] | None = None, draws: int = 1000) -> Estimate:
        """Return the share with its interval over words."""
        m = len(self.target)
        found = estimated(self._shares(features, once_and_resampled(m, draws)), m)
        assert found is not None
        return found

    def _shares(self, features: Iterable[int] | None, weights: np.ndarray) -> np.ndarray:
        made = (
            self.of.sum(0) if features is None else self.of[torch.as_tensor(list(features), dtype=torch.int64)].sum(0)
        )
        wrong = (self.target - made).square().sum(1).numpy()
        return 1 - (weights @ wrong) / (weights @ self.target.square().sum(1).numpy())

    def gain(self, rest: Tensor) -> Tensor:
        """Return by how much each feature alone lowers the squared error `rest` [m, 2], [F]."""
        return 2 * (self.of * rest).sum((1, 2)) - self.of.square().sum((1, 2))

    def needed(self, wanted: float) -> list[int]:
        """Return features that together reproduce `wanted`, each time the one that helps most; fewer if none helps."""
        chosen: list[int] = []
        rest = self.target.clone()
        while len(chosen) < MOST and self.share(chosen) < wanted:
            gain = self.gain(rest)
            gain[chosen] = -torch.inf
            best = int(gain.argmax())
            if gain[best] <= 0:
                break
            chosen.append(best)
            rest -= self.of[best]
        return chosen


def held(
    sae: Sae, words: Words, clusters: Sequence[np.ndarray], ranks: Mapping[tuple[int, ...], int], draws: int, seed: int
) -> tuple[dict[str, Estimate | None], dict[str, str], pl.DataFrame]:
    """Return how an SAE holds a circle: scalars, reasons of those that are None, rows.

    clusters: of features; ranks: by a cluster's features, of those that are judged. Whole: all features; the cluster
    and the feature that hold most; needed: the fewest that hold 90 % of what all do, chosen greedily.
    """
    found, z = parts(sae, words.x.to(sae.weights["W_dec"]), words.word, words.m, words.plane)
    alive = torch.nonzero(found.of.square().sum((1, 2)) > 0)[:, 0].tolist()
    chosen: dict[str, list[int]] = {"whole": alive}
    some, whole = set(alive), found.share()
    shares = [(found.share(own), own.tolist()) for own in clusters if some.intersection(own.tolist())]
    best = max(shares, default=(0.0, []))
    if best[0] > 0:
        chosen["best cluster"] = best[1]
    if alive:
        chosen["best feature"] = [alive[int(found.gain(found.target)[alive].argmax())]]
    needed = found.needed(ENOUGH * whole) if whole > 0 else []
    if needed and found.share(needed) >= ENOUGH * whole:
        chosen["needed"] = needed
    held_by = {method: found.estimate(features, draws) for method, features in chosen.items()}
    tables = []
    for method, features in chosen.items():
        row = {"method": method, **scored(held_by[method])}
        if method == "needed":
            row["x"] = float(pieces(features, clusters))
        elif len(features) > 1:
            row["x"] = _error(z[:, features] @ sae.normaliser.undo(sae.weights["W_dec"][features]), words, seed)
        row["cluster"] = ranks.get(tuple(features)) if method == "best cluster" else None
        tables.append(as_table({"kind": "held", **row, "features": None if method == "whole" else [features]}))
    rank = ranks.get(tuple(best[1]))
    scalars = {
        "whole": held_by["whole"],
        "together": held_by.get("best cluster", Estimate.exact(0, words.m)),
        "needed": Estimate.exact(len(needed), words.m) if "needed" in chosen else None,
        "circle_rank": Estimate.exact(rank, len(ranks)) if rank and best[0] > 0 else None,
    }
    reasons = {
        "needed": f"{MOST} features don't reach {ENOUGH:.0%} of what all hold" if needed else "nothing is held",
        "circle_rank": "its cluster fires too rarely" if best[0] > 0 else "no cluster holds any of the circle",
    }
    return scalars, {k: why for k, why in reasons.items() if scalars[k] is None}, pl.concat(tables)


def _error(x: Tensor, words: Words, seed: int) -> float | None:
    """Return the angular error of reading the words' order off x, in words; None where x has no plane."""
    try:
        return order(x, words.word, words.m, draws=1, seed=seed).error.value
    except UserError:
        return None


def parts(sae: Sae, x: Tensor, word: Tensor, m: int, plane: Tensor) -> tuple[Parts, Tensor]:
    """Return what each feature adds in a plane, and the codes [n, F].

    x: activations at words, [n, d]; word: the number of each, int64 [n], 0 to m - 1; plane: orthonormal rows [2, d].
    """
    z = sae.encode(x)
    D = sae.normaliser.undo(sae.weights["W_dec"]).to(x)
    target = _centred_means(x @ plane.T, word, m)
    codes = _centred_means(z, word, m)
    return Parts(target, codes.T[:, :, None] * (D @ plane.T)[:, None, :]), z


def pieces(features: Iterable[int], clusters: Sequence[np.ndarray]) -> int:
    """Return in how many clusters features lie; one that is in none counts as a piece of its own."""
    home = {int(feature): number for number, own in enumerate(clusters) for feature in own}
    return len({home.get(feature, -1 - feature) for feature in features})


def _centred_means(values: Tensor, word: Tensor, m: int) -> Tensor:
    means = torch.stack([values[word == w].mean(0) for w in range(m)])
    return means - means.mean(0)
