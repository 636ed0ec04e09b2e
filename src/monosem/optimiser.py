"""Adam with global gradient clipping and unit decoder rows, in two forms that take the same steps.

`ReferenceAdam` is torch's. `RowAdam` goes once over the rows of `W_enc` and `W_dec`: a row's gradient is added up from
its parts, made tangential, scaled, used and forgotten while the row is in the cache.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from monosem.autoencoder import Weights, tangential, unit_rows
from monosem.kernels.gradients import RowGradient, collecting
from monosem.kernels.screen import known_screen
from monosem.kernels.sparse import fast_kernels

Moments = dict[str, tuple[Tensor, Tensor]]


def make_optimiser(weights: Weights, betas: tuple[float, float], eps: float, unit: bool) -> ReferenceAdam | RowAdam:
    """Return Adam for these weights (leaves that require grad), by rows where there are kernels for them.

    unit: keep the rows of W_dec at norm 1, and take their gradient's component along themselves out.
    """
    stored_by_feature = weights["W_enc"].t().is_contiguous() and weights["W_dec"].is_contiguous()
    fast = fast_kernels(weights["W_dec"], weights["W_enc"])
    return (RowAdam if fast and stored_by_feature else ReferenceAdam)(weights, betas, eps, unit)


class ReferenceAdam:
    """Adam (Kingma and Ba 2015, algorithm 1) by `torch.optim`, with the gradient as one tensor a weight."""

    def __init__(self, weights: Weights, betas: tuple[float, float], eps: float, unit: bool):
        """See `make_optimiser`."""
        self.weights, self.unit = weights, unit
        self.adam = torch.optim.Adam(list(weights.values()), lr=0.0, betas=betas, eps=eps, fused=True)

    def collecting(self) -> AbstractContextManager[object]:
        """Return the context in which the loss has to be computed."""
        return nullcontext()

    def backward(self, loss: Tensor) -> float:
        """Compute the gradient and return its norm over all weights."""
        loss.backward()
        w_dec = self.weights["W_dec"]
        if self.unit and w_dec.grad is not None:
            w_dec.grad = tangential(w_dec.detach(), w_dec.grad)
        return math.sqrt(_square(self.weights))

    @torch.no_grad()
    def step(self, rate: float, factor: float) -> None:
        """Step with learning rate `rate` and the gradient times `factor`."""
        _torch_step(self.adam, self.weights, rate, factor)
        if self.unit:
            self.weights["W_dec"].copy_(unit_rows(self.weights["W_dec"]))

    def moments(self) -> Moments:
        """Return the first and second moments of each weight in its shape, to read or write; none before step 1."""
        states = {name: self.adam.state.get(w) for name, w in self.weights.items()}
        return {name: (state["exp_avg"], state["exp_avg_sq"]) for name, state in states.items() if state}

    def restore(self, moments: Moments, steps: int) -> None:
        """Take over moments, and the number of steps that they have seen."""
        _restore(self.adam, self.weights, moments, steps)


class RowAdam:
    """The same steps for weights whose matrices `W_enc` and `W_dec` are stored feature by feature."""

    def __init__(self, weights: Weights, betas: tuple[float, float], eps: float, unit: bool):
        """See `make_optimiser`."""
        self.weights, self.unit, self.betas, self.eps = weights, unit, betas, eps
        self.matrices = {"W_enc": weights["W_enc"].detach().t(), "W_dec": weights["W_dec"].detach()}
        self.state = {name: (torch.zeros_like(rows), torch.zeros_like(rows)) for name, rows in self.matrices.items()}
        self.vectors = {name: w for name, w in weights.items() if name not in self.matrices}
        self.adam = torch.optim.Adam(list(self.vectors.values()), lr=0.0, betas=betas, eps=eps, fused=True)
        self.steps = 0
        self.parts: dict[int, RowGradient] = {}
        fast = fast_kernels(weights["W_dec"], weights["W_enc"])
        assert fast is not None
        self.fast = fast

    def collecting(self) -> AbstractContextManager[object]:
        """Return the context in which the loss has to be computed."""
        self.parts = {id(self.weights[name]): RowGradient() for name in self.matrices}
        return collecting(self.parts)

    def backward(self, loss: Tensor) -> float:
        """Compute the gradient, by parts, and return its norm over all weights."""
        loss.backward()
        square = _square(self.vectors)
        for name, rows in self.matrices.items():
            square += float(self.fast.gradient_squares(*self._gradient(name), rows, self._unit(name)).double().sum())
        return math.sqrt(square)

    @torch.no_grad()
    def step(self, rate: float, factor: float) -> None:
        """Step with learning rate `rate` and the gradient times `factor`."""
        _torch_step(self.adam, self.vectors, rate, factor)
        self.steps += 1
        beta1, beta2 = self.betas
        root = math.sqrt(1 - beta2**self.steps)
        numbers = (factor, rate / (1 - beta1**self.steps), beta1, 1 - beta1, beta2, 1 - beta2, root, self.eps)
        for name, rows in self.matrices.items():
            self.fast.adam(*self._gradient(name), rows, self.state[name], numbers, self._unit(name))
            self.weights[name].grad = None
        self.parts = {}
        screen = known_screen(self.weights["W_enc"])
        if screen is not None:
            screen.refresh()

    def moments(self) -> Moments:
        """Return the first and second moments of each weight in its shape, to read or write; none before step 1."""
        if self.steps == 0:
            return {}
        states = {name: self.adam.state[w] for name, w in self.vectors.items()}
        encoder, decoder = self.state["W_enc"], self.state["W_dec"]
        matrices = {"W_enc": (encoder[0].t(), encoder[1].t()), "W_dec": decoder}
        return {name: (state["exp_avg"], state["exp_avg_sq"]) for name, state in states.items()} | matrices

    def restore(self, moments: Moments, steps: int) -> None:
        """Take over moments, and the number of steps that they have seen."""
        _restore(self.adam, self.vectors, moments, steps)
        self.steps = steps
        for name in self.matrices:
            for mine, given in zip(self.state[name], moments[name], strict=True):
                mine.copy_(given.t() if name == "W_enc" else given)

    def _gradient(self, name: str) -> tuple[RowGradient, Tensor | None]:
        """Return the gradient of a matrix with a row for each feature: its parts, and what autograd stored."""
        dense = self.weights[name].grad
        if dense is not None:
            dense = (dense.t() if name == "W_enc" else dense).contiguous()
        return self.parts.get(id(self.weights[name]), RowGradient()), dense

    def _unit(self, name: str) -> bool:
        return self.unit and name == "W_dec"


def _square(weights: Weights) -> float:
    """Return the squared norm of the gradients that are stored whole."""
    return sum(float(torch.linalg.vector_norm(w.grad)) ** 2 for w in weights.values() if w.grad is not None)


def _torch_step(adam: torch.optim.Adam, weights: Weights, rate: float, factor: float) -> None:
    for w in weights.values():
        if factor != 1 and w.grad is not None:
            w.grad *= factor
    adam.param_groups[0]["lr"] = rate
    adam.step()
    adam.zero_grad(set_to_none=True)


@torch.no_grad()
def _restore(adam: torch.optim.Adam, weights: Weights, moments: Moments, steps: int) -> None:
    for name, w in weights.items():
        if name in moments:
            first, second = (torch.empty_like(w).copy_(moment) for moment in moments[name])  # laid out as w is
            adam.state[w] = {"step": torch.tensor(float(steps)), "exp_avg": first, "exp_avg_sq": second}
