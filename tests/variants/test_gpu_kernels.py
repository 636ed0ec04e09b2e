"""The kernels for GPUs, on machines without one: interpreted, and compiled for the GPUs that they are meant for."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton isn't installed (Linux only)"),
]


def run(*arguments: str, **environment: str) -> str:
    """Run Python in a process of its own and return what it prints."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "PYTEST_"))}
    result = subprocess.run(
        [sys.executable, *arguments], env=clean | environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
    return result.stdout


def test_interpreted() -> None:
    """Every function gives the results of the references and of the kernels for CPUs."""
    options = ["-q", "-p", "no:cacheprovider", "--strict-markers"]
    out = run(
        "-m", "pytest", *options, str(FOLDER / "gpu_kernel_cases.py"), TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES=""
    )
    assert " passed" in out
    assert "skipped" not in out


def test_compile_for_gpus(tmp_path: Path) -> None:
    """Every kernel compiles to a binary for A100 and H100, without atomics and without TF32."""
    out = run(str(FOLDER / "compile_gpu_kernels.py"), TRITON_CACHE_DIR=str(tmp_path))
    for name in ("row_sums", "pair_products", "peaks", "mark_candidates", "gradient_squares", "adam_rows"):
        assert f"sm_80 {name} " in out
        assert f"sm_90 {name} " in out
