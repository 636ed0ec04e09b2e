"""Sites in the module tree of several families, edits, and runs that start at the site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from monosem.evals.logits import unembed
from monosem.model import Model, load_model, model_identity, resolve_dtype
from monosem.spread import Spread
from monosem.types import UserError

BASE: dict[str, Any] = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
LLAMA_LIKE = {**BASE, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 8}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", LLAMA_LIKE),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", LLAMA_LIKE),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", LLAMA_LIKE),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", LLAMA_LIKE),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**LLAMA_LIKE, "sliding_window": 8}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {**LLAMA_LIKE, "sliding_window": 8}),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": 97, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    ),
    "gptj": (
        "GPTJConfig",
        "GPTJForCausalLM",
        {"vocab_size": 97, "n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4},
    ),
    "gpt_neo": (
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        {"vocab_size": 97, "hidden_size": 32, "num_layers": 3, "num_heads": 4, "attention_types": [[["global"], 3]]},
    ),
    "falcon": ("FalconConfig", "FalconForCausalLM", {**BASE, "new_decoder_architecture": False}),
    "gpt_neox": (
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        {**BASE, "intermediate_size": 48, "max_position_embeddings": 64},
    ),
}
HOOKS = ("hook_resid_pre", "hook_resid_post", "hook_mlp_out", "hook_attn_out", "attn.hook_z")


@pytest.fixture(params=FAMILIES, scope="module")
def model(request: pytest.FixtureRequest) -> Model:
    config_name, class_name, settings = FAMILIES[request.param]
    torch.manual_seed(0)
    lm = getattr(transformers, class_name)(getattr(transformers, config_name)(**settings))
    return Model(lm, None, request.param, {})


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(1, 97, (3, 17), generator=torch.Generator().manual_seed(1))


def test_residual_sites_are_the_models_hidden_states(model: Model, tokens: torch.Tensor) -> None:
    with torch.no_grad():
        hidden = model.lm(input_ids=tokens, output_hidden_states=True).hidden_states
    for layer in range(3):
        assert torch.equal(model.activations(tokens, model.site(f"blocks.{layer}.hook_resid_pre")), hidden[layer])
    for layer in range(2):  # the last entry of hidden_states is behind the final norm
        assert torch.equal(model.activations(tokens, model.site(f"blocks.{layer}.hook_resid_post")), hidden[layer + 1])


def test_attention_and_mlp_add_up_to_the_residual_stream(model: Model, tokens: torch.Tensor) -> None:
    parts = {h: model.activations(tokens, model.site(f"blocks.1.{h}")) for h in HOOKS}
    total = parts["hook_resid_pre"] + parts["hook_attn_out"] + parts["hook_mlp_out"]
    assert torch.allclose(total, parts["hook_resid_post"], atol=1e-5)
    assert parts["attn.hook_z"].shape == (3, 17, 32)


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_identity_edit_changes_no_bit_and_the_prefix_saves_no_accuracy(
    model: Model, tokens: torch.Tensor, hook: str, layer: int
) -> None:
    site = model.site(f"blocks.{layer}.{hook}")
    prefix = model.prefix(tokens, site)
    with torch.no_grad():
        clean = model.run(tokens)
        assert torch.equal(model.run(tokens, site, lambda x: x), clean)
        assert torch.equal(model.run(tokens, site, lambda x: x, prefix), clean)
        whole = model.run(tokens, site, lambda x: x * 0.5)
        assert not torch.equal(whole, clean)
        assert torch.equal(model.run(tokens, site, lambda x: x * 0.5, prefix), whole)
        wanted = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(2)) < 0.5
        picked = model.run(tokens, site, lambda x: x * 0.5, prefix, rows=wanted)
        assert torch.allclose(picked, whole[wanted], atol=1e-5)
        assert torch.equal(model.run(tokens), clean)  # nothing stays behind


def test_blocks_after_the_site_do_not_run(model: Model, tokens: torch.Tensor) -> None:
    ran = []
    hooks = [b.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(model.blocks)]
    model.activations(tokens, model.site("blocks.1.hook_mlp_out"))
    assert ran == [0]
    ran.clear()
    prefix = model.prefix(tokens, model.site("blocks.1.hook_resid_post"))
    assert prefix.resume == 2
    for hook in hooks:
        hook.remove()


def test_module_path_is_a_site(model: Model, tokens: torch.Tensor) -> None:
    path = next(name for name, module in model.lm.named_modules() if module is model.blocks[1])
    site = model.site(path)
    assert torch.equal(
        model.activations(tokens, site), model.activations(tokens, model.site("blocks.1.hook_resid_post"))
    )
    with torch.no_grad():
        assert torch.equal(
            model.run(tokens, site, lambda x: x * 2, model.prefix(tokens, site)),
            model.run(tokens, site, lambda x: x * 2),
        )


@pytest.mark.parametrize(
    "name", ["blocks.3.hook_resid_post", "blocks.1.hook_nothing", "nowhere", "", "blocks.x.hook_z"]
)
def test_unknown_site_lists_what_there_is(model: Model, name: str) -> None:
    with pytest.raises(UserError, match=r"site = .*blocks"):
        model.site(name)


def test_load_refuses_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such model folder"):
        load_model(str(tmp_path / "missing"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"can't be loaded"):
        load_model(str(tmp_path))


def test_identity_is_known_without_loading(tiny_lm: Path) -> None:
    loaded = load_model(str(tiny_lm), dtype="float32", device="cpu")
    assert loaded.identity == model_identity(str(tiny_lm), dtype="float32", device="cpu")


def test_auto_dtype_is_native_bfloat16_or_float32() -> None:
    assert resolve_dtype("auto", torch.device("cpu")) in (torch.bfloat16, torch.float32)
    assert resolve_dtype("float16", torch.device("cpu")) is torch.float16


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("site", ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post", "blocks.3.hook_mlp_out"])
def test_a_model_that_is_partly_on_disk_computes_the_same(tiny_lm: Path, dtype: str, site: str) -> None:
    pytest.importorskip("accelerate")
    whole = load_model(str(tiny_lm), dtype=dtype, device="cpu")
    size = sum(parameter.nbytes for parameter in whole.lm.parameters())
    spread = load_model(str(tiny_lm), dtype=dtype, spread=Spread("auto", {"cpu": f"{size * 6 // 10000}KB"}))
    assert {"cpu", "disk"} == set(spread.lm.hf_device_map.values())
    assert any(parameter.is_meta for parameter in spread.lm.parameters())
    assert spread.identity == whole.identity
    tokens = torch.randint(0, 300, (3, 16), generator=torch.Generator().manual_seed(0))
    found = []
    for model in (whole, spread, spread):  # twice: what a run skips works again afterwards
        at = model.site(site)
        prefix = model.prefix(tokens, at)
        edited = model.run(tokens, at, lambda x: x * 0.5, prefix=prefix)
        plain = model.run(tokens, rows=torch.ones(3, 16, dtype=torch.bool))
        found.append((prefix.activations, edited, plain, unembed(model.lm)))
    for other in found[1:]:
        for ours, theirs in zip(other, found[0], strict=True):
            assert torch.equal(ours, theirs)
    assert spread.device.type == "cpu"


def test_what_keeps_a_model_from_being_spread_is_said(tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate")
    with pytest.raises(UserError, match=r"model.max_memory = .*: nothing of the model fits into that; allow more"):
        load_model(str(tiny_lm), spread=Spread("auto", {"cpu": "1KB"}))
    with pytest.raises(UserError, match=r"model.max_memory = .*lots"):
        load_model(str(tiny_lm), spread=Spread("auto", {"cpu": "lots"}))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"model.max_memory = .*: no GPU 7 here; this machine has 1"):
        load_model(str(tiny_lm), spread=Spread("auto", {"0": "1GB", "7": "1GB"}))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"needs Accelerate; install it with pip install 'monosem\[large\]'"):
        load_model(str(tiny_lm), spread=Spread("auto"))
