"""The kernels for GPUs against the references and those for CPUs: on a GPU if there is one, else interpreted.

`test_gpu_kernels` runs this file in a process of its own, since Triton reads TRITON_INTERPRET when it is imported. On a
machine with a GPU: `python -m pytest tests/variants/gpu_kernel_cases.py`.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from monosem.kernels import cpu, gpu
from monosem.kernels.codes import Layout
from monosem.kernels.gradients import Pairs, RowGradient
from monosem.kernels.screen import screen_of
from monosem.optimiser import ReferenceAdam
from monosem.types import UserError

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(11, 12, 80), (9, 40, 300), (5, 576, 80)]  # tokens, d_in, d_sae


def draw(n: int, d_in: int, d_sae: int, whole: bool, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, W and b; whole: of whole numbers that bfloat16 can't hold, with products that float32 holds exactly."""
    generator = torch.Generator().manual_seed(seed)
    x, W, b = (torch.randn(shape, generator=generator) for shape in [(n, d_in), (d_in, d_sae), (d_sae,)])
    if whole:
        x, W, b = (200 * x).round(), (200 * W).round(), (1000 * b).round()
        W[:, 1::7], b[1::7] = W[:, 0:-1:7], b[0:-1:7]  # ties
    W = W.t().contiguous().t()
    return x, W, b


def on_device(*tensors: Tensor) -> list[Tensor]:
    return [tensor.to(DEVICE) for tensor in tensors]


def gpu_top(x: Tensor, W: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    x, W, b = on_device(x, W, b)
    indices, values = gpu.top(x, gpu.make_screen(W, x), b, k)
    return indices.cpu(), values.cpu()


@pytest.mark.parametrize("share", [0, 0.1, 0.5])
@pytest.mark.parametrize("shape", SHAPES)
def test_top_is_exact(shape: tuple[int, int, int], share: float) -> None:
    """Features, order, ties and values are exactly those of the product, where bfloat16 alone is wrong."""
    x, W, b = draw(*shape, whole=True)
    x[3] = 0
    k = max(1, int(share * shape[2]))
    indices, values = gpu_top(x, W, b, k)
    h = (x.double() @ W.double() + b).float()
    expected = h.sort(dim=1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(indices, expected)
    assert torch.equal(values, h.gather(1, expected) - b[expected])
    assert all(map(torch.equal, (indices, values), cpu.top(x, screen_of(W, x), b, k)))
    rounded = x.bfloat16().float() @ W.bfloat16().float() + b
    assert share < 0.5 or not torch.equal(rounded.sort(dim=1, descending=True, stable=True).indices[:, :k], expected)


@pytest.mark.parametrize("n", [1, 6])
def test_top_of_negative_and_uneven_rows(n: int) -> None:
    x, W, b = draw(n, 40, 300, whole=False)
    x[:, 3] *= 1000
    W[3] /= 1000
    b -= 100
    indices, values = gpu_top(x, W, b, 13)
    h = x.double() @ W.double()
    assert torch.equal(indices, (h + b).topk(13).indices)
    torch.testing.assert_close(values, h.gather(1, indices).float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("rounded", ["x", "W"])
def test_best_feature_is_found_where_all_roundings_conspire(rounded: str) -> None:
    """Feature 5 is the best, but looks worse than feature 9, by almost as much as bfloat16 can be wrong."""
    x, W = torch.ones(1, 12), torch.zeros(12, 20)
    if rounded == "W":
        W[:, 5], W[:, 9] = 1.0038, 1  # bfloat16 rounds the former to 1
        W[0, 9] += 4 * 2**-7
    else:
        x[:, :6], x[:, 6:] = 1.0038, 1.0040  # rounded to 1 and to 1 + 1/128
        W[:6, 5], W[6:, 9] = 1, 1
        W[0, 5] += 2**-7
    estimates = x.bfloat16().float() @ W.bfloat16().float()
    assert estimates.argmax() == 9
    indices, values = gpu_top(x, W, torch.zeros(20), 1)
    assert indices == 5
    torch.testing.assert_close(values, (x @ W)[:, 5:6])
    _, features, _ = active(x, W, torch.full((20,), -float((x @ W)[0, 9] + (x @ W)[0, 5]) / 2))
    assert features.tolist() == [5]


def test_scale_keeps_candidates_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outlier dimension that rounds badly costs hardly any exact products."""
    x, W, b = draw(6, 40, 300, whole=False)
    x[:, 3] = 1000.77
    W[3] /= 1000
    exact = []
    computed = gpu.pair_products
    monkeypatch.setattr(gpu, "pair_products", lambda *a: exact.append(len(a[0].indices)) or computed(*a))
    gpu_top(x, W, b, 10)
    assert 6 * 10 <= sum(exact) < 6 * 40


def test_chunks_and_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, W, b = draw(9, 12, 80, whole=True)
    before = *gpu_top(x, W, b, 5), *active(x, W, b - 3e5)
    monkeypatch.setattr(gpu, "PRODUCTS", 2 * 80)
    monkeypatch.setattr(gpu, "FEATURES", 32)
    after = *gpu_top(x, W, b, 5), *active(x, W, b - 3e5)
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize(("d_sae", "k", "group"), [(2100, 5, 16), (2100, 9, 8), (1100, 60, 2), (30, 8, 1)])
def test_promising_features_are_the_best_of_the_best_groups(d_sae: int, k: int, group: int) -> None:
    generator = torch.Generator().manual_seed(1)
    estimates, b = torch.randn(3, d_sae, generator=generator), torch.randn(d_sae, generator=generator)
    first = gpu._promising(*on_device(estimates, b), k).cpu()
    h = torch.nn.functional.pad(estimates + b, (0, -d_sae % group), value=-math.inf).view(3, -1, group)
    best, place = h.max(2)
    groups = best.topk(k).indices
    assert torch.equal(first.sort().values, (groups * group + place.gather(1, groups)).sort().values)


def active(x: Tensor, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return offsets, indices and values."""
    x, W, b = on_device(x, W, b)
    found = gpu.active(x, gpu.make_screen(W, x), b)
    assert found is not None
    return found[0].offsets.cpu(), found[0].indices.cpu(), found[1].cpu()


@pytest.mark.parametrize("shape", SHAPES)
def test_active_is_exact(shape: tuple[int, int, int]) -> None:
    x, W, b = draw(*shape, whole=True)
    x[3] = 0
    h = x.double() @ W.double()
    b -= (h + b).flatten().kthvalue(int(0.95 * h.numel())).values.float()  # some are exactly 0
    offsets, indices, values = active(x, W, b)
    rows, columns = (h + b > 0).nonzero(as_tuple=True)
    assert 0.02 * h.numel() < len(rows)
    assert torch.equal(offsets.diff(), (h + b > 0).sum(1))
    assert torch.equal(indices, columns)
    assert torch.equal(values, h[rows, columns].float())
    other = cpu.active(x, screen_of(W, x), b)
    assert other is not None
    assert torch.equal(offsets, other[0].offsets)
    expected = torch.zeros(h.shape).index_put((other[0].rows, other[0].indices), other[1])
    assert torch.equal(torch.zeros(h.shape).index_put((rows, indices), values), expected)


def test_active_none_and_many() -> None:
    x, W, b = on_device(*draw(9, 12, 80, whole=False))
    screen = gpu.make_screen(W, x)
    assert gpu.active(x, screen, b) is None
    found = gpu.active(x, screen, b - 1e6)
    assert found is not None
    assert len(found[0].indices) == len(found[1]) == found[0].offsets.count_nonzero() == 0
    assert len(found[0].offsets) == 10
    found = gpu.active(x[:0], screen, b)
    assert found is not None
    assert len(found[0].offsets) == 1
    assert gpu.top(x[:0], screen, b, 3)[0].shape == (0, 3)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_bad_activations_are_named(wrong: float) -> None:
    x, W, b = on_device(*draw(9, 12, 80, whole=False))
    screen = gpu.make_screen(W, x)
    x[4, 2] = wrong
    with pytest.raises(UserError, match="row 4"):
        gpu.top(x, screen, b, 3)


def ragged(n: int, d_sae: int, seed: int) -> Layout:
    """Return a layout with empty rows, rows of one entry and rows of many."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.tensor([0, 1, 0, 17, 16, 33, 0, 2, 5, 0])[torch.arange(n) % 10]
    features = [torch.randperm(d_sae, generator=generator)[:count] for count in counts.tolist()]
    return Layout(torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]), torch.cat(features), d_sae)


def moved(layout: Layout) -> Layout:
    return Layout(*on_device(layout.offsets, layout.indices), layout.d_sae)


@pytest.mark.parametrize(("d", "d_sae"), [(12, 80), (40, 300), (576, 80)])
def test_row_sums_and_pair_products(d: int, d_sae: int) -> None:
    layout = ragged(13, d_sae, 1)
    generator = torch.Generator().manual_seed(2)
    values, rows = torch.randn(len(layout.indices), generator=generator), torch.randn(d_sae, d, generator=generator)
    x, start = torch.randn(13, d, generator=generator), torch.randn(d, generator=generator)
    there = moved(layout)
    for base in (None, start):
        given = None if base is None else base.to(DEVICE)
        out = gpu.row_sums(there, *on_device(values, rows), given)
        torch.testing.assert_close(out.cpu(), cpu.row_sums(layout, values, rows, base), rtol=0, atol=3e-5)
        assert torch.equal(out, gpu.row_sums(there, *on_device(values, rows), given))
    assert torch.equal(out[0].cpu(), start)
    products = gpu.pair_products(there, *on_device(x, rows))
    torch.testing.assert_close(products.cpu(), cpu.pair_products(layout, x, rows), rtol=0, atol=1e-4)
    empty = Layout(there.offsets[:1].repeat(4), there.indices[:0], d_sae)
    assert not gpu.row_sums(empty, *on_device(values[:0], rows)).any()
    assert gpu.pair_products(empty, *on_device(x, rows)).shape == (0,)


def gradient(terms: int, d: int, d_sae: int, device: str, seed: int) -> tuple[RowGradient, Tensor | None]:
    """Return a gradient in `terms` sums of pairs and, for 1 and 2 terms, rows or multiples or a dense part, too."""
    generator = torch.Generator().manual_seed(seed)
    parts = RowGradient()
    for term in range(terms):
        layout, n = ragged(13 + term, d_sae, seed + term), 13 + term
        layout = Layout(layout.offsets.to(device), layout.indices.to(device), d_sae)
        values = torch.randn(len(layout.indices), generator=generator).to(device)
        parts.pairs.append(Pairs(layout, values, torch.randn(n, d, generator=generator).to(device)))
    rows, multiples = torch.randn(5, d, generator=generator), torch.randn(d_sae, generator=generator)
    dense = torch.randn(d_sae, d, generator=generator)
    if terms >= 1:
        parts.multiples = multiples.to(device)
    if terms == 1:
        parts.rows.append((torch.tensor([7, 2, 30, 41, 49]).to(device), rows.to(device)))
    return parts, dense.to(device) if terms != 1 else None


def whole_gradient(parts: RowGradient, dense: Tensor | None, W: Tensor) -> Tensor:
    total = torch.zeros_like(W) if dense is None else dense.clone()
    for pairs in parts.pairs:
        matrix = torch.zeros(len(pairs.factors), len(W)).index_put(
            (pairs.layout.rows, pairs.layout.indices), pairs.values
        )
        total += matrix.t() @ pairs.factors
    for features, rows in parts.rows:
        total[features] += rows
    return total if parts.multiples is None else total + parts.multiples[:, None] * W


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize(("terms", "d", "d_sae"), [(0, 12, 48), (1, 40, 50), (2, 140, 36)])
def test_adam_takes_the_reference_steps(
    terms: int, d: int, d_sae: int, unit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "SUMS", 33 * d)  # three chunks
    eps = 1e-4  # well above rounding: tangential gradients of rows that only have multiples are nothing else
    W = torch.randn(d_sae, d, generator=torch.Generator().manual_seed(3))
    W = W / W.norm(dim=1, keepdim=True) if unit else W
    mine, fromcpu, leaf = W.to(DEVICE, copy=True), W.clone(), W.clone().requires_grad_()
    reference = ReferenceAdam({"W_dec": leaf}, (0.9, 0.99), eps, unit)
    moments, others = ([torch.zeros_like(w), torch.zeros_like(w)] for w in (mine, fromcpu))
    for step in range(1, 4):
        norm = reference.backward((leaf * whole_gradient(*gradient(terms, d, d_sae, "cpu", step), leaf.detach())).sum())
        factor, root = min(1.0, 10 / norm), math.sqrt(1 - 0.99**step)
        parts, dense = gradient(terms, d, d_sae, DEVICE, step)
        squares = gpu.gradient_squares(parts, dense, mine, unit)
        assert math.isclose(math.sqrt(float(squares.double().sum())), norm, rel_tol=1e-5)
        host = gradient(terms, d, d_sae, "cpu", step)
        torch.testing.assert_close(squares.cpu(), cpu.gradient_squares(*host, fromcpu, unit), rtol=1e-4, atol=1e-4)
        numbers = (factor, 1e-2 / (1 - 0.9**step), 0.9, 1 - 0.9, 0.99, 1 - 0.99, root, eps)
        gpu.adam(parts, dense, mine, (moments[0], moments[1]), numbers, unit)
        cpu.adam(*host, fromcpu, (others[0], others[1]), numbers, unit)
        reference.step(1e-2, factor)
    for result, given in ((fromcpu, others), (leaf.detach(), reference.moments()["W_dec"])):
        torch.testing.assert_close(mine.cpu(), result, rtol=0, atol=2e-5)
        for moment, expected in zip(moments, given, strict=True):
            torch.testing.assert_close(moment.cpu(), expected, rtol=1e-4, atol=1e-6)
    if unit:
        torch.testing.assert_close(mine.norm(dim=1).cpu(), torch.ones(d_sae))


def test_refreshed_screen_follows_the_weights() -> None:
    x, W, b = on_device(*draw(5, 40, 300, whole=True))
    screen = gpu.make_screen(W, x)
    assert screen.rows.data_ptr() == W.data_ptr()
    W.mul_(-3)
    screen.refresh()
    indices, _ = gpu.top(x, screen, b, 4)
    assert torch.equal(indices.cpu(), (x @ W + b).sort(dim=1, descending=True, stable=True).indices[:, :4].cpu())


def test_supports() -> None:
    x, W, _ = on_device(*draw(5, 40, 300, whole=False))
    assert gpu.supports(x, W) == (DEVICE == "cuda")
    assert not gpu.supports(x.double(), W.double())
