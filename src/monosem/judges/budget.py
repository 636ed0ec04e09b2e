"""What questions cost, in tokens and money, and a budget that is never overdrawn. Imports no torch."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from monosem.types import UserError

OVERHEAD = 4  # tokens that chat templates put around a message

_PIECES = re.compile(r"[^\W\d_]+|\d|\s+|[^\w\s]|_")


@dataclass(frozen=True)
class Cost:
    """Tokens and money. money: None where no prices were given; requests: asked; cached: answered from disk."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: float | None = None
    requests: int = 0
    cached: int = 0

    @property
    def tokens(self) -> int:
        """Prompt and generated tokens together."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Cost) -> Cost:
        """Add costs; money is None only where both lack it."""
        known = [one.money for one in (self, other) if one.money is not None]
        return Cost(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            sum(known) if known else None,
            self.requests + other.requests,
            self.cached + other.cached,
        )


@dataclass
class Budget:
    """Counts what is spent, and refuses what would go beyond `tokens` or `money`; None is no limit.

    A question is taken out of the budget at its largest possible cost before it is sent, and put right when the answer
    says what it took. So questions under way together can't overdraw it. prices: money for a million prompt tokens and
    for a million generated tokens.
    """

    tokens: int | None = None
    money: float | None = None
    prices: tuple[float, float] | None = None
    spent: Cost = field(default_factory=Cost)
    _held: tuple[int, int] = (0, 0)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def checked(cls, tokens: int | None, money: float | None, prices: tuple[float, float] | None) -> Budget:
        """Return a budget; raises UserError for one that is not above 0, or of money without prices."""
        for what, value in (("tokens", tokens), ("money", money)):
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"budget = {value} {what}: nothing can be asked for that; give more, or no budget")
        if prices is not None and (len(prices) != 2 or not all(0 <= price < math.inf for price in prices)):
            raise UserError(f"prices = {prices}: give two numbers, the price of a million prompt and generated tokens")
        if money is not None and prices is None:
            raise UserError(f"budget = {money} money: give the prices of a million prompt and generated tokens, too")
        return cls(tokens, money, prices)

    def cost(self, prompt: int, completion: int) -> Cost:
        """Return what so many tokens cost."""
        money = None
        if self.prices is not None:
            money = (prompt * self.prices[0] + completion * self.prices[1]) / 1e6
        return Cost(prompt, completion, money)

    def hold(self, prompt: int, completion: int) -> bool:
        """Take the largest cost of a question out of the budget; False if there is not that much left."""
        with self._lock:
            held = (self._held[0] + prompt, self._held[1] + completion)
            total = self.spent + self.cost(*held)
            over = self.tokens is not None and total.tokens > self.tokens
            over |= self.money is not None and (total.money or 0.0) > self.money * (1 + 1e-12)
            if not over:
                self._held = held
            return not over

    def settle(self, prompt: int, completion: int, used: Cost) -> None:
        """Put back what was held for a question, and count what it took."""
        with self._lock:
            self._held = (self._held[0] - prompt, self._held[1] - completion)
            self.spent += used


def text_tokens(text: str) -> int:
    """Estimate the number of tokens of a text without a tokenizer.

    Words take a token for each seven letters begun, digits and punctuation one each, white space one unless it is a
    single blank; characters outside Latin-1 one each.
    """
    total = 0
    for piece in _PIECES.findall(text):
        if piece == " ":
            continue
        if piece[0].isalpha():
            foreign = sum(ord(c) > 0xFF for c in piece)
            total += foreign + math.ceil((len(piece) - foreign) / 7)
        elif piece.isspace():
            total += 1 + max(0, piece.count("\n") - 2) // 2
        else:
            total += 1 if ord(piece) < 0x2000 else 2
    return total


def message_tokens(messages: Iterable[tuple[str, str]]) -> int:
    """Estimate the number of tokens of a prompt."""
    return 3 + sum(OVERHEAD + text_tokens(text) for _, text in messages)
