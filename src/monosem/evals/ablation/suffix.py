"""The part of a forward pass that an ablation changes: blocks after the site, from the ablated position on.

Earlier positions are not affected, so their keys and values are computed once a sequence and shared by all ablations;
neither are the blocks before the site. The model's own code runs, on a cache that hands out the shared prefix.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monosem.evals.ablation.positions import SPAN
from monosem.model import Model, Prefix, Site
from monosem.resumed import going_on, recording, shared
from monosem.types import UserError


@dataclass(frozen=True, eq=False)
class Start:
    """What ablations at one position start from, on disk between runs.

    x: activation at the site, [d_in]; hidden: what enters block `resume` at the SPAN positions, [SPAN, d_model], None
    when that is block 0; keys, values: of the blocks from `resume` on at the positions before, each [heads, n, width].
    """

    x: Tensor
    hidden: Tensor | None
    keys: list[Tensor]
    values: list[Tensor]
    in_tuples: bool


def in_float32(model: Model) -> Model:
    """Return the model in float32 arithmetic: itself, or a copy of the same weights."""
    if model.dtype == torch.float32:
        return model
    if getattr(model.lm, "hf_device_map", None):
        raise UserError(
            f"model.device_map: ablation computes in float32, and no copy of a model that is spread can be made; set "
            f'model.dtype = "float32" (it is {str(model.dtype).removeprefix("torch.")})'
        )
    return Model(copy.deepcopy(model.lm).float(), model.tokenizer, model.name, model.identity)


@torch.no_grad()
def start_at(model: Model, site: Site, tokens: Tensor, at: int) -> Start:
    """Run `tokens [1, at + SPAN + 1]` once and keep what ablations at position `at` start from."""
    prefix = model.prefix(tokens, site)
    before = tokens[:, :at]
    record = recording()
    blocks = len(model.blocks)
    hidden = None if prefix.hidden is None else prefix.hidden[:, at : at + SPAN]
    if site.resume < blocks:
        earlier = Prefix(
            before,
            None if prefix.hidden is None else prefix.hidden[:, :at],
            prefix.activations[:, :at],
            site.resume,
            prefix.in_tuples,
        )
        with going_on(model, record):
            model.run(before, None, None, earlier, rows=torch.zeros_like(before, dtype=torch.bool))
    layers: list[Any] = record.layers[site.resume :]
    return Start(
        prefix.activations[0, at].float(),
        None if hidden is None else hidden[0],
        [layer.keys[0] for layer in layers],
        [layer.values[0] for layer in layers],
        prefix.in_tuples,
    )


class Suffix:
    """Runs ablations at one position. tokens: of the sequence, [1, at + SPAN + 1].

    targets: the tokens that follow the SPAN positions, [SPAN].
    """

    def __init__(self, model: Model, site: Site, tokens: Tensor, at: int, start: Start):
        """Put the prefix where the model's attention finds it."""
        self.model, self.site, self.start = model, site, start
        self.tokens = tokens[:, at : at + SPAN].to(model.device)
        self.targets = tokens[0, at + 1 : at + SPAN + 1].to(model.device)
        stored = [[one[None] for one in kind] for kind in (start.keys, start.values)]
        self.past = shared(len(model.blocks), at, *stored, device=model.device)

    def logits(self, removed: Tensor) -> Tensor:
        """Return the logits [m, SPAN, V] with each of `removed [m, d_in]` subtracted from the site at the position."""
        batch = len(removed)
        tokens = self.tokens.expand(batch, -1)
        prefix = None
        if self.start.hidden is not None:
            hidden = self.start.hidden.to(self.model.device).expand(batch, -1, -1)
            prefix = Prefix(tokens, hidden, hidden, self.site.resume, self.start.in_tuples)

        def edit(activations: Tensor) -> Tensor:
            first = activations[:, :1] - removed[:, None].to(activations.dtype)
            return torch.cat([first, activations[:, 1:]], dim=1)

        with going_on(self.model, self.past):
            return self.model.run(tokens, self.site, edit, prefix)

    def loss(self, logits: Tensor) -> Tensor:
        """Return the mean cross-entropy of the next tokens over the positions; logits [..., SPAN, V] -> [...]."""
        chosen = logits.gather(-1, self.targets.expand(logits.shape[:-1])[..., None])[..., 0]
        return (logits.logsumexp(dim=-1) - chosen).double().mean(-1)

    def gradient(self) -> Tensor:
        """Return the gradient of the loss by what is removed, [d_in]: removing v does `g . v` to first order."""
        removed = torch.zeros_like(self.start.x, device=self.model.device)[None].requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.loss(self.logits(removed)).sum(), removed)
        return gradient[0]
