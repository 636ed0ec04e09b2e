"""Screens for trivial causes of a feature's activations, on arrays (section L.3). Imports no torch.

Every R^2 is of the activation over all tokens, zeros included, adjusted for the number of columns, at least 0. Bases
are flexible, because a position feature may be a sinusoid and a norm detector has a threshold: one level for each
position, hinges at quantiles of log token frequency and of the norm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from monosem.metrics import Array

EARLY = 8  # tokens that count as the start of a row or document
LEVELS = 1024  # later positions in a document share one level
KNOTS = 9  # hinges of a smooth basis, at quantiles
EXACT_SIZE = 1000  # tokens that occur more often than this: chance entropy to second order


@dataclass(frozen=True)
class TokenFacts:
    """What trivial causes are made of, one value a token [T].

    row_position: place in the packed row, which is the position that the model sees; document_position: place in the
    document; token: token id; norm: of the raw activation; document_length: tokens of its document in the split.
    """

    row_position: np.ndarray
    document_position: np.ndarray
    token: np.ndarray
    norm: np.ndarray
    document_length: np.ndarray


def hinges(x: np.ndarray, knots: int = KNOTS) -> Array:
    """Return a piecewise-linear basis [T, columns] of x [T], standardised: x and hinges at its inner quantiles."""
    places = np.unique(np.quantile(x, np.linspace(0, 1, knots + 2)[1:-1]))
    columns = np.stack([x, *(np.maximum(x - place, 0) for place in places)], axis=1).astype(np.float64)
    columns -= columns.mean(0)
    spread = columns.std(0)
    return columns[:, spread > 0] / spread[spread > 0]


def adjusted(share: float, tokens: int, columns: int) -> float:
    """Return R^2 adjusted for the number of columns, at least 0."""
    if tokens - columns - 1 <= 0:
        return 0.0
    return max(0.0, 1 - (1 - share) * (tokens - 1) / (tokens - columns - 1))


class _Levels:
    """A categorical cause: one level a value, with the smooth columns `z` partialled out of it."""

    def __init__(self, level: np.ndarray, z: Array):
        _, self.level, self.size = np.unique(level, return_inverse=True, return_counts=True)
        sums = np.zeros((len(self.size), z.shape[1]))
        for i, column in enumerate(z.T):
            sums[:, i] = np.bincount(self.level, column)
        self.mean = sums / self.size[:, None]
        self.inverse = np.linalg.pinv(z.T @ z - self.mean.T @ sums, hermitian=True)

    def r2(self, on: np.ndarray, value: Array, zy: Array | None = None) -> tuple[float, int]:
        """Return the explained sum of squares around the mean (with the smooth columns if zy is given), and columns."""
        total = np.bincount(self.level[on], value, len(self.size))
        between = float((total**2 / self.size).sum() - total.sum() ** 2 / self.size.sum())
        if zy is None:
            return between, len(self.size) - 1
        rest = zy - self.mean.T @ total
        return between + float(rest @ self.inverse @ rest), len(self.size) - 1 + len(rest)


class Screens:
    """The screens for one set of tokens: made once, then called with each feature's activations [T]."""

    def __init__(self, facts: TokenFacts):
        """Build the bases."""
        self.n = len(facts.token)
        _, self.token, self.size = np.unique(facts.token, return_inverse=True, return_counts=True)
        frequency = np.log(self.size / self.n)[self.token]
        bases = {"frequency": hinges(frequency), "norm": hinges(facts.norm)}
        self.z = np.concatenate(list(bases.values()), axis=1)
        ends = np.cumsum([0, *(basis.shape[1] for basis in bases.values())])
        self.smooth = {
            name: (slice(a, b), np.linalg.pinv(self.z[:, a:b].T @ self.z[:, a:b], hermitian=True))
            for name, a, b in zip(bases, ends, ends[1:], strict=False)
        }
        document_level = np.minimum(facts.document_position, LEVELS - 1)
        self.position = [_Levels(facts.row_position, self.z), _Levels(document_level, self.z)]
        linear = {
            "position": facts.row_position,
            "row_start": facts.row_position < EARLY,
            "document_position": facts.document_position,
            "document_start": facts.document_position < EARLY,
            "frequency": frequency,
            "norm": facts.norm,
            "document_length": facts.document_length,
        }
        self.linear = {name: _standardised(x) for name, x in linear.items()}
        self.chance = _chance_entropy(self.size, self.n)

    def __call__(self, f: np.ndarray) -> dict[str, float]:
        """Return the screens of activations f [T], NaN where undefined (f constant).

        corr_<cause>: correlations; r2_position, r2_frequency, r2_norm, r2_token: each cause alone; screen_r2: position,
        log token frequency and norm together; token_bits: mutual information of firing with the token id, less what
        chance gives; token_information: the same as a share of the entropy of firing (1: the token decides).
        """
        on = np.flatnonzero(f)
        value = f[on].astype(np.float64)
        total, mean = float((value**2).sum()), value.sum() / self.n
        variance = total - self.n * mean**2
        names = [f"corr_{name}" for name in self.linear] + ["r2_position", "r2_frequency", "r2_norm", "r2_token"]
        if not variance > 1e-12 * total:
            return dict.fromkeys([*names, "screen_r2", "token_bits", "token_information"], float("nan"))
        out = {f"corr_{name}": float(x[on] @ value) / np.sqrt(variance * self.n) for name, x in self.linear.items()}
        zy = self.z[on].T @ value  # columns of z are centred
        alone = [levels.r2(on, value) for levels in self.position]
        together = [levels.r2(on, value, zy) for levels in self.position]
        by_token = np.bincount(self.token[on], value, len(self.size))
        parts = {"r2_position": max(alone, key=lambda part: part[0])}
        for name, (columns, inverse) in self.smooth.items():
            parts[f"r2_{name}"] = (float(zy[columns] @ inverse @ zy[columns]), len(inverse))
        parts["r2_token"] = (float((by_token**2 / self.size).sum() - self.n * mean**2), len(self.size) - 1)
        parts["screen_r2"] = max(together, key=lambda part: part[0])
        out |= {name: adjusted(explained / variance, self.n, columns) for name, (explained, columns) in parts.items()}
        return out | self._token_information(np.bincount(self.token[on], minlength=len(self.size)))

    def _token_information(self, fires: np.ndarray) -> dict[str, float]:
        entropy = float(_entropy(np.array(fires.sum() / self.n)))
        given = float((self.size / self.n) @ _entropy(fires / self.size))
        chance = self.chance(int(fires.sum()))
        if entropy <= 0 or chance <= 0:
            return {"token_bits": float("nan"), "token_information": float("nan")}
        gained = max(0.0, chance - given)
        return {"token_bits": gained / float(np.log(2)), "token_information": gained / chance}


def screens(f: np.ndarray, facts: TokenFacts) -> dict[str, float]:
    """Return the screens of one feature's activations f [T]; see `Screens`, which serves many features faster."""
    return Screens(facts)(f)


def correlation(f: np.ndarray, x: np.ndarray) -> float:
    """Return the correlation of f [T] and x [T], NaN where one is constant."""
    a, b = f - f.mean(), x - x.mean()
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size > 0 else float("nan")


def bimodality(x: np.ndarray) -> float:
    """Return Sarle's bimodality coefficient of x [n], corrected for finite n; NaN for n < 4 or constant x.

    (g^2 + 1) / (k + 3 (n-1)^2 / ((n-2)(n-3))), g and k the unbiased skewness and excess kurtosis. A normal
    distribution gives 1/3, a uniform one 5/9; above 5/9 speaks for two modes.
    """
    n = len(x)
    centred = np.asarray(x, dtype=np.float64) - np.mean(x)
    m2, m3, m4 = (float((centred**power).mean()) for power in (2, 3, 4))
    if n < 4 or m2 <= 0:
        return float("nan")
    skew = m3 / m2**1.5 * np.sqrt(n * (n - 1)) / (n - 2)
    excess = (n - 1) / ((n - 2) * (n - 3)) * ((n + 1) * (m4 / m2**2 - 3) + 6)
    return float((skew**2 + 1) / (excess + 3 * (n - 1) ** 2 / ((n - 2) * (n - 3))))


def _standardised(x: np.ndarray) -> Array:
    centred = x.astype(np.float64) - x.mean()
    spread = centred.std()
    return centred / spread if spread > 0 else np.full(len(centred), np.nan)


def _entropy(p: np.ndarray) -> Array:
    """Return the binary entropy of p, in nats."""
    q = 1 - p
    return -(p * np.log(np.where(p > 0, p, 1)) + q * np.log(np.where(q > 0, q, 1)))


def _chance_entropy(size: np.ndarray, n: int) -> Callable[[int], float]:
    """Return a function of the number of firings c: the mean entropy of firing given the token, for random firings.

    The count k of firings among the m occurrences of a token is then hypergeometric, so that the expectation is exact;
    for m > EXACT_SIZE it is taken to second order.
    """
    sizes, number = np.unique(size, return_counts=True)
    weight = sizes * number / n
    small = sizes <= EXACT_SIZE
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])

    def log_choose(a: int | np.ndarray, k: np.ndarray) -> np.ndarray:
        return log_factorial[a] - log_factorial[k] - log_factorial[a - k]

    m = np.repeat(sizes[small], sizes[small] + 1)  # every k of every size, one after the other
    k = np.concatenate([np.arange(size + 1) for size in [*sizes[small]]] or [m])
    part = np.repeat(weight[small], sizes[small] + 1) * _entropy(k / m)
    large = sizes[~small]
    bias = (n - large) / (2 * large * max(n - 1, 1))

    def expected(c: int) -> float:
        possible = (k <= c) & (m - k <= n - c) & (part > 0)
        some, of = k[possible], m[possible]
        chance = np.exp(log_choose(c, some) + log_choose(n - c, of - some) - log_choose(n, of))
        return float(chance @ part[possible] + weight[~small] @ (_entropy(np.array(c / n)) - bias * (0 < c < n)))

    return expected
