"""Results as SAEBench result files: its names and shapes (0.6.0), with our definitions and intervals beside them.

`<evaluation>/<study>_<run>_eval_results.json`, one for each of SAEBench's evaluations that the study has measured.
"""

from __future__ import annotations

from pathlib import Path

from monosem.app.study import Run, Study
from monosem.exports.facts import Facts
from monosem.exports.saebench.autointerp import autointerp
from monosem.exports.saebench.content import content
from monosem.exports.saebench.core import core
from monosem.exports.saebench.probing import sparse_probing
from monosem.exports.saebench.ravel import ravel
from monosem.exports.saebench.results import Results
from monosem.store import write_json

TYPES = {"core": core, "sparse_probing": sparse_probing, "ravel": ravel, "autointerp": autointerp}


def write_results(study: Study, run: Run, facts: Facts, out: Path) -> list[Path]:
    """Write a run's files into `out` and return them.

    Raises UserError when sums or results of `frontier` and `density` are missing, damaged or of other weights.
    """
    results = Results(study.folder, run.name, facts.weights)
    written = []
    for kind, make in TYPES.items():
        part = make(results, facts)
        if part is not None:
            name = f"{facts.study}_{run.name}_eval_results.json".replace("/", "_")
            write_json(out / kind / name, content(kind, part, facts))
            written.append(out / kind / name)
    return written
