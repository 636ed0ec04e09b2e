"""Made-up activations with a known dictionary, at three sites of a model that doesn't exist."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from monosem.doctor import Sample

SITE, EARLIER, LATER = (f"blocks.{layer}.hook_resid_post" for layer in (1, 0, 2))
D_IN, FEATURES, ACTIVE, CONTEXT = 48, 96, 5.0, 16


def activations(tokens: int, seed: int) -> Tensor:
    """Return sparse sums of 96 directions and a mean, [tokens, 48], of norm about 100; the same directions for all."""
    fixed = torch.Generator().manual_seed(0)
    directions = normalize(torch.randn(FEATURES, D_IN, generator=fixed), dim=1)
    mean = 2 * normalize(torch.randn(D_IN, generator=fixed), dim=0)
    chance = torch.linspace(0.2, 0.02, FEATURES)
    generator = torch.Generator().manual_seed(seed)
    on = torch.rand(tokens, FEATURES, generator=generator) < chance * ACTIVE / chance.sum()
    size = 1 + torch.rand(tokens, FEATURES, generator=generator)
    noise = 0.05 * torch.randn(tokens, D_IN, generator=generator)
    return 40 * ((on * size) @ directions + mean + noise)


def sample(tokens: int = 2560, asked: str = SITE) -> Sample:
    """Return held-out activations: the blocks beside are alike but not the same, position 0 is an attention sink."""
    x = activations(tokens, seed=1)
    generator = torch.Generator().manual_seed(2)
    text = torch.arange(tokens) % CONTEXT != 0
    earlier = 0.9 * x + 25 * torch.randn(tokens, D_IN, generator=generator)
    later = 1.1 * x + 25 * torch.randn(tokens, D_IN, generator=generator)
    x[~text] = 100 * x[~text].norm(dim=1, keepdim=True) * normalize(torch.randn(D_IN, generator=generator), dim=0)
    sites = {SITE: x, EARLIER: earlier, LATER: later}
    group = torch.arange(tokens) // 64
    return Sample({asked: sites.pop(asked), **sites}, group, int(group.max()) + 1, text, CONTEXT)
