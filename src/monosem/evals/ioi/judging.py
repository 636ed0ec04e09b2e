"""The three criteria for one dictionary at one place: approximation, sparse control, interpretability.

Makelov et al. 2024 (arXiv 2405.08366), section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from monosem.evals import scored
from monosem.evals.ioi import control, interpret, phenomena
from monosem.evals.ioi.circuit import Place
from monosem.evals.ioi.patching import Progress, Said, Task, activations, said, task_of, unedited
from monosem.evals.ioi.prompts import ATTRIBUTES, ORDERS, Words, counterfactual
from monosem.evals.ioi.supervised import Supervised, decoded, least_squares, mean_codes
from monosem.evals.ioi.table import as_table
from monosem.sae import Sae

BIG = 0.5  # F1 from which on a feature counts as interpretable
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
SHOWN = 24  # prompts whose texts are kept
LONGEST = 64  # features of a union that are drawn
CHUNK = 1024  # prompts whose codes are dense at once
DRAWS = 200  # of test prompts, for the F1 of a union
APPROXIMATIONS = ("reconstruction", "remainder", "interpretable", "uninterpretable")


@dataclass(frozen=True, eq=False)
class Case:
    """A place with what all dictionaries are judged on.

    train, test: activations [N, d], [n, d]; train_labels, labels: int64 [N, 3], [n, 3]; source: activations of each
    attribute's counterfactual [n, d], source_labels: its labels; clean, patched: what the model says without an edit
    and with each attribute's source patched in.
    """

    task: Task
    place: Place
    train: Tensor
    train_labels: Tensor
    test: Tensor
    labels: Tensor
    source: dict[str, Tensor]
    source_labels: dict[str, Tensor]
    clean: Said
    patched: dict[str, Said]

    @property
    def mean(self) -> Tensor:
        """The mean activation of the train prompts, one row a test prompt."""
        return self.train.mean(0).expand_as(self.test)

    @cached_property
    def supervised(self) -> dict[str, Supervised]:
        """The supervised dictionaries by name."""
        names = len(self.words.names)
        sizes = (names, names, 2)
        return {
            "least squares": least_squares(self.train, self.train_labels, sizes),
            "mean codes": mean_codes(self.train, self.train_labels, sizes),
        }

    @cached_property
    def train_says(self) -> interpret.Predicates:
        """What is true of the train prompts."""
        return interpret.predicates(self.train_labels, self.words.genders, self.words.names)

    @cached_property
    def says(self) -> interpret.Predicates:
        """What is true of the test prompts."""
        return interpret.predicates(self.labels, self.words.genders, self.words.names)

    @property
    def words(self) -> Words:
        """The words of the prompts."""
        return self.task.prompts.words


def cases_of(
    train: Task, test: Task, places: list[Place], seed: int, progress: Progress = lambda _n: None
) -> list[Case]:
    """Return the places with their activations and the answers under true patching."""
    clean = unedited(test)
    own, base = activations(train, places, progress=progress), activations(test, places, progress=progress)
    others = {a: task_of(test.model, counterfactual(test.prompts, a, seed)) for a in ATTRIBUTES}
    sources = {a: activations(other, places, like=test, progress=progress) for a, other in others.items()}
    labels = {a: torch.from_numpy(other.prompts.labels) for a, other in others.items()}
    cases = []
    for place in places:
        source = {a: values[place.name] for a, values in sources.items()}
        case = Case(
            test, place, own[place.name], torch.from_numpy(train.prompts.labels), base[place.name],
            torch.from_numpy(test.prompts.labels), source, labels, clean, said(test, place, source),
        )  # fmt: skip
        cases.append(case)
    return cases


def floor_rows(case: Case) -> pl.DataFrame:
    """Return what needs no dictionary: the clean and the mean activation, no edit and true patching."""
    about = {"kind": "none", "name": "", "variant": "", "place": case.place.name}
    tables = [_approximation(case, about, "clean", case.clean)]
    tables.append(_approximation(case, about, "mean", said(case.task, case.place, {0: case.mean})[0]))
    for attribute, patched in case.patched.items():
        for method, one in (("unchanged", case.clean), ("patched", patched)):
            tables.append(_edits(case, about, attribute, method, 0, one, None))
    return pl.concat(tables)


def supervised_rows(case: Case) -> pl.DataFrame:
    """Return the rows of the supervised dictionaries."""
    tables = []
    for name, dictionary in case.supervised.items():
        about = {"kind": "supervised", "name": name, "variant": "", "place": case.place.name}
        rebuilt = dictionary.reconstruct(case.labels)
        new: dict[Any, Tensor] = {"reconstruction": rebuilt, "remainder": case.mean + case.test - rebuilt}
        new |= {(a,): dictionary.edit(case.test, case.labels, labels) for a, labels in case.source_labels.items()}
        answers = said(case.task, case.place, new)
        share = control.weights(dictionary.codes(case.labels), dictionary.W_dec)
        numbers = dictionary.numbers(case.labels)
        for key, one in answers.items():
            if isinstance(key, str):
                tables.append(_approximation(case, about, key, one))
            else:
                changed = numbers[:, [ATTRIBUTES.index(key[0])]]
                gone = control.removed(share, changed).numpy()
                tables.append(_edits(case, about, key[0], "supervised", 0, one, gone))
    return pl.concat(tables)


def answers(budgets: list[int]) -> int:
    """Return how often `judge` asks the model about each prompt."""
    return len(APPROXIMATIONS) + len(ATTRIBUTES) * sum(2 if k > 1 else 1 for k in budgets)


def judge(
    case: Case, sae: Sae, about: Mapping[str, Any], budgets: list[int], progress: Progress = lambda _n: None
) -> pl.DataFrame:
    """Return the rows of an SAE at a place. about: kind, name, variant. progress: called with answers that are there.

    Raises UserError for an SAE whose normaliser depends on each token, as its codes alone can't be decoded.
    """
    about = {**about, "place": case.place.name}
    z = sae.encode(case.test)
    rebuilt = sae.decode(z)
    D = sae.normaliser.undo(sae.weights["W_dec"])
    active = torch.cat([sae.encode(part) > 0 for part in case.train.split(CHUNK)])
    train, test = case.train_says, case.says
    f1s = {name: interpret.judge(active, holds, z > 0, test[name][1]) for name, (_, holds) in train.items()}
    told = torch.stack([interpret.f1_scores(active, train[a][1]).amax(0) for a in ATTRIBUTES]).amax(0) >= BIG
    approximations = (
        rebuilt,
        case.mean + case.test - rebuilt,
        rebuilt - (z * ~told) @ D,
        case.test - (z * told) @ D,
    )
    new: dict[Any, Tensor] = dict(zip(APPROXIMATIONS, approximations, strict=True))
    share = control.weights(z, D)
    gone: dict[Any, np.ndarray] = {}
    for column, attribute in enumerate(ATTRIBUTES):
        source, labels = case.source[attribute], case.source_labels[attribute]
        z_source = sae.encode(source)
        edits = {("greedy", k): e for k, e in control.greedy(source - case.test, z, z_source, D, budgets).items()}
        order = f1s[attribute].order
        old, value = order[case.labels[:, column]], order[labels[:, column]]
        edits |= {("f1", k): control.by_ranking(z, z_source, D, old, value, k // 2) for k in budgets if k > 1}
        for (method, k), edit in edits.items():
            new[attribute, method, k] = case.test + edit.delta
            gone[attribute, method, k] = control.removed(share, edit.chosen).numpy()
    tables = []
    for key, one in said(case.task, case.place, new, progress).items():
        if isinstance(key, str):
            tables.append(_approximation(case, about, key, one))
        else:
            attribute, method, k = key
            tables.append(_edits(case, about, attribute, method, k, one, gone[key]))
    tables += [_f1(case, about, f1s), _occlusion(case, sae, about), _splitting(case, about, active, z > 0)]
    return pl.concat(tables)


def _approximation(case: Case, about: Mapping[str, Any], method: str, one: Said) -> pl.DataFrame:
    n = len(one.ld)
    rows = {"criterion": "approximation", "method": method, "prompt": np.arange(n), "ld": one.ld}
    return as_table({**about, **rows, "template": case.task.prompts.template})


def _edits(
    case: Case, about: Mapping[str, Any], attribute: str, method: str, k: int, one: Said, gone: np.ndarray | None
) -> pl.DataFrame:
    n = len(one.top)
    wanted = case.patched[attribute].top
    tokenizer, prompts = case.task.model.tokenizer, case.task.prompts

    def words(tokens: np.ndarray) -> list[str | None]:
        return [tokenizer.decode([int(t)]).strip() if i < SHOWN else None for i, t in enumerate(tokens)]

    rows = {"criterion": "edit", "attribute": attribute, "method": method, "x": float(k), "prompt": np.arange(n)}
    rows |= {"ld": one.ld, "hit": (one.top == wanted).tolist(), "removed": gone, "template": prompts.template}
    rows |= {"text": [prompts.text(i) if i < SHOWN else None for i in range(n)]}
    return as_table({**about, **rows, "answer": words(one.top), "wanted": words(wanted)})


def _f1(case: Case, about: Mapping[str, Any], f1s: Mapping[str, interpret.Judged]) -> pl.DataFrame:
    tables = []
    for name, found in f1s.items():
        values = case.says[name][0]
        for method, score, size in (("single", found.single, [1.0] * len(values)), ("union", found.union, found.size)):
            rows = {"criterion": "f1", "attribute": name, "method": method, "value": values, "n": found.n.tolist()}
            tables.append(as_table({**about, **rows, "score": score.tolist(), "x": [float(s) for s in size]}))
    return pl.concat(tables)


def _occlusion(case: Case, sae: Sae, about: Mapping[str, Any]) -> pl.DataFrame:
    n = len(case.train)
    names = {a: case.train_says[a] for a in ("S", "IO")}
    codes = case.supervised["least squares"]
    found = phenomena.unmasked(
        sae.encode, case.train, case.train_labels, codes, ALPHAS, names, torch.arange(n) < 3 * n // 4
    )
    more = {**about, "criterion": "occlusion"}
    curve = pl.concat(
        as_table({**more, "attribute": name, "x": alpha, **scored(share)})
        for alpha, shares in found.items()
        for name, share in shares.items()
    )
    norms = {a: phenomena.norm(codes, ATTRIBUTES.index(a)) for a in names}
    read: dict[str, float] = dict(zip(ATTRIBUTES, decoded(codes, case.test, case.labels), strict=True))
    shares = {name: share.value for name, share in found[ALPHAS[0]].items()}
    hidden = phenomena.occlusion(shares, norms, {a: read[a] for a in names})
    verdict = {
        "method": "occluded",
        "n": n,
        "attribute": list(hidden),
        "score": [float(o.occluded) for o in hidden.values()],
    }
    return pl.concat([curve, as_table({**more, **verdict})])


def _splitting(case: Case, about: Mapping[str, Any], active: Tensor, z: Tensor) -> pl.DataFrame:
    tables, train, test = [], case.train_says, case.says
    meanings = torch.cat([train["S & Pos"][1], train["IO & Pos"][1]], dim=1)
    for number, value in enumerate(ORDERS):
        found = phenomena.splitting(active, train["Pos"][1][:, number], z, test["Pos"][1][:, number], meanings)
        rows = {"criterion": "splitting", "attribute": "Pos", "value": value, "n": len(z)}
        splinters = found.splinters[:LONGEST]
        low, high = interpret.union_f1_interval(z[:, splinters], test["Pos"][1][:, number], DRAWS)
        curve = {"score": found.union[:LONGEST].tolist(), "low": low.tolist(), "high": high.tolist()}
        sizes = [float(i + 1) for i in range(len(splinters))]
        tables.append(as_table({**about, **rows, "method": "union", "x": sizes, **curve}))
        facts = {"single": found.single, "splinters": float(found.held), "split": float(found.split)}
        tables.append(as_table({**about, **rows, "method": list(facts), "score": list(facts.values())}))
    return pl.concat(tables)
