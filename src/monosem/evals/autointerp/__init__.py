"""Automatic interpretation: explain a feature, simulate it, correlate (section K). See docs/autointerp.md.

One row a sampled feature. Explanations are made from examples in some documents; activations are predicted, and
correlated with the true ones, in examples from other documents.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from monosem.evals import Evaluation, Inputs, Judged, Result, RunInfo
from monosem.evals.autointerp.charts import autointerp_charts
from monosem.evals.autointerp.controls import chance, oracle, token_mean
from monosem.evals.autointerp.explain import MALFORMED, explanation_requests
from monosem.evals.autointerp.pipeline import (
    ALONE,
    SCORERS,
    Drawn,
    Explanation,
    by_judge,
    by_patterns,
    by_scorer,
    draw,
    predictions,
)
from monosem.evals.autointerp.records import PRESETS
from monosem.evals.autointerp.scores import expected_value, record_scores, score
from monosem.evals.autointerp.simulate import Job, Simulated, mode_of, simulation_requests, simulation_slots
from monosem.evals.autointerp.table import as_table, scalars_of
from monosem.firings import Firings, open_firings
from monosem.judges import Cost, Judge, Request, Slots, make_judge
from monosem.metrics import Array
from monosem.passages import Passages, open_passages
from monosem.schema import Chart
from monosem.store import file_hash
from monosem.types import Estimate, UserError

__all__ = ["Autointerp", "expected_value", "score"]

N2G = "n2g"
PLACEHOLDER = (
    "a rule in one sentence of about twenty-five words, as long as an explanation usually is, so that its cost " * 2
)
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class _Prepared:
    """What serves all runs. explainer, simulator: None for N2G."""

    inputs: Inputs
    passages: Passages
    explainer: Judge | None
    simulator: Judge | None


@dataclass(frozen=True)
class Autointerp(Evaluation):
    """Explain, simulate, correlate (section K).

    features: of each run. explainer, simulator: `n2g`, or a judge (`local`, `local:MODEL`, `MODEL@https://host/v1`);
    without a simulator it is the explainer. preset: how examples are sampled. scorers: also `detection`, `fuzzing`.
    per_request: scored examples of one question. budget_tokens, budget_money, prices (of a million prompt and answer
    tokens): where asking stops. concurrency, timeout: of an endpoint.
    """

    needs = ("codes", "sae")
    features: Count = 250
    explainer: str = N2G
    simulator: str = ""
    preset: Literal["clerp", "oai"] = "clerp"
    scorers: list[Literal["detection", "fuzzing"]] = field(default_factory=list)
    seed: Annotated[int, Field(ge=0)] = 0
    per_request: Count = 60
    concurrency: Count = 8
    timeout: Annotated[float, Field(gt=0)] = 60.0
    budget_tokens: int | None = None
    budget_money: float | None = None
    prices: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None

    def reads(self, inputs: Inputs, info: RunInfo) -> dict[str, Any]:
        scripts = {s.partition(":")[2] for s in (self.explainer, self._simulator) if s.startswith("scripted:")}
        return {"scripts": {path: file_hash(Path(path)) for path in sorted(scripts) if Path(path).is_file()}}

    def prepare(self, inputs: Inputs) -> _Prepared:
        return self._prepare(inputs, dry=False)

    def estimate(self, inputs: Inputs) -> list[str]:
        p = self._prepare(inputs, dry=True)
        return [f"{info.name}: {self._cost(info, p)}" for info in inputs.runs]

    def run(self, info: RunInfo, prepared: _Prepared) -> Result:
        p, began = prepared, time.perf_counter()
        firings = _codes(info, p.inputs)
        drawn = draw(firings, p.passages, self.features, self.preset, self.seed)
        ticker = p.inputs.ticker
        if p.explainer is None:
            model = _model(p.inputs)
            explained = by_patterns(info, model, p.inputs.site, drawn, p.passages, ticker)
        else:
            explained = by_judge(p.explainer, drawn, self.preset, self.seed, ticker)
        own, other = predictions(p.simulator, drawn, explained, self.preset, self.per_request, self.seed, ticker)
        rows = [
            self._row(one, explained[i], own[i], other[i], p.passages, firings.tokens) for i, one in enumerate(drawn)
        ]
        for name in self.scorers:
            assert p.simulator is not None
            found = by_scorer(name, p.simulator, drawn, explained, p.passages, self.seed, ticker)
            for row, more in zip(rows, found, strict=True):
                row |= {(f"{name}_reason" if key == "reason" else key): value for key, value in more.items()}
        table = as_table(rows)
        scalars, reasons = scalars_of(table, p.inputs.bootstrap)
        scalars["l0"] = Estimate.exact(firings.rows / firings.tokens, firings.tokens)
        for name in ("prompt_tokens", "completion_tokens"):
            scalars[name] = Estimate.exact(sum(row[name] for row in rows), len(rows))
        scalars["seconds"] = Estimate.exact(time.perf_counter() - began, len(rows))
        return Result(scalars, table, reasons, _incomplete(rows, self.scorers))

    def figure(self, judged: list[Judged]) -> list[Chart]:
        return autointerp_charts(judged, self.explainer, self._simulator, self.preset)

    @property
    def _simulator(self) -> str:
        return self.simulator or self.explainer

    def _prepare(self, inputs: Inputs, dry: bool) -> _Prepared:
        if self._simulator == N2G and self.explainer != N2G:
            raise UserError(f'simulator = "{N2G}": follows patterns of explainer = "{N2G}" only; choose another one')
        if self.scorers and self._simulator == N2G:
            raise UserError(f"scorers = {self.scorers}: ask a language model; choose a simulator other than {N2G}")
        explainer = self._judge(self.explainer, inputs, dry)
        simulator = explainer if self._simulator == self.explainer else self._judge(self._simulator, inputs, dry)
        if explainer and simulator:
            simulator.budget = explainer.budget
        return _Prepared(inputs, open_passages(inputs.folder), explainer, simulator)

    def _judge(self, spec: str, inputs: Inputs, dry: bool) -> Judge | None:
        if spec == N2G:
            return None
        prices = None if self.prices is None else (self.prices[0], self.prices[1])
        return make_judge(
            spec,
            cache=inputs.folder / "judges",
            concurrency=self.concurrency,
            budget_tokens=self.budget_tokens,
            budget_money=self.budget_money,
            prices=prices,
            timeout=self.timeout,
            model=inputs.model,
            dry_run=dry,
        )

    def _cost(self, info: RunInfo, p: _Prepared) -> str:
        """Return what a run would cost, with explanations of a usual length where there are none yet."""
        drawn = draw(_codes(info, p.inputs), p.passages, self.features, self.preset, self.seed)
        cost = Cost()
        if p.explainer:
            cost += p.explainer.estimate(
                explanation_requests([d.split for d in drawn], self.preset, self.seed, p.explainer.continues)
            )
        if p.simulator:
            jobs = [Job(d.split.feature, PLACEHOLDER, d.split.score) for d in drawn]
            mode, levels = mode_of(p.simulator), PRESETS[self.preset].levels
            asked: Sequence[Request | Slots] = (
                simulation_slots(jobs, levels)
                if mode == "slots"
                else simulation_requests(jobs, mode, levels, self.per_request, self.seed)
            )
            cost += p.simulator.estimate(asked) + p.simulator.estimate(asked)  # by the own and by another explanation
            for name in self.scorers:
                make, requests_of, _ = SCORERS[name]
                trials = [make(d.split.feature, d.split, d.fires, p.passages, self.seed) for d in drawn]
                cost += p.simulator.estimate([one for trial in trials for one in requests_of(trial, PLACEHOLDER)])
        if not (p.explainer or p.simulator):
            return f"{len(drawn)} features, {N2G} asks no judge"
        money = "" if cost.money is None else f", at most {cost.money:.2f} of money"
        return (
            f"{len(drawn)} features, {cost.requests:,} questions, {cost.prompt_tokens:,} prompt tokens and at most "
            f"{cost.completion_tokens:,} answer tokens{money}; {cost.cached:,} answers are on disk"
        )

    def _row(
        self, one: Drawn, explained: Explanation, own: Simulated, other: Simulated, passages: Passages, tokens: int
    ) -> dict[str, Any]:
        split, rules = one.split, PRESETS[self.preset]
        rivals: dict[str, list[Array] | None] = {
            "": own.values,
            "_shuffled": other.values,
            "_oracle": oracle(split, rules),
            "_token_mean": token_mean(split, one.fires, passages),
            "_chance": chance(split, self.seed),
        }
        row: dict[str, Any] = {"feature": split.feature, "explanation": explained.text}
        for suffix, values in rivals.items():
            if values is not None:
                row |= {f"{name}{suffix}": value for name, value in record_scores(split.score, values).items()}
        scored = int(sum(record.measured.sum() for record in split.score))
        firing = sum(record.values[record.at] > 0 for record in split.explain)
        return row | {
            "failed": own.values is None,
            "reason": own.reason or (None if row["pearson"] is not None else _undefined(own, split.score)),
            "shuffled_failed": other.values is None,
            "shuffled_reason": other.reason,
            "mismatched": own.mismatched / max(1, len(split.score)) if own.values is not None else None,
            "undecided": own.undecided / max(1, scored) if own.values is not None else None,
            "missed": None if explained.trie is None else explained.trie.missed / max(1, firing),
            "peak": float(one.fires.value.max()),
            "density": len(one.fires.value) / tokens,
            "explain_examples": len(split.explain),
            "score_examples": len(split.score),
            "explain_missing": _told(split.explain_missing),
            "score_missing": _told(split.score_missing),
            "score_tokens": scored,
            "prompt_tokens": explained.prompt_tokens + own.prompt_tokens + other.prompt_tokens,
            "completion_tokens": explained.completion_tokens + own.completion_tokens + other.completion_tokens,
        }


def _codes(info: RunInfo, inputs: Inputs) -> Firings:
    firings = open_firings(inputs.folder, info.name)
    if firings.sae != info.sae:
        raise UserError(f"{firings.folder}: codes of other weights of {info.name}; run `monosem measure` first")
    return firings


def _model(inputs: Inputs) -> Any:
    if inputs.model is None:
        raise UserError(f'explainer = "{N2G}": runs the study\'s language model, and there is none')
    return inputs.model()


def _undefined(own: Simulated, records: Any) -> str:
    """Return which side is constant."""
    truth = np.concatenate([record.values[record.measured] for record in records] or [np.zeros(0)])
    if not len(truth) or np.ptp(truth) == 0:
        return "undefined: the true activations are all equal"
    return "undefined: the predicted activations are all equal"


def _told(missing: dict[str, int]) -> str | None:
    return ", ".join(f"{group}: {n}" for group, n in missing.items()) or None


def _incomplete(rows: list[dict[str, Any]], scorers: Sequence[str]) -> str:
    """Return in words what failed, "" if nothing did; the same command then asks again for that only.

    What was answered but can't be read is final: it was asked for often enough.
    """
    whys = []
    for row in rows:
        found = [row["reason"] if row["failed"] else None, row["shuffled_reason"]]
        found += [row.get(f"{name}_reason") if row.get(f"{name}_failed") else None for name in scorers]
        whys += [why for why in found if why and MALFORMED not in why and why != ALONE][:1]
    return f"{len(whys)} of {len(rows)} features lack a score or its control ({whys[0]})" if whys else ""
