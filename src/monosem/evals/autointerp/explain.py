"""Asks a judge for explanations, of all features at once (section K.1). Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

from monosem.evals.autointerp.prompts import explanation_messages, read_explanation
from monosem.evals.autointerp.records import PRESETS, Split
from monosem.judges import Answer, Judge, Request

ANSWER_TOKENS = 300  # of an explanation with some thinking before it
STEM, CONTINUED = "Explanation: it responds to", 60  # how an answer has to begin where it can be forced, and its tokens
RETRIES = 2
WARM = 0.7  # temperature of a retry: the same question at 0 has the same answer
MALFORMED = "malformed answer"
Progress = Callable[[int], object]
T = TypeVar("T")


class Explained(NamedTuple):
    """A feature's explanation, or why there is none; what it took in tokens, over all answers."""

    text: str | None
    reason: str | None
    prompt_tokens: int = 0
    completion_tokens: int = 0


def explanation_requests(splits: Sequence[Split], preset: str, seed: int = 0, continues: bool = False) -> list[Request]:
    """Return one question a feature; where the judge continues an answer, it is forced after a stem (section K.2)."""
    rules, stem = PRESETS[preset], (("assistant", STEM),) if continues else ()
    most = CONTINUED if continues else ANSWER_TOKENS
    return [Request((*explanation_messages(split, rules), *stem), max_tokens=most, seed=seed) for split in splits]


def explain(
    judge: Judge, splits: Sequence[Split], preset: str = "clerp", seed: int = 0, progress: Progress = lambda n: None
) -> list[Explained]:
    """Return the explanation of each feature. What can't be read is asked for twice more, then it is a failure."""
    requests = explanation_requests(splits, preset, seed, judge.continues)
    stem = STEM if judge.continues else ""
    answers, texts = ask_again(judge, requests, lambda a, _: read_explanation(stem + (a.text or "")), progress)
    return [
        Explained(
            text,
            None if text is not None else mine[-1].reason or MALFORMED,
            sum(answer.prompt_tokens for answer in mine),
            sum(answer.completion_tokens for answer in mine),
        )
        for text, mine in zip(texts, answers, strict=True)
    ]


def ask_again(
    judge: Judge,
    requests: Sequence[Request],
    read: Callable[[Answer, int], T | None],
    progress: Progress = lambda n: None,
) -> tuple[list[list[Answer]], list[T | None]]:
    """Ask all; ask up to RETRIES times more, differently, where an answer came but `read` finds nothing in it.

    read: gets an answer with a text, and the number of the request. Returns all answers of each request, and what was
    read from the last one.
    """
    given: list[list[Answer]] = [[answer] for answer in judge.ask(requests, progress)]
    found = [None if own[-1].text is None else read(own[-1], i) for i, own in enumerate(given)]
    for attempt in range(1, RETRIES + 1):
        left = [i for i, own in enumerate(given) if found[i] is None and own[-1].text is not None]
        if not left:
            break
        more = [replace(requests[i], seed=requests[i].seed + attempt, temperature=WARM) for i in left]
        for i, answer in zip(left, judge.ask(more), strict=True):
            given[i].append(answer)
            found[i] = None if answer.text is None else read(answer, i)
    return given, found
