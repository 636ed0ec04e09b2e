"""Formulas against hand-computed cases (sections H.1 to H.8) and their invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import monosem
from monosem.heldout import accumulate, document_groups, estimates
from monosem.metrics import (
    Curve,
    Downstream,
    compare_at_matched_l0,
    dead_fraction,
    downstream,
    features_above,
    interpolate,
    reconstruction,
    resamples,
    wilson,
)
from monosem.normaliser import Normaliser
from monosem.sae import Sae, make_sae
from monosem.types import UserError
from monosem.variants import DenseCodes, Variant


class Table(Variant):
    """A stand-in SAE that answers each row of `x` with the row of `answers` of the same content."""

    def __init__(self, x: torch.Tensor, answers: torch.Tensor):
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "answers", answers)

    def encode(self, w: dict[str, torch.Tensor], x: torch.Tensor) -> DenseCodes:
        rows = [int((self.x == row).all(1).nonzero()[0]) for row in x]  # type: ignore[attr-defined]
        return DenseCodes(torch.eye(len(self.x))[rows])  # type: ignore[attr-defined]

    def decode(self, w: dict[str, torch.Tensor], codes: DenseCodes) -> torch.Tensor:  # type: ignore[override]
        return codes.values @ self.answers  # type: ignore[attr-defined]


def table_sae(x: torch.Tensor, answers: torch.Tensor) -> Sae:
    return Sae("standard", Table(x, answers), {"W_dec": torch.ones(len(x), x.shape[1]) / x.shape[1] ** 0.5})


X = torch.tensor([[0.0, 0.0], [4.0, 0.0], [2.0, 1.0]])
XHAT = torch.tensor([[0.0, 0.0], [3.0, 0.0], [2.0, 0.0]])


def test_golden_h2() -> None:
    data, (sums,) = accumulate([table_sae(X, XHAT)], [(X, torch.tensor([0, 1, 2]))], 3)
    got = {name: float(value[0]) for name, value in reconstruction(data, sums).items()}
    assert got["mse"] == pytest.approx(0.6666667, abs=1e-7)
    assert got["nmse"] == pytest.approx(0.2307692, abs=1e-7)
    assert got["explained_variance"] == pytest.approx(0.7692308, abs=1e-7)
    assert got["explained_variance_centered"] == pytest.approx(0.8461538, abs=1e-7)
    assert got["fvu_zero"] == pytest.approx(0.0952381, abs=1e-7)
    assert got["gamma"] == pytest.approx(0.8125, abs=1e-7)
    assert sums.ev_token / 3 == pytest.approx(0.1689189, abs=1e-7)
    assert got["l0"] == 1.0


def test_explained_variance_equals_sklearn_convention() -> None:
    """Pooled explained variance is r2_score(multioutput="variance_weighted"), written out here per dimension."""
    rng = np.random.default_rng(0)
    x, noise = rng.normal(3, 2, (200, 5)), rng.normal(0, 0.5, (200, 5))
    xhat = x + noise
    total = ((x - x.mean(0)) ** 2).sum(0)
    per_dimension = 1 - ((x - xhat) ** 2).sum(0) / total
    expected = (per_dimension * total).sum() / total.sum()
    tx, th = torch.tensor(x), torch.tensor(xhat)
    tx, th = tx.float(), th.float()
    data, (sums,) = accumulate([table_sae(tx, th)], [(tx, torch.arange(200) % 7)], 7)
    assert float(reconstruction(data, sums)["explained_variance"][0]) == pytest.approx(expected, abs=1e-6)


def test_predicting_the_mean_explains_nothing_and_identity_everything() -> None:
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0)) + 50
    mean = monosem.measure(table_sae(x, x.mean(0).expand_as(x)), [x])
    assert mean["explained_variance"]["value"] == pytest.approx(0.0, abs=1e-5)
    assert mean["nmse"]["value"] == pytest.approx(1.0, abs=1e-5)
    whole = monosem.measure(table_sae(x, x), [x])
    assert whole["explained_variance"]["value"] == 1.0
    assert whole["gamma"]["value"] == pytest.approx(1.0)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.01, 100), st.integers(1, 90), st.integers(0, 100))
def test_metrics_do_not_depend_on_scale_batch_size_or_order(scale: float, batch: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(90, 8, generator=generator) + 2
    sae = make_sae("standard", d_in=8, d_sae=24, seed=seed)
    order = torch.randperm(90, generator=generator)
    doc = torch.arange(90) // 9
    base = monosem.measure(sae, [(x, doc)], draws=100)
    scaled = Sae(sae.variant_name, sae.variant, sae.weights, Normaliser("mean_norm", 1 / scale))
    again = monosem.measure(
        scaled, [(x[order][i : i + batch] * scale, doc[order][i : i + batch]) for i in range(0, 90, batch)], draws=100
    )
    for name, value in base.items():
        if value is not None:
            assert again[name] is not None, name
            assert again[name]["value"] == pytest.approx(value["value"], rel=1e-4, abs=1e-6), name
            assert again[name]["low"] == pytest.approx(value["low"], rel=1e-3, abs=1e-5), name


def test_density_sums_to_l0_and_counts_are_ordered() -> None:
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(1))
    for variant, hyper in (("standard", {}), ("gated", {}), ("topk", {"k": 5})):
        sae = make_sae(variant, d_in=8, d_sae=40, seed=3, **hyper)
        group, groups = document_groups(torch.arange(500) // 10)
        data, (sums,) = accumulate([sae], zip(x.split(64), group.split(64), strict=True), groups)
        out = estimates(data, sums, draws=100)
        l0 = out["l0"]
        assert l0 is not None
        assert sums.count.sum() / 500 == pytest.approx(l0.value, abs=1e-6)
        assert sums.l0_counts @ np.arange(41) / 500 == pytest.approx(l0.value, abs=1e-6)
        assert out["features_above_1e-2"].value <= out["features_above_1e-3"].value  # type: ignore[union-attr]
        assert out["features_above_1e-2"].value <= l0.value / 1e-2  # type: ignore[union-attr]
        if variant == "topk":
            assert l0.value <= 5


def test_golden_h4() -> None:
    one = np.array([1.0])
    sums = Downstream(one, one * 2.5426, one * 16.1549, one * 10.0, one * 3.1847, one * 0.0)
    got = downstream(sums)
    assert got["ce_recovered"][0] == pytest.approx(0.952829, abs=1e-6)
    assert got["ce_recovered_mean"][0] == pytest.approx((10 - 3.1847) / (10 - 2.5426))
    assert got["delta_ce"][0] == pytest.approx(0.6421)
    above = Downstream(one, one * 2.5426, one * 3.0819, one, one * 2.4291, one)
    assert downstream(above)["ce_recovered"][0] == pytest.approx(1.2105, abs=1e-4)


def test_golden_h8_wilson() -> None:
    low, high = wilson(np.array([0, 10]), 10**6)
    assert high[0] == pytest.approx(3.84e-6, rel=2e-3)
    assert low[0] == 0
    assert low[1] == pytest.approx(5.43e-6, rel=2e-3)
    assert high[1] == pytest.approx(1.84e-5, rel=2e-3)


def test_feature_counts_by_hand() -> None:
    count = np.array([0, 5, 11, 100, 900])
    above = features_above(count, 1000, 1e-2)
    assert (above.value, above.low, above.high) == (3, 2, 4)
    dead = dead_fraction(count, 1000)
    assert dead.value == 0.2
    assert dead.low < 0.2 < dead.high


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    """Documents with a random effect of their own: the 95 % interval of a mean covers the truth in 88 to 100 %."""
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        n = rng.integers(5, 40, 60).astype(float)
        total = n * rng.normal(1.0, 0.5, 60)
        weights = resamples(60, 300, seed=trial)
        low, high = np.quantile((weights @ total) / (weights @ n), [0.025, 0.975])
        covered += low <= 1.0 <= high
    assert 176 <= covered <= 200


def test_interpolation_is_linear_in_log_log() -> None:
    got = interpolate(np.array([100.0, 1.0]), np.array([0.01, 1.0]), np.array([10.0, 0.5, 100.0]))
    assert got[0] == pytest.approx(0.1)
    assert np.isnan(got[1])
    assert got[2] == pytest.approx(0.01)


def power_curve(l0: list[float], factor: float, noise: np.ndarray) -> Curve:
    x = np.array(l0)
    y = factor * x**-0.5
    return Curve(x, y, np.tile(x, (len(noise), 1)), y * noise[:, None])


def test_matched_l0_finds_the_ratio_of_two_power_laws() -> None:
    noise = np.exp(np.random.default_rng(0).normal(0, 0.2, 300))  # shared: the comparison is paired
    mine, base = power_curve([10, 40, 200], 0.7, noise), power_curve([20, 50, 100], 1.0, noise)
    found = compare_at_matched_l0(mine, base, 1234)
    assert (found["l0_low"], found["l0_high"]) == (20, 100)
    assert found["ratio"]["value"] == pytest.approx(0.7)
    assert found["ratio"]["high"] - found["ratio"]["low"] < 1e-6
    assert found["ratio"]["n"] == 1234
    assert [place["l0"] for place in found["at"]] == [30, 50, 70]
    assert found["at"][0]["ratio"]["value"] == pytest.approx(0.7)
    apart = compare_at_matched_l0(power_curve([200, 300], 1, noise), base, 1)
    assert "do not overlap" in apart["reason"]
    assert "ratio" not in apart


def test_a_single_point_is_compared_with_the_curve_at_its_l0() -> None:
    rng = np.random.default_rng(1)
    noise, own = np.exp(rng.normal(0, 0.2, 300)), np.exp(rng.normal(0, 0.05, 300))
    base = power_curve([20, 50, 100], 1.0, noise)
    nmse = 1.4 * 40**-0.5
    point = Curve(np.array([40.0]), np.array([nmse]), np.full((300, 1), 40.0), (nmse * noise * own)[:, None])
    found = compare_at_matched_l0(point, base, 7)
    assert (found["l0_low"], found["l0_high"], found["at"]) == (40, 40, [])
    assert found["ratio"]["value"] == pytest.approx(1.4)
    assert found["ratio"]["low"] == pytest.approx(1.4 * np.quantile(own, 0.025), rel=1e-4)  # what both share cancels
    assert found["ratio"]["high"] == pytest.approx(1.4 * np.quantile(own, 0.975), rel=1e-4)
    turned = compare_at_matched_l0(base, point, 7)
    assert turned["ratio"]["value"] == pytest.approx(1 / 1.4)
    assert turned["ratio"]["low"] == pytest.approx(1 / found["ratio"]["high"], rel=1e-3)
    far = compare_at_matched_l0(power_curve([400], 1.0, noise), base, 7)
    assert far == {"reason": "its L0 400 is outside 20 to 100"}
    with pytest.raises(ValueError, match="no L0 in common"):
        compare_at_matched_l0(point, point, 7)


def test_measure_names_what_is_wrong() -> None:
    sae = make_sae("standard", d_in=8, d_sae=24)
    with pytest.raises(UserError, match="no activations"):
        monosem.measure(sae, [])
    with pytest.raises(UserError, match=r"\[n, 8\]"):
        monosem.measure(sae, [torch.zeros(4, 7)])
    with pytest.raises(UserError, match="NaN"):
        monosem.measure(sae, [torch.full((4, 8), float("nan"))])
