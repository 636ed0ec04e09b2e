"""Adam with global gradient clipping and unit decoder rows, in two forms that take the same steps.

`ReferenceAdam` is torch's. `RowAdam` goes once over the rows of `W_enc` and `W_dec`: a row's gradient is added up from
its parts, made tangential, scaled, used and forgotten while the row is in the cache.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import increment_version

from monosem.autoencoder import Weights, tangential, unit_rows
from monosem.kernels import memory
from monosem.kernels.gradients import RowGradient, collecting
from monosem.kernels.screen import known_screen
from monosem.kernels.sparse import fast_kernels
from monosem.mesh import here
from monosem.variant import Variant

Moments = dict[str, tuple[Tensor, Tensor]]
WHOLE = Variant.whole


def make_optimiser(
    weights: Weights, betas: tuple[float, float], eps: float, unit: bool, whole: tuple[str, ...] = WHOLE
) -> ReferenceAdam | RowAdam:
    """Return Adam for these weights (leaves that require grad), by rows where there are kernels for them.

    unit: keep the rows of W_dec at norm 1, and take their gradient's component along themselves out. whole: names of
    weights that all features share. In a mesh, gradients are added up over the processes that share a weight; those in
    parts can't be, so where tokens are split it is the reference.
    """
    stored_by_feature = weights["W_enc"].t().is_contiguous() and weights["W_dec"].is_contiguous()
    fast = fast_kernels(weights["W_dec"], weights["W_enc"]) if here().data.size == 1 else None
    by_rows = torch.tensor(int(fast is not None and stored_by_feature))
    by_rows = bool(here().features.reduced(by_rows, dist.ReduceOp.MIN))  # a smaller part may have no kernels
    return (RowAdam if by_rows else ReferenceAdam)(weights, betas, eps, unit, whole)


def _add_up(weights: Weights, whole: tuple[str, ...]) -> None:
    """Add up the gradients of each weight over the processes that have the same entries of it."""
    for name, w in weights.items():
        sharing = here().both if name in whole else here().data
        if sharing.size > 1:
            w.grad = sharing.reduced(torch.zeros_like(w) if w.grad is None else w.grad)


def _sum_of_squares(squares: dict[str, Tensor], whole: tuple[str, ...]) -> float:
    """Return the sum over all weights, of all processes; squares: float64."""
    if here().both.size == 1:
        return float(sum(squares.values()))
    shared = sum(square for name, square in squares.items() if name in whole)
    own = torch.stack([square for name, square in squares.items() if name not in whole]).sum()
    return float(here().features.reduced(own) + shared)


class ReferenceAdam:
    """Adam (Kingma and Ba 2015, algorithm 1) by `torch.optim`, with the gradient as one tensor a weight."""

    def __init__(
        self, weights: Weights, betas: tuple[float, float], eps: float, unit: bool, whole: tuple[str, ...] = WHOLE
    ):
        """See `make_optimiser`."""
        self.weights, self.unit, self.whole = weights, unit, whole
        self.adam = torch.optim.Adam(list(weights.values()), lr=0.0, betas=betas, eps=eps, fused=True)

    def collecting(self) -> AbstractContextManager[object]:
        """Return the context in which the loss has to be computed."""
        return nullcontext()

    def backward(self, loss: Tensor, enough: float = 0.0) -> float:
        """Compute the gradient and return its norm over all weights. enough: see `RowAdam.backward`; of no use here."""
        loss.backward()
        _add_up(self.weights, self.whole)
        w_dec = self.weights["W_dec"]
        if self.unit and w_dec.grad is not None:
            w_dec.grad = tangential(w_dec.detach(), w_dec.grad)
        gradients = {name: w.grad for name, w in self.weights.items() if w.grad is not None}
        norms = {name: torch.linalg.vector_norm(gradient) for name, gradient in gradients.items()}
        if here().both.size == 1:
            return float(torch.linalg.vector_norm(torch.stack(list(norms.values()))))
        return math.sqrt(_sum_of_squares({k: norm.double().square() for k, norm in norms.items()}, self.whole))

    @torch.no_grad()
    def step(self, rate: float, factor: float) -> None:
        """Step with learning rate `rate` and the gradient times `factor`."""
        for w in self.weights.values():
            if factor != 1 and w.grad is not None:
                w.grad *= factor
        self.adam.param_groups[0]["lr"] = rate
        self.adam.step()
        increment_version(self.weights.values())  # a fused step doesn't, and what is cached of a weight goes by it
        self.adam.zero_grad(set_to_none=True)
        if self.unit:
            self.weights["W_dec"].copy_(unit_rows(self.weights["W_dec"]))

    def moments(self) -> Moments:
        """Return the first and second moments of each weight in its shape, to read or write; none before step 1."""
        states = {name: self.adam.state.get(w) for name, w in self.weights.items()}
        return {name: (state["exp_avg"], state["exp_avg_sq"]) for name, state in states.items() if state}

    @torch.no_grad()
    def restore(self, moments: Moments, steps: int) -> None:
        """Take over moments, and the number of steps that they have seen."""
        for name, w in self.weights.items():
            first, second = (torch.empty_like(w).copy_(moment) for moment in moments[name])  # laid out as w is
            self.adam.state[w] = {"step": torch.tensor(float(steps)), "exp_avg": first, "exp_avg_sq": second}


class RowAdam:
    """The same steps for weights whose matrices `W_enc` and `W_dec` are stored feature by feature."""

    def __init__(
        self, weights: Weights, betas: tuple[float, float], eps: float, unit: bool, whole: tuple[str, ...] = WHOLE
    ):
        """See `make_optimiser`."""
        self.weights, self.unit, self.betas, self.eps, self.whole = weights, unit, betas, eps, whole
        self.rows = {name: _by_feature(name, w.detach()) for name, w in weights.items()}
        self.state = {name: (_zeros_like(rows), _zeros_like(rows)) for name, rows in self.rows.items()}
        self.steps = 0
        self.parts: dict[int, RowGradient] = {}
        fast = fast_kernels(weights["W_dec"], weights["W_enc"])
        assert fast is not None
        self.fast = fast

    def collecting(self) -> AbstractContextManager[object]:
        """Return the context in which the loss has to be computed."""
        self.parts = {id(self.weights[name]): RowGradient() for name in ("W_enc", "W_dec")}
        return collecting(self.parts)

    def backward(self, loss: Tensor, enough: float = 0.0) -> float:
        """Compute the gradient, by parts, and return its norm over all weights.

        enough: where a quick bound shows that the norm is no larger than this, that bound is returned instead.
        """
        loss.backward()
        _add_up(self.weights, self.whole)
        parts = {name: self._gradient(name) for name in self.rows}
        if enough > 0:
            bounds = {name: part.square_bound(dense, self.rows[name]) for name, (part, dense) in parts.items()}
            doubles = {name: torch.tensor(bound, dtype=torch.float64) for name, bound in bounds.items()}
            bound = math.sqrt(_sum_of_squares(doubles, self.whole))
            if bound <= enough:
                return bound
        squares = {
            name: self.fast.gradient_squares(part, dense, self.rows[name], self._unit(name)).double().sum()
            for name, (part, dense) in parts.items()
        }
        return math.sqrt(_sum_of_squares(squares, self.whole))

    @torch.no_grad()
    def step(self, rate: float, factor: float) -> None:
        """Step with learning rate `rate` and the gradient times `factor`."""
        self.steps += 1
        beta1, beta2 = self.betas
        root = math.sqrt(1 - beta2**self.steps)
        numbers = (factor, rate / (1 - beta1**self.steps), beta1, 1 - beta1, beta2, 1 - beta2, root, self.eps)
        for name, rows in self.rows.items():
            screen = known_screen(self.weights[name])
            self.fast.adam(*self._gradient(name), rows, self.state[name], numbers, self._unit(name), screen)
            self.weights[name].grad = None
        self.parts = {}

    def moments(self) -> Moments:
        """Return the first and second moments of each weight in its shape, to read or write; none before step 1."""
        if self.steps == 0:
            return {}
        shapes = {name: w.shape for name, w in self.weights.items()}
        return {
            name: (_as_weight(name, first, shapes[name]), _as_weight(name, second, shapes[name]))
            for name, (first, second) in self.state.items()
        }

    @torch.no_grad()
    def restore(self, moments: Moments, steps: int) -> None:
        """Take over moments, and the number of steps that they have seen."""
        self.steps = steps
        for name, mine in self.moments().items():
            for target, given in zip(mine, moments[name], strict=True):
                target.copy_(given)

    def _gradient(self, name: str) -> tuple[RowGradient, Tensor | None]:
        """Return the gradient of a weight, by rows: its parts, and what autograd stored."""
        dense = self.weights[name].grad
        dense = None if dense is None else _by_feature(name, dense).contiguous()
        return self.parts.get(id(self.weights[name]), RowGradient()), dense

    def _unit(self, name: str) -> bool:
        return self.unit and name == "W_dec"


def _zeros_like(rows: Tensor) -> Tensor:
    return memory.zeros(rows.shape, rows.dtype, rows.device)


def _by_feature(name: str, w: Tensor) -> Tensor:
    """Return a weight as a matrix with a row for each feature; a vector is cut into short rows."""
    return w.view(-1, math.gcd(len(w), 64)) if w.dim() == 1 else w.t() if name == "W_enc" else w


def _as_weight(name: str, rows: Tensor, shape: torch.Size) -> Tensor:
    """Return rows made by `_by_feature` in the weight's shape, without copying."""
    return rows.view(shape) if len(shape) == 1 else rows.t() if name == "W_enc" else rows
