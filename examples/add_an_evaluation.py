"""Add an evaluation: `evals/spread.py`, beside this file, is all that it takes.

Copied into src/monosem/evals the file would be found by its name, and `monosem eval spread STUDY_DIR` would run it. To
leave the package as it is, this example adds its own folder to the places where evaluations are looked for. Needs no
network and takes seconds.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from compare_in_python import make_study

import monosem
import monosem.evals
from monosem.config import make_study as check_study
from monosem.report import render
from monosem.stages import run_evaluation

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Run a small study, then the new evaluation over its SAEs, and draw its chart into the report."""
    monosem.evals.__path__.append(str(HERE / "evals"))
    print("evaluations:", ", ".join(monosem.evals.evaluation_names()))

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        study = check_study(make_study(folder))
        out = folder / "out"
        monosem.compare(study, out, say=print)
        run_evaluation(study, out, "spread", settings=["min_tokens=32"])
        for run in study.runs:
            result = json.loads((out / "results" / run.name / "spread" / "result.json").read_text(encoding="utf-8"))
            spread = result["scalars"]["l0_spread"]
            print(f"{run.name:<20} {spread['value']:.2f} [{spread['low']:.2f}, {spread['high']:.2f}]")
        page = render(out).read_text(encoding="utf-8")
        print("the report shows it:", "L0 from document to document" in page)


if __name__ == "__main__":
    main()
