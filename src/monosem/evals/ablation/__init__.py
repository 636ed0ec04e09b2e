"""Ablation effects: one feature at a time is taken out at one token (Gao et al. 2024). See docs/ablation.md.

One row an ablation: the effect on the logits of that position and of the 15 after it, its sparsity and size, and the
effect on the loss, exactly and to first order.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from monosem.evals import Evaluation, Inputs, Judged, Result, RunInfo
from monosem.evals.ablation.charts import ablation_charts
from monosem.evals.ablation.effects import Active, Effect, ablate, active_features
from monosem.evals.ablation.sparsity import effect_sparsity
from monosem.evals.ablation.starts import Shared, baselines, shared_work
from monosem.evals.ablation.table import as_table, scalars_of
from monosem.formats.saelens import load_sae
from monosem.schema import Chart
from monosem.sums import read_heldout, read_sums
from monosem.types import Estimate, UserError

__all__ = ["Ablation", "effect_sparsity"]

Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class _Prepared:
    """What serves all runs. shared: sparsities of coordinates and principal components by kind, [positions, number];
    tokens: held-out tokens that sums are over.
    """

    inputs: Inputs
    common: Shared
    shared: dict[str, np.ndarray]
    tokens: int


@dataclass(frozen=True)
class Ablation(Evaluation):
    """Ablation-effect sparsity (Gao et al. 2024).

    sequences: held-out sequences, one position of each. features: active features a position that are ablated, at
    most, drawn uniformly. baselines: directions a position of each kind that are ablated for comparison. method:
    `exact`, or `gradient` for first-order effects on the loss alone.
    """

    needs = ("sums", "activations", "sae", "model")
    sequences: Count = 100
    features: Count = 8
    baselines: Count = 2
    method: Literal["exact", "gradient"] = "exact"
    seed: Annotated[int, Field(ge=0)] = 0

    def prepare(self, inputs: Inputs) -> _Prepared:
        if inputs.model is None:
            raise UserError("evaluation ablation: runs the study's language model, and there is none")
        tokens = int(read_heldout(inputs.folder).n.sum())
        exact = self.method == "exact"
        arguments = inputs.site, self.sequences, self.seed, exact, inputs.ticker
        common, store = shared_work(inputs.folder, inputs.model(), *arguments)
        found = baselines(common, store, self.baselines, inputs.folder, inputs.ticker) if exact else {}
        return _Prepared(inputs, common, found, tokens)

    def run(self, info: RunInfo, prepared: _Prepared) -> Result:
        began, common = time.perf_counter(), prepared.common
        positions = common.positions
        sae = load_sae(info.folder).to(common.x.device)
        active = active_features(sae, common.x)
        rows = self._feature_rows(active, common)
        if self.method == "exact":
            rows += self._ablated(info.name, active, rows, prepared)
        table = as_table(rows)
        draws = prepared.inputs.bootstrap
        scalars, reasons = scalars_of(table, positions.doc, prepared.shared, draws, self.method == "exact")
        sums, _ = read_sums(prepared.inputs.folder, info.name)
        scalars["l0"] = Estimate.exact(float(sums.active.sum() / prepared.tokens), prepared.tokens)
        scalars["seconds"] = Estimate.exact(time.perf_counter() - began, len(positions))
        return Result(scalars, table, reasons)

    def figure(self, judged: list[Judged]) -> list[Chart]:
        return ablation_charts(judged)

    def _feature_rows(self, active: Active, common: Shared) -> list[dict[str, Any]]:
        """Return a row for every active feature at every position, with its first-order effect."""
        first_order = (active.added * common.gradients[active.at]).sum(1, dtype=torch.float64).tolist()
        norms = active.added.norm(dim=1).tolist()
        return [
            {
                **_place(common, int(at)),
                "kind": "feature",
                "feature": int(feature),
                "activation": float(activation),
                "norm": norm,
                "first_order": effect,
            }
            for at, feature, activation, norm, effect in zip(
                active.at, active.feature, active.activation, norms, first_order, strict=True
            )
        ]

    def _ablated(
        self, run: str, active: Active, rows: list[dict[str, Any]], prepared: _Prepared
    ) -> list[dict[str, Any]]:
        """Ablate sampled features and as long random directions at every position.

        Writes the features' effects into their rows; returns the rows of the random directions.
        """
        common, more = prepared.common, []
        plans = [self._sample(active, common, i) for i in range(len(common.positions))]
        with prepared.inputs.ticker.bar(run, sum(len(removed) for _, removed in plans), "ablations") as bar:
            for i, (chosen, removed) in enumerate(plans):
                if not len(removed):
                    continue
                suffix = common.suffix(i)
                for number, effect in enumerate(ablate(suffix, removed)):
                    if number < len(chosen):
                        rows[chosen[number]] |= _columns(effect)
                    else:
                        more.append({**_place(common, i), "kind": "random", **_columns(effect, tops=False)})
                        more[-1]["norm"] = float(removed[number].norm())
                    bar.add(1)
        return more

    def _sample(self, active: Active, common: Shared, i: int) -> tuple[np.ndarray, Tensor]:
        """Return which active entries are ablated at a position, and what is removed: theirs, then random directions.

        The directions are the same for all runs; their lengths are those of the first ablated features.
        """
        rng = np.random.default_rng([self.seed, int(common.positions.row[i]), 2])
        directions = torch.from_numpy(rng.normal(size=(self.baselines, common.x.shape[1]))).to(active.added)
        here = np.flatnonzero(active.at == i)
        chosen = rng.choice(here, min(self.features, len(here)), replace=False) if len(here) else here
        removed = active.added[chosen]
        some = removed[: self.baselines]
        like = torch.nn.functional.normalize(directions[: len(some)], dim=1) * some.norm(dim=1, keepdim=True)
        return chosen, torch.cat([removed, like])


def _place(common: Shared, i: int) -> dict[str, int]:
    p = common.positions
    return {"sequence": int(p.row[i]), "doc": int(p.doc[i]), "pos": int(p.pos[i]), "token": int(p.token[i])}


def _columns(effect: Effect, tops: bool = True) -> dict[str, Any]:
    out: dict[str, Any] = {"sparsity": effect.sparsity, "size": effect.size, "loss": effect.loss}
    if tops:
        for side, top in effect.top.items():
            out |= {side: top.tokens, f"{side}_by": top.by}
    return out
