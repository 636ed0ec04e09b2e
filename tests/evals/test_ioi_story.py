"""The evaluation `ioi` on models: prompts, places, edits against hooks, and what is told when it can't work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from monosem.evals.ioi import Ioi
from monosem.evals.ioi.circuit import gpt2_small, head_node, heads, is_gpt2_small, residual
from monosem.evals.ioi.localise import found_layers, head_map, layer_map
from monosem.evals.ioi.patching import activations, said, task_of, unedited
from monosem.evals.ioi.prompts import ATTRIBUTES, POSITIONS, Words, counterfactual, draw, words_of
from monosem.evals.ioi.words import FEMALE, MALE, OBJECTS, PLACES
from monosem.model import Model, load_model
from monosem.progress import Ticker
from monosem.types import UserError

from ..conftest import cli


def word_model(kind: str = "llama") -> Model:
    """Return a random model whose tokenizer has a token for every word of the prompts."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    text = "Later that evening After work Last week , . and had a long bitter quarrel at the In end said to good time "
    text += "Then gave were busy handed"
    words = ["<|endoftext|>", *dict.fromkeys([*text.split(), *FEMALE, *MALE, *PLACES, *OBJECTS])]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    torch.manual_seed(0)
    if kind == "gpt2":
        lm: Any = GPT2LMHeadModel(GPT2Config(vocab_size=len(words), n_embd=48, n_layer=12, n_head=12, n_positions=64))
    else:
        config = LlamaConfig(
            vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
        )  # fmt: skip
        lm = LlamaForCausalLM(config)
    return Model(lm, fast, f"random {kind}", {"name": kind})


@pytest.fixture(scope="module")
def model() -> Model:
    return word_model()


@pytest.fixture(scope="module")
def words(model: Model) -> Words:
    return words_of(model.tokenizer, 24, model.name)


def test_prompts_are_balanced_and_say_what_their_labels_say(words: Words) -> None:
    prompts = draw(words, 60, 0, held_out=False)
    assert [int(((prompts.template == t) & (prompts.labels[:, 2] == o)).sum()) for t in range(3) for o in (0, 1)] == [
        10
    ] * 6
    for i in range(60):
        s, io, order = prompts.labels[i]
        assert s != io
        text = prompts.text(i)
        assert text.count(f" {words.names[s]}") == 2
        first = text.index(f" {words.names[s]}") < text.index(f" {words.names[io]}")
        assert first == bool(order)
    assert words.genders.sum() == 12


def test_no_prompt_is_drawn_for_both_sides(words: Words) -> None:
    train, test = draw(words, 4000, 0, held_out=False), draw(words, 600, 0, held_out=True)
    assert not {train.text(i) for i in range(4000)} & {test.text(i) for i in range(600)}


def test_counterfactuals_change_one_attribute_only(words: Words) -> None:
    prompts = draw(words, 200, 0, held_out=False)
    for column, attribute in enumerate(ATTRIBUTES):
        changed = counterfactual(prompts, attribute, 0).labels != prompts.labels
        assert changed[:, column].all()
        assert changed.sum() == 200
        assert (
            counterfactual(prompts, attribute, 0).labels[:, 0] != counterfactual(prompts, attribute, 0).labels[:, 1]
        ).all()


def test_positions_are_those_of_the_names(model: Model, words: Words) -> None:
    task = task_of(model, draw(words, 24, 0, held_out=False))
    for group in task.groups:
        for row, i in zip(group.tokens, group.at, strict=True):
            s, io, _ = task.prompts.labels[i]
            assert row[group.where["IO"]] == task.names[io]
            assert row[group.where["S1"]] == row[group.where["S2"]] == task.names[s]
            assert group.where["S1"] < group.where["S2"] < group.where["END"] == len(row) - 1


@pytest.mark.parametrize("where", ["S2", "END", "heads", "qk", "last"])
@torch.no_grad()
def test_edits_equal_a_whole_forward_pass_with_hooks(model: Model, words: Words, where: str) -> None:
    task = task_of(model, draw(words, 12, 0, held_out=False))
    place = {
        "S2": residual(model, "blocks.1.hook_resid_post", "S2", 32),
        "END": residual(model, "blocks.2.hook_mlp_out", "END", 32),
        "heads": heads(model, "heads@END", "z", [(1, 0), (3, 2), (1, 3)], "END"),
        "qk": heads(model, "keys", "k", [(2, 3)], "IO"),
        "last": residual(model, "blocks.3.hook_resid_post", "END", 32),
    }[where]
    width = sum(node.width for node in place.nodes)
    new = torch.randn(12, width, generator=torch.Generator().manual_seed(1))
    found = said(task, place, {0: new})[0]
    for group in task.groups:
        for row, i in zip(group.tokens, group.at, strict=True):
            hooks = []
            for node, own in zip(place.nodes, place.slices, strict=True):
                at, columns, value = group.where[node.position], slice(node.first, node.first + node.width), new[i, own]

                def change(tensor: Any, at: int = at, columns: slice = columns, value: Any = value) -> Any:
                    tensor = (tensor[0] if isinstance(tensor, tuple) else tensor).clone()
                    tensor[:, at, columns] = value
                    return tensor

                if node.site.is_input:
                    hooks.append(node.site.module.register_forward_pre_hook(lambda _m, a, c=change: (c(a[0]),)))
                else:
                    hooks.append(node.site.module.register_forward_hook(lambda _m, _a, o, c=change: c(o)))
            logits = model.lm(torch.from_numpy(row)[None]).logits[0, -1]
            for hook in hooks:
                hook.remove()
            s, io, _ = task.prompts.labels[i]
            assert found.ld[i] == pytest.approx(float(logits[task.names[io]] - logits[task.names[s]]), abs=1e-5)
            assert found.top[i] == int(logits.argmax())


def test_own_activations_change_nothing(model: Model, words: Words) -> None:
    task = task_of(model, draw(words, 30, 0, held_out=True))
    clean = unedited(task)
    for place in (residual(model, "blocks.0.hook_resid_post", "IO", 32), heads(model, "h", "q", [(1, 2)], "END")):
        same = said(task, place, {0: activations(task, [place])[place.name]})[0]
        assert np.abs(same.ld - clean.ld).max() < 1e-5


def test_gpt2_small_has_the_papers_nodes() -> None:
    model = word_model("gpt2")
    assert is_gpt2_small(model)
    places = {place.name: place for place in gpt2_small(model)}
    nodes = {node for place in places.values() for node in place.nodes}
    assert len(nodes) == 55
    x = torch.randn(1, 3, 48)
    attention = model.blocks[9].attn
    fused = attention.c_attn(x)
    for kind, first in (("q", 0), ("k", 48), ("v", 96)):
        node = head_node(model, kind, 9, 6, "END")
        assert node.site.module is attention.c_attn
        assert torch.equal(fused[..., node.first : node.first + 4], fused[..., first + 24 : first + 28])


def test_maps_have_every_cell_and_find_layers(model: Model, words: Words) -> None:
    task = task_of(model, draw(words, 18, 0, held_out=False))
    rows = layer_map(task, 0, 50, Ticker())
    assert len(rows) == 4 * 8
    early = next(r for r in rows if (r["attribute"], r["value"], r["x"]) == ("S", "END", 0.0))
    assert early["low"] <= early["score"] <= early["high"]
    found = head_map(task, 50, Ticker())
    assert {row["value"] for row in found} == {f"L{layer}H{head}" for layer in range(4) for head in range(4)}
    assert [row["score"] for row in found] == sorted((row["score"] for row in found), reverse=True)
    cells = [{"value": "S2", "attribute": "Pos", "x": x, "score": y} for x, y in ((0, 0.1), (3, 0.9), (6, 0.2))]
    cells += [{"value": "END", "attribute": "IO", "x": x, "score": y} for x, y in ((0, 0.0), (3, 0.95), (6, 1.0))]
    assert found_layers(cells) == {"S2": 3, "END": 3}


def test_a_tokenizer_without_names_is_refused(tiny_lm: Path) -> None:
    tiny = load_model(str(tiny_lm), dtype="float32", device="cpu")
    with pytest.raises(UserError, match=r'only 0 of \d+ female names are single tokens \("Mary" is not\)'):
        words_of(tiny.tokenizer, 64, tiny.name)


def test_the_command_tells_what_is_wrong(
    finished_study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(finished_study, tmp_path / "study"))
    for change, told in (
        (["--set", "names=4"], "names"),
        (["--set", "budgets=[]"], "budgets = []"),
        (["--set", "colour=3"], "colour: unknown setting"),
    ):
        assert cli("eval", "ioi", folder, *change) == 2
        error = capsys.readouterr().err
        assert told in error
        assert "Traceback" not in error
    assert not list(folder.glob("results/*/ioi"))
    assert cli("eval", "ioi", folder, "--runs", "topk-k8") == 0
    stored = json.loads((folder / "results" / "topk-k8" / "ioi" / "result.json").read_text())
    assert stored["scalars"]["edit_success"] is None
    assert "female names are single tokens" in stored["reasons"]["edit_success"]
    assert cli("report", folder) == 0


@pytest.mark.parametrize("does_it", [False, True])
def test_a_study_is_judged_by_a_model_that_does_the_task_only(
    finished_study: Path, tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch, does_it: bool
) -> None:
    folder = Path(shutil.copytree(finished_study, tmp_path / "study"))
    monkeypatch.setattr("monosem.work.load_model", lambda *_a, **_k: model)
    monkeypatch.setattr("monosem.evals.ioi.SOLVES", 0.0 if does_it else 0.5)  # random weights never do
    small = ["names=24", "train=256", "prompts=48", "task_features=24", "task_steps=5", "budgets=[2, 4]", "heads=2"]
    settings = [part for setting in small for part in ("--set", setting)]
    assert cli("eval", "ioi", folder, "--runs", "topk-k8", *settings) == 0
    where = folder / "results" / "topk-k8" / "ioi"
    stored = json.loads((where / "result.json").read_text())
    rows = pl.read_parquet(where / "rows.parquet")
    if not does_it:
        assert stored["scalars"]["edit_success"] is None
        assert "does not do IOI" in stored["reasons"]["edit_success"]
        assert set(rows["criterion"]) == {"accuracy"}
        return
    assert {"approximation", "edit", "f1", "occlusion", "splitting", "layers", "heads", "accuracy"} >= set(
        rows["criterion"]
    )
    edits = rows.filter(pl.col("criterion") == "edit")
    assert edits.filter(pl.col("method") == "patched")["hit"].all()
    one = edits.filter((pl.col("name") == "topk-k8") & (pl.col("method") == "greedy") & (pl.col("x") == 2))
    assert one.height == 2 * 3 * 48  # places, attributes, prompts
    assert set(rows["place"].drop_nulls()) >= {
        "blocks.1.hook_resid_post@S2",
        "blocks.1.hook_resid_post@END",
        "heads@END",
    }
    assert set(rows.filter(kind="task")["variant"]) == {"standard", "tanh", "gated", "topk"}
    assert cli("report", folder) == 0
    assert "IOI" in (folder / "report.html").read_text()


def test_settings_have_the_documented_defaults() -> None:
    assert Ioi().budgets == [2, 8, 32]
    assert POSITIONS == ("IO", "S1", "S2", "END")
