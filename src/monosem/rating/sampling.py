"""Which features are rated: eligible ones, drawn uniformly, by strata of density or by activation mass (section J.2).

Imports no torch.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from monosem.examples import MIN_FIRINGS, SHOWN, interval_of
from monosem.firings import Firings
from monosem.types import UserError

Sampling = Literal["uniform", "stratified", "mass"]
STRATA = 5


class Population(NamedTuple):
    """A run's eligible features [m]: their numbers, log10 densities and activation masses (density times mean).

    alive, fired: how many features of the run fire at all, and often enough.
    """

    feature: np.ndarray
    density: np.ndarray
    mass: np.ndarray
    alive: int
    fired: int


class Sample(NamedTuple):
    """A run's drawn features [n]: their numbers, strata and weights (how many eligible features each stands for)."""

    feature: np.ndarray
    stratum: np.ndarray
    weight: np.ndarray


def survey(firings: Firings, filled: bool) -> Population:
    """Return the eligible features of a run: at least MIN_FIRINGS firings.

    filled: also a firing in each of the first SHOWN intervals of activation, so that no item shows an empty one.
    """
    often = np.flatnonzero(firings.counts >= MIN_FIRINGS)
    kept, mass = [], []
    for feature, fires in firings.each(often):
        shown = interval_of(fires.value, float(fires.value.max()))
        if not filled or len(np.unique(shown[shown < SHOWN])) == SHOWN:
            kept.append(feature)
            mass.append(float(fires.value.sum(dtype=np.float64)) / firings.tokens)
    feature = np.array(kept, dtype=np.int64)
    density = np.log10(firings.counts[feature] / firings.tokens)
    return Population(feature, density, np.array(mass), int((firings.counts > 0).sum()), len(often))


def draw_samples(
    populations: dict[str, Population], n: int, sampling: Sampling, rng: np.random.Generator
) -> tuple[dict[str, Sample], list[float]]:
    """Return `n` features of each run and the cut points of the strata (log10 density, pooled over runs).

    Raises UserError for a run with too few eligible features.
    """
    for run, population in populations.items():
        if len(population.feature) < n:
            raise UserError(
                f"--features {n}: {run} has only {len(population.feature)} eligible features (of {population.fired} "
                f"that fire {MIN_FIRINGS} times); lower it, or choose other runs with --runs"
            )
    cuts: list[float] = []
    if sampling == "stratified":
        pooled = np.concatenate([p.density for p in populations.values()])
        cuts = np.quantile(pooled, np.arange(1, STRATA) / STRATA).tolist()
    draw = {"uniform": _uniform, "stratified": _uniform, "mass": _by_mass}[sampling]
    samples = {}
    for run, population in populations.items():
        strata = np.searchsorted(cuts, population.density, side="left") if cuts else np.zeros(len(population.feature))
        samples[run] = draw(population, strata.astype(int), n, rng)
    return samples, cuts


def _uniform(population: Population, strata: np.ndarray, n: int, rng: np.random.Generator) -> Sample:
    """Draw uniformly within each stratum, as equally many of each as there are."""
    sizes = np.bincount(strata, minlength=STRATA)
    taken = np.zeros(STRATA, dtype=int)
    for _ in range(n):  # the smallest allotment that still has features gets one more
        taken[min(np.flatnonzero(taken < sizes), key=lambda s: (taken[s], s))] += 1
    chosen = np.concatenate([rng.choice(np.flatnonzero(strata == s), taken[s], replace=False) for s in range(STRATA)])
    stratum = strata[chosen]
    return Sample(population.feature[chosen], stratum, sizes[stratum] / taken[stratum])


def _by_mass(population: Population, strata: np.ndarray, n: int, rng: np.random.Generator) -> Sample:
    """Draw with probability in proportion to mass, systematically; those above a full share are certain.

    The weight is mass over probability: equal for all but the certain ones. Weighted means then estimate the quality
    of a feature met in proportion to its activation.
    """
    mass = population.mass
    chance = np.zeros(len(mass))
    certain = np.zeros(len(mass), dtype=bool)
    while True:
        chance[~certain] = (n - certain.sum()) * mass[~certain] / mass[~certain].sum()
        over = ~certain & (chance >= 1)
        if not over.any():
            break
        certain |= over
        chance[over] = 1.0
        if certain.sum() == n:
            chance[~certain] = 0.0
            break
    order = rng.permutation(len(mass))
    reached = np.round(np.cumsum(chance[order]), 9) - rng.random()
    chosen = order[np.diff(np.ceil(reached), prepend=0.0) > 0]
    weight = mass[chosen] / chance[chosen]
    return Sample(population.feature[chosen], strata[chosen], weight * len(mass) / weight.sum())
