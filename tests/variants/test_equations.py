"""Every variant against its equations, written as loops over rows, features and dimensions, in float64.

Gradients are compared with central differences of the *loop*. Where the loss stops gradients, the loop takes the
frozen quantities from a second set of weights, which the differences leave alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from monosem.dead import default_k_aux
from monosem.variants import Step, Weights, make_variant

D_IN, D_SAE, N = 4, 7, 5
STEP = Step(index=3, total=100)  # ramp(0.05) = 0.6
RAMP = 0.6
Loop = Callable[[Weights, Weights, Tensor], float]


def draw(names: str, seed: int = 0) -> tuple[Weights, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)}
    w = {
        name: 0.7 * torch.randn(shapes.get(name, (D_SAE,)), generator=generator, dtype=torch.float64)
        for name in names.split()
    }
    return w, torch.randn((N, D_IN), generator=generator, dtype=torch.float64)


def pre(w: Weights, row: Tensor, i: int, centred: bool) -> float:
    """Return the product of a row with the encoder column of feature i, without bias."""
    return sum(float((row[j] - (w["b_dec"][j] if centred else 0)) * w["W_enc"][j, i]) for j in range(D_IN))


def norm(w: Weights, i: int) -> float:
    return math.sqrt(sum(float(w["W_dec"][i, j]) ** 2 for j in range(D_IN)))


def decoded(w: Weights, f: list[float], bias: bool = True) -> list[float]:
    return [
        sum(f[i] * float(w["W_dec"][i, j]) for i in range(D_SAE)) + (float(w["b_dec"][j]) if bias else 0.0)
        for j in range(D_IN)
    ]


def distance(a: list[float] | Tensor, b: list[float]) -> float:
    return sum((float(a[j]) - b[j]) ** 2 for j in range(len(b)))


def penalised(centred: bool, penalty: Callable[[float], float], l1: float) -> Loop:
    def loop(w: Weights, frozen: Weights, x: Tensor) -> float:
        total = 0.0
        for row in x:
            f = [max(0.0, pre(w, row, i, centred) + float(w["b_enc"][i])) for i in range(D_SAE)]
            total += distance(row, decoded(w, f))
            total += l1 * RAMP * sum(penalty(f[i] * norm(w, i)) for i in range(D_SAE))
        return total / len(x)

    return loop


def gated(mode: str, centred: bool, l1: float) -> Loop:
    def loop(w: Weights, frozen: Weights, x: Tensor) -> float:
        total = 0.0
        for row in x:
            pi = [pre(w, row, i, centred) for i in range(D_SAE)]
            gate = [pi[i] + float(w["b_gate"][i]) for i in range(D_SAE)]
            mag = [math.exp(float(w["r_mag"][i])) * pi[i] + float(w["b_mag"][i]) for i in range(D_SAE)]
            f = [max(0.0, mag[i]) if gate[i] > 0 else 0.0 for i in range(D_SAE)]
            a = [max(0.0, g) for g in gate]
            total += distance(row, decoded(w, f))
            if mode == "norm_uu":
                total += l1 * RAMP * sum(a[i] * norm(w, i) for i in range(D_SAE)) + distance(row, decoded(w, a))
            elif mode == "norm_ff":
                total += l1 * RAMP * sum(a[i] * norm(frozen, i) for i in range(D_SAE))
                total += distance(row, decoded(frozen, a))
            else:
                total += l1 * RAMP * sum(a) + distance(row, decoded(frozen, a))
        return total / len(x)

    return loop


def largest(values: dict[int, float], k: int) -> list[int]:
    return sorted(values, key=lambda i: -values[i])[:k]


def pre_activations(w: Weights, x: Tensor, centred: bool) -> list[list[float]]:
    return [[pre(w, row, i, centred) + float(w["b_enc"][i]) for i in range(D_SAE)] for row in x]


def topk_codes(hs: list[list[float]], k: int) -> list[list[float]]:
    tops = [largest(dict(enumerate(h)), k) for h in hs]
    return [[max(0.0, h[i]) if i in top else 0.0 for i in range(D_SAE)] for h, top in zip(hs, tops, strict=True)]


def batch_codes(hs: list[list[float]], k: int) -> list[list[float]]:
    places = [(t, i) for t in range(len(hs)) for i in range(D_SAE)]
    kept = set(sorted(places, key=lambda place: -hs[place[0]][place[1]])[: k * len(hs)])
    return [[max(0.0, hs[t][i]) if (t, i) in kept else 0.0 for i in range(D_SAE)] for t in range(len(hs))]


def k_sparse(
    codes: Callable[[list[list[float]], int], list[list[float]]],
    k: int,
    alpha: float = 0.0,
    k_aux: int = 1,
    relu: bool = True,
    dead: tuple[int, ...] = (),
    *,
    centred: bool = True,
    widths: tuple[int, ...] = (D_SAE,),
) -> Loop:
    def forward(w: Weights, x: Tensor, widths: tuple[int, ...]) -> tuple[list[list[float]], list[list[list[float]]]]:
        hs = pre_activations(w, x, centred)
        fs = codes(hs, k)
        return hs, [[decoded(w, f[:width] + [0.0] * (D_SAE - width)) for f in fs] for width in widths]

    def spread(rows: list[list[float]]) -> float:
        mean = [sum(row[j] for row in rows) / len(rows) for j in range(D_IN)]
        return sum(distance(row, mean) for row in rows) / len(rows)

    def loop(w: Weights, frozen: Weights, x: Tensor) -> float:
        hs, parts = forward(w, x, widths)
        errors = [distance(row, xhat) for xhats in parts for row, xhat in zip(x, xhats, strict=True)]
        loss = sum(errors) / len(x) / spread(x.tolist())
        if alpha:
            frozen_xhats = forward(frozen, x, (D_SAE,))[1][0]
            es = [[float(row[j]) - xhat[j] for j in range(D_IN)] for row, xhat in zip(x, frozen_xhats, strict=True)]
            aux = 0.0
            for h, e in zip(hs, es, strict=True):
                top = largest({i: h[i] for i in dead}, min(k_aux, len(dead)))
                z = [(max(0.0, h[i]) if relu else h[i]) if i in top else 0.0 for i in range(D_SAE)]
                aux += distance(e, decoded(w, z, bias=False))
            loss += alpha * aux / len(x) / spread(es)
        return loss

    return loop


def jumprelu(centred: bool, l0: float) -> Loop:
    """theta doesn't move: the loss has no true slope along it."""

    def loop(w: Weights, frozen: Weights, x: Tensor) -> float:
        total = 0.0
        for row, h in zip(x, pre_activations(w, x, centred), strict=True):
            on = [h[i] > float(frozen["threshold"][i]) for i in range(D_SAE)]
            total += distance(row, decoded(w, [h[i] if on[i] else 0.0 for i in range(D_SAE)])) + l0 * RAMP * sum(on)
        return total / len(x)

    return loop


RELU = "W_enc b_enc W_dec b_dec"
GATED = "W_enc b_gate b_mag r_mag W_dec b_dec"
DEAD = (1, 2, 5)
AUX = {"auxk": True, "auxk_alpha": 0.5}
K_AUX = default_k_aux(D_IN)
OTHERS = {
    "threshold": torch.linspace(0.2, 0.8, D_SAE, dtype=torch.float64),
    "penalty_scale": torch.tensor(1.7, dtype=torch.float64),
}
CASES: list[tuple[str, dict, str, Loop]] = [
    ("standard", {"l1_coefficient": 2}, RELU, penalised(False, lambda v: v, 2)),
    ("standard", {"l1_coefficient": 2, "subtract_b_dec": True}, RELU, penalised(True, lambda v: v, 2)),
    ("tanh", {"l1_coefficient": 3}, RELU, penalised(False, math.tanh, 3)),
    ("tanh", {"l1_coefficient": 3, "tanh_scale": 4}, RELU, penalised(False, lambda v: math.tanh(4 * v) / 4, 3)),
    ("gated", {"l1_coefficient": 2}, GATED, gated("norm_uu", False, 2)),
    ("gated", {"l1_coefficient": 2, "mode": "norm_ff"}, GATED, gated("norm_ff", False, 2)),
    ("gated", {"l1_coefficient": 2, "mode": "paper"}, GATED, gated("paper", True, 2)),
    ("gated", {"l1_coefficient": 2, "mode": "paper", "subtract_b_dec": False}, GATED, gated("paper", False, 2)),
    ("topk", {"k": 3}, RELU, k_sparse(topk_codes, 3)),
    ("topk", {"k": D_SAE}, RELU, k_sparse(topk_codes, D_SAE)),
    ("topk", {"k": 2, "k_aux": 1, **AUX}, RELU, k_sparse(topk_codes, 2, 0.5, 1, True, DEAD)),
    ("topk", {"k": 2, "k_aux": 9, **AUX}, RELU, k_sparse(topk_codes, 2, 0.5, 9, True, DEAD)),
    ("topk", {"k": 2, "aux_relu": False, **AUX}, RELU, k_sparse(topk_codes, 2, 0.5, K_AUX, False, DEAD)),
    (
        "topk",
        {"k": 2, "subtract_b_dec": False, **AUX},
        RELU,
        k_sparse(topk_codes, 2, 0.5, K_AUX, True, DEAD, centred=False),
    ),
    ("batchtopk", {"k": 1}, RELU, k_sparse(batch_codes, 1)),
    ("batchtopk", {"k": 2, "k_aux": 2, **AUX}, RELU, k_sparse(batch_codes, 2, 0.5, 2, True, DEAD)),
    ("batchtopk", {"k": 2, "subtract_b_dec": False}, RELU, k_sparse(batch_codes, 2, centred=False)),
    ("batchtopk", {"k": D_SAE}, RELU, k_sparse(batch_codes, D_SAE)),
    (
        "matryoshka",
        {"k": 2, "k_aux": 2, "fractions": (0.3, 0.6, 1.0), **AUX},
        RELU,
        k_sparse(batch_codes, 2, 0.5, 2, True, DEAD, widths=(2, 4, 7)),
    ),
    ("jumprelu", {"l0_coefficient": 2}, RELU, jumprelu(False, 2)),
    ("jumprelu", {"l0_coefficient": 2, "subtract_b_dec": True}, RELU, jumprelu(True, 2)),
    ("p_anneal", {"l1_coefficient": 2, "anneal_start": 0.5}, RELU, penalised(False, lambda v: v, 2 * 1.7)),
    (
        "p_anneal",
        {"l1_coefficient": 2, "p_end": 0.5, "anneal_start": 0.0, "anneal_end": 0.02, "p_updates": 1},
        RELU,
        penalised(False, lambda v: (v + 1e-8) ** 0.5 if v > 0 else 0.0, 2 * 1.7),
    ),
]


@pytest.mark.parametrize(("name", "hyper", "names", "loop"), CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_gradient(
    name: str, hyper: dict, names: str, loop: Loop, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    w, x = draw(names, seed)
    mask = torch.zeros(D_SAE, dtype=torch.bool)
    mask[list(DEAD)] = True
    monkeypatch.setattr(Step, "dead", lambda self, codes: mask)  # firing features too, so that the aux term is rich
    leaves = {key: v.clone().requires_grad_() for key, v in w.items()}
    total = make_variant(name, hyper).loss(leaves | OTHERS, x, STEP).total
    w |= OTHERS
    assert total.item() == pytest.approx(loop(w, w, x), rel=1e-12)
    total.backward()
    for key, leaf in leaves.items():
        assert leaf.grad is not None
        differences = central_differences(loop, w, key, x)
        torch.testing.assert_close(leaf.grad, differences, rtol=1e-6, atol=1e-7, msg=lambda m, key=key: f"{key}: {m}")


def central_differences(loop: Loop, w: Weights, key: str, x: Tensor, step: float = 1e-6) -> Tensor:
    """Return the derivative of the loop by every entry of w[key]; frozen quantities come from the unmoved weights."""
    out = torch.zeros_like(w[key])
    for place in range(w[key].numel()):
        values = []
        for sign in (1, -1):
            moved = {**w, key: w[key].clone()}
            moved[key].view(-1)[place] += sign * step
            values.append(loop(moved, w, x))
        out.view(-1)[place] = (values[0] - values[1]) / (2 * step)
    return out


@pytest.mark.parametrize("mode", ["norm_uu", "norm_ff", "paper"])
def test_where_gated_stops_gradients(mode: str) -> None:
    """Frozen modes: the auxiliary loss and the penalty leave the decoder alone, but do move gate and centring."""
    w, x = draw(GATED)
    leaves = {key: v.requires_grad_() for key, v in w.items()}
    terms = make_variant("gated", {"mode": mode, "subtract_b_dec": True}).loss(leaves, x, STEP).terms

    def moved(term: str) -> set[str]:
        grads = torch.autograd.grad(terms[term], list(leaves.values()), allow_unused=True, retain_graph=True)
        return {key for key, grad in zip(leaves, grads, strict=True) if grad is not None and bool(grad.any())}

    live = {"W_dec"} if mode == "norm_uu" else set()
    assert moved("mse") == {"W_enc", "b_mag", "r_mag", "W_dec", "b_dec"}  # never b_gate: a step has no slope
    assert moved("sparsity") == {"W_enc", "b_gate", "b_dec"} | live
    assert moved("aux") == {"W_enc", "b_gate", "b_dec"} | live


@pytest.mark.parametrize("mode", ["norm_ff", "paper"])
def test_frozen_auxiliary_bias_only_moves_through_the_centring(mode: str) -> None:
    w, x = draw(GATED)
    leaves = {key: v.requires_grad_() for key, v in w.items()}
    aux = make_variant("gated", {"mode": mode, "subtract_b_dec": False}).loss(leaves, x, STEP).terms["aux"]
    (grad,) = torch.autograd.grad(aux, [leaves["b_dec"]], allow_unused=True)
    assert grad is None


def test_where_auxk_stops_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """AuxK moves dead features only (and b_dec through the centring), never those that made the residual."""
    w, x = draw(RELU)
    mask = torch.zeros(D_SAE, dtype=torch.bool)
    mask[list(DEAD)] = True
    monkeypatch.setattr(Step, "dead", lambda self, codes: mask)
    leaves = {key: v.requires_grad_() for key, v in w.items()}
    auxk = make_variant("topk", {"k": 2, "auxk": True, "k_aux": 3}).loss(leaves, x, STEP).terms["auxk"]
    dW_enc, db_enc, dW_dec, db_dec = torch.autograd.grad(auxk, [leaves[key] for key in RELU.split()])
    assert not dW_enc[:, ~mask].any()
    assert dW_enc[:, mask].any()
    assert not db_enc[~mask].any()
    assert not dW_dec[~mask].any()
    assert dW_dec[mask].any()
    expected = -(leaves["W_enc"] @ db_enc)  # h = (x - b_dec) W_enc + b_enc: both biases move h
    torch.testing.assert_close(db_dec, expected)


def test_auxk_is_silent_without_dead_features() -> None:
    w, x = draw(RELU)
    variant = make_variant("topk", {"k": 2, "auxk": True})
    assert variant.loss(w, x, Step()).terms["auxk"] == 0
    silent = Step(silent_tokens=torch.zeros(D_SAE, dtype=torch.int64), dead_after=10)
    assert variant.loss(w, x, silent).terms["auxk"] == 0


def test_features_die_after_the_limit() -> None:
    w, x = draw(RELU)
    codes = make_variant("topk", {"k": 1}).encode(w, x)
    fired = codes.fired()
    assert fired.any()
    assert not fired.all()
    step = Step(silent_tokens=torch.full((D_SAE,), 95), dead_after=99)
    assert torch.equal(step.dead(codes), ~fired)  # 95 + 5 tokens of this batch > 99
    assert not Step(silent_tokens=torch.full((D_SAE,), 95), dead_after=100).dead(codes).any()
    assert not Step().dead(codes).any()


def test_thresholds_get_the_gradient_of_the_smoothed_loss() -> None:
    """The straight-through estimators, summed up pair by pair, among pre-activations on both sides of zero."""
    w, x = draw(RELU)
    w["threshold"] = torch.tensor([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 2.0], dtype=torch.float64)
    l0, eps = 2.0, 0.8
    leaves = {key: v.clone().requires_grad_() for key, v in w.items()}
    loss = make_variant("jumprelu", {"l0_coefficient": l0, "bandwidth": eps}).loss(leaves, x, STEP)
    loss.total.backward()
    codes, expected, below = loss.codes.dense(), torch.zeros(D_SAE, dtype=torch.float64), 0
    for t, h in enumerate(pre_activations(w, x, False)):
        error = [float(x[t, j]) - value for j, value in enumerate(decoded(w, codes[t].tolist()))]
        for i in range(D_SAE):
            theta = float(w["threshold"][i])
            assert codes[t, i].item() == pytest.approx(h[i] if h[i] > theta else 0.0)
            if abs((h[i] - theta) / eps) < 0.5:
                below += h[i] < theta
                by_f = -2 * sum(error[j] * float(w["W_dec"][i, j]) for j in range(D_IN))  # dloss / df
                expected[i] += (by_f * -(theta / eps) + l0 * RAMP * -(1 / eps)) / N
    assert below > 0
    assert leaves["threshold"].grad is not None
    torch.testing.assert_close(leaves["threshold"].grad, expected)


def test_the_coefficient_follows_p() -> None:
    """When p changes, the penalty of the last ten batches stays what it was, on average."""
    hyper = {"p_end": 0.4, "p_updates": 3, "anneal_start": 0.1, "anneal_end": 0.4}
    variant = make_variant("p_anneal", hyper)
    w, _ = draw(RELU)
    w |= {"penalty_scale": torch.tensor(1.0).double(), "penalty_sums": torch.zeros(10, 2).double()}
    powers = {**dict.fromkeys(range(20), 1.0), **dict.fromkeys(range(20, 30), 0.8)}
    powers |= {**dict.fromkeys(range(30, 40), 0.6), **dict.fromkeys(range(40, 100), 0.4)}
    sums: dict[int, list[float]] = {}
    scale = 1.0
    for index in range(60):
        x = torch.randn((N, D_IN), generator=torch.Generator().manual_seed(index), dtype=torch.float64)
        step = Step(index, 100)
        f = torch.relu(x @ w["W_enc"] + w["b_enc"]) * w["W_dec"].norm(dim=1)
        p = powers[index]
        loss = variant.loss(w, x, step)
        ramp = min(1.0, index / 5)
        assert loss.terms["sparsity"].item() == pytest.approx(5 * ramp * scale * (f**p).sum().item() / N, rel=1e-6)
        sums[index] = [(f**p).sum().item(), (f ** (p - 0.2)).sum().item()]
        w |= variant.settle(w, loss, step)
        if index + 1 in (20, 30, 40):
            last = [sums[i] for i in range(index - 9, index + 1)]
            scale *= sum(old for old, _ in last) / sum(new for _, new in last)
        assert w["penalty_scale"].item() == pytest.approx(scale, rel=1e-6)
    assert scale != 1


def test_the_coefficient_follows_p_that_changes_at_every_step() -> None:
    hyper = {"p_end": 0.5, "p_updates": 50, "anneal_start": 0.0, "anneal_end": 0.5}
    variant = make_variant("p_anneal", hyper)
    w, x = draw(RELU)
    w |= {"penalty_scale": torch.tensor(1.0).double(), "penalty_sums": torch.zeros(10, 2).double()}
    penalties = []
    for index in range(100):
        loss = variant.loss(w, x, Step(index, 100))
        penalties.append(float(loss.terms["sparsity"]))
        w |= variant.settle(w, loss, Step(index, 100))
    assert penalties[5:] == pytest.approx([penalties[5]] * 95)  # on the same batch, rescaling keeps it
    f = torch.relu(x @ w["W_enc"] + w["b_enc"]) * w["W_dec"].norm(dim=1)
    assert float(w["penalty_scale"]) == pytest.approx(float(f.sum() / f.sqrt().sum()), rel=1e-6)


@pytest.mark.parametrize(("decay", "start"), [(0.99, 0), (0.5, 3)])
def test_the_threshold_is_a_mean_of_the_smallest_kept(decay: float, start: int) -> None:
    variant = make_variant("batchtopk", {"k": 1, "threshold_decay": decay, "threshold_from": start})
    w, _ = draw(RELU)
    w["threshold"] = torch.zeros(D_SAE, dtype=torch.float64)
    theta = 0.0
    for index in range(8):
        x = torch.randn((N, D_IN), generator=torch.Generator().manual_seed(index), dtype=torch.float64)
        if index == 5:
            loss = variant.loss({**w, "b_enc": w["b_enc"] - 1e6}, x, Step(index, 100))  # nothing is active
        else:
            loss = variant.loss(w, x, Step(index, 100))
        w |= variant.settle(w, loss, Step(index, 100))
        if index >= start and index != 5:
            smallest = min(v for row in loss.codes.dense().tolist() for v in row if v > 0)
            theta = smallest if theta == 0 else decay * theta + (1 - decay) * smallest
        assert w["threshold"].tolist() == pytest.approx([theta] * D_SAE)


def test_thresholds_stay_at_zero_or_more() -> None:
    variant = make_variant("jumprelu", {})
    w, x = draw(RELU + " threshold")
    assert (w["threshold"] < 0).any()
    assert torch.equal(variant.settle(w, variant.loss(w, x, STEP), STEP)["threshold"], w["threshold"].relu())
