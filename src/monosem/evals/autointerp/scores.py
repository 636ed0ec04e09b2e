"""Scores of predicted against true activations, and the scales on which they are predicted (section K). No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monosem.evals.autointerp.records import ELSEWHERE, INTERVAL_NAMES, RANDOM, TOP, Record
from monosem.examples import SHOWN

Array = NDArray[np.float64]
# groups of examples that are scored by themselves: name of the column -> groups of records
SCORED_GROUPS: dict[str, tuple[str, ...]] = {
    "pearson_top": (TOP,),
    "pearson_intervals_0_6": INTERVAL_NAMES[:SHOWN],
    "pearson_intervals": INTERVAL_NAMES,
    "pearson_random": (RANDOM,),
    "pearson_elsewhere": (ELSEWHERE,),
}


def score(real: ArrayLike | Sequence[ArrayLike], predicted: ArrayLike | Sequence[ArrayLike]) -> dict[str, float | None]:
    """Return `pearson` and `spearman` of predicted against true activations, pooled over all tokens (section K.2).

    real, predicted: activations [n], or one array a sequence, which are joined; never a mean over sequences. None where
    a correlation is undefined: fewer than two tokens, or all values of one side are equal.
    Raises ValueError for different lengths and for values that are not finite.
    """
    x, y = _flat(real), _flat(predicted)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} true and {len(y)} predicted activations; one prediction a token is wanted")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("activations must be finite")
    return {"pearson": correlation(x, y), "spearman": correlation(_ranks(x), _ranks(y))}


def expected_value(chances: Mapping[Any, float], digits: Iterable[int] = range(11)) -> float:
    """Return the mean of the integers in `chances` (next token -> probability), renormalised over them (section K.2).

    Spaces around a token don't count; tokens that are no integer of `digits` are left out. 0 if none is left.
    """
    known = {str(digit): digit for digit in digits}
    kept = [(known[text], float(p)) for token, p in chances.items() if (text := str(token).strip()) in known]
    total = sum(p for _, p in kept)
    return sum(value * p for value, p in kept) / total if total > 0 else 0.0


def correlation(x: Array, y: Array) -> float | None:
    """Return Pearson's correlation of two arrays [n], None where it is undefined."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    x, y = x / np.abs(x).max(), y / np.abs(y).max()  # tiny and huge activations don't leave float64's range
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))


def record_scores(records: Sequence[Record], predicted: Sequence[ArrayLike]) -> dict[str, float | None]:
    """Return `pearson`, `spearman` and the Pearson of each of SCORED_GROUPS; predicted: [n] for each record."""
    real, guess = measured_values(records, predicted)
    out = score(real, guess)
    for name, groups in SCORED_GROUPS.items():
        inside = [i for i, record in enumerate(records) if record.group in groups]
        out[name] = correlation(_flat([real[i] for i in inside]), _flat([guess[i] for i in inside]))
    return out


def measured_values(records: Sequence[Record], predicted: Sequence[ArrayLike]) -> tuple[list[Array], list[Array]]:
    """Return true and predicted activations of each record's measured tokens."""
    pairs = list(zip(records, predicted, strict=True))
    return (
        [np.asarray(record.values, dtype=np.float64)[record.measured] for record, _ in pairs],
        [np.asarray(guess, dtype=np.float64)[record.measured] for record, guess in pairs],
    )


def _flat(values: ArrayLike | Sequence[ArrayLike]) -> Array:
    if isinstance(values, list | tuple) and values and np.ndim(values[0]):
        return np.concatenate([np.asarray(v, dtype=np.float64).ravel() for v in values])
    return np.asarray(values, dtype=np.float64).ravel()


def _ranks(x: Array) -> Array:
    """Return ranks from 0, those of equal values averaged."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts + 1) / 2)[inverse]
