"""Forward passes that go on behind stored keys and values of a prefix, with the model's own code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from monosem.model import Model


class SharedLayer(DynamicLayer):
    """Keys and values [batch or 1, heads, n, width] of a prefix, handed out with the new ones behind.

    One prefix serves a batch of any size. new: keys and values of the last pass, which are not kept longer.
    """

    new: tuple[Tensor, Tensor]

    def __init__(self, keys: Tensor, values: Tensor):
        """Hold the prefix."""
        super().__init__()
        self.keys, self.values, self.is_initialized = keys, values, True

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the prefix with the new keys and values behind it."""
        assert self.keys is not None
        assert self.values is not None
        self.new = key_states, value_states
        batch = len(key_states)
        keys = torch.cat([self.keys.expand(batch, -1, -1, -1), key_states], dim=2)
        return keys, torch.cat([self.values.expand(batch, -1, -1, -1), value_states], dim=2)


def recording() -> Cache:
    """Return an empty cache that keeps the keys and values of the blocks that run."""
    return Cache(layer_class_to_replicate=DynamicLayer)


def shared(blocks: int, length: int, keys: list[Tensor], values: list[Tensor], device: torch.device) -> Cache:
    """Return the cache of a prefix of `length` tokens; keys, values: of the last blocks, [batch or 1, heads, n, width].

    blocks: of the model; those before the last `len(keys)` get zeros, which say how long the prefix is: they don't run.
    """
    unused = torch.zeros(1, 1, length, 1, device=device)
    layers: list[Any] = [SharedLayer(unused, unused) for _ in range(blocks - len(keys))]
    layers += [SharedLayer(k.to(device), v.to(device)) for k, v in zip(keys, values, strict=True)]
    return Cache(layers=layers)


@contextmanager
def going_on(model: Model, past: Cache, **more: Any) -> Iterator[None]:
    """Let every forward pass inside the block go on from `past`; more: other arguments of the model's forward."""

    def with_past(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, **more, "past_key_values": past, "use_cache": True}

    hook = model.lm.register_forward_pre_hook(with_past, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
