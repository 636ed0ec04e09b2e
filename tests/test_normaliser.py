"""Normalisers (A.1), folding (A.5) and the decoder-norm fold (B.6)."""

from __future__ import annotations

import math

import pytest
import torch

from monosem.normaliser import Normaliser, fit_normaliser, fold, fold_decoder_norms
from monosem.sae import Sae, make_sae
from monosem.types import UserError
from monosem.variants import make_variant

ROWS = torch.tensor([[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]])


def test_golden_a1() -> None:
    assert fit_normaliser("mean_norm", ROWS).scale == pytest.approx(0.282842712, abs=1e-9)
    assert fit_normaliser("rms_norm", ROWS).scale == pytest.approx(0.219089023, abs=1e-9)
    assert fit_normaliser("unit_rms", ROWS).scale == pytest.approx(1 / math.sqrt(125 / 3))
    assert fit_normaliser("none", ROWS).scale == 1.0


def test_per_token_normalisers_undo_themselves() -> None:
    x = torch.randn(20, 16, dtype=torch.float64) * 3 + 1
    for kind in ("token_const", "token_ln"):
        normalised, undo = Normaliser(kind).apply(x)
        assert torch.allclose(undo(normalised), x, atol=1e-3)
        target = math.sqrt(16) if kind == "token_const" else math.sqrt(15)
        assert torch.allclose(normalised.norm(dim=1), torch.full((20,), target, dtype=x.dtype), rtol=1e-4)
        with pytest.raises(UserError, match="depends on each token"):
            Normaliser(kind).undo(normalised)


@pytest.mark.parametrize("bad", [torch.zeros(3, 2), torch.full((3, 2), float("nan"))])
def test_a_normaliser_needs_activations(bad: torch.Tensor) -> None:
    with pytest.raises(UserError, match="finite, non-zero"):
        fit_normaliser("mean_norm", bad)


def golden_b1() -> dict[str, torch.Tensor]:
    return {
        "W_enc": torch.eye(2),
        "b_enc": torch.tensor([0.0, -1.0]),
        "W_dec": torch.tensor([[2.0, 0.0], [0.0, 0.5]]),
        "b_dec": torch.tensor([0.1, 0.0]),
    }


def test_golden_a5() -> None:
    raw = torch.tensor([[0.5, 1.0]])
    variant = make_variant("standard", {})
    inside = Sae("standard", variant, golden_b1(), Normaliser("mean_norm", 2.0))
    folded = Sae("standard", variant, fold(golden_b1(), 2.0))
    for sae in (inside, folded):
        assert torch.equal(sae.encode(raw), torch.tensor([[1.0, 1.0]]))
        assert torch.allclose(sae(raw), torch.tensor([[1.05, 0.25]]))
        assert torch.allclose(sae.decode(sae.encode(raw)), torch.tensor([[1.05, 0.25]]))


@pytest.mark.parametrize(
    ("variant", "hyper"), [("standard", {"subtract_b_dec": True}), ("gated", {}), ("topk", {"k": 3})]
)
def test_folding_changes_nothing_but_units(variant: str, hyper: dict[str, int]) -> None:
    sae = make_sae(variant, d_in=6, d_sae=20, seed=1, **hyper)
    generator = torch.Generator().manual_seed(0)
    weights = {
        k: v.double() + 0.1 * torch.randn(v.shape, generator=generator, dtype=torch.float64)
        for k, v in sae.weights.items()
    }
    x = torch.randn(50, 6, dtype=torch.float64, generator=generator)
    inside = Sae(variant, sae.variant, weights, Normaliser("mean_norm", 3.7))
    outside = Sae(variant, sae.variant, fold(weights, 3.7))
    assert (inside(x) - outside(x)).abs().max() < 1e-12
    assert (inside.encode(x) - outside.encode(x)).abs().max() < 1e-12
    back = fold(fold(weights, 3.7), 1 / 3.7)
    assert all((back[k] - weights[k]).abs().max() < 1e-12 for k in weights)


def test_golden_b6() -> None:
    x = torch.tensor([[1.0, 2.0]])
    folded = Sae("standard", make_variant("standard", {}), fold_decoder_norms(golden_b1()))
    assert torch.allclose(folded.encode(x), torch.tensor([[2.0, 0.5]]))
    assert torch.allclose(folded(x), torch.tensor([[2.1, 0.5]]))
    silent = golden_b1()
    silent["W_dec"][1] = 0
    out = fold_decoder_norms(silent)
    assert not out["W_dec"][1].any()
    assert not out["W_enc"][:, 1].any()
    assert out["b_enc"][1] == 0
