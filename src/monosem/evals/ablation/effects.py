"""What an ablation does: effects on logits and loss of vectors that are taken out of the site at one position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from monosem.evals.ablation.positions import SPAN
from monosem.evals.ablation.sparsity import centre, from_norms
from monosem.evals.ablation.suffix import Suffix
from monosem.heldout import active_entries
from monosem.kernels.threads import own_threads, run_all
from monosem.sae import Sae

LOGITS = 2**25  # logits held at once: 128 MiB in float32
TOP = 10  # affected tokens that are kept of each ablation, on each of four sides


class Top(NamedTuple):
    """Tokens and by how much the feature that was taken out had raised (or lowered) their logits."""

    tokens: list[int]
    by: list[float]


@dataclass(frozen=True)
class Effect:
    """The effect D [SPAN, V] of one ablation on the logits, medians subtracted.

    sparsity: NaN where there is no effect; size: |D|_2; loss: rise of the mean cross-entropy of the next tokens (nats);
    top: by side; `here` is the ablated position, `later` the mean over those after it.
    """

    sparsity: float
    size: float
    loss: float
    top: dict[str, Top]


@dataclass(frozen=True, eq=False)
class Active:
    """What is active at some positions: position number, feature, activation f |w| in normalised units, each [e], and
    what the feature adds to the reconstruction there in raw units, [e, d_in].
    """

    at: np.ndarray
    feature: np.ndarray
    activation: np.ndarray
    added: Tensor


@torch.no_grad()
def active_features(sae: Sae, x: Tensor) -> Active:
    """Return the features that are active on raw activations x [n, d_in], with their true coefficients.

    Input normalisation is undone, and decoder rows count with their length.
    """
    normalised, undo = sae.normaliser.apply(x)
    at, feature, value = active_entries(sae.variant.encode(sae.weights, normalised))
    ones = torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
    scale = (undo(ones) - undo(torch.zeros_like(ones)))[:, 0]
    rows = sae.weights["W_dec"][feature]
    activation = value * rows.norm(dim=1)
    order = torch.argsort(at * sae.d_sae + feature)
    added = ((value * scale[at])[:, None] * rows)[order]
    at, feature, activation = (values[order].cpu().numpy() for values in (at, feature, activation))
    return Active(at, feature, activation, added)


@torch.no_grad()
def ablate(suffix: Suffix, removed: Tensor) -> Iterator[Effect]:
    """Yield the effect of taking each of `removed [m, d_in]` out of the site, alone.

    The untouched model is a row of every batch, so that rounding is the same on both sides of the difference.
    """
    step = max(1, LOGITS // (SPAN * vocabulary_size(suffix)) - 1)
    for some in removed.split(step):
        logits = suffix.logits(torch.cat([torch.zeros_like(some[:1]), some])).float()
        base = logits[0]
        loss = float(suffix.loss(base))
        with own_threads():
            yield from run_all([partial(_effect, suffix, one, base, loss) for one in logits[1:]])


def vocabulary_size(suffix: Suffix) -> int:
    """Return how many logits a position has."""
    return suffix.model.lm.get_output_embeddings().weight.shape[0]


@torch.no_grad()
def _effect(suffix: Suffix, logits: Tensor, base: Tensor, base_loss: float) -> Effect:
    """Return the effect of one ablation; logits [SPAN, V] are overwritten. Each is small enough for the cache."""
    loss = float(suffix.loss(logits)) - base_loss
    logits -= base
    l1, squares = centre(logits)
    sparsity = from_norms(np.array(l1), np.array(squares), logits.shape)
    top = {}
    for name, change in (("here", logits[0]), ("later", logits[1:].mean(0))):
        for side, falls in (("raised", True), ("lowered", False)):  # what falls without it, the feature had raised
            by, tokens = change.topk(min(TOP, len(change)), largest=not falls)
            top[f"{side}_{name}"] = Top(tokens.tolist(), (-by).tolist())
    return Effect(float(sparsity), squares**0.5, loss, top)
