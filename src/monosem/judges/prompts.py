"""Messages as tokens of a local model, so that no text among them can pose as a message of its own. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from monosem.types import UserError

VERSION = 1  # rises when the same messages would become other tokens
PLAIN = {"system": "", "user": "Question: ", "assistant": "Answer: "}

Messages = Sequence[tuple[str, str]]


@dataclass
class Prompts:
    """Writes messages by the tokenizer's chat template, or as plain text where it has none.

    tokenizer: a fast one of transformers. Each message is tokenised apart from the template, and as ordinary text: a
    "<|im_end|>" in it is a few characters, not the end of the message.
    """

    tokenizer: Any
    name: str

    def __post_init__(self) -> None:
        """Refuse a tokenizer without offsets."""
        if not getattr(self.tokenizer, "is_fast", False):
            raise UserError(f'judge "local:{self.name}": its tokenizer has no fast version (no tokenizer.json)')

    @property
    def is_chat(self) -> bool:
        """Whether there is a chat template."""
        return bool(self.tokenizer.chat_template)

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer, besides the model's own end tokens."""
        return () if self.is_chat else ("\n\nQuestion:", "\nQuestion:")

    def tokens(self, messages: Messages) -> list[int]:
        """Return the tokens of a prompt whose answer comes next; a last message of the assistant is its beginning."""
        last = messages[-1][1] if messages and messages[-1][0] == "assistant" else None
        asked = messages[:-1] if last is not None else messages
        found = self._chat(asked) if self.is_chat else self._plain(asked)
        return found if last is None else found + self.encode(last)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Return the tokens of a text; special: read "<|im_end|>" and the like as what they stand for."""
        return self._encoding(text, special).ids

    def places(self, text: str, at: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return the tokens of a text, and for each character offset the number of tokens before it.

        Where an offset lies inside a token, the text is tokenised in parts that end at the offsets.
        """
        encoding = self._encoding(text, False)
        counts = []
        for offset in at:
            first = next((i for i, (_, end) in enumerate(encoding.offsets) if end > offset), len(encoding.ids))
            if first < len(encoding.ids) and encoding.offsets[first][0] < offset:
                break
            counts.append(first)
        else:
            return list(encoding.ids), counts
        edges = [0, *at, len(text)]
        parts = [self.encode(text[start:end]) for start, end in pairwise(edges)]
        return [i for part in parts for i in part], [sum(map(len, parts[: n + 1])) for n in range(len(at))]

    def choice(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text that follows others: some tokenizers put a blank before a text's first word."""
        before, both = self.encode("\n"), self.encode("\n" + text)
        return tuple(both[len(before) :] if both[: len(before)] == before else self.encode(text))

    def _encoding(self, text: str, special: bool) -> Any:
        backend = self.tokenizer.backend_tokenizer
        before = backend.encode_special_tokens
        backend.encode_special_tokens = not special
        try:
            return backend.encode(text, add_special_tokens=False)
        finally:
            backend.encode_special_tokens = before

    def _chat(self, messages: Messages) -> list[int]:
        texts = [text for _, text in messages]
        marks = [f"\ue000{n}\ue001" for n in range(len(texts))]
        roles = [role for role, _ in messages]
        rendered = self._render(list(zip(roles, marks, strict=True)))
        if rendered is None and len(roles) > 1 and roles[0] == "system":  # a template without system messages
            merged = [("user", f"{marks[0]}\n\n{marks[1]}"), *zip(roles[2:], marks[2:], strict=True)]
            rendered = self._render(merged)
        if rendered is None or any(rendered.count(mark) != 1 for mark in marks):
            raise UserError(f'judge "local:{self.name}": its chat template can\'t write these messages ({roles})')
        found: list[int] = []
        for mark, text in zip(marks, texts, strict=True):
            before, _, rendered = rendered.partition(mark)
            found += self.encode(before, special=True) + self.encode(text)
        return found + self.encode(rendered, special=True)

    def _render(self, messages: Messages) -> str | None:
        from jinja2 import TemplateError

        given = [{"role": role, "content": text} for role, text in messages]
        try:
            return self.tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError):
            return None

    def _plain(self, messages: Messages) -> list[int]:
        start = self.tokenizer.bos_token_id
        adds = start is not None and self.tokenizer("a")["input_ids"][:1] == [start]
        found: list[int] = [int(start)] if adds and start is not None else []
        for role, text in messages:
            found += self.encode(PLAIN.get(role, "")) + self.encode(text + "\n\n")
        return found + self.encode(PLAIN["assistant"].rstrip())
