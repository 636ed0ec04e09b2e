"""Prompts of indirect object identification (IOI), their tokens and their counterfactuals. Imports no torch.

"{A} and {B} ... {C} gave a {object} to": the name that stands twice is the subject S, the other one the indirect object
IO, which a model that solves the task says next. Source: Wang et al. 2022 (arXiv 2211.00593); attributes and
counterfactuals: Makelov et al. 2024 (arXiv 2405.08366), sections 3 and A.4. Templates and words are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monosem.evals.ioi.words import FEMALE, GENDERS, MALE, OBJECTS, PLACES, TEMPLATES
from monosem.text import separator_id
from monosem.types import UserError

ATTRIBUTES = ("S", "IO", "Pos")
POSITIONS = ("IO", "S1", "S2", "END")
ORDERS = ("IO first", "S first")
FEWEST = 8  # names of each gender


@dataclass(frozen=True)
class Words:
    """Single tokens of a tokenizer, with a space before them. names: as many typically female as male ones."""

    names: tuple[str, ...]
    places: tuple[str, ...]
    objects: tuple[str, ...]

    @property
    def genders(self) -> np.ndarray:
        """Whether a name is typically female, bool [names]."""
        return np.array([GENDERS[name] == "female" for name in self.names])


@dataclass(frozen=True)
class Prompts:
    """Prompts of one length each. labels: int64 [N, 3], the number of the name S, of the name IO, and 0 where IO stands
    first, 1 where S does; template: int64 [N]; place, thing: int64 [N], numbers of words.
    """

    words: Words
    labels: np.ndarray
    template: np.ndarray
    place: np.ndarray
    thing: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def text(self, i: int | np.intp) -> str:
        """Return prompt i as text."""
        s, io, order = self.labels[i]
        names = self.words.names
        first, second = (names[s], names[io]) if order else (names[io], names[s])
        place, thing = self.words.places[self.place[i]], self.words.objects[self.thing[i]]
        return TEMPLATES[self.template[i]].format(A=first, B=second, C=names[s], place=place, object=thing)

    def with_labels(self, labels: np.ndarray) -> Prompts:
        """Return the same prompts with other names or another order."""
        return Prompts(self.words, labels, self.template, self.place, self.thing)

    def part(self, at: np.ndarray) -> Prompts:
        """Return some of the prompts."""
        return Prompts(self.words, self.labels[at], self.template[at], self.place[at], self.thing[at])


def single_tokens(tokenizer: Any, words: Sequence[str]) -> list[str]:
    """Return the words that are one token behind a space."""
    return [word for word in words if len(tokenizer.encode(f" {word}", add_special_tokens=False)) == 1]


def words_of(tokenizer: Any, names: int, model: str) -> Words:
    """Return at most `names` names, half of each gender, with places and objects.

    Raises UserError when the tokenizer has too few of them as single tokens.
    """
    found = {
        "female names": single_tokens(tokenizer, FEMALE),
        "male names": single_tokens(tokenizer, MALE),
        "places": single_tokens(tokenizer, PLACES),
        "objects": single_tokens(tokenizer, OBJECTS),
    }
    for what, words in found.items():
        if len(words) < FEWEST:
            listed = {"female names": FEMALE, "male names": MALE, "places": PLACES, "objects": OBJECTS}[what]
            lost = next(word for word in listed if word not in words)
            raise UserError(
                f'{model}: only {len(words)} of {len(listed)} {what} are single tokens ("{lost}" is not), ioi needs '
                f"{FEWEST}; use a model whose tokenizer has common names as whole words"
            )
    each = min(names // 2, len(found["female names"]), len(found["male names"]))
    chosen = (*found["female names"][:each], *found["male names"][:each])
    return Words(chosen, tuple(found["places"]), tuple(found["objects"]))


def draw(words: Words, n: int, seed: int, *, held_out: bool) -> Prompts:
    """Return n random prompts, equally many of each template and order as far as n allows.

    held_out: with the second half of places and objects instead of the first, so that no prompt is in both draws.
    """
    rng = np.random.default_rng([seed, int(held_out)])
    s = rng.integers(len(words.names), size=n)
    io = (s + rng.integers(1, len(words.names), size=n)) % len(words.names)
    both = np.arange(n) % (2 * len(TEMPLATES))
    labels = np.stack([s, io, both % 2], axis=1)

    def some(count: int) -> np.ndarray:
        half = count // 2
        return rng.integers(half, count, size=n) if held_out else rng.integers(half, size=n)

    return Prompts(words, labels, both // 2, some(len(words.places)), some(len(words.objects)))


def counterfactual(prompts: Prompts, attribute: str, seed: int) -> Prompts:
    """Return the prompts with one attribute changed: another name for S (in both places) or IO, or the order turned."""
    labels = prompts.labels.copy()
    if attribute == "Pos":
        labels[:, 2] = 1 - labels[:, 2]
        return prompts.with_labels(labels)
    rng = np.random.default_rng([seed, ATTRIBUTES.index(attribute)])
    own, other = labels[:, ATTRIBUTES.index(attribute)], labels[:, 1 - ATTRIBUTES.index(attribute)]
    low, high = np.minimum(own, other), np.maximum(own, other)
    new = rng.integers(len(prompts.words.names) - 2, size=len(labels))  # any name but these two
    new += new >= low
    new += new >= high
    labels[:, ATTRIBUTES.index(attribute)] = new
    return prompts.with_labels(labels)


@dataclass(frozen=True)
class Tokens:
    """Prompts as tokens, sorted in groups of equal length and positions. tokens: int64 [n, length] of one group; at:
    numbers of its prompts; where: position of each of POSITIONS.
    """

    tokens: np.ndarray
    at: np.ndarray
    where: dict[str, int]


def tokenized(tokenizer: Any, prompts: Prompts, model: str) -> list[Tokens]:
    """Return the prompts in groups of one template and order, behind the model's separator.

    Raises UserError when a template's prompts don't have one length, as their words are single tokens only alone.
    """
    start = [separator_id(tokenizer)]
    groups = []
    for template in range(len(TEMPLATES)):
        for order in range(2):
            at = np.flatnonzero((prompts.template == template) & (prompts.labels[:, 2] == order))
            if not len(at):
                continue
            rows = [[*start, *tokenizer.encode(prompts.text(i), add_special_tokens=False)] for i in at]
            if len({len(row) for row in rows}) != 1:
                raise UserError(
                    f"{model}: prompts of one template have {min(map(len, rows))} to {max(map(len, rows))} tokens, "
                    "though their words are single tokens alone; its tokenizer joins words, and ioi can't use it"
                )
            tokens = np.array(rows)
            groups.append(Tokens(tokens, at, _positions(tokenizer, prompts, at, tokens, order)))
    return groups


def _positions(tokenizer: Any, prompts: Prompts, at: np.ndarray, tokens: np.ndarray, order: int) -> dict[str, int]:
    """Return where the names stand; all prompts of a group agree, or a name is found nowhere."""
    ids = name_tokens(tokenizer, prompts.words)
    s, io = ids[prompts.labels[at, 0]], ids[prompts.labels[at, 1]]
    is_s, is_io = tokens == s[:, None], tokens == io[:, None]
    subject, object_ = np.flatnonzero(is_s.all(0)), np.flatnonzero(is_io.all(0))
    if len(subject) != 2 or len(object_) != 1 or (object_[0] < subject[0]) != (order == 0):
        raise UserError(
            f'the prompt "{prompts.text(int(at[0]))}": its names are not found as single tokens; ioi can\'t use this '
            "tokenizer"
        )
    return {"IO": int(object_[0]), "S1": int(subject[0]), "S2": int(subject[1]), "END": tokens.shape[1] - 1}


def name_tokens(tokenizer: Any, words: Words) -> np.ndarray:
    """Return the token of each name, int64 [names]."""
    return np.array([tokenizer.encode(f" {name}", add_special_tokens=False)[0] for name in words.names])
