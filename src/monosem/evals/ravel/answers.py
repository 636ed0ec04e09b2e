"""What the model itself answers: greedily, once for each template and entity, kept in `ravel/answers-<type>.parquet`.

An entity counts for a template when the answer begins with the attribute's value, or another spelling of it. Its
answer's tokens are then the ones that an edit has to keep or to bring about.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from monosem.evals.ravel.entities import EntityType
from monosem.evals.ravel.prompts import Prompt, common_prefix, prompts_of
from monosem.model import Model
from monosem.progress import Ticker
from monosem.resumed import recording
from monosem.store import write_atomic

VERSION = 1  # rises when other answers would be stored
BATCH = 128
PROBED = 16  # entities on which templates are tried, where there are more templates than wanted
SHARES = {"train": 0.5, "val": 0.2, "test": 0.3}  # of the templates that are kept
FEW = 10  # right answers below which a template is left out
STRIPPED = " \n\t\"'“”‘’*_`([{<"
_KINDS: dict[str, Any] = {
    "attribute": pl.String,
    "template": pl.String,
    "entity": pl.String,
    "text": pl.String,
    "right": pl.Boolean,
    "answer": pl.List(pl.Int64),
}


@dataclass(frozen=True)
class Answered:
    """A type with what the model answers. rows: one a template and entity, right answers and wrong ones."""

    kind: EntityType
    rows: pl.DataFrame

    @cached_property
    def right(self) -> dict[str, dict[str, dict[str, tuple[int, ...]]]]:
        """The right answers' tokens by attribute, template and entity; templates with few of them left out."""
        found: dict[str, dict[str, dict[str, tuple[int, ...]]]] = {a: {} for a in self.kind.templates}
        for attribute, template, entity, answer in self.rows.filter("right")[
            ["attribute", "template", "entity", "answer"]
        ].iter_rows():
            found[attribute].setdefault(template, {})[entity] = tuple(answer)
        return {a: {t: e for t, e in templates.items() if len(e) >= FEW} for a, templates in found.items()}


def answered(
    folder: Path, model: Model, kind: EntityType, depends: dict[str, Any], new: int, templates: int, ticker: Ticker
) -> Answered:
    """Return a type's answers, from disk as far as they are there.

    depends: what they depend on besides (model, data, settings); new: tokens that are generated; templates: of each
    attribute that are kept, those that the model answers best, tried on some entities.
    """
    path = folder / "ravel" / f"answers-{kind.name}.parquet"
    header = json.dumps({"version": VERSION, **depends}, sort_keys=True)
    rows = _stored(path, header)
    seen = set(rows.select("attribute", "template").unique().rows())
    kept: list[tuple[str, str]] = []
    for attribute, choices in kind.templates.items():
        entities = [entity for entity, values in kind.attributes.items() if values.get(attribute)]
        best = _best(model, kind, attribute, choices, entities, new, templates, ticker)
        kept += [(attribute, template) for template in choices if template in best]
        todo = [template for template in choices if template in best and (attribute, template) not in seen]
        with ticker.bar(f"{kind.name} {attribute}", len(todo) * len(entities), "answers") as bar:
            for template in todo:
                more = _ask(model, kind, attribute, template, entities, new, bar.add)
                rows = pl.concat([rows, more])
                _store(path, header, rows)
    by = rows.partition_by("attribute", "template", as_dict=True)  # in the order of the data, whatever was asked before
    return Answered(kind, pl.concat([rows.clear(), *(by[place] for place in kept if place in by)]))


def _stored(path: Path, header: str) -> pl.DataFrame:
    if path.exists() and pl.read_parquet_metadata(path).get("header") == header:
        return pl.read_parquet(path)
    return pl.DataFrame(schema=_KINDS)


def _store(path: Path, header: str, rows: pl.DataFrame) -> None:
    write_atomic(path, lambda to: rows.write_parquet(to, metadata={"header": header}))


def _best(
    model: Model,
    kind: EntityType,
    attribute: str,
    choices: list[str],
    entities: list[str],
    new: int,
    wanted: int,
    ticker: Ticker,
) -> set[str]:
    """Return the templates to keep: all, or of each split those that are answered best on a sample of entities."""
    if len(choices) <= wanted:
        return set(choices)
    rng = np.random.default_rng(0)
    some = [entities[i] for i in rng.permutation(len(entities))[:PROBED]]
    scored: dict[str, float] = {}
    with ticker.bar(f"{kind.name} {attribute}: templates", len(choices) * len(some), "answers") as bar:
        for template in choices:
            share = _ask(model, kind, attribute, template, some, new, bar.add)["right"].mean()
            scored[template] = float(share or 0.0)  # pyright: ignore[reportArgumentType]
    kept: set[str] = set()
    for split, share in SHARES.items():
        own = [template for template in choices if kind.template_split[template] == split]
        own.sort(key=lambda template: -scored[template])
        kept |= set(own[: max(1, round(share * wanted))])
    return kept


def _ask(
    model: Model,
    kind: EntityType,
    attribute: str,
    template: str,
    entities: Sequence[str],
    new: int,
    progress: Callable[[int], object],
) -> pl.DataFrame:
    """Return a row for every entity whose prompt ends the entity with a token."""
    longest = (getattr(model.lm.config, "max_position_embeddings", None) or math.inf) - new
    found = prompts_of(model.tokenizer, [(template, entity) for entity in entities], longest)
    prompts = [prompt for prompt in found if prompt is not None]
    progress(len(found) - len(prompts))
    rows = []
    for prompt, tokens in zip(prompts, greedy(model, prompts, new, progress), strict=True):
        value = kind.attributes[prompt.entity][attribute]
        spellings = (value, *kind.aliases.get(value, ()))
        size = needed(model.tokenizer, tokens, spellings)
        text = model.tokenizer.decode(tokens)
        rows.append((attribute, template, prompt.entity, text, size > 0, tokens[: size or len(tokens)]))
    return pl.DataFrame(rows, schema=_KINDS, orient="row")


def needed(tokenizer: Any, tokens: Sequence[int], spellings: Sequence[str]) -> int:
    """Return how many of an answer's tokens it takes to spell one of the values, 0 where it doesn't.

    Case, quotes and a leading "the" don't count. A value longer than the answer is spelled when the answer begins it.
    """
    text = tokenizer.decode(tokens)
    whole = _plain(text)
    for spelling in map(_plain, spellings):
        if whole.startswith(spelling) and not whole[len(spelling) : len(spelling) + 1].isalnum():
            sizes = range(1, len(tokens) + 1)
            return next(size for size in sizes if _plain(tokenizer.decode(tokens[:size])).startswith(spelling))
    cut = text == text.rstrip(STRIPPED) and len(whole) > 2 and any(_plain(one).startswith(whole) for one in spellings)
    return len(tokens) if cut else 0


def _plain(text: str) -> str:
    return text.strip(STRIPPED).lower().removeprefix("the ").strip(STRIPPED)


@torch.no_grad()
def greedy(
    model: Model, prompts: Sequence[Prompt], new: int, progress: Callable[[int], object] = lambda _n: None
) -> list[list[int]]:
    """Return the `new` tokens that the model puts behind each prompt, taking the likeliest each time.

    What all prompts begin with runs once; the rest is padded on the left, where it can't be seen.
    """
    if not prompts:
        return []
    rows = [prompt.tokens for prompt in prompts]
    common = common_prefix([row[:-1] for row in rows])
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    out: dict[int, list[int]] = {}
    for start in range(0, len(rows), BATCH):
        batch = order[start : start + BATCH]
        found = _continue(model, rows[0][:common], [rows[i][common:] for i in batch], new)
        out |= dict(zip(batch, found, strict=True))
        progress(len(batch))
    return [out[i] for i in range(len(rows))]


def _continue(model: Model, common: Sequence[int], rests: list[Sequence[int]], new: int) -> list[list[int]]:
    device, width = model.device, max(map(len, rests))
    past = recording()
    if common:
        model.lm(input_ids=torch.tensor([common], device=device), past_key_values=past, use_cache=True)
        past.batch_repeat_interleave(len(rests))
    ids = torch.zeros(len(rests), width, dtype=torch.int64)
    seen = torch.ones(len(rests), len(common) + width, dtype=torch.int64)
    for i, rest in enumerate(rests):
        ids[i, width - len(rest) :] = torch.tensor(rest)
        seen[i, len(common) : len(common) + width - len(rest)] = 0
    ids, seen = ids.to(device), seen.to(device)
    places = (seen.cumsum(1) - 1).clamp(min=0)[:, len(common) :]
    got: list[torch.Tensor] = []
    for _ in range(new):
        logits = model.lm(
            input_ids=ids,
            attention_mask=seen,
            position_ids=places,
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        ids = logits[:, -1].argmax(-1, keepdim=True)
        got.append(ids)
        seen = torch.cat([seen, torch.ones_like(ids)], dim=1)
        places = places[:, -1:] + 1
    return torch.cat(got, dim=1).tolist()
