"""Permutation tests of run labels within strata, with max-T correction over all pairs (section J.5).

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from monosem.bootstrap import CHUNK, TIE, Array, Cell, variance_factor, weighted_mean

Runs = list[dict[int, Cell]]  # one dict a run: its cell in each stratum


def pair_p(a: dict[int, Cell], b: dict[int, Cell], draws: int = 10_000, seed: int = 0) -> float:
    """Return the two-sided p of the difference of weighted means, labels of the two runs permuted within strata."""
    observed = abs(weighted_mean([*a.values()]) - weighted_mean([*b.values()]))
    rng = np.random.default_rng(seed)
    reached = sum(int((abs(m[:, 0] - m[:, 1]) >= observed - TIE).sum()) for m in _permuted_means([a, b], draws, rng))
    return (1 + reached) / (1 + draws)


def max_t_p(runs: Runs, draws: int = 10_000, seed: int = 0) -> dict[tuple[int, int], float]:
    """Return the family-wise p of every pair of runs (Westfall and Young 1993).

    Labels of all runs are permuted within strata. T is the difference of weighted means in units of what the sample
    sizes and weights let expect; a pair's p is the share of permutations whose largest T reaches the pair's.
    """
    pairs = list(combinations(range(len(runs)), 2))
    means = np.array([weighted_mean([*run.values()]) for run in runs])
    spread = np.array([variance_factor([*run.values()]) for run in runs])
    first, second = np.array(pairs).T
    scale = np.sqrt(spread[first] + spread[second])
    observed = abs(means[first] - means[second]) / scale
    reached = np.zeros(len(pairs))
    for drawn in _permuted_means(runs, draws, np.random.default_rng(seed)):
        largest = (abs(drawn[:, first] - drawn[:, second]) / scale).max(1)
        reached += (largest[:, None] >= observed - TIE).sum(0)
    return dict(zip(pairs, ((1 + reached) / (1 + draws)).tolist(), strict=True))


def _permuted_means(runs: Runs, draws: int, rng: np.random.Generator) -> Iterator[Array]:
    """Yield the runs' weighted means under permuted labels, [draws of a chunk, runs].

    A feature's weight moves with its value; how much a stratum counts in a run stays with the run.
    """
    size = sum(len(cell.values) for run in runs for cell in run.values())
    for start in range(0, draws, step := max(1, CHUNK // size)):
        count = min(step, draws - start)
        means = np.zeros((count, len(runs)))
        for stratum in sorted({s for run in runs for s in run}):
            here = [(i, run[stratum]) for i, run in enumerate(runs) if stratum in run]
            values = np.concatenate([cell.values for _, cell in here])
            weights = np.concatenate([cell.weights for _, cell in here])
            order = rng.permuted(np.broadcast_to(np.arange(len(values)), (count, len(values))), axis=1)
            at = 0
            for i, cell in here:
                mine = order[:, at : at + len(cell.values)]
                at += len(cell.values)
                means[:, i] += cell.share * (weights[mine] * values[mine]).sum(1) / weights[mine].sum(1)
        yield means
