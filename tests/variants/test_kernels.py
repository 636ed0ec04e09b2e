"""The fast paths against their readable references: what is chosen, values, every gradient, steps, repetition."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from monosem import autoencoder
from monosem.autoencoder import batch_top_codes, ghost_term
from monosem.kernels import Codes, DenseCodes, RaggedCodes, SparseCodes, cpu, reference_kernels, screen, sparse
from monosem.kernels.screen import quantise, screen_of
from monosem.normaliser import Normaliser
from monosem.optimiser import ReferenceAdam, RowAdam
from monosem.trainer import Plan, Preparation, RunSpec, Trainer
from monosem.types import UserError
from monosem.variants import Step, make_variant

N, D_IN, D_SAE = 37, 12, 80
TOLERANCE = 1e-5  # relative to the largest entry


@pytest.fixture(autouse=True)
def small_matrices_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "SMALL", 0)
    monkeypatch.setattr(sparse, "DENSE_TOP_ABOVE", 1.0)
    monkeypatch.setattr(cpu, "CHUNK", 10)  # four chunks, the last one ragged


@pytest.fixture(params=["int8", "float32"])
def first_look(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(screen, "_chosen", request.param)
    return request.param


def draw(bias: float = -9.0, seed: int = 0) -> dict[str, Tensor]:
    """Return x, W, b, centre, W_dec, b_dec as leaves; a low bias makes the codes sparse. x has outlier dimensions."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    leaves = {
        "x": randn(N, D_IN) * torch.tensor([1.0] * (D_IN - 2) + [8.0, 0.1]),
        "W": randn(D_IN, D_SAE) * torch.tensor([1.0] * (D_IN - 2) + [0.2, 1.0])[:, None],
        "b": randn(D_SAE) + bias,
        "centre": randn(D_IN),
        "W_dec": randn(D_SAE, D_IN),
        "b_dec": randn(D_IN),
    }
    return {name: leaf.requires_grad_() for name, leaf in leaves.items()}


def run(leaves: dict[str, Tensor], encode: Callable[..., Codes], decode: Callable[..., Tensor]) -> list[Tensor]:
    """Return the dense codes, a reconstruction and the gradients of a nonlinear scalar of both, for every leaf."""
    for leaf in leaves.values():
        leaf.grad = None
    products = encode(leaves["x"], leaves["W"], leaves["b"], centre=leaves["centre"])
    codes = products.like(torch.relu(products.values + products.at(leaves["b"])))
    out = decode(codes, leaves["W_dec"], leaves["b_dec"])
    norms = sparse.row_norms(leaves["W_dec"])
    (out.sin().sum() + (codes.values * codes.at(norms)).square().sum()).backward()
    grads = [leaf.grad for leaf in leaves.values()]
    return [codes.dense().detach(), out.detach(), *[grad for grad in grads if grad is not None]]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale, check_dtype=False)


def in_double(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}


# ------------------------------------------------------------------------------------------------ what is chosen


def best(x: Tensor, W: Tensor, b: Tensor, k: int) -> Tensor:
    """Return the features with the k largest x . w_i + b_i in float64, ties to the lower index, by a full sort."""
    h = (x.double() @ W.double() + b.double()).numpy()
    return torch.from_numpy(np.argsort(-h, axis=1, kind="stable")[:, :k].copy())


def exact_case(n: int, d_in: int, d_sae: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, W, b of small integers: float32 products are exact, and there are many ties."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-3, 4, (n, d_in), generator=generator).float()
    x[:, 0] *= 50  # an outlier dimension
    W = torch.randint(-2, 3, (d_in, d_sae), generator=generator).float()
    b = torch.randint(-20, 5, (d_sae,), generator=generator).float()
    return x, W, b


@given(st.integers(1, 40), st.integers(1, 24), st.integers(1, 150), st.integers(0, 10**6), st.data())
@settings(max_examples=150, deadline=None)
def test_top_is_the_top_whatever_the_shape(n: int, d_in: int, d_sae: int, seed: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, d_sae))
    x, W, b = exact_case(n, d_in, d_sae, seed)
    expected = best(x, W, b, k)
    for precision in ("int8", "float32"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(screen, "_chosen", precision)
            codes = sparse.top_products(x, W.clone(), b, k)
        assert torch.equal(codes.indices, expected)
        assert torch.equal(codes.values, (x @ W).gather(1, expected))


@given(st.integers(1, 40), st.integers(1, 24), st.integers(1, 150), st.integers(0, 10**6), st.floats(-60, 60))
@settings(max_examples=150, deadline=None)
def test_active_is_what_is_active_whatever_the_shape(n: int, d_in: int, d_sae: int, seed: int, shift: float) -> None:
    x, W, b = exact_case(n, d_in, d_sae, seed)
    b = b + round(shift)
    p = x @ W
    for precision in ("int8", "float32"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu, "DENSE_ABOVE", 1.01)
            patch.setattr(screen, "_chosen", precision)
            codes = sparse.active_products(x, W.clone(), b)
        assert isinstance(codes, RaggedCodes)
        assert torch.equal(codes.dense(), torch.where(p + b > 0, p, 0.0))
        assert codes.values.numel() == int((p + b > 0).sum())


@pytest.mark.parametrize("k", [1, 7, D_SAE])
@pytest.mark.parametrize("bias", [0.0, -100.0])  # the second: every pre-activation is negative
def test_top_on_real_numbers(k: int, bias: float, first_look: str) -> None:
    leaves = {name: leaf.detach() for name, leaf in draw(bias).items()}
    for rows in (slice(0, 1), slice(0, N)):
        codes = sparse.top_products(leaves["x"][rows], leaves["W"], leaves["b"], k)
        assert torch.equal(codes.indices, best(leaves["x"][rows], leaves["W"], leaves["b"], k))


@given(st.integers(1, 40), st.integers(1, 24), st.integers(1, 150), st.integers(0, 10**6), st.data())
@settings(max_examples=150, deadline=None)
def test_the_top_of_a_batch_is_its_top_whatever_the_shape(
    n: int, d_in: int, d_sae: int, seed: int, data: st.DataObject
) -> None:
    """By a full sort: values, and which of equal ones, are exact; some batches have fewer positive entries than asked.

    A row may have all of the batch's largest activations, so that guesses from some rows are wrong.
    """
    k = data.draw(st.integers(1, d_sae))
    x, W, b = exact_case(n, d_in, d_sae, seed)
    x[data.draw(st.integers(0, n - 1))] *= data.draw(st.sampled_from([1, 100]))
    x, centre, hint = x + 1, torch.ones(d_in), data.draw(st.sampled_from([0.0, 1.0, 20.0]))
    flat = torch.relu((x - centre) @ W + b).flatten()
    kept = torch.from_numpy(np.argsort(-flat.numpy(), kind="stable")[: n * k].copy())
    expected = torch.zeros_like(flat).index_put((kept,), flat[kept]).view(n, d_sae)
    w = {"W_enc": W, "b_enc": b, "b_dec": centre}
    for setting in ("kernels", "reference"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu, "DENSE_ABOVE", 1.01)
            with reference_kernels() if setting == "reference" else nullcontext():
                codes = batch_top_codes(w, x, k, centred=True, hint=hint)
        assert isinstance(codes, DenseCodes) == (setting == "reference")
        assert torch.equal(codes.dense(), expected)


@pytest.mark.parametrize("d_sae", [80, 1100])
def test_of_equal_activations_of_a_batch_the_first_are_kept(d_sae: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "DENSE_ABOVE", 1.01)
    w = {"W_enc": torch.ones(D_IN, d_sae), "b_enc": torch.zeros(d_sae), "b_dec": torch.zeros(D_IN)}
    codes = batch_top_codes(w, torch.ones(3, D_IN), 30, centred=False)
    assert isinstance(codes, RaggedCodes)
    assert (codes.dense().flatten() > 0).nonzero().flatten().tolist() == list(range(90))


@pytest.mark.parametrize("hint", [1e-3, 1.0, 1e9])
@pytest.mark.parametrize("first", ["hint", "rows"])
def test_a_wrong_guess_of_the_smallest_kept_changes_nothing(
    hint: float, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves = {name: leaf.detach() for name, leaf in draw(bias=0.0).items()}
    w = {"W_enc": leaves["W"], "b_enc": leaves["b"], "b_dec": leaves["centre"]}
    monkeypatch.setattr(cpu, "DENSE_ABOVE", 1.01)
    expected = batch_top_codes(w, leaves["x"], 5, centred=False)
    assert int((expected.values > 0).sum()) == 5 * N
    if first == "rows":
        monkeypatch.setattr(autoencoder, "_floors", lambda *_: iter([hint, hint / 2, 0.0]))
    codes = batch_top_codes(w, leaves["x"], 5, centred=False, hint=hint)
    assert isinstance(codes, RaggedCodes)
    assert torch.equal(codes.dense(), expected.dense())


def test_a_good_guess_leaves_few_candidates() -> None:
    leaves = {name: leaf.detach() for name, leaf in draw(bias=0.0).items()}
    w = {"W_enc": leaves["W"], "b_enc": leaves["b"], "b_dec": leaves["centre"]}
    x = leaves["x"].repeat(20, 1) + 0.1 * torch.randn(20 * N, D_IN, generator=torch.Generator().manual_seed(1))
    codes = batch_top_codes(w, x, 5, centred=False)
    assert 5 * len(x) <= codes.values.numel() < 1.6 * 5 * len(x)


def test_no_tokens() -> None:
    leaves = {name: leaf.detach() for name, leaf in draw().items()}
    empty = leaves["x"][:0]
    assert sparse.top_products(empty, leaves["W"], leaves["b"], 3).indices.shape == (0, 3)
    codes = sparse.active_products(empty, leaves["W"], leaves["b"])
    assert codes.dense().shape == (0, D_SAE)
    assert sparse.decode(codes, leaves["W_dec"], leaves["b_dec"]).shape == (0, D_IN)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_refused(bad: float, first_look: str) -> None:
    leaves = {name: leaf.detach() for name, leaf in draw().items()}
    leaves["x"][17, 3] = bad
    with pytest.raises(UserError, match="NaN or infinite values in row 17 of the batch"):
        sparse.top_products(leaves["x"], leaves["W"], leaves["b"], 3)
    with pytest.raises(UserError, match="NaN or infinite values in row"):
        sparse.active_products(leaves["x"], leaves["W"], leaves["b"])


@given(st.integers(1, 30), st.integers(2, 60), st.integers(0, 10**6), st.floats(-8, 8))
@settings(max_examples=100, deadline=None)
def test_the_certificate_holds(d_sae: int, d_in: int, seed: int, size: float) -> None:
    """The 8-bit estimate is never further from the product than it says; rows and dimensions may differ in size."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(20, d_in, generator=generator) * torch.randn(d_in, generator=generator).mul(2).exp()
    W = torch.randn(d_in, d_sae, generator=generator) * torch.randn(d_sae, generator=generator).exp() * 10**size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screen, "_chosen", "int8")
        look = screen_of(W, x)
    assert look.quantised is not None
    rounded = torch.empty(x.shape, dtype=torch.int8)
    unit, norm, error = quantise(x, 1 / look.scale, rounded)
    estimate = (rounded.double() @ look.quantised.double().t()) * unit.double()[:, None] * look.unit.double()
    bound = error[:, None] * look.norm + (norm + error)[:, None] * look.error
    assert ((estimate - x.double() @ W.double()).abs() <= bound).all()


def test_a_first_look_in_8_bits_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = {name: leaf.detach() for name, leaf in draw().items()}
    found = []
    for precision in ("int8", "float32"):
        monkeypatch.setattr(screen, "_chosen", precision)
        top = sparse.top_products(leaves["x"], leaves["W"].clone(), leaves["b"], 5)
        active = sparse.active_products(leaves["x"], leaves["W"].clone(), leaves["b"])
        assert isinstance(active, RaggedCodes)
        found.append([top.indices, top.values, active.layout.indices, active.layout.offsets, active.values])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_screen_follows_the_weights() -> None:
    x, W = torch.randn(5, D_IN), torch.randn(D_IN, D_SAE)
    first = screen_of(W, x)
    assert screen_of(W, x) is first
    W[:, 3] += 1
    assert torch.equal(screen_of(W, x).rows, W.t())
    codes = sparse.top_products(x, W, torch.zeros(D_SAE), 2)
    assert torch.equal(codes.indices, best(x, W, torch.zeros(D_SAE), 2))


# ------------------------------------------------------------------------------------------------ values and gradients


def test_active(first_look: str) -> None:
    leaves = draw()
    fast = run(leaves, sparse.active_products, sparse.decode)
    codes = sparse.active_products(leaves["x"], leaves["W"], leaves["b"], leaves["centre"])
    assert isinstance(codes, RaggedCodes)
    assert 0 < codes.values.numel() < 0.2 * N * D_SAE
    slow = run(in_double(leaves), sparse.active_products_reference, sparse.decode_reference)
    assert len(fast) == len(slow) == 8
    for a, e in zip(fast, slow, strict=True):
        assert_close(a, e)


@pytest.mark.parametrize("k", [1, 7])
def test_top(k: int, first_look: str) -> None:
    leaves = draw(bias=0.0)
    results = [
        run(of, lambda x, W, b, centre, f=f: f(x, W, b, k, centre), decode)
        for of, f, decode in (
            (leaves, sparse.top_products, sparse.decode),
            (in_double(leaves), sparse.top_products_reference, sparse.decode_reference),
        )
    ]
    assert len(results[0]) == len(results[1]) == 8
    for a, e in zip(*results, strict=True):
        assert_close(a, e)


def test_dense_codes_stay_dense() -> None:
    leaves = draw(bias=5.0)
    codes = sparse.active_products(leaves["x"], leaves["W"], leaves["b"])
    assert isinstance(codes, DenseCodes)
    assert codes.values.requires_grad
    leaves = draw()
    assert isinstance(sparse.active_products(leaves["x"], leaves["W"], leaves["b"] - 9), RaggedCodes)


def test_a_screen_that_leaves_too_much_is_dropped_and_taken_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "DENSE_ABOVE", 1.0)
    monkeypatch.setattr(screen, "_chosen", "int8")
    leaves = {name: leaf.detach() for name, leaf in draw(bias=-2.0).items()}
    look = screen_of(leaves["W"], leaves["x"])
    for shift, narrow in ((0.0, False), (-60.0, True)):
        codes = sparse.active_products(leaves["x"], leaves["W"], leaves["b"] + shift)
        assert screen_of(leaves["W"], leaves["x"]) is look
        assert look.narrow == narrow
        p = leaves["x"] @ leaves["W"]
        assert_close(codes.dense(), torch.where(p + leaves["b"] + shift > 0, p, 0.0))


@pytest.mark.parametrize("bias", [-1e3, -12.0])
def test_rows_without_active_features(bias: float) -> None:
    leaves = draw(bias=bias)
    codes = sparse.active_products(leaves["x"], leaves["W"], leaves["b"])
    assert isinstance(codes, RaggedCodes)
    counts = codes.layout.offsets.diff()
    assert (counts == 0).any()
    values = torch.relu(codes.values + codes.at(leaves["b"]))
    out = sparse.decode(codes.like(values), leaves["W_dec"], leaves["b_dec"])
    torch.testing.assert_close(out[counts == 0], leaves["b_dec"].expand(int((counts == 0).sum()), -1))
    out.sum().backward()
    assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves.values())


def test_codes_agree_in_every_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "DENSE_ABOVE", 1.0)
    leaves = draw(bias=-5.0)
    ragged = sparse.active_products(leaves["x"], leaves["W"], leaves["b"])
    assert isinstance(ragged, RaggedCodes)
    ragged = ragged.like(torch.relu(ragged.values + ragged.at(leaves["b"])))
    dense = DenseCodes(torch.relu(leaves["x"] @ leaves["W"] + leaves["b"]))
    values, indices = dense.values.topk(int((dense.values > 0).sum(1).max()))
    pairs = SparseCodes(indices, values, D_SAE)
    for codes in (ragged, pairs):
        assert codes.n_tokens == dense.n_tokens
        assert_close(codes.dense(), dense.dense())
        assert torch.equal(codes.fired(), dense.fired())
        assert codes.l0() == dense.l0()
        assert_close(sparse.decode(codes, leaves["W_dec"]), sparse.decode(dense, leaves["W_dec"]))


def test_layout_transposes() -> None:
    leaves = draw()
    codes = sparse.active_products(leaves["x"], leaves["W"], leaves["b"])
    assert isinstance(codes, RaggedCodes)
    turned, order = codes.layout.by_feature
    assert torch.equal(RaggedCodes(turned, codes.values[order]).dense(), codes.dense().T)
    assert torch.equal(order, codes.layout.indices.argsort(stable=True))


# ------------------------------------------------------------------------------------------------ whole steps

VARIANTS = [
    ("standard", {}),
    ("standard", {"dead": "ghost"}),
    ("tanh", {"subtract_b_dec": True}),
    ("gated", {"mode": "norm_uu"}),
    ("gated", {"mode": "norm_ff"}),
    ("gated", {"mode": "paper"}),
    ("topk", {"k": 10}),
    ("topk", {"k": 10, "auxk": True}),
    ("topk", {"k": 10, "subtract_b_dec": False}),
    ("batchtopk", {"k": 10, "auxk": True}),
    ("matryoshka", {"k": 10, "auxk": True}),
    ("jumprelu", {"bandwidth": 0.5, "threshold_init": 0.5}),
    ("p_anneal", {"anneal_start": 0.0, "p_updates": 4, "p_end": 0.9}),
]
K_SPARSE = ("topk", "batchtopk", "matryoshka")


def make_sparse(w: dict[str, Tensor], x: Tensor) -> None:
    """Lower the biases so that about 4 % of the pre-activations of `x` are positive."""
    h = (x @ w["W_enc"]).flatten()
    shift = h.kthvalue(int(0.96 * len(h))).values
    with torch.no_grad():
        for key in w.keys() & {"b_enc", "b_gate", "b_mag"}:
            w[key] -= shift


def trainer_of(name: str, hyper: dict, x: Tensor, d_sae: int = 300) -> Trainer:
    variant = make_variant(name, hyper)
    spec = RunSpec("run", name, variant, d_sae, 0, replace(variant.recipe(d_sae), lr=1e-3, eps=1e-6))
    start = Preparation(Normaliser(), float(x.var(0).sum()), x[:100])
    trainer = Trainer(spec, Plan(len(x) // 10, 10, dead_after=1000), start, torch.device("cpu"))
    if name not in K_SPARSE:
        make_sparse(trainer.weights, x)
    trainer.silent += torch.arange(d_sae) * 10
    return trainer


def test_the_largest_products_follow_a_fused_optimiser(first_look: str) -> None:
    """A fused step of torch's doesn't count as a write to the weight, by which a screen is known to be outdated."""
    x = torch.randn((200, 40), generator=torch.Generator().manual_seed(5))
    variant = make_variant("topk", {"k": 2})
    weights = {name: w.requires_grad_() for name, w in variant.init(40, 300, torch.Generator().manual_seed(0)).items()}
    optimiser = ReferenceAdam(weights, (0.9, 0.999), 1e-8, unit=True)
    for index in range(20):
        optimiser.backward(variant.loss(weights, x, Step(index, 20)).total)
        optimiser.step(0.01, 1.0)
    found = variant.encode(weights, x).dense()
    h = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    best = h.topk(2)
    assert_close(found, torch.zeros_like(h).scatter(1, best.indices, best.values.relu()))


@pytest.mark.parametrize(("name", "hyper"), VARIANTS)
def test_ten_steps_are_those_of_the_reference(
    name: str, hyper: dict, first_look: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "DENSE_ABOVE", 1.0)
    # no pre-activation of this draw is so close to 0, or to another, that rounding decides about it
    x = torch.randn((2000, 40), generator=torch.Generator().manual_seed(5)) * torch.linspace(0.1, 3, 40)
    fast = trainer_of(name, hyper, x)
    with reference_kernels():
        slow = trainer_of(name, hyper, x)
    assert isinstance(fast.optimiser, RowAdam)
    assert isinstance(slow.optimiser, ReferenceAdam)
    for index, batch in enumerate(x.split(200)):
        fast.step(batch, index, True)
        with reference_kernels():
            slow.step(batch, index, True)
    assert fast.sparse
    assert slow.sparse == (name == "topk")
    tolerance = 10 * TOLERANCE if name == "p_anneal" else TOLERANCE  # f^p is steep where f is as small as rounding
    for key in fast.weights:
        assert_close(fast.weights[key].detach(), slow.weights[key].detach(), tolerance)
    for key in ("loss", "gradient_norm", "l0", "nmse"):
        assert [row[key] for row in fast.log] == pytest.approx([row[key] for row in slow.log], rel=1e-5)
    for key, moments in fast.optimiser.moments().items():
        for mine, theirs in zip(moments, slow.optimiser.moments()[key], strict=True):
            assert_close(mine, theirs, tolerance)


@pytest.mark.parametrize(("name", "hyper"), VARIANTS)
def test_gradients_are_those_of_the_reference_in_double(name: str, hyper: dict) -> None:
    """Outside a trainer, autograd gets whole gradients; inside, parts that add up to the same."""
    variant = make_variant(name, hyper)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn((200, 40), generator=generator)
    w = variant.init(40, 300, generator)
    w = {key: value + 0.1 * torch.randn(value.shape, generator=generator) for key, value in w.items()}
    if name not in K_SPARSE:
        make_sparse(w, x)
    step = Step(silent_tokens=torch.arange(300) * 10, dead_after=1000)

    def loss_and_gradients(of: dict[str, Tensor], batch: Tensor) -> list[Tensor]:
        leaves = {key: value.clone().requires_grad_() for key, value in of.items() if key not in variant.buffers}
        loss = variant.loss(of | leaves, batch, step)
        return [loss.total.detach(), *torch.autograd.grad(loss.total, list(leaves.values()))]

    assert not isinstance(variant.loss(w, x, step).codes, DenseCodes)
    slow = loss_and_gradients({key: value.double() for key, value in w.items()}, x.double())
    for a, e in zip(loss_and_gradients(w, x), slow, strict=True):
        assert_close(a, e)


def test_ghost_gradients_reach_dead_features_only() -> None:
    leaves = draw()
    w = {"W_enc": leaves["W"], "b_enc": leaves["b"], "W_dec": leaves["W_dec"], "b_dec": leaves["b_dec"]}
    dead = torch.arange(D_SAE) % 7 == 0
    ghost_term(w, leaves["x"].detach(), torch.zeros(N, D_IN), dead, centred=False).backward()
    for grad, axis in ((leaves["W"].grad, 0), (leaves["W_dec"].grad, 1)):
        assert grad is not None
        assert torch.equal(grad.abs().sum(axis) > 0, dead)


@pytest.mark.parametrize(("name", "hyper"), VARIANTS)
@pytest.mark.parametrize("threads", [1, 2])
def test_repeats_bit_for_bit(name: str, hyper: dict, threads: int) -> None:
    """Two trainings end in the same bits, with one thread and with two."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    x = torch.randn((2000, 40), generator=torch.Generator().manual_seed(3))
    try:
        runs = [trainer_of(name, hyper, x) for _ in range(2)]
        for trainer in runs:
            for index, batch in enumerate(x.split(200)):
                trainer.step(batch, index, False)
    finally:
        torch.set_num_threads(before)
    first, second = (trainer.state() for trainer in runs)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
