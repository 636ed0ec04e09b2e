"""Explanation by regression: what part of hidden states functions of the words explain, one added after another.

Source: Engels et al. 2024 (arXiv 2405.14860), section 6. Shares here are cross-validated, too: in the sample, more
functions always fit better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from monosem.types import UserError

FOLDS = 5
TOLERANCE = 1e-2  # of pinv, as the paper's code has


@dataclass(frozen=True, eq=False)
class Step:
    """What all functions up to this one explain. r2: 1 - SSE / SST in the sample; r2_held: of rows left out; residual:
    what is left, [n, d].
    """

    name: str
    r2: float
    r2_held: float
    residual: Tensor


def explain(x: Tensor, functions: Mapping[str, Tensor], seed: int = 0) -> list[Step]:
    """Return the steps of the linear regression of x [n, d], with an intercept, on functions [n, q], in their order.

    Raises UserError for functions with other rows, and for fewer rows than folds.
    """
    n = len(x)
    if n < FOLDS or any(len(values) != n for values in functions.values()):
        raise UserError(f"{n} rows of x: functions must have as many, at least {FOLDS}")
    x = x.double()
    design = torch.ones(n, 1, dtype=torch.float64)
    fold = torch.randperm(n, generator=torch.Generator().manual_seed(seed)) % FOLDS
    total = (x - x.mean(0)).square().sum()
    steps = []
    for name, values in functions.items():
        design = torch.cat([design, values.double()], dim=1)
        residual = x - design @ _solved(design, x)
        wrong, spread = 0.0, 0.0
        for f in range(FOLDS):
            out = fold == f
            wrong += float((x[out] - design[out] @ _solved(design[~out], x[~out])).square().sum())
            spread += float((x[out] - x[~out].mean(0)).square().sum())
        r2 = float(1 - residual.square().sum() / total)
        steps.append(Step(name, r2, 1 - wrong / spread, residual))
    return steps


def _solved(design: Tensor, x: Tensor) -> Tensor:
    return torch.linalg.pinv(design, atol=TOLERANCE) @ x


def named(word: Tensor, m: int) -> Tensor:
    """Return a column for each of m values, [n, m]. word: int64 [n]."""
    return one_hot(word, m).double()


def circle(word: Tensor, m: int, turns: int = 1) -> Tensor:
    """Return cos and sin of the angle of words, `turns` times round for all m, [n, 2]."""
    angle = 2 * math.pi * turns * word.double() / m
    return torch.stack([torch.cos(angle), torch.sin(angle)], 1)
