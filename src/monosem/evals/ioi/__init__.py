"""IOI with supervised feature dictionaries (Makelov et al. 2024): do SAE features approximate, control and explain?

One row a prompt and intervention, or a score. See docs/ioi.md.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Annotated, Any

import polars as pl
import torch
from pydantic import Field

from monosem.evals import Evaluation, Inputs, Judged, Kept, Result, RunInfo, scored
from monosem.evals.ioi.charts import ioi_charts
from monosem.evals.ioi.circuit import Place, gpt2_small, heads, is_gpt2_small, residual
from monosem.evals.ioi.control import greedy as edit
from monosem.evals.ioi.control import necessity, sufficiency
from monosem.evals.ioi.interpret import f1
from monosem.evals.ioi.judging import Case, answers, cases_of, floor_rows, judge, supervised_rows
from monosem.evals.ioi.lines import FEW, Line, carried_in
from monosem.evals.ioi.localise import found_layers, head_map, layer_map
from monosem.evals.ioi.patching import Task, task_of, unedited
from monosem.evals.ioi.prompts import POSITIONS, Words, draw, words_of
from monosem.evals.ioi.table import MEASURED, NOTHING, as_table, carrying, measured
from monosem.evals.ioi.task import task_saes
from monosem.evals.ioi.words import TEMPLATES
from monosem.formats.saelens import load_sae
from monosem.metrics import proportion
from monosem.model import Model
from monosem.normaliser import PER_TOKEN
from monosem.schema import Chart
from monosem.store import read_json, value_hash
from monosem.sums import read_heldout, read_sums
from monosem.types import Estimate, UserError

__all__ = ["Ioi", "edit", "f1", "necessity", "sufficiency"]

SOLVES = 0.5  # share of prompts: below, the model doesn't do IOI
MAPPED = 48  # prompts behind the localisation
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class _Prepared:
    """What serves all runs. own: the places at the study's site; rows: of everything that isn't a run's SAE; why: of
    nothing being judged, "" otherwise; tokens: held-out tokens that sums are over.
    """

    inputs: Inputs
    own: list[Case]
    rows: pl.DataFrame
    why: str
    tokens: int


@dataclass(frozen=True)
class Ioi(Evaluation):
    """Sufficiency, necessity, sparse control and F1 on indirect object identification (Makelov et al. 2024).

    names: at most, half of each gender. train, prompts: that dictionaries are made on, and judged on. places: such as
    "blocks.10.hook_resid_post@S2"; empty: the study's site, and what is found. heads: that are edited together.
    task_features, task_steps: of the SAEs trained on IOI activations. budgets: features that an edit may change.
    """

    needs = ("sums", "activations", "sae", "model")
    names: Annotated[int, Field(ge=16)] = 64
    train: Annotated[int, Field(ge=256)] = 2048
    prompts: Annotated[int, Field(ge=32)] = 192
    places: list[str] = field(default_factory=list)
    heads: Count = 6
    task_features: Annotated[int, Field(ge=16)] = 512
    task_steps: Count = 600
    budgets: list[Count] = field(default_factory=lambda: [2, 8, 32])
    seed: Annotated[int, Field(ge=0)] = 0

    def prepare(self, inputs: Inputs) -> _Prepared:
        if inputs.model is None:
            raise UserError("evaluation ioi: runs the study's language model, and there is none")
        if not self.budgets:
            raise UserError("budgets = []: give at least one number of features, such as [2, 8, 32]")
        tokens = int(read_heldout(inputs.folder).n.sum())
        model = inputs.model()
        try:  # a tokenizer without names is no reason for `eval all` to stop
            words = words_of(model.tokenizer, self.names, model.name)
            test = task_of(model, draw(words, self.prompts, self.seed, held_out=True))
        except UserError as error:
            return _Prepared(inputs, [], as_table({}), str(error), tokens)
        accuracy, share = _accuracy(test)
        if share < SOLVES:
            why = (
                f"{model.name} names the indirect object first on {share:.0%} of the prompts: it does not do IOI, and "
                "nothing can be judged by it; use a model that does"
            )
            return _Prepared(inputs, [], accuracy, why, tokens)
        mapped = self._mapped(inputs, model, words)
        places = self._places(inputs, model, mapped)
        kept = {place.name: self._kept_baselines(inputs, model, words, place) for place in places}
        own = [place.name for place in places if place.name.startswith(f"{inputs.site}@")]
        needed = [place for place in places if place.name in own or kept[place.name].stored is None]
        train = task_of(model, draw(words, self.train, self.seed, held_out=False))
        with inputs.ticker.bar("ioi: activations", len(train.prompts) + 4 * len(test.prompts), "prompts") as bar:
            cases = {case.place.name: case for case in cases_of(train, test, needed, self.seed, bar.add)}
        tables = [
            one.get(lambda name=name, one=one: self._baselines(inputs, cases[name], one.depends))
            for name, one in kept.items()
        ]
        return _Prepared(inputs, [cases[name] for name in own], pl.concat([accuracy, mapped, *tables]), "", tokens)

    def run(self, info: RunInfo, prepared: _Prepared) -> Result:
        began, inputs, rows = time.perf_counter(), prepared.inputs, prepared.rows
        draws = inputs.bootstrap
        scalars, reasons = carrying(rows, draws)
        carried = carried_in(scalars)
        why = prepared.why or ("" if carried.height else NOTHING)
        sae = load_sae(info.folder)
        if not why and sae.normaliser.kind in PER_TOKEN:
            why = f'{info.name}: normaliser "{sae.normaliser.kind}" depends on each token; codes can\'t be edited'
        if not why:
            about = {"kind": "full", "name": info.name, "variant": info.variant}
            with inputs.ticker.bar(f"ioi: {info.name}", len(prepared.own) * self._answers, "answers") as bar:
                for case in prepared.own:
                    rows = pl.concat([rows, judge(case, sae, about, self._budgets, bar.add)])
        sums, _ = read_sums(inputs.folder, info.name)
        scalars["l0"] = Estimate.exact(float(sums.active.sum() / prepared.tokens), prepared.tokens)
        here = rows.filter(pl.col("place").is_in([case.place.name for case in prepared.own]))
        more, missing = _scalars(_accuracy_of(rows), here, carried, draws, why)
        scalars["seconds"] = Estimate.exact(time.perf_counter() - began, rows.height)
        return Result(scalars | more, rows, reasons | missing)

    def figure(self, judged: list[Judged]) -> list[Chart]:
        return ioi_charts(judged)

    @property
    def _budgets(self) -> list[int]:
        return sorted({*self.budgets, FEW})

    @property
    def _answers(self) -> int:
        """How many answers of the model judging one SAE at one place takes."""
        return self.prompts * answers(self._budgets)

    def _mapped(self, inputs: Inputs, model: Model, words: Words) -> pl.DataFrame:
        """Return the maps of layers and heads, from disk where they are there."""
        task = task_of(model, draw(words, MAPPED, self.seed + 1, held_out=False))

        def made() -> pl.DataFrame:
            layers = layer_map(task, self.seed, inputs.bootstrap, inputs.ticker)
            found = head_map(task, inputs.bootstrap, inputs.ticker)
            tables = [
                as_table({"kind": "none", "criterion": name, **{k: [row.get(k) for row in rows] for k in rows[0]}})
                for name, rows in (("layers", layers), ("heads", found))
            ]
            return pl.concat(tables)

        depends = ["map", model.identity, MAPPED, self.seed, words.names, inputs.bootstrap]
        return Kept(inputs.folder / "ioi" / "map.parquet", depends).get(made)

    def _places(self, inputs: Inputs, model: Model, mapped: pl.DataFrame) -> list[Place]:
        if self.places:
            return [_named(model, name) for name in self.places]
        d_in = read_json(inputs.folder / "activations" / "meta.json")["d_in"]
        own = [residual(model, inputs.site, position, d_in) for position in ("S2", "END")]
        if is_gpt2_small(model):
            return [*own, *gpt2_small(model)]
        layers = found_layers(mapped.filter(pl.col("criterion") == "layers").to_dicts())
        d_model = model.lm.config.hidden_size
        found = [
            residual(model, f"blocks.{layer}.hook_resid_post", position, d_model) for position, layer in layers.items()
        ]
        top = mapped.filter(pl.col("criterion") == "heads")["value"][: self.heads]
        chosen = [(int(layer), int(head)) for layer, head in (name[1:].split("H") for name in top)]
        there = {place.name for place in own}
        return [*own, *(p for p in found if p.name not in there), heads(model, "heads@END", "z", chosen, "END")]

    def _kept_baselines(self, inputs: Inputs, model: Model, words: Words, place: Place) -> Kept:
        """Return where the rows of a place are kept that no run's SAE is needed for."""
        depends = {
            "version": self.version,
            "model": model.identity,
            "nodes": [[n.site.name, n.first, n.width, n.position] for n in place.nodes],
            "names": words.names,
            **{name: getattr(self, name) for name in ("train", "prompts", "task_features", "task_steps", "seed")},
            "budgets": self._budgets,
        }
        return Kept(inputs.folder / "ioi" / f"{value_hash(place.name)[:12]}.parquet", depends)

    def _baselines(self, inputs: Inputs, case: Case, depends: dict[str, Any]) -> pl.DataFrame:
        """Return these rows. depends: what they depend on."""
        name, ticker, folder = case.place.name, inputs.ticker, inputs.folder / "ioi" / "tasks"
        tables = [floor_rows(case), supervised_rows(case)]
        trained = {k: v for k, v in depends.items() if k not in ("prompts", "budgets")}
        saes = task_saes(case.train, name, self.task_features, self.task_steps, self.seed, folder, trained, ticker)
        with ticker.bar(f"ioi: {name}", len(saes) * self._answers, "answers") as bar:
            for sae in saes:
                about = {"kind": "task", "name": sae.facts["name"], "variant": sae.variant_name}
                tables.append(judge(case, sae, about, self._budgets, bar.add))
        return pl.concat(tables)


def _named(model: Model, name: str) -> Place:
    site, _, position = name.rpartition("@")
    if not site or position not in POSITIONS:
        raise UserError(
            f'places: "{name}" is no place; write a site and a position, such as "blocks.10.hook_resid_post@S2" '
            f"(positions: {', '.join(POSITIONS)})"
        )
    found = model.site(site)
    width = model.activations(torch.zeros(1, 1, dtype=torch.int64), found).shape[-1]
    return residual(model, site, position, width)


def _accuracy(task: Task) -> tuple[pl.DataFrame, float]:
    """Return how often the model says IO first, by template and over all, and the logit difference."""
    said, prompts = unedited(task), task.prompts
    right = said.top == task.names[prompts.labels[:, 1]]
    rows = []
    for number, text in enumerate(TEMPLATES):
        at = prompts.template == number
        share = scored(proportion(int(right[at].sum()), int(at.sum())))
        about = {"kind": "none", "criterion": "accuracy", "value": text, "template": number}
        rows.append(as_table({**about, **share, "ld": float(said.ld[at].mean())}))
    return pl.concat(rows), float(right.mean())


def _accuracy_of(rows: pl.DataFrame) -> Estimate | None:
    """Return the share of prompts that the model solves, from its rows by template; None without any."""
    accuracy = rows.filter(pl.col("criterion") == "accuracy")
    if accuracy.is_empty():
        return None
    n, right = int(accuracy["n"].sum()), round(float((accuracy["score"] * accuracy["n"]).sum()))
    return proportion(right, n)


def _scalars(
    accuracy: Estimate | None, rows: pl.DataFrame, carried: pl.DataFrame, draws: int, why: str
) -> tuple[dict[str, Estimate | None], dict[str, str]]:
    """Return the scores of the run's SAE and of the supervised codes. rows: of the places at the study's site."""
    scalars: dict[str, Estimate | None] = {"accuracy": accuracy}
    if why:
        scalars |= dict.fromkeys(MEASURED)
        return scalars, {name: why for name, e in scalars.items() if e is None}
    plain = (pl.col("kind") == "none") & (pl.col("criterion") == "approximation")
    supervised = (pl.col("kind") == "supervised") & (pl.col("name") == "least squares")
    for kind, own in (("full", pl.col("kind") == "full"), ("supervised", supervised)):
        found = measured(Line(kind, "", "", float("nan"), rows.filter(plain | own), carried), draws)
        if kind == "full":
            scalars |= found
        else:
            scalars |= {f"supervised_{key}": e for key, e in found.items() if e is not None}
    return scalars, {key: NOTHING for key in MEASURED if scalars.get(key) is None}
