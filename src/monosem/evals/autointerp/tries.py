"""Patterns of tokens as an explanation, and what they predict: the model-free half of N2G. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from monosem.evals.autointerp.prompts import quoted
from monosem.evals.autointerp.records import Record
from monosem.metrics import Array

ANY, START = -1, -2  # in a pattern: any one token; nothing before (the model saw no more of the document)
DESCRIBED = 8  # patterns that the text of an explanation lists
Pattern = tuple[int, ...]  # token ids from the last one backwards


@dataclass(frozen=True)
class Trie:
    """Patterns that end at the token they speak of, with the activation there (section K.3).

    missed: examples for which no short pattern was found.
    """

    patterns: dict[Pattern, float]
    missed: int = 0

    def predict(self, ids: Sequence[int], before: Sequence[int] = (), starts: bool = True) -> Array:
        """Return the predicted activation of each token, float64 [n]; 0 where no pattern fits.

        before: tokens that stand before; starts: whether there is nothing before those. Of several patterns that fit
        the longest counts, then the one with most tokens named, then the largest activation.
        """
        text = [*before, *ids]
        first = len(text) - len(ids)
        return np.array([self._at(text, place, starts) for place in range(first, len(text))])

    def on(self, record: Record) -> Array:
        """Return the prediction for a record, which may look at what stands before its window."""
        return self.predict(record.ids.tolist(), record.before.tolist(), record.starts)

    def describe(self, texts: Callable[[Iterable[int]], list[str]]) -> str:
        """Return the strongest patterns in words; texts: gives the text of token ids."""
        best = sorted(self.patterns.items(), key=lambda item: (-item[1], item[0]))
        lines = [f"{_written(pattern, texts)} {value:.3g}" for pattern, value in best[:DESCRIBED]]
        more = len(best) - len(lines)
        return "; ".join(lines) + (f"; and {more} more patterns" if more else "") if lines else "no pattern found"

    def _at(self, text: list[int], place: int, starts: bool) -> float:
        best, found = (-1, -1), 0.0
        stack: list[tuple[dict[Any, Any], int, int]] = [(self._tree, 0, 0)]
        while stack:
            node, depth, named = stack.pop()
            value = node.get(None)
            if value is not None and ((depth, named), value) > (best, found):
                best, found = (depth, named), value
            here = place - depth
            if here < 0:
                if starts and START in node:
                    stack.append((node[START], depth + 1, named + 1))
                continue
            for token, more in ((text[here], 1), (ANY, 0)):
                if token in node:
                    stack.append((node[token], depth + 1, named + more))
        return found

    @cached_property
    def _tree(self) -> dict[Any, Any]:
        root: dict[Any, Any] = {}
        for pattern, value in self.patterns.items():
            node = root
            for token in pattern:
                node = node.setdefault(token, {})
            node[None] = value
        return root


def _written(pattern: Pattern, texts: Callable[[Iterable[int]], list[str]]) -> str:
    """Return a pattern in reading order: neighbouring tokens as one quoted text, `*` for any token, `^` for the start.

    The text is that of each token by itself, so that a character that spans several tokens shows as \\ufffd.
    """
    words: list[str] = []
    run: list[str] = []
    for token in reversed(pattern):
        if token >= 0:
            run += texts([token])
            continue
        words += [quoted(run)] if run else []
        run = []
        words.append("*" if token == ANY else "^")
    return " ".join([*words, *([quoted(run)] if run else [])])
