"""The held-out tokens as the screens need them, from stored activations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from monosem.activations import Activations, load_tokens, open_activations
from monosem.evals.dense.causes import TokenFacts
from monosem.evals.dense.impact import Spliced
from monosem.firings import Fires
from monosem.heldout import document_groups, scored_positions
from monosem.types import UserError

BATCH = 2048
SAMPLE = 16_384  # tokens for principal components and effects on the error: enough, and encoding is the dear part


@dataclass(frozen=True)
class HeldOut:
    """The held-out split: activations, what is known of each token, and where a firing's token stands in it.

    group: document group of each token [T]; groups: their number; context: tokens of a packed row.
    """

    store: Activations
    facts: TokenFacts
    group: np.ndarray
    groups: int
    context: int
    _key: np.ndarray
    _order: np.ndarray

    def tokens_of(self, fires: Fires) -> np.ndarray:
        """Return the row numbers of a feature's firings. Raises UserError for codes of another split."""
        key = fires.doc.astype(np.int64) << 32 | fires.pos
        at = np.minimum(np.searchsorted(self._key, key), len(self._key) - 1)
        if not np.array_equal(self._key[at], key):
            raise UserError("codes/: these codes belong to other held-out tokens; run `monosem measure` first")
        return self._order[at]

    def spread_batches(self) -> Iterator[torch.Tensor]:
        """Yield activations [n, d_in] of at most SAMPLE tokens that are spread evenly over the split."""
        wanted = np.linspace(0, self.store.n - 1, min(SAMPLE, self.store.n)).astype(np.int64)
        for start in range(0, len(wanted), BATCH):
            yield self.store.rows(wanted[start : start + BATCH])


def read_heldout_text(activations: Path) -> HeldOut:
    """Open the held-out split of `activations/`. Raises UserError when it is missing or damaged."""
    store = open_activations(activations, "eval")
    context = load_tokens(activations, "eval")["tokens"].shape[1]
    columns = {name: column.numpy() for name, column in store.columns.items()}
    _, document, length = np.unique(columns["doc"], return_inverse=True, return_counts=True)
    norm = np.concatenate([x.norm(dim=1).numpy() for x, _ in store.batches(BATCH)])
    facts = TokenFacts(columns["place"] % context, columns["pos"], columns["token"], norm, length[document])
    group, groups = document_groups(store.columns["doc"])
    key = columns["doc"].astype(np.int64) << 32 | columns["pos"]
    order = np.argsort(key, kind="stable")
    return HeldOut(store, facts, group.numpy(), groups, context, key[order], order)


def splice_rows(activations: Path, held: HeldOut, wanted: int) -> tuple[Spliced, np.ndarray]:
    """Return packed rows spread evenly over the split with at least `wanted` scored tokens (or all there are).

    The second value is [rows, context]: the token's row number in the split, -1 where it is not kept.
    """
    rows = load_tokens(activations, "eval")
    number = np.full(rows["tokens"].numel(), -1)
    number[held.store.columns["place"].numpy()] = np.arange(held.store.n)
    number = number.reshape(rows["tokens"].shape)
    keep = torch.from_numpy(number >= 0)
    scored = scored_positions(keep, rows["doc"])
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(keep)))
    enough = int((scored[order].sum(1).cumsum(0) < wanted).sum()) + 1
    chosen = order[:enough].sort().values
    return Spliced(rows["tokens"][chosen], keep[chosen], scored[chosen]), number[chosen.numpy()]
