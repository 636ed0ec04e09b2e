"""Which features stand for which values of attributes: F1 of when a feature is active against what holds of a prompt.

Source: Makelov, Lange, Nanda 2024 (arXiv 2405.08366), test 3. An undefined F1 (nothing active, nothing holds) is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import one_hot

from monosem.evals.ioi.prompts import ORDERS
from monosem.metrics import resamples
from monosem.types import UserError

FEATURES = 4096  # at once: bounds the memory that a table of F1 scores needs

Predicates = dict[str, tuple[list[str], Tensor]]


@dataclass(frozen=True, eq=False)
class Judged:
    """How well features stand for V values, on test prompts; features were chosen on train prompts.

    order: features with the highest F1 on train prompts, best first, int64 [V, L], -1: none; the first is the single
    one. size: features in the best union on train prompts, int64 [V], 0: none. single, union: F1, float [V], NaN where
    a value is missing in the train or the test prompts. n: test prompts with each value, int64 [V].
    """

    order: Tensor
    size: Tensor
    single: Tensor
    union: Tensor
    n: Tensor


def f1(active: Tensor, label: Tensor) -> float:
    """Return the harmonic mean of precision and recall. active, label: bool [N]. Raises UserError for other shapes."""
    if active.ndim != 1:
        raise UserError(f"active of shape {tuple(active.shape)}: must be [N], one feature")
    return float(f1_scores(active[:, None], label[:, None]))


def f1_scores(active: Tensor, labels: Tensor) -> Tensor:
    """Return the F1 of every feature for every value, float32 [V, F].

    active: bool [N, F], whether a feature is active on a prompt. labels: bool [N, V], whether a value holds of it.
    Raises UserError when these differ in N.
    """
    _check(active, labels)
    scores = torch.zeros(labels.shape[1], active.shape[1], device=active.device)
    holds = labels.float()
    for number in torch.nonzero(active.any(0))[:, 0].split(FEATURES):
        fires = active[:, number].float()
        scores[:, number] = 2 * (holds.T @ fires) / (holds.sum(0)[:, None] + fires.sum(0))
    return scores


def ranked(scores: Tensor, largest: int) -> Tensor:
    """Return the features with the highest scores [V, F] of each value, best first, int64 [V, L], L = min(largest, F).

    -1 from where scores are 0. The first column is the best single feature. Raises UserError when largest is below 1.
    """
    if largest < 1:
        raise UserError(f"largest is {largest}: must be at least 1")
    best, order = scores.topk(min(largest, scores.shape[1]), dim=1)
    return order.masked_fill(best <= 0, -1)


def union_f1(active: Tensor, labels: Tensor, order: Tensor) -> Tensor:
    """Return the F1 of the union of the first 1, 2, ... L features of each value, float32 [V, L].

    A union is active where any of its features is. active: bool [N, F]. labels: bool [N, V]. order: int64 [V, L], -1:
    none, adds nothing. F1 may fall when a feature is added. Raises UserError for shapes that don't fit.
    """
    _check(active, labels)
    if order.ndim != 2 or len(order) != labels.shape[1]:
        raise UserError(f"order of shape {tuple(order.shape)}: must be [{labels.shape[1]}, L], a row a value")
    fires = torch.zeros_like(labels)
    curves = []
    for number in order.T:
        fires |= active[:, number.clamp(min=0)] & (number >= 0)
        curves.append(2.0 * (fires & labels).sum(0) / (fires.sum(0) + labels.sum(0)).clamp(min=1))
    return torch.stack(curves, 1)


def union_f1_interval(active: Tensor, label: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Return the central 95 % of the F1 of the union of the first 1, 2, ... k features, prompts resampled, [k] each.

    active: bool [N, k]. label: bool [N].
    """
    fires = (active.cumsum(1) > 0).double()
    if not fires.numel():
        return torch.zeros(0), torch.zeros(0)
    weights = torch.from_numpy(resamples(len(fires), draws)).to(fires)
    both, either = weights @ (fires * label[:, None]), weights @ fires + (weights @ label.double())[:, None]
    low, high = (2 * both / either.clamp(min=1)).quantile(torch.tensor([0.025, 0.975]).to(fires), dim=0)
    return low, high


def best_union(active: Tensor, labels: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Return (F1 of the first 1, 2, ... L features, float32 [V, L]; the size of the best union, int64 [V], 0: none).

    As `union_f1`; of equally good unions the smallest.
    """
    curves = union_f1(active, labels, order)
    return curves, torch.where(order[:, 0] >= 0, curves.argmax(1) + 1, 0)


def judge(
    train_active: Tensor, train_labels: Tensor, test_active: Tensor, test_labels: Tensor, largest: int = 10
) -> Judged:
    """Return the F1 on test prompts of the feature and of the union of features that are best on train prompts.

    active: bool [N, F]. labels: bool [N, V]; the same values in both. largest: features in a union, at most. Raises
    UserError for shapes that don't fit.
    """
    if train_active.shape[1] != test_active.shape[1] or train_labels.shape[1] != test_labels.shape[1]:
        raise UserError("train and test prompts have different numbers of features or values: they must be the same")
    order = ranked(f1_scores(train_active, train_labels), largest)
    _, size = best_union(train_active, train_labels, order)
    curves = union_f1(test_active, test_labels, order)
    union = curves.gather(1, (size - 1).clamp(min=0)[:, None])[:, 0]
    missing = ~(train_labels.any(0) & test_labels.any(0))
    single, union = (f1.masked_fill(missing, float("nan")) for f1 in (curves[:, 0], union))
    return Judged(order, size, single, union, test_labels.sum(0))


def predicates(labels: Tensor, genders: ArrayLike, names: Sequence[str]) -> Predicates:
    """Return by predicate its V values and whether each holds of the prompts, bool [N, V].

    labels: int64 [N, 3], the numbers of S and IO in names, and 0 where IO stands first, 1 where S does. genders:
    whether each name is female, [names]. Values that no prompt has are there, too. Raises UserError when there aren't
    as many genders as names.
    """
    female = torch.as_tensor(genders, device=labels.device).bool()
    if len(female) != len(names):
        raise UserError(f"{len(female)} genders for {len(names)} names: each name needs one")
    S, IO = (one_hot(labels[:, j], len(names)).bool() for j in (0, 1))
    order = one_hot(labels[:, 2], 2).bool()
    both = [f"{name}, {where}" for name in names for where in ORDERS]
    s_first = order[:, 1:]
    gender = ["female", "male"]
    names = list(names)
    return {
        "S": (names, S),
        "IO": (names, IO),
        "Pos": (list(ORDERS), order),
        "S & Pos": (both, (S[:, :, None] & order[:, None, :]).flatten(1)),
        "IO & Pos": (both, (IO[:, :, None] & order[:, None, :]).flatten(1)),
        "S gender": (gender, torch.stack([female[labels[:, 0]], ~female[labels[:, 0]]], 1)),
        "IO gender": (gender, torch.stack([female[labels[:, 1]], ~female[labels[:, 1]]], 1)),
        "name anywhere": (names, S | IO),
        "first name": (names, torch.where(s_first, S, IO)),
        "second name": (names, torch.where(s_first, IO, S)),
    }


def _check(active: Tensor, labels: Tensor) -> None:
    if active.ndim != 2 or labels.ndim != 2 or len(active) != len(labels):
        shapes = f"{tuple(active.shape)} and {tuple(labels.shape)}"
        raise UserError(f"active and labels of shape {shapes}: must be [N, F] and [N, V] of the same N prompts")
