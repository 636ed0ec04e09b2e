"""One-dimensional probes (Gao et al. 2024, section 4.2) and k-sparse ones (SAEBench), on texts with known labels.

One row a task: the feature whose value alone tells the classes apart best. See docs/probes.md.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from monosem.evals import Evaluation, Inputs, Judged, Result, RunInfo
from monosem.evals.probes import controls as control_probes
from monosem.evals.probes import texts as task_texts
from monosem.evals.probes.charts import probes_charts
from monosem.evals.probes.controls import Controls, best_product, controls_of
from monosem.evals.probes.logistic import fit_1d
from monosem.evals.probes.pooling import pooled_codes
from monosem.evals.probes.scores import best_feature, selection_floor, sparse_accuracies
from monosem.evals.probes.table import as_table, left_out_row, scalars_of, task_row
from monosem.evals.probes.tasks import Pool, Source, sources
from monosem.evals.probes.texts import LeftOut, Texts, harvest_texts, read_texts
from monosem.formats.saelens import load_sae
from monosem.model import resolve_device
from monosem.sae import Sae
from monosem.schema import Chart
from monosem.sums import read_heldout, read_sums
from monosem.types import Estimate, UserError

__all__ = ["Probes", "fit_1d"]


@dataclass(frozen=True)
class _Prepared:
    """What serves all runs. tasks: files with the pool of each; controls: by task."""

    inputs: Inputs
    tasks: list[tuple[Path, Pool]]
    left: list[LeftOut]
    controls: dict[Path, Controls]


@dataclass(frozen=True)
class Probes(Evaluation):
    """One-dimensional probes of every feature, and k-sparse ones, on labelled texts.

    tasks: names or numbers of the wheel's sets, or `all`; none: the default suite. data: a .csv or .parquet file with
    the columns text and label, alone where no tasks are named. train, test: texts of a task, at most. context: tokens
    of a text, from its end. pool: `auto` is `last` for names, phrases and statements, else `mean`. seed: of the splits.
    """

    needs = ("sums", "sae", "model")
    tasks: list[str | int] = field(default_factory=list)
    data: str = ""
    train: Annotated[int, Field(ge=20)] = 1000
    test: Annotated[int, Field(ge=20)] = 500
    context: Annotated[int, Field(ge=1)] = 24
    pool: Literal["auto", "last", "mean", "max"] = "auto"
    seed: Annotated[int, Field(ge=0)] = 0

    def reads(self, inputs: Inputs, info: RunInfo) -> dict[str, Any]:
        versions = {"texts": task_texts.VERSION, "controls": control_probes.VERSION}
        return {"tasks": {source.name: source.key for source, _ in self._chosen()}, **versions}

    def prepare(self, inputs: Inputs) -> _Prepared:
        settings = {name: getattr(self, name) for name in ("context", "train", "test", "seed")}
        chosen = self._chosen()
        paths, left = harvest_texts(inputs, chosen, settings)
        if not paths:
            raise UserError(f"tasks: none can be used ({left[0].name}: {left[0].reason}); choose others")
        pools: dict[str, Pool] = {source.name: pool for source, pool in chosen}
        tasks: list[tuple[Path, Pool]] = [(path, pools[path.stem]) for path in paths]
        widths = sorted({info.d_sae for info in inputs.runs})
        controls = {}
        with inputs.ticker.bar("controls", len(tasks), "tasks") as bar:
            for path, pool in tasks:
                controls[path] = controls_of(path, read_texts(path, pool), inputs.folder, widths)
                bar.add(1)
        return _Prepared(inputs, tasks, left, controls)

    def run(self, info: RunInfo, prepared: _Prepared) -> Result:
        p, began = prepared, time.perf_counter()
        sums, _ = read_sums(p.inputs.folder, info.name)
        sae = load_sae(info.folder).to(resolve_device("auto"))
        rows = [left_out_row(one.name, one.counts, one.reason) for one in p.left]
        with p.inputs.ticker.bar(info.name, len(p.tasks), "tasks") as bar:
            for path, pool in p.tasks:
                rows.append(_row(sae, read_texts(path, pool), p.controls[path]))
                bar.add(1)
        table = as_table(rows)
        scalars, reasons = scalars_of(table, p.inputs.bootstrap)
        n = int(read_heldout(p.inputs.folder).n.sum())
        scalars["l0"] = Estimate.exact(float(sums.active.sum() / n), n)
        scalars["seconds"] = Estimate.exact(time.perf_counter() - began, len(p.tasks))
        return Result(scalars, table, reasons)

    def figure(self, judged: list[Judged]) -> list[Chart]:
        return probes_charts(judged)

    def _chosen(self) -> list[tuple[Source, Pool]]:
        pool: Pool | None = None if self.pool == "auto" else self.pool
        return [(source, pool or source.pool) for source in sources([str(name) for name in self.tasks], self.data)]


def _row(sae: Sae, texts: Texts, controls: Controls) -> dict[str, Any]:
    """Return a task's row: pre- and post-activations of an SAE, beside the controls."""
    codes = pooled_codes(texts, sae).numpy()
    probes = {
        "pre": best_product(texts, sae.weights["W_enc"], sae.normaliser),
        "post": best_feature(codes, texts.labels, texts.train),
        **{name: controls[name] for name in ("dense", "neuron", "pca")},
        "random": controls[f"random {sae.d_sae}"],
    }
    sparse = sparse_accuracies(codes, texts.labels, texts.train)
    row = task_row(texts.name, texts.pool, texts.facts, len(texts.labels), probes, sparse)
    return row | {"noise_loss": selection_floor(sae.d_sae, texts.train)}
