"""Features as the browser's own pages, which open without a server, and which features an export takes."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np

from monosem.app.feature import feature_view, neighbours
from monosem.app.features import table_values
from monosem.app.links import FileLinks
from monosem.app.rendering import palette_css, render, report_css
from monosem.app.study import Run, Study
from monosem.app.table import Query, Table, features_table
from monosem.store import write_bytes, write_text
from monosem.types import UserError

BLOCK = 128  # features whose neighbours are looked for in one pass over all decoders
Say = Callable[[str], object]


def export(folder: Path, out: Path, runs: str = "*", features: int = 100, say: Say = lambda _line: None) -> Path:
    """Write pages of a study's features into the folder `out` and return the file to begin with.

    runs: pattern of run names. features: how many of each run, evenly spaced over those that fire; 0: all, also dead
    ones. say: called with one line a run.
    Raises UserError when nothing matches, or codes or text are missing, damaged or of other weights.
    """
    study, chosen = choose(folder, runs)
    picked = {run.name: pick(study, run, features) for run in chosen}
    for run in chosen:
        _write_pages(study, run, picked, out)
        say(f"{run.name}: {len(picked[run.name])} features")
    _write_assets(out)
    links = FileLinks(root="", pages=set())
    only = {run.name: run for run in chosen}
    write_text(out / "index.html", render("home.html.j2", study, links, runs=only))
    return out / "index.html"


def choose(folder: Path, runs: str) -> tuple[Study, list[Run]]:
    """Return the study and its runs whose name matches the pattern. Raises UserError when there are none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: a study folder is wanted here (one that `monosem compare` wrote)")
    study = Study(folder)
    chosen = [run for name, run in study.runs().items() if fnmatch.fnmatch(name, runs)]
    if not chosen:
        known = ", ".join(study.runs()) or "none"
        raise UserError(f'--runs "{runs}": no trained run of {folder} matches; runs are {known}')
    return study, chosen


def pick(study: Study, run: Run, number: int) -> list[int]:
    """Return `number` features, evenly spaced over those that fire; all of the run, also dead ones, for 0."""
    if not number:
        return list(range(run.d_sae))
    alive = np.flatnonzero(study.firings(run.name).counts)
    spaced = np.linspace(0, len(alive) - 1, min(number, len(alive))).round().astype(np.int64)
    return alive[spaced].tolist()


def _write_pages(study: Study, run: Run, picked: dict[str, list[int]], out: Path) -> None:
    pages = {(name, feature) for name, features in picked.items() for feature in features}
    links = FileLinks(root="../", pages=pages)
    table = features_table(study, run)
    rows = table.rows(np.array(picked[run.name]))
    shown = table_values(study, run, Table(rows, table.columns), Query(), max(1, rows.height))
    write_text(out / run.name / "index.html", render("run.html.j2", study, links, **shown))
    order = picked[run.name]
    for first in range(0, len(order), BLOCK):
        here = order[first : first + BLOCK]
        for i, near in enumerate(neighbours(study, run, here), first):
            values = {
                "run": run,
                "view": feature_view(study, run, order[i], whole=True),
                "near": near,
                "before": order[i - 1] if i else None,
                "after": order[i + 1] if i + 1 < len(order) else None,
                "place": 0,
                "count": 0,
            }
            page = render("feature.html.j2", study, links, **values)
            write_text(out / run.name / f"{order[i]}.html", page)


def _write_assets(out: Path) -> None:
    write_text(out / "assets" / "report.css", report_css())
    write_text(out / "assets" / "palette.css", palette_css())
    for name in ("app.css", "app.js"):
        write_bytes(out / "assets" / name, resources.files("monosem.app").joinpath("assets", name).read_bytes())
