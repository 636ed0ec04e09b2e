"""monosem's own training step, and the floor beside it: the encoder product alone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from workload import Check, Setting, Start, variant_of

NAME = "monosem"
PRODUCT = "encoder-product"
STEPS = 1_000_000  # of a long training; the benchmark runs in the middle of it, where every warm-up is over


class Ours:
    """`monosem.train.Trainer` from the start's weights, with the variant's own recipe but for the learning rate.

    own: take the start's weights over instead of copying them (they are trained in place). reference: the slow path.
    """

    name = NAME
    note = ""

    def __init__(self, setting: Setting, start: Start, *, reference: bool = False, own: bool = False):
        """Build the trainer."""
        from monosem.kernels.settings import reference_kernels
        from monosem.normaliser import Normaliser
        from monosem.trainer import Plan, Preparation, RunSpec, Trainer

        name, variant = variant_of(setting)
        weights = start.weights if own else {key: w.clone() for key, w in start.weights.items()}
        # the object's own attribute comes before the class's method: the type stays, the weights are given
        object.__setattr__(variant, "init", lambda *_: weights)
        recipe = replace(variant.recipe(setting.d_sae), lr=setting.lr)
        spec = RunSpec(NAME, name, variant, setting.d_sae, setting.seed, recipe)
        preparation = Preparation(Normaliser(), start.variance, start.pool[: setting.batch])
        plan = Plan(setting.batch, STEPS)
        self.kernels = partial(reference_kernels, reference)
        with self.kernels():
            self.trainer = Trainer(spec, plan, preparation, torch.device("cpu"))
        weights.clear()  # the trainer has its own copy
        self.trainer.silent[start.dead] = plan.dead_after + 1
        self.index = STEPS // 2

    def step(self, x: Tensor) -> None:
        """Train on one batch [batch, d_in]."""
        with self.kernels():
            self.trainer.step(x, self.index, False)
        self.index += 1

    def facts(self) -> dict[str, Any]:
        """Return how our kernels work, for the record."""
        from monosem.kernels.settings import describe

        with self.kernels():
            return describe()

    @torch.no_grad()
    def check(self, x: Tensor) -> Check:
        """Return what the variant computes on a batch [batch, d_in]."""
        from monosem.variants import Step

        trainer = self.trainer
        variant, plan = trainer.spec.variant, trainer.plan
        at = Step(self.index, STEPS, trainer.start.variance, trainer.silent, plan.dead_after)
        with self.kernels():
            loss = variant.loss(trainer.weights, x, at)
            error = x - variant.decode(trainer.weights, loss.codes)
        aux = loss.terms.get("auxk")
        return Check(
            mse=float(error.square().sum() / len(x)),
            l0=float(loss.codes.l0()),
            aux=None if aux is None else float(aux) / variant.auxk_alpha,
            dead=int((trainer.silent > plan.dead_after).sum()),
        )


class EncoderProduct:
    """One product [batch, d_in] x [d_in, d_sae] in float32 into a matrix that is there already."""

    name = PRODUCT
    note = "torch.mm into an allocated matrix: the least that a dense encoder costs"

    def __init__(self, setting: Setting, start: Start):
        """Allocate both matrices."""
        self.weight = start.weights["W_enc"].clone()
        self.out = torch.empty(setting.batch, setting.d_sae)

    def step(self, x: Tensor) -> None:
        """Multiply one batch [batch, d_in]."""
        torch.mm(x, self.weight, out=self.out)
