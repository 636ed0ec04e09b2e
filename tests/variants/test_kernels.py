"""The fast paths against their readable references: values, every gradient, and bit-equal repetition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from monosem.kernels import Codes, DenseCodes, RaggedCodes, SparseCodes, sparse
from monosem.variants import Step, make_variant

N, D_IN, D_SAE = 37, 12, 80
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.fixture(autouse=True)
def always_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "SMALL", 0)
    monkeypatch.setattr(sparse, "CHUNK_ENTRIES", 10 * D_SAE)  # four chunks, the last one ragged


def draw(dtype: torch.dtype, bias: float = -9.0, seed: int = 0) -> dict[str, Tensor]:
    """Return x, W, b, centre, W_dec, b_dec as leaves; a low bias makes the codes sparse."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    leaves = {
        "x": randn(N, D_IN),
        "W": randn(D_IN, D_SAE),
        "b": randn(D_SAE) + bias,
        "centre": randn(D_IN),
        "W_dec": randn(D_SAE, D_IN),
        "b_dec": randn(D_IN),
    }
    return {name: leaf.to(dtype).requires_grad_() for name, leaf in leaves.items()}


def run(leaves: dict[str, Tensor], encode: Callable[..., Codes], decode: Callable[..., Tensor]) -> list[Tensor]:
    """Return the dense codes, a reconstruction and the gradients of a nonlinear scalar of both, for every leaf."""
    for leaf in leaves.values():
        leaf.grad = None
    products = encode(leaves["x"], leaves["W"], leaves["b"], centre=leaves["centre"])
    codes = products.like(torch.relu(products.values + products.at(leaves["b"])))
    out = decode(codes, leaves["W_dec"], leaves["b_dec"])
    norms = leaves["W_dec"].norm(dim=1)
    (out.sin().sum() + (codes.values * codes.at(norms)).square().sum()).backward()
    grads = [leaf.grad for leaf in leaves.values()]
    return [codes.dense().detach(), out.detach(), *[grad for grad in grads if grad is not None]]


def assert_equal(actual: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    assert len(actual) == len(expected) == 8
    for a, e in zip(actual, expected, strict=True):
        scale = float(e.abs().max())
        torch.testing.assert_close(a, e, rtol=0, atol=TOLERANCE[dtype] * scale)
        assert scale > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_active(dtype: torch.dtype) -> None:
    leaves = draw(dtype)
    fast = run(leaves, sparse.active_products, sparse.decode)
    codes = sparse.active_products(leaves["x"], leaves["W"], leaves["b"], leaves["centre"])
    assert isinstance(codes, RaggedCodes)
    assert 0 < codes.values.numel() < 0.2 * N * D_SAE
    assert_equal(fast, run(leaves, sparse.active_products_reference, sparse.decode_reference), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("among", [None, torch.arange(D_SAE) % 3 == 1])
@pytest.mark.parametrize("k", [1, 7])
def test_top(dtype: torch.dtype, among: Tensor | None, k: int) -> None:
    leaves = draw(dtype, bias=0.0)
    encode = [sparse.top_products, sparse.top_products_reference]
    fast, slow = (
        run(leaves, lambda x, W, b, centre, f=f: f(x, W, b, k, centre, among), decode)
        for f, decode in zip(encode, [sparse.decode, sparse.decode_reference], strict=True)
    )
    assert_equal(fast, slow, dtype)
    if among is not None:
        assert not fast[0][:, ~among].any()


def test_top_is_the_top() -> None:
    leaves = draw(torch.float64, bias=0.0)
    codes = sparse.top_products(leaves["x"], leaves["W"], leaves["b"], 5)
    h = leaves["x"] @ leaves["W"] + leaves["b"]
    values, indices = h.topk(5)
    assert torch.equal(codes.indices, indices)
    torch.testing.assert_close(codes.values + codes.at(leaves["b"]), values)


def test_dense_codes_stay_dense() -> None:
    leaves = draw(torch.float64, bias=0.0)
    codes = sparse.active_products(leaves["x"], leaves["W"], leaves["b"])
    assert isinstance(codes, DenseCodes)
    assert codes.values.requires_grad
    leaves = draw(torch.float64)
    assert isinstance(sparse.active_products(leaves["x"], leaves["W"], leaves["b"] - 9), RaggedCodes)


@pytest.mark.parametrize("bias", [-1e3, -12.0])
def test_rows_without_active_features(bias: float) -> None:
    leaves = draw(torch.float64, bias=bias)
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
    monkeypatch.setattr(sparse, "DENSE_ABOVE", 0.15)
    leaves = draw(torch.float64)
    ragged = sparse.active_products(leaves["x"], leaves["W"], leaves["b"])
    assert isinstance(ragged, RaggedCodes)
    ragged = ragged.like(torch.relu(ragged.values + ragged.at(leaves["b"])))
    dense = DenseCodes(torch.relu(leaves["x"] @ leaves["W"] + leaves["b"]))
    values, indices = dense.values.topk(12)
    pairs = SparseCodes(indices, values, D_SAE)
    for codes in (ragged, pairs):
        assert codes.n_tokens == dense.n_tokens
        torch.testing.assert_close(codes.dense(), dense.dense(), rtol=0, atol=1e-12)
        assert torch.equal(codes.fired(), dense.fired())
        assert codes.l0() == dense.l0()
        torch.testing.assert_close(
            sparse.decode(codes, leaves["W_dec"]), sparse.decode(dense, leaves["W_dec"]), rtol=0, atol=1e-12
        )


def test_layout_transposes() -> None:
    leaves = draw(torch.float64)
    codes = sparse.active_products(leaves["x"], leaves["W"], leaves["b"])
    assert isinstance(codes, RaggedCodes)
    transposed = RaggedCodes(codes.layout.transposed, codes.values[codes.layout.order])
    assert torch.equal(transposed.dense(), codes.dense().T)


def make_sparse(w: dict[str, Tensor], x: Tensor) -> None:
    """Lower the biases so that about 4 % of the pre-activations of `x` are positive."""
    h = (x @ w["W_enc"]).flatten()
    for key in w.keys() & {"b_enc", "b_gate"}:
        w[key] -= h.kthvalue(int(0.96 * len(h))).values


VARIANTS = [
    ("standard", {}),
    ("tanh", {}),
    ("gated", {"mode": "norm_uu"}),
    ("gated", {"mode": "norm_ff"}),
    ("gated", {"mode": "paper"}),
    ("topk", {"k": 10}),
    ("topk", {"k": 10, "auxk": True}),
]


@pytest.mark.parametrize(("name", "hyper"), VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_variants_on_both_paths(name: str, hyper: dict, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients of every variant are the same whether the kernels or the references compute them."""
    variant = make_variant(name, hyper)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn((200, 40), generator=generator, dtype=dtype)
    w = {key: value.to(dtype) for key, value in variant.init(40, 300, generator).items()}
    w = {key: value + 0.1 * torch.randn(value.shape, generator=generator, dtype=dtype) for key, value in w.items()}
    make_sparse(w, x)
    w = {key: value.requires_grad_() for key, value in w.items()}
    step = Step(silent_tokens=torch.arange(300) * 10, dead_after=1000)

    def loss_and_gradients() -> list[Tensor]:
        loss = variant.loss(w, x, step)
        return [loss.total.detach(), *torch.autograd.grad(loss.total, list(w.values()))]

    fast = loss_and_gradients()
    assert not isinstance(variant.loss(w, x, step).codes, DenseCodes)
    monkeypatch.setattr(sparse, "SMALL", 1 << 62)
    for a, e in zip(fast, loss_and_gradients(), strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=TOLERANCE[dtype] * max(1e-6, float(e.abs().max())))


@pytest.mark.parametrize(("name", "hyper"), VARIANTS)
@pytest.mark.parametrize("threads", [1, 2])
def test_repeats_bit_for_bit(name: str, hyper: dict, threads: int) -> None:
    """Two runs of five gradient steps end in the same bits, with one thread and with two."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first, second = (_train(name, hyper) for _ in range(2))
    finally:
        torch.set_num_threads(before)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def _train(name: str, hyper: dict) -> dict[str, Tensor]:
    variant = make_variant(name, hyper)
    generator = torch.Generator().manual_seed(0)
    w = variant.init(64, 1024, generator, torch.randn(100, 64, generator=generator))
    make_sparse(w, torch.randn(100, 64, generator=generator))
    for weight in w.values():
        weight.requires_grad_()
    optimiser = torch.optim.Adam(w.values(), lr=1e-3)
    step = Step(silent_tokens=torch.arange(1024) * 10, dead_after=9000)
    for _ in range(5):
        optimiser.zero_grad()
        loss = variant.loss(w, torch.randn((512, 64), generator=generator), step)
        assert not isinstance(loss.codes, DenseCodes)
        loss.total.backward()
        optimiser.step()
    return {key: weight.detach() for key, weight in w.items()}
