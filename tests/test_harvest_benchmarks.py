"""The benchmarks of harvest, reading back and codes run at tiny sizes and write what they print."""

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
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


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


def test_codes_are_written_and_read(tmp_path: Path) -> None:
    small = ["--rows", "20000", "--d-sae", "100", "--folder", str(tmp_path / "codes")]
    result = run("codes.py", *small, out=tmp_path / "codes.json")
    assert 15_000 < result["write"]["rows"] <= 20_000
    assert 4 < result["write"]["bytes_per_row"] < 16
    assert 0 < result["read"]["median_ms"] <= result["read"]["p95_ms"]
    assert result["read"]["mib_opened"] <= result["read"]["peak_mib"]
    assert not (tmp_path / "codes").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    done = call("codes.py", "--folder", str(tmp_path / "full"))
    assert (done.returncode, "holds other files" in done.stderr) == (2, True)
