"""One run in training: its weights, optimiser, counters and log. `Trainer.step` advances it by one batch.

It knows no variant: it asks for a loss, clips and steps, keeps decoder rows at norm 1 where the variant says so, lets
the variant settle what no gradient reaches, and counts how long each feature has been silent. In a mesh it has a part
of the features, or sees a part of each batch.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monosem.activations import Activations
from monosem.kernels.memory import on_large_pages
from monosem.kernels.settings import describe
from monosem.kernels.threads import own_threads
from monosem.mesh import ALONE, Axis, Mesh, per_token, token_mean
from monosem.normaliser import Kind, Normaliser
from monosem.optimiser import make_optimiser
from monosem.sae import Sae
from monosem.types import UserError
from monosem.variants import DenseCodes, Loss, Recipe, Step, Variant, Weights

RESAMPLE_ROWS = 65_536  # tokens whose loss decides where dead features are drawn anew (819,200 in the source)


@dataclass(frozen=True)
class RunSpec:
    """One SAE to train: variant with hyperparameters, width, seed, optimiser settings.

    key: hash of everything its weights depend on, known once the activations are.
    """

    name: str
    variant_name: str
    variant: Variant
    d_sae: int
    seed: int
    recipe: Recipe
    key: str = ""


@dataclass(frozen=True)
class Plan:
    """What all runs share. steps: batches of batch_size tokens; facts: recorded with each SAE (site, model ...)."""

    batch_size: int
    steps: int
    normalise: Kind = "mean_norm"
    shuffle_rows: int = 0
    shuffle_seed: int = 0
    dead_after: int = 10_000_000
    log_every: int = 0
    checkpoint_seconds: float = 60.0
    facts: dict[str, Any] = field(default_factory=dict)

    def learning_rate(self, recipe: Recipe, step: int) -> float:
        """Return lr at `step`: linear warm-up, constant, linear fall to 0 over the last `lr_decay` of the steps."""
        up = min(1.0, (step + 1) / recipe.lr_warmup) if recipe.lr_warmup else 1.0
        tail = recipe.lr_decay * self.steps
        down = min(1.0, (self.steps - step) / tail) if tail > 0 else 1.0
        return recipe.lr * up * down


@dataclass(frozen=True)
class Preparation:
    """What is estimated once, before the first step, from a sample of the training activations.

    variance: total variance of the normalised activations around their mean; sample: normalised rows [<= 32,768, d_in].
    """

    normaliser: Normaliser
    variance: float
    sample: Tensor


class Trainer:
    """One run: weights, optimiser state, silence counters and log. `step` advances it by one batch."""

    def __init__(self, spec: RunSpec, plan: Plan, start: Preparation, device: torch.device, mesh: Mesh = ALONE):
        """Initialise the weights from the run's seed. mesh: of processes that train this SAE together."""
        self.spec, self.plan, self.start, self.mesh = spec, plan, start, mesh
        d_in = start.sample.shape[1]
        spec.variant.check(d_in, spec.d_sae)
        parts = mesh.features.size
        if Axis(parts, parts - 1).span(spec.d_sae).start >= spec.d_sae:
            raise UserError(f"run {spec.name}: d_sae = {spec.d_sae} can't be split by feature_parallel = {parts}")
        generator = torch.Generator().manual_seed(spec.seed)
        weights = spec.variant.init(d_in, spec.d_sae, generator, start.sample)
        self.weights: Weights = {}
        for name, w in weights.items():  # W_enc feature by feature, as the kernels go through it
            moved = self.own(name, w).to(device)
            stored = on_large_pages(moved.t()).t() if name == "W_enc" else on_large_pages(moved)
            self.weights[name] = stored.requires_grad_(name not in spec.variant.buffers)
        self.silent = self.own("silent", torch.zeros(spec.d_sae, dtype=torch.int64, device=device)).clone()
        r = spec.recipe
        unit = spec.variant.constraint() == "unit"
        trained = {name: w for name, w in self.weights.items() if w.requires_grad}
        with mesh.entered():
            self.optimiser = make_optimiser(trained, (r.beta1, r.beta2), r.eps, unit, spec.variant.whole)
        self.log: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.norm = math.inf  # of the last gradient, or a bound on it
        self.sparse = False  # whether the last step's codes were, so that the kernels do nearly all of the work
        self.latest: dict[str, float] = {}

    def step(self, x: Tensor, index: int, log: bool) -> None:
        """Train on one batch of normalised activations [batch_size, d_in].

        Raises UserError when the loss is not finite.
        """
        began = time.perf_counter()
        with own_threads() if self.sparse else nullcontext(), self.mesh.entered():
            self._step(x, index, log)
        self.seconds += time.perf_counter() - began

    def _step(self, x: Tensor, index: int, log: bool) -> None:
        plan, spec = self.plan, self.spec
        at = Step(index, plan.steps, self.start.variance, self.silent, plan.dead_after)
        with self.optimiser.collecting():
            loss = spec.variant.loss(self.weights, x, at)
        self.sparse = not isinstance(loss.codes, DenseCodes)
        total, clip = loss.total, spec.recipe.clip
        # between logged steps, a bound on the norm will do where it rules clipping out
        enough = 0.0 if log or 0 < clip < self.norm else clip or math.inf
        norm = self.norm = self.optimiser.backward(total, enough)
        if not math.isfinite(norm):
            raise UserError(
                f"run {spec.name}: loss {float(total.detach()):.4g} gradient norm {norm:.4g} at step {index}; "
                "lower its lr or coefficient, or set clip"
            )
        if log:
            self._record(loss, x, index, norm)
        self.optimiser.step(plan.learning_rate(spec.recipe, index), clip / norm if 0 < clip < norm else 1.0)
        with torch.no_grad():
            for name, settled in spec.variant.settle(self.weights, loss, at).items():
                self.weights[name].copy_(settled)
            data = self.mesh.data
            self.silent.add_(len(x) * data.size).masked_fill_(data.reduced(loss.codes.fired()), 0)

    @torch.no_grad()
    def _record(self, loss: Loss, x: Tensor, index: int, norm: float) -> None:
        """Log this batch, before the step that it causes."""
        error = x - self.spec.variant.decode(self.weights, loss.codes)
        nmse = float(token_mean(error.square().sum(1))) / self.start.variance
        self.latest = {"l0": float(per_token(loss.codes.values > 0, len(x))), "nmse": nmse}
        terms = {f"loss_{name}": float(value) for name, value in loss.terms.items()}
        self.log.append(
            {
                "step": index,
                "tokens": (index + 1) * self.plan.batch_size,
                "loss": float(loss.total),
                **terms,
                **self.latest,
                "dead": int(self.mesh.features.reduced((self.silent > self.plan.dead_after).sum())),
                "lr": self.plan.learning_rate(self.spec.recipe, index),
                "gradient_norm": norm,
                "tokens_per_second": index * self.plan.batch_size / max(self.seconds, 1e-9),
            }
        )

    @torch.no_grad()
    def maybe_resample(self, store: Activations, index: int) -> None:
        """Give dead features new directions if the variant asks for it before this step, and clear their moments."""
        plan = self.plan
        if not self.spec.variant.resamples(Step(index, plan.steps, self.start.variance, self.silent, plan.dead_after)):
            return
        rows = np.random.default_rng((self.spec.seed, index)).choice(
            store.n, size=min(store.n, RESAMPLE_ROWS), replace=False
        )
        x = self.start.normaliser.apply(store.rows(np.sort(rows)).to(self.silent.device))[0]
        generator = torch.Generator().manual_seed(self.spec.seed * 1_000_003 + index)
        dead = self.silent > self.plan.dead_after
        new, reset = self.spec.variant.resample(self.everything(), x, self._all("silent", dead), generator)
        moments = self.optimiser.moments()
        for name, weight in self.weights.items():
            weight.copy_(self.own(name, new[name]))
            for moment in moments.get(name, ()):
                moment[self.own(name, reset[name])] = 0
        self.silent[dead] = 0

    def split_along(self, name: str) -> int | None:
        """Return the dimension of an entry of the weights along which features are split; None for what is whole."""
        return None if name in self.spec.variant.whole else int(name == "W_enc")

    def own(self, name: str, value: Tensor) -> Tensor:
        """Return this process's part of a tensor that covers all features."""
        along, span = self.split_along(name), self.mesh.features.span(self.spec.d_sae)
        return value if along is None else value.narrow(along, span.start, span.stop - span.start)

    def _all(self, name: str, value: Tensor, by_first: bool = False) -> Tensor:
        """Return the tensor that covers all features, from the parts of all processes."""
        along, features = self.split_along(name), self.mesh.features
        if along is None or features.size == 1:
            return value.detach()
        rows = value.detach().movedim(along, 0).contiguous()
        shape = rows.shape[1:]
        rows = rows.cpu() if by_first else rows
        return features.joined(rows.flatten(), by_first=by_first).view(-1, *shape).movedim(0, along)

    def everything(self, *, by_first: bool = False) -> Weights:
        """Return the weights of all features. All processes of a mesh have to call this.

        by_first: only the first process gets them, in the CPU's memory; the others get their own part.
        """
        return {name: self._all(name, w, by_first) for name, w in self.weights.items()}

    def state(self) -> dict[str, Tensor]:
        """Return everything that the rest of training depends on, as tensors."""
        tensors = {f"w.{name}": w.detach() for name, w in self.weights.items()}
        for name, (first, second) in self.optimiser.moments().items():
            tensors |= {f"adam.{name}.first": first, f"adam.{name}.second": second}
        return {**tensors, "silent": self.silent}

    def blank_state(self) -> dict[str, Tensor]:
        """Return tensors in the shapes of a state, to be filled."""
        like = {name: torch.empty(w.shape, dtype=w.dtype) for name, w in self.weights.items()}
        tensors = {f"w.{name}": w for name, w in like.items()}
        for name in self.optimiser.weights:
            tensors |= {f"adam.{name}.{which}": torch.empty_like(like[name]) for which in ("first", "second")}
        return {**tensors, "silent": torch.empty(self.silent.shape, dtype=torch.int64)}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Take over a state written by `state` and its log."""
        for name, w in self.weights.items():
            w.copy_(tensors[f"w.{name}"])
        moments = {
            name: (tensors[f"adam.{name}.first"], tensors[f"adam.{name}.second"]) for name in self.optimiser.weights
        }
        self.optimiser.restore(moments, facts["steps"])
        self.silent.copy_(tensors["silent"])
        self.log, self.seconds = facts["log"], facts["seconds"]
        self.sparse = facts.get("sparse", False)  # which threads the next step has: sums depend on it in the last bits

    def sae(self) -> Sae:
        """Return the trained SAE with what is known of its making. In a mesh, only the first process has it whole."""
        facts = {
            "name": self.spec.name,
            "seed": self.spec.seed,
            "train_key": self.spec.key,
            "tokens": self.plan.steps * self.plan.batch_size,
            "batch_size": self.plan.batch_size,
            "recipe": {name: getattr(self.spec.recipe, name) for name in Recipe.__dataclass_fields__},
            "train_tokens_per_second": self.plan.steps * self.plan.batch_size / max(self.seconds, 1e-9),
            "kernels": describe(self.silent.device),
            **self.plan.facts,
        }
        weights = {
            name: w for name, w in self.everything(by_first=True).items() if name not in self.spec.variant.scratch
        }
        return Sae(self.spec.variant_name, self.spec.variant, weights, self.start.normaliser, facts)
