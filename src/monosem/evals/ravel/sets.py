"""What is asked of every edit: pairs with their activations and questions, by attribute and split.

Made once for all methods and runs. Contexts, from which features are chosen, are training entities in some of the
training templates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monosem.evals.ravel.answers import Answered
from monosem.evals.ravel.interchange import Interchange, Question, entity_activations, interchange
from monosem.evals.ravel.pairs import DRAWN_FROM, Pair, draw_pairs, source_templates
from monosem.evals.ravel.prompts import Prompt, prompts_of
from monosem.model import Model, Site
from monosem.progress import Ticker
from monosem.store import value_hash

CONTEXTS = 4  # templates of each training entity that features are chosen on
LEAST = 8  # pairs of a split below which an attribute is left out
VALIDATION = ("val entity", "val context")


@dataclass(frozen=True, eq=False)
class Asked:
    """Pairs of one attribute and split. base, source: activations, float32 [n, d_in].

    keep, change: numbers of the questions whether the answer is still the base's, or is now the source's; int64 [n].
    """

    pairs: list[Pair]
    base: Tensor
    source: Tensor
    keep: Tensor
    change: Tensor

    def only(self, rows: Tensor) -> Asked:
        """Return some of the pairs; rows: their numbers."""
        at = rows.to(self.base.device)
        chosen = [self.pairs[i] for i in rows.tolist()]
        return Asked(chosen, self.base[at], self.source[at], self.keep[rows], self.change[rows])


@dataclass(frozen=True, eq=False)
class Contexts:
    """Training entities in contexts. x: float32 [n, d_in]; entities: [n]; values: of each attribute, by entity."""

    x: Tensor
    entities: list[str]
    values: dict[str, dict[str, str]]

    def of(self, attribute: str) -> tuple[Tensor, list[str]]:
        """Return the activations of the entities with a known value, and these values."""
        values = self.values[attribute]
        rows = [i for i, entity in enumerate(self.entities) if entity in values]
        return self.x[torch.tensor(rows, device=self.x.device)], [values[self.entities[i]] for i in rows]


@dataclass(eq=False)
class Wanted:
    """What a trained edit sees of the model: pairs with one question each (training.Behaviour)."""

    exchange: Interchange
    base: Tensor
    source: Tensor
    questions: Tensor

    def losses(self, at: Tensor, edited: Tensor) -> Tensor:
        """Return the cross-entropy of the wanted answers, [m]."""
        return self.exchange.losses(self.questions[at.cpu()], edited)


@dataclass(frozen=True, eq=False)
class World:
    """All sets. attributes: of each type, those that can be used; coverage: what the model's answers left of the data.

    asked: by type, attribute and split; unstable: pairs that were left out because the model's answer changed with the
    batch it was computed in.
    """

    exchange: Interchange
    attributes: dict[str, list[str]]
    asked: dict[tuple[str, str, str], Asked]
    contexts: dict[str, Contexts]
    coverage: list[dict[str, Any]]
    unstable: int

    def targets(self) -> list[tuple[str, str]]:
        """Return every (type, attribute) that is swapped."""
        return [(kind, attribute) for kind, attributes in self.attributes.items() for attribute in attributes]

    def training(self, kind: str, target: str, isolate: bool) -> tuple[Wanted, Tensor, str]:
        """Return the training pairs of an attribute, which of them are cause pairs, bool [N], and their hash.

        isolate: whether the other attributes' pairs, whose answers are to stay, are among them.
        """
        parts = [(self.asked[kind, target, "train"], True)]
        parts += [(self.asked[kind, a, "train"], False) for a in self.attributes[kind] if a != target and isolate]
        wanted = Wanted(
            self.exchange,
            torch.cat([part.base for part, _ in parts]),
            torch.cat([part.source for part, _ in parts]),
            torch.cat([part.change if changes else part.keep for part, changes in parts]),
        )
        cause = torch.cat([torch.full((len(part.pairs),), changes) for part, changes in parts])
        return wanted, cause, value_hash([[asdict(pair) for pair in part.pairs] for part, _ in parts])


Drawn = dict[tuple[str, str, str], list[Pair]]  # by type, attribute and split


def draw(found: Sequence[Answered], pairs: int, train_pairs: int, seed: int) -> Drawn:
    """Draw the pairs of all attributes.

    pairs: of each attribute on each test split; a third as many on each validation split.
    """
    sizes = {"train": train_pairs, **dict.fromkeys(VALIDATION, max(LEAST, pairs // 3))}
    return {
        (one.kind.name, attribute, split): draw_pairs(one, attribute, split, sizes.get(split, pairs), seed)
        for one in found
        for attribute in one.kind.templates
        for split in DRAWN_FROM
    }


def make_world(model: Model, site: Site, found: Sequence[Answered], drawn: Drawn, seed: int, ticker: Ticker) -> World:
    """Run what no edit changes. The world has no attributes where the model answers too little of the data."""
    chosen = usable(drawn)
    asked, exchange = _asked(model, site, {place: some for place, some in drawn.items() if place[:2] in chosen}, ticker)
    asked, unstable = _stable(exchange, asked, ticker)
    kept = usable({place: one.pairs for place, one in asked.items()})
    attributes: dict[str, list[str]] = {}
    for kind, attribute in kept:
        attributes.setdefault(kind, []).append(attribute)
    left = drawn | {place: one.pairs for place, one in asked.items()}
    coverage = [_coverage(one, attribute, left, kept) for one in found for attribute in one.kind.templates]
    asked = {place: one for place, one in asked.items() if place[:2] in kept}
    contexts = {one.kind.name: _contexts(model, site, one, seed) for one in found if one.kind.name in attributes}
    return World(exchange, attributes, asked, contexts, coverage, unstable)


def usable(pairs: Mapping[tuple[str, str, str], Sequence[Pair]]) -> list[tuple[str, str]]:
    """Return the (type, attribute) with enough pairs on every split, of types that have two of them or more."""
    places = dict.fromkeys((kind, attribute) for kind, attribute, _ in pairs)
    enough = [place for place in places if all(len(pairs[*place, split]) >= LEAST for split in DRAWN_FROM)]
    often = Counter(kind for kind, _ in enough)
    return [place for place in enough if often[place[0]] > 1]


def _coverage(one: Answered, attribute: str, pairs: Drawn, kept: Sequence[tuple[str, str]]) -> dict[str, Any]:
    rows = one.rows.filter(attribute=attribute)
    right = one.right[attribute]
    sizes = {split: len(pairs[one.kind.name, attribute, split]) for split in DRAWN_FROM}
    few = [f"{size} on {split}" for split, size in sizes.items() if size < LEAST]
    why = f"too few pairs ({', '.join(few)}; at least {LEAST} each)" if few else "no other attribute to isolate it from"
    return {
        "type": one.kind.name,
        "attribute": attribute,
        "asked": rows.height,
        "answered": int(rows["right"].sum()),
        "entities": len({entity for answers in right.values() for entity in answers}),
        "templates": len(right),
        "train_pairs": sizes["train"],
        "too_few": "" if (one.kind.name, attribute) in kept else f"left out: {why}",
    }


def _asked(
    model: Model, site: Site, drawn: Drawn, ticker: Ticker
) -> tuple[dict[tuple[str, str, str], Asked], Interchange]:
    pairs = [pair for some in drawn.values() for pair in some]
    bases = prompts_of(model.tokenizer, [(pair.template, pair.base) for pair in pairs])
    sources = prompts_of(model.tokenizer, [(pair.source_template, pair.source) for pair in pairs])
    prompts: dict[Pair, tuple[Prompt, Prompt]] = {
        pair: (base, source)
        for pair, base, source in zip(pairs, bases, sources, strict=True)
        if base is not None and source is not None
    }
    kept = {place: [pair for pair in some if pair in prompts] for place, some in drawn.items()}
    order = [pair for some in kept.values() for pair in some]
    questions = [Question(prompts[pair][0], pair.base_answer) for pair in order]
    questions += [Question(prompts[pair][0], pair.source_answer) for pair in order]
    with ticker.bar("prompts", len(questions), "prompts") as bar:
        exchange = interchange(model, site, questions, bar.add)
    with ticker.bar("sources", len(order), "prompts") as bar:
        x = entity_activations(model, site, [prompts[pair][1] for pair in order], bar.add)
    asked, start = {}, 0
    for place, some in kept.items():
        rows = torch.arange(start, start + len(some))
        at = rows.to(x.device)
        asked[place] = Asked(some, exchange.x[at], x[at], rows, rows + len(order))
        start += len(some)
    return asked, exchange


def _stable(
    exchange: Interchange, asked: dict[tuple[str, str, str], Asked], ticker: Ticker
) -> tuple[dict[tuple[str, str, str], Asked], int]:
    """Leave out tested pairs whose base prompt, unedited, isn't answered here as it was before (ties of rounding)."""
    out, lost = {}, 0
    with ticker.bar("unedited", sum(len(a.pairs) for p, a in asked.items() if p[2] != "train"), "answers") as bar:
        for place, one in asked.items():
            out[place] = one
            if place[2] != "train":
                said = exchange.answers(one.keep, one.base, bar.add)
                same = [answer == pair.base_answer for answer, pair in zip(said, one.pairs, strict=True)]
                out[place] = one.only(torch.tensor(same).nonzero()[:, 0])
                lost += len(same) - sum(same)
    return out, lost


def _contexts(model: Model, site: Site, one: Answered, seed: int) -> Contexts:
    rng = np.random.default_rng(seed)
    right = one.right
    known = {a: {entity for answers in templates.values() for entity in answers} for a, templates in right.items()}
    values = {a: {e: one.kind.attributes[e][a] for e in sorted(entities)} for a, entities in known.items()}
    entities = [
        e for e, split in one.kind.entity_split.items() if split == "train" and any(e in v for v in values.values())
    ]
    templates = source_templates(one, "train")
    places = [(templates[i], entity) for entity in entities for i in rng.permutation(len(templates))[:CONTEXTS]]
    prompts = [prompt for prompt in prompts_of(model.tokenizer, places) if prompt is not None]
    return Contexts(entity_activations(model, site, prompts), [prompt.entity for prompt in prompts], values)
