"""Features of several dimensions (Engels et al. 2024): which SAEs keep a circle of the model together, and is it used?

One row a plane, point, word or score. See docs/multidim.md.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
import torch
from pydantic import Field

from monosem.evals import Evaluation, Inputs, Judged, Kept, Result, RunInfo
from monosem.evals.multidim.asking import Asked, activations, ask
from monosem.evals.multidim.charts import multidim_charts
from monosem.evals.multidim.circle import fit_circle, order
from monosem.evals.multidim.clusters import cluster_decoder
from monosem.evals.multidim.discovery import (
    GALLERY,
    Cluster,
    above_chance,
    is_irreducible,
    judged,
    plane_rows,
    point_rows,
)
from monosem.evals.multidim.held import HELD, Words, held
from monosem.evals.multidim.irreducible import epsilon_mixture_index, separability_index
from monosem.evals.multidim.table import as_table
from monosem.evals.multidim.tasks import CYCLES, tasks_of
from monosem.evals.multidim.use import used
from monosem.firings import open_firings, require_current
from monosem.formats.saelens import load_sae
from monosem.model import Model
from monosem.normaliser import PER_TOKEN
from monosem.passages import Passages, open_passages
from monosem.schema import Chart
from monosem.sums import read_heldout, read_sums
from monosem.types import Estimate, UserError

__all__ = ["Multidim", "cluster_decoder", "epsilon_mixture_index", "separability_index"]

Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, eq=False)
class _Prepared:
    """What serves all runs. rows: about the model; words: by cycle; why: of the cycles that there are no words of."""

    inputs: Inputs
    passages: Passages
    rows: pl.DataFrame
    words: dict[str, Words]
    why: dict[str, str]
    layer: int | None
    tokens: int


@dataclass(frozen=True)
class Multidim(Evaluation):
    """Clusters of features that no rotation takes apart, and circles of weekdays and months (Engels et al. 2024).

    method: of clustering, "graph" or "spectral". k, threshold: neighbours that a feature is tied to, and the least
    cosine (graph). largest: features in a cluster, at most. n_clusters: wanted (spectral). fewest: tokens on which a
    cluster has to fire to be judged. bins: of the separability index. tasks: cycles that the model is asked about.
    layers: of the model that are looked at.
    """

    needs = ("sums", "codes", "activations", "sae", "model")
    method: Literal["graph", "spectral"] = "graph"
    k: Count = 2
    threshold: Annotated[float, Field(ge=-1, le=1)] = 0.5
    largest: Annotated[int, Field(ge=2)] = 1000
    n_clusters: Annotated[int, Field(ge=2)] = 1000
    fewest: Annotated[int, Field(ge=100)] = 200
    bins: Annotated[int, Field(ge=2, le=100)] = 10
    tasks: list[str] = field(default_factory=lambda: list(CYCLES))
    layers: Count = 8
    seed: Annotated[int, Field(ge=0)] = 0

    def prepare(self, inputs: Inputs) -> _Prepared:
        tasks = list(tasks_of(self.tasks))
        passages, tokens = open_passages(inputs.folder), int(read_heldout(inputs.folder).n.sum())
        if inputs.model is None or not tasks:
            missing = dict.fromkeys(CYCLES, "no language model" if inputs.model is None else "no tasks")
            return _Prepared(inputs, passages, as_table({}), {}, missing, None, tokens)
        model = inputs.model()
        asked: dict[str, list[Asked]] = {}
        why: dict[str, str] = dict.fromkeys(CYCLES, "not among `tasks`")
        for cycle in self.tasks:
            try:  # a tokenizer without these words is no reason for `eval all` to stop
                asked[cycle] = [ask(model, task) for task in tasks if task.cycle == cycle]
            except UserError as error:
                why[cycle] = str(error)
        found = re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", inputs.site)
        own = int(found[1]) if found else None
        tables = [self._used(inputs, model, cycle, tasks, own) for cycle, tasks in asked.items()]
        words = {cycle: _at_site(model, inputs.site, tasks, self.seed) for cycle, tasks in asked.items()}
        rows = pl.concat([as_table({}), *tables])
        return _Prepared(inputs, passages, rows, words, why, model.site(inputs.site).stop, tokens)

    def _used(self, inputs: Inputs, model: Model, cycle: str, asked: list[Asked], own: int | None) -> pl.DataFrame:
        """Return what the model makes of a cycle, from disk where it is there."""
        depth = len(model.blocks)
        layers = {round(i) for i in np.linspace(0, depth - 1, min(self.layers, depth))}
        chosen = sorted(layers | ({own} if own is not None else set()))
        shown = own if own is not None else chosen[len(chosen) // 2]
        depends = [self.version, model.identity, [one.task.template for one in asked], chosen, shown, self.seed]
        kept = Kept(inputs.folder / "multidim" / f"{cycle}.parquet", depends)
        return kept.get(lambda: used(asked, chosen, shown, self.seed, inputs.ticker))

    def run(self, info: RunInfo, prepared: _Prepared) -> Result:
        began, inputs = time.perf_counter(), prepared.inputs
        sae, firings = load_sae(info.folder), open_firings(inputs.folder, info.name)
        require_current(firings)
        W = sae.weights["W_dec"].detach().cpu().float()
        groups = cluster_decoder(W, self.method, self.k, self.threshold, 2, self.largest, self.n_clusters, self.seed)
        unit = torch.nn.functional.normalize(W).numpy()
        with inputs.ticker.bar(f"multidim: {info.name}", len(groups), "clusters") as bar:
            clusters = judged(firings, unit, groups, self.fewest, self.bins, self.seed, bar.add)
        bests = [above_chance(one, self.bins, self.seed) for one in clusters[:GALLERY]]
        planes = plane_rows(clusters, prepared.passages, bests)
        tables = [prepared.rows, planes, point_rows(clusters, prepared.passages, self.seed)]
        scalars, reasons = self._found(groups, clusters, bests)
        ranks = {tuple(one.features.tolist()): number + 1 for number, one in enumerate(clusters)}
        for cycle in CYCLES:
            words, why = prepared.words.get(cycle), prepared.why[cycle]
            if words is not None and sae.normaliser.kind in PER_TOKEN:
                why = (
                    f'normaliser "{sae.normaliser.kind}" depends on each token: features have no direction of their own'
                )
                words = None
            if words is None:
                scalars |= dict.fromkeys(f"{name}/{cycle}" for name in HELD)
                reasons |= {f"{name}/{cycle}": why for name in HELD}
                continue
            scalars[f"circle_error/{cycle}"] = words.error
            more, missing, rows = held(sae, words, groups, ranks, inputs.bootstrap, self.seed)
            scalars |= {f"{name}/{cycle}": e for name, e in more.items()}
            reasons |= {f"{name}/{cycle}": text for name, text in missing.items()}
            tables.append(rows.with_columns(cycle=pl.lit(cycle), layer=pl.lit(prepared.layer, pl.Int64)))
        sums, _ = read_sums(inputs.folder, info.name)
        scalars["l0"] = Estimate.exact(float(sums.active.sum() / prepared.tokens), prepared.tokens)
        scalars["seconds"] = Estimate.exact(time.perf_counter() - began, len(groups))
        return Result(scalars, pl.concat(tables), reasons)

    def _found(
        self, groups: list[np.ndarray], clusters: list[Cluster], bests: list[tuple[Estimate, Estimate, Estimate]]
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Return what discovery says of a run. bests: `above_chance` of the first clusters."""
        several = [one.score.planes[one.best] for one in clusters]
        fine = sum(is_irreducible(one.separability.excess, one.mixture) for one in several)
        scalars: dict[str, Estimate | None] = {
            "clusters": Estimate.exact(len(groups), sum(map(len, groups))),
            "judged_clusters": Estimate.exact(len(clusters), len(groups)),
            "irreducible_clusters": Estimate.exact(fine, len(clusters)),
            "best_separability": None,
            "best_epsilon_mixture": None,
        }
        if bests:
            scalars["best_separability"], scalars["best_epsilon_mixture"], _ = bests[0]
            return scalars, {}
        why = f"no cluster fires on {self.fewest} held-out tokens: lower `threshold` or `fewest`, or use more tokens"
        return scalars, dict.fromkeys(("best_separability", "best_epsilon_mixture"), why)

    def figure(self, judged: list[Judged]) -> list[Chart]:
        return multidim_charts(judged)


def _at_site(model: Model, site: str, asked: list[Asked], seed: int) -> Words:
    """Return a cycle's words in all successor prompts at the study's site."""
    where = model.site(site)
    several = [one for one in asked if one.task.kind == "successor"]
    x = torch.cat([activations(one, [where])[site] for one in several])
    word, m = torch.cat([one.alpha for one in several]), several[0].m
    return Words(x, word, m, fit_circle(x, word, m).plane.to(x), order(x, word, m, seed=seed).error)
