"""Clusters of decoder rows, their planes and how irreducible these are: planted clouds and clusters.

The table of indices at 20,000 points was computed by another implementation (histogram2d at each angle; 720 x 401
directions and offsets) on other draws; between draws, those of circle and dodecagon differ by some .05. About 20
seconds, 7 of them for the 500 other clusters.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import SpectralClustering

from monosem.evals.multidim.clusters import cluster_decoder
from monosem.evals.multidim.irreducible import (
    Indices,
    Separability,
    epsilon_mixture_index,
    indices,
    separability,
    separability_index,
)
from monosem.evals.multidim.planes import ClusterScore, planes, rank, restricted, score
from monosem.types import UserError


def turned(points: np.ndarray, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([[c, s], [-s, c]])


def clouds(n: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    t = rng.uniform(0, 2 * np.pi, n)
    circle = np.stack([np.cos(t), np.sin(t)], 1)
    gaussian, noise = rng.standard_normal((2, n, 2))

    def corners(m: int) -> np.ndarray:
        a = 2 * np.pi * rng.integers(m, size=n) / m
        return np.stack([np.cos(a), np.sin(a)], 1) + 0.05 * rng.standard_normal((n, 2))

    first = rng.random(n) < 0.5
    size = rng.uniform(0.5, 1.5, n)
    return {
        "circle": circle,
        "noisy circle": circle + 0.1 * noise,
        "heptagon": corners(7),
        "dodecagon": corners(12),
        "disc": circle * np.sqrt(rng.random((n, 1))),
        "gaussian": gaussian,
        "square": turned(rng.uniform(-1, 1, (n, 2)), 0.5),
        "line": np.where(rng.random((n, 1)) < 0.6, gaussian * [1, 0], gaussian),
        "one-hot": np.stack([size * first, size * ~first], 1),
    }


GOLDEN = {  # separability, the same with 10 bins, mixture; 20,000 points
    "circle": (2.42, 1.50, 0.226),
    "noisy circle": (0.94, 0.76, 0.162),
    "heptagon": (1.84, 1.63, 0.284),
    "dodecagon": (1.53, 1.21, 0.218),
    "disc": (0.18, 0.12, 0.084),
    "gaussian": (0.05, 0.00, 0.085),
    "square": (0.02, 0.00, 0.107),
    "line": (0.06, 0.00, 0.622),
    "one-hot": (1.00, 1.00, 0.503),
}
MANY, FEW = clouds(20_000, 1), clouds(2_000, 2)
MEASURED = {name: indices(cloud) for name, cloud in MANY.items()}


@pytest.mark.parametrize("name", GOLDEN)
def test_indices_at_20000_points_are_those_of_another_implementation(name: str) -> None:
    S, S10, M = GOLDEN[name]
    wide = {"circle": 0.05, "dodecagon": 0.04}.get(name, 0.015)
    assert MEASURED[name].separability.value == pytest.approx(S, abs=wide)
    assert separability_index(MANY[name], bins=10) == pytest.approx(S10, abs=wide)
    assert MEASURED[name].mixture == pytest.approx(M, abs=0.006)
    assert MEASURED[name].n == 20_000


def test_order_of_clouds() -> None:
    S = {name: found.separability.excess for name, found in MEASURED.items()}
    assert min(S["circle"], S["heptagon"]) > 5 * S["disc"]
    assert S["disc"] > 0.1 > 5 * max(S["gaussian"], S["square"])
    assert min(MEASURED["line"].mixture, MEASURED["one-hot"].mixture) > 0.5
    assert max(MEASURED[name].mixture for name in ("circle", "dodecagon", "disc", "gaussian")) < 0.25


@pytest.mark.parametrize("name", ["noisy circle", "heptagon", "line", "one-hot"])
def test_indices_stay_when_a_cloud_is_moved_rotated_and_scaled(name: str) -> None:
    moved = 300 * turned(MANY[name], 0.7123) + [1e4, -50]
    assert separability_index(moved) == pytest.approx(MEASURED[name].separability.value, abs=0.01)
    assert epsilon_mixture_index(moved) == pytest.approx(MEASURED[name].mixture, abs=0.003)


def plain_information(cloud: np.ndarray, angle: float, bins: int) -> float:
    points = turned(cloud - cloud.mean(0), -angle)
    points = np.sqrt(2) * points / np.sqrt(np.square(points).sum(1).mean())
    x, y = points.clip(-3, 3).T if bins == 40 else points.T
    p = np.histogram2d(x, y, bins, range=[[-3, 3], [-3, 3]] if bins == 40 else None)[0] / len(points)
    apart = p.sum(1, keepdims=True) * p.sum(0)
    return float((p[p > 0] * np.log2(p[p > 0] / apart[p > 0])).sum())


def plain_mixture(cloud: np.ndarray) -> float:
    best = 0.0
    for angle in np.pi * np.arange(720) / 720:
        z = cloud @ [np.cos(angle), np.sin(angle)]
        z = np.sort(z - z.mean())
        middle = np.linspace(z[0], z[-1], 401)
        reach = 0.1 * np.sqrt(z.var() + middle**2)
        inside = np.searchsorted(z, middle + reach) - np.searchsorted(z, middle - reach, "right")
        best = max(best, inside.max() / len(z))
    return best


@pytest.mark.parametrize("name", ["heptagon", "disc", "line"])
@pytest.mark.parametrize("bins", [10, 40])
def test_fast_search_for_angles_finds_what_the_full_one_does(name: str, bins: int) -> None:
    found = separability(FEW[name], bins)
    full = min(plain_information(FEW[name], angle, bins) for angle in np.pi / 2 * np.arange(1000) / 1000)
    assert full - 0.03 < found.value < full + 0.005
    assert plain_information(FEW[name], found.angle, bins) == pytest.approx(found.value, abs=0.02)


def test_narrow_minimum_of_a_line_is_found_at_any_angle() -> None:
    cloud = clouds(20_000, 0)["line"]
    # near the edge of a bin at 0, which the line crosses when turned by .002: .47 bits there, .06 along it
    assert plain_information(cloud, 0.002, 40) > 0.4
    for angle in np.linspace(0.1, 1.4, 6):
        assert separability_index(turned(cloud, angle), 40) < 0.07


@pytest.mark.parametrize("name", GOLDEN)
def test_fast_search_for_lines_finds_at_least_what_the_full_one_does(name: str) -> None:
    squeezed = FEW[name] * [1, 0.2]
    full = plain_mixture(FEW[name])
    assert full - 0.002 < epsilon_mixture_index(FEW[name]) < full + 0.02
    assert epsilon_mixture_index(squeezed) == pytest.approx(epsilon_mixture_index(FEW[name]), abs=0.01)


def test_mixture_of_an_even_line_and_of_two_points_by_hand() -> None:
    # variance 1/3 in [-1, 1]: the widest band that fits ends at 1, m + w = 1 with w^2 = .01 (1/3 + m^2): w = .10639
    z = np.linspace(-1, 1, 20_001)
    assert epsilon_mixture_index(np.stack([z, 2 * z], 1)) == pytest.approx(0.10639, abs=1e-4)
    z = np.repeat([0.0, 1.0], [600, 400])
    assert epsilon_mixture_index(np.stack([z, 1 - z], 1)) == 0.6


@pytest.mark.parametrize(("n", "bits", "near"), [(1_000, 0.69, 0.06), (4_096, 0.24, 0.035), (20_000, 0.057, 0.008)])
def test_independent_coordinates_have_bits_by_chance_that_the_null_takes_away(n: int, bits: float, near: float) -> None:
    found = separability(np.random.default_rng(n).standard_normal((n, 2)), bins=40)
    assert found.value == pytest.approx(bits, abs=near)
    assert found.null == pytest.approx(bits, abs=near)
    assert found.excess < 0.003
    assert separability(np.random.default_rng(n).standard_normal((n, 2)), bins=10).null < 100 / n


def test_bins_follow_the_number_of_points() -> None:
    assert MEASURED["disc"].separability.bins == 40
    assert separability(MANY["disc"][:19_999]).bins == 10


def test_a_line_is_separable_at_any_angle() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, 500)
    for angle in (0.0, 0.3, 1.0, 2.5):
        found = indices(turned(np.stack([x, 0 * x], 1), angle))
        assert (found.separability.value, found.separability.null, found.irreducible) == (0, 0, 0)
        assert found.separability.angle == pytest.approx(angle % (np.pi / 2))
        assert 0.05 < found.mixture < 0.15


def test_seed_draws_the_null_only() -> None:
    one, same, other = (separability(FEW["disc"], seed=seed) for seed in (0, 0, 1))
    assert one == same
    assert one.null != other.null
    assert one.value == other.value


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros((500, 2)), "all are the same"),
        (np.full((500, 2), 0.1), "all are the same"),
        (FEW["disc"][:99], "99 points"),
        (np.full((500, 2), np.nan), "NaN"),
        (np.zeros((500, 3)), "must be"),
    ],
)
def test_points_that_have_no_indices_are_refused(points: np.ndarray, message: str) -> None:
    for index in (separability_index, epsilon_mixture_index):
        with pytest.raises(UserError, match=message):
            index(points)


def test_settings_that_make_no_sense_are_refused() -> None:
    for bins in (1, 101):
        with pytest.raises(UserError, match=f"bins {bins}"):
            separability_index(FEW["disc"], bins)
    for epsilon in (0, 1):
        with pytest.raises(UserError, match=f"epsilon {epsilon}"):
            epsilon_mixture_index(FEW["disc"], epsilon)
    with pytest.raises(UserError, match="angles 0"):
        separability_index(FEW["disc"], angles=0)


def two_planes(m: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows spread evenly round two orthogonal planes in 64 dimensions [2 m, 64], shuffled; which plane."""
    rng = np.random.default_rng(seed)
    t = 2 * np.pi * np.arange(m) / m
    circle = np.stack([np.cos(t), np.sin(t)], 1)
    axes = np.linalg.qr(rng.standard_normal((64, 4)))[0].T
    rows = np.concatenate([circle @ axes[:2], circle @ axes[2:]]) * rng.uniform(0.1, 10, (2 * m, 1))
    order = rng.permutation(2 * m)
    return rows[order], order >= m


def purity(labels: np.ndarray, truth: np.ndarray) -> float:
    return sum(np.bincount(truth[labels == label]).max() for label in np.unique(labels)) / len(truth)


@pytest.mark.parametrize("method", ["graph", "spectral"])
@pytest.mark.parametrize("m", [12, 50])
def test_two_orthogonal_planes_are_two_clusters(method: str, m: int) -> None:
    rows, second = two_planes(m, m)
    expected = sorted([np.flatnonzero(~second).tolist(), np.flatnonzero(second).tolist()])
    for given in (rows, torch.tensor(rows, requires_grad=True), torch.tensor(rows).half()):
        found = cluster_decoder(given, method, n_clusters=2)
        assert [cluster.tolist() for cluster in found] == expected
    assert found[0].dtype == np.int64


def test_angular_similarity_cannot_tell_orthogonal_planes_apart() -> None:
    rows, second = two_planes(50, 0)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    angular = 1 - np.arccos((unit @ unit.T).clip(-1, 1)) / np.pi
    same = second[:, None] == second
    assert angular[same].mean() == pytest.approx(angular[~same].mean(), abs=1e-3)
    labels = SpectralClustering(2, affinity="precomputed", random_state=0).fit_predict(angular)
    assert purity(labels, second.astype(int)) < 0.8


def cones(d: int, seed: int) -> tuple[np.ndarray, list[set[int]]]:
    """Return 400 random rows with 10 cones of 12 rows whose mean cosine is .55, shuffled; the rows of each cone."""
    rng = np.random.default_rng(seed)

    def unit(*shape: int) -> np.ndarray:
        drawn = rng.standard_normal((*shape, d))
        return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)

    rows = 0.55**0.5 * unit(10, 1) + 0.45**0.5 * unit(10, 12)
    order = rng.permutation(520)
    place = np.argsort(order)
    return np.concatenate([rows.reshape(-1, d), unit(400)])[order], [
        set(place[12 * i : 12 * i + 12].tolist()) for i in range(10)
    ]


def test_cones_are_found_whole_among_random_rows() -> None:
    rows, expected = cones(128, 0)
    found = [set(cluster.tolist()) for cluster in cluster_decoder(rows)]
    assert sorted(map(sorted, found)) == sorted(map(sorted, expected))
    assert [min(cluster) for cluster in found] == sorted(min(cluster) for cluster in found)
    spectral = [set(cluster.tolist()) for cluster in cluster_decoder(rows, "spectral", n_clusters=40)]
    assert np.mean([max(len(a & b) / len(a | b) for b in spectral) for a in expected]) > 0.9


def test_only_rows_above_the_threshold_among_the_k_nearest_are_tied() -> None:
    degrees = np.deg2rad([0, 50, 71, 180, 175])  # cosines of neighbours: .643, .934, and .996 apart from these
    rows = np.stack([np.cos(degrees), np.sin(degrees)], 1) * [[0.1], [1], [10], [0.1], [10]]
    rows = np.insert(rows, 2, 0.0, axis=0)  # a dead one

    def found(**settings: float) -> list[list[int]]:
        return [cluster.tolist() for cluster in cluster_decoder(rows, **settings)]  # pyright: ignore[reportArgumentType]

    assert found() == [[0, 1, 3], [4, 5]]
    assert found(threshold=0.7) == [[1, 3], [4, 5]]
    assert found(threshold=0.7, smallest=1) == [[0], [1, 3], [4, 5]]
    assert found(largest=2) == [[4, 5]]
    assert found(smallest=3) == [[0, 1, 3]]
    assert found(k=99) == found()
    assert found(threshold=0.999) == []


def test_of_equal_cosines_the_first_rows_count() -> None:
    rows = np.repeat(np.random.default_rng(0).standard_normal((1, 64)), 6, axis=0)
    rows[3:] *= 3
    # k = 1: 1 to 5 are tied to 0, 0 to 1
    assert [cluster.tolist() for cluster in cluster_decoder(rows, k=1)] == [[0, 1, 2, 3, 4, 5]]


def test_no_rows_no_clusters() -> None:
    for method in ("graph", "spectral"):
        assert cluster_decoder(np.zeros((10, 4)), method) == []
        assert cluster_decoder(np.eye(4), method) == []
        assert cluster_decoder(np.zeros((0, 4)), method) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "louvain"}, "louvain"),
        ({"k": 0}, "k 0"),
        ({"threshold": 1.5}, "threshold 1.5"),
        ({"smallest": 5, "largest": 4}, "sizes 5 to 4"),
        ({"n_clusters": 1}, "n_clusters 1"),
        ({"W_dec": np.full((3, 3), np.nan)}, "finite"),
        ({"W_dec": np.ones(3)}, "must be"),
    ],
)
def test_settings_of_clusters_that_make_no_sense_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        cluster_decoder(**{"W_dec": np.eye(4), **settings})


def firings(tokens: int, c: int, seed: int, density: float = 0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (tokens, features, values) in feature order, as codes on disk are; token numbers are spread."""
    rng = np.random.default_rng(seed)
    feature, token = np.nonzero(rng.random((c, tokens)) < density)
    return 7 * token + 3, feature, rng.exponential(1 + feature).astype(np.float32)


@pytest.mark.parametrize(("c", "d"), [(4, 32), (40, 6)])
def test_planes_are_those_of_pca_on_what_the_cluster_reconstructs(c: int, d: int) -> None:
    W = np.random.default_rng(1).standard_normal((c, d))
    codes = firings(400, c, 2)
    tokens, R = restricted(W, *codes)
    dense = np.zeros((400 * 7 + 3, c))
    dense[codes[0], codes[1]] = codes[2]
    assert tokens.tolist() == sorted(set(codes[0].tolist()))
    np.testing.assert_allclose(R, (dense @ W)[tokens])

    found = planes(W, *codes)
    k = min(c, d, 5)
    _, s, V = np.linalg.svd(R - R.mean(0), full_matrices=False)
    assert found.coordinates.shape == (len(tokens), k)
    assert found.tokens.tolist() == tokens.tolist()
    assert found.active == len(tokens)
    np.testing.assert_allclose(np.abs(found.components @ V[:k].T), np.eye(k), atol=1e-8)
    np.testing.assert_allclose(found.coordinates, (R - R.mean(0)) @ found.components.T, atol=1e-8)
    np.testing.assert_allclose(found.mean, R.mean(0))
    np.testing.assert_allclose(found.explained, (s**2 / (s**2).sum())[:k])
    assert (found.components.max(1) == np.abs(found.components).max(1)).all()


def test_a_sample_is_spread_evenly_and_drawn_by_the_seed() -> None:
    W, codes = np.random.default_rng(1).standard_normal((6, 16)), firings(5_000, 6, 3)
    everything = planes(W, *codes)
    found, same, other = (planes(W, *codes, most=500, seed=seed) for seed in (0, 0, 1))
    place = np.searchsorted(everything.tokens, found.tokens)
    step = everything.active / 500
    assert found.active == everything.active
    assert len(found.tokens) == len(found.coordinates) == 500
    assert set(np.diff(place).tolist()) <= {int(step), int(step) + 1}
    assert found.tokens.tolist() == same.tokens.tolist() != other.tokens.tolist()
    tokens, R = restricted(W, *codes)
    sample = R[np.isin(tokens, found.tokens)]
    np.testing.assert_allclose(found.mean, sample.mean(0))
    np.testing.assert_allclose(found.coordinates, (sample - sample.mean(0)) @ found.components.T, atol=1e-8)


def test_components_without_variance_are_left_out() -> None:
    W = np.random.default_rng(1).standard_normal((3, 16))
    assert planes(np.concatenate([W, W]), *firings(300, 6, 4)).coordinates.shape[1] == 3
    one = planes(W[:1], *firings(300, 1, 5))
    assert one.coordinates.shape[1] == 1
    assert score(one.coordinates).planes == ()


def test_a_cluster_with_few_tokens_has_no_planes() -> None:
    coordinates = np.random.default_rng(0).standard_normal((100, 4))
    assert len(score(coordinates).planes) == 3
    assert score(coordinates[:99]) == ClusterScore(())
    assert (score(coordinates[:99]).best, score(coordinates[:99]).mean) == (0, 0)


def test_firings_that_do_not_fit_are_refused() -> None:
    W, (tokens, features, values) = np.ones((3, 8)), firings(300, 4, 6)
    with pytest.raises(UserError, match="0 to 2"):
        planes(W, tokens, features, values)
    with pytest.raises(UserError, match="one a firing"):
        planes(W, tokens, features[1:], values)
    with pytest.raises(UserError, match="at least 2"):
        planes(W, tokens[:1], features[:1], values[:1])
    with pytest.raises(UserError, match="NaN"):
        planes(W * np.nan, tokens[:10], features[:10], values[:10])


def cone_of_a_circle(tokens: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (rows, tokens, features, values): 12 features share a direction and stand round a circle, with noise.

    The length of what they reconstruct varies by a tenth.
    """
    rng = np.random.default_rng(seed)
    t = 2 * np.pi * np.arange(12) / 12
    axes = np.linalg.qr(rng.standard_normal((32, 3)))[0].T
    rows = np.stack([np.ones(12), np.cos(t), np.sin(t)], 1) @ axes + 0.02 * rng.standard_normal((12, 32))
    angle, size = rng.uniform(0, 2 * np.pi, tokens), rng.lognormal(0, 0.1, tokens)
    code = size[:, None] * np.maximum(np.cos(angle[:, None] - t) - 0.7, 0)
    token, feature = np.nonzero(code)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), token, feature, code[token, feature]


def test_a_planted_circle_ranks_first_among_500_other_clusters_by_its_best_plane_only() -> None:
    circle = score(planes(*cone_of_a_circle(2_000, 0)).coordinates)
    kinds = ["gaussian", "line", "one-hot", "disc"]
    others = [score(clouds(1_000, 1000 + i)[kinds[i % 4]]) for i in range(500)]
    scores = [*others[:300], circle, *others[300:]]
    assert rank(scores)[0] == 300
    assert circle.best > 1.1 * max(one.best for one in others)
    # its planes of noise put the mean below the 125 pairs of exclusive features, which have one plane
    assert rank(scores, "mean").tolist().index(300) == 125


def test_ranks_by_hand() -> None:
    def plane(mixture: float, value: float) -> Indices:
        return Indices(Separability(value, 0.1, 0.0, 10), mixture, 500)

    mixed = ClusterScore((plane(0.2, 1.1), plane(0.5, 0.05)))  # .8 * 1 and .5 * 0
    even = ClusterScore((plane(0.5, 1.1), plane(0.5, 1.1)))
    assert (mixed.best, mixed.mean) == pytest.approx((0.8, 0.4))
    assert (even.best, even.mean) == pytest.approx((0.5, 0.5))
    scores = [ClusterScore(()), even, mixed, even]
    assert rank(scores).tolist() == [2, 1, 3, 0]
    assert rank(scores, "mean").tolist() == [1, 3, 2, 0]
    assert rank([]).tolist() == []
    with pytest.raises(UserError, match="median"):
        rank(scores, "median")
