"""Explanations without a language model as explainer: the shortest texts on which a feature fires (section K.3).

After Gao et al. 2024, arXiv 2406.04093 (N2G). The study's own model and SAE are run on short texts: for each example
the shortest ending on which the feature reaches half of its activation, whether it still does with another token
before, and which of its tokens matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from monosem.evals.autointerp.records import Record, Split
from monosem.evals.autointerp.tries import ANY, START, Pattern, Trie
from monosem.model import Model, Site
from monosem.sae import Sae

LONGEST = 8  # tokens of a pattern: as far as the windows that other explainers see reach
HALF = 0.5  # of the activation must be kept; and tokens below this saliency may be any token
POSITIONS = 2048  # tokens of one forward pass
ENTRIES = 2**25  # feature activations held at once

Text = tuple[int, ...]
Progress = Callable[[int], object]


@dataclass(frozen=True, eq=False)
class _Example:
    """One firing: the tokens up to it, its activation, whether they begin where the model's view begins."""

    feature: int
    text: Text
    value: float
    starts: bool


@dataclass(frozen=True, eq=False)
class _Found:
    """The shortest ending that keeps the activation, and the activation on it."""

    example: _Example
    ending: Text
    value: float


class Probe:
    """Runs model and SAE on short texts. pad: the id before every text (the model's first position is special)."""

    def __init__(self, model: Model, site: Site, sae: Sae, pad: int):
        """Remember the parts; the SAE must be on the model's device."""
        self.model, self.site, self.sae, self.pad = model, site, sae, pad
        self.norms = sae.weights["W_dec"].norm(dim=1)

    def values(self, asked: Sequence[tuple[Text, int]]) -> np.ndarray:
        """Return the activation of a feature at the last token of a text, for each (text, feature); float64 [n].

        Decoder norm folded in. Equal texts are run once; texts of one length together, without padding.
        """
        out = np.zeros(len(asked))
        by_length: dict[int, dict[Text, list[int]]] = {}
        for i, (text, _) in enumerate(asked):
            by_length.setdefault(len(text), {}).setdefault(text, []).append(i)
        for length in sorted(by_length):
            texts = sorted(by_length[length])
            rows = max(1, min(POSITIONS // (length + 1), ENTRIES // self.sae.d_sae))
            for start in range(0, len(texts), rows):
                some = texts[start : start + rows]
                places = [(row, i) for row, text in enumerate(some) for i in by_length[length][text]]
                row = torch.tensor([place[0] for place in places])
                feature = torch.tensor([asked[i][1] for _, i in places])
                out[[i for _, i in places]] = self._run(some, row, feature)
        return out

    @torch.no_grad()
    def _run(self, texts: list[Text], row: torch.Tensor, feature: torch.Tensor) -> np.ndarray:
        tokens = torch.tensor([[self.pad, *text] for text in texts])
        x = self.model.activations(tokens, self.site)[:, -1].float()
        codes = self.sae.codes(x).dense()
        row, feature = row.to(codes.device), feature.to(codes.device)
        return (codes[row, feature] * self.norms[feature]).double().cpu().numpy()


def explain_by_patterns(splits: Sequence[Split], probe: Probe, progress: Progress = lambda n: None) -> list[Trie]:
    """Return the patterns of each feature, from those of its explanation examples on which it fires.

    progress is called with the number of examples that are done. The same for the same arguments.
    """
    examples = [example for split in splits for example in _examples(split)]
    found = _shortest(examples, probe, progress)
    patterns = _generalised(found, probe)
    tries = []
    for split in splits:
        collected: dict[Pattern, list[float]] = {}
        own = [(f, p) for f, p in zip(found, patterns, strict=True) if f.example.feature == split.feature]
        for one, pattern in own:
            collected.setdefault(pattern, []).append(one.value)
        missed = sum(example.feature == split.feature for example in examples) - len(own)
        tries.append(Trie({p: float(np.mean(v)) for p, v in sorted(collected.items())}, missed))
    return tries


def _examples(split: Split) -> Iterable[_Example]:
    for record in split.explain:
        value = float(record.values[record.at])
        if value > 0:
            text, starts = _up_to(record)
            yield _Example(split.feature, text, value, starts)


def _up_to(record: Record) -> tuple[Text, bool]:
    whole = (*record.before.tolist(), *record.ids[: record.at + 1].tolist())
    return whole[-LONGEST:], record.starts and len(whole) <= LONGEST


def _shortest(examples: list[_Example], probe: Probe, progress: Progress) -> list[_Found]:
    """Return the shortest ending of each example with at least half of its activation; none: left out."""
    found: dict[int, _Found] = {}
    for length in range(1, LONGEST + 1):
        left = [i for i, e in enumerate(examples) if i not in found and len(e.text) >= length]
        values = probe.values([(examples[i].text[-length:], examples[i].feature) for i in left])
        for i, value in zip(left, values.tolist(), strict=True):
            if value >= HALF * examples[i].value:
                found[i] = _Found(examples[i], examples[i].text[-length:], value)
        still = {i for i in left if i not in found and len(examples[i].text) > length}
        progress(len(left) - len(still))
    return [found[i] for i in sorted(found)]


def _generalised(found: list[_Found], probe: Probe) -> list[Pattern]:
    """Return the pattern of each ending: tokens that don't matter stand for any, and whether it needs the start."""
    asked: list[tuple[Text, int]] = []
    for one in found:
        asked.append(((probe.pad, *one.ending), one.example.feature))
        for i in range(len(one.ending)):
            asked.append(((*one.ending[:i], probe.pad, *one.ending[i + 1 :]), one.example.feature))
    values = iter(probe.values(asked).tolist())
    patterns = []
    for one in found:
        anchored = next(values) < HALF * one.value
        matters = [1 - next(values) / one.value >= HALF for _ in one.ending]
        pattern = [token if kept else ANY for token, kept in zip(one.ending, matters, strict=True)][::-1]
        if anchored:
            patterns.append((*pattern, START))
            continue
        while len(pattern) > 1 and pattern[-1] == ANY:
            pattern.pop()
        patterns.append(tuple(pattern))
    return patterns
