"""The report: one HTML file that works offline, drawn from the files of a study folder.

`render(study_dir)` reads `summary.json`, `study.toml`, `environment.json` and `results/*.charts.json` and writes
`report.html` beside them. It knows no evaluation: charts are data. Imports no torch and no numpy.
"""

from __future__ import annotations

from pathlib import Path

from monosem.report.inputs import read_study
from monosem.report.page import build_page
from monosem.store import write_text


def render(study_dir: Path) -> Path:
    """Write `report.html` into the study folder and return its path.

    Raises UserError when `summary.json` is missing, damaged or of another schema. Any other missing or damaged file
    costs its part of the report and is named there.
    """
    study_dir = Path(study_dir)
    target = study_dir / "report.html"
    write_text(target, build_page(read_study(study_dir)))
    return target


__all__ = ["render"]
