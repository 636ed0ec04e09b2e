"""Output tokens of features: decoder rows through the final norm and the unembedding, on models made by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from monosem.evals import Inputs, RunInfo, make_evaluation
from monosem.evals.logits import extremes, unembed
from monosem.formats.saelens import save_sae
from monosem.model import load_model
from monosem.sae import make_sae


class Lm(nn.Module):
    """Embedding, one block with a norm inside, a final norm, an unembedding: the tree of a language model."""

    def __init__(self, norm: nn.Module | None, unembedding: torch.Tensor) -> None:
        super().__init__()
        v, d = unembedding.shape
        self.embed = nn.Embedding(v, d)
        self.blocks = nn.ModuleList([nn.Sequential(nn.LayerNorm(d), nn.Linear(d, d))])
        if norm is not None:
            self.norm = norm
        self.head = nn.Linear(d, v, bias=False)
        self.head.weight = nn.Parameter(unembedding)

    def get_output_embeddings(self) -> nn.Module:
        return self.head


class OffsetNorm(nn.Module):
    """An RMS norm whose scale is 1 + weight, as Gemma's."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.square().mean(-1, keepdim=True).sqrt() * (1 + self.weight)


def rms(scale: list[float]) -> nn.Module:
    norm = nn.RMSNorm(len(scale), eps=1e-6)
    norm.weight = nn.Parameter(torch.tensor(scale))
    return norm


def layer_norm(scale: list[float]) -> nn.Module:
    norm = nn.LayerNorm(len(scale))
    norm.weight = nn.Parameter(torch.tensor(scale))
    norm.bias = nn.Parameter(torch.tensor([5.0, -3.0, 2.0, 1.0]))
    return norm


UNEMBEDDING = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0], [-1.0, -1.0, 0, 4.0]])


def test_the_scale_is_folded_in_and_directions_have_length_one() -> None:
    folded = unembed(Lm(rms([2.0, 1.0, 3.0, 0.5]), UNEMBEDDING))
    assert folded is not None
    torch.testing.assert_close(folded, UNEMBEDDING * torch.tensor([2.0, 1.0, 3.0, 0.5]), atol=1e-5, rtol=1e-5)
    (top, high), (bottom, low) = extremes(torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 9.0]]), folded)
    assert top.tolist()[0] == [0, 1, 2, 3]  # 2 * .6, .8, 0, -2 * .6 - .8
    assert high[0].tolist() == pytest.approx([1.2, 0.8, 0.0, -2.0], abs=1e-5)
    assert bottom.tolist()[0] == [3, 2, 1, 0]
    assert low[0].tolist() == pytest.approx([-2.0, 0.0, 0.8, 1.2], abs=1e-5)
    assert (int(top[1, 0]), float(high[1, 0])) == (3, pytest.approx(2.0, abs=1e-5))


def test_a_scale_of_one_plus_weight_is_seen() -> None:
    folded = unembed(Lm(OffsetNorm(torch.tensor([1.0, 0.0, 2.0, -0.5])), UNEMBEDDING))
    torch.testing.assert_close(folded, UNEMBEDDING * torch.tensor([2.0, 1.0, 3.0, 0.5]), atol=1e-5, rtol=1e-5)


def test_a_layer_norm_centres_as_well_and_its_bias_plays_no_part() -> None:
    scale = torch.tensor([2.0, 1.0, 3.0, 0.5])
    folded = unembed(Lm(layer_norm(scale.tolist()), UNEMBEDDING))
    assert folded is not None
    direction = torch.tensor([1.0, -2.0, 0.5, 4.0])
    expected = ((direction - direction.mean()) * scale) @ UNEMBEDDING.T
    torch.testing.assert_close(folded @ direction, expected, atol=1e-3, rtol=1e-3)


def test_a_small_step_along_a_feature_changes_the_logits_of_a_real_model_in_proportion(tiny_lm: Path) -> None:
    lm: Any = load_model(str(tiny_lm), dtype="float32", device="cpu").lm
    folded = unembed(lm)
    assert folded is not None
    torch.manual_seed(0)
    with torch.no_grad():
        lm.model.norm.weight.copy_(torch.rand(32) + 0.5)
        folded = unembed(lm)
        assert folded is not None
        x, direction = torch.randn(32, dtype=torch.float64), torch.randn(32)
        lm.double()

        def logits(step: float) -> torch.Tensor:
            y = x + step * direction.double()
            return lm.lm_head(lm.model.norm(y) * y.square().mean().sqrt())  # without the division by the length

        change = (logits(1e-3) - logits(0)) / 1e-3
    torch.testing.assert_close(change.float(), folded @ direction, atol=2e-3, rtol=2e-3)


def test_without_a_final_norm_there_is_nothing_to_fold() -> None:
    assert unembed(Lm(None, UNEMBEDDING)) is None


def inputs_of(folder: Path, site: str, lm: Any) -> Inputs:
    return Inputs(folder, [], site=site, model=lambda: SimpleNamespace(lm=lm))  # pyright: ignore[reportArgumentType]


def test_rows_have_ten_tokens_a_side_or_none_and_a_reason(tmp_path: Path) -> None:
    torch.manual_seed(1)
    sae = make_sae("standard", d_in=8, d_sae=6)
    save_sae(sae, tmp_path / "saes" / "a")
    info = RunInfo("a", "standard", {}, 0, 6, "", tmp_path / "saes" / "a")
    evaluation = make_evaluation("logits")
    lm = Lm(rms([1.0] * 8), torch.randn(50, 8))
    result = evaluation.run(info, evaluation.prepare(inputs_of(tmp_path, "blocks.0.hook_resid_post", lm)))
    assert result.rows["feature"].to_list() == list(range(6))
    for side, descending in (("top", True), ("bottom", False)):
        for row in result.rows[f"{side}_logits"]:
            assert len(row) == 10
            assert row.to_list() == sorted(row.to_list(), reverse=descending)
    unit = nn.functional.normalize(sae.weights["W_dec"], dim=1)
    expected = (unit @ lm.head.weight.T).argmax(1)
    assert [row[0] for row in result.rows["top_tokens"]] == expected.tolist()
    cases = [
        ("blocks.0.hook_mlp_out", Lm(rms([1.0] * 4), UNEMBEDDING), "width 8 is not the model's, 4"),
        ("blocks.0.attn.hook_z", lm, "does not write to the residual stream"),
        ("blocks.0.hook_resid_pre", Lm(None, torch.randn(50, 8)), "no final norm"),
    ]
    for site, model, reason in cases:
        found = evaluation.run(info, evaluation.prepare(inputs_of(tmp_path, site, model)))
        assert reason in found.reasons["top_logit"]
        assert found.scalars == {"top_logit": None}
        assert [row.to_list() for row in found.rows["top_tokens"]] == [[]] * 6
    assert evaluation.figure([]) == []
