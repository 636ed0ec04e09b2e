"""Tokens of a prompt and the position of its entity's last token (method page, section 2.2). Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from monosem.text import separator_id
from monosem.types import UserError


@dataclass(frozen=True)
class Prompt:
    """A template with its entity. tokens: with the separator in front, where models keep a sink.

    at: index of the entity's last token.
    """

    template: str
    entity: str
    tokens: tuple[int, ...]
    at: int


def prompts_of(tokenizer: Any, pairs: Sequence[tuple[str, str]], longest: float = math.inf) -> list[Prompt | None]:
    """Return the prompt of each (template, entity), None where the entity's end is not a token's end.

    None, too, for prompts of more than `longest` tokens, which a model can't read.

    The entity's last token is the last one of the text up to the entity's end, provided that the whole prompt begins
    with the same tokens. (Counting tokens of the rest from the end is wrong where the rest merges with the entity, or
    where the tokenizer puts a start token before it.) Raises UserError for an entity without tokens.
    """
    start = separator_id(tokenizer)
    heads = [template[: template.index("%s")] for template, _ in pairs]
    firsts = [head + entity for head, (_, entity) in zip(heads, pairs, strict=True)]
    wholes = [template.replace("%s", entity) for template, entity in pairs]
    before, until, whole = (_encode(tokenizer, texts) for texts in (heads, firsts, wholes))
    found: list[Prompt | None] = []
    for (template, entity), head, first, tokens in zip(pairs, before, until, whole, strict=True):
        if not entity.strip() or (len(first) <= len(head) and first == head[: len(first)]):
            raise UserError(f'entity "{entity}": has no tokens of its own in "{template}"; take it out of the data')
        fits = tokens[: len(first)] == first and len(tokens) < longest
        found.append(Prompt(template, entity, (start, *tokens), len(first)) if fits else None)
    return found


def common_prefix(rows: Sequence[tuple[int, ...]]) -> int:
    """Return how many tokens all rows begin with."""
    length = min(map(len, rows))
    while any(row[:length] != rows[0][:length] for row in rows):
        length -= 1
    return length


def _encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
