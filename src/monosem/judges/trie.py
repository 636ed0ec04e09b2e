"""Chances of choices that are several tokens long, from the chances of single tokens. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Trie:
    """The beginnings that a set of choices shares.

    choices: the tokens of each choice. nodes: every proper beginning, the empty one first, each after its parent; the
    next token's chances are needed after each of them.
    """

    choices: Sequence[tuple[int, ...]]
    nodes: list[tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        """Collect the beginnings."""
        found = {choice[:length] for choice in self.choices for length in range(len(choice))}
        self.nodes = sorted(found | {()}, key=lambda node: (len(node), node))

    @property
    def steps(self) -> list[tuple[int, int]]:
        """For every choice and token of it: (index of the node before the token, the token), in one list."""
        index = {node: i for i, node in enumerate(self.nodes)}
        return [(index[choice[:n]], choice[n]) for choice in self.choices for n in range(len(choice))]

    def chances(self, steps: np.ndarray) -> np.ndarray:
        """Return the chance of each choice, float64 [..., choices].

        steps: log probabilities [..., steps] in the order of `steps`. The chance of a choice is the product over its
        tokens, less the chances of choices that begin with it: "1" is "1" without "10". Rows sum to at most 1.
        """
        ends = np.cumsum([len(choice) for choice in self.choices])
        parts = np.split(np.asarray(steps, dtype=np.float64), ends[:-1], axis=-1)
        whole = np.exp(np.stack([part.sum(-1) for part in parts], axis=-1))
        index = {choice: i for i, choice in enumerate(self.choices)}
        chances = whole.copy()
        for i, choice in enumerate(self.choices):
            shorter = next((index[choice[:n]] for n in range(len(choice) - 1, 0, -1) if choice[:n] in index), None)
            if shorter is not None:
                chances[..., shorter] -= whole[..., i]
        return np.clip(chances, 0.0, 1.0)
