"""Small cases worked out by hand, with the digits that the sources' own code gives for them."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from monosem.autoencoder import dead_estimate, tangential, unit_rows
from monosem.dead import auxk_loss, default_k_aux, geometric_median, ghost_loss, resample, resampling_chances
from monosem.variants import Step, Variant, Weights, make_variant


def t(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def leaves(**weights: Tensor) -> Weights:
    return {name: weight.clone().requires_grad_() for name, weight in weights.items()}


def close(actual: Tensor, expected: object, digits: int = 6) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.detach().double(), expected, rtol=0, atol=0.6 * 10.0**-digits)


def gradients(variant: Variant, w: Weights, x: Tensor, step: Step) -> dict[str, Tensor]:
    for weight in w.values():
        weight.grad = None
    variant.loss(w, x, step).total.backward()
    return {name: weight.grad if weight.grad is not None else torch.zeros_like(weight) for name, weight in w.items()}


# --------------------------------------------------------------------------------------------- standard and tanh


def standard_case(scale: float = 1.0) -> tuple[Weights, Tensor]:
    w = leaves(
        W_enc=torch.eye(2, dtype=torch.float64),
        b_enc=scale * t(0, -1),
        W_dec=t([2, 0], [0, 0.5]),
        b_dec=scale * t(0.1, 0),
    )
    return w, scale * t([1, 2])


def test_standard() -> None:
    w, x = standard_case()
    variant = make_variant("standard", {"l1_coefficient": 5})
    loss = variant.loss(w, x, Step())
    close(loss.codes.dense(), [[1, 1]])
    close(variant.decode(w, loss.codes), [[2.1, 0.5]])
    close(loss.terms["mse"], 3.46)
    close(loss.terms["sparsity"], 12.5)
    close(loss.total, 15.96)
    grads = gradients(variant, w, x, Step())
    close(grads["W_dec"], [[7.2, -3.0], [2.2, 2.0]])
    close(grads["W_enc"].T, [[14.4, 28.8], [1, 2]])
    close(grads["b_enc"], [14.4, 1.0])
    close(grads["b_dec"], [2.2, -3.0])
    norm = torch.nn.utils.clip_grad_norm_(list(w.values()), 1.0)
    close(norm, 36.5195838)
    close(grads["b_enc"], [14.4 / 36.5195838, 1 / 36.5195838])


def test_standard_is_scale_covariant() -> None:
    w, x = standard_case(scale=2)
    close(make_variant("standard", {"l1_coefficient": 10}).loss(w, x, Step()).total, 63.84)


@pytest.mark.parametrize(("index", "share"), [(0, 0.0), (25, 0.5), (50, 1.0), (999, 1.0)])
@pytest.mark.parametrize("name", ["standard", "tanh", "gated"])
def test_sparsity_warms_up(name: str, index: int, share: float) -> None:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    variant = make_variant(name, {"l1_coefficient": 2})
    w = variant.init(3, 5, torch.Generator().manual_seed(1))
    full = variant.loss(w, x, Step()).terms["sparsity"]
    warm = variant.loss(w, x, Step(index=index, total=1000)).terms["sparsity"]
    assert full > 0
    torch.testing.assert_close(warm, share * full)


@pytest.mark.parametrize("name", ["standard", "tanh", "gated"])
def test_tied_start_with_short_rows(name: str) -> None:
    w = make_variant(name, {}).init(64, 100, torch.Generator().manual_seed(0))
    assert w["W_dec"].dtype == torch.float32
    torch.testing.assert_close(w["W_dec"].norm(dim=1), torch.full((100,), 0.1), rtol=0, atol=1e-6)
    assert torch.equal(w["W_enc"].T, w["W_dec"])
    assert all(not w[bias].any() for bias in w if bias not in ("W_enc", "W_dec"))
    x = torch.randn(256, 64, generator=torch.Generator().manual_seed(1))  # norm sqrt(64)
    variant = make_variant(name, {})
    assert variant.decode(w, variant.encode(w, x)).norm(dim=1).mean() < 0.2 * math.sqrt(64)


@pytest.mark.parametrize(
    ("scale", "f", "value", "slope"),
    [
        (2, 0.1, 0.098688, 0.961043),
        (2, 1, 0.482014, 0.070651),
        (2, 3, 0.499994, None),
        (1, 1, 0.761594, 0.419974),
    ],
)
def test_tanh_penalty(scale: float, f: float, value: float, slope: float | None) -> None:
    w = leaves(W_enc=t([1]), b_enc=t(0), W_dec=t([1]), b_dec=t(0))
    x = t([f]).requires_grad_()
    variant = make_variant("tanh", {"l1_coefficient": 1, "tanh_scale": scale})
    penalty = variant.loss(w, x, Step()).terms["sparsity"]
    close(penalty, value)
    if slope is not None:
        (gradient,) = torch.autograd.grad(penalty, x)
        close(gradient, [[slope]])


def test_tanh_tends_to_l1() -> None:
    w, x = standard_case()
    l1 = make_variant("standard", {}).loss(w, x, Step()).total
    tanh = make_variant("tanh", {"tanh_scale": 1e-4}).loss(w, x, Step()).total
    assert abs(tanh / l1 - 1) < 1e-4


# --------------------------------------------------------------------------------------------- gated


@pytest.mark.parametrize("mode", ["norm_uu", "norm_ff", "paper"])
def test_gated(mode: str) -> None:
    w = leaves(
        W_enc=t([1, 0], [0, 1], [1, 1]).T,
        b_gate=t(-0.5, -1, 0),
        b_mag=t(0.1, 0.2, -0.3),
        r_mag=t(math.log(2), 0, math.log(0.5)),
        W_dec=t([1, 0], [0, 1], [0.6, 0.8]),
        b_dec=t(0, 0.1),
    )
    x = t([1, 0.5])
    variant = make_variant("gated", {"mode": mode, "l1_coefficient": 0.5, "subtract_b_dec": True})
    loss = variant.loss(w, x, Step())
    close(loss.codes.dense(), [[2.1, 0, 0.4]])
    close(variant.decode(w, loss.codes), [[2.34, 0.42]])
    close(loss.terms["mse"], 1.802)
    close(loss.terms["sparsity"], 0.5 * 1.9)
    close(loss.terms["aux"], 0.634)
    close(loss.total, 3.386)
    grads = gradients(variant, w, x, Step())
    if mode == "norm_uu":
        close(grads["W_dec"], [[6.218, 0.384], [0, 0], [2.444, 2.512]])
        close(grads["b_dec"], [-5.98, -1.52])
    else:
        close(grads["W_dec"], [[5.628, -0.336], [0, 0], [1.072, -0.064]])
        close(grads["b_dec"], [-6.66, -2.96])
    close(grads["b_gate"], [1.18, 0, 2.06])
    close(grads["b_mag"], [2.68, 0, 1.48])
    close(grads["r_mag"], [5.36, 0, 1.036])
    theta = variant.thresholds(w)  # type: ignore[attr-defined]
    close(theta, [1.1, 1.2, -0.3])
    mag = w["r_mag"].exp() * ((x - w["b_dec"]) @ w["W_enc"]) + w["b_mag"]
    close(torch.relu(mag * (mag > theta)), [[2.1, 0, 0.4]])


# --------------------------------------------------------------------------------------------- topk


def topk_case() -> tuple[Weights, Tensor]:
    rows = t([1, 0], [0, 1], [-1, 0], [0.6, 0.8])
    w = leaves(W_enc=rows.T.contiguous(), b_enc=t(0, 0, 0.5, 0.1), W_dec=rows, b_dec=t(0.5, 0.5))
    return w, t([1, 2], [3, -1], [0, 1])


SILENT = torch.tensor([0, 100, 100, 0])


def test_topk_forward() -> None:
    w, x = topk_case()
    variant = make_variant("topk", {"k": 1})
    loss = variant.loss(w, x, Step())
    close(loss.codes.dense(), [[0, 0, 0, 1.6], [2.5, 0, 0, 0], [0, 0, 1, 0]])
    close(variant.decode(w, loss.codes), [[1.46, 1.78], [3, 0.5], [-0.5, 0.5]])
    close(loss.total, 0.3225)
    close(variant.loss(w, x, Step(variance=1.0)).total, 1.0033333)
    close(variant.loss(w, x, Step(variance=2 / 0.642857)).total, 0.3225)


@pytest.mark.parametrize(
    ("k_aux", "relu", "value", "unnormalised"),
    [
        (1, True, 2.3515439, 2.2),
        (1, False, 1.5498812, 1.45),
        (2, True, 2.2624703, 2.1166667),
        (2, False, 2.8859857, 2.7),
    ],
)
def test_topk_auxk(k_aux: int, relu: bool, value: float, unnormalised: float) -> None:
    w, x = topk_case()
    step = Step(silent_tokens=SILENT, dead_after=50)
    variant = make_variant("topk", {"k": 1, "auxk": True, "auxk_alpha": 1, "k_aux": k_aux, "aux_relu": relu})
    # feature 2 fires on the third row, so the case's dead set {1, 2} is given to the estimate itself
    residual = x - variant.decode(w, variant.encode(w, x))
    given = partial(dead_estimate, w, x, relu=relu, centred=True)
    estimate = given(torch.tensor([False, True, True, False]), k_aux)
    close(auxk_loss(residual, estimate), value)
    variance = (residual - residual.mean(0)).square().sum(1).mean()
    close(auxk_loss(residual, estimate) * variance, unnormalised)
    only_feature_1 = given(torch.tensor([False, True, False, False]), k_aux)
    torch.testing.assert_close(variant.loss(w, x, step).terms["auxk"], auxk_loss(residual, only_feature_1))


def test_topk_total_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    w, x = topk_case()
    monkeypatch.setattr(Step, "dead", lambda self, codes: torch.tensor([False, True, True, False]))
    variant = make_variant("topk", {"k": 1, "auxk": True, "k_aux": 2})
    close(variant.loss(w, x, Step()).total, 0.39320220, digits=7)
    grads = gradients(variant, w, x, Step())
    close(grads["W_enc"].T, [[0, 0], [0.014252, 0.042755], [-0.070273, 0.070273], [0.010714, 0.032143]])
    close(grads["W_dec"], [[0, 0.803571], [-0.001336, 0.042755], [-0.140545, -0.107143], [0.157714, -0.075429]])
    tangent = tangential(w["W_dec"], grads["W_dec"])
    close(tangent, [[0, 0.803571], [-0.001336, 0], [0, -0.107143], [0.137143, -0.102857]])
    assert (tangent * w["W_dec"]).sum(1).abs().max() < 1e-6
    stepped = unit_rows(w["W_dec"].detach() - 0.1 * tangent)
    assert (stepped.norm(dim=1) - 1).abs().max() < 1e-6


def test_topk_can_have_no_active_feature() -> None:
    w = leaves(W_enc=torch.zeros(3, 5), b_enc=-torch.ones(5), W_dec=torch.ones(5, 3), b_dec=torch.zeros(3))
    codes = make_variant("topk", {"k": 2}).encode(w, torch.randn(4, 3))
    assert codes.l0() == 0
    assert not codes.fired().any()


def test_topk_start() -> None:
    sample = torch.tensor([[0.0, 0], [1, 0], [0, 1], [10, 10]])
    w = make_variant("topk", {"k": 2}).init(2, 6, torch.Generator().manual_seed(0), sample)
    torch.testing.assert_close(w["W_dec"].norm(dim=1), torch.ones(6))
    assert torch.equal(w["W_enc"].T, w["W_dec"])
    close(w["b_dec"], [0.5, 0.5], digits=3)
    assert not w["b_enc"].any()


def test_topk_recipe() -> None:
    variant = make_variant("topk", {})
    assert variant.recipe(2**14).lr == 2e-4
    assert variant.recipe(2**16).lr == 1e-4


@pytest.mark.parametrize(("d_in", "k_aux"), [(1, 1), (2, 1), (576, 256), (768, 512), (640, 256), (1024, 512), (32, 16)])
def test_default_k_aux(d_in: int, k_aux: int) -> None:
    assert default_k_aux(d_in) == k_aux  # 768 / 2 = 384 lies half-way between 256 and 512


# --------------------------------------------------------------------------------------------- batchtopk, matryoshka


def identity(n: int) -> Weights:
    """Return weights with which pre-activations are the rows themselves, and so are reconstructions of all of them."""
    eye = torch.eye(n, dtype=torch.float64)
    zeros = torch.zeros(n, dtype=torch.float64)
    return leaves(W_enc=eye, b_enc=zeros, W_dec=eye, b_dec=zeros) | {"threshold": zeros.clone()}


@pytest.mark.parametrize(
    ("k", "kept", "theta"),
    [(1, [[3, 0, 0], [0, 2.5, 0]], 2.5), (2, [[3, 1, 0], [0, 2.5, 2]], 1)],
)
@pytest.mark.parametrize("name", ["batchtopk", "matryoshka"])
def test_batchtopk(name: str, k: int, kept: list, theta: float) -> None:
    variant = make_variant(name, {"k": k} | ({"fractions": (0.4, 1.0)} if name == "matryoshka" else {}))
    w, x = identity(3), t([3, 1, 0.5], [0.2, 2.5, 2])
    loss = variant.loss(w, x, Step(variance=1.0))
    close(loss.codes.dense(), kept)
    close(loss.terms["mse"], (x - t(*kept)).square().sum() / 2)
    close(variant.settle(w, loss, Step())["threshold"], [theta] * 3)
    w["threshold"] += 1.5
    close(variant.encode(w, x).dense(), [[3, 0, 0], [0, 2.5, 2]])  # by the threshold, whatever the batch


def test_batchtopk_takes_the_first_of_equal_entries() -> None:
    w, x = identity(3), t([1, 2, 2], [2, 0, 2], [2, 2, -1])
    close(make_variant("batchtopk", {"k": 1}).loss(w, x, Step()).codes.dense(), [[0, 2, 2], [2, 0, 0], [0, 0, 0]])
    close(make_variant("batchtopk", {"k": 3}).loss(w, x, Step()).codes.dense(), x.relu())


def test_matryoshka_sums_the_errors_of_nested_dictionaries() -> None:
    w, x = identity(4), t([4, 3, 2, 1], [0, 5, 0, 6])
    variant = make_variant("matryoshka", {"k": 4, "fractions": (0.25, 0.5, 1.0)})
    loss = variant.loss(w, x, Step(variance=2.0))
    close(loss.terms["mse"], 0)
    close(loss.terms["nested"], ((9 + 4 + 1) + (25 + 36) + (4 + 1) + 36) / 2 / 2)
    narrow = make_variant("matryoshka", {"k": 2, "fractions": (0.25, 0.5, 1.0)}).loss(w, x, Step(variance=2.0))
    close(narrow.codes.dense(), [[4, 3, 0, 0], [0, 5, 0, 6]])
    close(narrow.terms["mse"], (4 + 1) / 2 / 2)
    close(narrow.terms["nested"], loss.terms["nested"])


# --------------------------------------------------------------------------------------------- jumprelu


@pytest.mark.parametrize(("h", "f", "slope"), [(0.9, 0, -2), (1.1, 1.1, -2), (0.7, 0, 0), (1.3, 1.3, 0)])
def test_jumprelu(h: float, f: float, slope: float) -> None:
    """With theta = 1 and eps = 0.5: the slopes of f and of the count, by theta; and by h, 1 where it is on."""
    w = leaves(W_enc=t([1]), b_enc=t(0), W_dec=t([1]), b_dec=t(0), threshold=t(1))
    x = t([h]).requires_grad_()
    loss = make_variant("jumprelu", {"l0_coefficient": 1, "bandwidth": 0.5}).loss(w, x, Step())
    close(loss.codes.dense(), [[f]])
    close(loss.terms["sparsity"], float(h > 1))
    for value, by_h in ((loss.codes.dense().sum(), float(h > 1)), (loss.terms["sparsity"], 0.0)):
        theta, along_x = torch.autograd.grad(value, [w["threshold"], x], retain_graph=True, allow_unused=True)
        close(theta, [slope])
        close(torch.zeros(1, 1) if along_x is None else along_x, [[by_h]])


def test_jumprelu_start_and_recipe() -> None:
    variant = make_variant("jumprelu", {})
    w = variant.init(400, 6, torch.Generator().manual_seed(0))
    close(w["threshold"], [0.02] * 6)  # 0.001 sqrt(400)
    close(make_variant("jumprelu", {"threshold_init": 0.5}).init(4, 6, torch.Generator())["threshold"], [0.5] * 6)
    assert torch.equal(w["W_enc"].T, w["W_dec"])
    recipe = variant.recipe(2**14)
    assert (recipe.lr, recipe.beta1, recipe.lr_warmup) == (7e-5, 0.0, 1000)
    assert variant.constraint() == "unit"


# --------------------------------------------------------------------------------------------- p_anneal


def test_p_anneal() -> None:
    """f = (1, 4, 0.25): 5.25 with p = 1, 3.5 with p = 0.5, so that the coefficient rises by half."""
    w = leaves(W_enc=torch.eye(3, dtype=torch.float64), b_enc=t(0, 0, 0), W_dec=torch.eye(3).double(), b_dec=t(0, 0, 0))
    buffers = {"penalty_scale": torch.tensor(1.0).double(), "penalty_sums": torch.zeros(10, 2).double()}
    variant = make_variant("p_anneal", {"l1_coefficient": 1, "p_end": 0.5, "p_updates": 1, "anneal_end": 0.5})
    before = variant.loss(w | buffers, t([1, 4, 0.25]), Step(49, 100))
    close(before.terms["sparsity"], 5.25)
    settled = variant.settle(w | buffers, before, Step(49, 100))
    close(settled["penalty_scale"], 1.5)
    after = variant.loss(w | buffers, t([1, 4, 0.25]), Step(50, 100))
    close(after.terms["sparsity"], 3.5)
    close(variant.loss(w | settled, t([1, 4, 0.25]), Step(50, 100)).terms["sparsity"], 5.25)
    w["b_enc"].grad = None
    variant.loss(w | buffers, t([0, 1e-30, 1]), Step(50, 100)).total.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in w.values())


# --------------------------------------------------------------------------------------------- dead features


def test_geometric_median() -> None:
    points = t([0, 0], [1, 0], [0, 1], [10, 10])
    close(geometric_median(points), [0.5, 0.5], digits=4)
    close(points.mean(0), [2.75, 2.75])
    close(geometric_median(t([0], [1], [10])), [1.0], digits=4)
    close(geometric_median(t([3, 4], [3, 4])), [3, 4])  # starts on a point: no 0/0


def test_ghost_loss() -> None:
    x = t([1, 2], [3, -1])
    W_enc = t([1, 0], [0, 1], [-1, -1]).T.clone().requires_grad_()
    b_enc = t(0, 0, -1).requires_grad_()
    W_dec = t([1, 0], [0, 1], [0.6, 0.8]).requires_grad_()
    xhat = 0.9 * torch.relu(x @ W_enc + b_enc) @ W_dec
    h_dead = (x @ W_enc + b_enc)[:, 2:]
    close(h_dead, [[-4], [-3]])
    loss = ghost_loss(x, xhat, h_dead, W_dec[2:])
    close(loss, 0.5699979)
    loss.backward()
    assert W_enc.grad is not None
    assert b_enc.grad is not None
    assert W_dec.grad is not None
    close(W_enc.grad.T, [[0, 0], [0, 0], [0.9244946, -0.4142117]])
    close(b_enc.grad, [0, 0, 0.2778658])
    close(W_dec.grad, [[0, 0], [0, 0], [-0.010089, 0.354899]])
    close((x - xhat).square().sum(1), [0.05, 1.09])


def test_ghost_term_of_the_variant() -> None:
    """The same case through `standard`: b_dec makes the residual, and only feature 2 is dead."""
    w = leaves(
        W_enc=t([1, 0], [0, 1], [-1, -1]).T.clone(),
        b_enc=t(0, 0, -1),
        W_dec=t([1, 0], [0, 1], [0.6, 0.8]),
        b_dec=t(0.1, 0),
    )
    x = t([1, 2], [3, -1])
    variant = make_variant("standard", {"dead": "ghost", "l1_coefficient": 0})
    step = Step(silent_tokens=torch.full((3,), 100), dead_after=50)
    loss = variant.loss(w, x, step)
    close(loss.terms["ghost"] / loss.terms["mse"], 1.0, digits=4)
    assert not step.dead(loss.codes)[:2].any()
    loss.terms["ghost"].backward()
    assert w["W_enc"].grad is not None
    assert not w["W_enc"].grad[:, :2].any()
    assert w["W_enc"].grad[:, 2].abs().min() > 0
    assert w["b_dec"].grad is None
    assert variant.loss(w, x, Step()).terms["ghost"] == 0


def test_resampling() -> None:
    close(resampling_chances(t(1, 2, 3)), [1 / 14, 4 / 14, 9 / 14])
    rows = t([3, 4], [0, -2], [0, 0], [5, 0])
    w = {
        "W_enc": t([1, 2, 3], [0, 0, 4]),
        "b_enc": t(1, 2, 3),
        "W_dec": t([2, 0], [0, 4], [9, 9]),
        "b_dec": t(7, 7),
    }
    dead = torch.tensor([False, False, True])
    new, reset = resample(w, rows, t(0, 1, 9, 0), dead, torch.Generator().manual_seed(0))
    close(new["W_dec"], [[2, 0], [0, 4], [0, -3]])  # mean norm of the rows alive: 3
    close(new["W_enc"], [[1, 2, 0], [0, 0, -0.2 * 1.5]])  # mean norm of the columns alive: 1.5
    close(new["b_enc"], [1, 2, 0])
    assert torch.equal(new["b_dec"], w["b_dec"])
    assert torch.equal(w["b_enc"], t(1, 2, 3))
    assert reset["W_dec"].tolist() == [[False, False], [False, False], [True, True]]
    assert reset["W_enc"].tolist() == [[False, False, True], [False, False, True]]
    assert reset["b_enc"].tolist() == [False, False, True]
    assert not reset["b_dec"].any()


def test_resampling_draws_in_proportion_to_squared_loss() -> None:
    rows = torch.eye(3, dtype=torch.float64)
    w = {"W_enc": torch.ones(3, 2).double(), "W_dec": torch.ones(2, 3).double(), "b_enc": torch.ones(2).double()}
    generator = torch.Generator().manual_seed(0)
    dead = torch.tensor([False, True])
    counts = sum(resample(w, rows, t(1, 2, 3), dead, generator)[0]["W_dec"][1] > 0 for _ in range(1400))
    expected = t(100, 400, 900)
    assert ((counts - expected).abs() < 5 * (expected * (1 - expected / 1400)).sqrt()).all()  # 5 standard deviations


def test_resampling_with_more_dead_features_than_rows() -> None:
    w = {"W_enc": torch.ones(2, 4), "W_dec": torch.ones(4, 2), "b_enc": torch.ones(4)}
    dead = torch.tensor([True, False, True, True])
    new, reset = resample(w, torch.eye(2), torch.ones(2), dead, torch.Generator().manual_seed(0))
    assert reset["b_enc"].tolist() == [True, False, True, False]
    assert torch.equal(new["W_dec"][[1, 3]], torch.ones(2, 2))


def test_resampling_steps() -> None:
    variant = make_variant("standard", {"dead": "resample"})
    assert [i for i in range(200) if variant.resamples(Step(index=i, total=200))] == [25, 50, 75, 100]
    assert not make_variant("standard", {}).resamples(Step(index=25, total=200))
    w = variant.init(4, 6, torch.Generator().manual_seed(0))
    dead = torch.tensor([True] + [False] * 5)
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    new, reset = variant.resample(w, x, dead, torch.Generator().manual_seed(2))
    assert torch.equal(new["W_dec"][1:], w["W_dec"][1:])
    assert reset["b_enc"].sum() == 1
    cosines = torch.nn.functional.cosine_similarity(x, new["W_dec"][:1])
    torch.testing.assert_close(cosines.max(), torch.tensor(1.0))
