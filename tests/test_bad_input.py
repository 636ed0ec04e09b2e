"""Bad input on the command line: one clear sentence, exit code 2, no traceback, nothing half-written."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.test_story import run, run_alone, write_study


def changed(study: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    out = copy.deepcopy(study)
    target: Any = out
    *parents, last = path.split(".")
    for part in parents:
        target = target[int(part)] if isinstance(target, list) else target[part]
    target[last] = value
    return out


CASES = [
    ("train.epochs", 3, "train.epochs: unknown key; known are"),
    ("train.lr", "fast", "train.lr = 'fast'"),
    ("train.d_sae", 0, "d_sae = 0"),
    ("run.3.k", 65, "k = 65"),
    ("run.0.variant", "vanilla", 'variant = "vanilla": unknown variant; known are'),
    ("model.site", "blocks.9.hook_resid_post", "has blocks 0 to 3"),
    ("model.site", "hook_embed", 'site = "hook_embed": no such site'),
    ("model.name", "/no/such/model", "no such model folder"),
    ("model.device", "tpu9", "model.device"),
    ("text.source", "/no/such/text.jsonl", "no such file or folder"),
    ("text.train_tokens", 10_000_000, "the text has only"),
    ("text.text_key", "body", "body"),
    ("train.batch_size", 100_000, "makes no batch"),
]


@pytest.mark.parametrize(("key", "value", "words"), CASES)
def test_one_sentence_and_exit_code_2(
    key: str, value: Any, words: str, tiny_study: dict[str, Any], tmp_path: Path
) -> None:
    path = write_study(changed(tiny_study, key, value), tmp_path / "study.toml")
    done = run("compare", path, "--out", tmp_path / "out", code=2)
    assert words in done.stderr
    error = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "Traceback" not in done.stderr
    assert len(error) < 600
    assert not (tmp_path / "out" / "summary.json").exists()
    assert not list(tmp_path.rglob("*.part"))


def test_empty_text(tiny_study: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    path = write_study(changed(tiny_study, "text.source", str(tmp_path / "empty.txt")), tmp_path / "study.toml")
    assert "empty" in run("compare", path, "--out", tmp_path / "out", code=2).stderr


def test_nan_weights(tiny_study: dict[str, Any], tiny_lm: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_lm, tmp_path / "lm")
    weights = load_file(tmp_path / "lm" / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"][0, 0] = float("inf")
    save_file(weights, tmp_path / "lm" / "model.safetensors", {"format": "pt"})
    path = write_study(changed(tiny_study, "model.name", str(tmp_path / "lm")), tmp_path / "study.toml")
    done = run("compare", path, "--out", tmp_path / "out", code=2)
    assert "NaN or infinite activations" in done.stderr
    assert not (tmp_path / "out" / "activations" / "meta.json").exists()


def test_an_out_folder_that_is_a_file(tiny_study: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    path = write_study(tiny_study, tmp_path / "study.toml")
    assert "--out" in run("compare", path, "--out", tmp_path / "out", code=2).stderr
    assert (tmp_path / "out").read_text() == "mine"


def test_an_unwritable_out_folder(tiny_study: dict[str, Any], tmp_path: Path) -> None:
    if os.geteuid() == 0:
        if not Path("/proc/self").exists():
            pytest.skip("root can write anywhere here")
        out: Path = Path("/proc/self/study")
    else:
        (tmp_path / "locked").mkdir(mode=0o500)
        out = tmp_path / "locked" / "study"
    path = write_study(tiny_study, tmp_path / "study.toml")
    assert "can't be written" in run("compare", path, "--out", out, code=2).stderr


def test_commands_that_are_not_there(tmp_path: Path) -> None:
    assert "no such study file or folder" in run("compare", tmp_path / "x.toml", code=2).stderr
    assert "not a study folder" in run("train", tmp_path, code=2).stderr
    assert "unknown" in run("list", "cats", code=2).stderr
    assert "train" in run("list", "evals").stdout
    assert run("nosuch", code=2).stderr
    assert run("compare", "--nosuch", code=2).stderr


def test_outputs_that_belong_here_are_not_put_into_a_folder_named_like_a_store(
    finished_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sae = finished_study / "saes" / "topk-k8"
    for arguments in (
        ("convert", sae, "s3://lab/x"),
        ("card", finished_study, "--out", "s3://lab/x.md"),
        ("export-features", finished_study, "--out", "gs://lab/x"),
        ("export-results", finished_study, "--out", "s3://lab/x"),
        ("doctor", sae, "--json", "s3://lab/x.json"),
    ):
        assert "is not on this" in run(*arguments, code=2).stderr
    assert not list(tmp_path.iterdir())


def test_processes_that_do_not_fit_are_named_before_the_harvest(tiny_study: dict[str, Any], tmp_path: Path) -> None:
    path, out = write_study(tiny_study, tmp_path / "study.toml"), tmp_path / "out"
    said = run("compare", path, "--out", out, "--set", "compute.data_parallel=3", code=2).stderr
    assert "1 processes can't be split into groups of 3" in said
    assert not (out / "activations").exists()
    assert "start at most" in run("compare", path, "--out", out, "--nproc", "100000", code=2).stderr


def test_stages_out_of_order(tiny_study: dict[str, Any], tmp_path: Path) -> None:
    path = write_study(tiny_study, tmp_path / "study.toml")
    for stage in ("train", "measure", "report"):
        done = run(stage, path, "--out", tmp_path / "out", code=2)
        assert "run" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
@pytest.mark.parametrize("size", ["150k", "600k", "1200k"])
def test_no_disk_space_left(size: str, tiny_study: dict[str, Any], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"this machine mounts no tmpfs: {mounted.stderr.decode().strip()}")
    try:
        path = write_study(tiny_study, tmp_path / "study.toml")
        done = run_alone("compare", path, "--out", disk / "out", code=2)
        assert "no space left on the device" in done.stderr
        assert "Traceback" not in done.stderr
        assert not list(disk.rglob("*.part"))
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert "report: done" in run_alone("compare", path, "--out", disk / "out").stdout
    finally:
        subprocess.run(["umount", str(disk)], check=True)
