"""The evaluation `probes` on a whole study: activations of texts, pooling, reuse, interruption, report, pages."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from starlette.testclient import TestClient

from monosem.app import make_app
from monosem.app.study import Study
from monosem.app.tasks import tasks_of
from monosem.evals.probes import pooling, tasks, texts
from monosem.evals.probes.pooling import pooled_codes, pooled_products
from monosem.evals.probes.texts import Texts, read_facts, read_texts, text_activations
from monosem.formats.saelens import load_sae
from monosem.model import load_model
from monosem.normaliser import Normaliser
from monosem.sae import make_sae

from ..conftest import WORDS, cli
from .test_probes_tasks import small_wheel  # noqa: F401

RUN = "topk-k8"
SCALARS = {"probe_loss", "probe_accuracy", "dense_probe_loss", "random_probe_loss", "neuron_probe_loss", "l0"}
SCALARS |= {"pca_probe_loss", "probe_loss_post", "probe_loss_train", "sparse_accuracy_1", "sparse_accuracy_16"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A file of 300 texts that end with one of two words, with an empty text and a repeated one."""
    rng = random.Random(0)
    rows = [(f"{' '.join(rng.choices(WORDS, k=6))} {i} {w}", w) for i in range(150) for w in ("stone", "river")]
    rows += [("", "stone"), rows[0]]
    path = tmp_path / "endings.csv"
    pl.DataFrame(rows, schema=["text", "label"], orient="row").write_csv(path)
    return path


def result(folder: Path, run: str = RUN) -> tuple[dict[str, Any], pl.DataFrame]:
    where = folder / "results" / run / "probes"
    return json.loads((where / "result.json").read_text()), pl.read_parquet(where / "rows.parquet")


def test_story_with_a_file_of_the_user(study: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--set", f"data={data}", "--set", "pool=last", "--set", "train=200", "--set", "test=100"]
    assert cli("eval", "probes", study, *settings) == 0
    assert "2 runs judged, 0 reused" in capsys.readouterr().out
    stored, rows = result(study)
    assert set(stored["scalars"]) >= SCALARS
    assert all(stored["scalars"][name] is not None for name in SCALARS)
    assert stored["reasons"] == {"probe_gain": "one task has no interval over tasks"}
    assert rows.height == 1
    row = rows.row(0, named=True)
    assert row["task"] == "endings.csv"
    assert (row["read"], row["empty"], row["duplicates"], row["train"], row["test"]) == (302, 1, 1, 200, 100)
    assert row["dense_loss"] < 0.4  # the last word is written in the last token's activation
    assert row["dense_accuracy"] > 0.9
    assert row["pre_loss"] < 0.69
    assert stored["scalars"]["probe_loss"]["n"] == 100
    assert cli("eval", "probes", study) == 0  # the last settings hold
    assert "0 runs judged, 2 reused" in capsys.readouterr().out
    assert cli("report", study) == 0
    report = (study / "report.html").read_text()
    assert "Probe loss against sparsity" in report
    assert "Probe loss against the number of features" in report
    charts = json.loads((study / "results" / "probes.charts.json").read_text())
    assert {chart["section"] for chart in charts} == {"Probes"}
    assert [chart["id"] for chart in charts] == [
        "probes-answer",
        "probes-l0",
        "probes-width",
        "probes-sparse",
        "probes-tasks",
    ]
    app = TestClient(make_app(study), base_url="http://127.0.0.1:8137")
    page = app.get(f"/run/{RUN}/feature/{row['pre_feature']}").text
    assert "Best probe for" in page
    assert "endings.csv" in page
    found = tasks_of(Study(study), Study(study).runs()[RUN], row["pre_feature"])
    assert found[0].loss == row["pre_loss"]
    assert found[0].low < found[0].loss < found[0].high
    other = next(i for i in range(64) if i not in (row["pre_feature"], row["post_feature"]))
    assert "Best probe for" not in app.get(f"/run/{RUN}/feature/{other}").text


def test_results_of_other_weights_or_damaged_ones_are_not_shown(study: Path, data: Path) -> None:
    assert cli("eval", "probes", study, "--set", f"data={data}", "--set", "train=40", "--set", "test=40") == 0
    feature = result(study)[1]["pre_feature"][0]

    def shown() -> int:
        return len(tasks_of(Study(study), Study(study).runs()[RUN], feature))

    assert shown() >= 1
    where = study / "results" / RUN / "probes"
    stored = json.loads((where / "result.json").read_text())
    (where / "result.json").write_text(json.dumps({**stored, "header": {**stored["header"], "sae": "other"}}))
    assert shown() == 0
    (where / "result.json").write_text(json.dumps(stored))
    (where / "rows.parquet").write_bytes(b"nothing")
    assert shown() == 0
    shutil.rmtree(where)
    assert shown() == 0


def test_an_interrupted_harvest_goes_on_and_a_second_run_reuses(
    study: Path,
    small_wheel: Path,  # noqa: F811
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    real = text_activations

    def counted(*arguments: Any) -> Any:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(arguments[5])
        return real(*arguments)

    monkeypatch.setattr(texts, "text_activations", counted)
    settings = ["--set", f"data={data}", "--set", 'tasks=["65", "glue_sst2"]', "--set", "train=40", "--set", "test=20"]
    assert cli("eval", "probes", study, *settings, "--runs", RUN) == 130
    assert done == ["phrase_high-school"]
    assert not (study / "results" / RUN / "probes").exists()
    monkeypatch.setattr(texts, "text_activations", lambda *a: (done.append(a[5]), real(*a))[1])
    assert cli("eval", "probes", study, *settings, "--runs", RUN) == 0
    assert done == ["phrase_high-school", "glue_sst2", "endings.csv"]
    assert cli("eval", "probes", study, *settings) == 0  # the other run: texts and controls are there
    assert len(done) == 3
    first, second = result(study)[1], result(study, "standard-l1_0.5-d_sae_32")[1]
    same = ["task", "train", "dense_loss", "neuron_loss", "pca_loss"]
    assert first.select(same).equals(second.select(same))
    assert first["pool"].to_list() == ["last", "mean", "mean"]
    charts = {c["id"]: c for c in json.loads((study / "results" / "probes.charts.json").read_text())}
    assert {line["name"] for line in charts["probes-gain"]["series"]} == {"standard, 32", "topk, 64"}
    shown = {line["name"]: line["y"] for line in charts["probes-l0"]["series"]}
    assert set(shown) >= {"topk, 64", "random directions, 32", "random directions, 64", "dense probe"}
    assert shown["dense probe"] == pytest.approx([first["dense_loss"].mean()] * 2)
    assert [row[0] for row in charts["probes-tasks"]["cells"]] == first["task"].to_list()
    assert charts["probes-width"]["series"][1]["x"] == [64]
    assert cli("eval", "probes", study, *settings, "--set", "context=3", "--runs", RUN) == 0
    assert len(done) == 6
    assert result(study)[1]["tokens"].to_list() != first["tokens"].to_list()
    shutil.rmtree(study / "results" / RUN / "probes")
    assert cli("eval", "probes", study, *settings, "--runs", RUN) == 0
    assert result(study)[1].equals(first)  # deterministic


def test_a_task_of_one_class_is_left_out_with_a_reason(
    study: Path,
    small_wheel: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = tasks._csv

    def one_class(packed: bytes) -> pl.DataFrame:
        table = real(packed)
        if "target" in table.columns and len(seen) == 0:
            seen.append(1)
            return table.filter(pl.col("target") == "n")
        return table

    seen: list[int] = []
    monkeypatch.setattr(tasks, "_csv", one_class)
    settings = ["--set", "train=40", "--set", "test=20"]
    assert cli("eval", "probes", study, "--set", 'tasks=["65", "92", "56"]', *settings, "--runs", RUN) == 0
    stored, rows = result(study)
    assert rows.filter(pl.col("reason").is_not_null()).select("task", "reason").rows() == [
        ("phrase_high-school", "it has 1 classes (n)")
    ]
    assert stored["scalars"]["probe_loss"]["n"] == 2
    charts = json.loads((study / "results" / "probes.charts.json").read_text())
    assert charts[-1]["id"] == "probes-left-out"
    seen.clear()
    assert cli("eval", "probes", study, "--set", 'tasks=["65"]', *settings, "--runs", RUN, "--set", "seed=1") == 2
    assert "tasks: none can be used (phrase_high-school: it has 1 classes (n))" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("pool=first", "pool"),
        ("train=3", "train"),
        ("data=/nothing/here.csv", "no such file"),
        ('tasks=["nothing"]', '"nothing" is not known'),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    finished_study: Path,
    small_wheel: Path,  # noqa: F811
    setting: str,
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli("eval", "probes", finished_study, "--set", setting) == 2
    assert told in capsys.readouterr().err


def test_activations_of_texts_are_those_of_each_text_alone(tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding and sorting change nothing; position 0 and special tokens are left out; the end of a long text counts."""
    model = load_model(str(tiny_lm), dtype="float32", device="cpu")
    site = model.site("blocks.1.hook_resid_post")
    monkeypatch.setattr(texts, "BATCH_TOKENS", 24)
    said = ["a cat", "the dog walks under the red stone", "it", "river<|endoftext|>", "<|endoftext|>"]
    rows = texts._tokens(model.tokenizer, said, 5)
    whole = model.tokenizer(said[1])["input_ids"]
    assert rows[1] == [0, *whole[-5:]]
    special = np.array([0])
    x, ends = text_activations(model, site, rows, special, False, "t")
    kept = [[i for i in range(1, len(row)) if row[i] != 0] or [1] for row in rows]
    expected = [model.activations(torch.tensor([row]), site)[0][at] for row, at in zip(rows, kept, strict=True)]
    assert torch.diff(ends, prepend=torch.tensor([0])).tolist() == [len(at) for at in kept]
    torch.testing.assert_close(x, torch.cat(expected))
    last, ends = text_activations(model, site, rows, special, True, "t")
    torch.testing.assert_close(last, torch.stack([one[-1] for one in expected]))
    assert ends.tolist() == [1, 2, 3, 4, 5]


def test_damaged_activations_are_made_again(study: Path, data: Path) -> None:
    settings = ["--set", f"data={data}", "--set", "train=40", "--set", "test=20", "--runs", RUN]
    assert cli("eval", "probes", study, *settings) == 0
    path, before = study / "probes" / "endings.csv.safetensors", result(study)[1]
    assert load_file(path)["x"].shape[1] == 32
    path.write_bytes(path.read_bytes()[:200])
    assert read_facts(path) == {}
    shutil.rmtree(study / "results" / RUN / "probes")
    assert cli("eval", "probes", study, *settings) == 0
    assert result(study)[1].equals(before)
    assert read_texts(path, "mean").train == 40


@pytest.mark.parametrize("pool", ["last", "mean", "max"])
@pytest.mark.parametrize("variant", ["standard", "gated", "topk"])
def test_pooling_equals_a_loop_over_texts(pool: Any, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "BATCH", 7)
    torch.manual_seed(0)
    lengths = [1] * 6 if pool == "last" else [3, 1, 9, 2, 1, 4]
    x = torch.randn(sum(lengths), 16).bfloat16()
    one = Texts("t", pool, x, torch.tensor(lengths).cumsum(0), np.zeros(6), {"train": 4})
    sae = make_sae(variant, d_in=16, d_sae=1100, **({"k": 5} if variant == "topk" else {}))
    sae.normaliser = Normaliser("token_ln")
    parts = x.float().split(lengths)
    reduce = (lambda v: v.amax(0)) if pool == "max" else (lambda v: v.mean(0))
    codes = torch.stack([reduce(sae.encode(part)) for part in parts])
    torch.testing.assert_close(pooled_codes(one, sae), codes, atol=1e-5, rtol=1e-4)
    W = sae.weights["W_enc"]
    products = torch.stack([reduce(sae.normaliser.apply(part)[0] @ W) for part in parts])
    torch.testing.assert_close(pooled_products(one, sae.normaliser, W), products, atol=1e-5, rtol=1e-4)


def test_a_silent_sae_has_the_entropy_of_the_labels(study: Path, data: Path) -> None:
    """All features dead: nothing fails, post-activations tell nothing."""
    from monosem.formats.saelens import save_sae

    where = study / "saes" / RUN
    sae = load_sae(where)
    sae.weights["b_enc"] -= 1e6
    cfg = json.loads((where / "cfg.json").read_text())
    save_sae(sae, where)
    fresh = json.loads((where / "cfg.json").read_text())
    cfg["monosem"]["weights_sha256"] = fresh["monosem"]["weights_sha256"]
    (where / "cfg.json").write_text(json.dumps(cfg))
    assert cli("eval", "probes", study, "--set", f"data={data}", "--set", "train=40", "--runs", RUN) == 0
    row = result(study)[1].row(0, named=True)
    assert row["post_loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert row["post_accuracy"] == 0.5
    assert row["sparse_accuracy_16"] == 0.5


@pytest.mark.slow
@pytest.mark.lm
def test_the_real_wheel_on_the_tiny_model(study: Path) -> None:
    settings = ["--set", 'tasks=["65", "92", "57"]', "--set", "train=300", "--set", "test=200", "--set", "context=16"]
    assert cli("eval", "probes", study, *settings) == 0
    stored, rows = result(study)
    assert rows["task"].to_list() == ["phrase_high-school", "glue_sst2", "wikidatais_alive"]
    assert rows["dense_loss"][0] < 0.5  # even untrained, the last token is told from another
    assert stored["scalars"]["probe_gain"]["n"] == 3
