"""A judge whose answers are written down beforehand, for tests. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monosem.judges import Answer, Budget, Deliver, DeliverChances, Judge, Request, Slots
from monosem.judges.budget import message_tokens, text_tokens
from monosem.store import read_json
from monosem.types import UserError

_FORM = (
    'give {"rules": [{"contains": "words of the question", "answer": "text"}], "default": "text"}, where a rule may '
    'have "reason" or "chances" (a list, one a choice) instead of "answer"'
)


class ScriptedJudge(Judge):
    """Answers by a Python function, or by the first rule of a file that fits.

    answer: Request -> text, `Answer`, or None for a failure. read: Slots -> chances [places, choices] or None. Nothing
    is stored on disk. asked: every request that was answered, in order.
    """

    def __init__(
        self,
        answer: Callable[[Request], str | Answer | None],
        read: Callable[[Slots], Any] | None = None,
        *,
        name: str = "scripted",
        logprobs: bool = False,
        budget: Budget | None = None,
        seed: int = 0,
        dry: bool = False,
    ):
        """Remember the functions."""
        super().__init__(name, {"scripted": name}, None, budget or Budget(), seed, dry)
        self.answer, self.read, self.logprobs = answer, read, logprobs
        self.reads_slots = read is not None
        self.asked: list[Request] = []

    @property
    def gives_logprobs(self) -> bool:
        """As told."""
        return self.logprobs

    @classmethod
    def from_file(cls, path: Path, budget: Budget | None = None, seed: int = 0, dry: bool = False) -> ScriptedJudge:
        """Return a judge that answers by the rules of a JSON file. Raises UserError when it has another form."""
        script = read_json(path)
        rules = script.get("rules", []) if isinstance(script, dict) else None
        if not isinstance(rules, list) or not all(
            isinstance(rule, dict)
            and isinstance(rule.get("contains"), str)
            and len({"answer", "reason", "chances"} & set(rule)) == 1
            for rule in rules
        ):
            raise UserError(f"{path}: not a script; {_FORM}")
        default = script.get("default")

        def answer(request: Request) -> str | Answer | None:
            rule = _first(rules, request.messages, ("answer", "reason"))
            return default if rule is None else rule.get("answer") or Answer.failed(rule.get("reason") or "scripted")

        def read(slots: Slots) -> Any:
            rule = _first(rules, (*slots.messages, ("assistant", "\n".join(slots.texts))), ("chances",))
            return None if rule is None else np.tile(np.array(rule["chances"], dtype=np.float64), (slots.places, 1))

        reads = any("chances" in rule for rule in rules)
        name, logprobs = f"scripted:{path.name}", bool(script.get("gives_logprobs"))
        reader = read if reads else None
        return cls(answer, reader, name=name, logprobs=logprobs, budget=budget, seed=seed, dry=dry)

    def _answer(self, requests: list[Request], deliver: Deliver) -> None:
        for i, request in enumerate(requests):
            prompt = message_tokens(request.messages)
            if not self.budget.hold(prompt, request.max_tokens):
                deliver(i, Answer.failed("budget"))
                continue
            self.asked.append(request)
            found = self.answer(request)
            if found is None or found == "":
                found = Answer.failed("scripted" if found is None else "empty answer")
            elif isinstance(found, str):
                found = Answer(found, None, (), prompt, text_tokens(found))
            used = self.budget.cost(found.prompt_tokens, found.completion_tokens)
            self.budget.settle(prompt, request.max_tokens, used)
            deliver(i, found)

    def _chances(self, slots: list[Slots], deliver: DeliverChances) -> None:
        for i, one in enumerate(slots):
            prompt = message_tokens(one.messages) + sum(map(text_tokens, one.texts))
            if not self.budget.hold(prompt, 0):
                deliver(i, None, 0)
                continue
            chances = self.read(one) if self.read else None
            self.budget.settle(prompt, 0, self.budget.cost(prompt, 0))
            deliver(i, None if chances is None else _checked(chances, one), prompt)


def _checked(chances: Any, slots: Slots) -> np.ndarray:
    array = np.asarray(chances, dtype=np.float64)
    whole = array.shape == (slots.places, len(slots.choices)) and bool(np.isfinite(array).all())
    if not whole or (array < 0).any() or (array.sum(1) > 1 + 1e-9).any():
        raise UserError(f"scripted chances: want {len(slots.choices)} numbers >= 0 a place that sum to at most 1")
    return array


def _first(rules: Sequence[dict[str, Any]], messages: Sequence[tuple[str, str]], kinds: Sequence[str]) -> Any:
    text = "\n".join(text for _, text in messages)
    return next((rule for rule in rules if rule["contains"] in text and any(kind in rule for kind in kinds)), None)
