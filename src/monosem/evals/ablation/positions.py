"""Which tokens are ablated: one position of each of some held-out sequences, the same for all runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from monosem.activations import Activations, load_tokens, open_activations
from monosem.types import UserError

SPAN = 16  # positions whose logits are looked at: the ablated one and the 15 after it
BEFORE = 8  # tokens of context that an ablated position has at least


@dataclass(frozen=True, eq=False)
class Positions:
    """Ablated positions, one a sequence (a packed row). context: tokens up to the last target.

    row, at: packed row and place in it; doc, pos, token: of the position; each [n]. tokens: all packed rows, int64
    [rows, context].
    """

    row: np.ndarray
    at: np.ndarray
    doc: np.ndarray
    pos: np.ndarray
    token: np.ndarray
    tokens: Tensor

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.row)

    def sequence(self, i: int) -> Tensor:
        """Return the tokens of a sequence up to the one that follows its last position, int64 [1, at + SPAN + 1]."""
        return self.tokens[self.row[i], : self.at[i] + SPAN + 1][None]


def draw_positions(activations: Path, sequences: int, seed: int) -> tuple[Positions, Activations]:
    """Draw positions from the held-out split of `activations/`; return them and the stored activations.

    A position is one that is measured, has 8 tokens before it, and 16 of the same document behind it. Sequences are
    drawn without replacement, positions uniformly within them; fewer sequences where there aren't as many.
    Raises UserError when no sequence has such a position.
    """
    store = open_activations(activations, "eval")
    rows = {name: column.numpy() for name, column in load_tokens(activations, "eval").items()}
    keep = np.zeros(rows["tokens"].size, dtype=bool)
    keep[store.columns["place"].numpy()] = True
    usable = usable_positions(keep.reshape(rows["tokens"].shape), rows["doc"])
    able = np.flatnonzero(usable.any(1))
    if not len(able):
        raise UserError(
            f"{activations}: no held-out token has {BEFORE} tokens before it and {SPAN} of its document behind it; "
            f"harvest with model.context of at least {BEFORE + SPAN + 1}, more is better, and with longer documents"
        )
    rng = np.random.default_rng(seed)
    row = rng.permutation(able)[:sequences]
    at = np.array([rng.choice(np.flatnonzero(usable[r])) for r in row])
    where = row, at
    tokens = torch.from_numpy(rows["tokens"]).long()
    return Positions(row, at, rows["doc"][where], rows["pos"][where], rows["tokens"][where], tokens), store


def usable_positions(keep: np.ndarray, doc: np.ndarray) -> np.ndarray:
    """Return where ablations are possible, bool [rows, context]; keep: measured tokens; doc: -1 where none."""
    rows, context = doc.shape
    usable = np.zeros((rows, context), dtype=bool)
    last = context - SPAN
    if last <= BEFORE:
        return usable
    usable[:, BEFORE:last] = keep[:, BEFORE:last] & (doc[:, BEFORE:last] >= 0)
    for ahead in range(1, SPAN + 1):
        usable[:, BEFORE:last] &= doc[:, BEFORE + ahead : last + ahead] == doc[:, BEFORE:last]
    return usable
