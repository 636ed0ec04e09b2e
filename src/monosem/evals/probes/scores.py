"""What one task says of one set of codes: the best feature, judged on texts that it was not chosen on; k features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from monosem.evals.probes.logistic import fit, losses

SPARSE = (1, 2, 5, 16)
RIDGE = (
    1e-6  # nothing to a weight of 5; but where fitted texts are all told apart, one of the others may cost the earth
)


@dataclass(frozen=True)
class Probe:
    """A probe that was fitted to one side of a task. loss, accuracy: on the other side; error: the loss's standard
    error over texts; train_loss: in-sample; all in nats a text. feature: which one, -1 for several together.
    """

    feature: int
    train_loss: float
    loss: float
    error: float
    accuracy: float


def best_feature(codes: np.ndarray, labels: np.ndarray, train: int) -> Probe:
    """Return the probe on the feature with the smallest loss on the first `train` texts. codes: [N, n]; labels: [N]."""
    fits = fit(codes[:train], labels[:train], RIDGE)
    best = int(np.argmin(fits.loss))
    logits = fits.weight[best] * codes[train:, best].astype(np.float64) + fits.intercept[best]
    return judged(best, float(fits.loss[best]), logits, labels[train:])


def judged(feature: int, train_loss: float, logits: np.ndarray, labels: np.ndarray) -> Probe:
    """Return a probe with its scores on held-out texts. logits: [M]; a logit of 0 is half right."""
    loss = losses(logits, labels)
    right = np.where(logits == 0, 0.5, (logits > 0) == (labels > 0))
    return Probe(feature, train_loss, float(loss.mean()), float(loss.std() / math.sqrt(len(loss))), float(right.mean()))


def selection_floor(features: int, texts: int) -> float:
    """Return ln 2 - ln(n) / M: about the smallest in-sample loss of n features of noise on M balanced texts, nats.

    Twice the gain in likelihood of a useless feature is chi-squared with one degree of freedom (Wilks); the largest of
    n of them is about 2 ln n.
    """
    return max(0.0, math.log(2) - math.log(features) / texts)


def sparse_accuracies(codes: np.ndarray, labels: np.ndarray, train: int) -> dict[int, float]:
    """Return the held-out accuracy of k features together, by k in SPARSE (SAEBench's rule).

    The features with the largest difference between the classes' means on the first `train` texts, and on them a
    logistic regression with L2 penalty (scikit-learn, C = 1).
    """
    from sklearn.linear_model import LogisticRegression

    fitted, y = codes[:train], labels[:train]
    difference = np.abs(fitted[y == 1].mean(0) - fitted[y == 0].mean(0))
    order = np.argsort(-difference, kind="stable")
    found = {}
    for k in SPARSE:
        chosen = order[:k]
        model: Any = LogisticRegression(C=1.0, max_iter=1000).fit(fitted[:, chosen], y)
        found[k] = float(model.score(codes[train:, chosen], labels[train:]))
    return found
