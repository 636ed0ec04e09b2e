"""RAVEL's methods and scores on a planted world: three attributes in known directions, read off by an argmax.

x = U_A e_a + U_B e_b + U_C e_c + noise, 5, 4 and 3 values in 32 dimensions, rows of U orthonormal. What the scores of
known edits are follows by counting.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import cross_entropy

from monosem.evals.ravel.disentangle import PAIR, Key, differences, intervals, scores
from monosem.evals.ravel.edits import (
    Edit,
    Features,
    Full,
    Mask,
    Subspace,
    identity_error,
    principal_components,
    random_subspace,
)
from monosem.evals.ravel.rlace import project, remaining_loss, rlace
from monosem.evals.ravel.selection import CLASSES, GRID, svm_path
from monosem.evals.ravel.training import (
    FEATURES,
    MASK,
    SUBSPACE,
    Checkpoint,
    Settings,
    batch_at,
    train_features,
    train_mask,
    train_subspace,
)
from monosem.normaliser import Normaliser
from monosem.sae import Sae, make_sae
from monosem.types import Estimate, UserError

D = 32
SIZES = {"A": 5, "B": 4, "C": 3}
SHARP = 8.0  # of the answers' softmax
FEW = Settings(steps=6, batch=8, lr=0.3)


@dataclass(frozen=True)
class World:
    """U: rows by attribute."""

    U: dict[str, Tensor]

    def x(self, values: Tensor, generator: torch.Generator) -> Tensor:
        clean = sum(self.U[name][values[:, j]] for j, name in enumerate(SIZES))
        return clean + 0.05 * torch.randn(len(values), D, generator=generator)


@dataclass(frozen=True)
class Pairs:
    """base, source: [n, D]; values: of both, [n, 3]; asked: which attribute is asked, its number; A is the target."""

    world: World
    base: Tensor
    source: Tensor
    base_values: Tensor
    source_values: Tensor
    asked: Tensor

    @property
    def cause(self) -> Tensor:
        return self.asked == 0

    @property
    def wanted(self) -> Tensor:
        n = torch.arange(len(self.asked))
        return torch.where(self.cause, self.source_values[n, self.asked], self.base_values[n, self.asked])

    def logits(self, at: Tensor, x: Tensor, number: int) -> tuple[Tensor, Tensor]:
        where = torch.nonzero(self.asked[at] == number)[:, 0]
        return where, SHARP * x[where] @ list(self.world.U.values())[number].T

    def losses(self, at: Tensor, edited: Tensor) -> Tensor:
        out = torch.zeros(len(at))
        for number in range(len(SIZES)):
            where, logits = self.logits(at, edited, number)
            out = out.index_put((where,), cross_entropy(logits, self.wanted[at][where], reduction="none"))
        return out

    def scores(self, edit: Callable[[Tensor, Tensor], Tensor]) -> list[float]:
        """Return Cause, Isolate and Disentangle of an edit."""
        x, hit = edit(self.base, self.source), torch.zeros(len(self.base))
        for number in range(len(SIZES)):
            where, logits = self.logits(torch.arange(len(x)), x, number)
            hit[where] = (logits.argmax(1) == self.wanted[where]).float()
        isolate = {name: hit[self.asked == j] for j, name in enumerate(SIZES) if j > 0}
        return list(scores(hit[self.cause], isolate).values())


def world(aligned: bool = False) -> World:
    """Return the planted world; aligned: attributes have dimensions of their own."""
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(D, D, generator=generator)
    Q = torch.eye(D) if aligned else torch.linalg.qr(square).Q
    return World(dict(zip(SIZES, Q[: sum(SIZES.values())].split(list(SIZES.values())), strict=True)))


def draw(planted: World, n: int, seed: int, isolate: bool = True) -> Pairs:
    """Return pairs that differ in all attributes; half of them ask for A, if `isolate`, else all."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.stack([torch.randint(size, (n,), generator=generator) for size in SIZES.values()], 1)
    shift = torch.stack([torch.randint(1, size, (n,), generator=generator) for size in SIZES.values()], 1)
    source = (base + shift) % torch.tensor(list(SIZES.values()))
    asked = torch.tensor([0, 1, 0, 2] if isolate else [0, 0, 0, 0]).repeat(n // 4)
    return Pairs(planted, planted.x(base, generator), planted.x(source, generator), base, source, asked)


def one_hot_sae(planted: World, without: str = "", others: int = 0, bias: float = -0.2) -> Sae:
    """Return an SAE with one feature a value, in the order A, B, C; those of `without` decode to nothing.

    others: features in random directions that matter to no attribute.
    """
    rows = torch.cat([U * (name != without) for name, U in planted.U.items()])
    noise = torch.randn(others, D, generator=torch.Generator().manual_seed(5)) / D**0.5
    W = torch.cat([rows, noise])
    sae = make_sae("standard", d_in=D, d_sae=len(W))
    decoded = torch.cat([rows, 0.1 * noise])
    sae.weights.update(W_enc=W.T.contiguous(), W_dec=decoded, b_enc=torch.full((len(W),), bias), b_dec=torch.zeros(D))
    return sae


PLANTED = world()
TEST = draw(PLANTED, 2000, seed=9)
TRAIN = draw(PLANTED, 2000, seed=1)
OF_A = torch.arange(SIZES["A"])
NOTHING = torch.arange(0)


def close(*expected: float, tolerance: float = 0.02) -> Any:
    return pytest.approx(list(expected), abs=tolerance)


# --- edits with known scores


def test_known_edits_have_the_scores_that_counting_gives() -> None:
    assert TEST.scores(lambda base, source: base) == close(0, 1, 0.5)
    assert TEST.scores(Full(D)) == close(1, 0, 0.5)
    assert TEST.scores(Subspace(PLANTED.U["A"])) == close(1, 1, 1)
    assert TEST.scores(Subspace(PLANTED.U["B"])) == close(0, 0.5, 0.25)  # of B and C only C is still the base's


def test_random_subspaces_trade_isolate_for_cause() -> None:
    """Disentangle about 0.5 whatever their rank: the control that a trained subspace has to beat."""
    found = {r: np.mean([TEST.scores(random_subspace(D, r, seed)) for seed in range(20)], axis=0) for r in (8, 16, 24)}
    assert [found[r][2] for r in found] == pytest.approx([0.48, 0.5, 0.48], abs=0.06)
    assert found[8][0] < 0.2 < found[16][0] < 0.8 < found[24][0]
    assert found[8][1] > 0.8 > found[16][1] > 0.2 > found[24][1]


def test_an_sae_without_an_attribute_loses_it_unless_the_error_is_added() -> None:
    whole, missing = one_hot_sae(PLANTED), one_hot_sae(PLANTED, without="B")
    assert TEST.scores(Features(whole, OF_A)) == close(1, 1, 1)
    cause, isolate, disentangle = TEST.scores(Features(missing, OF_A))
    assert cause == 1
    assert isolate == pytest.approx((1 / SIZES["B"] + 1) / 2, abs=0.06)  # B is a guess
    assert disentangle == pytest.approx(0.81, abs=0.03)
    assert TEST.scores(Features(missing, OF_A, error=True)) == close(1, 1, 1)
    assert TEST.scores(Features(missing, NOTHING)) == close(0, isolate, isolate / 2)  # the reconstruction alone
    assert TEST.scores(Features(whole, torch.arange(whole.d_sae))) == close(1, 0, 0.5)


def test_edits_by_hand() -> None:
    base, source = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[5.0, 1.0, -1.0]])
    diagonal = torch.tensor([[0.6, 0.8, 0.0]])
    # (4, -1) . (0.6, 0.8) = 1.6
    assert Subspace(diagonal)(base, source)[0].tolist() == pytest.approx([1.96, 3.28, 3])
    # scaled by (2, 0.5): (2, -2) . (0.6, 0.8) = -0.4, times (0.6, 0.8), times (2, 0.5)
    scaled = Subspace(diagonal, torch.tensor([2.0, 0.5, 1.0]))
    assert scaled(base, source)[0].tolist() == pytest.approx([1 - 0.48, 2 - 0.16, 3])
    assert Mask(torch.tensor([True, False, True]))(base, source)[0].tolist() == [5, 2, -1]
    assert Full(3)(base, source).tolist() == source.tolist()
    sizes = Full(3).size, scaled.size, Mask(torch.tensor([True, False, True])).size
    assert sizes == (3, 1, 2)


def test_features_are_decoded_in_the_normalisation_of_the_base() -> None:
    """One feature a dimension and each token scaled to |x| = sqrt(d): the source's share goes to the base's length."""
    sae = make_sae("standard", d_in=2, d_sae=2)
    eye = torch.eye(2)
    sae.weights.update(W_enc=eye, W_dec=eye, b_enc=torch.zeros(2), b_dec=torch.zeros(2))
    sae = replace(sae, normaliser=Normaliser("token_const"))
    base, source = torch.tensor([[3.0, 4.0]]), torch.tensor([[20.0, 0.0]])
    edited = Features(sae, torch.tensor([0]))(base, source)
    assert edited[0].tolist() == pytest.approx([5, 4])
    assert Features(sae, torch.tensor([0])).size == 1


def test_many_rows_are_decoded_as_few_are() -> None:
    edit = Features(one_hot_sae(PLANTED), OF_A)
    assert torch.allclose(edit(TEST.base, TEST.source)[-5:], edit(TEST.base[-5:], TEST.source[-5:]), atol=1e-6)
    assert edit(TEST.base[:0], TEST.source[:0]).shape == (0, D)


# --- the identity guard


def published_pca(base: Tensor, source: Tensor) -> Tensor:
    """Return what the code published with RAVEL does: the standardised difference on the base as it is."""
    pca = principal_components(TRAIN.base)
    V = pca.components[:8]
    return (base + ((source - base) / pca.std @ V.T) @ V) * pca.std + pca.mean


def test_every_edit_leaves_a_base_alone_that_is_its_own_source() -> None:
    sae = one_hot_sae(PLANTED, without="B")
    x = TEST.base + 3
    edits: list[Edit] = [
        Full(D),
        random_subspace(D, 7, 0),
        principal_components(x).edit(torch.tensor([0, 3])),
        Mask(torch.arange(D) < 4),
        Features(sae, OF_A),
        Features(sae, OF_A, error=True),
    ]
    assert max(identity_error(edit, x) for edit in edits) < 1e-5
    assert (Features(sae, OF_A)(x, x) - x).norm() > 0.1 * x.norm()  # compared with the reconstruction


def test_the_published_pca_edit_is_caught() -> None:
    class Published:
        size = 8

        def __call__(self, base: Tensor, source: Tensor) -> Tensor:
            return published_pca(base, source)

    assert identity_error(Published(), TEST.base) > 0.5


def test_principal_components() -> None:
    x = TRAIN.base * torch.logspace(-2, 2, D) + 7
    pca = principal_components(x)
    z = pca.coordinates(x)
    covariance = z.T @ z / (len(x) - 1)
    assert torch.allclose(covariance, torch.diag(covariance.diagonal()), atol=1e-3)
    assert (covariance.diagonal()[:-1] >= covariance.diagonal()[1:] - 1e-4).all()
    assert float(covariance.trace()) == pytest.approx(D, rel=1e-3)
    every = pca.edit(torch.arange(D))
    assert torch.allclose(every(x, x.flip(0)), x.flip(0), atol=1e-2)
    constant = torch.cat([x, torch.ones(len(x), 2)], dim=1)
    assert len(principal_components(constant).components) == D
    with pytest.raises(UserError, match="at least 2"):
        principal_components(x[:1])


def test_random_subspaces_are_orthonormal_and_seeded() -> None:
    R = random_subspace(D, 9, 3).R
    assert torch.allclose(R @ R.T, torch.eye(9), atol=1e-5)
    assert torch.equal(R, random_subspace(D, 9, 3).R)
    assert not torch.equal(R, random_subspace(D, 9, 4).R)
    for size in (0, D + 1):
        with pytest.raises(UserError, match=f"between 1 and .* {D}"):
            random_subspace(D, size, 0)


# --- selection


def labelled(n: int, bias: float = 0.0) -> tuple[Tensor, np.ndarray]:
    """Return codes of the planted SAE, half of whose features fire by chance too, and values of A."""
    pairs = draw(PLANTED, n, seed=3)
    return one_hot_sae(PLANTED, bias=bias).encode(pairs.base), pairs.base_values[:, 0].numpy()


def test_the_svm_finds_the_planted_features_and_a_weak_penalty_takes_all() -> None:
    codes, labels = labelled(400)
    found = svm_path(codes, labels, (0.01, 0.03, 10, 100))
    assert found[0.01].tolist() == found[0.03].tolist() == OF_A.tolist()
    assert len(found[10]) == len(found[100]) == sum(SIZES.values())
    sae = one_hot_sae(PLANTED)
    assert TEST.scores(Features(sae, torch.from_numpy(found[0.01]))) == close(1, 1, 1)
    assert TEST.scores(Features(sae, torch.from_numpy(found[10]))) == close(1, 0, 0.5)


def test_c_means_the_same_whatever_the_units_and_constants_of_the_codes() -> None:
    codes, labels = labelled(400)
    grid = (0.003, 0.01, 0.1)
    expected = svm_path(codes, labels, grid)
    assert len(expected[0.1]) > len(expected[0.01])
    dense = torch.full((len(codes), 1), 3.0)
    for other in (codes * 1e3, codes * 1e-3, torch.cat([codes, dense], dim=1), codes.numpy()):
        found = svm_path(other, labels, grid)
        assert all(found[C].tolist() == expected[C].tolist() for C in grid)


def test_labels_of_any_kind_with_any_number_of_values() -> None:
    """200 values: those that occur most are told apart; a value's own feature is found where it counts."""
    rng = np.random.default_rng(0)
    labels = np.r_[np.repeat(np.arange(CLASSES), 20), np.arange(CLASSES, 200)]
    codes = np.zeros((len(labels), 250))
    codes[np.arange(len(labels)), labels] = 1
    codes[:, 200:] = rng.random((len(labels), 50)) < 0.1
    found = svm_path(codes, [f"value {label}" for label in labels], (0.1,))[0.1]
    assert set(range(CLASSES)) <= set(found.tolist())
    assert not set(found.tolist()) & set(range(CLASSES, 200))
    with pytest.raises(UserError, match="at least 2"):
        svm_path(codes, ["same"] * len(labels))


def test_nothing_is_chosen_where_nothing_fires() -> None:
    found = svm_path(np.zeros((20, 7)), [0, 1] * 10)
    assert all(len(found[C]) == 0 for C in GRID)
    assert not len(svm_path(np.ones((20, 7)), [0, 1] * 10)[1.0])


def test_the_svm_is_fast_and_quiet() -> None:
    """1,000 activations of 16,384 features, 50 of them active, 30 classes."""
    rng = np.random.default_rng(0)
    labels = np.arange(1000) % 30
    codes = np.zeros((1000, 16_384), np.float32)
    for i, label in enumerate(labels):
        codes[i, np.r_[rng.choice(16_384, 45), label * 10 + rng.choice(10, 5)]] = rng.exponential(size=50)
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = svm_path(codes, labels)
    assert time.process_time() - began < 6
    sizes = [len(found[C]) for C in GRID]
    assert sizes == sorted(sizes)
    assert sizes[0] == 0
    assert sizes[-1] > 300
    assert (found[0.1] < 300).mean() > 0.8


# --- R-LACE


def accuracy(x: Tensor, labels: Tensor, R: Tensor) -> float:
    """Return how well a logistic regression reads labels off what the directions R leave, on other rows."""
    left = (x - (x @ R.T) @ R).numpy()
    half = len(left) // 2
    model: Any = LogisticRegression(max_iter=1000).fit(left[:half], labels[:half])
    return float(model.score(left[half:], labels[half:]))


@pytest.mark.parametrize("size", [4, 6])
def test_without_the_found_directions_an_attribute_is_a_guess(size: int) -> None:
    x, values = TRAIN.base * torch.logspace(-0.5, 0.5, D), TRAIN.base_values
    R = rlace(x[:1000], values[:1000, 0].tolist(), size)
    assert torch.allclose(R @ R.T, torch.eye(size), atol=1e-5)
    none = torch.zeros(1, D)
    assert accuracy(x, values[:, 0], none) > 0.99
    majority = np.bincount(values[1000:, 0]).max() / 1000
    assert accuracy(x[1000:], values[1000:, 0], R) < majority + 0.08
    assert accuracy(x, values[:, 1], R) > 0.98
    assert accuracy(x, values[:, 2], R) > 0.98


def test_the_game_finds_a_better_direction_than_the_class_means_give() -> None:
    """Three classes that lie furthest apart along x, where they are noisy, and apart along y, where they are sharp."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(900) % 3
    means = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.5]])[y]
    noise = torch.randn(900, 2, generator=generator) * torch.tensor([6.0, 0.2])
    x = torch.cat([means + noise, 0.1 * torch.randn(900, 4, generator=generator)], dim=1)
    centred = x.double() - x.double().mean(0)
    best, largest = torch.eye(6)[1:2].double(), torch.eye(6)[:1].double()
    left = [remaining_loss(centred, y, R.double()) for R in (best, largest, rlace(x, y.tolist(), 1))]
    assert left[1] < 0.6 < 1 < left[0] < math.log(3)
    assert left[2] == pytest.approx(left[0], abs=0.04)


def test_projection_on_the_fantope() -> None:
    Q = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    P = project((Q * torch.tensor([2.0, 0.7, 0.3])) @ Q.T, 2)
    # clip(v - 0): 1 + 0.7 + 0.3 = 2
    assert torch.allclose(P, (Q * torch.tensor([1.0, 0.7, 0.3])) @ Q.T, atol=1e-8)
    P = project((Q * torch.tensor([2.0, 0.7, 0.3])) @ Q.T, 1)
    assert torch.allclose(P, Q[:, :1] @ Q[:, :1].T, atol=1e-8)


def test_rlace_refuses_what_it_cannot_do() -> None:
    with pytest.raises(UserError, match="at least 2"):
        rlace(TRAIN.base, [0] * len(TRAIN.base), 2)
    with pytest.raises(UserError, match="between 1 and"):
        rlace(TRAIN.base, TRAIN.base_values[:, 0].tolist(), D + 1)


# --- training


def test_das_with_the_right_rank_and_with_too_many() -> None:
    """Without isolate pairs nothing stops a large subspace from taking other attributes along."""
    alone = draw(PLANTED, 2000, seed=2, isolate=False)
    das = train_subspace(alone, alone.cause, 5)
    assert TEST.scores(das) == close(1, 1, 1)
    assert torch.allclose(das.R @ das.R.T, torch.eye(5), atol=1e-5)
    cosines = torch.linalg.svdvals(das.R @ PLANTED.U["A"].T)
    assert cosines[:4].min() > 0.9  # a softmax doesn't see the sum of its logits: one direction of five is free
    cause, isolate, disentangle = TEST.scores(train_subspace(alone, alone.cause, 20))
    assert cause > 0.98
    assert isolate < 0.5
    assert disentangle == pytest.approx(0.66, abs=0.08)
    assert TEST.scores(train_subspace(TRAIN, TRAIN.cause, 20)) == close(1, 1, 1)  # MDAS


def test_dbm_finds_the_dimensions() -> None:
    aligned = world(aligned=True)
    pairs = draw(aligned, 1000, seed=1)
    mask = train_mask(pairs, pairs.cause)
    assert torch.nonzero(mask.chosen)[:, 0].tolist() == OF_A.tolist()
    assert draw(aligned, 1000, seed=9).scores(mask) == close(1, 1, 1)


def test_mdbm_finds_exactly_the_planted_features() -> None:
    chosen = train_features(TRAIN, TRAIN.cause, one_hot_sae(PLANTED)).chosen
    assert chosen.tolist() == OF_A.tolist()
    few = replace(FEATURES, steps=64, penalty=0.01)
    chosen = train_features(TRAIN, TRAIN.cause, one_hot_sae(PLANTED, others=100), few).chosen
    assert chosen.tolist() == OF_A.tolist()


def test_batches_are_balanced_and_go_through_all_pairs() -> None:
    cause = np.arange(30) < 7
    batches = [batch_at(cause, step, 8, seed=0) for step in range(12)]
    assert all((cause[batch].sum(), len(batch)) == (4, 8) for batch in batches)
    drawn = np.concatenate(batches)
    counts = np.bincount(drawn, minlength=30)
    assert set(counts[:7]) <= {6, 7}  # 48 draws of 7
    assert set(counts[7:]) <= {2, 3}  # 48 draws of 23
    assert np.array_equal(batches[5], batch_at(cause, 5, 8, seed=0))
    assert not np.array_equal(batches[5], batch_at(cause, 5, 8, seed=1))
    only = np.concatenate([batch_at(np.ones(9, bool), step, 4, seed=0) for step in range(9)])
    assert np.bincount(only).tolist() == [4] * 9


def trained(method: str, checkpoint: Checkpoint | None, progress: Callable[[int], object]) -> Tensor:
    if method == "subspace":
        return train_subspace(TRAIN, TRAIN.cause, 3, FEW, checkpoint, progress).R
    sae = one_hot_sae(PLANTED, others=20)
    return train_features(TRAIN, TRAIN.cause, sae, FEW, checkpoint, progress).chosen


@pytest.mark.parametrize("method", ["subspace", "features"])
def test_an_interrupted_training_ends_as_if_it_had_not_been(tmp_path: Path, method: str) -> None:
    path, steps = tmp_path / "training.safetensors", []
    whole = trained(method, Checkpoint(tmp_path / "whole.safetensors"), lambda n: None)

    def stop(n: int) -> None:
        steps.append(n)
        if sum(steps) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(method, Checkpoint(path, every=0), stop)
    steps.clear()
    again = trained(method, Checkpoint(path, every=0), steps.append)
    assert steps == [4, 1, 1]
    assert torch.equal(again, whole)
    kept, expected = load_file(path), load_file(tmp_path / "whole.safetensors")
    assert set(kept) == {"value", "exp_avg", "exp_avg_sq"}
    assert all(torch.equal(kept[name], expected[name]) for name in kept)
    steps.clear()
    assert torch.equal(trained(method, Checkpoint(path), steps.append), whole)
    assert steps == [FEW.steps]  # finished before: nothing is trained


def test_a_checkpoint_of_something_else_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    first = train_subspace(TRAIN, TRAIN.cause, 3, FEW, Checkpoint(path, {"model": "a", "pairs": "1"}))
    calls: list[int] = []

    def started_anew(depends: dict[str, str], settings: Settings = FEW, rank: int = 3) -> bool:
        calls.clear()
        train_subspace(TRAIN, TRAIN.cause, rank, settings, Checkpoint(path, depends), calls.append)
        return calls[0] == 0

    assert not started_anew({"pairs": "1", "model": "a"})
    assert started_anew({"model": "b", "pairs": "1"})
    assert not started_anew({"model": "b", "pairs": "1"})
    assert started_anew({"model": "b", "pairs": "1"}, replace(FEW, seed=1))
    assert started_anew({"model": "b", "pairs": "1"}, FEW, rank=4)
    path.write_bytes(path.read_bytes()[:50])
    assert started_anew({"model": "b", "pairs": "1"}, FEW, rank=4)
    path.unlink()
    again = train_subspace(TRAIN, TRAIN.cause, 3, FEW, Checkpoint(path, {"model": "a", "pairs": "1"}))
    assert torch.equal(again.R, first.R)


def test_training_refuses_what_does_not_fit() -> None:
    with pytest.raises(UserError, match="between 1 and"):
        train_subspace(TRAIN, TRAIN.cause, D + 1)
    with pytest.raises(UserError, match="2000 pairs"):
        train_mask(TRAIN, TRAIN.cause[:7])


def test_the_defaults_fit_into_few_steps() -> None:
    assert all(settings.steps * settings.batch <= 200 * 32 for settings in (SUBSPACE, MASK, FEATURES))


# --- scores


def test_scores_average_within_templates_first() -> None:
    """Cause: template x 2/4, y 1/1 -> 0.75. B: 0/1 and 1/3 -> 1/6; C: 1. Isolate (1/6 + 1) / 2 = 7/12."""
    found = scores(
        [1, 1, 0, 0, 1],
        {"B": [0, 1, 0, 0], "C": np.array([True, True])},
        ["x", "x", "x", "x", "y"],
        {"B": [7, 8, 8, 8], "C": [1, 2]},
    )
    assert found == pytest.approx({"cause": 0.75, "isolate": 7 / 12, "disentangle": 2 / 3})
    assert all(type(value) is float for value in found.values())


def test_scores_in_their_simple_forms() -> None:
    assert scores([0, 0], [1, 1]) == {"cause": 0, "isolate": 1, "disentangle": 0.5}
    assert scores([0, 1, 1], [1, 0], [0, 1, 1], [3, 3]) == {"cause": 0.5, "isolate": 0.5, "disentangle": 0.5}
    assert scores([0.25, 0.75], torch.tensor([True]))["cause"] == 0.5
    for nothing in (None, {}, [], {"B": []}):
        alone = scores([1, 0], nothing)
        assert alone["cause"] == 0.5
        assert math.isnan(alone["isolate"])
        assert math.isnan(alone["disentangle"])
    assert scores([1], {"B": [1], "C": []})["isolate"] == 1
    with pytest.raises(UserError, match="isolate B"):
        scores([1], {"B": [1, 0]}, None, {"B": [1]})


def interventions(n: int, seed: int) -> pl.DataFrame:
    """Return rows of two types with two and three attributes, unequal templates and few entities."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(["city", "verb"], n, p=[0.7, 0.3])
    names = {"city": ["Country", "Continent", "Language"], "verb": ["Past", "Singular"]}
    target = [rng.choice(names[k]) for k in kind]
    attribute = [rng.choice(names[k]) for k in kind]
    entity = rng.integers(0, 12, n)
    return pl.DataFrame(
        {
            "split": rng.choice(["entity", "context"], n),
            "type": kind,
            "target": target,
            "attribute": attribute,
            "template": [f"{a} {t}" for a, t in zip(attribute, rng.geometric(0.5, n), strict=True)],
            "source_template": "is",
            "base": [f"{k} {e}" for k, e in zip(kind, entity, strict=True)],
            "source": [f"source {i}" for i in range(n)],
            "hit": rng.random(n) < 0.3 + 0.05 * entity,
        }
    )


def by_hand(rows: pl.DataFrame, weight: dict[str, int]) -> dict[str, float]:
    """Return the scores averaged over everything, each row counted as often as its base is drawn, by loops."""
    splits = []
    for split in sorted(set(rows["split"])):
        types = []
        for kind in sorted(set(rows["type"])):
            targets = []
            part = rows.filter(split=split, type=kind)
            for target in sorted(set(part["target"])):
                one = part.filter(target=target)
                one = [row for row in one.iter_rows(named=True) for _ in range(weight[row["base"]])]
                other = sorted({row["attribute"] for row in one} - {target})
                cause = [row for row in one if row["attribute"] == target]
                isolate = {name: [row for row in one if row["attribute"] == name] for name in other}
                targets.append(
                    scores(
                        [row["hit"] for row in cause],
                        {name: [row["hit"] for row in found] for name, found in isolate.items()},
                        [row["template"] for row in cause],
                        {name: [row["template"] for row in found] for name, found in isolate.items()},
                    )
                )
            types.append({name: np.nanmean([t[name] for t in targets]) for name in targets[0]})
        splits.append({name: np.nanmean([t[name] for t in types]) for name in types[0]})
    return {name: float(np.mean([s[name] for s in splits])) for name in splits[0]}


def drawn_entities(rows: pl.DataFrame, draws: int, seed: int) -> list[dict[str, int]]:
    """Return how often each base is drawn in each resample, by the rule of `intervals`."""
    out: list[dict[str, int]] = [{} for _ in range(draws)]
    for number, kind in enumerate(sorted(set(rows["type"]))):
        names = sorted(set(rows.filter(type=kind)["base"]))
        counts = np.random.default_rng([seed, number]).multinomial(len(names), [1 / len(names)] * len(names), draws)
        for one, row in zip(out, counts, strict=True):
            one |= dict(zip(names, row.tolist(), strict=True))
    return out


def values(found: dict[str, Estimate | None], field: str) -> dict[str, float]:
    return {name: getattr(estimate, field) for name, estimate in found.items()}


def test_the_bootstrap_is_what_loops_give() -> None:
    rows = interventions(300, seed=0)
    found = intervals(rows, draws=60, seed=4)
    once = dict.fromkeys(rows["base"], 1)
    assert values(found[Key()], "value") == pytest.approx(by_hand(rows, once))
    city = rows.filter(split="entity", type="city")
    assert values(found[Key("entity", "city")], "value") == pytest.approx(by_hand(city, once))
    drawn = [by_hand(rows, weight) for weight in drawn_entities(rows, 60, 4)]
    for name in ("cause", "isolate", "disentangle"):
        low, high = np.quantile([one[name] for one in drawn], (0.025, 0.975))
        assert values(found[Key()], "low")[name] == pytest.approx(low)
        assert values(found[Key()], "high")[name] == pytest.approx(high)
    is_cause = rows["attribute"] == rows["target"]
    assert values(found[Key()], "n") == {"cause": is_cause.sum(), "isolate": (~is_cause).sum(), "disentangle": 300}


def test_every_average_of_the_interventions_is_there() -> None:
    rows = interventions(2000, seed=1)
    found = intervals(rows, draws=10)
    leaves = set(rows.select("split", "type", "target").unique().rows())
    assert {key for key in found if None not in key} == leaves
    assert {key for key in found if None in key} == {
        Key(),
        *(Key(split) for split in ("entity", "context")),
        *(Key(split, kind) for split in ("entity", "context", None) for kind in ("city", "verb")),
        *(Key(None, *leaf[1:]) for leaf in leaves),
    }
    one = rows.filter(split="context", type="verb", target="Past")
    hit = {
        a: part.group_by("template").agg(pl.col("hit").mean())["hit"].mean() for (a,), part in one.group_by("attribute")
    }
    expected = [hit["Past"], hit["Singular"], (hit["Past"] + hit["Singular"]) / 2]
    assert list(values(found[Key("context", "verb", "Past")], "value").values()) == pytest.approx(expected)


def test_a_target_without_isolate_pairs_has_none_and_does_not_count() -> None:
    rows = interventions(500, seed=2)
    only = rows.filter((pl.col("target") != "Past") | (pl.col("attribute") == "Past"))
    found = intervals(only, draws=20)
    alone = found[Key(None, "verb", "Past")]
    assert alone["cause"] is not None
    assert alone["isolate"] is None
    assert alone["disentangle"] is None
    assert found[Key(None, "verb")]["isolate"] == found[Key(None, "verb", "Singular")]["isolate"]


def test_intervals_are_wider_where_entities_decide() -> None:
    """Twelve entities that always or never hit: 600 rows are worth twelve."""
    rows = interventions(600, seed=3)
    decided = rows.with_columns(hit=pl.col("base").str.slice(-1).cast(pl.Int64) % 2 == 0)
    rng = np.random.default_rng(0)
    chance = rows.with_columns(hit=pl.Series(rng.random(600) < 0.5))

    def width(table: pl.DataFrame) -> float:
        estimate = intervals(table)[Key()]["disentangle"]
        assert estimate is not None
        return estimate.high - estimate.low

    assert width(decided) > 2 * width(chance)


def test_differences_of_two_methods_on_the_same_pairs() -> None:
    rows = interventions(600, seed=5)
    assert values(differences(rows, rows)[Key()], "low") == dict.fromkeys(("cause", "isolate", "disentangle"), 0)
    other = rows.with_columns(hit=~pl.col("hit")).sample(fraction=1, shuffle=True, seed=0)
    found, mine, theirs = (
        differences(rows, other)[Key()],
        values(intervals(rows)[Key()], "value"),
        values(intervals(other)[Key()], "value"),
    )
    assert values(found, "value") == pytest.approx({name: mine[name] - theirs[name] for name in mine})
    half = other.head(300)
    shared = rows.join(half, on=PAIR, how="semi")
    expected = differences(shared, half)[Key()]
    assert differences(rows, half)[Key()] == expected
    estimate = expected["disentangle"]
    assert estimate is not None
    assert estimate.n == 300
    with pytest.raises(UserError, match="no pair in common"):
        differences(rows, rows.with_columns(source=pl.lit("another")))


def test_the_bootstrap_of_ten_thousand_rows_is_fast() -> None:
    rows = interventions(10_000, seed=6)
    began = time.process_time()
    intervals(rows)
    assert time.process_time() - began < 3


def test_rows_that_cannot_be_scored() -> None:
    rows = interventions(10, seed=0)
    with pytest.raises(UserError, match="there are none"):
        intervals(rows.clear())
    with pytest.raises(UserError, match="hit"):
        intervals(rows.drop("hit"))


def test_the_header_of_a_training_can_be_read(tmp_path: Path) -> None:
    """Plain safetensors with a JSON header: what it depends on is there to read, and nothing is ever executed."""
    path = tmp_path / "training.safetensors"
    train_mask(TRAIN, TRAIN.cause, FEW, Checkpoint(path, {"model": "a"}))
    size = int.from_bytes(path.read_bytes()[:8], "little")
    metadata = json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]
    header = json.loads(metadata["header"])
    assert header["depends"] == {"model": "a"}
    assert header["method"] == "mask"
    assert metadata["step"] == str(FEW.steps)
