"""How an SAE holds a circle of the model: in one cluster, split among several features, or not at all.

The question is Engels et al.'s (2024, arXiv 2405.14860); they answer it by looking at clusters, the measure is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from monosem.metrics import intervals, resamples
from monosem.sae import Sae
from monosem.types import Estimate

ENOUGH = 0.9  # of what all features hold: when no more features are needed
MOST = 64  # features that are looked for


@dataclass(frozen=True, eq=False)
class Parts:
    """What each feature adds to the words' places in a plane. target: the words' own places, centred, [m, 2]; of: those
    that each feature makes, centred, [F, m, 2].
    """

    target: Tensor
    of: Tensor

    def share(self, features: Sequence[int] | None = None) -> float:
        """Return the part of the variance in the plane that features reproduce, at most 1; None: all features."""
        return float(self._shares(features, np.ones((1, len(self.target))))[0])

    def estimate(self, features: Sequence[int] | None = None, draws: int = 1000) -> Estimate:
        """Return the share with its interval over words."""
        m = len(self.target)
        values = self._shares(features, np.vstack([np.ones((1, m)), resamples(m, draws)]))
        found = intervals({"": values[:1]}, {"": values[1:]}, m)[""]
        assert found is not None
        return found

    def _shares(self, features: Sequence[int] | None, weights: np.ndarray) -> np.ndarray:
        made = (
            self.of.sum(0) if features is None else self.of[torch.as_tensor(list(features), dtype=torch.int64)].sum(0)
        )
        wrong = (self.target - made).square().sum(1).numpy()
        return 1 - (weights @ wrong) / (weights @ self.target.square().sum(1).numpy())

    def needed(self, wanted: float) -> list[int]:
        """Return features that together reproduce `wanted`, each time the one that helps most; fewer if none helps."""
        chosen: list[int] = []
        rest, size = self.target.clone(), self.of.square().sum((1, 2))
        while len(chosen) < MOST and self.share(chosen) < wanted:
            gain = 2 * (self.of * rest).sum((1, 2)) - size
            gain[chosen] = -torch.inf
            best = int(gain.argmax())
            if gain[best] <= 0:
                break
            chosen.append(best)
            rest -= self.of[best]
        return chosen


def parts(sae: Sae, x: Tensor, word: Tensor, m: int, plane: Tensor) -> tuple[Parts, Tensor]:
    """Return what each feature adds in a plane, and the codes [n, F].

    x: activations at words, [n, d]; word: the number of each, int64 [n], 0 to m - 1; plane: orthonormal rows [2, d].
    """
    z = sae.encode(x)
    D = sae.normaliser.undo(sae.weights["W_dec"]).to(x)
    target = _centred_means(x @ plane.T, word, m)
    codes = _centred_means(z, word, m)
    return Parts(target, codes.T[:, :, None] * (D @ plane.T)[:, None, :]), z


def pieces(features: Sequence[int], clusters: Sequence[np.ndarray]) -> int:
    """Return in how many clusters features lie; one that is in none counts as a piece of its own."""
    home = {int(feature): number for number, own in enumerate(clusters) for feature in own}
    return len({home.get(feature, -1 - feature) for feature in features})


def _centred_means(values: Tensor, word: Tensor, m: int) -> Tensor:
    means = torch.stack([values[word == w].mean(0) for w in range(m)])
    return means - means.mean(0)
