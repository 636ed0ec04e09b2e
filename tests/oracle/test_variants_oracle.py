"""Loss and every gradient against independent implementations: sae-lens and dictionary-learning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from monosem.kernels import cpu, sparse
from monosem.variants import Step, Weights, make_variant

pytestmark = pytest.mark.oracle

D_IN, D_SAE, N = 16, 48, 64
FREE = "W_enc b_enc W_dec b_dec"
GATED = "W_enc b_gate b_mag r_mag W_dec b_dec"


TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-5}


@pytest.fixture(params=[torch.float64, torch.float32], ids=["reference", "kernels"], autouse=True)
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """Run every test by the references, in float64, and by the kernels, which are for float32."""
    if request.param == torch.float32:
        monkeypatch.setattr(sparse, "SMALL", 0)
        monkeypatch.setattr(sparse, "DENSE_TOP_ABOVE", 1.0)
        monkeypatch.setattr(cpu, "DENSE_ABOVE", 1.0)
    return request.param


def draw(names: str, dtype: torch.dtype, *, unit: bool = False) -> tuple[Weights, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)}
    w = {
        name: 0.4 * torch.randn(shapes.get(name, (D_SAE,)), generator=generator, dtype=torch.float64)
        for name in names.split()
    }
    if unit:
        w["W_dec"] /= w["W_dec"].norm(dim=1, keepdim=True)
    x = torch.randn((N, D_IN), generator=generator, dtype=torch.float64)
    return {name: weight.to(dtype).requires_grad_() for name, weight in w.items()}, x.to(dtype)


def assert_same(
    variant: str, hyper: dict, w: Weights, x: Tensor, step: Step, loss: Tensor, theirs: dict[str, Tensor]
) -> None:
    """Compare our loss and gradients with `loss` and the gradients of `theirs`, transposed where they are."""
    ours = make_variant(variant, hyper).loss(w, x, step).total
    tolerance = TOLERANCE[x.dtype]
    torch.testing.assert_close(ours, loss.to(x.dtype), rtol=tolerance, atol=0)
    ours.backward()
    loss.backward()
    for name, weight in w.items():
        grad, expected = weight.grad, theirs[name].grad
        assert grad is not None
        assert expected is not None
        if expected.shape != grad.shape:
            expected = expected.T
        torch.testing.assert_close(grad, expected, rtol=0, atol=tolerance * float(expected.abs().max()), msg=name)


# --------------------------------------------------------------------------------------------- sae-lens


def saelens_step(x: Tensor, l1: float) -> Any:
    saes = pytest.importorskip("sae_lens.saes.sae")
    return saes.TrainStepInput(
        sae_in=x, coefficients={"l1": l1}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False
    )


def saelens_sae(kind: str, w: Weights, **config: Any) -> Any:
    sae_lens = pytest.importorskip("sae_lens")
    config = {
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": str(w["W_enc"].dtype).removeprefix("torch."),
        "device": "cpu",
        **config,
    }
    sae = getattr(sae_lens, f"{kind}TrainingSAE")(getattr(sae_lens, f"{kind}TrainingSAEConfig")(**config))
    sae.load_state_dict({name: weight.detach().clone() for name, weight in w.items()})
    return sae


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("kind", "variant", "names"), [("Standard", "standard", FREE), ("Gated", "gated", GATED)])
def test_saelens_loss(kind: str, variant: str, names: str, centred: bool, dtype: torch.dtype) -> None:
    w, x = draw(names, dtype)
    sae = saelens_sae(kind, w, apply_b_dec_to_input=centred)
    loss = sae.training_forward_pass(saelens_step(x, 2.0)).loss
    hyper = {"l1_coefficient": 2, "subtract_b_dec": centred}
    assert_same(variant, hyper, w, x, Step(), loss, dict(sae.named_parameters()))


def test_saelens_topk_forward(dtype: torch.dtype) -> None:
    w, x = draw(FREE, dtype, unit=True)
    sae = saelens_sae("TopK", w, k=5, apply_b_dec_to_input=True, rescale_acts_by_decoder_norm=False)
    variant = make_variant("topk", {"k": 5})
    codes = variant.encode(w, x)
    torch.testing.assert_close(codes.dense(), sae.encode(x), rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)
    torch.testing.assert_close(variant.decode(w, codes), sae(x), rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)
    assert codes.l0() == 5


def test_saelens_topk_loss_without_dead_features(dtype: torch.dtype) -> None:
    w, x = draw(FREE, dtype, unit=True)
    sae = saelens_sae("TopK", w, k=5, apply_b_dec_to_input=True, rescale_acts_by_decoder_norm=False)
    loss = sae.training_forward_pass(saelens_step(x, 0.0)).loss
    assert_same("topk", {"k": 5}, w, x, Step(variance=1.0), loss, dict(sae.named_parameters()))


# --------------------------------------------------------------------------------------------- dictionary-learning


def parameters(module: Any, names: dict[str, str], w: Weights) -> dict[str, Tensor]:
    """Give the module our weights, transposed where its layout is, and return its parameters under our names."""
    theirs = {ours: module.get_parameter(name) for ours, name in names.items()}
    for ours, parameter in theirs.items():
        weight = w[ours].detach()
        parameter.data = (weight if weight.dim() == 1 else weight.T).clone()
    return theirs


def test_dictionary_learning_gated(dtype: torch.dtype) -> None:
    trainers = pytest.importorskip("dictionary_learning.trainers.gdm")
    w, x = draw(GATED, dtype, unit=True)
    trainer = trainers.GatedSAETrainer(
        steps=2000,
        activation_dim=D_IN,
        dict_size=D_SAE,
        layer=0,
        lm_name="",
        l1_penalty=2.0,
        sparsity_warmup_steps=50,
        device="cpu",
    )
    names = {
        "W_enc": "encoder.weight",
        "W_dec": "decoder.weight",
        "b_dec": "decoder_bias",
        "b_gate": "gate_bias",
        "b_mag": "mag_bias",
        "r_mag": "r_mag",
    }
    theirs = parameters(trainer.ae, names, w)
    hyper = {"mode": "paper", "l1_coefficient": 2, "l1_warmup": 0.025}
    assert_same("gated", hyper, w, x, Step(index=20, total=2000), trainer.loss(x, step=20), theirs)


@pytest.mark.parametrize("n_dead", [0, 3, 20])
def test_dictionary_learning_topk(n_dead: int, dtype: torch.dtype) -> None:
    trainers = pytest.importorskip("dictionary_learning.trainers.top_k")
    w, x = draw(FREE, dtype, unit=True)
    w["b_enc"].data[:n_dead] -= 2.0  # rarely selected, but often positive: AuxK has something to do
    trainer = trainers.TopKTrainer(
        steps=2000, activation_dim=D_IN, dict_size=D_SAE, k=5, layer=0, lm_name="", auxk_alpha=0.5, device="cpu"
    )
    names = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "b_dec"}
    theirs = parameters(trainer.ae, names, w)
    silent = torch.where(torch.arange(D_SAE) < n_dead, 20_000_000, 0)
    trainer.num_tokens_since_fired = silent.clone()
    hyper = {"k": 5, "auxk": True, "auxk_alpha": 0.5, "k_aux": D_IN // 2}
    step = Step(variance=1.0, silent_tokens=silent)
    assert_same("topk", hyper, w, x, step, trainer.loss(x, step=0), theirs)
    assert (make_variant("topk", hyper).loss(w, x, step).terms["auxk"] > 0) == (n_dead > 0)
    assert trainer.dead_features == int(step.dead(make_variant("topk", hyper).encode(w, x)).sum())


def test_dictionary_learning_topk_recipe() -> None:
    trainers = pytest.importorskip("dictionary_learning.trainers.top_k")
    for d_sae in (512, 2**15):
        trainer = trainers.TopKTrainer(steps=2000, activation_dim=4, dict_size=d_sae, k=5, layer=0, lm_name="")
        assert make_variant("topk", {"k": 5}).recipe(d_sae).lr == pytest.approx(trainer.lr)


def test_dictionary_learning_geometric_median() -> None:
    trainers = pytest.importorskip("dictionary_learning.trainers.top_k")
    points = torch.randn((200, 6), generator=torch.Generator().manual_seed(0)).exp()
    b_dec = make_variant("topk", {"k": 1}).init(6, 2, torch.Generator(), points)["b_dec"]
    torch.testing.assert_close(b_dec, trainers.geometric_median(points), rtol=0, atol=1e-5)
