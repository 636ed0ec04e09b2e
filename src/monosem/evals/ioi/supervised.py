"""Dictionaries made from labels: one feature for each value of each attribute, the yardstick of unsupervised ones.

Source: Makelov, Lange, Nanda 2024 (arXiv 2405.08366), "supervised feature dictionaries".
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from monosem.types import UserError


@dataclass(frozen=True, eq=False)
class Supervised:
    """A dictionary in which an activation is the mean plus one code for each attribute's value.

    W_dec: the codes u, [F, d]; all values of the first attribute, then of the second, ...: F = sum(sizes). b_dec: mean
    activation, [d]. sizes: values of each attribute. Labels are int64 [N, A], 0 <= labels[:, j] < sizes[j]; every
    method raises UserError for others.
    """

    W_dec: Tensor
    b_dec: Tensor
    sizes: tuple[int, ...]

    def numbers(self, labels: Tensor) -> Tensor:
        """Return which features the prompts have, int64 [N, A].

        Those that an edit changes, for `control.removed`: `numbers(old)` with -1 where old == new.
        """
        return _numbers(labels, self.sizes)

    def codes(self, labels: Tensor) -> Tensor:
        """Return the features as an SAE would: 1 for a prompt's values, 0 elsewhere, float [N, F]."""
        zeros = self.W_dec.new_zeros(len(labels), len(self.W_dec))
        return zeros.scatter_(1, self.numbers(labels), 1.0)

    def reconstruct(self, labels: Tensor) -> Tensor:
        """Return the mean plus the codes of the prompts' values, [N, d]."""
        return self.b_dec + embedding_bag(self.numbers(labels), self.W_dec, mode="sum")

    def edit(self, a: Tensor, old_labels: Tensor, new_labels: Tensor) -> Tensor:
        """Return activations a [N, d] minus the codes of the old values plus those of the new ones.

        What the dictionary doesn't explain of an activation stays as it is, as do attributes with old == new. Raises
        UserError when a and the labels differ in their number of rows.
        """
        _check_rows(a, old_labels)
        _check_rows(a, new_labels)
        return a + self.reconstruct(new_labels) - self.reconstruct(old_labels)

    def of(self, attribute: int) -> Tensor:
        """Return the codes of one attribute's values, [sizes[attribute], d]."""
        return self.W_dec.split(self.sizes)[attribute]


def mean_codes(a: Tensor, labels: Tensor, sizes: tuple[int, ...]) -> Supervised:
    """Return the dictionary whose codes are the mean of a [N, d] over the prompts with a value, minus the mean of all.

    A code is near 0 where the attribute can't be read off linearly. Codes of attributes that depend on each other count
    what they share twice; `least_squares` doesn't. Values that no prompt has get a zero code. Summed in float64. Raises
    UserError for labels that don't fit a or the sizes. Source: the paper's "mean codes".
    """
    centred, mean, numbers = _prepared(a, labels, sizes)
    sums = _sums(centred, numbers, sum(sizes))
    count = torch.bincount(numbers.flatten(), minlength=sum(sizes)).clamp(min=1)
    return Supervised((sums / count[:, None]).to(a.dtype), mean.to(a.dtype), tuple(sizes))


def least_squares(a: Tensor, labels: Tensor, sizes: tuple[int, ...]) -> Supervised:
    """Return the dictionary that reconstructs a [N, d] with the least squared error: U = (C'C)^+ C'(a - mean).

    C: the one-hot codes, [N, F]. Of the solutions (a vector may be moved from all codes of one attribute to those of
    another) this is the one with the smallest codes. Values that no prompt has get a zero code. Solved in float64.
    Raises UserError for labels that don't fit a or the sizes. Source: the paper's "MSE codes".
    """
    centred, mean, numbers = _prepared(a, labels, sizes)
    codes = centred.new_zeros(len(a), sum(sizes)).scatter_(1, numbers, 1.0)
    inverse = torch.linalg.pinv(codes.T @ codes, rtol=1e-10, hermitian=True)
    W_dec = inverse @ _sums(centred, numbers, sum(sizes))
    return Supervised(W_dec.to(a.dtype), mean.to(a.dtype), tuple(sizes))


def decoded(dictionary: Supervised, a: Tensor, labels: Tensor) -> list[float]:
    """Return for each attribute how often its value can be read off activations a [N, d], a share of the prompts.

    The mean and the other attributes' codes are taken away; the value read off is the one with the nearest code. Use
    prompts that the dictionary wasn't made from. Raises UserError as `Supervised` does, and when there are no prompts.
    """
    _check_rows(a, labels)
    if not len(a):
        raise UserError("a: there are no activations to read an attribute off")
    rest = a - dictionary.reconstruct(labels)
    shares = []
    for attribute in range(len(dictionary.sizes)):
        U = dictionary.of(attribute)
        scores = (rest + U[labels[:, attribute]]) @ U.T - 0.5 * U.square().sum(1)
        shares.append(float((scores.argmax(1) == labels[:, attribute]).double().mean()))
    return shares


def _prepared(a: Tensor, labels: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Return (a minus its mean, float64 [N, d]; the mean [d]; the prompts' features, int64 [N, A])."""
    _check_rows(a, labels)
    if not len(a):
        raise UserError("a: there are no activations to make a dictionary from")
    numbers = _numbers(labels, sizes)
    mean = a.double().mean(0)
    return a.double() - mean, mean, numbers


def _sums(values: Tensor, numbers: Tensor, features: int) -> Tensor:
    """Return the sum of values [N, d] over the prompts that have each feature, [features, d]."""
    sums = values.new_zeros(features, values.shape[1])
    for column in numbers.T:
        sums.index_add_(0, column, values)
    return sums


def _numbers(labels: Tensor, sizes: tuple[int, ...]) -> Tensor:
    if labels.ndim != 2 or labels.shape[1] != len(sizes):
        raise UserError(f"labels of shape {tuple(labels.shape)}: must be [N, {len(sizes)}], a column an attribute")
    limits = torch.tensor(sizes, device=labels.device)
    if wrong := torch.nonzero((labels < 0) | (labels >= limits)).tolist():
        row, column = wrong[0]
        value, size = int(labels[row, column]), sizes[column]
        raise UserError(f"labels[{row}, {column}] is {value}: attribute {column} has the values 0 to {size - 1}")
    return labels + torch.tensor([0, *accumulate(sizes[:-1])], device=labels.device)


def _check_rows(a: Tensor, labels: Tensor) -> None:
    if a.ndim != 2 or len(a) != len(labels):
        raise UserError(
            f"a of shape {tuple(a.shape)} with {len(labels)} rows of labels: must be [N, d], a row a prompt"
        )
