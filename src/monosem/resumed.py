"""Forward passes that go on behind stored keys and values of a prefix, or from a site on, with the model's own code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from monosem.model import Edit, Model, Prefix, Site


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


class Suffix:
    """Forward passes of some prompts from one position and one site on; what lies before is run once for all edits.

    tokens: of the prompts from that position on, int64 [rows, length].
    """

    def __init__(self, model: Model, tokens: Tensor, site: Site, start: int):
        """Run what no edit changes. tokens: whole prompts [rows, length]; start: the first position that is edited."""
        self.model, self.start, self.tokens = model, start, tokens[:, start:]
        prefix = model.prefix(tokens, site)
        self.resume, self.in_tuples = site.resume, prefix.in_tuples
        self.hidden = None if prefix.hidden is None else prefix.hidden[:, start:]
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        if self.resume < len(model.blocks):
            record, before = recording(), tokens[:, :start]
            hidden = None if prefix.hidden is None else prefix.hidden[:, :start]
            done = Prefix(before, hidden, prefix.activations[:, :start], self.resume, self.in_tuples)
            with going_on(model, record):
                model.run(before, None, None, done, rows=torch.zeros_like(before, dtype=torch.bool))
            layers: list[Any] = record.layers[self.resume :]
            self.keys, self.values = [layer.keys for layer in layers], [layer.values for layer in layers]

    def logits(self, edits: Sequence[tuple[Site, Edit]], copies: int) -> Tensor:
        """Return the logits at the last position, [copies, rows, V].

        edits: see all copies of all rows, [copies * rows, length, d]; sites at or behind the one that was given.
        """
        tokens, prefix = self.tokens.repeat(copies, 1), None
        if self.hidden is not None:
            hidden = self.hidden.repeat(copies, 1, 1)
            prefix = Prefix(tokens, hidden, hidden, self.resume, self.in_tuples)
        kept = [[one.repeat(copies, 1, 1, 1) for one in kind] for kind in (self.keys, self.values)]
        last = torch.zeros(tokens.shape, dtype=torch.bool, device=self.model.device)
        last[:, -1] = True
        past = shared(len(self.model.blocks), self.start, *kept, device=self.model.device)
        with going_on(self.model, past):
            logits = self.model.run(tokens, prefix=prefix, rows=last, more=edits)
        return logits.unflatten(0, (copies, len(self.tokens)))
