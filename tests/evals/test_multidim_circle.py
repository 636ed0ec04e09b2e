"""Circular probes, edits in their plane and explanation by regression: planted circles, and cases by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from monosem.evals.multidim.circle import EDITS, Circle, Move, fit_circle, order
from monosem.evals.multidim.regression import circle as turned
from monosem.evals.multidim.regression import explain, named
from monosem.types import UserError

D = 16


def planted(m: int, noise: float = 0.0, inside: float = 0.0, other: float = 0.3, rows: int = 1) -> tuple[Tensor, ...]:
    """Return x, words, the plane of their circle and the mean. inside: of the mean, in the plane; other: size of what
    is each word's own, at right angles to the plane.
    """
    g = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(D, D, generator=g, dtype=torch.float64)).Q
    plane, rest = basis[:2], basis[2:]
    word = torch.arange(m).repeat(rows)
    mean = inside * plane[0] + 2 * rest[0]
    own = torch.randn(m, len(rest) - 1, generator=g, dtype=torch.float64) @ rest[1:]
    own -= own.mean(0)
    x = mean + turned(word, m) @ plane + other * own[word] + noise * torch.randn(len(word), D, generator=g).double()
    return x, word, plane, mean


def off(found: Tensor, wanted: Tensor, m: int) -> float:
    """Return the mean error of angles, in words."""
    gap = found - wanted
    return float((gap - m * torch.round(gap / m)).abs().mean())


def test_a_probe_finds_plane_mean_and_angles() -> None:
    x, word, plane, mean = planted(12, other=0.05)
    found = fit_circle(x, word, 12)
    torch.testing.assert_close(found.mean, mean)
    overlap = torch.linalg.svdvals(found.plane @ plane.T)
    assert overlap.min() > 0.99
    torch.testing.assert_close(found.plane @ found.plane.T, torch.eye(2, dtype=torch.float64))
    assert off(found.angle(x), word, 12) < 0.05
    halfway = found.mean + found.point(torch.tensor([2.5, 7.0]), 2.0)
    torch.testing.assert_close(found.read(halfway), 2 * turned(torch.tensor([2.5, 7.0]), 12))
    second = fit_circle(mean + turned(word, 12, 2) @ plane, word, 12, frequency=2)
    assert off(second.angle(mean + turned(torch.tensor([1]), 12, 2) @ plane), torch.tensor([1.0]), 6) < 1e-6


def published(circle: Circle, word: Tensor) -> Tensor:
    """Return the patch of the authors' code: the mean without its part in the plane, and the point."""
    plane = circle.plane
    return circle.mean - circle.mean @ plane.T @ plane + circle.point(word)


@pytest.mark.parametrize(("m", "wrong"), [(7, 1.556), (12, 2.600)])
def test_the_mean_may_lie_in_the_plane(m: int, wrong: float) -> None:
    x, word, _, _ = planted(m, inside=3.0, other=0.0)
    circle = fit_circle(x, word, m)
    to = (word + 2) % m
    move = Move(x, x[to], to, circle, x)
    torch.testing.assert_close(EDITS["circle"](move), x[to])
    assert off(circle.angle(EDITS["circle"](move)), to, m) < 1e-9
    there = circle.angle(published(circle, to))
    assert off(there, to, m) == pytest.approx(wrong, abs=0.001)
    place = turned(to, m) - torch.tensor([3.0, 0.0])  # the mean's part is gone: the circle lies elsewhere
    assert off(there, torch.atan2(place[:, 1], place[:, 0]) * m / (2 * math.pi), m) < 1e-9
    torch.testing.assert_close(EDITS["pca"](move), x[to])


SWAPS = ("circle_swap", "pca", "whole", "complement", "random_plane", "random_in_span", "unpatched")


@pytest.mark.parametrize("method", SWAPS)
def test_exchanging_a_word_for_itself_changes_nothing(method: str) -> None:
    x, word, _, _ = planted(7, inside=1.0)
    move = Move(x, x, word, fit_circle(x, word, 7), x)
    torch.testing.assert_close(EDITS[method](move), x)


def test_edits_change_what_they_say() -> None:
    x, word, _, mean = planted(7, inside=1.0)
    circle, to = fit_circle(x, word, 7), (word + 3) % 7
    move = Move(x, x[to], to, circle, x)
    new = {name: edit(move) for name, edit in EDITS.items()}
    P = circle.plane.T @ circle.plane
    rest = torch.eye(D, dtype=torch.float64) - P
    torch.testing.assert_close(new["circle_swap"] @ P, x[to] @ P)
    torch.testing.assert_close(new["circle_swap"] @ rest, x @ rest)
    torch.testing.assert_close(new["complement"] @ P, x @ P)
    torch.testing.assert_close(new["complement"] @ rest, x[to] @ rest)
    torch.testing.assert_close(new["zero_circle"] @ P, (mean @ P).expand(7, D))
    torch.testing.assert_close(new["zero_circle"] @ rest, x @ rest)
    torch.testing.assert_close(new["only_circle"] @ P, x @ P)
    torch.testing.assert_close(new["only_circle"] @ rest, (mean @ rest).expand(7, D))
    torch.testing.assert_close(new["mean"], mean.expand(7, D))
    beyond = torch.linalg.svd(x - mean).Vh[6:]  # seven words span six directions around their mean
    for name in ("random_plane", "random_in_span"):
        assert torch.linalg.matrix_rank(new[name] - x) == 2
        assert not EDITS[name](Move(x, x[to], to, circle, x, seed=1)).allclose(new[name])
        leaves = float(((new[name] - x) @ beyond.T).norm() / (new[name] - x).norm())
        assert (leaves < 1e-9) == (name == "random_in_span")


def test_a_word_left_out_is_seen_by_nothing_that_reads_it() -> None:
    x, word, _, _ = planted(7, rows=2, noise=0.3)
    found = order(x, word, 7, draws=1)
    for w in range(7):
        rest = word != w
        pca = PCA(5).fit(x[rest].numpy())
        P = np.linalg.lstsq(pca.transform(x[rest].numpy()), turned(word[rest], 7).numpy(), rcond=None)[0]
        assert found.place[w].tolist() == pytest.approx((pca.transform(x[~rest].numpy()) @ P).mean(0).tolist())


def test_words_called_otherwise_are_judged_by_what_they_are_called() -> None:
    x, word, _, _ = planted(4, other=0.0)
    found = order(x, word, 4, draws=300)
    assert found.p == pytest.approx(8 / 24, abs=0.09)  # turns and mirrors of a square are as good as the square


def test_words_left_out_tell_a_circle_from_chance() -> None:
    x, word, _, _ = planted(12, other=0.15, rows=2, noise=0.01)
    found = order(x, word, 12, draws=50)
    assert found.error.value < 0.8
    assert found.error.low < found.error.value < found.error.high
    assert found.null == pytest.approx(3, abs=0.3)
    assert found.p == pytest.approx(1 / 51)
    assert found.next_fitted == 12
    shuffled = torch.randperm(12, generator=torch.Generator().manual_seed(0))[word]
    chance = order(x, shuffled, 12, draws=50)
    assert chance.error.value > 2
    assert chance.p > 0.1
    assert chance.next < 6


def test_seven_words_fit_any_circle_in_the_sample() -> None:
    x = torch.randn(7, 40, generator=torch.Generator().manual_seed(0))
    found = order(x, torch.arange(7), 7, draws=100)
    assert found.r2 > 0.6
    assert 0.78 < found.r2_null < 0.93
    assert found.error.value > 0.8
    assert found.null == pytest.approx(1.75, abs=0.25)


def test_perfect_circles_have_no_error() -> None:
    x, word, _, _ = planted(7, other=0.0)
    found = order(x, word, 7, draws=20)
    assert found.error.value == pytest.approx(0, abs=1e-6)
    assert (found.next, found.next_fitted, found.r2) == (7, 7, pytest.approx(1))
    torch.testing.assert_close(found.place, 7 / 6 * turned(word, 7))  # the others' mean is 1/6 off, the other way


def test_what_is_no_circle_is_refused() -> None:
    x, word, _, _ = planted(7)
    with pytest.raises(UserError, match="have 1 components"):
        fit_circle(torch.outer(word.double(), torch.ones(4).double()), word, 7)
    with pytest.raises(UserError, match="have 0 components"):
        fit_circle(torch.ones(7, 4), word, 7)
    with pytest.raises(UserError, match=r"must be \[n, d\] and \[n\]"):
        fit_circle(x, word[:3], 7)
    with pytest.raises(UserError, match="word 7: no activation"):
        order(x, word, 8)


def test_regression_explains_all_once_the_answers_circle_is_there() -> None:
    m, g = 12, torch.Generator().manual_seed(0)
    alpha, beta = (t.flatten() for t in torch.meshgrid(torch.arange(m), torch.arange(1, m + 1), indexing="ij"))
    gamma = (alpha + beta) % m
    circle = 2 * turned(gamma, m) @ torch.linalg.qr(torch.randn(D, 2, generator=g).double()).Q.T
    x = named(alpha, m) @ torch.randn(m, D, generator=g).double() + circle
    steps = explain(x, {"alpha": named(alpha, m), "beta": named(beta % m, m), "circle": turned(gamma, m)})
    assert [step.name for step in steps] == ["alpha", "beta", "circle"]
    assert steps[1].r2 < 0.95
    assert steps[1].r2_held < steps[1].r2
    assert steps[2].r2 == pytest.approx(1, abs=1e-6)
    assert steps[2].r2_held == pytest.approx(1, abs=1e-6)
    lengths = torch.linalg.svdvals(steps[0].residual)  # of what is left without it: the circle, and nothing else
    assert lengths[1] > 0.9 * lengths[0]
    assert lengths[2] < 1e-6 * lengths[0]
    radius = steps[0].residual.norm(dim=1)
    assert radius.std() < 1e-6 * radius.mean()
    assert math.isclose(float(radius.mean()), 2, rel_tol=1e-6)


def test_where_zero_lies_does_not_matter() -> None:
    g, word = torch.Generator().manual_seed(0), torch.arange(12).repeat(3)
    x = torch.randn(36, 5, generator=g) + turned(word, 12) @ torch.randn(2, 5, generator=g).double()
    here, there = (explain(x + shift, {"circle": turned(word, 12)})[0] for shift in (0, 50))
    assert (there.r2, there.r2_held) == (pytest.approx(here.r2), pytest.approx(here.r2_held))
    assert here.r2_held > 0.1


def test_more_functions_fit_better_in_the_sample_only() -> None:
    g = torch.Generator().manual_seed(0)
    x, noise = torch.randn(40, 5, generator=g), torch.randn(40, 20, generator=g)
    (step,) = explain(x, {"noise": noise})
    assert step.r2 > 0.3
    assert step.r2_held < 0
    with pytest.raises(UserError, match="3 rows of x"):
        explain(x[:3], {})
