"""The rating's statistics on hand-computed cases, published examples and simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from monosem.bootstrap import Cell, bca, minimum_detectable, variance_factor, weighted_mean
from monosem.rating import alpha, compare_runs
from monosem.rating.agreement import blinding_check, weighted_kappa
from monosem.rating.comparison import EQUAL, SINGLE, trimmed_mean, weighted_median
from monosem.rating.permutation import max_t_p, pair_p
from monosem.types import UserError

NAN = math.nan
KRIPPENDORFF = [  # Krippendorff 2011, Computing Krippendorff's Alpha-Reliability, example C: 4 raters, 12 items
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]
CHANCES = [0.1, 0.15, 0.2, 0.3, 0.25]


def draw(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.choice([1.0, 2, 3, 4, 5], size=n, p=CHANCES)


def one(values: np.ndarray) -> dict[int, Cell]:
    return {0: Cell(np.asarray(values, dtype=float), np.ones(len(values)), 1.0)}


@pytest.mark.parametrize(
    ("level", "expected"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849), ("ratio", 0.797)]
)
def test_alpha_of_krippendorffs_example(level: str, expected: float) -> None:
    assert alpha(KRIPPENDORFF, level) == pytest.approx(expected, abs=5e-4)  # type: ignore[arg-type]


def test_alpha_is_missing_where_it_is_undefined() -> None:
    assert math.isnan(alpha([[1, 2, 3]]))
    assert math.isnan(alpha([[2, 2, NAN], [2, 2, 3]]))
    assert math.isnan(alpha([[1, NAN], [NAN, 2]]))
    assert alpha([[1, 2, 3, NAN], [1, 2, 3, 5]]) == 1.0


def test_weighted_kappa_by_hand() -> None:
    # squared differences of the pairs: 0, 1, 0, 0 -> 1/4; of all 16 combinations: 28/16 -> 1 - 4/28
    assert weighted_kappa([1, 2, 3, 1], [1, 3, 3, 1]) == pytest.approx(1 - (1 / 4) / (28 / 16))
    assert weighted_kappa([1, 5, 1, 5], [5, 1, 5, 1]) == pytest.approx(-1.0)
    assert math.isnan(weighted_kappa([3, 3], [3, 3]))
    assert math.isnan(weighted_kappa([], []))


def test_the_blinding_check_by_hand() -> None:
    truth = ["a", "a", "b", "b"]
    assert blinding_check(["a", "a", "b", "b"], truth) == {
        "n": 4, "hits": 4, "share": 1.0, "chance": 0.5, "p": pytest.approx(1 / 16)
    }  # fmt: skip
    blind = blinding_check(["a", "a", "a", "a"], truth)
    assert blind is not None
    assert (blind["chance"], blind["hits"]) == (0.5, 2)
    assert blind["p"] == pytest.approx(11 / 16)
    assert blinding_check([], []) is None


def test_bca_agrees_with_scipy() -> None:
    values = np.random.default_rng(3).exponential(size=40)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=60_000, method="BCa", rng=1).confidence_interval
    assert bca([*one(values).values()], 60_000) == pytest.approx((theirs.low, theirs.high), abs=0.006)


def test_bca_of_strata_agrees_with_scipys_several_samples() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.exponential(size=20), rng.exponential(size=35) + 1

    def statistic(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        return 0.3 * x.mean(axis) + 0.7 * y.mean(axis)

    theirs = stats.bootstrap((a, b), statistic, n_resamples=60_000, method="BCa", rng=1, vectorized=True)
    interval = theirs.confidence_interval
    cells = [Cell(a, np.ones(20), 0.3), Cell(b, np.full(35, 2.0), 0.7)]
    assert weighted_mean(cells) == pytest.approx(0.3 * a.mean() + 0.7 * b.mean())
    assert bca(cells, 60_000) == pytest.approx((interval.low, interval.high), abs=0.008)


def test_bca_of_equal_scores_is_a_point() -> None:
    assert bca([*one(np.full(10, 3.0)).values()]) == (3.0, 3.0)
    assert bca([*one(np.array([3.0])).values()]) == (3.0, 3.0)


def test_the_variance_factor_is_that_of_a_mean() -> None:
    assert variance_factor([*one(np.arange(25)).values()]) == pytest.approx(1 / 25)
    halves = [Cell(np.arange(4), np.ones(4), 0.5), Cell(np.arange(4), np.ones(4), -0.5)]
    assert variance_factor(halves) == pytest.approx(0.25 / 4 + 0.25 / 4)
    assert variance_factor([Cell(np.arange(2), np.array([3.0, 1.0]), 1.0)]) == pytest.approx(10 / 16)


def test_permutation_p_is_uniform_without_a_difference() -> None:
    rng = np.random.default_rng(5)
    ps = [pair_p(one(rng.normal(size=60)), one(rng.normal(size=60)), draws=400, seed=i) for i in range(200)]
    assert stats.kstest(ps, "uniform").pvalue > 0.05


def test_permutation_of_five_levels_errs_on_the_safe_side() -> None:
    """Means of few levels tie, and ties count as reached: p is never too small."""
    rng = np.random.default_rng(5)
    ps = np.array([pair_p(one(draw(rng, 25)), one(draw(rng, 25)), draws=400, seed=i) for i in range(600)])
    for level in (0.05, 0.2, 0.5):
        assert level - 0.1 < (ps <= level).mean() < level + 2 * np.sqrt(level * (1 - level) / 600)


def test_permutation_within_strata_is_uniform_where_strata_differ() -> None:
    """Run a has mostly low-scoring strata, run b mostly high ones: within strata there is no difference."""
    rng = np.random.default_rng(6)

    def run(n_low: int, n_high: int) -> dict[int, Cell]:
        low, high = rng.normal(2, 0.5, n_low), rng.normal(4, 0.5, n_high)
        return {0: Cell(low, np.ones(n_low), 0.5), 1: Cell(high, np.ones(n_high), 0.5)}

    ps = [pair_p(run(30, 10), run(10, 30), draws=400, seed=i) for i in range(200)]
    assert stats.kstest(ps, "uniform").pvalue > 0.05


def test_a_shift_of_a_point_is_found() -> None:
    rng = np.random.default_rng(7)
    a, b = draw(rng, 100), draw(rng, 100) + 1
    out = compare_runs({"a": a, "b": b}, draws=2000)
    (pair,) = out["pairs"]
    assert pair["p"] < 0.01
    assert pair["p_corrected"] < 0.01
    assert pair["mann_whitney_p"] == stats.mannwhitneyu(a, b, alternative="two-sided").pvalue < 0.01
    assert pair["difference"] == pytest.approx(a.mean() - b.mean())
    assert pair["low"] < pair["difference"] < pair["high"] < 0


def test_the_smallest_permutation_test_by_hand() -> None:
    """Two against two: of the six splits of 1, 2, 3, 4, two have means that lie 2 apart, so that p is 1/3."""
    assert pair_p(one(np.array([1, 2])), one(np.array([3, 4])), draws=20_000) == pytest.approx(1 / 3, abs=0.01)
    assert pair_p(one(np.array([1, 4])), one(np.array([2, 3])), draws=100) == 1.0


def test_max_t_keeps_the_family_wise_error() -> None:
    """Six equal runs, 15 pairs: uncorrected some pair falls below .05 in a third of the studies, corrected in 5 %."""
    rng = np.random.default_rng(8)
    smallest = [min(max_t_p([one(draw(rng, 25)) for _ in range(6)], 200, i).values()) for i in range(200)]
    assert 0.01 <= np.mean(np.array(smallest) < 0.05) <= 0.10


def test_with_two_runs_the_correction_changes_nothing() -> None:
    rng = np.random.default_rng(9)
    a, b = one(draw(rng, 30)), one(draw(rng, 40) + 0.3)
    assert max_t_p([a, b], 4000)[0, 1] == pytest.approx(pair_p(a, b, 4000), abs=0.02)


@pytest.mark.parametrize(("n", "expected"), [(25, 0.95), (50, 0.67), (100, 0.48)])
def test_minimum_detectable_difference(n: int, expected: float) -> None:
    assert round(minimum_detectable(1.2, n, n), 2) == expected


def test_a_run_is_described_as_by_hand() -> None:
    out = compare_runs({"a": [1, 1, 2, 3, 5, 5, 5, 4, 4, 2.5]}, draws=500)
    run = out["runs"]["a"]
    assert out["pairs"] == []
    assert run["n"] == 10
    assert run["mean"] == pytest.approx(3.25)
    assert run["median"] == 3.5
    assert run["histogram"] == [2, 1, 2, 2, 3]  # 2.5 counts as 3
    assert run["distribution"] == pytest.approx([0.2, 0.1, 0.2, 0.2, 0.3])
    assert run["share_low"] == pytest.approx(0.3)
    assert run["trimmed_mean"] == pytest.approx((2 + 2.5 + 3 + 4 + 4 + 5) / 6)
    assert run["low"] < 3.25 < run["high"]


def test_trimmed_mean_and_median_of_equal_weights_are_the_usual_ones() -> None:
    values = np.random.default_rng(10).normal(size=25)
    assert trimmed_mean(values, np.ones(25)) == pytest.approx(stats.trim_mean(values, 0.2))
    assert weighted_median(values, np.ones(25)) == np.median(values)
    assert weighted_median(np.array([1.0, 2, 3, 4]), np.ones(4)) == 2.5
    assert weighted_median(np.array([3.0]), np.ones(1)) == 3.0
    assert weighted_median(np.array([1.0, 2, 3]), np.array([3.0, 1, 1])) == 1.0


def test_weights_make_a_stratified_sample_stand_for_its_run() -> None:
    """Ten features of a stratum with 90 features and ten of one with 10: the mean is .9 and .1 of theirs."""
    scores, strata = [2.0, 4.0] * 5 + [5.0] * 10, [0] * 10 + [1] * 10
    weights = [9.0] * 10 + [1.0] * 10
    runs = compare_runs({"a": scores}, {"a": strata}, 500, weights={"a": weights})["runs"]
    assert runs["a"]["mean"] == pytest.approx(0.9 * 3 + 0.1 * 5)
    assert runs["a"]["distribution"] == pytest.approx([0, 0.45, 0, 0.45, 0.1])
    assert runs["a"]["high"] - runs["a"]["low"] < 1.3


def test_equal_scores_everywhere_are_no_difference() -> None:
    (pair,) = compare_runs({"a": [3] * 5, "b": [3] * 7}, draws=200)["pairs"]
    assert (pair["difference"], pair["low"], pair["high"], pair["p"], pair["mde"]) == (0, None, None, 1, None)
    assert pair["reasons"] == {"interval": EQUAL, "mde": EQUAL}
    assert pair["p_corrected"] == pair["mann_whitney_p"] == 1


def test_one_feature_a_run_gives_no_detectable_difference() -> None:
    out = compare_runs({"a": [3], "b": [4]}, draws=200)
    (pair,) = out["pairs"]
    assert pair["mde"] is pair["low"] is pair["high"] is None
    assert pair["reasons"] == {"interval": SINGLE, "mde": SINGLE}
    assert pair["p"] == 1.0
    assert (out["runs"]["a"]["low"], out["runs"]["a"]["reasons"]) == (None, {"interval": SINGLE})
    (pair,) = compare_runs({"a": [3], "b": [4, 2, 5]}, draws=200)["pairs"]
    assert pair["low"] is None
    assert pair["mde"] > 0


@pytest.mark.parametrize(
    ("scores", "more", "message"),
    [
        ({"a": []}, {}, "scores of a: expected one score a feature"),
        ({"a": [1, NAN]}, {}, "scores of a: hold NaN"),
        ({"a": [1, 2]}, {"strata": {"a": [0]}}, "strata and weights of a: must have 2 entries"),
        ({"a": [1, 2]}, {"weights": {"a": [1, 0]}}, "weights of a: must be above 0"),
        ({"a": [1, 2]}, {"weights": {"b": [1, 1]}}, "weights of a: missing; give those of every run"),
        ({"a": [1, 2]}, {"strata": {}}, "strata of a: missing; give those of every run"),
        ({"a": [1, 2]}, {"draws": 0}, "draws 0: must be at least 1"),
    ],
)
def test_bad_input_is_named(scores: dict, more: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compare_runs(scores, **more)
