"""Base and source prompts: whose activation is put where (method page, section 2.2). Imports no torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from monosem.evals.ravel.answers import Answered
from monosem.store import value_hash

# which entities and which templates a split takes; its source prompts come from the same ones
DRAWN_FROM = {
    "train": ("train", "train"),
    "val entity": ("val", "train"),
    "val context": ("train", "val"),
    "entity": ("test", "train"),
    "context": ("train", "test"),
}
LEVEL = {"entity": 10, "context": 20}  # a label's weight is 1 / (LEVEL + how often it occurs)


@dataclass(frozen=True)
class Pair:
    """A base prompt that asks for `attribute`, and a source prompt.

    base_answer, source_answer: tokens of what the model answers to the base template for each of the two entities; they
    differ.
    """

    type: str
    attribute: str
    split: str
    base: str
    source: str
    template: str
    source_template: str
    base_answer: tuple[int, ...]
    source_answer: tuple[int, ...]


def draw_pairs(found: Answered, attribute: str, split: str, count: int, seed: int) -> list[Pair]:
    """Return at most `count` different pairs that ask for an attribute; fewer where there aren't as many.

    Templates are drawn uniformly among those that have two different answers in the split, source and base entities so
    that frequent answers don't crowd out the rare ones, the source template from all templates of the split.
    """
    kind = found.kind
    rng = np.random.default_rng([seed, int(value_hash([kind.name, attribute, split])[:8], 16)])
    entity_split, template_split = DRAWN_FROM[split]
    by_template = {
        template: {e: a for e, a in answers.items() if kind.entity_split[e] == entity_split}
        for template, answers in found.right[attribute].items()
        if kind.template_split[template] == template_split
    }
    values = {entity: known[attribute] for entity, known in kind.attributes.items() if attribute in known}
    usable = {t: answers for t, answers in by_template.items() if _tell_apart(answers, values)}
    sources = source_templates(found, template_split)
    level = LEVEL["context" if "context" in split else "entity"]
    drawn = {t: _draw(a, values, max(1, 3 * count // len(usable)), level, rng) for t, a in usable.items()}
    pairs: dict[tuple[str, str, str], Pair] = {}
    for round_ in range(3 * count):
        for template, entities in drawn.items():
            if round_ >= len(entities) or len(pairs) == count:
                continue
            base, source = entities[round_]
            answers = usable[template]
            pairs[template, base, source] = Pair(
                kind.name,
                attribute,
                split,
                base,
                source,
                template,
                str(rng.choice(sources)),
                answers[base],
                answers[source],
            )
    return list(pairs.values())


def source_templates(found: Answered, split: str) -> list[str]:
    """Return the templates of a split that a source prompt may have: those that were answered, and the other ones."""
    known = {t for templates in found.right.values() for t in templates} | set(found.kind.other)
    every = [t for templates in found.kind.templates.values() for t in templates] + found.kind.other
    return [t for t in dict.fromkeys(every) if t in known and found.kind.template_split[t] == split]


def _tell_apart(answers: dict[str, tuple[int, ...]], values: dict[str, str]) -> bool:
    entities = list(answers)
    return any(_differs(answers, values, entities[0], other) for other in entities)


def _differs(answers: dict[str, tuple[int, ...]], values: dict[str, str], base: str, source: str) -> bool:
    """Return whether two entities' answers differ in meaning, and neither begins with the other."""
    a, b = answers[base], answers[source]
    return values[base] != values[source] and a[: len(b)] != b[: len(a)]


def _draw(
    answers: dict[str, tuple[int, ...]], values: dict[str, str], count: int, level: int, rng: np.random.Generator
) -> list[tuple[str, str]]:
    """Return `count` draws of (base, source) whose answers differ; fewer where a base has no such source."""
    entities = list(answers)
    often = Counter(answers.values())
    weights = np.array([1 / (level + often[answers[e]]) for e in entities])
    out = []
    for base in rng.choice(len(entities), count, p=weights / weights.sum()):
        p = weights * np.array([_differs(answers, values, entities[base], e) for e in entities])
        if p.any():
            out.append((entities[base], entities[rng.choice(len(entities), p=p / p.sum())]))
    return out
