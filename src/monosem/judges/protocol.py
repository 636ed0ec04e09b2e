"""The chat-completions protocol: requests as JSON, answers and refusals read without trusting them. No torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from monosem.judges import Answer, Request

MOST_LOGPROBS = 20  # what the protocol allows
OPTIONAL = ("seed", "temperature", "top_logprobs", "logprobs", "max_tokens")


class Fault(Exception):
    """Why a question got no answer.

    reason: for the record, never holds the key. kind: `endpoint` (the same for every question: key, model, credit),
    `absent` (nothing answers at the address), `rate` (asked to wait), `server` (an error over there), `broken` (half an
    answer, or none in time) or `answer` (only this question). sent: whether the endpoint may have charged for it. wait:
    seconds that it asked for.
    """

    def __init__(self, reason: str, kind: str, *, sent: bool = False, wait: float | None = None):
        """Remember the facts."""
        super().__init__(reason)
        self.reason, self.kind, self.sent, self.wait = reason, kind, sent, wait


@dataclass(frozen=True)
class Refusal:
    """A status of 400 or above. message: the server's words, on one line, shortened; code: its name for it."""

    status: int
    message: str
    code: str

    @classmethod
    def read(cls, status: int, body: str) -> Refusal:
        """Read a refusal from its body, whatever that is."""
        try:
            error = json.loads(body)
        except (ValueError, RecursionError):
            error = None
        error = error.get("error", error) if isinstance(error, dict) else error
        fields = error if isinstance(error, dict) else {}
        message = fields.get("message") or (error if isinstance(error, str) else "")
        code = fields.get("code") or fields.get("type") or ""
        return cls(status, shortened(str(message)), str(code))

    def unsupported(self, sent: Iterable[str]) -> str | None:
        """Return the optional parameter, of those sent, that the server doesn't take; None if it isn't about one."""
        if self.status not in (400, 422):
            return None
        if "max_tokens" in sent and "max_completion_tokens" in self.message:
            return "max_tokens"
        words = r"support|unknown|unrecogni[sz]ed|not permitted|not allowed|unexpected|extra|invalid|only the default"
        if not re.search(words, self.message, re.IGNORECASE):
            return None
        named = (name for name in OPTIONAL if re.search(rf"\b{name}\b", self.message) and name != "max_tokens")
        return next((name for name in named if name in sent), None)


def shortened(text: str, length: int = 200) -> str:
    """Return a text on one line, cut, without control characters and without anything that looks like a key."""
    line = re.sub(r"\b(sk|key|pk)-[\w*.-]{4,}", "[key]", re.sub(r"[\x00-\x1f\x7f\s]+", " ", text).strip())
    return line if len(line) <= length else line[: length - 1] + "…"


def request_body(model: str, request: Request, dropped: Iterable[str]) -> dict[str, Any]:
    """Return the arguments of a chat completion. dropped: parameters that the endpoint doesn't take."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": role, "content": text} for role, text in request.messages],
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "seed": request.seed,
    }
    if request.top_logprobs > 0:
        body |= {"logprobs": True, "top_logprobs": min(request.top_logprobs, MOST_LOGPROBS)}
    for name in dropped:
        if name == "max_tokens":
            body["max_completion_tokens"] = body.pop(name)
        elif name in ("logprobs", "top_logprobs"):
            body.pop("logprobs", None)
            body.pop("top_logprobs", None)
        else:
            body.pop(name, None)
    return body


def read_answer(body: str) -> Answer:
    """Return the answer that a response's body holds, a failed one where it holds a refusal or no text.

    prompt_tokens and completion_tokens are 0 where the endpoint doesn't say. Raises Fault for what is no answer.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise Fault("the answer is not valid JSON", "broken", sent=True) from None
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Fault("the answer has no choices", "broken", sent=True)
    choice = choices[0]
    message = choice.get("message")
    usage = value["usage"] if isinstance(value.get("usage"), dict) else {}
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    text = _text(message.get("content")) if isinstance(message, dict) else choice.get("text")
    if choice.get("finish_reason") == "content_filter":
        return Answer(None, "held back by the endpoint's content filter", (), prompt, completion)
    if isinstance(message, dict) and message.get("refusal") and not text:
        return Answer(None, "the model refused", (), prompt, completion)
    if not isinstance(text, str) or not text.strip():
        cut = " (cut off at max_tokens)" if choice.get("finish_reason") == "length" else ""
        return Answer(None, f"empty answer{cut}", (), prompt, completion)
    return Answer(text, None, read_logprobs(choice.get("logprobs")), prompt, completion)


def _text(content: Any) -> Any:
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def read_logprobs(value: Any) -> tuple[tuple[str, dict[str, float]], ...]:
    """Return the candidates of each token, in chat style (`content`) or legacy style (`tokens`, `top_logprobs`).

    The token itself is one of its candidates. Empty when there are none, or what there is can't be read.
    """
    if not isinstance(value, dict):
        return ()
    try:
        if isinstance(value.get("content"), list):
            return tuple(
                (one["token"], _candidates([one, *(one.get("top_logprobs") or [])])) for one in value["content"]
            )
        tokens, own = value.get("tokens") or [], value.get("token_logprobs") or []
        tops = value.get("top_logprobs") or [None] * len(tokens)
        rows = []
        for token, logprob, top in zip(tokens, own, tops, strict=True):
            pairs = [{"token": t, "logprob": p} for t, p in (top or {}).items()]
            rows.append((token, _candidates([{"token": token, "logprob": logprob}, *pairs])))
        return tuple(rows)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return ()


def _candidates(entries: list[Mapping[str, Any]]) -> dict[str, float]:
    """Return token -> log probability; the first entry may be there again. Tokens of one text are added up."""
    found: dict[str, float] = {}
    own, *rest = entries
    if not isinstance(own["token"], str):
        raise TypeError("a token is not a text")
    for entry in rest:
        token, logprob = entry["token"], entry["logprob"]
        if isinstance(token, str) and _is_number(logprob):
            found[token] = _added(found[token], logprob) if token in found else min(float(logprob), 0.0)
    if own["token"] not in found and _is_number(own.get("logprob")):
        found[own["token"]] = min(float(own["logprob"]), 0.0)
    return {token: max(logprob, -9999.0) for token, logprob in found.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not math.isnan(value)


def _added(one: float, other: float) -> float:
    high, low = max(one, other), min(one, other)
    return min(0.0, high + math.log1p(math.exp(low - high))) if low > -math.inf else high
