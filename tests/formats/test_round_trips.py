"""What each format can say, computed and compared with the page; ways through several formats; origins."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import monosem
from monosem.equivalents import Plain, as_jumprelu, plain, recentred, sae_of
from monosem.formats import convert, format_names
from monosem.types import UserError
from tests.formats.making import HYPER, activations, distance, random_sae
from tests.formats.table import FORMATS, table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "formats.md"
WAYS = [
    ("standard", "mean_norm", ["dictionary_learning", "openai", "gemma_scope"]),
    ("standard", "none", ["openai", "dictionary_learning", "saelens"]),
    ("tanh", "mean_norm", ["openai", "gemma_scope", "dictionary_learning"]),
    ("gated", "mean_norm", ["dictionary_learning", "gemma_scope", "dictionary_learning"]),
    ("topk", "mean_norm", ["sparsify", "dictionary_learning", "sparsify"]),
    ("topk", "token_ln", ["openai", "saelens", "openai"]),
    ("batchtopk", "mean_norm", ["dictionary_learning", "gemma_scope", "dictionary_learning"]),
    ("matryoshka", "none", ["gemma_scope", "dictionary_learning", "gemma_scope"]),
    ("jumprelu", "mean_norm", ["gemma_scope", "dictionary_learning", "gemma_scope"]),
]


def test_the_page_says_what_each_format_can_express() -> None:
    assert table() in PAGE.read_text(encoding="utf-8"), "python -m tests.formats.table prints the true table"


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("variant", "normaliser", "way"), WAYS)
def test_a_way_through_three_formats_ends_at_the_same_function(
    tmp_path: Path, variant: str, normaliser: str, way: list[str], centred: bool
) -> None:
    sae = random_sae(variant, {"subtract_b_dec": centred}, normaliser)
    monosem.save_sae(sae, tmp_path / "0")
    for place, form in enumerate([*way, "saelens"], 1):
        convert(tmp_path / str(place - 1), tmp_path / str(place), form)
    back, x = monosem.load_sae(tmp_path / "4"), activations()
    assert distance(back(x), sae(x)) < 1e-6
    assert distance(back.encode(x), sae.encode(x)) < 1e-6


@pytest.mark.parametrize(("form", "kept"), [("saelens", 3), ("dictionary_learning", 3), ("sparsify", 3), ("openai", 0)])
def test_where_an_sae_is_from_travels_with_it(tmp_path: Path, form: str, kept: int) -> None:
    sae = random_sae("topk", normaliser="token_ln" if form == "openai" else "none")
    monosem.save_sae(sae, tmp_path, form)
    facts = monosem.load_sae(tmp_path).facts
    known = {"site": "blocks.1.hook_resid_post", "model": "acme/tiny", "context": 64}
    assert {name: facts[name] for name in known if facts.get(name)} == (known if kept else {})
    assert (facts["format"], facts["source"]) == (form, str(tmp_path))


def test_every_other_format_refuses_what_it_cannot_say_and_writes_nothing(tmp_path: Path) -> None:
    for form in format_names():
        if form != "saelens":
            with pytest.raises(UserError, match="saelens"):
                monosem.save_sae(random_sae("topk", normaliser="token_const"), tmp_path / form, form)
            assert not (tmp_path / form).exists()


def test_weights_too_large_for_another_form_are_refused(tmp_path: Path) -> None:
    sae = random_sae("gated")
    sae.weights["r_mag"][3] = 200.0
    with pytest.raises(UserError, match="too large to be rewritten in float32"):
        monosem.save_sae(sae, tmp_path, "gemma_scope")


def test_convert_takes_only_an_empty_folder_and_a_known_format(tmp_path: Path) -> None:
    monosem.save_sae(random_sae("topk"), tmp_path / "a")
    with pytest.raises(UserError, match='"gguf": unknown; known are dictionary_learning, gemma_scope'):
        convert(tmp_path / "a", tmp_path / "b", "gguf")
    with pytest.raises(UserError, match="not an empty folder"):
        convert(tmp_path / "a", tmp_path / "a", "sparsify")
    (tmp_path / "b").mkdir()
    made = convert(tmp_path / "a", tmp_path / "b", "sparsify", site="blocks.3.hook_mlp_out", model="other/model")
    assert (made.facts["site"], made.facts["model"]) == ("blocks.3.hook_mlp_out", "other/model")
    assert monosem.load_sae(tmp_path / "b").facts["site"] == "blocks.3.hook_mlp_out"


def test_convert_folds_a_scale_that_the_files_do_not_tell(tmp_path: Path) -> None:
    sae, x = random_sae("batchtopk"), activations()
    monosem.save_sae(sae, tmp_path / "a")
    made = convert(tmp_path / "a", tmp_path / "b", "dictionary_learning", scale=0.25)
    assert distance(made(x), sae(x * 0.25) / 0.25) < 1e-6
    assert distance(monosem.load_sae(tmp_path / "b")(x), sae(x * 0.25) / 0.25) < 1e-6
    for scale in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(UserError, match="must be a number above 0"):
            convert(tmp_path / "a", tmp_path / "c", "saelens", scale=scale)


def loops(found: Plain, a: list[float]) -> tuple[list[float], list[float]]:
    """Return codes and reconstruction of one token by the formulas in `Plain`, in Python's own arithmetic."""
    w = {name: value.double().tolist() for name, value in found.weights.items()}
    d_in, d_sae = len(w["W_enc"]), len(w["W_dec"])
    c = [a[j] - (w["b_dec"][j] if found.centred else 0.0) for j in range(d_in)]
    pi = [sum(c[j] * w["W_enc"][j][i] for j in range(d_in)) for i in range(d_sae)]
    f = []
    for i in range(d_sae):
        if found.architecture == "gated":
            magnitude = float(torch.tensor(w["r_mag"][i], dtype=torch.float64).exp()) * pi[i] + w["b_mag"][i]
            f.append(max(0.0, magnitude) if pi[i] + w["b_gate"][i] > 0 else 0.0)
        else:
            h = pi[i] + w["b_enc"][i]
            f.append(max(0.0, h) if h > w.get("threshold", [-9e9] * d_sae)[i] else 0.0)
    if found.architecture == "topk":
        limit = sorted(f)[-found.k]
        f = [value if value >= limit else 0.0 for value in f]
    xhat = [sum(f[i] * w["W_dec"][i][j] for i in range(d_sae)) + w["b_dec"][j] for j in range(d_in)]
    return f, xhat


@pytest.mark.parametrize(
    ("variant", "centred"), list(itertools.product(["standard", "gated", "topk", "jumprelu"], [0, 1]))
)
def test_the_formulas_of_plain_are_what_an_sae_computes(variant: str, centred: int) -> None:
    sae, x = random_sae(variant, {"subtract_b_dec": bool(centred)}, "mean_norm"), activations(12)
    found = plain(sae)
    for same in (found, recentred(found, not centred), *([] if variant == "topk" else [as_jumprelu(found)])):
        codes, reconstructions = zip(*(loops(same, row) for row in x.double().tolist()), strict=True)
        assert distance(torch.tensor(codes), sae.encode(x)) < 1e-6
        assert distance(torch.tensor(reconstructions), sae(x)) < 1e-6
        assert distance(sae_of(same, {})(x), sae(x)) < 1e-6


@pytest.mark.parametrize("key", ["dict_class", "activation_dim", "dict_size"])
def test_a_missing_key_is_named_with_its_file(tmp_path: Path, key: str) -> None:
    monosem.save_sae(random_sae("standard"), tmp_path, "dictionary_learning")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["trainer"][key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=re.escape(f'{tmp_path}/config.json: "trainer.{key}" is missing')):
        monosem.load_sae(tmp_path)


def test_all_formats_and_variants_are_tried() -> None:
    from monosem.variants import variant_names

    assert sorted(HYPER) == variant_names()
    assert sorted(FORMATS) == format_names()


def facts_of(tmp_path: Path, sae: Any, form: str, *folders: str) -> dict[str, Any]:
    folder = tmp_path.joinpath(*folders)
    monosem.save_sae(sae, folder, form)
    for name in ("config.json", "cfg.json"):
        path = folder / name
        if path.exists():
            config = json.loads(path.read_text())
            config.pop("monosem", None)
            path.write_text(json.dumps(config))
    return monosem.load_sae(folder).facts


def test_sites_and_models_are_read_from_names_where_there_is_no_record(tmp_path: Path) -> None:
    topk, jump = random_sae("topk"), random_sae("jumprelu")
    for name, site in (("layers.10", "hook_resid_post"), ("model.layers.3.mlp", "hook_mlp_out"), ("h.2.attn", "")):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "config.json").write_text('{"model": "acme/tiny", "ctx_len": 128}')
        facts = facts_of(tmp_path, topk, "sparsify", "run", name)
        number = re.findall(r"\d+", name)[0]
        assert facts["site"] == f"blocks.{number}.{site or 'hook_attn_out'}"
        assert facts["model"] == "acme/tiny"
    place = ("gemma-scope-2b-pt-mlp", "layer_20", "width_16k", "average_l0_71")
    facts = facts_of(tmp_path, jump, "gemma_scope", *place)
    assert (facts["site"], facts["model"]) == ("blocks.20.hook_mlp_out", "google/gemma-2-2b")
    facts = facts_of(tmp_path, topk, "dictionary_learning", "trainer_0")
    assert (facts["site"], facts["model"], facts["context"]) == ("blocks.1.hook_resid_post", "acme/tiny", 64)
