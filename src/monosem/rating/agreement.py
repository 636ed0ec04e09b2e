"""Do raters agree with each other, with themselves, and can they tell what they must not know (section J.5).

Imports no torch.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

LEVELS = (1, 2, 3, 4, 5)


def alpha(ratings: ArrayLike, level: Literal["nominal", "ordinal", "interval", "ratio"] = "ordinal") -> float:
    """Return Krippendorff's alpha of ratings [raters, items], NaN for missing cells.

    1 is perfect agreement, 0 what chance gives. NaN where it is undefined: no item has two ratings, or all ratings that
    can be paired are equal.
    """
    import krippendorff

    table = np.array(ratings, dtype=float)
    if table.ndim != 2:
        raise ValueError(f"ratings must be [raters, items], got {table.ndim} dimensions")
    paired = table[:, np.isfinite(table).sum(0) >= 2]
    if len(np.unique(paired[np.isfinite(paired)])) < 2:
        return float("nan")
    return float(krippendorff.alpha(reliability_data=paired, level_of_measurement=level))


def weighted_kappa(first: ArrayLike, second: ArrayLike) -> float:
    """Return Cohen's kappa with quadratic weights of two sets of ratings 1..5 of the same items, [n] each.

    NaN where it is undefined: no items, or all ratings equal.
    """
    a, b = np.array(first, dtype=float), np.array(second, dtype=float)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"both must be [n], got {a.shape} and {b.shape}")
    if not len(a):
        return float("nan")
    expected = ((a[:, None] - b[None, :]) ** 2).mean()
    return float(1 - ((a - b) ** 2).mean() / expected) if expected > 0 else float("nan")


def blinding_check(guesses: list[str], truth: list[str]) -> dict[str, Any] | None:
    """Return whether guesses of the run family hit more often than chance: exact binomial test, one-sided.

    Chance is what the same guesses would score on average if they were dealt to the items at random. Returns n, hits,
    share, chance and p; None without guesses.
    """
    from scipy.stats import binomtest

    n = len(guesses)
    if not n:
        return None
    families = sorted({*guesses, *truth})
    chance = sum(guesses.count(family) * truth.count(family) for family in families) / n**2
    hits = sum(guess == true for guess, true in zip(guesses, truth, strict=True))
    p = float(binomtest(hits, n, chance, alternative="greater").pvalue)
    return {"n": n, "hits": hits, "share": hits / n, "chance": chance, "p": p}
