"""The probes' mathematics: closed forms, scikit-learn, degenerate features, and what selection does."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monosem.evals.probes import fit_1d
from monosem.evals.probes.controls import dense_probe
from monosem.evals.probes.logistic import fit, losses
from monosem.evals.probes.scores import best_feature, judged, selection_floor, sparse_accuracies
from monosem.evals.probes.table import as_table, left_out_row, scalars_of, task_row
from monosem.types import UserError

ROOT = Path(__file__).resolve().parents[2]
LN2 = math.log(2)
N = 1000
LABELS = np.arange(N) % 2


def entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def sklearn_loss(x: np.ndarray, y: np.ndarray) -> float:
    """Return the smallest mean cross-entropy by scikit-learn's regression without a penalty."""
    from sklearn.linear_model import LogisticRegression

    z = ((x - x.mean()) / x.std())[:, None]
    model: Any = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(z, y)
    t = model.decision_function(z)
    return float(np.mean(np.logaddexp(0, t) - y * t))


def kinds(number: int, seed: int = 0) -> np.ndarray:
    """Return columns as SAEs make them: normal, rectified at various densities, long-tailed, one-sided."""
    rng = np.random.default_rng(seed)
    columns = []
    for i in range(number):
        x = rng.normal(size=N) + rng.normal() * LABELS * rng.random()
        if i % 4 == 1:
            x = np.maximum(x - 2.5 * rng.random(), 0)
        if i % 4 == 2:
            x = np.exp(2 * x) * (rng.random(N) < 0.02 + 0.1 * LABELS)
        if i % 4 == 3:
            x = x * 10.0 ** rng.integers(-8, 8) + rng.normal() * 10
        columns.append(x)
    return np.stack(columns, axis=1)


def test_a_binary_feature_has_the_conditional_entropy() -> None:
    """P(z = 1 | y = 1) = 0.9, P(z = 1 | y = 0) = 0.2, balanced: H(Y | Z) = 0.41775 nats."""
    y = np.arange(200) % 2
    z = np.zeros(200)
    z[np.flatnonzero(y == 1)[:90]] = 1
    z[np.flatnonzero(y == 0)[:20]] = 1
    expected = 0.55 * entropy(0.2 / 1.1) + 0.45 * entropy(0.8 / 0.9)
    assert expected == pytest.approx(0.41775, abs=5e-6)
    assert fit_1d(z[:, None], y) == pytest.approx([expected], abs=2e-6)


def test_two_normal_classes() -> None:
    """z | y normal around -1 and 1: the best logit is 2 z, and its cross-entropy 0.35632 nats."""
    rng = np.random.default_rng(0)
    y = np.arange(400_000) % 2
    z = rng.normal(size=len(y)) + np.where(y == 1, 1.0, -1.0)
    assert fit_1d(z[:, None], y)[0] == pytest.approx(0.35632, abs=2e-3)


def test_noise_has_the_entropy_of_the_labels() -> None:
    rng = np.random.default_rng(1)
    y = rng.permutation(20_000) < 6000
    assert fit_1d(rng.normal(size=(20_000, 4)), y) == pytest.approx([entropy(0.3)] * 4, abs=4e-4)
    assert entropy(0.3) == pytest.approx(0.61086, abs=5e-6)


def test_a_ridge_bounds_the_weight_and_hardly_moves_others() -> None:
    rng = np.random.default_rng(10)
    codes = np.stack(
        [LABELS + 0.5 * rng.random(N), LABELS * np.exp(4 * rng.normal(size=N)), rng.normal(size=N)], axis=1
    )
    codes[:, 2] += LABELS
    free, bound = fit(codes, LABELS), fit(codes, LABELS, ridge=1e-6)
    weight = np.abs(bound.weight * codes.std(0))
    assert np.all(weight[:2] < np.abs(free.weight * codes.std(0))[:2])
    assert weight[1] < 1500 < np.abs(free.weight * codes.std(0))[1]
    assert bound.loss[2] == pytest.approx(free.loss[2], abs=1e-6)
    for i in range(3):  # at the minimum the gradient of loss and penalty is 0
        z = (codes[:, i] - codes[:, i].mean()) / codes[:, i].std()
        p = 1 / (1 + np.exp(-bound.weight[i] * codes[:, i] - bound.intercept[i]))
        slope = np.mean((p - LABELS) * z) + 1e-6 * bound.weight[i] * codes[:, i].std()
        assert slope == pytest.approx(0, abs=2e-4)


def test_separable_features_go_to_zero_without_diverging() -> None:
    rng = np.random.default_rng(2)
    codes = np.stack([LABELS * 1.0, LABELS + 0.5 * rng.random(N), LABELS * rng.random(N), -1e6 * LABELS], axis=1)
    fits = fit(codes, LABELS)
    assert np.all(fits.loss < 1e-5)
    assert np.all(fits.loss >= 0)
    assert np.isfinite(fits.weight).all()
    assert np.isfinite(fits.intercept).all()


def test_a_feature_that_is_active_in_one_class_only() -> None:
    """Active on 100 of 500 positives: what is left is the entropy of the 900 texts on which it is silent."""
    z = np.zeros(N)
    z[np.flatnonzero(LABELS)[:100]] = np.linspace(0.01, 5, 100)
    expected = 0.9 * entropy(400 / 900)
    assert fit_1d(z[:, None], LABELS)[0] == pytest.approx(expected, abs=1e-5)


def test_constant_and_silent_features_know_the_base_rate_only() -> None:
    y = np.arange(N) < 300
    codes = np.stack([np.zeros(N), np.full(N, 7.3), np.full(N, -1e-20), np.full(N, 0.1, np.float32)], axis=1)
    fits = fit(codes, y)
    assert fits.loss == pytest.approx([entropy(0.3)] * 4, abs=1e-7)
    assert fits.weight.tolist() == [0.0] * 4
    assert fits.intercept == pytest.approx([math.log(0.3 / 0.7)] * 4)


def test_equals_scikit_learn_without_a_penalty_on_200_features() -> None:
    codes = kinds(200)
    ours = fit_1d(codes, LABELS)
    theirs = np.array([sklearn_loss(x, LABELS) for x in codes.T])
    assert np.abs(ours - theirs).max() < 1e-4
    exact = np.arange(200) % 4 != 3  # of the others, float32 can't hold small differences beside a large mean
    assert np.abs(fit_1d(codes[:, exact].astype(np.float32), LABELS) - theirs[exact]).max() < 1e-4


def test_weights_and_intercept_give_the_loss() -> None:
    codes = kinds(40, seed=3)
    fits = fit(codes, LABELS)
    for i in range(40):
        again = losses(fits.weight[i] * codes[:, i] + fits.intercept[i], LABELS).mean()
        assert again == pytest.approx(fits.loss[i], abs=2e-6)


def test_scale_shift_sign_and_order_don_t_matter() -> None:
    codes = kinds(24, seed=4)[:, [i for i in range(24) if i % 4 != 3]]
    loss = fit_1d(codes, LABELS)
    for factor, shift in ((3.7, 0.0), (-0.01, 5.0), (1e8, -2e8), (-1e-12, 0.0)):
        assert fit_1d(factor * codes + shift, LABELS) == pytest.approx(loss, abs=5e-6)
    order = np.random.default_rng(0).permutation(codes.shape[1])
    assert np.array_equal(fit_1d(codes[:, order], LABELS), loss[order])
    assert fit_1d(codes, 1 - LABELS) == pytest.approx(loss, abs=5e-6)


def test_a_planted_feature_is_found_among_noise() -> None:
    codes = np.random.default_rng(5).normal(size=(N, 500)).astype(np.float32)
    codes[:, 321] = 5 * LABELS - 1
    probe = best_feature(codes, LABELS, 600)
    assert probe.feature == 321
    assert probe.loss < 1e-4
    assert probe.accuracy == 1
    assert sparse_accuracies(codes, LABELS, 600)[1] == 1


def test_selection_flatters_in_sample_and_not_held_out() -> None:
    rng = np.random.default_rng(6)
    texts = rng.normal(size=(3000, 4000)).astype(np.float32)
    y = np.arange(3000) % 2
    probe = best_feature(texts, y, 2000)
    assert probe.train_loss == pytest.approx(selection_floor(4000, 2000), abs=2e-3)
    assert probe.train_loss < LN2 - 0.003
    assert probe.loss >= LN2 - 0.01
    assert selection_floor(1000, 2000) == pytest.approx(0.6897, abs=5e-5)
    assert selection_floor(10**9, 10) == 0


def test_torch_and_other_types_are_taken() -> None:
    codes = kinds(4, seed=7)
    expected = fit_1d(codes, LABELS)
    assert fit_1d(torch.from_numpy(codes), torch.from_numpy(LABELS)) == pytest.approx(expected)
    assert fit_1d(codes.T.copy().T, LABELS.astype(bool)) == pytest.approx(expected)
    assert fit_1d((codes > 0).astype(np.int8), LABELS) == pytest.approx(fit_1d((codes > 0) * 1.0, LABELS))
    assert fit_1d(codes[:, :0], LABELS).shape == (0,)


@pytest.mark.parametrize(
    ("codes", "labels", "told"),
    [
        ([[1.0], [np.nan]], [0, 1], "finite"),
        ([[1.0], [np.inf]], [0, 1], "finite"),
        ([[1.0], [2.0]], [1, 1], "both must occur"),
        ([[1.0], [2.0]], [0, 2], "0 or 1"),
        ([[1.0], [2.0]], [0, 1, 1], "must be"),
        ([1.0, 2.0], [0, 1], "must be"),
    ],
)
def test_what_can_not_be_fitted_is_refused(codes: Any, labels: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        fit_1d(np.array(codes), np.array(labels))


def test_held_out_scores_by_hand() -> None:
    probe = judged(3, 0.5, np.array([0.0, math.log(3), -math.log(3), 800.0]), np.array([1, 1, 1, 0]))
    expected = [LN2, -math.log(0.75), -math.log(0.25), -math.log(1e-12)]
    assert probe.loss == pytest.approx(sum(expected) / 4, rel=1e-4)
    assert probe.error == pytest.approx(np.std(expected) / 2, rel=1e-4)
    assert probe.accuracy == (0.5 + 1 + 0 + 0) / 4
    assert losses(np.array([-800.0]), np.array([0]))[0] == pytest.approx(0, abs=1e-11)


def test_a_dense_probe_finds_what_no_single_dimension_shows() -> None:
    rng = np.random.default_rng(8)
    x = rng.normal(size=(N, 30))
    y = (x.sum(1) + 0.3 * rng.normal(size=N) > 0).astype(int)
    dense = dense_probe(x.astype(np.float32), y, 700)
    assert dense.accuracy > 0.9
    assert dense.loss < 0.6 * best_feature(x, y, 700).loss
    noise = dense_probe(rng.normal(size=(N, 300)), LABELS, 700)
    assert noise.loss < 0.72  # the penalty keeps it from learning the texts by heart


def test_k_sparse_needs_two_features_for_two_halves() -> None:
    """Two features, each on for half of the positives: one alone gets three quarters right, both all."""
    rng = np.random.default_rng(9)
    codes = 0.01 * rng.random((N, 20))
    positive = rng.permutation(np.flatnonzero(LABELS))
    codes[positive[:260], 4] = 1
    codes[positive[260:], 11] = 1
    found = sparse_accuracies(codes, LABELS, 700)
    assert found[1] == pytest.approx(0.76, abs=0.06)
    assert found[2] == found[5] == found[16] == 1


def probe_row(name: str, loss: float) -> dict[str, Any]:
    probe = judged(1, loss - 0.1, np.array([2.0, -2.0, 1.0, 1.0]), np.array([1, 0, 1, 0]))
    probes = dict.fromkeys(("pre", "post", "dense", "neuron", "pca", "random"), probe)
    facts = {"classes": ("a", "b"), "counts": {"read": 9, "not drawn": 1}, "train": 4, "tokens": 80}
    row = task_row(name, "last", facts, 8, probes, dict.fromkeys((1, 2, 5, 16), 0.75))
    return row | {"pre_loss": loss, "noise_loss": 0.6}


def test_scalars_are_means_over_tasks_with_intervals() -> None:
    rows = [
        probe_row("one", 0.2),
        probe_row("two", 0.4),
        probe_row("three", 0.3),
        left_out_row("four", {"read": 3}, "x"),
    ]
    scalars, reasons = scalars_of(as_table(rows), 500)
    loss = scalars["probe_loss"]
    assert loss is not None
    assert loss.value == pytest.approx(0.3)
    assert 0.2 <= loss.low + 1e-9 < 0.3 < loss.high - 1e-9 <= 0.4
    assert loss.n == 3
    gain = scalars["probe_gain"]
    assert gain is not None
    assert gain.value == pytest.approx(rows[0]["random_loss"] - 0.3)
    assert reasons == {}
    assert as_table(rows)["not_drawn"].to_list() == [1, 1, 1, None]


def test_a_single_task_has_intervals_over_its_texts_and_none_has_reasons() -> None:
    scalars, reasons = scalars_of(as_table([probe_row("one", 0.5)]), 500)
    loss, accuracy = scalars["probe_loss_post"], scalars["sparse_accuracy_1"]
    assert loss is not None
    assert accuracy is not None
    assert loss.high - loss.value == pytest.approx(1.959964 * probe_row("one", 0.5)["post_error"])
    assert accuracy.n == 4
    assert accuracy.high == pytest.approx(0.75 + 1.959964 * math.sqrt(0.75 * 0.25 / 4))
    assert set(reasons) == {"probe_gain"}
    scalars, reasons = scalars_of(as_table([left_out_row("four", {"read": 3}, "x")]), 500)
    assert set(scalars.values()) == {None}
    assert set(reasons) == set(scalars)


@pytest.mark.slow
def test_the_benchmark_prints_both_times_and_their_ratio(tmp_path: Path) -> None:
    path = tmp_path / "probes.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "probes.py"), "--tasks", "2", "--features", "256"]
    done = subprocess.run(
        [*command, "--texts", "200", "--sample", "8", "--json", str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(path.read_text())
    assert found["ratio"] == pytest.approx(found["scikit_learn_seconds_extrapolated"] / found["ours_seconds"])
    assert found["largest_difference"] < 1e-3
    assert "ratio" in done.stdout
