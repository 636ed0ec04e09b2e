"""Two ways in which dictionaries miss an attribute that is there: occlusion and over-splitting.

Source: Makelov, Lange, Nanda 2024 (arXiv 2405.08366). The paper shows examples; of the thresholds that make
detectors of them, all but F1 >= .5 are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from monosem.evals.ioi.interpret import best_union, f1_scores, judge, ranked, union_f1
from monosem.evals.ioi.supervised import Supervised
from monosem.metrics import proportion
from monosem.types import Estimate, UserError

RECOVERED = 0.5  # F1 from which on a feature stands for a value
DECODABLE = 0.5
PRECISION, RECALL = 0.9, 0.2  # of a splinter: at least, at most
FIRINGS = 20  # on train prompts; with fewer, precision is luck
SPLINTERS = 10  # make an attribute split
GOOD = 0.8  # F1


@dataclass(frozen=True)
class Occlusion:
    """Whether an attribute is hidden from a dictionary by another one.

    share: part of its values that a feature recovers. by: the attribute with the highest share, and `most` that share.
    norm, by_norm: mean length of the supervised codes of both. decoded: how well it can be read off or edited with the
    supervised dictionary, 0 to 1.
    """

    share: float
    by: str
    most: float
    norm: float
    by_norm: float
    decoded: float

    @property
    def occluded(self) -> bool:
        """Recovered less than half as often as the other, though decodable, and its codes are shorter."""
        return self.share < self.most / 2 and self.norm < self.by_norm and self.decoded >= DECODABLE


@dataclass(frozen=True, eq=False)
class Splitting:
    """Whether a value of a binary attribute is split among features that each stand for a small part of its prompts.

    splinters: their numbers, by F1 on train prompts, int64 [k]. held: how many of them are splinters on test prompts,
    too. overlap: mean Jaccard index of two of them, 0: disjoint; NaN for fewer than two. union: F1 of the first 1, 2,
    ... k, float [k]. size: how many are best on train prompts, 0: none. single: F1 of the feature that is best on train
    prompts. overlap, union and single are of test prompts.
    """

    splinters: Tensor
    held: int
    overlap: float
    union: Tensor
    size: int
    single: float

    @property
    def split(self) -> bool:
        """At least 10 splinters on test prompts; they together have an F1 above .8, where no feature alone has."""
        together = float(self.union[self.size - 1]) if self.size else 0.0
        return self.held >= SPLINTERS and together > GOOD > self.single


def share(f1: Tensor) -> Estimate:
    """Return the part of an attribute's values that a feature recovers, F1 of at least .5; Wilson's interval over them.

    f1: of each value's best feature, [V]; NaN, as where `interpret.judge` can't tell, is left out. Raises UserError
    when nothing else is there.
    """
    known = f1[~f1.isnan()]
    if not len(known):
        raise UserError("f1: no value of the attribute is in both the train and the test prompts: draw more prompts")
    return proportion(int((known >= RECOVERED).sum()), len(known))


def norm(dictionary: Supervised, attribute: int) -> float:
    """Return the mean length of the supervised codes of an attribute that aren't 0 (values that no prompt has are)."""
    lengths = dictionary.of(attribute).norm(dim=1)
    return float(lengths[lengths > 0].mean()) if lengths.any() else 0.0


def occlusion(
    shares: Mapping[str, float], norms: Mapping[str, float], decoded: Mapping[str, float]
) -> dict[str, Occlusion]:
    """Return for each attribute whether the one that is recovered best occludes it.

    shares: by attribute, of its values that are recovered (`share`). norms: mean lengths of its supervised codes
    (`norm`). decoded: how often it can be read off (`supervised.decoded`) or edited with the supervised dictionary, 0
    to 1; .5 or more counts as decodable. Raises UserError when these aren't of the same attributes.
    """
    if not shares or shares.keys() != norms.keys() or shares.keys() != decoded.keys():
        raise UserError("shares, norms and decoded: must be of the same attributes, at least one")
    by = max(shares, key=lambda name: shares[name])
    return {name: Occlusion(shares[name], by, shares[by], norms[name], norms[by], decoded[name]) for name in shares}


def unmasked(
    encode: Callable[[Tensor], Tensor],
    a: Tensor,
    labels: Tensor,
    dictionary: Supervised,
    alphas: Sequence[float],
    predicates: Mapping[str, tuple[list[str], Tensor]],
    train: Tensor,
    attribute: int = 1,
) -> dict[float, dict[str, Estimate]]:
    """Return by alpha and predicate the share of values recovered once alpha times an attribute's codes is taken away.

    If the attribute occludes another, the other's share rises as its own falls. encode: [N, d] -> codes [N, F], active
    where above 0. a: [N, d]. labels: int64 [N, A]. predicates: those of `interpret.predicates` that shares are wanted
    of. train: bool [N], prompts that features are chosen on; the others count. attribute: the column of labels, 1: IO.
    Raises UserError as `share` and `interpret.judge` do. Source: the paper's check on queries of L10H0.
    """
    codes = dictionary.of(attribute)[labels[:, attribute]]
    found: dict[float, dict[str, Estimate]] = {}
    for alpha in alphas:
        active = encode(a - alpha * codes) > 0
        found[alpha] = {
            name: share(judge(active[train], holds[train], active[~train], holds[~train], 1).single)
            for name, (_, holds) in predicates.items()
        }
    return found


def splitting(
    train_active: Tensor,
    train_label: Tensor,
    test_active: Tensor,
    test_label: Tensor,
    meanings: Tensor | None = None,
) -> Splitting:
    """Return how a value of a binary attribute is split among features.

    active: bool [N, F]. label: bool [N], whether the value holds. A splinter has precision >= .9 and recall <= .2 for
    it and is active on at least 20 train prompts. meanings: bool [N, V] of the train prompts, whether something else
    holds that gives a part of the prompts a meaning (a name with a position): features with an F1 of at least .5 for
    one of these are no splinters. Raises UserError for shapes that don't fit and when the value holds of no prompt.
    """
    if not (train_label.any() and test_label.any()):
        raise UserError("label: the value holds of no prompt, in train or in test: nothing can be split")
    scores = f1_scores(train_active, train_label[:, None])
    splinter = _is_splinter(train_active, train_label, FIRINGS)
    if meanings is not None:
        number = torch.nonzero(splinter)[:, 0]
        splinter[number[(f1_scores(train_active[:, number], meanings) >= RECOVERED).any(0)]] = False
    order = ranked(scores * splinter, max(int(splinter.sum()), 1))
    _, size = best_union(train_active, train_label[:, None], order)
    kept = order[order >= 0]
    union = union_f1(test_active, test_label[:, None], kept[None])[0] if len(kept) else torch.zeros(0)
    single = float(union_f1(test_active, test_label[:, None], ranked(scores, 1)))
    held = int(_is_splinter(test_active[:, kept], test_label, 1).sum())
    return Splitting(kept, held, _overlap(test_active[:, kept]), union, int(size), single)


def _is_splinter(active: Tensor, label: Tensor, fewest: int) -> Tensor:
    """Return which features [N, F] are precise, active on few of the prompts with a label, not too few, bool [F]."""
    fires, right = active.sum(0), active[label].sum(0)
    return (fires >= fewest) & (right >= PRECISION * fires) & (right <= RECALL * label.sum())


def _overlap(active: Tensor) -> float:
    """Return the mean Jaccard index of two different features, active: bool [N, k]."""
    if active.shape[1] < 2:
        return float("nan")
    fires = active.float()
    both = fires.T @ fires
    either = both.diagonal()[:, None] + both.diagonal() - both
    first, second = torch.triu_indices(len(both), len(both), 1)
    return float((both / either.clamp(min=1))[first, second].mean())
