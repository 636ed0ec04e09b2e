"""From nothing to a report on the command line, on a real (tiny) model and text; then again; then after kill -9."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import tomli_w

import monosem
from monosem.schema import SUMMARY_ESTIMATES, SUMMARY_FACTS
from monosem.store import file_hash
from tests.conftest import cli, make_documents, study_of

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "monosem", *map(str, arguments)]


def run_alone(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == code, done.stderr[-3000:]
    return done


def run(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, which takes a second instead of five."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found = cli(*arguments)
    assert found == code, err.getvalue()[-3000:]
    return subprocess.CompletedProcess(list(map(str, arguments)), found, out.getvalue(), err.getvalue())


def write_study(study: dict[str, Any], path: Path) -> Path:
    path.write_text(tomli_w.dumps(study))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path, corpus: Path) -> Path:
    """A study folder after one `compare`."""
    folder = tmp_path_factory.mktemp("story")
    runs = [{"variant": variant, "l1_coefficient": [0.5, 2.0]} for variant in ("standard", "tanh", "gated")]
    study = study_of(tiny_lm, corpus, [*runs, {"variant": "topk", "k": [4, 8], "auxk": True}])
    done = run_alone("compare", write_study(study, folder / "tiny.toml"), "--out", folder / "out")
    assert "report:" in done.stdout
    return folder / "out"


def test_summary_follows_the_contract(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert len(summary["runs"]) == 8
    for one in summary["runs"]:
        assert set(SUMMARY_FACTS) <= set(one)
        for name in SUMMARY_ESTIMATES:
            estimate = one[name]
            if estimate is None:
                assert one["reasons"][name]
                continue
            assert set(estimate) == {"value", "low", "high", "n"}
            assert estimate["low"] <= estimate["value"] + 1e-9
            assert estimate["value"] <= estimate["high"] + 1e-9
            assert estimate["n"] > 0
        assert one["d_in"] == 32
        assert one["d_sae"] == 64
        assert one["features_above_1e-2"]["value"] <= one["features_above_1e-3"]["value"]
        assert one["features_above_1e-2"]["value"] <= one["l0"]["value"] / 1e-2
        assert one["explained_variance"]["value"] == pytest.approx(1 - one["nmse"]["value"])
        assert one["delta_ce"]["value"] == pytest.approx(one["ce_sae"]["value"] - one["ce_clean"]["value"])
        if one["variant"] == "topk":
            assert one["l0"]["value"] <= one["hyper"]["k"]
        rows = pl.read_parquet(finished / "results" / one["name"] / "density" / "rows.parquet")
        assert rows["density"].sum() == pytest.approx(one["l0"]["value"], abs=1e-6)
        assert rows.height == 64
    hashes = {one["tokens_hash"] for one in summary["runs"]}
    assert hashes == {summary["tokens"]["hash"]}
    clean = {one["ce_clean"]["value"] for one in summary["runs"]}
    assert len(clean) == 1


def test_results_carry_headers(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    for one in summary["runs"]:
        for name in ("frontier", "density", "training"):
            header = json.loads((finished / "results" / one["name"] / name / "result.json").read_text())["header"]
            assert {"schema", "eval", "version", "settings", "sae", "inputs"} <= set(header)
            weights = finished / "saes" / one["name"] / "sae_weights.safetensors"
            assert header["sae"] == file_hash(weights)


def test_the_saved_saes_reproduce_the_measured_numbers(finished: Path) -> None:
    import numpy as np

    from monosem.activations import open_activations

    store = open_activations(finished / "activations", "eval")
    summary = json.loads((finished / "summary.json").read_text())
    for one in summary["runs"]:
        sae = monosem.load_sae(finished / "saes" / one["name"])
        measured = monosem.measure(sae, [(store.rows(np.arange(store.n)), store.columns["doc"])], draws=200)
        for name in ("l0", "mse", "nmse", "gamma", "gamma_centered", "dead_fraction"):
            assert measured[name]["value"] == pytest.approx(one[name]["value"], rel=1e-4, abs=1e-6), name
            assert measured[name]["low"] == pytest.approx(one[name]["low"], rel=1e-3, abs=1e-5), name


def test_the_codes_are_what_the_saved_saes_encode(finished: Path) -> None:
    import numpy as np

    from monosem.activations import open_activations
    from monosem.firings import open_firings
    from monosem.passages import open_passages

    store = open_activations(finished / "activations", "eval")
    doc, pos = store.columns["doc"].numpy(), store.columns["pos"].numpy()
    passages = open_passages(finished)
    assert passages.tokens == store.n
    assert all((a == b).all() for a, b in zip(passages.measured_positions(), (doc, pos), strict=True))
    for one in json.loads((finished / "summary.json").read_text())["runs"]:
        codes = open_firings(finished, one["name"])
        assert codes.tokens == store.n
        assert codes.counts.sum() / store.n == pytest.approx(one["l0"]["value"])
        sae = monosem.load_sae(finished / "saes" / one["name"])
        effective = (sae.encode(store.rows(np.arange(store.n))) * sae.weights["W_dec"].norm(dim=1)).numpy()
        density = pl.read_parquet(finished / "results" / one["name"] / "density" / "rows.parquet")
        assert codes.counts.tolist() == density["count"].to_list()
        for feature, fires in codes.each():
            token = np.flatnonzero(effective[:, feature])
            assert (fires.doc.tolist(), fires.pos.tolist()) == (doc[token].tolist(), pos[token].tolist())
            assert fires.value == pytest.approx(effective[token, feature], rel=1e-5)
            assert fires.value.max(initial=0) == density["peak"][feature]
    text = "".join(passages.document(int(doc[0]))[0].text)
    assert any(document.startswith(text) for document in make_documents())


def test_missing_codes_are_written_without_another_splice(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    codes = folder / "codes" / "topk-k4-auxk_True"
    shutil.rmtree(codes)
    untouched = [p for p in folder.rglob("*") if p.parent.name in ("measure", "topk-k8-auxk_True")]
    assert any("codes" in p.parts for p in untouched)
    before = {p: p.stat().st_mtime_ns for p in untouched}
    done = run("measure", folder, "--set", "measure.codes=false")
    assert "measure: reused" in done.stdout
    assert not codes.exists()
    done = run("measure", folder, "--set", "measure.codes=true")
    assert "measure: done" in done.stdout
    assert "(1 runs" in done.stdout
    assert "splice" not in done.stderr
    assert {p: p.stat().st_mtime_ns for p in untouched} == before
    for path in (finished / "codes" / codes.name).iterdir():
        assert file_hash(path) == file_hash(codes / path.name), path.name


def test_a_measurement_cut_short_keeps_the_codes_that_are_whole(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writing of the codes ends in the middle of the third run's; the next command writes six of eight."""
    from monosem.firings import FiringsWriter, codes_header

    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "codes")
    finish, finished_runs = FiringsWriter.finish, []

    def dying(self: FiringsWriter, *arguments: Any) -> None:
        if len(finished_runs) == 2:
            finish(self, *arguments)
            (self.folder / "meta.json").unlink()  # all that a kill right before the last write would lack
            raise KeyboardInterrupt
        finish(self, *arguments)
        finished_runs.append(self.folder.name)

    monkeypatch.setattr(FiringsWriter, "finish", dying)
    with pytest.raises(KeyboardInterrupt):
        monosem.compare(str(folder))
    monkeypatch.undo()
    names = [one["name"] for one in json.loads((folder / "summary.json").read_text())["runs"]]
    assert [name for name in names if codes_header(folder, name)] == finished_runs
    before = [(folder / "codes" / name / "meta.json").stat().st_mtime_ns for name in finished_runs]
    assert "(6 runs" in run("measure", folder).stdout
    assert before == [(folder / "codes" / name / "meta.json").stat().st_mtime_ns for name in finished_runs]
    for path in (finished / "codes").rglob("*.parquet"):
        assert file_hash(path) == file_hash(folder / path.relative_to(finished)), path


def test_a_second_compare_reuses_everything(finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for kind in ("safetensors", "parquet") for p in finished.rglob(f"*.{kind}")}
    done = run("compare", finished)
    for stage in ("harvest", "train", "measure", "report"):
        assert f"{stage}: reused" in done.stdout
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert not list(finished.rglob(".*.part"))


def test_a_changed_run_is_trained_alone(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    kept = folder / "saes" / "topk-k8-auxk_True" / "sae_weights.safetensors"
    before = kept.stat().st_mtime_ns
    done = run("compare", folder, "--set", "run.0.l1_coefficient=[0.5, 1.0]")
    assert "harvest: reused" in done.stdout
    assert "1 runs" in done.stdout
    assert "7 runs reused" in done.stdout
    assert kept.stat().st_mtime_ns == before
    names = [one["name"] for one in json.loads((folder / "summary.json").read_text())["runs"]]
    assert names[:2] == ["standard-l1_0.5", "standard-l1_1"]


def test_a_run_measured_later_fits_the_earlier_ones(finished: Path, tmp_path: Path) -> None:
    """Another batch size moves nothing: the sums are shifted by the same point, whoever is measured when."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    changes = [
        "--set",
        "run.0.l1_coefficient=[0.5, 1.0]",
        "--set",
        "measure.batch_size=100",
        "--set",
        "measure.bootstrap=300",
    ]
    run("compare", folder, *changes)
    before, after = (
        {one["name"]: one for one in json.loads((f / "summary.json").read_text())["runs"]} for f in (finished, folder)
    )
    for name in set(before) & set(after):
        for metric in ("explained_variance_centered", "gamma", "gamma_centered", "nmse", "ce_recovered"):
            assert after[name][metric]["value"] == pytest.approx(before[name][metric]["value"], rel=1e-6), (
                name,
                metric,
            )


def test_the_slow_path_is_trained_anew_and_agrees(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    ends: list[list[float]] = []
    for options, how in ((["--set", "train.d_sae=512"], "first_look"), (["--reference"], "reference")):
        done = run("train", folder, *options)
        assert "8 runs, 50 steps" in done.stdout
        runs = sorted((folder / "saes").iterdir())
        assert all(how in json.loads((one / "cfg.json").read_text())["monosem"]["kernels"] for one in runs)
        ends.append([pl.read_parquet(one / "log.parquet")["nmse"][-1] for one in runs])
    assert ends[0] == pytest.approx(ends[1], rel=1e-2)
    assert "train: reused" in run("train", folder).stdout  # the study remembers --reference


@pytest.mark.slow
def test_single_stages_refuse_what_was_made_with_other_settings(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    done = run("train", folder, "--set", "model.site=blocks.2.hook_resid_post", code=2)
    assert "harvested with other settings (site differ" in done.stderr
    assert (folder / "study.toml").read_text() == (finished / "study.toml").read_text()  # a refused change is not kept
    run("train", finished, "--out", folder, "--set", "train.lr=1e-2")
    assert "belongs to other weights" in run("report", folder, code=2).stderr
    run("measure", folder)
    assert "report: done" in run("report", folder).stdout


def test_a_new_evaluation_reaches_the_report(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    charts = json.loads((folder / "results" / "frontier.charts.json").read_text())
    charts[0] |= {"id": "more", "title": "A chart of one more evaluation", "section": "More", "first_screen": False}
    (folder / "results" / "more.charts.json").write_text(json.dumps(charts[:1]))
    assert "report: done" in run("report", folder).stdout
    assert "A chart of one more evaluation" in (folder / "report.html").read_text()


def test_eval_runs_by_name(finished: Path) -> None:
    done = run("eval", "all", finished, "--runs", "topk-k4*")
    assert "density: 0 runs judged, 1 reused" in done.stdout
    charts = json.loads((finished / "results" / "frontier.charts.json").read_text())
    assert {series["name"] for series in charts[0]["series"]} == {"standard", "tanh", "gated", "topk"}
    assert "nosuch" in run("eval", "nosuch", finished, code=2).stderr
    assert "no run of this study matches" in run("eval", "density", finished, "--runs", "x*", code=2).stderr


def test_damaged_activations_stop_the_next_stage(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    shard = folder / "activations" / "train-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    done = run("train", folder, "--set", "train.lr=1e-2", code=2)
    assert "train-00000.safetensors: truncated or altered" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def long_study(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path) -> tuple[Path, Path]:
    """A study whose stages last long enough to be killed in, and its folder after an undisturbed run."""
    folder = tmp_path_factory.mktemp("long")
    lines = (json.dumps({"text": text}) + "\n" for text in make_documents(2500, seed=5))
    (folder / "corpus.jsonl").write_text("".join(lines))
    study = {
        "model": {"name": str(tiny_lm), "site": "blocks.2.hook_resid_post", "dtype": "float32", "context": 32},
        "text": {"source": str(folder / "corpus.jsonl"), "train_tokens": 120_000, "eval_tokens": 20_000},
        "train": {"d_sae": 64, "batch_size": 128, "tokens": 25_600, "lr": 3e-3, "checkpoint_seconds": 0.0},
        "measure": {"bootstrap": 100, "ce_tokens": 500},
        "run": [
            {"variant": "standard", "l1_coefficient": [0.5, 2.0], "dead": "ghost"},
            {"variant": "gated", "l1_coefficient": 1.0},
            {"variant": "topk", "k": 4, "auxk": True},
        ],
    }
    path = write_study(study, folder / "long.toml")
    run_alone("compare", path, "--out", folder / "whole")
    return path, folder / "whole"


def kill_during(stage: str, path: Path, out: Path, rng: random.Random) -> bool:
    """Start `compare`, kill it with SIGKILL at a random moment of `stage`; return whether that moment was hit."""

    def done() -> int:
        """Whole shards, or the step of the latest checkpoint."""
        if stage == "harvest":
            return len(list(out.glob("activations/*-*.safetensors")))
        return max((int(p.stem.removeprefix("step-")) for p in out.glob("saes/*/checkpoint/step-*")), default=0)

    wanted = done() + rng.randint(1, {"harvest": 2, "train": 30}[stage])
    process = subprocess.Popen(command("compare", path, "--out", out), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        if done() >= wanted:
            break
        time.sleep(0.001)
    time.sleep(rng.random() * 0.05)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["harvest", "train"])
def test_kill_9_at_three_random_moments_then_resume_is_bit_identical(
    stage: str, long_study: tuple[Path, Path], tmp_path: Path
) -> None:
    path, whole = long_study
    cut = tmp_path / "cut"
    rng = random.Random()
    assert all(kill_during(stage, path, cut, rng) for _ in range(3)), "the stage was over before the kill"
    assert (cut / "activations" / "meta.json").exists() == (stage == "train")
    assert not (cut / "summary.json").exists()
    done = run_alone("compare", path, "--out", cut)
    assert f"{stage}: done" in done.stdout
    assert "resumed" in done.stdout
    names = sorted(p.relative_to(whole) for p in whole.rglob("*.safetensors"))
    assert len(names) > 10
    for name in names:
        assert file_hash(whole / name) == file_hash(cut / name), name
    assert not list(cut.rglob("*.part"))
    assert not list(cut.rglob("checkpoint"))


@pytest.mark.slow
def test_kill_9_while_codes_are_written_leaves_whole_codes_or_none(
    long_study: tuple[Path, Path], tmp_path: Path
) -> None:
    from monosem.firings import codes_header

    path, whole = long_study
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    names = sorted(p.name for p in (whole / "codes").iterdir() if p.is_dir())
    for wanted in (1, random.randint(2, 3)):
        shutil.rmtree(cut / "codes")
        process = subprocess.Popen(command("measure", path, "--out", cut), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < end:
            if len(list(cut.glob("codes/*/part-*"))) >= wanted:
                break
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the codes were all there before the kill"
        kept = [name for name in names if codes_header(cut, name)]
        assert len(kept) < len(names)
        assert all(codes_header(cut, name) == codes_header(whole, name) for name in kept)
        done = run_alone("measure", path, "--out", cut)
        assert f"({len(names) - len(kept)} runs" in done.stdout
        for name in (p.relative_to(whole) for p in whole.rglob("codes/**/*") if p.is_file()):
            assert file_hash(whole / name) == file_hash(cut / name), name
    assert not list(cut.rglob("*.part"))
    assert not list(cut.glob("codes/*/sorting"))
