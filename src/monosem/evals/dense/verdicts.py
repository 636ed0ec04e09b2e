"""Bands of density, the cause that screens find, and the verdict on a dense feature (section L). Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

BANDS = {"B1": (0.5, 1.0), "B2": (0.2, 0.5), "B3": (0.1, 0.2), "B4": (0.01, 0.1)}  # (low, high]
DENSE = ("B1", "B2", "B3")  # features above 10 %
EXPLAINED = 0.2  # a cause explains a feature from this R^2 on
ALIGNED = 0.7  # |cos| with the mean activation; cosine from which a feature is found again
ANTIPODAL = -0.9
LOW_SCORE, LOW_CONSISTENCY = 0.1, 2.0

PATHOLOGICAL, SOUND, UNEXPLAINED = "pathological", "not pathological", "unexplained by screens"


def band_of(density: np.ndarray) -> np.ndarray:
    """Return the band of each density [n] as text: B1 (> 0.5), B2 (> 0.2), B3 (> 0.1), B4 (> 0.01), else ""."""
    names = np.array(["", "B4", "B3", "B2", "B1"])
    return names[np.digitize(density, [0.01, 0.1, 0.2, 0.5], right=True)]


def choose(density: np.ndarray, cap: int, sample: int, seed: int = 0) -> np.ndarray:
    """Return the features to inspect, the densest first: at most `cap` above 10 %, then `sample` random ones of B4."""
    band = band_of(density)
    order = np.argsort(-density, kind="stable")
    dense = order[np.isin(band[order], DENSE)][:cap]
    below = np.flatnonzero(band == "B4")
    drawn = np.random.default_rng(seed).choice(below, size=min(sample, len(below)), replace=False)
    return np.concatenate([dense, drawn[np.argsort(-density[drawn], kind="stable")]]).astype(np.int64)


def cause_of(found: Mapping[str, Any]) -> str | None:
    """Return what explains a feature, None if nothing does. found: its screens by name; missing ones don't count.

    In this order: `position`, `token frequency` or `norm` (the largest alone, if together their R^2 is at least 0.2 and
    the token id's isn't larger by 0.2), `mean direction` (|cos| with the mean activation at least 0.7), `antipode` (a
    feature with cosine below -0.9), `token` (R^2 on the token id at least 0.2), `entropy`, `document length` (squared
    correlations at least 0.2).
    """

    def value(name: str) -> float:
        number = found.get(name)
        return 0.0 if number is None or np.isnan(number) else float(number)

    if value("screen_r2") >= EXPLAINED and value("r2_token") < value("screen_r2") + EXPLAINED:
        alone = {
            "position": value("r2_position"),
            "token frequency": value("r2_frequency"),
            "norm": value("r2_norm"),
        }
        return max(alone, key=lambda name: alone[name])
    if abs(value("mean_cosine")) >= ALIGNED:
        return "mean direction"
    if value("antipode_cosine") < ANTIPODAL:
        return "antipode"
    if value("r2_token") >= EXPLAINED:
        return "token"
    if max(value("corr_entropy_before") ** 2, value("corr_entropy_after") ** 2) >= EXPLAINED:
        return "entropy"
    return "document length" if value("corr_document_length") ** 2 >= EXPLAINED else None


def verdict(screen_r2: float, cause: str | None, consistency: float | None = None, score: float | None = None) -> str:
    """Return the verdict on a dense feature.

    consistency: its mean human rating (1 to 5), score: its automatic interpretation score, None where there is none.
    `pathological`: consistency at most 2, or score below 0.1 with a screen R^2 below 0.2. `not pathological`: rated or
    scored, and neither. Without rating and score: `explained by <cause>` or `unexplained by screens`.
    """
    if consistency is not None and consistency <= LOW_CONSISTENCY:
        return PATHOLOGICAL
    if score is not None and score < LOW_SCORE and not screen_r2 >= EXPLAINED:
        return PATHOLOGICAL
    if consistency is not None or score is not None:
        return SOUND
    return UNEXPLAINED if cause is None else f"explained by {cause}"


def is_judged(text: str) -> bool:
    """Return whether a verdict rests on a rating or a score."""
    return text in (PATHOLOGICAL, SOUND)
