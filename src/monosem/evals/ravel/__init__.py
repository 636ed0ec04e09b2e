"""RAVEL (Huang et al. 2024): can a method change one attribute of an entity and leave the others? See docs/ravel.md.

One row an intervention: the activation at the last token of a base entity is edited with that of a source entity, and
the model answers.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import Field

from monosem.evals import Evaluation, Inputs, Judged, Result, RunInfo
from monosem.evals.ravel.answers import Answered, answered
from monosem.evals.ravel.baselines import Fitting, baseline_rows
from monosem.evals.ravel.charts import ravel_charts
from monosem.evals.ravel.defaults import default_types
from monosem.evals.ravel.disentangle import scores
from monosem.evals.ravel.entities import SPLITS, EntityType, content_hash, read_types
from monosem.evals.ravel.features import judge_features
from monosem.evals.ravel.sets import draw, make_world
from monosem.evals.ravel.table import as_table, coverage_scalars, scalars_of
from monosem.formats.saelens import load_sae
from monosem.model import Model
from monosem.schema import Chart
from monosem.store import read_json
from monosem.sums import read_heldout, read_sums
from monosem.types import Estimate, UserError

__all__ = ["Ravel", "scores"]

Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class _Prepared:
    """What serves all runs. coverage: what the model's answers left of the data; fitting: None where that is nothing.

    rows: of the baselines; tokens: held-out tokens that sums are over.
    """

    inputs: Inputs
    coverage: list[dict[str, Any]]
    fitting: Fitting | None
    rows: pl.DataFrame
    tokens: int


@dataclass(frozen=True)
class Ravel(Evaluation):
    """Cause, Isolate and Disentangle of SAE features and of methods without an SAE (Huang et al. 2024).

    data: folder or archive of the authors' files; empty: the default set. types, attributes: which of them; empty: all.
    entities: of each type, at most. templates: of each attribute, at most. pairs: of each attribute on each test split.
    train_pairs: that DAS, MDAS, DBM and MDBM learn from, of each attribute. steps, mask_steps: of the training of the
    first three, and of MDBM, 32 pairs each.
    rank: directions of a subspace. answer_tokens: how many tokens of an answer are generated.
    """

    needs = ("sums", "activations", "sae", "model")
    data: str = ""
    types: list[str] = field(default_factory=list)
    attributes: list[str] = field(default_factory=list)
    entities: Annotated[int, Field(ge=20)] = 400
    templates: Annotated[int, Field(ge=3)] = 12
    pairs: Annotated[int, Field(ge=8)] = 48
    train_pairs: Annotated[int, Field(ge=8)] = 512
    steps: Count = 64
    mask_steps: Count = 24
    rank: Count = 32
    answer_tokens: Count = 3
    seed: Annotated[int, Field(ge=0)] = 0

    def reads(self, inputs: Inputs, info: RunInfo) -> dict[str, Any]:
        return {"ravel": content_hash(self._types)}

    def prepare(self, inputs: Inputs) -> _Prepared:
        if inputs.model is None:
            raise UserError("evaluation ravel: runs the study's language model, and there is none")
        d_in = read_json(inputs.folder / "activations" / "meta.json")["d_in"]
        if self.rank > d_in:
            raise UserError(
                f"rank = {self.rank}: more directions than {inputs.site} has dimensions; use at most {d_in}"
            )
        types = [some_entities(kind, self.entities, self.seed) for kind in self._types]
        tokens = int(read_heldout(inputs.folder).n.sum())
        model = inputs.model()
        site = model.site(inputs.site)
        found = [self._answered(inputs, model, kind) for kind in types]
        drawn = draw(found, self.pairs, self.train_pairs, self.seed)
        world = make_world(model, site, found, drawn, self.seed, inputs.ticker)
        if not world.attributes:
            return _Prepared(inputs, world.coverage, None, as_table({}), tokens)
        where = {"model": model.identity, "site": inputs.site}
        trained = inputs.folder / "ravel" / "trained"
        fitting = Fitting(world, trained, where, self.rank, self.steps, self.mask_steps, self.seed)
        settings = {"rank": self.rank, "steps": self.steps, "seed": self.seed}
        path = inputs.folder / "ravel" / "baselines.parquet"
        rows = baseline_rows(path, fitting, where | settings, inputs.ticker)
        return _Prepared(inputs, world.coverage, fitting, rows, tokens)

    def run(self, info: RunInfo, prepared: _Prepared) -> Result:
        began, inputs, fitting = time.perf_counter(), prepared.inputs, prepared.fitting
        rows = prepared.rows
        scalars, reasons = coverage_scalars(prepared.coverage)
        if fitting is not None:
            sae = load_sae(info.folder).to(fitting.world.exchange.x.device)
            rows = pl.concat([judge_features(info.name, sae, info.sae, fitting, inputs.ticker), rows])
            scalars["unstable_pairs"] = Estimate.exact(fitting.world.unstable, fitting.world.unstable)
        more, why = scalars_of(rows, inputs.bootstrap)
        sums, _ = read_sums(inputs.folder, info.name)
        scalars["l0"] = Estimate.exact(float(sums.active.sum() / prepared.tokens), prepared.tokens)
        scalars["seconds"] = Estimate.exact(time.perf_counter() - began, rows.height)
        return Result(more | scalars, rows, reasons | why)

    def figure(self, judged: list[Judged]) -> list[Chart]:
        return ravel_charts(judged)

    def _answered(self, inputs: Inputs, model: Model, kind: EntityType) -> Answered:
        depends = {"model": model.identity, "type": content_hash([kind]), "answer_tokens": self.answer_tokens}
        return answered(inputs.folder, model, kind, depends, self.answer_tokens, self.templates, inputs.ticker)

    @cached_property
    def _types(self) -> list[EntityType]:
        """Return the types and attributes that are asked for. Raises UserError for those that aren't there."""
        types = read_types(Path(self.data), self.types) if self.data else default_types(self.types)
        known = list(dict.fromkeys(attribute for kind in types for attribute in kind.templates))
        for attribute in self.attributes:
            if attribute not in known:
                raise UserError(f'attributes: "{attribute}" is not known; the types have {", ".join(known)}')
        if not self.attributes:
            return types
        some = [
            replace(kind, templates={a: t for a, t in kind.templates.items() if a in self.attributes}) for kind in types
        ]
        return [kind for kind in some if kind.templates]


def some_entities(kind: EntityType, count: int, seed: int) -> EntityType:
    """Return the type with at most `count` entities, drawn evenly from the splits."""
    if len(kind.entity_split) <= count:
        return kind
    entities = sorted(kind.entity_split)
    drawn = [entities[i] for i in np.random.default_rng(seed).permutation(len(entities))]
    kept: set[str] = set()
    for split in SPLITS:
        own = [entity for entity in drawn if kind.entity_split[entity] == split]
        kept |= set(own[: round(count * len(own) / len(drawn))])
    return replace(
        kind,
        attributes={entity: values for entity, values in kind.attributes.items() if entity in kept},
        entity_split={entity: split for entity, split in kind.entity_split.items() if entity in kept},
    )
