"""The 1-d probe of every feature at once (Gao et al. 2024, section 4.2): loss, weight and intercept of each."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from monosem.evals.probes.newton import fit_columns
from monosem.kernels.threads import spread
from monosem.metrics import Array
from monosem.types import UserError


class Fits(NamedTuple):
    """Logistic regressions on one feature each, float64 [n]: mean loss on the texts they were fitted to (nats)."""

    loss: Array
    weight: Array
    intercept: Array


def fit_1d(codes: Any, labels: Any) -> Array:
    """Return the smallest cross-entropy of a logistic regression on each feature alone, float64 [n], nats.

    codes: [N, n], numpy or torch (CPU); labels: [N], 0 or 1. The minimum over weight and intercept, on these very
    texts, without a penalty: 0 where a feature separates the classes, the entropy of the labels where it is constant.
    Raises UserError for NaN or infinite codes, other labels, or only one class.
    """
    return fit(codes, labels).loss


def fit(codes: Any, labels: Any, ridge: float = 0.0) -> Fits:
    """Return what `fit_1d` does, with the weights and intercepts: the logit is weight * code + intercept.

    ridge: times w^2 / 2, w the weight on the standardised code, is added to what is minimised, but not to the loss.
    """
    z = np.asarray(codes)
    y = np.asarray(labels).astype(np.float64)
    if z.ndim != 2 or y.shape != z.shape[:1]:
        raise UserError(f"codes of shape {z.shape} and labels of shape {y.shape}: must be [N, n] and [N]")
    if not np.isin(y, (0, 1)).all() or len(np.unique(y)) != 2:
        raise UserError("labels: must be 0 or 1, and both must occur")
    if not np.isfinite(z).all():
        raise UserError("codes: must be finite, and some are NaN or infinite")
    if z.dtype not in (np.float32, np.float64):
        z = z.astype(np.float64)
    out = Fits(*(np.empty(z.shape[1]) for _ in Fits._fields))
    target = y.astype(np.float32)
    spread(lambda first, last: fit_columns(z, target, ridge, *out, first, last), z.shape[1], least=64)
    return out


def losses(logits: np.ndarray, labels: np.ndarray) -> Array:
    """Return the cross-entropy of each text [N], nats; probabilities are kept 1e-12 away from 0 and 1."""
    t = np.asarray(logits, dtype=np.float64)
    p = np.clip(1 / (1 + np.exp(-np.clip(t, -700, 700))), 1e-12, 1 - 1e-12)
    return -np.where(labels > 0, np.log(p), np.log1p(-p))
