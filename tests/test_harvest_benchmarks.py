"""The benchmarks of harvest and reading back run at tiny sizes and write what they print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def run(script: str, *arguments: str, out: Path) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments, "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text(encoding="utf-8"))


def test_harvest_against_the_bare_forward_pass(tiny_lm: Path, corpus: Path, tmp_path: Path) -> None:
    settings = ["--site", "blocks.1.hook_resid_post", "--context", "32", "--tokens", "1000", "--repeats", "2"]
    result = run("harvest.py", "--model", str(tiny_lm), "--text", str(corpus), *settings, out=tmp_path / "harvest.json")
    assert result["tokens"] > 1000
    assert len(result["seconds"]["bare"]) == len(result["seconds"]["harvest"]) == 2
    assert result["harvest_to_bare"]["cpu"] > 0
    assert set(result["environment"]) >= {"commit", "versions", "machine"}


def test_reading_back(tmp_path: Path) -> None:
    settings = ["--gib", "0.003", "--d-in", "8", "--batch", "512", "--tokens", "9000", "--capacity", "4096"]
    result = run("readback.py", *settings, "--folder", str(tmp_path / "store"), out=tmp_path / "readback.json")
    assert result["warm, prefetched"]["tokens_per_second"] > 0
    assert not (tmp_path / "store").exists()
