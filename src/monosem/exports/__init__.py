"""What leaves a study in the formats of others: features for dashboards, results for benchmarks. See docs/exports.md.

Reads the files of a study folder and never the model. Imports no torch.
"""

from __future__ import annotations

from pathlib import Path

from monosem.app.export import Say, choose, export, pick
from monosem.exports.facts import facts_of
from monosem.exports.neuronpedia import write_neuronpedia
from monosem.exports.saebench import write_results
from monosem.exports.saedashboard import write_batches
from monosem.types import UserError

FEATURE_FORMATS = ("html", "saedashboard", "neuronpedia")
RESULT_FORMATS = ("saebench",)


def export_features(
    folder: Path,
    out: Path,
    runs: str = "*",
    features: int = 100,
    format: str = "html",
    say: Say = lambda _line: None,
) -> Path:
    """Write features of a study into the folder `out`; return the page to begin with, or the folder written to last.

    runs: pattern of run names. features: how many of each run, evenly spaced over those that fire; 0: all, also dead
    ones. format: one of FEATURE_FORMATS. say: called with one line a run.
    Raises UserError when nothing matches, the format is unknown, or codes or text are missing, damaged or of other
    weights.
    """
    if format not in FEATURE_FORMATS:
        raise UserError(f'--format "{format}": unknown; known are {", ".join(FEATURE_FORMATS)}')
    if format == "html":
        return export(folder, out, runs, features, say)
    study, chosen = choose(folder, runs)
    picked = {run.name: pick(study, run, features) for run in chosen}
    write = write_batches if format == "saedashboard" else write_neuronpedia
    last = out
    for run in chosen:
        last = write(study, run, facts_of(study, run), picked[run.name], out)
        say(f"{run.name}: {len(picked[run.name])} features")
    return last


def export_results(
    folder: Path, out: Path, runs: str = "*", format: str = "saebench", say: Say = lambda _line: None
) -> list[Path]:
    """Write the results of a study's runs into the folder `out` and return the files.

    runs: pattern of run names. format: one of RESULT_FORMATS. say: called with one line a run.
    Raises UserError when nothing matches, the format is unknown, or a run's measurements are missing, damaged or of
    other weights.
    """
    if format not in RESULT_FORMATS:
        raise UserError(f'--format "{format}": unknown; known are {", ".join(RESULT_FORMATS)}')
    study, chosen = choose(folder, runs)
    written: list[Path] = []
    for run in chosen:
        files = write_results(study, run, facts_of(study, run), out)
        say(f"{run.name}: {', '.join(path.parent.name for path in files)}")
        written += files
    return written
