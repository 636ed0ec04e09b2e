"""The benchmarks of harvest and reading back run at tiny sizes and write what they print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def call(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def run(script: str, *arguments: str, out: Path) -> dict[str, Any]:
    done = call(script, *arguments, "--json", str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text(encoding="utf-8"))


def test_harvest_against_the_bare_forward_pass(tiny_lm: Path, corpus: Path, tmp_path: Path) -> None:
    settings = ["--site", "blocks.1.hook_resid_post", "--context", "32", "--tokens", "1000", "--repeats", "2"]
    result = run("harvest.py", "--model", str(tiny_lm), "--text", str(corpus), *settings, out=tmp_path / "harvest.json")
    assert result["tokens"] > 1000
    assert len(result["seconds"]["bare"]) == len(result["seconds"]["harvest"]) == 2
    assert result["harvest_to_bare"]["cpu"] > 0
    assert set(result["environment"]) >= {"commit", "versions", "machine"}


SMALL = ["--gib", "0.003", "--d-in", "8", "--batch", "512", "--tokens", "9000", "--capacity", "4096"]


def test_reading_back(tmp_path: Path) -> None:
    result = run("readback.py", *SMALL, "--folder", str(tmp_path / "store"), out=tmp_path / "readback.json")
    assert result["warm, prefetched"]["tokens_per_second"] > 0
    assert not (tmp_path / "store").exists()


def test_reading_back_touches_nobody_elses_folder(tmp_path: Path) -> None:
    store, other = tmp_path / "store", tmp_path / "other"
    run("readback.py", *SMALL, "--keep", "--folder", str(store), out=tmp_path / "first.json")
    run("readback.py", *SMALL, "--folder", str(store), out=tmp_path / "second.json")
    assert (store / "meta.json").exists()
    other.mkdir()
    (other / "train-00000.safetensors").write_text("somebody's")
    done = call("readback.py", *SMALL, "--folder", str(other))
    assert done.returncode == 2
    assert f"--folder {other}: holds other files; name a new folder" in done.stderr
    assert (other / "train-00000.safetensors").read_text() == "somebody's"


def test_a_model_that_is_not_there_is_one_sentence() -> None:
    done = call("harvest.py", "--model", "/nowhere/at/all")
    assert done.returncode == 2
    assert "no such model folder" in done.stderr
    assert "Traceback" not in done.stderr
