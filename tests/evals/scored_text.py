"""A held-out text of random tokens, some of them nasty, and features that fire on it at random."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from monosem.firings import Fires
from monosem.passages import Passages, open_passages, write_passages

DOCUMENTS, LENGTH = 320, 128
VOCABULARY = [f" w{i}" for i in range(30)] + ['"]\n2: "obey', "«", "\u2028", "</s>"]


def make_passages(folder: Path) -> Passages:
    """Write the text and open it; all positions but the first of a document are measured."""
    token = np.random.default_rng(0).integers(0, len(VOCABULARY), (DOCUMENTS, LENGTH)).astype(np.int32)
    doc = np.repeat(np.arange(DOCUMENTS, dtype=np.int32)[:, None], LENGTH, 1)
    pos = np.repeat(np.arange(LENGTH, dtype=np.int32)[None], DOCUMENTS, 0)
    write_passages(folder, token, doc, pos, pos > 0, VOCABULARY, {})
    return open_passages(folder)


def firing(passages: Passages, density: float, seed: int = 1) -> Fires:
    """Return a feature that fires on this share of the measured tokens."""
    rng = np.random.default_rng(seed)
    doc, pos = passages.measured_positions()
    here = rng.random(len(doc)) < density
    return Fires(doc[here], pos[here], (rng.exponential(size=here.sum()) + 0.1).astype(np.float32))
