"""From a run's codes to predictions: examples, explanations, simulations, questions of the other scorers.

Everything that is asked of a judge is asked for all features of a run at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from monosem.evals import RunInfo
from monosem.evals.autointerp.controls import partners
from monosem.evals.autointerp.detection import detection_requests, detection_score, detection_trial
from monosem.evals.autointerp.explain import explain
from monosem.evals.autointerp.fuzzing import fuzzing_requests, fuzzing_score, fuzzing_trial
from monosem.evals.autointerp.n2g import Probe, explain_by_patterns
from monosem.evals.autointerp.questions import Trial, retries
from monosem.evals.autointerp.records import PRESETS, Split, draw_features, sample_records
from monosem.evals.autointerp.simulate import Job, Simulated, simulate
from monosem.evals.autointerp.tries import Trie
from monosem.firings import Fires, Firings
from monosem.formats.saelens import load_sae
from monosem.judges import Answer, Judge, Request
from monosem.model import Model
from monosem.passages import Passages
from monosem.progress import Ticker
from monosem.text import separator_id

SCORERS: dict[str, tuple[Callable[..., Trial], Callable[..., list[Request]], Callable[..., dict[str, Any]]]] = {
    "detection": (detection_trial, detection_requests, detection_score),
    "fuzzing": (fuzzing_trial, fuzzing_requests, fuzzing_score),
}


ALONE = "no other feature"


class Drawn(NamedTuple):
    """A sampled feature: its examples, and all its firings."""

    split: Split
    fires: Fires


@dataclass(frozen=True, eq=False)
class Explanation:
    """An explanation: words for judges and pages, and the patterns if it came from N2G; or why there is none."""

    text: str | None
    reason: str | None = None
    trie: Trie | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


def draw(firings: Firings, passages: Passages, features: int, preset: str, seed: int) -> list[Drawn]:
    """Return the sampled features of a run with their examples."""
    chosen = draw_features(firings, features, seed)
    return [Drawn(sample_records(f, fires, passages, preset, seed), fires) for f, fires in firings.each(chosen)]


def by_judge(judge: Judge, drawn: Sequence[Drawn], preset: str, seed: int, ticker: Ticker) -> list[Explanation]:
    """Return the explanations that a judge gives."""
    with ticker.bar("explain", len(drawn), "features") as bar:
        found = explain(judge, [one.split for one in drawn], preset, seed, bar.add)
    return [Explanation(e.text, e.reason, None, e.prompt_tokens, e.completion_tokens) for e in found]


def by_patterns(
    info: RunInfo, model: Model, site: str, drawn: Sequence[Drawn], passages: Passages, ticker: Ticker
) -> list[Explanation]:
    """Return N2G's explanations. model: the study's own."""
    probe = Probe(model, model.site(site), load_sae(info.folder).to(model.device), separator_id(model.tokenizer))
    firing = sum(r.values[r.at] > 0 for one in drawn for r in one.split.explain)
    with ticker.bar("explain", int(firing), "examples") as bar:
        tries = explain_by_patterns([one.split for one in drawn], probe, bar.add)
    return [Explanation(trie.describe(passages.text), None, trie) for trie in tries]


def predictions(
    judge: Judge | None,
    drawn: Sequence[Drawn],
    explanations: Sequence[Explanation],
    preset: str,
    per_request: int,
    seed: int,
    ticker: Ticker,
) -> tuple[list[Simulated], list[Simulated]]:
    """Return what each feature's own explanation predicts, and what another's does, by the same simulator.

    judge: None for patterns, which are followed to the letter.
    """
    others = partners([one.split.feature for one in drawn], seed)
    pairs = [(i, i) for i in range(len(drawn))] + list(enumerate(others))
    found = [_without(explanations, other) for _, other in pairs]
    todo = [(n, i, explanations[other]) for n, (i, other) in enumerate(pairs) if found[n] is None and other is not None]
    questions = sum(1 if judge is None else -(-len(drawn[i].split.score) // per_request) for _, i, _ in todo)
    with ticker.bar("simulate", questions, "questions") as bar:
        if judge is None:
            for n, i, explanation in todo:
                assert explanation.trie is not None
                found[n] = Simulated([explanation.trie.on(record) for record in drawn[i].split.score], None)
                bar.add(1)
        else:
            jobs = [Job(drawn[i].split.feature, e.text or "", drawn[i].split.score) for _, i, e in todo]
            levels = PRESETS[preset].levels
            for (n, _, _), one in zip(todo, simulate(judge, jobs, levels, per_request, seed, bar.add), strict=True):
                found[n] = one
    done = [one for one in found if one is not None]
    return done[: len(drawn)], done[len(drawn) :]


def _without(explanations: Sequence[Explanation], which: int | None) -> Simulated | None:
    """Return a failure where there is no explanation to simulate by."""
    if which is None:
        return Simulated(None, ALONE)
    return (
        Simulated(None, f"no explanation: {explanations[which].reason}") if explanations[which].text is None else None
    )


def by_scorer(
    name: str,
    judge: Judge,
    drawn: Sequence[Drawn],
    explanations: Sequence[Explanation],
    passages: Passages,
    seed: int,
    ticker: Ticker,
) -> list[dict[str, Any]]:
    """Return what the scorer `name` finds of each feature; {"reason": ...} where there is no explanation."""
    make, requests_of, score_of = SCORERS[name]
    trials, requests = [], []
    for one, explanation in zip(drawn, explanations, strict=True):
        trials.append(make(one.split.feature, one.split, one.fires, passages, seed))
        requests.append([] if explanation.text is None else requests_of(trials[-1], explanation.text))
    with ticker.bar(name, sum(map(len, requests)), "questions") as bar:
        answers = ask_nested(judge, requests, bar.add)
    asked = [i for i, explanation in enumerate(explanations) if explanation.text is not None]
    again = {i: retries(trials[i], requests[i], answers[i]) for i in asked}
    for i, more in zip(again, ask_nested(judge, [list(a.values()) for a in again.values()]), strict=True):
        for place, answer in zip(again[i], more, strict=True):
            answers[i][place] = answer
    return [
        score_of(trials[i], answers[i]) if i in again else {"reason": f"no explanation: {explanations[i].reason}"}
        for i in range(len(drawn))
    ]


def ask_nested(
    judge: Judge, requests: Sequence[Sequence[Request]], progress: Callable[[int], object] = lambda n: None
) -> list[list[Answer]]:
    """Ask the questions of all features at once and return the answers by feature."""
    answers = iter(judge.ask([one for own in requests for one in own], progress))
    return [[next(answers) for _ in own] for own in requests]
