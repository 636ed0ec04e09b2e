"""A transformer of one layer that adds modulo p: a model whose circles are known, trained in seconds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

D, HEADS = 64, 4
Edit = Callable[[Tensor], Tensor]


class Adder(nn.Module):
    """Reads a, b and "=", answers a + b mod p. No normalisation, as in studies of this task."""

    def __init__(self, p: int):
        super().__init__()
        self.p = p
        self.embed = nn.Parameter(torch.randn(p + 1, D) / math.sqrt(D))
        self.place = nn.Parameter(torch.randn(3, D) / math.sqrt(D))
        self.qkv, self.out = (nn.Parameter(torch.randn(D, n * D) / math.sqrt(D)) for n in (3, 1))
        self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)
        self.unembed = nn.Parameter(torch.randn(D, p) / math.sqrt(D))

    def forward(self, a: Tensor, b: Tensor, edit: Edit | None = None) -> Tensor:
        """Return the logits at "=" [n, p]; edit: of a's embedding [n, D]."""
        first = self.embed[a]
        first = first if edit is None else edit(first)
        equals = self.embed[torch.full_like(a, self.p)]
        x = torch.stack([first, self.embed[b], equals], 1) + self.place
        q, k, v = (x @ self.qkv).unflatten(2, (3, HEADS, D // HEADS)).unbind(2)
        weights = torch.einsum("nhd,nkhd->nhk", q[:, -1], k) / math.sqrt(D // HEADS)
        last = x[:, -1] + torch.einsum("nhk,nkhd->nhd", weights.softmax(2), v).flatten(1) @ self.out
        return (last + self.down(relu(self.up(last)))) @ self.unembed


@dataclass(frozen=True)
class Trained:
    """The model, and how often it is right on the pairs that it hasn't seen."""

    model: Adder
    right: float


def trained(p: int = 31, steps: int = 1500, seed: int = 0) -> Trained:
    """Train on 80 % of all pairs at once, with strong weight decay, until the others are right."""
    torch.manual_seed(seed)
    model = Adder(p)
    a, b = (t.flatten() for t in torch.meshgrid(torch.arange(p), torch.arange(p), indexing="ij"))
    order = torch.randperm(p * p)
    seen, unseen = order[: int(0.8 * p * p)], order[int(0.8 * p * p) :]
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1.0, betas=(0.9, 0.98))
    right = 0.0
    for step in range(steps):
        loss = cross_entropy(model(a[seen], b[seen]), (a + b)[seen] % p)
        adam.zero_grad()
        loss.backward()
        adam.step()
        if step % 100 == 99:
            with torch.no_grad():
                right = float((model(a[unseen], b[unseen]).argmax(1) == (a + b)[unseen] % p).double().mean())
    return Trained(model, right)


def frequencies(means: Tensor) -> Tensor:
    """Return the share of the variance of word means [m, d] at 1, 2, ... m // 2 turns, [m // 2]."""
    spectrum = torch.fft.rfft(means.double() - means.double().mean(0), dim=0).abs().square().sum(1)[1:]
    if len(means) % 2 == 0:
        spectrum[-1] /= 2
    return spectrum / spectrum.sum()
