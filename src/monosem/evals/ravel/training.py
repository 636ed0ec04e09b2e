"""Trained edits: subspaces (DAS, MDAS), dimensions (DBM) and SAE features (MDBM), by gradients through the model.

Sources: DAS: Geiger et al. 2023 (arXiv 2303.02536). MDAS, and DBM for RAVEL: Huang et al. 2024 (arXiv 2402.17700),
section 4. MDBM on SAE features: SAEBench (Karvonen et al. 2025, arXiv 2503.09532), "RAVEL". The published ones take
thousands of steps; here steps are few and learning rates high, because a step is a pass through a language model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from monosem.evals.ravel.edits import Features, Mask, Subspace, check_size, interchanged
from monosem.sae import Sae
from monosem.store import write_bytes
from monosem.types import UserError

VERSION = 1
COOLEST = 1e-2  # temperature of the last step; the first has 1


class Behaviour(Protocol):
    """What a trained method sees of the model: pairs of activations, and how well it answers with edited ones.

    base, source: float32 [N, d_in], activations at the last token of the entity in base and source prompts.
    """

    base: Tensor
    source: Tensor

    def losses(self, at: Tensor, edited: Tensor) -> Tensor:
        """Return the cross-entropy [m] (nats) of the wanted answer, differentiable in `edited`.

        at: int64 [m], numbers of pairs; edited: [m, d_in], what replaces the base's activations. Wanted is the source's
        answer for cause pairs and the base's for isolate pairs.
        """
        ...


@dataclass(frozen=True)
class Settings:
    """Of a training. steps of `batch` pairs; lr: of Adam, falls linearly to 0; penalty: nats a feature or dimension
    that is swapped; seed: of the order and the start.
    """

    steps: int = 128
    batch: int = 32
    lr: float = 0.1
    penalty: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """Where a training is kept, so that it goes on after a crash and is never repeated.

    depends: what it depends on beyond settings and method (JSON values); a file that has other ones is not used.
    every: seconds between writes.
    """

    path: Path
    depends: dict[str, Any] = field(default_factory=dict)
    every: float = 60.0


SUBSPACE = Settings(lr=0.3)
MASK = Settings(lr=0.1, penalty=1e-3)
FEATURES = Settings(lr=0.2, penalty=1e-3)
Progress = Callable[[int], object]
EditAt = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


def silent(steps: int) -> None:
    """Say nothing."""


def train_subspace(
    behaviour: Behaviour,
    cause: Tensor,
    rank: int,
    settings: Settings = SUBSPACE,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
) -> Subspace:
    """Return the subspace of `rank` dimensions whose swap makes the model answer as wanted.

    cause: bool [N], which pairs are cause pairs. DAS where all are, MDAS where isolate pairs are among them. R is the
    orthonormal factor of a free matrix; settings.lr counts in the root mean square of its entries. progress: called
    with the steps that are done. Raises UserError for a rank that isn't between 1 and d_in, or `cause` that doesn't
    fit the pairs.
    """
    d_in = behaviour.base.shape[1]
    check_size(rank, d_in)
    drawn = torch.randn(d_in, rank, generator=torch.Generator().manual_seed(settings.seed))
    start = torch.linalg.qr(drawn).Q.to(behaviour.base) * d_in**0.5

    def edited(value: Tensor, at: Tensor, share: float) -> tuple[Tensor, Tensor]:
        R = torch.linalg.qr(value).Q.T
        return Subspace(R)(behaviour.base[at], behaviour.source[at]), value.new_zeros(())

    value = _train("subspace", behaviour, cause, start, edited, settings, checkpoint, progress)
    return Subspace(torch.linalg.qr(value).Q.T.contiguous())


def train_mask(
    behaviour: Behaviour,
    cause: Tensor,
    settings: Settings = MASK,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
) -> Mask:
    """Return the dimensions whose swap makes the model answer as wanted (differential binary masking).

    x' = (1 - s) x + s x_s with s = sigmoid(m / T), T from 1 to 0.01; the loss has settings.penalty times the sum of s
    added. Chosen is what ends with m > 0. Arguments and errors as of `train_subspace`.
    """

    def edited(value: Tensor, at: Tensor, share: float) -> tuple[Tensor, Tensor]:
        s = torch.sigmoid(value / COOLEST**share)
        base, source = behaviour.base[at], behaviour.source[at]
        return base + s * (source - base), s.sum()

    start = torch.zeros(behaviour.base.shape[1]).to(behaviour.base)
    return Mask(_train("mask", behaviour, cause, start, edited, settings, checkpoint, progress) > 0)


def train_features(
    behaviour: Behaviour,
    cause: Tensor,
    sae: Sae,
    settings: Settings = FEATURES,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
) -> Features:
    """Return the features of an SAE whose swap makes the model answer as wanted, without the error term (MDBM).

    x' = decode(z_b + s (z_s - z_b)) with s as in `train_mask`; a feature that differs in no pair only has the penalty's
    gradient and isn't chosen. Arguments and errors as of `train_subspace`. The caller's `checkpoint.depends` has to
    name the SAE.
    """
    base, source = behaviour.base, behaviour.source

    def edited(value: Tensor, at: Tensor, share: float) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            (own, other), decoded = interchanged(sae, base[at], source[at])
        s = torch.sigmoid(value / COOLEST**share)
        return decoded(own + s * (other - own)).to(base.dtype), s.sum()

    start = torch.zeros(sae.d_sae).to(base)
    value = _train("features", behaviour, cause, start, edited, settings, checkpoint, progress)
    return Features(sae, torch.nonzero(value > 0)[:, 0])


def batch_at(cause: np.ndarray, step: int, batch: int, seed: int) -> np.ndarray:
    """Return the pairs of a step, int64: half of them cause pairs, then isolate pairs; or `batch` of the only kind.

    Each kind goes through its pairs in a new random order every time. It depends on the arguments only.
    """
    kinds = [pairs for pairs in (np.flatnonzero(cause), np.flatnonzero(~cause)) if len(pairs)]
    size = -(-batch // len(kinds))
    drawn = []
    for number, pairs in enumerate(kinds):
        first = step * size
        epochs = range(first // len(pairs), (first + size - 1) // len(pairs) + 1)
        orders = [np.random.default_rng([seed, number, epoch]).permutation(pairs) for epoch in epochs]
        offset = first - epochs.start * len(pairs)
        drawn.append(np.concatenate(orders)[offset : offset + size])
    return np.concatenate(drawn)


def _train(
    method: str,
    behaviour: Behaviour,
    cause: Tensor,
    start: Tensor,
    edited: EditAt,
    settings: Settings,
    checkpoint: Checkpoint | None,
    progress: Progress,
) -> Tensor:
    """Return the trained parameters. edited: (parameters, pairs, share of training) -> activations, penalised sum."""
    is_cause = cause.cpu().numpy().astype(bool)
    if is_cause.shape != (len(behaviour.base),) or not len(is_cause):
        raise UserError(f"cause of shape {is_cause.shape}: must say of each of {len(behaviour.base)} pairs what it is")
    state = _State(start, settings, method, checkpoint)
    progress(state.step)
    for step in range(state.step, settings.steps):
        at = torch.from_numpy(batch_at(is_cause, step, settings.batch, settings.seed)).to(start.device)
        x, total = edited(state.value, at, step / max(1, settings.steps - 1))
        state.descend(behaviour.losses(at, x).mean() + settings.penalty * total)
        progress(1)
    return state.value.detach()


class _State:
    """Parameters, their Adam and the number of steps done, kept on disk between steps."""

    def __init__(self, start: Tensor, settings: Settings, method: str, checkpoint: Checkpoint | None):
        self.value = start.clone().requires_grad_()
        self.adam = torch.optim.Adam([self.value], lr=settings.lr)
        self.settings, self.checkpoint, self.step, self.written = settings, checkpoint, 0, time.monotonic()
        depends = {} if checkpoint is None else checkpoint.depends
        facts = {"version": VERSION, "method": method, "shape": list(start.shape), "settings": asdict(settings)}
        self.header = json.dumps(facts | {"depends": depends}, sort_keys=True)
        if checkpoint is not None:
            self._restore(checkpoint.path)

    def descend(self, loss: Tensor) -> None:
        """Take one step and write it down when it is the last one or the last writing was long ago."""
        self.adam.zero_grad()
        loss.backward()
        self.adam.param_groups[0]["lr"] = self.settings.lr * (1 - self.step / self.settings.steps)
        self.adam.step()
        self.step += 1
        if self.checkpoint is None:
            return
        if self.step == self.settings.steps or time.monotonic() - self.written >= self.checkpoint.every:
            moments = self.adam.state[self.value]
            tensors = {"value": self.value.detach(), "exp_avg": moments["exp_avg"], "exp_avg_sq": moments["exp_avg_sq"]}
            data = save(
                {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
                {"header": self.header, "step": str(self.step)},
            )
            write_bytes(self.checkpoint.path, data)
            self.written = time.monotonic()

    def _restore(self, path: Path) -> None:
        """Take over what is on disk; a file that is damaged or of another training is left alone until it's replaced.

        Adam's state is loaded as torch writes it, so that what follows is bit for bit what would have followed.
        """
        try:
            with safe_open(path, framework="pt") as file:
                facts = file.metadata() or {}
                if facts.get("header") != self.header:
                    return
                step = int(facts["step"])
                tensors = {name: file.get_tensor(name) for name in ("value", "exp_avg", "exp_avg_sq")}
        except (SafetensorError, OSError, KeyError, ValueError):
            return
        self.step = step
        with torch.no_grad():
            self.value.copy_(tensors.pop("value"))
        state = self.adam.state_dict()
        state["state"] = {0: {"step": torch.tensor(float(step)), **tensors}}
        self.adam.load_state_dict(state)
