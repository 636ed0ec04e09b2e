"""Ablation effects: sparsity on numbers known beforehand, exact effects against a loop over whole forward passes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from monosem.evals.ablation import effect_sparsity
from monosem.evals.ablation.effects import LOGITS, SPAN, ablate, active_features
from monosem.evals.ablation.loops import middle
from monosem.evals.ablation.positions import usable_positions
from monosem.evals.ablation.sparsity import centre, from_norms
from monosem.evals.ablation.suffix import Suffix, in_float32, start_at
from monosem.evals.ablation.table import by_document, correlation, estimate, ratio
from monosem.model import HOOKS, Model, load_model
from monosem.normaliser import Normaliser
from monosem.sae import Sae, make_sae

T, V = 16, 50_257


def normal(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(T, V))


def test_golden_gaussian_and_laplace() -> None:
    assert effect_sparsity(normal()) == pytest.approx(2 / np.pi, abs=2e-3)
    assert effect_sparsity(np.random.default_rng(1).laplace(size=(T, V))) == pytest.approx(1 / 2, abs=2e-3)


def test_golden_few_equal_entries() -> None:
    effects = np.zeros((T, V))
    effects[3, :6] = effects[9, 5:9] = -2.5
    assert effect_sparsity(effects) == pytest.approx(10 / (V * T), rel=1e-9)


def test_golden_single_row() -> None:
    effects = np.zeros((T, V))
    effects[0] = normal()[0]
    assert effect_sparsity(effects) == pytest.approx(2 / np.pi / T, abs=5e-4)


def test_constant_shifts_and_no_effect_are_undefined() -> None:
    assert np.isnan(effect_sparsity(np.arange(T, dtype=float)[:, None].repeat(V, 1)))
    assert np.isnan(effect_sparsity(np.zeros((T, 7))))
    assert np.isnan(effect_sparsity(normal()[:, :100] * 1e-9))


def test_scale_and_shifts_of_rows_change_nothing() -> None:
    effects = normal()[:, :999]
    shifts = np.linspace(-3, 5, T)[:, None]
    assert effect_sparsity(-7 * effects + shifts) == pytest.approx(effect_sparsity(effects), rel=1e-9)


def test_by_hand_with_an_even_vocabulary() -> None:
    # medians 1.5 and 0: (-1.5, -.5, .5, 6.5) and (0, 0, 0, 4): L1 = 13, L2^2 = 2.25 + .25 + .25 + 42.25 + 16 = 61
    assert effect_sparsity([[0, 1, 2, 8], [0, 0, 0, 4]]) == pytest.approx(13**2 / 61 / 8)


def test_arrays_tensors_and_batches_agree() -> None:
    effects = np.stack([normal(s)[:, :501] for s in range(3)]).astype(np.float32)
    found = effect_sparsity(torch.from_numpy(effects))
    assert found.shape == (3,)
    assert found.tolist() == pytest.approx([effect_sparsity(one) for one in effects])
    assert isinstance(effect_sparsity(effects[0]), float)


def test_a_linear_unembedding_touches_as_many_tokens_as_its_rows_do() -> None:
    unembedding = np.random.default_rng(0).normal(size=(300, 8))
    unembedding[:, 2] = 0
    unembedding[:5, 2] = [1, -1, 1, 1, -1]  # the direction e_2 is seen by q = 5 rows
    effects = np.zeros((T, 300))
    effects[0] = unembedding @ (-3.0 * np.eye(8)[2])
    assert effect_sparsity(effects) == pytest.approx(5 / (300 * T))


@pytest.mark.parametrize("v", [1, 2, 5, 6, 300, 4095, 4096, 4097, 20_001])
def test_compiled_loops_are_the_formula(v: int) -> None:
    rng = np.random.default_rng(v)
    cases = [
        rng.normal(size=(T, v)),
        rng.laplace(size=(T, v)) ** 3,
        rng.integers(0, 3, (T, v)),
        np.sort(rng.normal(size=(T, v))),
        np.where(np.arange(v) % max(1, v // 1024) == 0, 9.0, rng.normal(size=(T, v))),  # the sample misleads
        np.zeros((T, v)),
    ]
    for values in cases:
        values = values.astype(np.float32)
        kept = np.empty(v, np.float32)
        medians = [middle(row, kept) for row in values]
        assert medians == pytest.approx(np.median(values, axis=1).tolist(), rel=1e-6)
        found = from_norms(*(np.array(x) for x in centre(torch.from_numpy(values.copy()))), values.shape)
        assert float(found) == pytest.approx(effect_sparsity(values), rel=2e-5, nan_ok=True)


BASE: dict[str, Any] = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
LLAMA_LIKE = {**BASE, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 8}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", LLAMA_LIKE),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**LLAMA_LIKE, "sliding_window": 8}),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": 97, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    ),
    "gpt_neox": (
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        {**BASE, "intermediate_size": 48, "max_position_embeddings": 64},
    ),
    "falcon": ("FalconConfig", "FalconForCausalLM", {**BASE, "new_decoder_architecture": False}),
}
AT = 11


@pytest.fixture(params=FAMILIES, scope="module")
def model(request: pytest.FixtureRequest) -> Model:
    return make_model(request.param)


def make_model(family: str) -> Model:
    config_name, class_name, settings = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, config_name)(**settings, initializer_range=0.2)
    return Model(getattr(transformers, class_name)(config), None, family, {})


TOKENS = torch.randint(1, 97, (1, 40), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def naive(model: Model, site_name: str, removed: torch.Tensor, tokens: torch.Tensor, at: int) -> torch.Tensor:
    """Return the effects on the logits, one whole forward pass a vector, [m, SPAN, V]."""
    site = model.site(site_name)
    clean = model.run(tokens)[0, at : at + SPAN]
    out = []
    for vector in removed:

        def edit(x: torch.Tensor, vector: torch.Tensor = vector) -> torch.Tensor:
            x = x.clone()
            x[:, at] -= vector
            return x

        out.append(model.run(tokens, site, edit)[0, at : at + SPAN] - clean)
    return torch.stack(out)


def suffix_of(model: Model, site_name: str, tokens: torch.Tensor = TOKENS, at: int = AT) -> Suffix:
    site, sequence = model.site(site_name), tokens[:, : at + SPAN + 1]
    return Suffix(model, site, sequence, at, start_at(model, site, sequence, at))


SITES = [f"blocks.{layer}.{hook}" for layer in (0, 1, 2) for hook in HOOKS]


@pytest.mark.parametrize("site", SITES)
def test_effects_are_those_of_whole_forward_passes(model: Model, site: str) -> None:
    suffix = suffix_of(model, site)
    removed = torch.randn(5, len(suffix.start.x), generator=torch.Generator().manual_seed(2))
    expected = naive(model, site, removed, TOKENS, AT)
    logits = suffix.logits(torch.cat([torch.zeros_like(removed[:1]), removed]))
    assert (logits[1:] - logits[0] - expected).abs().max() < 1e-4
    assert expected.abs().max() > 0.01
    with torch.no_grad():  # nothing stays behind
        assert torch.equal(model.run(TOKENS), model.run(TOKENS))


@pytest.mark.parametrize("site", ["transformer.wte", "transformer.ln_f"])
def test_module_paths_are_sites(site: str) -> None:
    model = make_model("gpt2")
    removed = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
    logits = suffix_of(model, site).logits(torch.cat([torch.zeros(1, 32), removed]))
    assert (logits[1:] - logits[0] - naive(model, site, removed, TOKENS, AT)).abs().max() < 1e-4


def make_features(variant: str, kind: str, d_in: int = 32) -> Sae:
    hyper = {"k": 8} if variant == "topk" else {}
    sae = make_sae(variant, d_in=d_in, d_sae=64, **hyper)
    generator = torch.Generator().manual_seed(3)
    for name in ("W_dec", "b_dec"):
        sae.weights[name] = sae.weights[name] + 0.3 * torch.randn(sae.weights[name].shape, generator=generator)
    return replace(sae, normaliser=Normaliser(kind, 1.0 if kind == "none" else 1.7))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("variant", ["standard", "gated", "topk"])
@pytest.mark.parametrize("kind", ["none", "mean_norm", "token_const", "token_ln"])
def test_what_is_removed_is_the_features_part_of_the_reconstruction(variant: str, kind: str) -> None:
    """Zeroing a feature in the codes, and nothing else, changes the raw reconstruction by what is removed."""
    sae = make_features(variant, kind)
    x = 3 * torch.randn(4, 32, generator=torch.Generator().manual_seed(4)) + 1
    active = active_features(sae, x)
    normalised, undo = sae.normaliser.apply(x)
    codes = sae.variant.encode(sae.weights, normalised).dense()
    assert len(active.at) == int((codes > 0).sum())
    norms = sae.weights["W_dec"].norm(dim=1)
    for at, feature, activation, added in zip(
        active.at.tolist(), active.feature.tolist(), active.activation, active.added, strict=True
    ):
        less = codes.clone()
        less[at, feature] = 0

        def decoded(z: torch.Tensor) -> torch.Tensor:
            return undo(z @ sae.weights["W_dec"] + sae.weights["b_dec"])

        torch.testing.assert_close((decoded(codes) - decoded(less))[at], added, atol=1e-4, rtol=1e-4)
        assert activation == pytest.approx(float(codes[at, feature] * norms[feature]), rel=1e-5)
    if variant == "topk":
        assert np.bincount(active.at).tolist() == [8] * 4


@pytest.mark.parametrize("variant", ["gated", "topk"])
def test_ablations_of_features_on_normalised_inputs(variant: str) -> None:
    model, site = make_model("llama"), "blocks.1.hook_resid_post"
    suffix = suffix_of(model, site)
    active = active_features(make_features(variant, "token_ln"), suffix.start.x[None])
    expected = naive(model, site, active.added, TOKENS, AT).numpy()
    targets = TOKENS[0, AT + 1 : AT + SPAN + 1]
    with torch.no_grad():
        clean = model.run(TOKENS)[0, AT : AT + SPAN]
    loss = torch.nn.functional.cross_entropy
    for effect, d in zip(ablate(suffix, active.added), expected, strict=True):
        assert effect.sparsity == pytest.approx(effect_sparsity(d), abs=1e-4)
        centred = d - np.median(d, axis=1, keepdims=True)
        assert effect.size == pytest.approx(np.linalg.norm(centred), rel=1e-3)
        ablated = clean + torch.from_numpy(d)
        assert effect.loss == pytest.approx(float(loss(ablated, targets) - loss(clean, targets)), abs=1e-5)
        for name, change in (("here", -centred[0]), ("later", -centred[1:].mean(0))):
            raised, lowered = effect.top[f"raised_{name}"], effect.top[f"lowered_{name}"]
            assert raised.tokens[0] == change.argmax()
            assert lowered.tokens[0] == change.argmin()
            assert raised.by == pytest.approx(np.sort(change)[::-1][:10].tolist(), abs=1e-4)
            assert lowered.by == pytest.approx(np.sort(change)[:10].tolist(), abs=1e-4)


def test_small_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    suffix = suffix_of(make_model("llama"), "blocks.0.hook_mlp_out")
    removed = torch.randn(7, 32, generator=torch.Generator().manual_seed(5))
    whole = [effect.sparsity for effect in ablate(suffix, removed)]
    monkeypatch.setattr("monosem.evals.ablation.effects.LOGITS", 3 * SPAN * 97)
    assert [effect.sparsity for effect in ablate(suffix, removed)] == pytest.approx(whole, rel=1e-4)
    assert LOGITS > 3 * SPAN * 97


def test_nothing_removed_is_no_effect() -> None:
    suffix = suffix_of(make_model("llama"), "blocks.1.hook_resid_post")
    (effect,) = ablate(suffix, torch.zeros(1, 32))
    assert np.isnan(effect.sparsity)
    assert (effect.size, effect.loss) == (0, 0)


@pytest.mark.parametrize("site", ["blocks.0.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.2.hook_resid_post"])
def test_first_order_is_the_exact_effect_of_a_small_removal(model: Model, site: str) -> None:
    """The loss of 16 ablations, relative to the step, comes ever nearer to the gradient's product."""
    suffix = suffix_of(model, site)
    vectors = torch.randn(16, len(suffix.start.x), generator=torch.Generator().manual_seed(6))
    vectors *= suffix.start.x.norm() / vectors.norm(dim=1, keepdim=True)
    slopes = vectors.double() @ suffix.gradient().double()
    errors = []
    for step in (1.0, 0.1, 0.01):
        with torch.no_grad():
            loss = suffix.loss(suffix.logits(torch.cat([0 * vectors[:1], step * vectors])))
        errors.append(float(((loss[1:] - loss[0]) / step - slopes).norm() / slopes.norm()))
    assert errors[0] > errors[1]
    assert errors[2] < 0.05
    assert errors[2] < errors[1] / 4


def test_usable_positions_by_hand() -> None:
    doc = np.zeros((3, 30), dtype=int)
    doc[1, 27:] = 1  # the text behind must be of the same document
    doc[2, 3] = -1
    keep = np.ones((3, 30), dtype=bool)
    keep[0, 9] = False
    usable = usable_positions(keep, doc)
    assert np.flatnonzero(usable[0]).tolist() == [8, 10, 11, 12, 13]  # 13 + 16 is the last token
    assert np.flatnonzero(usable[1]).tolist() == [8, 9, 10]
    assert np.flatnonzero(usable[2]).tolist() == [8, 9, 10, 11, 12, 13]
    assert not usable_positions(keep[:, :24], doc[:, :24]).any()


def test_intervals_resample_documents() -> None:
    doc = np.array([4, 4, 7, 9])
    sums = by_document(doc, np.array([1.0, 2, 3, 4]), np.ones(4))
    assert sums.tolist() == [[3, 2], [3, 1], [4, 1]]
    found = estimate(ratio, sums, 500, 4)
    assert found is not None
    assert found.value == 2.5
    assert 1.5 <= found.low < 2.5 < found.high <= 4
    assert estimate(ratio, sums[:1], 500, 1) is None
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)
    y = 0.6 * x + 0.8 * rng.normal(size=400)
    group = np.arange(400) // 2
    found = estimate(correlation, by_document(group, np.ones(400), x, y, x * x, y * y, x * y), 1000, 400)
    assert found is not None
    assert found.value == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert found.low < 0.6 < found.high
    assert found.high - found.low < 0.2


def test_a_model_in_bfloat16_is_copied_into_float32(tiny_lm: Path) -> None:
    model = load_model(str(tiny_lm), dtype="bfloat16", device="cpu")
    other = in_float32(model)
    assert (model.dtype, other.dtype) == (torch.bfloat16, torch.float32)
    assert in_float32(other) is other


@pytest.mark.lm
@pytest.mark.slow
def test_the_embedded_model() -> None:
    model = load_model("", dtype="float32", device="cpu")
    text = (
        "The committee met in Geneva on Tuesday to discuss the budget, and the chair said that it would be larger. " * 2
    )
    tokens = torch.tensor([model.tokenizer.encode(text)])
    site, at = "blocks.10.hook_resid_post", 12
    suffix = suffix_of(model, site, tokens, at)
    removed = torch.randn(3, 576, generator=torch.Generator().manual_seed(7))
    expected = naive(model, site, removed, tokens, at)
    with torch.no_grad():
        logits = suffix.logits(torch.cat([torch.zeros_like(removed[:1]), removed]))
    assert (logits[1:] - logits[0] - expected).abs().max() < 1e-4
    for effect, d in zip(ablate(suffix, removed), expected, strict=True):
        assert effect.sparsity == pytest.approx(effect_sparsity(d), abs=1e-4)
