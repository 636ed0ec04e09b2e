"""A judge on this machine: a language model of transformers, the embedded one by default. No key, no network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from monosem.judges import Answer, Budget, Deliver, DeliverChances, Judge, Request, Slots
from monosem.judges.batches import Batches, Places, batched
from monosem.judges.cache import AnswerLog
from monosem.judges.prompts import VERSION, Prompts
from monosem.judges.trie import Trie
from monosem.passages import token_texts

if TYPE_CHECKING:
    from monosem.model import Model

ROWS, TOKENS = 32, 8192  # rows of a batch, and tokens of its tails, generated ones included
LOGITS = 2048  # positions of a batch whose chances are read: each takes a vocabulary's worth of memory


@dataclass
class Growing:
    """An answer that is being generated."""

    request: Request
    prompt: int
    ids: list[int] = field(default_factory=list)
    tokens: list[tuple[str, dict[str, float]]] = field(default_factory=list)
    text: str | None = None
    generator: torch.Generator = field(default_factory=torch.Generator)


class LocalJudge(Judge):
    """Answers by a causal language model in batches, greedily at temperature 0.

    where: a folder or hub id, empty for `model()` or else the embedded model. It is loaded at the first question. A
    token costs no money but counts in the budget. Answers may depend on the batch in the last bits of rounding.
    """

    reads_slots = True
    continues = True

    def __init__(
        self,
        where: str = "",
        *,
        cache: Path,
        budget: Budget,
        seed: int = 0,
        model: Callable[[], Model] | None = None,
        dry: bool = False,
    ):
        """Remember the parts; nothing is loaded yet."""
        super().__init__(f"local:{where}" if where else "local", None, None, budget, seed, dry)
        self.where, self.folder, self._load = where, cache, model

    @property
    def gives_logprobs(self) -> bool:
        """True."""
        return True

    @cached_property
    def model(self) -> Model:
        """The model, loaded on first use. Raises UserError when it can't be."""
        if self._load is not None:
            return self._load()
        from monosem.model import load_model

        return load_model(self.where)

    @cached_property
    def prompts(self) -> Prompts:
        """Writes messages for the model."""
        return Prompts(self.model.tokenizer, self.model.name)

    @cached_property
    def batches(self) -> Batches:
        """Runs the model."""
        return Batches(self.model.lm)

    @cached_property
    def texts(self) -> list[str]:
        """The text of each token."""
        return token_texts(self.model.tokenizer)

    @cached_property
    def ends(self) -> set[int]:
        """Tokens that end an answer."""
        configured = getattr(self.model.lm.generation_config, "eos_token_id", None)
        own = configured if isinstance(configured, list) else [configured]
        return {i for i in (*own, self.model.tokenizer.eos_token_id) if i is not None}

    def prepare(self) -> None:
        """Load the model and open its answers on disk."""
        if self.log is None:
            self.identity = {"local": self.model.identity, "prompts": VERSION}
            self.log = AnswerLog(self.folder, self.name, self.identity)

    def prompt_tokens(self, asked: Request | Slots) -> int:
        """Return the number of tokens of a question."""
        if isinstance(asked, Slots):
            places, _ = self._places(asked)
            return len(places.prompt) + places.behind
        return len(self.prompts.tokens(asked.messages))

    def _room(self) -> int:
        return int(getattr(self.model.lm.config, "max_position_embeddings", None) or 1 << 30)

    def _answer(self, requests: list[Request], deliver: Deliver) -> None:
        rows = [self.prompts.tokens(request.messages) for request in requests]
        room = self._room()
        fits = [len(row) + request.max_tokens <= room for row, request in zip(rows, requests, strict=True)]
        for i, fit in enumerate(fits):
            if not fit:
                long = f"{len(rows[i])} tokens of prompt and up to {requests[i].max_tokens} of answer"
                deliver(i, Answer.failed(f"{long} are more than the {room} that the model takes"))
        left = [i for i, fit in enumerate(fits) if fit]
        extra = [requests[i].max_tokens for i in left]
        for batch in batched([rows[i] for i in left], extra, TOKENS, ROWS):
            self._answer_batch([left[n] for n in batch], rows, requests, deliver)

    def _answer_batch(
        self, batch: Sequence[int], rows: list[list[int]], requests: list[Request], deliver: Deliver
    ) -> None:
        held = []
        for i in batch:
            if self.budget.hold(len(rows[i]), requests[i].max_tokens):
                held.append(i)
            else:
                deliver(i, Answer.failed("budget"))
        if not held:
            return
        growing = [Growing(requests[i], len(rows[i])) for i in held]
        for one in growing:
            one.generator.manual_seed(one.request.seed)
        self.batches.generate([rows[i] for i in held], lambda n, logits: self._next(growing[n], logits))
        for i, one in zip(held, growing, strict=True):
            self.budget.settle(one.prompt, one.request.max_tokens, self.budget.cost(one.prompt, len(one.ids)))
            deliver(i, self.keep(one.request, self._finished(one)))

    def _next(self, one: Growing, logits: Tensor) -> int | None:
        """Choose the next token of an answer; None at its end."""
        if len(one.ids) >= one.request.max_tokens:
            return None
        if one.request.temperature > 0:
            chances = (logits.float() / one.request.temperature).softmax(-1).cpu()
            token = int(torch.multinomial(chances, 1, generator=one.generator))
        else:
            token = int(logits.argmax())
        if token in self.ends:
            return None
        one.ids.append(token)
        if one.request.top_logprobs > 0:
            one.tokens.append((self.texts[token], self._candidates(token, logits, one.request.top_logprobs)))
        if self.prompts.stops:
            text = self._decoded(one.ids)
            found = [text.find(stop) for stop in self.prompts.stops if stop in text]
            if found:
                one.text = text[: min(found)]
                return None
        return token

    def _candidates(self, token: int, logits: Tensor, number: int) -> dict[str, float]:
        """Return the most likely candidates, text -> log probability, the token itself among them."""
        logprobs = logits.float().log_softmax(-1)
        top = logprobs.topk(min(number, len(logprobs)))
        found: dict[str, Any] = {}
        pairs = dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        for i, logprob in {**pairs, token: float(logprobs[token])}.items():
            known = found.get(self.texts[i])  # several tokens may show as one text: half a character each
            both = logprob if known is None else float(torch.logaddexp(torch.tensor(known), torch.tensor(logprob)))
            found[self.texts[i]] = min(both, 0.0)
        return found

    def _decoded(self, ids: list[int]) -> str:
        return self.model.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _finished(self, one: Growing) -> Answer:
        text = self._decoded(one.ids) if one.text is None else one.text
        if not text.strip():
            return Answer(None, "empty answer", (), one.prompt, len(one.ids))
        return Answer(text, None, tuple(one.tokens), one.prompt, len(one.ids))

    def _chances(self, slots: list[Slots], deliver: DeliverChances) -> None:
        for i, one in enumerate(slots):
            asked, trie = self._places(one)
            size = len(asked.prompt) + asked.behind
            deepest = len(asked.prompt) + max((len(text) for text, _ in asked.texts), default=0) + len(asked.nodes[-1])
            if not asked.places or deepest > self._room() or not self.budget.hold(size, 0):
                deliver(i, None, 0)
                continue
            nodes, tokens = map(list, zip(*trie.steps, strict=True))
            steps = [part[:, nodes, tokens].double().cpu().numpy() for part in self.batches.read(asked, LOGITS)]
            self.budget.settle(size, 0, self.budget.cost(size, 0))
            deliver(i, trie.chances(np.concatenate(steps)), size)

    def _places(self, one: Slots) -> tuple[Places, Trie]:
        trie = Trie([self.prompts.choice(text) for text in one.choices])
        bridge = self.prompts.choice(one.bridge) if one.bridge else ()
        nodes = [*(bridge[:n] for n in range(len(bridge))), *(bridge + node for node in trie.nodes)]
        texts = [self.prompts.places(text, at) for text, at in zip(one.texts, one.at, strict=True)]
        return Places(self.prompts.tokens(one.messages), texts, nodes, len(trie.nodes)), trie
