"""Processes that train the same SAEs: tokens of a batch are split over some of them, features over others.

A loss is written for the whole batch and all features, with `token_mean`, `per_token` and `Axis.total` where tokens or
features are summed. Each process computes the same loss, and its backward pass the gradient of its own part only: a
total hands the gradient on to the own addend. What is left to add up are gradients of weights that processes share.
Alone, all of this is an ordinary mean or sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from monosem.types import UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")


@dataclass
class Traffic:
    """Bytes that this process gave to collectives, by kind: `all_reduce` counts a tensor once, `all_gather` its own."""

    all_reduce: int = 0
    all_gather: int = 0


@dataclass(frozen=True, eq=False)
class Axis:
    """The processes along one axis of a mesh. size: how many; rank: which one this is; group: of torch, None alone."""

    size: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None
    traffic: Traffic | None = None

    def total(self, part: Tensor) -> Tensor:
        """Return the sum of the processes' parts, any shape. The gradient of `part` is that of the total."""
        return part if self.size == 1 else _Total.apply(part, self)

    def reduced(self, value: Tensor, by: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
        """Return the sum (or `by`: least, largest) of the processes' values, without gradient; bool: whether any is."""
        if self.size == 1:
            return value.detach()
        kept = value.detach().to(torch.int32, copy=True) if value.dtype == torch.bool else value.detach().clone()
        dist.all_reduce(kept if kept.is_contiguous() else kept.t(), by, self.group)
        if self.traffic is not None:
            self.traffic.all_reduce += kept.nbytes
        return kept > 0 if value.dtype == torch.bool else kept

    def gathered(self, value: Tensor) -> list[Tensor]:
        """Return the processes' values, all of one shape, without gradient, in the order of their ranks."""
        if self.size == 1:
            return [value.detach()]
        mine = value.detach().contiguous()
        found = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(found, mine, self.group)
        if self.traffic is not None:
            self.traffic.all_gather += mine.nbytes
        return found

    def joined(self, values: Tensor, *, by_first: bool = False) -> Tensor:
        """Return the processes' vectors, of any lengths, as one, without gradient.

        by_first: only the first process gets it; the others get their own vector back.
        """
        if self.size == 1:
            return values.detach()
        sizes = [int(n) for n in self.gathered(torch.tensor([len(values)], device=values.device))]
        padded = values.new_zeros(max(sizes))
        padded[: len(values)] = values.detach()
        if by_first:
            found = [torch.empty_like(padded) for _ in sizes] if self.rank == 0 else None
            dist.gather(padded, found, group=self.group, group_dst=0)
        else:
            found = self.gathered(padded)
        return values.detach() if found is None else torch.cat([v[:n] for v, n in zip(found, sizes, strict=True)])

    def agree(self, failure: UserError | None) -> None:
        """Raise, in all processes, the first UserError that one of them has met. All have to call this."""
        if self.size > 1:
            mine = torch.tensor(list(f"{failure}\n".encode() if failure else b""), dtype=torch.uint8)
            said = bytes(self.joined(mine).tolist()).decode().splitlines()
            failure = failure or (UserError(said[0]) if said else None)
        if failure is not None:
            raise failure

    def agreed(self, make: Callable[[], T]) -> T:
        """Return what `make()` returns; raise, in all processes, the first UserError that it raises in one of them."""
        found, failure = None, None
        try:
            found = make()
        except UserError as error:
            failure = error
        self.agree(failure)
        return cast(T, found)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier(self.group)

    def span(self, n: int) -> slice:
        """Return which of `n` things in a row are this process's: equal shares, the last ones smaller, as DTensor's."""
        each = -(-n // self.size)
        return slice(min(self.rank * each, n), min((self.rank + 1) * each, n))


@dataclass(frozen=True, eq=False)
class Mesh:
    """Where this process stands among those that train the same SAEs.

    data: those with other tokens and the same features; features: those with the same tokens; both: all of them.
    devices: the same for DTensors, with dimensions `data` and `features`; None alone.
    """

    data: Axis = Axis()
    features: Axis = Axis()
    both: Axis = Axis()
    devices: DeviceMesh | None = None

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Compute losses over all of these processes inside this context."""
        token = _here.set(self)
        try:
            yield
        finally:
            _here.reset(token)


ALONE = Mesh()
_here: ContextVar[Mesh] = ContextVar("mesh", default=ALONE)


def here() -> Mesh:
    """Return the mesh that has been entered."""
    return _here.get()


def token_mean(values: Tensor) -> Tensor:
    """Return the mean of `values [n, ...]` over the tokens of all processes, each of which has as many."""
    data = here().data
    return values.mean(0) if data.size == 1 else data.total(values.sum(0)) / (len(values) * data.size)


def per_token(entries: Tensor, n: int) -> Tensor:
    """Return the sum of entries over all tokens and features, per token; n: tokens of this process."""
    mesh = here()
    return mesh.both.total(entries.sum()) / (n * mesh.data.size)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, axis: Axis) -> Tensor:
        return axis.reduced(part)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return g, None
