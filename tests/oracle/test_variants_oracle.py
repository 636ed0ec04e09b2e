"""Loss and every gradient against independent implementations: sae-lens and dictionary-learning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from monosem.autoencoder import tangential
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
        if not weight.requires_grad:  # a buffer
            continue
        grad, expected = weight.grad, theirs[name].grad
        assert grad is not None
        assert expected is not None
        if expected.shape != grad.shape:
            expected = expected.T
        torch.testing.assert_close(grad, expected, rtol=0, atol=tolerance * float(expected.abs().max()), msg=name)


# --------------------------------------------------------------------------------------------- sae-lens


def saelens_step(x: Tensor, coefficient: float) -> Any:
    saes = pytest.importorskip("sae_lens.saes.sae")
    return saes.TrainStepInput(
        sae_in=x,
        coefficients={"l1": coefficient, "l0": coefficient},
        dead_neuron_mask=None,
        n_training_steps=0,
        is_logging_step=False,
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
    state = {name: weight.detach().clone() for name, weight in w.items()}
    if "threshold" in state and "BatchTopK" in kind:
        state["topk_threshold"] = state.pop("threshold")[0].double()
    sae.load_state_dict(state)
    return sae


def with_threshold(w: Weights, value: float, **options: Any) -> Weights:
    return {**w, "threshold": torch.full((D_SAE,), value, dtype=w["W_enc"].dtype, **options)}


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


@pytest.mark.parametrize(
    ("kind", "variant", "theirs", "ours"),
    [
        ("BatchTopK", "batchtopk", {}, {}),
        ("MatryoshkaBatchTopK", "matryoshka", {"matryoshka_widths": [6, 24, 48]}, {"fractions": (0.125, 0.5, 1.0)}),
    ],
)
def test_saelens_batchtopk(kind: str, variant: str, theirs: dict, ours: dict, dtype: torch.dtype) -> None:
    """Loss, gradients, the threshold after it, and the reconstruction by the threshold."""
    w, x = draw(FREE, dtype, unit=True)
    w = with_threshold(w, 0.3)
    config = {"k": 5, "apply_b_dec_to_input": True, "rescale_acts_by_decoder_norm": False, **theirs}
    sae = saelens_sae(kind, w, **config)
    output = sae.training_forward_pass(saelens_step(x, 0.0))
    hyper = {"k": 5, "threshold_decay": 0.99, **ours}
    assert_same(variant, hyper, w, x, Step(variance=1.0), output.loss, dict(sae.named_parameters()))
    made = make_variant(variant, hyper)
    loss = made.loss(w, x, Step(variance=1.0))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(loss.codes.dense(), output.feature_acts, rtol=0, atol=tolerance)
    settled = made.settle(w, loss, Step())["threshold"]
    expected = sae.topk_threshold.to(dtype).expand(D_SAE)
    torch.testing.assert_close(settled, expected, rtol=0, atol=1e-9 if dtype == torch.float64 else 1e-6)
    inference = inference_sae(w | {"threshold": settled}, dtype, apply_b_dec_to_input=True)
    codes = made.encode(w | {"threshold": settled}, x)
    torch.testing.assert_close(codes.dense(), inference.encode(x), rtol=0, atol=tolerance)


def inference_sae(w: Weights, dtype: torch.dtype, **config: Any) -> Any:
    jumprelu = pytest.importorskip("sae_lens.saes.jumprelu_sae")
    config |= {"d_in": D_IN, "d_sae": D_SAE, "dtype": str(dtype).removeprefix("torch."), "device": "cpu"}
    sae = jumprelu.JumpReLUSAE(jumprelu.JumpReLUSAEConfig(**config))
    sae.load_state_dict({name: weight.detach().clone() for name, weight in w.items()})
    return sae


@pytest.mark.parametrize("centred", [False, True])
def test_saelens_jumprelu(centred: bool, dtype: torch.dtype) -> None:
    w, x = draw(FREE, dtype)
    generator = torch.Generator().manual_seed(1)
    w["threshold"] = torch.rand(D_SAE, generator=generator).requires_grad_()  # theirs is float32 always
    sae = saelens_sae("JumpReLU", w, apply_b_dec_to_input=centred, jumprelu_bandwidth=0.4)
    loss = sae.training_forward_pass(saelens_step(x, 2.0)).loss
    hyper = {"l0_coefficient": 2, "bandwidth": 0.4, "subtract_b_dec": centred}
    assert_same("jumprelu", hyper, w, x, Step(), loss, dict(sae.named_parameters()))
    inference = inference_sae(w, dtype, apply_b_dec_to_input=centred)
    codes = make_variant("jumprelu", hyper).encode(w, x)
    torch.testing.assert_close(codes.dense(), inference.encode(x), rtol=1e-6, atol=1e-5)


# --------------------------------------------------------------------------------------------- dictionary-learning


def parameters(module: Any, names: dict[str, str], w: Weights, *, turned: bool = True) -> dict[str, Tensor]:
    """Give the module our weights, transposed if its layout is, and return its parameters under our names."""
    theirs = {ours: module.get_parameter(name) for ours, name in names.items()}
    for ours, parameter in theirs.items():
        weight = w[ours].detach()
        parameter.data = (weight.T if turned and weight.dim() == 2 else weight).clone()
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


@pytest.mark.parametrize("n_dead", [0, 3, 20])
@pytest.mark.parametrize("name", ["batchtopk", "matryoshka"])
def test_dictionary_learning_batchtopk(name: str, n_dead: int, dtype: torch.dtype) -> None:
    """Their matryoshka loss is the mean of weighted errors; with the number of dictionaries as weight it is ours."""
    w, x = draw(FREE, dtype, unit=True)
    w["b_enc"].data[:n_dead] -= 2.0
    w = with_threshold(w, 0.3)
    hyper: dict[str, Any] = {"k": 5, "auxk": True, "auxk_alpha": 0.5, "k_aux": D_IN // 2, "threshold_decay": 0.999}
    config: dict[str, Any] = {
        "steps": 2000, "activation_dim": D_IN, "dict_size": D_SAE, "k": 5, "layer": 0, "lm_name": "", "device": "cpu"
    }  # fmt: skip
    if name == "batchtopk":
        trainers = pytest.importorskip("dictionary_learning.trainers.batch_top_k")
        trainer = trainers.BatchTopKTrainer(auxk_alpha=0.5, **config)
        names = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "b_dec"}
    else:
        trainers = pytest.importorskip("dictionary_learning.trainers.matryoshka_batch_top_k")
        groups = {"group_fractions": [0.125, 0.375, 0.5], "group_weights": [3.0] * 3}
        trainer = trainers.MatryoshkaBatchTopKTrainer(auxk_alpha=0.5, **groups, **config)
        names = {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
        hyper["fractions"] = (0.125, 0.5, 1.0)
    theirs = parameters(trainer.ae, names, w, turned=name == "batchtopk")
    trainer.ae.threshold = torch.tensor(0.3)
    silent = torch.where(torch.arange(D_SAE) < n_dead, 20_000_000, 0)
    trainer.num_tokens_since_fired = silent.clone()
    step = Step(variance=1.0, silent_tokens=silent, index=1500, total=2000)
    assert_same(name, hyper, w, x, step, trainer.loss(x, step=1500), theirs)
    made = make_variant(name, hyper)
    loss = made.loss(w, x, step)
    assert (loss.terms["auxk"] > 0) == (n_dead > 0)
    settled = made.settle(w, loss, step)["threshold"]
    torch.testing.assert_close(settled, trainer.ae.threshold.to(dtype).expand(D_SAE), rtol=0, atol=1e-6)


def test_dictionary_learning_jumprelu(dtype: torch.dtype) -> None:
    """Codes, and the gradients of the reconstruction error; their penalty is another."""
    trainers = pytest.importorskip("dictionary_learning.trainers.jumprelu")
    w, x = draw(FREE, dtype)
    generator = torch.Generator().manual_seed(1)
    w["threshold"] = torch.rand(D_SAE, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    trainer = trainers.JumpReluTrainer(
        steps=4000, activation_dim=D_IN, dict_size=D_SAE, layer=0, lm_name="", bandwidth=0.4, sparsity_penalty=0.0
    )
    theirs = parameters(trainer.ae, {name: name for name in w}, w, turned=False)
    hyper = {"l0_coefficient": 0, "bandwidth": 0.4}
    assert_same("jumprelu", hyper, w, x, Step(), trainer.loss(x, step=1), theirs)
    made = make_variant("jumprelu", hyper)
    torch.testing.assert_close(made.encode(w, x).dense(), trainer.ae.encode(x), rtol=1e-6, atol=1e-5)
    recipe = made.recipe(D_SAE)
    assert recipe.lr == trainer.optimizer.param_groups[0]["initial_lr"]
    assert (recipe.beta1, recipe.beta2) == trainer.optimizer.param_groups[0]["betas"]


def test_dictionary_learning_p_anneal(dtype: torch.dtype) -> None:
    """Over three changes of p, with unit decoder rows: loss, gradients, and the coefficient after each change."""
    trainers = pytest.importorskip("dictionary_learning.trainers.p_anneal")
    w, _ = draw(FREE, dtype, unit=True)
    trainer = trainers.PAnnealTrainer(
        steps=100, activation_dim=D_IN, dict_size=D_SAE, layer=0, lm_name="", device="cpu",
        sparsity_function="Lp^p", initial_sparsity_penalty=2.0, sparsity_warmup_steps=0, warmup_steps=1,
        anneal_start=9, anneal_end=69, p_end=0.4, n_sparsity_updates=4,
    )  # fmt: skip
    names = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "bias"}
    theirs = parameters(trainer.ae, names, w)
    # theirs changes p after the loss of a step, ours before that of the next; their first change is to p = 1
    hyper = {
        "l1_coefficient": 2,
        "l1_warmup": 0.0,
        "anneal_start": 0.1,
        "anneal_end": 0.7,
        "p_end": 0.4,
        "p_updates": 3,
    }
    made = make_variant("p_anneal", hyper | {"subtract_b_dec": True})
    buffers = {"penalty_scale": torch.tensor(1.0, dtype=dtype), "penalty_sums": torch.zeros(10, 2, dtype=dtype)}
    ps, tolerance = set(), 1e-6 if dtype == torch.float64 else 1e-4  # of 1e-8 in f^p, and of rounding
    for index in range(80):
        x = torch.randn((N, D_IN), generator=torch.Generator().manual_seed(index), dtype=torch.float64).to(dtype)
        for weight in (*w.values(), *theirs.values()):
            weight.grad = None
        ps.add(trainer.p)
        loss, step = trainer.loss(x, step=index), Step(index, 100)
        ours = made.loss(w | buffers, x, step)
        torch.testing.assert_close(ours.total, loss, rtol=tolerance, atol=0)
        with torch.no_grad():
            buffers |= made.settle(w | buffers, ours, step)
        assert 2 * float(buffers["penalty_scale"]) == pytest.approx(trainer.sparsity_coeff, rel=tolerance)
    assert sorted(ps) == pytest.approx([0.4, 0.6, 0.8, 1.0])
    ours.total.backward()
    loss.backward()
    for name in ("W_enc", "b_enc", "b_dec", "W_dec"):
        mine, other = w[name].grad, theirs[name].grad
        assert mine is not None
        assert other is not None
        other = other.T if other.dim() == 2 else other
        if name == "W_dec":  # ours has a part along the rows, which their optimiser takes out
            mine, other = (tangential(w[name].detach(), grad) for grad in (mine, other))
        torch.testing.assert_close(mine, other, rtol=0, atol=10 * tolerance * float(other.abs().max()), msg=name)


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
