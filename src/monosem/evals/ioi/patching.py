"""The model on IOI prompts: activations at places, and answers when these are replaced.

Tokens before a place's first position, and blocks before its first site, are run once for all replacements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monosem.evals.ioi.circuit import Node, Place
from monosem.evals.ioi.prompts import Prompts, Tokens, name_tokens, tokenized
from monosem.model import Edit, Model, Site
from monosem.resumed import Suffix

BATCH = 64  # prompts whose prefix is run at once
TOKENS = 512  # of replacements that run together: one alone would only wait for the weights
Progress = Callable[[int], object]


@dataclass(frozen=True)
class Said:
    """What the model says at END. ld: logit(IO) - logit(S), float64 [n]; top: the likeliest next token, int64 [n]."""

    ld: np.ndarray
    top: np.ndarray


@dataclass(frozen=True)
class Task:
    """Prompts as one model sees them. names: the token of each name, int64 [names]."""

    model: Model
    prompts: Prompts
    groups: list[Tokens]
    names: np.ndarray


def task_of(model: Model, prompts: Prompts) -> Task:
    """Return prompts with their tokens. Raises UserError as `tokenized`."""
    tokenizer = model.tokenizer
    return Task(model, prompts, tokenized(tokenizer, prompts, model.name), name_tokens(tokenizer, prompts.words))


@torch.no_grad()
def activations(
    task: Task, places: Sequence[Place], like: Task | None = None, progress: Progress = lambda _n: None
) -> dict[str, Tensor]:
    """Return each place's activations, float32 [n, d], on the CPU.

    like: the task whose positions are meant, where prompts are counterfactuals: an order turned moves names.
    """
    model = task.model
    nodes = list(dict.fromkeys(node for place in places for node in place.nodes))
    found: dict[Node, Tensor] = {}
    base = task if like is None else like
    where = {int(i): group.where for group in base.groups for i in group.at}
    for tokens, at in _batches(task.groups):
        seen: dict[str, Tensor] = {}
        keep = [(site, partial(_keep, seen, site.name)) for site in dict.fromkeys(node.site for node in nodes)]
        model.run(tokens, rows=torch.zeros(tokens.shape, dtype=torch.bool, device=model.device), more=keep)
        for node in nodes:
            values = seen[node.site.name]
            position = torch.tensor([where[int(i)][node.position] for i in at], device=values.device)
            own = values[torch.arange(len(at)), position, node.first : node.first + node.width].float().cpu()
            found.setdefault(node, torch.zeros(len(task.prompts), node.width))[torch.from_numpy(at)] = own
        progress(len(at))
    return {place.name: torch.cat([found[node] for node in place.nodes], dim=1) for place in places}


def _keep(seen: dict[str, Tensor], name: str, activations: Tensor) -> Tensor:
    seen[name] = activations
    return activations


@torch.no_grad()
def said(task: Task, place: Place, new: Mapping[Any, Tensor], progress: Progress = lambda _n: None) -> dict[Any, Said]:
    """Return what the model says with the place's activations replaced, by key of `new`: [n, d] each."""
    n = len(task.prompts)
    out = {key: Said(np.full(n, np.nan), np.full(n, -1)) for key in new}
    for group in task.groups:
        for begin in range(0, len(group.at), BATCH):
            at = group.at[begin : begin + BATCH]
            run = _Suffix(task.model, place, torch.from_numpy(group.tokens[begin : begin + BATCH]), group.where)
            rows, keys = torch.from_numpy(at), list(new)
            together = max(1, TOKENS // run.run.tokens.numel())
            for first in range(0, len(keys), together):
                some = keys[first : first + together]
                for key, logits in zip(some, run.logits([new[key][rows] for key in some]), strict=True):
                    _record(task, logits, at, out[key])
                progress(len(at) * len(some))
    return out


@torch.no_grad()
def unedited(task: Task) -> Said:
    """Return what the model says by itself."""
    n = len(task.prompts)
    out = Said(np.full(n, np.nan), np.full(n, -1))
    for tokens, at in _batches(task.groups):
        rows = torch.zeros(tokens.shape, dtype=torch.bool)
        rows[:, -1] = True
        _record(task, task.model.run(tokens, rows=rows.to(task.model.device)), at, out)
    return out


def _batches(groups: list[Tokens]) -> Iterator[tuple[Tensor, np.ndarray]]:
    for group in groups:
        for start in range(0, len(group.at), BATCH):
            yield torch.from_numpy(group.tokens[start : start + BATCH]), group.at[start : start + BATCH]


def _record(task: Task, logits: Tensor, at: np.ndarray, out: Said) -> None:
    labels = task.prompts.labels[at]
    s, io = (torch.from_numpy(task.names[labels[:, column]]).to(logits.device) for column in (0, 1))
    logits = logits.float()
    ld = logits.gather(1, io[:, None]) - logits.gather(1, s[:, None])
    out.ld[at], out.top[at] = ld[:, 0].cpu().numpy(), logits.argmax(1).cpu().numpy()


class _Suffix:
    """Forward passes of some prompts from a place's first position and first block on. tokens: [rows, length]."""

    def __init__(self, model: Model, place: Place, tokens: Tensor, where: Mapping[str, int]):
        """Run what no replacement changes."""
        start = min(where[node.position] for node in place.nodes)
        first = min((node.site for node in place.nodes), key=lambda site: site.resume)
        self.place, self.where = place, {node.position: where[node.position] - start for node in place.nodes}
        self.run = Suffix(model, tokens, first, start)

    def logits(self, values: list[Tensor]) -> Tensor:
        """Return the logits at END, [m, rows, V], with the place's activations replaced by each of m [rows, d]."""
        edits: dict[Site, list[tuple[Node, Tensor]]] = {}
        for node, columns in zip(self.place.nodes, self.place.slices, strict=True):
            edits.setdefault(node.site, []).append((node, torch.cat(values)[:, columns]))
        return self.run.logits([(site, self._edit(parts)) for site, parts in edits.items()], len(values))

    def _edit(self, parts: list[tuple[Node, Tensor]]) -> Edit:
        def edit(activations: Tensor) -> Tensor:
            out = activations.clone()
            for node, value in parts:
                out[:, self.where[node.position], node.first : node.first + node.width] = value.to(out)
            return out

        return edit
