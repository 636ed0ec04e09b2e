"""The search: measure an SAE as its file is read, then other readings, and take those that are clearly better."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monosem.doctor.fits import rebuilt, size
from monosem.doctor.readings import Reading, alternatives
from monosem.doctor.sample import CHUNK, Sample
from monosem.heldout import DataAccumulator, active_entries
from monosem.metrics import intervals, resamples
from monosem.types import Estimate, UserError
from monosem.variants import Codes

Array = NDArray[np.float64]
DRAWS = 500
SCREEN_TOKENS = 2_500
SCREEN_WORK = 2e10  # multiplications that one reading may take at the screening
CLEAR = (0.9, 0.75, 0.6)  # the paired ratio has to lie below this, by how much of a reading was found from data
FOUND = (1.0, 1.3, 1.4)  # what `Score.cost` is multiplied by, by how much of a reading was found from data
WORTH = 0.4  # NMSE times L0 to this power is alike along the frontier of trained SAEs (0.26 to 0.48 in the quickstart)
DEEP = 3
FLOOR = 0.25  # explained variance that the right reading of a trained SAE has at least
TOO_LARGE = 1.06  # `fits.size` from which a k is too large, or thresholds too small, for the SAE
NOT_FINITE = "this SAE's reconstruction of ordinary activations is NaN or infinite; its weights are damaged"


@dataclass(frozen=True)
class Score:
    """A reading and its resampled figures: l0 and nmse, [1 + draws], the value itself first; tokens behind them."""

    reading: Reading
    l0: Array
    nmse: Array
    tokens: int

    @property
    def cost(self) -> float:
        """What readings are ranked by: of trained SAEs with more active features, NMSE falls about as L0^0.4."""
        return float(self.nmse[0] * max(1.0, self.l0[0]) ** WORTH)

    @property
    def plausible(self) -> bool:
        """Whether this can be what was trained: variance is explained, and by fewer features than dimensions."""
        explained = self.estimate("explained_variance").low
        return explained >= FLOOR and self.l0[0] <= self.reading.found.weights["W_dec"].shape[1] / 2

    def estimate(self, name: str) -> Estimate:
        """Return `l0`, `nmse` or `explained_variance` with its 95 % interval."""
        values = {"l0": self.l0, "nmse": self.nmse, "explained_variance": 1 - self.nmse}[name]
        found = intervals({"": values[:1]}, {"": values[1:]}, self.tokens)[""]
        return found or Estimate(float("nan"), float("nan"), float("nan"), self.tokens)


@dataclass(frozen=True)
class Search:
    """What was found: the way from the file as read to the best reading, and all readings tried on the way.

    path: as read first, measured on all tokens; tried: the others, on some of the tokens, and as_read on the same.
    """

    path: list[Score]
    tried: list[Score]
    as_read: Score


@torch.no_grad()
def score(readings: Iterable[Reading], sample: Sample) -> list[Score]:
    """Measure readings on a sample, documents resampled; one whose reconstruction isn't finite is left out."""
    weights = np.vstack([np.ones((1, sample.groups)), resamples(sample.groups, DRAWS)])
    places: dict[tuple[str, bool], tuple[Tensor, Tensor, Array]] = {}
    out = []
    for reading in readings:
        place = reading.site, reading.special
        if place not in places:
            places[place] = (*(found := sample.at(*place)), _variance(*found, weights))
        x, group, variance = places[place]
        error, active = torch.zeros(sample.groups).double(), torch.zeros(sample.groups).double()
        for part, of in zip(x.split(CHUNK), group.split(CHUNK), strict=True):
            codes, xhat = rebuilt(reading.found, part)
            error.index_add_(0, of, (part - xhat).square().sum(1).double())
            active.index_add_(0, of, _active(codes))
        if torch.isfinite(error).all():
            l0 = (weights @ active.numpy()) / (weights @ torch.bincount(group, minlength=sample.groups).numpy())
            out.append(Score(reading, l0, (weights @ error.numpy()) / variance, len(x)))
    return out


def _active(codes: Codes) -> Tensor:
    """Return how many features are active at each token, float64 [n]."""
    if codes.values.ndim == 2:
        return (codes.values > 0).sum(1).double()
    return torch.bincount(active_entries(codes)[0], minlength=codes.n_tokens).double()


def _variance(x: Tensor, group: Tensor, weights: Array) -> Array:
    """Return the summed squared distance of `x [n, d_in]` from its mean in every resample, [1 + draws]."""
    data = DataAccumulator(x.double().mean(0), weights.shape[1])
    data.add(x, group)
    sums = data.sums()
    return weights @ sums.xx - ((weights @ sums.x) ** 2).sum(1) / (weights @ sums.n)


def clearly_better(new: Score, old: Score) -> bool:
    """Return whether the paired ratio of NMSEs lies below the margin for what `new` changed last.

    The ratio counts L0, too (`Score.cost`), but no gain in it makes up for a larger error. A k that was found by
    `fits.size` is not a matter of how many.
    """
    change = new.reading.changes[-1]
    ratio = float(np.nanquantile(new.nmse[1:] / old.nmse[1:], 0.975))
    if change.kind == "k":
        return ratio < CLEAR[0]
    l0 = max(1.0, float(new.l0[0])) / max(1.0, float(old.l0[0]))
    return ratio < 1 and ratio * l0**WORTH < CLEAR[change.fitted]


def _best(better: list[Score]) -> Score:
    """Return the least cost; where nothing is explained yet, few active features are no merit, and errors are compared.

    What was found from data has to be better by a factor for being preferred to a guess.
    """
    explained = [option for option in better if 1 - option.nmse[0] >= FLOOR]
    return min(
        explained or better,
        key=lambda o: FOUND[o.reading.changes[-1].fitted] * (o.cost if explained else float(o.nmse[0])),
    )


def find(start: Reading, sample: Sample) -> Search:
    """Take the best reading that is clearly better than the one before, up to three times.

    Raises UserError for weights that give NaN or infinite reconstructions.
    """
    weights = start.found.weights["W_enc"].numel() * 2
    screen = sample.thin(int(min(SCREEN_TOKENS, max(512, SCREEN_WORK / weights))))
    way = score([start], screen)
    if not way:
        raise UserError(NOT_FINITE)
    tried: list[Score] = []
    for _ in range(DEEP):
        here = way[-1].reading
        x, _ = screen.at(here.site, False)
        options = score(alternatives(here, x, list(sample.x)), screen)
        tried += options
        better = [option for option in options if clearly_better(option, way[-1])]
        if not better:
            break
        way.append(_best(better))
    too_large = _too_large(way[-1], tried, screen)
    if too_large is not None:
        way.append(too_large)
    path = score([step.reading for step in way], sample)
    if len(path) < len(way):
        raise UserError(NOT_FINITE)
    return Search(path, tried, way[0])


def _too_large(last: Score, tried: list[Score], screen: Sample) -> Score | None:
    """Return the reading with fewer active features at which reconstructions have their right size, if there is one.

    For a k that is too large, or thresholds that are too small: those hardly raise the error, or even lower it.
    """
    reading = last.reading
    found = size(reading.found, screen.at(reading.site, False)[0])
    if 1 - last.nmse[0] < FLOOR or found < TOO_LARGE:
        return None
    for option in tried:
        *before, change = option.reading.changes
        by_size = change.kind in ("k", "threshold", "activation") and change.fitted
        if by_size and tuple(before) == reading.changes and option.cost < CLEAR[0] * last.cost:
            why = f"as read, more features are active than in training, and reconstructions {found:.2f} times too large"
            told = replace(change, mend=f"{change.mend} ({why})")
            return replace(option, reading=replace(option.reading, changes=(*before, told)))
    return None
