"""What a sensible language model behind an endpoint answers to the questions of `autointerp`, and how answers break."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.judges.server import Reply, chat, refusal

TAG = re.compile(r"\[([0-9a-f]{6})\.([0-9a-f]+)\]")
TIMEOUT = 2.0  # seconds that the tests' client waits where a server never answers


class Question(NamedTuple):
    """A question as the server sees it.

    kind: explain, simulate or score. tag: the mark of the explanation that is asked for, or that it goes by. below:
    the text under the explanation; a feature's own and its shuffled question have the same one.
    """

    kind: str
    tag: str
    below: str


def tag_of(text: str) -> str:
    """The mark of a feature's explanation, made from its question, so that answers can be told apart."""
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def question_of(body: dict[str, Any]) -> Question:
    text = body["messages"][-1]["content"]
    if text.startswith("Excerpts:"):
        return Question("explain", tag_of(text), text)
    description, below = text.split("\n", 1)
    found = TAG.search(description)
    assert description.startswith('Description: "')
    return Question("simulate" if below.startswith("Text 1\n") else "score", found[1] if found else "", below)


def explanation(body: dict[str, Any]) -> str:
    """A rule that names the commonest of the marked tokens, and carries a mark."""
    text = body["messages"][-1]["content"]
    ((word, _),) = Counter(found.strip() for found in re.findall(r"«([^=«»]+)=\d+»", text)).most_common(1)
    return f"the token {word} [{tag_of(text)}.{word.encode().hex()}]"


def level(description: str, token: str) -> int:
    """The prediction for a token: high for the one that the description names, nearly nothing for others."""
    found = TAG.search(description)
    assert found, description
    if token.strip() == bytes.fromhex(found[2]).decode():
        return 8
    return hashlib.sha256(f"{found[1]}{token}".encode()).digest()[0] % 4 == 0


def simulation(body: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """All lines again with predictions, and the same as tokens with log probabilities."""
    description, *lines = body["messages"][-1]["content"].split("\n")
    tokens: list[dict[str, Any]] = []
    for line in lines:
        if line.startswith("Text "):
            tokens.append(candidates(f"{line}\n", {}))
            continue
        quoted, _ = line.rsplit("\t", 1)
        said = level(description, json.loads(quoted))
        tokens.append(candidates(f"{quoted}\t", {}))
        tokens.append(candidates(str(said), {str(said): 0.7, str(said + 1): 0.2, "x": 0.1}))
        tokens.append(candidates("\n", {}))
    return "".join(token["token"] for token in tokens), tokens


def candidates(token: str, chances: dict[str, float]) -> dict[str, Any]:
    others = [{"token": other, "logprob": math.log(p)} for other, p in chances.items()]
    return {"token": token, "logprob": math.log(chances.get(token, 1.0)), "top_logprobs": others}


def labels(body: dict[str, Any]) -> str:
    """A list of 0 and 1: whether the token that the description names is there (where marks are, inside of them)."""
    description, *lines = body["messages"][-1]["content"].split("\n")
    found = TAG.search(description)
    assert found
    word = bytes.fromhex(found[2]).decode()
    pieces = [line for line in lines if re.match(r"\d+: ", line)]
    marked = ["".join(re.findall(r"«([^»]*)»", piece)) or piece for piece in pieces]
    return str([int(word in piece) for piece in marked])


def sensible(body: dict[str, Any]) -> Reply:
    """A whole, sensible answer. Log probabilities are given where they are asked for."""
    kind, tokens = question_of(body).kind, None
    if kind == "explain":
        text = f"Let me think.\n<explanation>{explanation(body)}</explanation>"
    elif kind == "simulate":
        text, tokens = simulation(body)
    else:
        text = labels(body)
    size = sum(len(message["content"]) for message in body["messages"])
    return chat(text, {"content": tokens} if body.get("logprobs") and tokens else None, (size // 4, len(text) // 4))


def with_logprobs(body: dict[str, Any]) -> Reply:
    """What an endpoint that gives log probabilities answers to the probe."""
    return chat("yes", {"content": [candidates("yes", {"yes": 0.9, "no": 0.1})]})


class Breakage(NamedTuple):
    """A way to break an answer. reason: what the row says of it; answered: the answer itself was whole."""

    reply: Callable[[dict[str, Any]], Reply]
    reason: str
    answered: bool = False


BREAKAGES = {
    "never": Breakage(lambda body: Reply(sensible(body).body, delay=2 * TIMEOUT), f"no answer within {TIMEOUT:g} s"),
    "429": Breakage(lambda body: refusal(429, "slow down", {"Retry-After": "0"}), "status 429: slow down"),
    "500": Breakage(lambda body: refusal(500, "boom"), "status 500: boom"),
    "malformed": Breakage(lambda body: Reply(sensible(body).body[:-40]), "the answer is not valid JSON"),
    "truncated": Breakage(lambda body: Reply(sensible(body).body, cut=60), "the connection broke off"),
    "stream": Breakage(
        lambda body: Reply(b"data: " + sensible(body).body[:80], headers={"Content-Type": "text/event-stream"}),
        "the answer is not valid JSON",
    ),
    "no choice": Breakage(lambda body: Reply(b'{"choices": [], "usage": {}}'), "the answer has no choices"),
    "empty": Breakage(lambda body: chat("", finish_reason="length"), "empty answer (cut off at max_tokens)"),
    "filtered": Breakage(
        lambda body: chat("half", finish_reason="content_filter"), "held back by the endpoint's content filter"
    ),
    "unreadable": Breakage(lambda body: chat("Of course!\n\nThe activations are all 9."), "malformed answer", True),
}
PASSING = ("429", "500", "malformed", "truncated", "stream", "no choice")  # asked again by the judge, as is "never"
