"""The model from the site on: what it answers when a prompt's activation at the entity is exchanged.

Everything before the entity's last token, and the blocks before the site, are the same for every edit: they run once.
Answers are looked at under teacher forcing: greedy generation spells an answer exactly when each of its tokens is the
likeliest behind the ones before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache

from monosem.evals.ravel.prompts import Prompt, common_prefix
from monosem.model import Model, Prefix, Site
from monosem.resumed import going_on, recording, shared
from monosem.types import UserError

BATCH_TOKENS = 4096  # of a pass over whole prompts, padding included
BATCH = 64  # edits that run together
T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """A prompt and the answer that is looked for. answer: its tokens."""

    prompt: Prompt
    answer: tuple[int, ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        """What the model reads: all but the answer's last token."""
        return self.prompt.tokens + self.answer[:-1]


@dataclass(frozen=True, eq=False)
class Stem:
    """What prompts of a template begin with, before any of their entities ends. kept: its keys and values, a block."""

    length: int
    kept: list[tuple[Tensor, Tensor]]

    def past(self, model: Model) -> Cache:
        """Return a cache to go on from."""
        keys, values = (list(kind) for kind in zip(*self.kept, strict=True))
        return shared(len(self.kept), self.length, keys, values, model.device)


def by_template(prompts: Iterable[Prompt]) -> dict[str, list[Prompt]]:
    """Return the different prompts of each template."""
    out: dict[str, list[Prompt]] = {}
    for prompt in dict.fromkeys(prompts):
        out.setdefault(prompt.template, []).append(prompt)
    return out


def stem_of(model: Model, prompts: Sequence[Prompt]) -> Stem:
    """Run what prompts of one template have in common."""
    length = common_prefix([prompt.tokens[: prompt.at] for prompt in prompts])
    record, tokens = recording(), torch.tensor([prompts[0].tokens[:length]])
    with going_on(model, record):
        model.run(tokens, rows=torch.zeros_like(tokens, dtype=torch.bool))
    layers: list[Any] = record.layers
    shapes = {tuple(getattr(kept, "shape", (0, 0))[1:]) for layer in layers for kept in (layer.keys, layer.values)}
    if len(layers) != len(model.blocks) or len(shapes) != 1:
        raise UserError(
            f"{model.name}: its blocks keep keys and values of different shapes; ravel can't go on from them"
        )
    return Stem(length, [(layer.keys, layer.values) for layer in layers])


@torch.no_grad()
def entity_activations(
    model: Model, site: Site, prompts: Sequence[Prompt], progress: Callable[[int], object] = lambda _n: None
) -> Tensor:
    """Return the site's activations at the entities' last tokens, float32 [n, d_in]; equal prompts run once."""
    found: dict[Prompt, Tensor] = {}
    for own in by_template(prompts).values():
        stem = stem_of(model, own)
        for batch in batches(own, lambda prompt, stem=stem: prompt.at + 1 - stem.length):
            rests = [prompt.tokens[stem.length : prompt.at + 1] for prompt in batch]
            with going_on(model, stem.past(model)):
                activations = model.activations(padded(rests), site)
            for prompt, rest, row in zip(batch, rests, activations, strict=True):
                found[prompt] = row[len(rest) - 1].float().clone()
            progress(len(batch))
    progress(len(prompts) - len(found))
    return _stacked([found[prompt] for prompt in prompts])


def _stacked(rows: list[Tensor]) -> Tensor:
    return torch.stack(rows) if rows else torch.empty(0, 0)


def batches(items: Sequence[T], length: Callable[[T], int]) -> list[list[T]]:
    """Return items in batches of like length."""
    out: list[list[T]] = []
    for item in sorted(items, key=length):
        if not out or (len(out[-1]) + 1) * length(item) > BATCH_TOKENS:
            out.append([])
        out[-1].append(item)
    return out


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Return rows of tokens as one tensor; padding stands behind them, where it can't be seen."""
    out = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row)
    return out


@dataclass(frozen=True, eq=False)
class Interchange:
    """Questions, ready to be asked with edited activations.

    x: the site's activations at the entities, float32 [n, d_in]; hidden: what enters block `resume` from there on, each
    [length, d_model], or None when that is block 0; before: the keys and values of the tokens before the entity's last
    one, of the blocks from `resume` on, in two parts: the template's and the entity's own, each [2, blocks, heads,
    length, width].
    """

    model: Model
    site: Site
    questions: list[Question]
    x: Tensor
    hidden: list[Tensor] | None
    before: dict[Prompt, tuple[Tensor, Tensor]]
    in_tuples: bool

    def losses(self, at: Tensor, edited: Tensor) -> Tensor:
        """Return the mean cross-entropy of the answers' tokens in nats, [m].

        at: numbers of questions, int64 [m]; edited: their new activations at the entity, [m, d_in].
        """
        chosen = [self.questions[i] for i in at.tolist()]
        logits, targets, row = self._logits(chosen, at, edited)
        losses = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        sums = torch.zeros(len(chosen), device=losses.device).index_add(0, row, losses)
        return sums / torch.bincount(row, minlength=len(chosen))

    @torch.no_grad()
    def answers(
        self, at: Tensor, edited: Tensor, progress: Callable[[int], object] = lambda _n: None
    ) -> list[tuple[int, ...]]:
        """Return what the model answers to each question, up to the first token that is not the looked-for answer's.

        It equals the question's answer exactly when greedy generation would spell it.
        """
        out: dict[int, tuple[int, ...]] = {}
        order = sorted(range(len(at)), key=lambda i: self.questions[int(at[i])].prompt.template)  # fewer stems together
        for start in range(0, len(order), BATCH):
            batch = torch.tensor(order[start : start + BATCH])
            chosen = [self.questions[i] for i in at[batch].tolist()]
            logits, _, row = self._logits(chosen, at[batch], edited[batch.to(edited.device)])
            said, row = logits.argmax(-1).tolist(), row.tolist()
            by_row: dict[int, list[int]] = {}
            for where, token in zip(row, said, strict=True):
                by_row.setdefault(where, []).append(token)
            for place, i in enumerate(batch.tolist()):
                wrong = [s != t for s, t in zip(by_row[place], chosen[place].answer, strict=True)]
                size = wrong.index(True) + 1 if any(wrong) else len(wrong)
                out[i] = tuple(by_row[place][:size])
            progress(len(batch))
        return [out[i] for i in range(len(at))]

    def _logits(self, chosen: list[Question], at: Tensor, edited: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits [k, V] where the answers' tokens are predicted, these tokens, and whose they are, [k].

        What follows the entities stands in one row, each part behind its own prefix, all of them blind to the others:
        nothing is padded, and prefixes that several prompts share are there once.
        """
        device = self.model.device
        rests = [question.tokens[question.prompt.at :] for question in chosen]
        starts = np.cumsum([0, *map(len, rests)])
        keys, values, seen = self._past(chosen, starts)
        tokens = torch.tensor([[token for rest in rests for token in rest]], device=device)
        wanted = torch.zeros(tokens.shape, dtype=torch.bool)
        for question, end in zip(chosen, starts[1:], strict=True):
            wanted[0, end - len(question.answer) : end] = True
        places = [
            question.prompt.at + i for question, rest in zip(chosen, rests, strict=True) for i in range(len(rest))
        ]
        prefix = None
        if self.hidden is not None:
            hidden = torch.cat([self.hidden[i] for i in at.tolist()])[None]
            prefix = Prefix(tokens, hidden, hidden, self.site.resume, self.in_tuples)
        entities = torch.from_numpy(starts[:-1]).to(device)

        def edit(activations: Tensor) -> Tensor:
            return activations.index_copy(1, entities, edited[None].to(activations.dtype))

        dtype = self.model.dtype  # added to the scores: with a mask of bools, attention on CPUs is far slower
        hide = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
        past = shared(len(self.model.blocks), seen.shape[1] - len(places), keys, values, device)
        more = {"attention_mask": hide[None, None].to(device), "position_ids": torch.tensor([places], device=device)}
        with going_on(self.model, past, **more):
            logits = self.model.run(tokens, self.site, edit, prefix, rows=wanted.to(device))
        targets = torch.tensor([token for question in chosen for token in question.answer], device=device)
        row = torch.arange(len(chosen)).repeat_interleave(torch.tensor([len(question.answer) for question in chosen]))
        return logits, targets, row.to(device)

    def _past(self, chosen: list[Question], starts: np.ndarray) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Return keys and values of the blocks that run, each [1, heads, prefixes, width], and who sees what.

        The last one is bool [tokens, prefixes + tokens]; starts: where each question's tokens begin, and the end.
        """
        parts: dict[int, tuple[int, Tensor]] = {}
        length = 0
        for question in chosen:
            for part in self.before[question.prompt]:
                if id(part) not in parts:
                    parts[id(part)] = length, part
                    length += part.shape[3]
        seen = torch.zeros(starts[-1], length + starts[-1], dtype=torch.bool)
        for question, start, end in zip(chosen, starts[:-1], starts[1:], strict=True):
            for part in self.before[question.prompt]:
                first = parts[id(part)][0]
                seen[start:end, first : first + part.shape[3]] = True
            seen[start:end, length + start : length + end] = torch.ones(end - start, end - start).tril().bool()
        together = torch.cat([part for _, part in parts.values()], dim=3)
        return list(together[0, :, None]), list(together[1, :, None]), seen


@torch.no_grad()
def interchange(
    model: Model, site: Site, questions: Sequence[Question], progress: Callable[[int], object] = lambda _n: None
) -> Interchange:
    """Run what no edit changes. progress: gets numbers of questions."""
    before: dict[Prompt, tuple[Tensor, Tensor]] = {}
    found: dict[Question, tuple[Tensor, Tensor | None]] = {}
    in_tuples = False
    asked: dict[Prompt, list[Question]] = {}
    for question in dict.fromkeys(questions):
        asked.setdefault(question.prompt, []).append(question)
    for own in by_template(asked).values():
        stem = stem_of(model, own)
        before |= _before(model, site, stem, own)
        todo = [question for prompt in own for question in asked[prompt]]
        for batch in batches(todo, lambda question, stem=stem: len(question.tokens) - stem.length):
            with going_on(model, stem.past(model)):
                prefix = model.prefix(padded([question.tokens[stem.length :] for question in batch]), site)
            in_tuples = prefix.in_tuples
            for i, question in enumerate(batch):
                at, end = question.prompt.at - stem.length, len(question.tokens) - stem.length
                hidden = None if prefix.hidden is None else prefix.hidden[i, at:end].clone()
                found[question] = prefix.activations[i, at].float().clone(), hidden
            progress(len(batch))
    progress(len(questions) - len(found))
    hidden = [state for question in questions if (state := found[question][1]) is not None]
    x = _stacked([found[question][0] for question in questions])
    return Interchange(model, site, list(questions), x, hidden or None, before, in_tuples)


def _before(model: Model, site: Site, stem: Stem, prompts: Sequence[Prompt]) -> dict[Prompt, tuple[Tensor, Tensor]]:
    """Return keys and values of the blocks from `resume` on: the stem's, and of each prompt's tokens up to `at`."""
    if site.resume == len(model.blocks):  # an edit of the last block's output: no block runs after it
        nothing = torch.zeros(2, 0, 1, stem.length, 1, device=model.device)
        return {prompt: (nothing, torch.zeros(2, 0, 1, prompt.at - stem.length, 1).to(nothing)) for prompt in prompts}
    common = torch.stack([torch.stack([pair[kind][0] for pair in stem.kept[site.resume :]]) for kind in (0, 1)])
    own = {prompt: prompt.tokens[stem.length : prompt.at] for prompt in prompts}
    found: dict[tuple[int, ...], Tensor] = {(): common[:, :, :, :0]}
    for batch in batches([rest for rest in dict.fromkeys(own.values()) if rest], len):
        past = stem.past(model)
        tokens = padded(batch)
        with going_on(model, past):
            model.run(tokens, rows=torch.zeros_like(tokens, dtype=torch.bool))
        layers: list[Any] = past.layers[site.resume :]
        for i, rest in enumerate(batch):
            kinds = [torch.stack([layer.new[kind][i, :, : len(rest)] for layer in layers]) for kind in (0, 1)]
            found[rest] = torch.stack(kinds)
    return {prompt: (common, found[rest]) for prompt, rest in own.items()}
