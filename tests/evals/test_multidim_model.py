"""Cyclic tasks on a model, and how an SAE holds a plane: against hooks by hand, and planted dictionaries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from monosem.evals.multidim.asking import Asked, activations, ask, patched, unedited
from monosem.evals.multidim.held import parts, pieces
from monosem.evals.multidim.tasks import DAYS, Task, tasks_of
from monosem.model import Model
from monosem.normaliser import Normaliser
from monosem.sae import Sae
from monosem.types import UserError
from monosem.variants import make_variant

from .days import day_model


@pytest.fixture(scope="module")
def model() -> Model:
    return day_model()


def some(kind: str, cycle: str = "weekdays") -> Task:
    return next(task for task in tasks_of([cycle]) if task.kind == kind)


def test_prompts_say_what_is_asked() -> None:
    days, sums = some("successor").prompts, some("sum").prompts
    assert [p.text for p in days[:2]] == ["Today is Monday. Tomorrow will be", "Today is Tuesday. Tomorrow will be"]
    assert (len(days), len(sums), len(some("sum", "months").prompts)) == (7, 49, 144)
    assert sums[0].text == "A question about the days of the week. One day after Monday comes"
    two = next(p for p in sums if (p.alpha, p.beta) == (6, 2))
    assert two.text == "A question about the days of the week. Two days after Sunday comes"
    assert two.begin.endswith("Sunday")


def test_answers_are_so_many_words_on(model: Model) -> None:
    asked = ask(model, some("sum"))
    two = next(i for i, p in enumerate(asked.task.prompts) if (p.alpha, p.beta) == (6, 2))
    assert DAYS[int(asked.gamma[two])] == "Tuesday"
    assert model.tokenizer.decode([int(asked.answers[1])]).strip() == "Tuesday"
    group = next(g for g in asked.groups if two in g.rows)
    row = group.tokens[int((group.rows == two).nonzero())]
    assert model.tokenizer.decode([int(row[group.at])]).strip() == "Sunday"


def by_hand(asked: Asked, prompt: int, layer: int, value: torch.Tensor | None, last: bool) -> torch.Tensor:
    """Return the answers' logits, and put what was there into `value` where that is NaN."""
    tokens = torch.tensor([asked.model.tokenizer.encode(asked.task.prompts[prompt].text)])
    at = tokens.shape[1] - 1 if last else len(asked.model.tokenizer.encode(asked.task.prompts[prompt].begin)) - 1

    def hook(_module, _args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        if value is not None:
            if value.isnan().any():
                value.copy_(hidden[0, at])
            hidden[0, at] = value
        return output

    handle = asked.model.blocks[layer].register_forward_hook(hook)
    with torch.no_grad():
        logits = asked.model.lm(input_ids=tokens).logits[0, -1, asked.answers]
    handle.remove()
    return logits


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", ["successor", "sum"])
def test_patches_equal_whole_passes_with_hooks(model: Model, kind: str, last: bool) -> None:
    asked = ask(model, some(kind))
    site = model.site("blocks.1.hook_resid_post")
    own = activations(asked, [site], last)[site.name]
    new = torch.randn(len(own), 3, 32, generator=torch.Generator().manual_seed(0))
    new[:, 2] = own
    found, clean = patched(asked, site, new, last), unedited(asked)
    torch.testing.assert_close(found[:, 2], clean, atol=1e-5, rtol=0)
    for prompt in (0, len(own) // 2, len(own) - 1):
        there = torch.full((32,), math.nan)
        torch.testing.assert_close(clean[prompt], by_hand(asked, prompt, 1, there, last), atol=1e-5, rtol=0)
        torch.testing.assert_close(own[prompt], there, atol=1e-5, rtol=0)
        for copy in (0, 1):
            wanted = by_hand(asked, prompt, 1, new[prompt, copy].clone(), last)
            torch.testing.assert_close(found[prompt, copy], wanted, atol=1e-5, rtol=0)
    assert (found[:, 0] - clean).abs().max() > 0.01


def test_words_that_begin_alike_can_not_be_told_apart() -> None:
    with pytest.raises(UserError, match=r"Saturday, Sunday begin with the same token in random: .* leave the task out"):
        ask(day_model(["Today", "is", *DAYS[:5]]), some("successor"))
    with pytest.raises(UserError, match='tasks: "years" is not known; known are weekdays, months'):
        list(tasks_of(["years"]))


def circle_sae(together: bool) -> tuple[Sae, torch.Tensor, torch.Tensor]:
    """Return an SAE with a feature a month, the activations of months on a circle, and the circle's plane.

    together: all its features are in the plane; otherwise each stands half on a direction of its own.
    """
    m, d = 12, 20
    angle = 2 * math.pi * torch.arange(m) / m
    plane = torch.zeros(2, d)
    plane[0, 0] = plane[1, 1] = 1
    x = torch.cos(angle)[:, None] * plane[0] + torch.sin(angle)[:, None] * plane[1]
    W_dec = x.clone()
    if not together:
        W_dec[torch.arange(m), 2 + torch.arange(m)] = 1
    x = W_dec.clone()
    W_enc = torch.linalg.pinv(W_dec) if not together else 30 * W_dec.T
    bias = torch.zeros(m) if not together else torch.full((m,), -29.0)
    weights = {"W_enc": W_enc, "b_enc": bias, "W_dec": W_dec, "b_dec": torch.zeros(d)}
    return Sae("standard", make_variant("standard", {}), weights, Normaliser("none"), {}), x, plane


@pytest.mark.parametrize("together", [False, True])
def test_a_feature_a_word_holds_the_circle_only_with_all_of_them(together: bool) -> None:
    sae, x, plane = circle_sae(together)
    found, z = parts(sae, x, torch.arange(12), 12, plane)
    assert ((z > 1e-4).sum(1) == 1).all()
    assert found.share() == pytest.approx(1, abs=1e-5)
    assert found.share([0, 6]) < found.share(range(6)) < found.share()
    needed = found.needed(0.9)
    assert 9 <= len(needed) <= 12
    assert found.share(needed) >= 0.9
    estimate = found.estimate(range(6))
    assert estimate.low < estimate.value < estimate.high
    assert estimate.n == 12


def test_needed_stops_where_no_feature_helps() -> None:
    sae, x, plane = circle_sae(together=True)
    sae.weights["W_dec"][6:] = 0
    found, _ = parts(sae, x, torch.arange(12), 12, plane)
    assert sorted(found.needed(0.9)) == [0, 1, 2, 3, 4, 5]


def test_pieces_are_clusters_and_single_features() -> None:
    clusters = [np.array([1, 2, 3]), np.array([7, 8])]
    assert pieces([1, 3, 7, 5, 6], clusters) == 4
    assert pieces([], clusters) == 0
