"""The benchmark commands at tiny widths: the documented fields, atomic files, complaints in one sentence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from monosem.store import file_hash

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
TINY = ["--d-sae", "256", "--batch", "64", "--k", "8", "--l0", "20", "--seconds", "0.2"]


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


def run_well(script: str, *arguments: str) -> str:
    done = run(script, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def documented(heading: str) -> set[str]:
    """Return the fields in the table below a heading of docs/benchmarks.md."""
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    assert found, heading
    return {
        name for cell in re.findall(r"^\| (`[^|]+) \|", found[1], re.MULTILINE) for name in re.findall("`(.+?)`", cell)
    }


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, str]:
    path = tmp_path_factory.mktemp("bench") / "deeper" / "topk.json"
    said = run_well("train_step.py", "--variant", "topk", "--d-in", "32", *TINY, "--peers", "none", "--json", str(path))
    return json.loads(path.read_text()), path, said


def test_the_file_has_the_documented_fields(result: tuple[dict[str, Any], Path, str]) -> None:
    content, path, said = result
    assert [row["library"] for row in content["rows"]] == ["monosem", "encoder-product"]
    for row in content["rows"]:
        assert set(row) == documented("Result files")
    assert {"rows", "machine", "versions", "commit", "when", "settings"} == set(content)
    assert content["settings"]["batch"] == 64
    assert content["machine"]["cores"] == os.cpu_count()
    assert content["versions"]["torch"] == torch.__version__
    assert [entry.name for entry in path.parent.iterdir()] == ["topk.json"]
    assert "monosem" in said.splitlines()[1] + said.splitlines()[2]


def test_the_ratios_are_those_of_the_medians(result: tuple[dict[str, Any], Path, str]) -> None:
    ours, product = result[0]["rows"]
    cpu = [row["cpu_seconds"]["median"] for row in (ours, product)]
    assert ours["tokens_per_cpu_second"] == pytest.approx(64 / cpu[0])
    assert ours["ratio_ours_to_this"] == 1.0
    assert product["ratio_ours_to_this"] == pytest.approx(cpu[1] / cpu[0])
    assert ours["ratio_to_encoder_product"] == pytest.approx(cpu[0] / cpu[1])
    assert ours["cpu_seconds"]["q1"] <= cpu[0] <= ours["cpu_seconds"]["q3"]
    assert 10**7 < ours["imports_bytes"] <= ours["peak_bytes"] < 4 * 10**9
    assert ours["l0"] == 8
    assert ours["steps"] >= 3


def test_stored_activations(tmp_path: Path) -> None:
    save_file({"x": torch.randn(600, 24)}, tmp_path / "acts.safetensors")
    path = tmp_path / "out.json"
    options = ["--activations", str(tmp_path / "acts.safetensors"), "--no-memory", "--json", str(path)]
    run_well("train_step.py", "--variant", "topk-auxk", *TINY, *options)
    content = json.loads(path.read_text())
    assert content["settings"]["d_in"] == 24
    row = content["rows"][0]
    assert row["dead_features"] == 26
    assert row["aux_loss"] > 0
    assert row["peak_bytes"] is None


BAD = {
    "--peers nobody": "--peers nobody: unknown peer; known are sae-lens,",
    "--variant relu": "--variant relu: unknown variant; known are standard,",
    "--variant gated --peers eai-sparsify": "--peers eai-sparsify: has no gated",
    "--seconds 0": "--seconds 0.0: must be above 0",
    "--d-sae few": "argument --d-sae: invalid int value",
    "--k 200": "--k 200: must be at most half of --d-sae",
    "--activations nowhere.safetensors": "--activations nowhere.safetensors: no safetensors file",
}


@pytest.mark.parametrize("options", BAD)
def test_a_bad_value_is_one_sentence(
    options: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import train_step

    for name in train_step.THREAD_VARIABLES:
        monkeypatch.setenv(name, "1")  # the command sets them; this puts them back
    threads = torch.get_num_threads()
    try:
        code = train_step.main([*TINY, *options.split()])
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr()
    assert code == 2
    assert said.err.startswith(BAD[options])
    assert len(said.err.strip().splitlines()) == 1
    assert not said.out


def test_the_command_exits_with_2() -> None:
    done = run("train_step.py", "--peers", "nobody")
    assert done.returncode == 2
    assert done.stderr.startswith("--peers nobody: unknown peer; known are sae-lens,")


@pytest.mark.slow
def test_growth_collects_widths_and_the_table_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "growth.json"
    options = [
        "--low",
        "7",
        "--high",
        "8",
        "--seconds",
        "0.1",
        "--d-in",
        "16",
        "--batch",
        "32",
        "--k",
        "4",
        "--no-memory",
    ]
    run_well("growth.py", *options, "--json", str(path))
    content = json.loads(path.read_text())
    assert [(row["library"], row["d_sae"]) for row in content["rows"]] == [
        (library, width) for width in (128, 256) for library in ("monosem", "encoder-product")
    ]
    assert content["settings"]["d_sae"] == [128, 256]
    table = run_well("table.py", str(path), "--markdown")
    assert table.startswith("| variant | d_sae |")
    assert len(table.strip().splitlines()) == 6


@pytest.mark.browser
def test_the_figure_names_its_lines_and_units(result: tuple[dict[str, Any], Path, str], tmp_path: Path) -> None:
    target = tmp_path / "cost.svg"
    run_well("figure.py", str(target), str(result[1]))
    svg = target.read_text(encoding="utf-8")
    for words in ("CPU time a token [µs]", "features (d_sae)", "monosem", "one encoder product in float32"):
        assert words in svg


@pytest.mark.slow
@pytest.mark.lm
def test_quickstart_times_every_stage(tmp_path: Path) -> None:
    path = tmp_path / "quickstart.json"
    small = ("text.train_tokens=3_000", "text.eval_tokens=2_000", "train.tokens=3_000", "measure.ce_tokens=500")
    settings = [part for value in small for part in ("--set", value)]
    run_well("quickstart.py", "--study", "tiny", *settings, "--threads", "1", "--json", str(path))
    content = json.loads(path.read_text())
    assert list(content["stages"]) == ["harvest", "train", "measure", "report"]
    assert sum(content["stages"].values()) <= content["seconds"]
    assert 10**8 < content["peak_bytes"] < 10**10
    assert content["activations_bytes"] < content["folder_bytes"]


def test_exactness_compares_every_token(tmp_path: Path) -> None:
    folder = tmp_path / "activations"
    folder.mkdir()
    columns = {name: torch.zeros(1000, dtype=torch.int32) for name in ("doc", "pos", "token", "place")}
    x = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
    save_file({"x": x, **columns}, folder / "train-00000.safetensors")
    shards = {"train-00000.safetensors": {"sha256": file_hash(folder / "train-00000.safetensors"), "rows": 1000}}
    (folder / "meta.json").write_text(json.dumps({"splits": {"train": {"shards": shards, "documents": 1}}}))
    path = tmp_path / "exactness.json"
    sizes = ["--d-sae", "512", "--k", "8", "--batch", "100", "--tokens", "500", "--train-every", "2"]
    run_well("exactness.py", str(tmp_path), *sizes, "--json", str(path))
    content = json.loads(path.read_text())
    assert content["tokens"] == content["identical"] + content["ties"] == 500
    assert content["misses"] == 0
    assert content["train_steps"] == 3
    assert 8 <= content["candidates_per_token"] < 512


def test_exactness_needs_a_study(tmp_path: Path) -> None:
    done = run("exactness.py", str(tmp_path / "nothing"))
    assert done.returncode == 2
    assert "no activations there; run `monosem harvest` first" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_simulator_compares_with_processes_and_counts_the_formula_s_bytes(tmp_path: Path) -> None:
    path = tmp_path / "scale.json"
    small = ["--d-in", "32", "--d-sae", "256", "--k", "8", "--batch", "64", "--steps", "4", "--processes", "1", "2"]
    said = run_well("scale.py", *small, "--json", str(path))
    assert re.search(r"^2 processes: [\d,]+ tokens/s predicted, [\d,]+ measured", said, re.MULTILINE)
    alone, two = json.loads(path.read_text())["lines"]
    assert alone["bytes"] == 0
    assert two["bytes"] == pytest.approx(4 * 64 * 32 + 4 * 64 * 8 + 4 * 32, rel=0.1)
    assert two["predicted"] == pytest.approx(
        64 / (two["alone"] + 4 * two["latency"] + (4 * 64 * 40 + 4 * 33) / two["bandwidth"])
    )


def test_the_scale_plan_of_the_docs_is_the_script_s() -> None:
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    for table in run_well("scale.py", "--plan").strip().split("\n\n"):
        assert table in page
