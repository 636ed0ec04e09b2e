"""RAVEL's use of the model: positions, answers, pairs, and edited answers against whole forward passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from monosem.evals.ravel.answers import Answered, answered, greedy, needed
from monosem.evals.ravel.entities import EntityType
from monosem.evals.ravel.interchange import Question, entity_activations, interchange
from monosem.evals.ravel.pairs import DRAWN_FROM, draw_pairs
from monosem.evals.ravel.prompts import Prompt, prompts_of
from monosem.model import HOOKS, Model, load_model
from monosem.progress import Ticker
from monosem.types import UserError

from ..conftest import make_tokenizer

TEMPLATES = ("the %s in the river", "a %s", "it was %s of", "old %s and the")
ENTITIES = ("cat", "dog", "bat", "tree stone", "river", "xyzzy", "q")


@pytest.fixture(scope="module")
def model(tiny_lm: Path) -> Model:
    return load_model(str(tiny_lm), dtype="float32", device="cpu")


def prompts(model: Model) -> list[Prompt]:
    found = prompts_of(model.tokenizer, [(t, e) for t in TEMPLATES for e in ENTITIES])
    assert all(prompt is not None for prompt in found)
    return [prompt for prompt in found if prompt is not None]


def test_the_position_is_the_last_token_of_the_entity(model: Model) -> None:
    for prompt in prompts(model):
        assert prompt.tokens[0] == 0
        until = model.tokenizer.decode(prompt.tokens[1 : prompt.at + 1])
        assert until == prompt.template[: prompt.template.index("%s")] + prompt.entity
        assert model.tokenizer.decode(prompt.tokens[1:]) == prompt.template.replace("%s", prompt.entity)


def test_a_prompt_whose_entity_ends_inside_a_token_is_left_out() -> None:
    tokenizer = make_tokenizer()
    whole = tokenizer("the river", add_special_tokens=False)["input_ids"]
    assert whole[-1:] == tokenizer(" river", add_special_tokens=False)["input_ids"]  # " riv" and "er" are no tokens
    assert prompts_of(tokenizer, [("the %ser", "riv"), ("the %s", "river")])[0] is None
    assert prompts_of(tokenizer, [("the %s", "river")]) == [Prompt("the %s", "river", (0, *whole), len(whole))]


def test_a_prompt_that_is_too_long_is_left_out() -> None:
    (whole,) = prompts_of(make_tokenizer(), [("the %s", "river")])
    assert whole is not None
    assert prompts_of(make_tokenizer(), [("the %s", "river")], len(whole.tokens)) == [whole]
    assert prompts_of(make_tokenizer(), [("the %s", "river")], len(whole.tokens) - 1) == [None]


def test_an_entity_without_tokens_is_refused() -> None:
    for entity in ("", "  "):
        with pytest.raises(UserError, match="has no tokens of its own"):
            prompts_of(make_tokenizer(), [("the %s in", entity)])


class Words:
    """A tokenizer of whole words and spaces before them, that only decodes."""

    def decode(self, tokens: Any) -> str:
        return "".join(tokens)


@pytest.mark.parametrize(
    ("answer", "value", "size"),
    [
        ((" France", ".", " It"), "France", 1),
        ((" the", " United", " States", ";"), "United States", 3),
        (("go", "es", ";"), "go", 0),  # another form of the verb
        (("go", "es", ";"), "goes", 2),
        ((' "', "Asia", '"'), "asia", 2),
        ((" Unit", "ed", " St"), "United States", 3),  # the answer is cut off, not wrong
        ((" U", "."), "United States", 0),
        ((" United", " Kingdom"), "United States", 0),
        (("", ""), "x", 0),
    ],
)
def test_what_spells_an_answer(answer: tuple[str, ...], value: str, size: int) -> None:
    assert needed(Words(), answer, (value,)) == size  # pyright: ignore[reportArgumentType]


def test_other_spellings_count() -> None:
    assert needed(Words(), (" USA", ";"), ("United States", "USA")) == 1  # pyright: ignore[reportArgumentType]


def naive(model: Model, tokens: tuple[int, ...], new: int) -> list[int]:
    row = list(tokens)
    for _ in range(new):
        row.append(int(model.run(torch.tensor([row]))[0, -1].argmax()))
    return row[len(tokens) :]


@torch.no_grad()
def test_greedy_answers_are_those_of_whole_passes(model: Model) -> None:
    asked = prompts(model)
    assert greedy(model, asked, 3) == [naive(model, prompt.tokens, 3) for prompt in asked]
    same = [p for p in asked if p.template == TEMPLATES[0]]  # these have a beginning in common
    assert greedy(model, same, 2) == [naive(model, prompt.tokens, 2) for prompt in same]


@pytest.mark.parametrize(
    "name", [*(f"blocks.1.{hook}" for hook in HOOKS), "blocks.0.hook_resid_pre", "blocks.3.hook_resid_post"]
)
def test_edited_answers_equal_whole_passes_with_a_hook(model: Model, name: str) -> None:
    site = model.site(name)
    asked = prompts(model)
    answers = greedy(model, asked[::-1], 3)
    questions = [Question(p, tuple(a[: 1 + i % 3])) for i, (p, a) in enumerate(zip(asked, answers, strict=True))]
    exchange = interchange(model, site, questions)
    source = entity_activations(model, site, asked).roll(5, 0)
    assert torch.equal(exchange.x.roll(5, 0), source) or torch.allclose(exchange.x.roll(5, 0), source, atol=1e-5)
    at = torch.arange(len(questions)).flip(0)
    edited = source.flip(0).clone().requires_grad_()
    losses = exchange.losses(at, edited)
    losses.sum().backward()
    said = exchange.answers(at, edited.detach())
    assert edited.grad is not None
    for place, i in enumerate(at.tolist()):
        question, new = questions[i], source[i].clone().requires_grad_()

        def edit(x: torch.Tensor, where: int = question.prompt.at, new: torch.Tensor = new) -> torch.Tensor:
            return torch.cat([x[:, :where], new[None, None], x[:, where + 1 :]], dim=1)

        logits = model.run(torch.tensor([question.tokens]), site, edit)[0, -len(question.answer) :]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(question.answer))
        loss.backward()
        assert losses[place].item() == pytest.approx(loss.item(), abs=1e-5)
        assert new.grad is not None
        assert torch.allclose(edited.grad[place], new.grad, rtol=1e-4, atol=1e-4)
        greedily = logits.argmax(-1).tolist()
        wrong = [a != b for a, b in zip(greedily, question.answer, strict=True)]
        assert list(said[place]) == greedily[: wrong.index(True) + 1 if any(wrong) else None]


def made_up() -> Answered:
    """Forty entities with four values of one attribute; every template is answered but one."""
    entities = [f"e{i}" for i in range(40)]
    splits = {e: ("train", "train", "val", "test")[i % 4] for i, e in enumerate(entities)}
    templates = {"Colour": [f"t{i} %s" for i in range(6)]}
    template_split = dict(zip(templates["Colour"], ("train", "train", "val", "val", "test", "test"), strict=True))
    values = {e: {"Colour": f"c{i // 4 % 4}"} for i, e in enumerate(entities)}
    kind = EntityType("thing", values, templates, ["o %s"], splits, template_split | {"o %s": "test"}, {})
    rows = [
        ("Colour", t, e, "", t != "t3 %s", [int(values[e]["Colour"][1:])])
        for t in templates["Colour"]
        for e in entities
    ]
    names = ["attribute", "template", "entity", "text", "right", "answer"]
    return Answered(kind, pl.DataFrame(rows, schema=names, orient="row"))


@pytest.mark.parametrize("split", DRAWN_FROM)
def test_pairs_stay_in_their_split_and_differ(split: str) -> None:
    found = made_up()
    pairs = draw_pairs(found, "Colour", split, 30, 0)
    assert len(set(pairs)) == len(pairs) == 30
    of_entity, of_template = DRAWN_FROM[split]
    for pair in pairs:
        assert {found.kind.entity_split[e] for e in (pair.base, pair.source)} == {of_entity}
        assert (
            found.kind.template_split[pair.template] == found.kind.template_split[pair.source_template] == of_template
        )
        assert pair.base_answer != pair.source_answer
        assert pair.base_answer == (int(found.kind.attributes[pair.base]["Colour"][1:]),)
        assert pair.source_answer == (int(found.kind.attributes[pair.source]["Colour"][1:]),)
        assert pair.template != "t3 %s"  # not answered
    assert draw_pairs(found, "Colour", split, 30, 0) == pairs
    assert draw_pairs(found, "Colour", split, 30, 1) != pairs
    if split == "context":
        assert "o %s" in {pair.source_template for pair in pairs}


def test_rare_answers_are_drawn_about_as_often_as_frequent_ones() -> None:
    found = made_up()
    rare = {"e0", "e8", "e16", "e24", "e32"}
    answer = pl.when(pl.col("entity").is_in(rare)).then(pl.lit([9])).otherwise(pl.lit([1]))
    pairs = draw_pairs(Answered(found.kind, found.rows.with_columns(answer=answer)), "Colour", "train", 60, 0)
    share = sum(pair.base in rare for pair in pairs) / len(pairs)
    assert 0.3 < share < 0.6  # of 20 entities 5 have the rare answer


def test_answers_are_asked_once_and_again_when_what_they_depend_on_changes(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = made_up().kind
    asked = []

    def watched(model: Model, prompts: list[Prompt], new: int, progress: Any) -> list[list[int]]:
        asked.extend(prompt.template for prompt in prompts)
        if len(set(asked)) == 4 and stop:
            raise KeyboardInterrupt
        return greedy(model, prompts, new, progress)

    monkeypatch.setattr("monosem.evals.ravel.answers.greedy", watched)
    stop = [True]
    with pytest.raises(KeyboardInterrupt):
        answered(tmp_path, model, kind, {"a": 1}, 2, 12, Ticker())
    stop.clear()
    asked.clear()
    rows = answered(tmp_path, model, kind, {"a": 1}, 2, 12, Ticker()).rows
    assert list(dict.fromkeys(asked)) == kind.templates["Colour"][3:]  # three were kept
    assert rows.height == 240
    asked.clear()
    assert answered(tmp_path, model, kind, {"a": 1}, 2, 12, Ticker()).rows.equals(rows)
    assert not asked
    answered(tmp_path, model, kind, {"a": 2}, 2, 12, Ticker())
    assert len(asked) == 240


def test_the_best_templates_of_each_split_are_kept(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = made_up().kind
    good = {"t1 %s", "t2 %s", "t5 %s"}

    def half_right(model: Model, prompts: list[Prompt], new: int, progress: Any) -> list[list[int]]:
        texts = [f" {kind.attributes[p.entity]['Colour']}" if p.template in good else " no" for p in prompts]
        return model.tokenizer(texts, add_special_tokens=False)["input_ids"]

    monkeypatch.setattr("monosem.evals.ravel.answers.greedy", half_right)
    found = answered(tmp_path, model, kind, {}, 4, 2, Ticker())
    assert set(found.rows["template"]) == good
    assert set(found.right["Colour"]) == good
