"""Activations of the tasks' texts at the study's site, computed once for all runs: `probes/<task>.safetensors`.

Each file holds `x [tokens, d_in]` in the arithmetic of the forward pass, `ends` int64 [N] (where each text's tokens
end) and `labels` uint8 [N]; its metadata say what it depends on, and what became of the task's rows. A file that is
whole and current is reused, so that an interrupted harvest goes on with the next task.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from monosem.evals import Inputs
from monosem.evals.probes.tasks import Pool, Source, Task, read
from monosem.harvest import first_not_finite
from monosem.model import Model, Site
from monosem.store import read_json, write_bytes
from monosem.text import separator_id, special_ids
from monosem.types import UserError

VERSION = 1  # rises when other activations would be stored
BATCH_TOKENS = 4096  # of a forward pass, padding included


@dataclass(frozen=True)
class Texts:
    """A task's texts as the probes need them. x: [tokens, d_in]; ends: int64 [N]; labels: uint8 [N]; facts: metadata.

    pool: how a text's tokens are brought together; the first `train` texts are fitted to.
    """

    name: str
    pool: Pool
    x: Tensor
    ends: Tensor
    labels: np.ndarray
    facts: dict[str, Any]

    @property
    def train(self) -> int:
        """Return how many texts are fitted to."""
        return self.facts["train"]

    @property
    def lengths(self) -> Tensor:
        """Return the number of tokens of each text, int64 [N]."""
        return torch.diff(self.ends, prepend=self.ends.new_zeros(1))

    def batches(self, tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (activations float32 [n, d_in], the number of each token's text, int64 [n]) of n tokens at most."""
        text = torch.arange(len(self.ends)).repeat_interleave(self.lengths)
        for start in range(0, len(self.x), tokens):
            yield self.x[start : start + tokens].float(), text[start : start + tokens]


@dataclass(frozen=True)
class LeftOut:
    """A task that can't be used, and why. counts: as in `Task`."""

    name: str
    counts: dict[str, int]
    reason: str


def task_path(folder: Path, name: str) -> Path:
    """Where a task's activations lie in a study folder."""
    return folder / "probes" / f"{name}.safetensors"


def header_of(inputs: Inputs, source: Source, pool: Pool, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a task's activations depend on. settings: context, train, test, seed."""
    model = read_json(inputs.folder / "activations" / "meta.json")["header"]["model"]
    kept = "last" if pool == "last" else "all"
    return {"version": VERSION, "model": model, "site": inputs.site, "task": source.key, "tokens": kept, **settings}


def harvest_texts(
    inputs: Inputs, chosen: Sequence[tuple[Source, Pool]], settings: dict[str, Any]
) -> tuple[list[Path], list[LeftOut]]:
    """Compute the activations of the tasks that have none on disk; return the files of all, and what was left out.

    Raises UserError for a user's file that can't be used, or when there is no language model.
    """
    paths, left, todo = [], [], []
    for source, pool in chosen:
        path, header = task_path(inputs.folder, source.name), header_of(inputs, source, pool, settings)
        if read_facts(path).get("header") != header:
            task = read(source, settings["train"], settings["test"], settings["seed"])
            if task.reason:
                left.append(LeftOut(source.name, task.counts, task.reason))
                continue
            todo.append((path, header, task))
        paths.append(path)
    if todo:
        if inputs.model is None:
            raise UserError("probes: run the study's language model, and there is none")
        _harvest(inputs, inputs.model(), todo, settings["context"])
    return paths, left


def _harvest(inputs: Inputs, model: Model, todo: list[tuple[Path, dict[str, Any], Task]], context: int) -> None:
    site = model.site(inputs.site)
    rows = [_tokens(model.tokenizer, task.texts, context) for _, _, task in todo]
    total = sum(len(row) for one in rows for row in one)
    special = np.union1d(special_ids(model.tokenizer), [separator_id(model.tokenizer)])
    with inputs.ticker.bar("texts", total, "tokens") as bar:
        for (path, header, task), ids in zip(todo, rows, strict=True):
            last = header["tokens"] == "last"
            x, ends = text_activations(model, site, ids, special, last, task.name, bar.add)
            facts = {"header": header, "train": task.train, "classes": task.classes, "counts": task.counts}
            facts |= {"tokens": int(sum(map(len, ids)))}
            tensors = {"x": x, "ends": ends, "labels": torch.from_numpy(task.labels)}
            write_bytes(path, save(tensors, {"facts": json.dumps(facts)}))


def _tokens(tokenizer: Any, texts: list[str], context: int) -> list[list[int]]:
    """Return the last `context` tokens of each text, after the separator that takes position 0."""
    start = separator_id(tokenizer)
    found = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [[start, *(ids[-context:] or [start])] for ids in found]


def text_activations(
    model: Model,
    site: Site,
    rows: list[list[int]],
    special: np.ndarray,
    last: bool,
    name: str,
    progress: Callable[[int], object] = lambda _tokens: None,
) -> tuple[Tensor, Tensor]:
    """Return the activations of the texts' tokens, one after another, and where each text ends, int64 [N].

    Position 0, where models keep a sink, and special tokens are left out, unless a text has no others. last: of each
    text the last of these tokens only. Texts of like length go through the model together; padding stands behind them,
    where it can't be seen. Raises UserError for NaN or infinite activations.
    """
    kept = [np.flatnonzero(~np.isin(row[1:], special)) + 1 for row in rows]
    kept = [
        (at if len(at) else np.arange(1, len(row)))[-1 if last else 0 :] for at, row in zip(kept, rows, strict=True)
    ]
    ends = np.cumsum([len(at) for at in kept])
    starts = ends - [len(at) for at in kept]
    x = torch.empty(0)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    done = 0
    while done < len(order):
        width = len(rows[order[done]])
        batch = order[done : done + max(1, BATCH_TOKENS // width)]
        padded = torch.zeros(len(batch), width, dtype=torch.int64)
        for place, i in enumerate(batch):
            padded[place, : len(rows[i])] = torch.tensor(rows[i])
        found = model.activations(padded, site)
        where = [np.full(len(kept[i]), place) for place, i in enumerate(batch)]
        picked = found[np.concatenate(where), np.concatenate([kept[i] for i in batch])]
        if first_not_finite(picked) is not None:
            raise UserError(f'{site.name}: NaN or infinite activations in task {name}; try model.dtype = "float32"')
        if not len(x):
            x = torch.empty(int(ends[-1]), picked.shape[1], dtype=picked.dtype)
        to = np.concatenate([np.arange(starts[i], ends[i]) for i in batch])
        x[torch.from_numpy(to)] = picked.cpu()
        progress(sum(len(rows[i]) for i in batch))
        done += len(batch)
    return x, torch.from_numpy(ends.astype(np.int64))


def read_facts(path: Path) -> dict[str, Any]:
    """Return the metadata of a task's file, empty where there is no whole file."""
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()["facts"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return {}


def read_texts(path: Path, pool: Pool) -> Texts:
    """Open a task's activations, memory-mapped."""
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
        x, ends, labels = (file.get_tensor(name) for name in ("x", "ends", "labels"))
    return Texts(path.stem, pool, x, ends, labels.numpy(), facts)
