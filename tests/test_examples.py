"""Every example runs from an empty folder, without the network, and leaves nothing behind."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

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


NOTEBOOK = ROOT / "examples" / "foreign_sae.ipynb"
# What the notebook has computed, for the test to judge
TOLD = """
print({
    "explained": metrics["explained_variance"]["value"],
    "low": metrics["explained_variance"]["low"],
    "dead": metrics["dead_fraction"]["value"],
    "promoted": [words[token] for token in promoted],
    "passages": [words[tokens[place]] for place in found.values()],
    "texts": continuations("My friend is a pilot, and", [0.0, 25.0]),
    "steered": steered.rows_by_key(["direction", "strength"], named=True, unique=True),
    "passages_judged": len(prompts),
})
"""


def outputs(notebook: Any) -> str:
    """Return all that a notebook has put out, as text."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return "\n".join(str(output) for cell in cells for output in cell.outputs)


def test_the_notebook_is_kept_with_what_it_shows() -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output.output_type for cell in cells for output in cell.outputs]
    assert "error" not in kinds
    assert not [output for cell in cells for output in cell.outputs if output.get("name") == "stderr"]
    shown = outputs(notebook)
    assert all(word in shown for word in ("text/html", "<mark>", "application/vnd.plotly.v1+json"))
    assert re.findall(r"/(?:home|root|tmp|work|usr|Users)/", str(notebook)) == []


@pytest.mark.slow
@pytest.mark.lm
def test_the_notebook_loads_measures_looks_and_steers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copytree(NOTEBOOK.parent / "foreign_sae", tmp_path / "foreign_sae")
    kept = nbformat.read(NOTEBOOK, as_version=4)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(TOLD))
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    told = ast.literal_eval(notebook.cells.pop().outputs[0].text)
    assert 0.65 < told["low"] < told["explained"] < 0.8
    assert told["dead"] == 0
    assert {" she", " her", " herself"} <= set(told["promoted"])
    assert {" woman", " she", " her", " sister"} <= set(told["passages"])
    plain, steered = told["texts"]
    assert not re.search(r"\b(she|her)\b", plain)
    assert re.search(r"\bshe\b", steered)
    assert told["passages_judged"] >= 20
    at = told["steered"]
    before, after, control = at["feature", 0.0], at["feature", 25.0], at["random direction", 25.0]
    assert before["high"] < 0.05 < 0.15 < after["low"]
    assert after["of ' he'"] < before["of ' he'"] / 3
    assert control["high"] < 0.05
    assert at["feature", -25.0]["probability"] < before["probability"] / 3
    assert at["feature", 60.0]["high"] < after["low"]
    # what stands in the repository is what comes out: the sentences between the cells were written for it
    for pattern in (r"explained_variance(?:&quot;)?</td><td>(0\.\d\d)", r"'feature (\d+)", r"at most (\d+)"):
        assert re.findall(pattern, outputs(notebook)) == re.findall(pattern, outputs(kept)) != []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign_sae"]
