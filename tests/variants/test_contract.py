"""What every variant must do, whatever its mathematics; variants are found by their file names."""

from __future__ import annotations

import ast
import inspect
import math
from dataclasses import FrozenInstanceError, asdict, fields, replace

import pytest
import torch
from torch import Tensor

from monosem.formats.saelens import EXPECTED
from monosem.kernels import DenseCodes, RaggedCodes, SparseCodes
from monosem.types import UserError
from monosem.variants import KSparse, Step, Variant, Weights, make_variant, variant_class, variant_names

D_IN, D_SAE, N = 6, 20, 33
SHAPES = {
    "W_enc": (D_IN, D_SAE),
    "W_dec": (D_SAE, D_IN),
    "b_dec": (D_IN,),
    **dict.fromkeys(("b_enc", "b_gate", "b_mag", "r_mag", "threshold"), (D_SAE,)),
    "penalty_scale": (),
    "penalty_sums": (10, 2),
}
SETTINGS = {
    "standard": [{}, {"dead": "ghost"}, {"subtract_b_dec": True}],
    "tanh": [{}, {"tanh_scale": 3.0}, {"subtract_b_dec": True}],
    "gated": [{}, {"mode": "norm_ff"}, {"mode": "paper"}],
    "topk": [
        {"k": 4},
        {"k": 4, "auxk": True},
        {"k": 4, "auxk": True, "aux_relu": False},
        {"k": 4, "auxk": True, "subtract_b_dec": False},
    ],
    "batchtopk": [{"k": 4}, {"k": 4, "auxk": True}, {"k": 4, "subtract_b_dec": False}],
    "matryoshka": [{"k": 4}, {"k": 4, "auxk": True, "fractions": (0.1, 1.0)}],
    "jumprelu": [{"bandwidth": 1.0}, {"bandwidth": 1.0, "subtract_b_dec": True}],
    "p_anneal": [{}, {"p_end": 0.5, "subtract_b_dec": True}, {"p_end": 1.0}],
}
BY_BATCH = {"batchtopk", "matryoshka"}  # in training, rows see each other
CASES = [(name, hyper) for name in variant_names() for hyper in SETTINGS.get(name, [{}])]
STEP = Step(silent_tokens=torch.arange(D_SAE) * 10, dead_after=100)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(name: str, hyper: dict, dtype: torch.dtype = torch.float64) -> tuple[Variant, Weights, Tensor]:
    """Return a variant, weights away from their symmetric start, and rows."""
    variant = make_variant(name, hyper)
    x = torch.randn((N, D_IN), generator=generator(1), dtype=dtype)
    w = variant.init(D_IN, D_SAE, generator(2), x.float())
    noise = generator(3)
    w = {key: (v + 0.2 * torch.randn(v.shape, generator=noise)).to(dtype) for key, v in w.items()}
    return variant, {key: v.abs() if key == "threshold" else v for key, v in w.items()}, x


def test_variants_are_found() -> None:
    assert {"standard", "tanh", "gated", "topk", *BY_BATCH, "jumprelu", "p_anneal"} <= set(variant_names())


@pytest.mark.parametrize(("name", "hyper"), CASES)
def test_settings_are_data(name: str, hyper: dict) -> None:
    variant = make_variant(name, hyper)
    assert variant == make_variant(name, hyper)
    assert hash(variant) == hash(make_variant(name, hyper))
    assert make_variant(name, asdict(variant)) == variant
    assert asdict(variant).keys() == {f.name for f in fields(variant)}
    first = fields(variant)[0].name
    with pytest.raises(FrozenInstanceError):
        setattr(variant, first, 3)
    assert replace(variant, **asdict(variant)) == variant
    assert name.replace("_", "") in type(variant).__name__.lower()
    assert type(variant).__doc__
    with pytest.raises(TypeError):
        type(variant)(1)  # type: ignore[call-arg]


@pytest.mark.parametrize(("name", "hyper"), CASES)
def test_start(name: str, hyper: dict) -> None:
    variant = make_variant(name, hyper)
    w = variant.init(D_IN, D_SAE, generator())
    assert {key: tuple(v.shape) for key, v in w.items()} == {key: SHAPES[key] for key in w}
    assert {"W_enc", "W_dec", "b_dec"} <= w.keys()
    assert all(v.dtype == torch.float32 and v.isfinite().all() and v.is_contiguous() for v in w.values())
    assert len({v.untyped_storage().data_ptr() for v in w.values()}) == len(w)  # no shared memory
    again = variant.init(D_IN, D_SAE, generator())
    assert all(torch.equal(w[key], again[key]) for key in w)
    assert not torch.equal(w["W_dec"], variant.init(D_IN, D_SAE, generator(9))["W_dec"])
    if variant.constraint() == "unit":
        torch.testing.assert_close(w["W_dec"].norm(dim=1), torch.ones(D_SAE))


@pytest.mark.parametrize(("name", "hyper"), CASES)
@pytest.mark.parametrize("n", [1, N])
def test_shapes_and_gradients(name: str, hyper: dict, n: int) -> None:
    variant, w, x = make(name, hyper)
    w = {key: v.requires_grad_(key not in variant.buffers) for key, v in w.items()}
    loss = variant.loss(w, x[:n], STEP)
    assert isinstance(loss.codes, DenseCodes | SparseCodes | RaggedCodes)
    assert loss.codes.n_tokens == n
    assert loss.codes.dense().shape == (n, D_SAE)
    assert variant.decode(w, loss.codes).shape == (n, D_IN)
    assert loss.codes.fired().shape == (D_SAE,)
    assert all(term.shape == () for term in loss.terms.values())
    torch.testing.assert_close(loss.total, sum(loss.terms.values(), torch.zeros((), dtype=x.dtype)))
    trained = [key for key in w if key not in variant.buffers]
    grads = torch.autograd.grad(loss.total, [w[key] for key in trained], allow_unused=True)
    for key, grad in zip(trained, grads, strict=True):
        assert grad is not None, key
        assert grad.shape == w[key].shape
        assert grad.isfinite().all()
        assert grad.any() or n == 1, key


@pytest.mark.parametrize(("name", "hyper"), CASES)
def test_codes_are_never_negative_and_belong_to_the_loss(name: str, hyper: dict) -> None:
    variant, w, x = make(name, hyper)
    codes = variant.encode(w, x)
    assert (codes.dense() >= 0).all()
    assert codes.l0() > 0
    assert torch.equal(codes.fired(), (codes.dense() > 0).any(0))
    torch.testing.assert_close(codes.l0(), (codes.dense() > 0).sum() / N)
    trained = variant.loss(w, x, STEP).codes.dense()
    assert (trained >= 0).all()
    if name not in BY_BATCH:
        assert torch.equal(codes.dense(), trained)
    torch.testing.assert_close(variant.decode(w, codes), codes.dense() @ w["W_dec"] + w["b_dec"])


@pytest.mark.parametrize(("name", "hyper"), [case for case in CASES if case[0] in BY_BATCH])
def test_the_batch_rule_is_the_inference_rule_with_the_threshold_of_the_batch(name: str, hyper: dict) -> None:
    variant, w, x = make(name, hyper)
    w["threshold"].zero_()
    loss = variant.loss(w, x, STEP)
    trained = loss.codes.dense()
    assert (trained > 0).sum() == N * hyper["k"]
    theta = variant.settle(w, loss, STEP)["threshold"]
    torch.testing.assert_close(theta, trained[trained > 0].min().expand(D_SAE))
    below = {**w, "threshold": torch.nextafter(theta, torch.zeros_like(theta))}
    assert torch.equal(variant.encode(below, x).dense(), trained)
    at = variant.encode({**w, "threshold": theta}, x).dense()
    assert (at > 0).sum() == N * hyper["k"] - 1  # greater than the threshold, not equal to it


@pytest.mark.parametrize(("name", "hyper"), CASES)
def test_what_settles(name: str, hyper: dict) -> None:
    """Settling changes no weights itself, and gives tensors that fit; what isn't saved is needed by neither verb."""
    variant, w, x = make(name, hyper)
    before = {key: v.clone() for key, v in w.items()}
    loss = variant.loss(w, x, STEP)
    for step in (STEP, Step(0, 1000), Step(169, 1000), Step(999, 1000)):
        settled = variant.settle(w, loss, step)
        assert settled.keys() <= w.keys()
        assert all(v.shape == w[key].shape and v.dtype == w[key].dtype for key, v in settled.items())
        assert all(v.isfinite().all() for v in settled.values())
        assert all(torch.equal(w[key], before[key]) for key in w)
    assert set(variant.scratch) <= set(variant.buffers) <= w.keys()
    saved = {key: v for key, v in w.items() if key not in variant.scratch}
    assert saved.keys() == set(EXPECTED[variant.architecture])
    assert torch.equal(variant.encode(saved, x).dense(), variant.encode(w, x).dense())
    assert variant.loss(saved, x, STEP).total.isfinite()


@pytest.mark.parametrize(("name", "hyper"), CASES)
def test_rows_do_not_see_each_other(name: str, hyper: dict) -> None:
    variant, w, x = make(name, hyper)
    alone = torch.cat([variant.encode(w, row[None]).dense() for row in x])
    torch.testing.assert_close(variant.encode(w, x).dense(), alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "hyper"), CASES)
def test_all_negative_rows(name: str, hyper: dict) -> None:
    """No feature is active: the reconstruction is b_dec and nothing becomes NaN."""
    variant, w, x = make(name, hyper)
    w = {key: v - 100 if key in ("b_enc", "b_gate", "b_mag") else v for key, v in w.items()}
    w = {key: v.requires_grad_(key not in variant.buffers) for key, v in w.items()}
    loss = variant.loss(w, x, STEP)
    assert variant.settle(w, loss, STEP).keys() <= {"threshold"} - set(variant.buffers)  # nothing to learn from it
    assert loss.codes.l0() == 0
    torch.testing.assert_close(variant.decode(w, loss.codes), w["b_dec"].expand(N, -1))
    loss.total.backward()
    assert loss.total.isfinite()
    assert all(v.grad is None or v.grad.isfinite().all() for v in w.values())


@pytest.mark.parametrize(("name", "hyper"), CASES)
def test_equal_rows(name: str, hyper: dict) -> None:
    """A batch without variance has a finite loss."""
    variant, w, x = make(name, hyper)
    assert variant.loss(w, x[:1].expand(5, -1), STEP).total.isfinite()


@pytest.mark.parametrize(
    ("name", "hyper"),
    [case for case in CASES if case[1].get("dead") != "ghost"],  # exp isn't homogeneous
)
@pytest.mark.parametrize("s", [0.5, 7.0])
def test_scale_covariance(name: str, hyper: dict, s: float) -> None:
    """Scaling rows, biases and coefficient by s scales the loss by s^2; those of TopK's kind are relative."""
    variant, w, x = make(name, hyper)
    known = asdict(variant)
    powers = {"l1_coefficient": 2 - known.get("p_end", 1), "tanh_scale": -1, "l0_coefficient": 2}
    changed = replace(variant, **{key: known[key] * s**power for key, power in powers.items() if key in known})
    same = ("W_enc", "W_dec", "r_mag", *variant.scratch)
    scaled = {key: (v if key in same else s * v) for key, v in w.items()}
    before, after = variant.loss(w, x, STEP).total, changed.loss(scaled, s * x, STEP).total
    relative = isinstance(variant, KSparse)
    exact = known.get("p_end", 1) == 1  # else 1e-8 is added to activations
    torch.testing.assert_close(after, before * (1 if relative else s**2), rtol=1e-9 if exact else 1e-6, atol=0)


@pytest.mark.parametrize(("name", "hyper"), CASES)
def test_impossible_widths_are_refused(name: str, hyper: dict) -> None:
    variant = make_variant(name, hyper)
    variant.check(D_IN, D_SAE)
    for d_in, d_sae, word in [(0, D_SAE, "d_in = 0"), (D_IN, 0, "d_sae = 0"), (-1, D_SAE, "d_in = -1")]:
        with pytest.raises(UserError, match=word):
            variant.check(d_in, d_sae)


@pytest.mark.parametrize(
    ("name", "hyper", "word"),
    [
        ("standard", {"l1_coefficient": -1}, "l1_coefficient"),
        ("standard", {"l1_warmup": -0.1}, "l1_warmup"),
        ("standard", {"decoder_init_norm": 0}, "decoder_init_norm"),
        ("standard", {"dead": "resample", "resample_at": [0.5, 1.5]}, "resample_at"),
        ("tanh", {"l1_coefficient": math.nan}, "l1_coefficient"),
        ("tanh", {"tanh_scale": 0}, "tanh_scale"),
        ("gated", {"l1_coefficient": -1}, "l1_coefficient"),
        ("gated", {"decoder_init_norm": -1}, "decoder_init_norm"),
        ("gated", {"mode": "paper", "decoder_init_norm": 0.1}, "decoder_init_norm"),
        ("topk", {"k": 0}, "k = 0"),
        ("topk", {"k": D_SAE + 1}, "k = 21"),
        ("topk", {"k": 1, "auxk_alpha": -1}, "auxk_alpha"),
        ("topk", {"k": 1, "k_aux": -1}, "k_aux"),
        ("batchtopk", {"k": 0}, "k = 0"),
        ("batchtopk", {"threshold_decay": 1.0, "k": 1}, "threshold_decay"),
        ("batchtopk", {"threshold_from": -1, "k": 1}, "threshold_from"),
        ("matryoshka", {"fractions": [0.5, 0.25, 1.0], "k": 1}, "fractions"),
        ("matryoshka", {"fractions": [0.25, 0.5], "k": 1}, "fractions"),
        ("matryoshka", {"fractions": [0.01, 1.0], "k": 1}, "fractions"),
        ("matryoshka", {"fractions": [0.5, 0.51, 1.0], "k": 1}, "fractions"),
        ("matryoshka", {"fractions": [], "k": 1}, "fractions"),
        ("jumprelu", {"l0_coefficient": -1}, "l0_coefficient"),
        ("jumprelu", {"bandwidth": 0}, "bandwidth"),
        ("jumprelu", {"threshold_init": -1}, "threshold_init"),
        ("p_anneal", {"p_end": 0}, "p_end"),
        ("p_anneal", {"p_end": 1.5}, "p_end"),
        ("p_anneal", {"p_updates": 0}, "p_updates"),
        ("p_anneal", {"anneal_start": 0.9}, "anneal_start"),
        ("p_anneal", {"anneal_end": 1.1}, "anneal"),
    ],
)
def test_impossible_values_are_refused(name: str, hyper: dict, word: str) -> None:
    with pytest.raises(UserError, match=word) as error:
        make_variant(name, hyper).check(D_IN, D_SAE)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=word):
        make_variant(name, hyper).init(D_IN, D_SAE, generator())


@pytest.mark.parametrize(
    ("name", "hyper", "word"),
    [
        ("nonsense", {}, "known are .*gated.*topk"),
        ("standard", {"l1": 1}, "known are .*l1_coefficient"),
        ("standard", {"l1_coefficient": "5"}, "l1_coefficient"),
        ("standard", {"dead": "prayer"}, "dead"),
        ("topk", {"k": 2.5}, "k = 2.5"),
        ("topk", {"k": True}, "k = True"),
        ("gated", {"mode": "mixed"}, "collapses"),
        ("gated", {"mode": "other"}, "mode"),
    ],
)
def test_wrong_settings_are_refused(name: str, hyper: dict, word: str) -> None:
    with pytest.raises(UserError, match=word):
        make_variant(name, hyper)


def test_mixed_is_refused_in_python_too() -> None:
    with pytest.raises(UserError, match="collapses"):
        variant_class("gated")(mode="mixed")  # type: ignore[call-arg]


@pytest.mark.parametrize(("name", "hyper"), CASES)
def test_recipe_is_possible(name: str, hyper: dict) -> None:
    recipe = make_variant(name, hyper).recipe(2**15)
    assert 0 < recipe.lr < 1e-2
    assert 0 <= recipe.beta1 < recipe.beta2 < 1
    assert 0 <= recipe.lr_decay <= 1
    assert recipe.clip >= 0


def test_recipe_of_the_gated_paper() -> None:
    variant = make_variant("gated", {"mode": "paper"})
    recipe = variant.recipe(100)
    assert (recipe.lr, recipe.beta1, recipe.lr_warmup, recipe.clip) == (3e-4, 0.0, 1000, 0.0)
    assert variant.constraint() == "unit"
    assert variant.centres_input()
    assert not make_variant("gated", {}).centres_input()
    assert make_variant("gated", {"subtract_b_dec": True}).centres_input()
    assert make_variant("gated", {}).constraint() == "free"


@pytest.mark.parametrize("name", variant_names())
def test_files_are_short(name: str) -> None:
    """At most 60 lines of code: not counting blank lines, comments, imports and docstrings."""
    source = inspect.getsource(inspect.getmodule(variant_class(name)))  # type: ignore[arg-type]
    tree = ast.parse(source)
    skipped: set[int] = set()
    for node in ast.walk(tree):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if isinstance(node, ast.stmt) and (text or isinstance(node, ast.Import | ast.ImportFrom)):
            skipped |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(source.splitlines(), start=1)
    code = [
        line for number, line in lines if number not in skipped and line.strip() and not line.strip().startswith("#")
    ]
    assert len(code) <= 60
    assert not any("monosem.variants." in line for line in source.splitlines())  # never sideways
