"""Cross-entropy with an SAE spliced in: controls that must come out exactly, and what passes through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from monosem.heldout import Splice, accumulate, document_groups, downstream, scored_positions
from monosem.metrics import MAX_GROUPS
from monosem.metrics import downstream as formulas
from monosem.model import Model, load_model
from monosem.sae import Sae
from monosem.variants import DenseCodes, Variant


class Linear(Variant):
    """A stand-in SAE: x -> factor * x + offset."""

    def __init__(self, factor: float, offset: torch.Tensor):
        object.__setattr__(self, "factor", factor)
        object.__setattr__(self, "offset", offset)

    def encode(self, w: dict[str, torch.Tensor], x: torch.Tensor) -> DenseCodes:
        return DenseCodes(x)

    def decode(self, w: dict[str, torch.Tensor], codes: DenseCodes) -> torch.Tensor:  # type: ignore[override]
        return codes.values * self.factor + self.offset  # type: ignore[attr-defined]


def linear(factor: float, offset: torch.Tensor | None = None) -> Sae:
    return Sae("linear", Linear(factor, torch.zeros(32) if offset is None else offset), {"W_dec": torch.eye(32)})


@pytest.fixture(scope="module")
def model(tiny_lm: Path) -> Model:
    return load_model(str(tiny_lm), dtype="float32", device="cpu")


def make_splice() -> Splice:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 300, (6, 20), generator=generator)
    doc = (torch.arange(6)[:, None] * 2 + (torch.arange(20) >= 9)).expand(6, 20).clone()
    doc[:, 9] = -1
    keep = doc >= 0
    keep[:, 0] = False
    return Splice(tokens, keep, scored_positions(keep, doc), doc.clamp_min(0) // 2)


def test_scored_positions_by_hand() -> None:
    """2 x 5 tokens: position 0, a separator, a document's last token and a row's last token are not scored."""
    doc = torch.tensor([[0, 0, 0, -1, 1], [1, 1, 1, 1, 1]])
    keep = torch.tensor([[False, True, True, False, True], [False, True, True, True, True]])
    assert scored_positions(keep, doc).tolist() == [
        [False, True, False, False, False],
        [False, True, True, True, False],
    ]


@pytest.mark.parametrize("name", ["blocks.1.hook_resid_post", "blocks.3.hook_resid_post", "blocks.2.hook_mlp_out"])
def test_controls_come_out_exactly(model: Model, name: str) -> None:
    splice = make_splice()
    mean = torch.linspace(-1, 1, 32)
    saes = [linear(1.0), linear(0.0), linear(0.0, mean)]
    identity, zero, constant = downstream(model, model.site(name), saes, splice, mean, 6, 2)
    assert formulas(identity)["ce_recovered"][0] == 1.0
    assert formulas(identity)["delta_ce"][0] == 0.0
    assert formulas(identity)["kl"][0] == pytest.approx(0.0, abs=1e-6)
    assert formulas(zero)["ce_recovered"][0] == 0.0
    assert formulas(constant)["ce_recovered_mean"][0] == 0.0
    assert zero.n.sum() == int(splice.scored.sum())
    assert (identity.n == zero.n).all()


def test_cross_entropy_equals_the_plain_model(model: Model) -> None:
    splice = make_splice()
    (got,) = downstream(model, model.site("blocks.1.hook_resid_post"), [linear(0.5)], splice, torch.zeros(32), 6, 2)
    with torch.no_grad():
        logits = model.lm(input_ids=splice.tokens).logits
    targets = torch.roll(splice.tokens, -1, 1)
    expected = cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    assert formulas(got)["ce_clean"][0] == pytest.approx(float(expected[splice.scored].mean()), rel=1e-5)
    per_group = [float((expected * splice.scored)[splice.group == g].sum()) for g in range(6)]
    assert got.clean == pytest.approx(np.array(per_group), rel=1e-4)


def test_positions_that_are_not_kept_pass_through_in_every_arm(model: Model) -> None:
    """With nothing kept but one position a row, every arm differs from the clean run only through that position."""
    splice = make_splice()
    keep = torch.zeros_like(splice.keep)
    keep[:, 12] = True
    scored = splice.scored & (torch.arange(20) < 12)  # before the edit: causality leaves these as they were
    only = Splice(splice.tokens, keep, scored, splice.group)
    (got,) = downstream(model, model.site("blocks.1.hook_resid_post"), [linear(0.0)], only, torch.zeros(32), 6, 2)
    values = formulas(got)
    assert values["ce_zero"][0] == values["ce_mean"][0] == values["ce_sae"][0] == values["ce_clean"][0]


def test_results_do_not_depend_on_the_batch(model: Model) -> None:
    splice = make_splice()
    site = model.site("blocks.1.hook_resid_post")
    a, b = (formulas(downstream(model, site, [linear(0.7)], splice, torch.ones(32), 6, rows)[0]) for rows in (1, 6))
    for name in a:
        assert a[name][0] == pytest.approx(b[name][0], rel=1e-5, abs=1e-7)


def test_a_sink_gets_every_firing_with_the_decoder_norm_folded_in() -> None:
    """Tokens are numbered over the batches; the second SAE has no sink; the sums are the same with and without."""
    x = torch.zeros(3, 32)
    x[0, 1], x[2, 0], x[2, 5] = 2.0, 3.0, 0.5
    sae = Sae("linear", Linear(1.0, torch.zeros(32)), {"W_dec": 2 * torch.eye(32)})
    got: list[list[tuple[int, int, float]]] = []
    batches = [(x[:2], torch.tensor([0, 0])), (x[2:], torch.tensor([1]))]

    def sink(token: np.ndarray, feature: np.ndarray, value: np.ndarray) -> None:
        assert value.dtype == np.float32
        got.append(list(zip(token.tolist(), feature.tolist(), value.tolist(), strict=True)))

    _, (with_sink, without) = accumulate([sae, sae], batches, 2, sinks=[sink, None])
    assert got == [[(0, 1, 4.0)], [(2, 0, 6.0), (2, 5, 1.0)]]
    assert with_sink.count.tolist() == without.count.tolist() == [1, 1, 0, 0, 0, 1, *[0] * 26]
    assert with_sink.peak[:6].tolist() == [6.0, 4.0, 0.0, 0.0, 0.0, 1.0]


def test_documents_are_folded_whole() -> None:
    doc = torch.arange(3000).repeat_interleave(2) + 7
    group, groups = document_groups(doc)
    assert groups == MAX_GROUPS
    assert group.max() == MAX_GROUPS - 1
    assert all(len(group[doc == d].unique()) == 1 for d in (7, 500, 3000))
    assert document_groups(torch.tensor([5, 5, 9]))[0].tolist() == [0, 0, 1]
