"""Judges: language models that answer requests, behind one small interface (section K.3). Imports no torch.

A judge knows nothing of SAEs. It answers a list of requests in order, keeps every whole answer on disk, stops at a
budget, and turns a failure into an `Answer` with a reason and no text: nothing is ever scored from a failed answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from monosem.judges.budget import Budget, Cost, message_tokens, text_tokens
from monosem.judges.cache import AnswerLog
from monosem.store import value_hash
from monosem.types import UserError

if TYPE_CHECKING:
    from monosem.model import Model

__all__ = ["Answer", "Budget", "Cost", "Judge", "Request", "Slots", "make_judge"]

T = TypeVar("T")
Progress = Callable[[int], object]
Deliver = Callable[[int, "Answer"], None]
DeliverChances = Callable[[int, "np.ndarray | None", int], None]


@dataclass(frozen=True)
class Request:
    """One question: messages of (role, text), with role `system`, `user` or `assistant`.

    A last message of the assistant is the beginning of the answer, and the answer continues it (where the judge
    `continues`). max_tokens: largest number of generated tokens; top_logprobs: above 0, how many candidates of each
    generated token are wanted.
    """

    messages: tuple[tuple[str, str], ...]
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    top_logprobs: int = 0


@dataclass(frozen=True)
class Answer:
    """What came back: a text, or the reason why there is none.

    tokens: each generated token with its most likely candidates, text -> log probability in nats; empty unless asked
    for. prompt_tokens, completion_tokens: as the judge counts them. cached: read from disk, nothing was spent.
    """

    text: str | None
    reason: str | None
    tokens: tuple[tuple[str, dict[str, float]], ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: bool = False

    def __post_init__(self) -> None:
        """Refuse an answer that has both a text and a reason, or neither."""
        if (self.text is None) == (self.reason is None):
            raise ValueError("an answer has either a text or a reason")

    @classmethod
    def failed(cls, reason: str) -> Answer:
        """Return an answer without text."""
        return cls(None, reason)


@dataclass(frozen=True)
class Slots:
    """Texts with places at which the chances of the next words are wanted, without generating anything.

    texts: beginnings of the answer, each for itself: none sees another. at: for each text, rising character offsets in
    it at which it is cut off, and the chances are read behind `bridge`, such as a tab. choices: what could stand there,
    such as "0" to "10". A choice may be several tokens, and one choice may begin another: the chance of "1" is that of
    "1" without "10" if both are choices.
    """

    messages: tuple[tuple[str, str], ...]
    texts: tuple[str, ...]
    at: tuple[tuple[int, ...], ...]
    choices: tuple[str, ...]
    bridge: str = ""

    def __post_init__(self) -> None:
        """Refuse places outside their text or out of order, and choices that are empty or there twice."""
        for text, at in zip(self.texts, self.at, strict=True):
            if not all(0 <= place <= len(text) for place in at) or list(at) != sorted(set(at)):
                raise ValueError("at: offsets must rise and lie within their text")
        if not all(self.choices) or len(set(self.choices)) != len(self.choices):
            raise ValueError("choices: must differ and not be empty")

    @property
    def places(self) -> int:
        """Number of places in all texts."""
        return sum(map(len, self.at))


class Judge:
    """Answers requests; subclasses implement `_answer`, and `_chances` where they can read slots.

    identity: what an answer depends on besides the request, JSON-able; with the request it is the key in the cache.
    dry: send nothing, answer with the reason "dry run".
    """

    reads_slots = False
    continues = False  # whether it goes on with a beginning of its answer: chat endpoints differ in that

    def __init__(
        self, name: str, identity: Any, log: AnswerLog | None, budget: Budget, seed: int = 0, dry: bool = False
    ):
        """Remember the parts."""
        self.name, self.identity, self.log, self.budget = name, identity, log, budget
        self.seed, self.dry = seed, dry

    @property
    def gives_logprobs(self) -> bool:
        """Whether answers have the chances of their tokens when they are asked for."""
        return False

    @property
    def spent(self) -> Cost:
        """What was spent since the judge was made; answers from the cache cost nothing."""
        return self.budget.spent

    def prepare(self) -> None:
        """Get ready for questions, once; here there is nothing to do."""

    def ask(self, requests: Sequence[Request], progress: Progress = lambda n: None) -> list[Answer]:
        """Return the answers, in the order of the requests.

        Equal requests are asked once. progress is called with the number of requests that were just answered. Raises
        UserError when the judge can't be reached at all (address, key, model); one bad answer is an `Answer` with a
        reason.
        """
        self.prepare()
        answers: dict[Request, Answer] = {}
        wanted = [self._seeded(one) for one in requests]
        count = _counts(wanted)
        missing: list[Request] = []
        for request in count:
            found = self._kept(request)
            if found is None:
                missing.append(request)
            else:
                answers[request] = found
                progress(count[request])

        def deliver(i: int, answer: Answer) -> None:
            answers[missing[i]] = answer
            progress(count[missing[i]])

        if missing and self.dry:
            for i in range(len(missing)):
                deliver(i, Answer.failed("dry run"))
        elif missing:
            self._answer(missing, deliver)
        return [answers[request] for request in wanted]

    def chances(self, slots: Sequence[Slots], progress: Progress = lambda n: None) -> list[np.ndarray | None]:
        """Return, for each, the chances of the choices at the places of all its texts, float64 [places, choices].

        None: failed. Rows sum to at most 1, the rest is everything that is not a choice. Only judges with `reads_slots`
        give any.
        """
        self.prepare()
        found: dict[Slots, np.ndarray | None] = {}
        count = _counts(slots)
        missing: list[Slots] = []
        for one in count:
            chances = self._kept(one)
            if chances is None:
                missing.append(one)
            else:
                found[one] = chances
                progress(count[one])

        def deliver(i: int, chances: np.ndarray | None, tokens: int) -> None:
            found[missing[i]] = chances
            if chances is not None and self.log:
                value = {"chances": chances.tolist(), "prompt_tokens": tokens}
                self.log.put(self._key(missing[i]), dataclasses.asdict(missing[i]), value)
            progress(count[missing[i]])

        if missing and (self.dry or not self.reads_slots):
            for i in range(len(missing)):
                deliver(i, None, 0)
        elif missing:
            self._chances(missing, deliver)
        return [found[one] for one in slots]

    def estimate(self, asked: Sequence[Request | Slots]) -> Cost:
        """Return what `ask` or `chances` would cost at most, if every answer is as long as it may be. Sends nothing.

        Prompt tokens are counted by the judge's tokenizer where it has one, else estimated from the text.
        """
        self.prepare()
        fresh = [one for one in _counts(map(self._seeded, asked)) if self._kept(one) is None]
        prompt = sum(self.prompt_tokens(one) for one in fresh)
        cost = self.budget.cost(prompt, sum(one.max_tokens for one in fresh if isinstance(one, Request)))
        return dataclasses.replace(cost, requests=len(fresh), cached=len(asked) - len(fresh))

    def prompt_tokens(self, asked: Request | Slots) -> int:
        """Return the number of tokens of a question; here an estimate from the text."""
        texts = asked.texts if isinstance(asked, Slots) else ()
        return message_tokens(asked.messages) + sum(map(text_tokens, texts))

    def keep(self, request: Request, answer: Answer) -> Answer:
        """Store a whole, successful answer on disk and return it."""
        if answer.reason is None and self.log:
            fields = {k: v for k, v in dataclasses.asdict(answer).items() if k not in ("cached", "reason")}
            self.log.put(self._key(request), dataclasses.asdict(request), fields)
        return answer

    def _key(self, asked: Any) -> str:
        kind = type(asked).__name__.lower()
        return value_hash({"judge": self.identity, kind: dataclasses.asdict(asked)})

    def _seeded(self, asked: T) -> T:
        return dataclasses.replace(asked, seed=asked.seed + self.seed) if isinstance(asked, Request) else asked

    def _kept(self, asked: Any) -> Any:
        """Return what is on disk for a question: an `Answer`, or chances; None where there is nothing."""
        kept = self.log.get(self._key(asked)) if self.log else None
        if isinstance(asked, Slots):
            return _read_chances(kept, asked)
        try:
            if kept is None:
                return None
            tokens = tuple((str(token), dict(chances)) for token, chances in kept["tokens"])
            prompt, completion = int(kept["prompt_tokens"]), int(kept["completion_tokens"])
            return Answer(str(kept["text"]), None, tokens, prompt, completion, cached=True)
        except (KeyError, TypeError, ValueError):
            return None  # an edited line: as if it were not there

    def _answer(self, requests: list[Request], deliver: Deliver) -> None:
        """Answer every request, in any order: `deliver(index, answer)` once each."""
        raise NotImplementedError

    def _chances(self, slots: list[Slots], deliver: DeliverChances) -> None:
        """Read every slot, in any order: `deliver(index, chances or None, prompt tokens)` once each."""
        raise NotImplementedError


def _read_chances(kept: Any, slots: Slots) -> np.ndarray | None:
    try:
        chances = np.array(kept["chances"], dtype=np.float64)
    except (KeyError, TypeError, ValueError):
        return None
    return chances if chances.shape == (slots.places, len(slots.choices)) else None


def _counts(items: Iterable[Any]) -> dict[Any, int]:
    """Count equal items, in the order in which each comes first."""
    count: dict[Any, int] = {}
    for item in items:
        count[item] = count.get(item, 0) + 1
    return count


def make_judge(
    spec: str,
    *,
    cache: Path,
    concurrency: int = 8,
    budget_tokens: int | None = None,
    budget_money: float | None = None,
    prices: tuple[float, float] | None = None,
    timeout: float = 60,
    seed: int = 0,
    model: Callable[[], Model] | None = None,
    dry_run: bool = False,
) -> Judge:
    """Return the judge that `spec` names.

    spec: `local` (the model that `model()` gives, else the embedded one), `local:PATH_OR_HUB_ID`,
    `MODEL@http(s)://host/v1` (any OpenAI-compatible endpoint), or `scripted:FILE.json`. cache: folder of the answers
    on disk. prices: money for a million prompt tokens and for a million generated ones. timeout: seconds for one
    attempt. seed: added to the seed of every request. Nothing is sent and no model is loaded before the first question.
    Raises UserError that says what a spec looks like, or what is wrong with the budget.
    """
    budget = Budget.checked(budget_tokens, budget_money, prices)
    if concurrency < 1 or not timeout > 0:
        raise UserError(f"concurrency = {concurrency}, timeout = {timeout:g}: both must be above 0")
    kind, _, rest = spec.partition(":")
    if spec == "local" or (kind == "local" and rest):
        from monosem.judges.local import LocalJudge

        return LocalJudge(rest, cache=cache, budget=budget, seed=seed, model=None if rest else model, dry=dry_run)
    if kind == "scripted" and rest:
        from monosem.judges.scripted import ScriptedJudge

        return ScriptedJudge.from_file(Path(rest), budget=budget, seed=seed, dry=dry_run)
    if "@http://" in spec or "@https://" in spec:
        from monosem.judges.http import HttpJudge, endpoint_of

        endpoint = endpoint_of(spec)
        return HttpJudge(
            endpoint, cache=cache, budget=budget, seed=seed, dry=dry_run, concurrency=concurrency, timeout=timeout
        )
    raise UserError(
        f'judge "{spec}": not known; give local, local:PATH_OR_HUB_ID, MODEL@https://host/v1 (an OpenAI-compatible '
        "endpoint) or scripted:FILE.json"
    )
