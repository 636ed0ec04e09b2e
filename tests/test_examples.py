"""Every example runs from an empty folder, without the network, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SAYS = {
    "add_a_variant": ["Sqrt(", "sqrt-l1_0.3-knee_0.5", "report: done"],
    "add_an_evaluation": ["spread", "the report shows it: True"],
    "compare_in_python": ["report: done", "topk-k24 "],
}


def test_there_are_examples() -> None:
    assert set(SAYS) <= {path.stem for path in EXAMPLES}


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "cwd").mkdir()
    (tmp_path / "tmp").mkdir()
    done = subprocess.run(
        [sys.executable, path], cwd=tmp_path / "cwd", env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for words in SAYS.get(path.stem, []):
        assert words in done.stdout
    assert not list((tmp_path / "cwd").iterdir())
    assert not list((tmp_path / "tmp").glob("tmp*"))
