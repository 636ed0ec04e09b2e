"""Asks a judge to predict activations from explanations, in the way that it supports (section K.2). Imports no torch.

slots: all at once, the chances of the integers are read behind every token; logprobs: one completion that
writes the tokens again with integers, whose chances come along; text: the same without chances.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from monosem.evals.autointerp.explain import MALFORMED, ask_again
from monosem.evals.autointerp.prompts import quoted, simulation_question, slots_question
from monosem.evals.autointerp.records import Record
from monosem.evals.autointerp.scores import expected_value
from monosem.judges import Answer, Judge, Request, Slots
from monosem.metrics import Array

CANDIDATES = 15  # tokens whose chances are asked for
Mode = Literal["slots", "logprobs", "text"]
Progress = Callable[[int], object]
_LINE = re.compile(r'^[ \t]*(".*")[ \t]+(\S+)[ \t]*\r?$', re.MULTILINE)
_HEADER = re.compile(r"^[ \t]*Text (\d{1,4})[ \t]*\r?$", re.MULTILINE)


@dataclass(frozen=True, eq=False)
class Job:
    """What is to be simulated: records of a feature by an explanation (its own or, as a control, another's)."""

    feature: int
    explanation: str
    records: Sequence[Record]


class Simulated(NamedTuple):
    """Predictions, float64 [n] for each record, on the judge's scale; or None and why.

    mismatched: records that the judge did not repeat exactly, which are all 0; undecided: tokens without any integer
    among the candidates, which are 0.
    """

    values: list[Array] | None
    reason: str | None
    mismatched: int = 0
    undecided: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Block(NamedTuple):
    """The predictions for some records of one answer."""

    values: list[Array]
    mismatched: int
    undecided: int


def mode_of(judge: Judge) -> Mode:
    """Return the way of simulating that a judge supports. Raises UserError when it can't be reached."""
    return "slots" if judge.reads_slots else "logprobs" if judge.gives_logprobs else "text"


def simulation_slots(jobs: Sequence[Job], levels: int) -> list[Slots]:
    """Return one question a job, for `slots`."""
    return [slots_question(job.explanation, job.records, levels) for job in jobs]


def simulation_requests(
    jobs: Sequence[Job], mode: Literal["logprobs", "text"], levels: int, per_request: int, seed: int = 0
) -> list[Request]:
    """Return the questions of all jobs, in order."""
    requests = []
    for job in jobs:
        for part in _parts(job, per_request, seed):
            messages = simulation_question(job.explanation, part, levels)
            room = sum(len(quoted([token])) // 2 + 4 for record in part for token in record.tokens) + 8 * len(part)
            chances = CANDIDATES if mode == "logprobs" else 0
            requests.append(Request(messages, max_tokens=room, seed=seed, top_logprobs=chances))
    return requests


def simulate(
    judge: Judge,
    jobs: Sequence[Job],
    levels: int,
    per_request: int = 60,
    seed: int = 0,
    progress: Progress = lambda n: None,
) -> list[Simulated]:
    """Return the predictions of all jobs, asked at once.

    A job with a failed or unreadable answer (after two retries) has a reason and no values.
    """
    mode = mode_of(judge)
    if mode == "slots":
        slots = simulation_slots(jobs, levels)
        read = zip(jobs, slots, judge.chances(slots, progress), strict=True)
        return [_from_chances(chances, job.records, judge.prompt_tokens(one)) for job, one, chances in read]
    parts = [_parts(job, per_request, seed) for job in jobs]
    flat = [part for own in parts for part in own]
    requests = simulation_requests(jobs, mode, levels, per_request, seed)
    answers, blocks = ask_again(judge, requests, lambda a, i: read_simulation(a, flat[i], levels), progress)
    out, start = [], 0
    for job, own in zip(jobs, parts, strict=True):
        here = slice(start, start := start + len(own))
        out.append(_joined(job, own, blocks[here], answers[here]))
    return out


def _parts(job: Job, per_request: int, seed: int) -> list[list[Record]]:
    """Return the records in random order, so that groups can't be told apart, in parts of one question each."""
    order = np.random.default_rng([seed, job.feature, 2]).permutation(len(job.records)).tolist()
    shuffled = [job.records[i] for i in order]
    return [shuffled[i : i + per_request] for i in range(0, len(shuffled), per_request)]


def _joined(
    job: Job, parts: list[list[Record]], blocks: Sequence[_Block | None], answers: Sequence[list[Answer]]
) -> Simulated:
    given = [answer for own in answers for answer in own]
    tokens = sum(answer.prompt_tokens for answer in given), sum(answer.completion_tokens for answer in given)
    found = [block for block in blocks if block is not None]
    if len(found) < len(blocks):
        reason = answers[[block is None for block in blocks].index(True)][-1].reason or MALFORMED
        return Simulated(None, reason, prompt_tokens=tokens[0], completion_tokens=tokens[1])
    by_record = {
        id(record): value
        for part, block in zip(parts, found, strict=True)
        for record, value in zip(part, block.values, strict=True)
    }
    values = [by_record[id(record)] for record in job.records]
    return Simulated(values, None, sum(b.mismatched for b in found), sum(b.undecided for b in found), *tokens)


def _from_chances(chances: np.ndarray | None, records: Sequence[Record], prompt_tokens: int) -> Simulated:
    """Return the expected integer at each place; chances: [places, integers]."""
    if chances is None:
        return Simulated(None, "no chances could be read")
    total = chances.sum(1)
    mean = np.divide(chances @ np.arange(chances.shape[1]), total, out=np.zeros(len(total)), where=total > 0)
    ends = np.cumsum([len(record.tokens) for record in records])
    return Simulated(np.split(mean, ends[:-1]), None, 0, int((total <= 0).sum()), prompt_tokens)


def read_simulation(answer: Answer, records: Sequence[Record], levels: int) -> _Block | None:
    """Return the predictions in an answer, None if it has another form altogether, or repeats no record.

    A record whose tokens are not repeated exactly is all 0 and counted; what is no integer is 0 (section K.2).
    """
    text, chances = _with_chances(answer)
    blocks = _blocks(text)
    if not blocks:
        return None
    values, mismatched, undecided = [], 0, 0
    for number, record in enumerate(records, 1):
        lines = blocks.get(number, [])
        value = np.zeros(len(record.tokens))
        values.append(value)
        if [_plain(line[1]) for line in lines] != [_plain(quoted([token])) for token in record.tokens]:
            mismatched += 1
            continue
        for i, line in enumerate(lines):
            said = line[2].strip()
            here = chances.get(line.start(2))
            if here is not None and here[0] == said:
                value[i] = expected_value(here[1], range(levels + 1))
                undecided += not any(_is_level(token, levels) for token in here[1])
            elif re.fullmatch(r"\d{1,3}", said):
                value[i] = min(int(said), levels)
    return _Block(values, mismatched, undecided) if mismatched < len(records) else None


def _blocks(text: str) -> dict[int, list[re.Match[str]]]:
    """Return the lines below each header, by its number; of a number that comes twice the last one counts."""
    headers = [(match.start(), int(match[1])) for match in _HEADER.finditer(text)]
    blocks: dict[int, list[re.Match[str]]] = {}
    ends = [start for start, _ in [*headers[1:], (len(text), 0)]][: len(headers)]
    for (start, number), end in zip(headers, ends, strict=True):
        blocks[number] = list(_LINE.finditer(text, start, end))
    return blocks if any(blocks.values()) else {}


def _with_chances(answer: Answer) -> tuple[str, dict[int, tuple[str, dict[str, float]]]]:
    """Return the text, and by the offset of each generated token (spaces left out) its text and chances."""
    joined = "".join(token for token, _ in answer.tokens)
    if not joined or joined.strip() != (answer.text or "").strip():
        return answer.text or "", {}
    chances, offset = {}, 0
    for token, candidates in answer.tokens:
        lead = len(token) - len(token.lstrip())
        chances[offset + lead] = token.strip(), {t: math.exp(min(0.0, p)) for t, p in candidates.items()}
        offset += len(token)
    return joined, chances


def _is_level(token: str, levels: int) -> bool:
    return token.strip() in {str(level) for level in range(levels + 1)}


def _plain(token: str) -> str:
    """Return what a quoted token says, spaces at its ends left out (judges drop them)."""
    try:
        return str(json.loads(token)).strip()
    except ValueError:
        return token[1:-1].strip()
