"""Features as files: the browser's own pages, which open without a server, or JSON in Neuronpedia's layout."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from monosem.app.drawing import histogram
from monosem.app.explanations import Explanation
from monosem.app.feature import FeatureView, feature_view, neighbours
from monosem.app.features import table_values
from monosem.app.links import FileLinks
from monosem.app.rendering import palette_css, render, report_css
from monosem.app.study import Run, Study
from monosem.app.table import Query, Table, features_table
from monosem.examples import Example, shade
from monosem.passages import Passages
from monosem.store import write_atomic, write_bytes, write_text
from monosem.types import UserError

FORMATS = ("html", "neuronpedia")
BEFORE, AFTER = 32, 32  # tokens of an exported text
BLOCK = 128  # features whose neighbours are looked for in one pass over all decoders


def export(
    folder: Path,
    out: Path,
    runs: str = "*",
    features: int = 100,
    format: str = "html",
    say: Callable[[str], object] = lambda _line: None,
) -> Path:
    """Write features of a study into the folder `out` and return the file to begin with.

    runs: pattern of run names. features: how many of each run, evenly spaced over those that fire; 0: all, also dead
    ones. format: one of FORMATS. say: called with one line a run.
    Raises UserError when nothing matches, the format is unknown, or codes or text are missing, damaged or of other
    weights.
    """
    if format not in FORMATS:
        raise UserError(f'--format "{format}": unknown; known are {", ".join(FORMATS)}')
    if not folder.is_dir():
        raise UserError(f"{folder}: a study folder is wanted here (one that `monosem compare` wrote)")
    study = Study(folder)
    chosen = [run for name, run in study.runs().items() if fnmatch.fnmatch(name, runs)]
    if not chosen:
        known = ", ".join(study.runs()) or "none"
        raise UserError(f'--runs "{runs}": no trained run of {folder} matches; runs are {known}')
    picked = {run.name: pick(study, run, features) for run in chosen}
    write = _write_pages if format == "html" else _write_neuronpedia
    for run in chosen:
        write(study, run, picked, out)
        say(f"{run.name}: {len(picked[run.name])} features")
    if format == "neuronpedia":
        return out / chosen[0].name / "features.jsonl"
    _write_assets(out)
    links = FileLinks(root="", pages=set())
    only = {run.name: run for run in chosen}
    write_text(out / "index.html", render("home.html.j2", study, links, runs=only))
    return out / "index.html"


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


def _write_neuronpedia(study: Study, run: Run, picked: dict[str, list[int]], out: Path) -> None:
    """Write features.jsonl: one object a feature."""
    model = str(study.summary().get("model") or "")
    passages = study.passages()

    def lines(path: Path) -> None:
        with open(path, "w", encoding="utf-8") as file:
            for feature in picked[run.name]:
                view = feature_view(study, run, feature, whole=True)
                file.write(json.dumps(neuronpedia(view, passages, model), allow_nan=False) + "\n")

    write_atomic(out / run.name / "features.jsonl", lines)


def neuronpedia(view: FeatureView, passages: Passages, model: str) -> dict[str, Any]:
    """Return a feature in Neuronpedia's words (docs/features.md says what stands where)."""
    found = view.examples
    peak = found.peak if found is not None else 0.0
    counts, edges = histogram(view.fires.value, peak) if peak else (np.empty(0, np.int64), np.empty(1))
    return {
        "modelId": model,
        "layer": f"{view.run.site}/{view.run.name}",
        "index": str(view.feature),
        "sourceSetName": view.run.name,
        "hookName": view.run.site,
        "maxActApprox": _rounded(peak),
        "frac_nonzero": len(view.fires.value) / view.tokens if view.tokens else 0.0,
        "pos_str": [logit.text for logit in view.raised],
        "pos_values": [_rounded(logit.value) for logit in view.raised],
        "neg_str": [logit.text for logit in view.lowered],
        "neg_values": [_rounded(logit.value) for logit in view.lowered],
        "freq_hist_data_bar_heights": counts.tolist(),
        "freq_hist_data_bar_values": [_rounded(v) for v in (edges[:-1] + edges[1:]) / 2],
        "logits_hist_data_bar_heights": [],
        "logits_hist_data_bar_values": [],
        "explanations": [_explained(said) for said in view.explanations],
        "activations": list(_activations(view, passages, peak)),
    }


def _explained(said: Explanation) -> dict[str, Any]:
    return {
        "description": said.text,
        "typeName": said.evaluation,
        "explanationModelName": said.author,
        "scores": [{"explanationScoreTypeName": name, "value": _rounded(v)} for name, v in said.scores.items()],
    }


def _activations(view: FeatureView, passages: Passages, peak: float) -> Iterator[dict[str, Any]]:
    if view.examples is None or not peak:
        return
    n = len(view.examples.intervals)
    for example in view.examples.top:
        yield _activation(example, view, passages, (peak * (n - 1) / n, peak, -1.0))
    for i, sample in enumerate(view.examples.intervals):
        bounds = (peak * (n - i - 1) / n, peak * (n - i) / n, view.examples.shares[i])
        for example in sample:
            yield _activation(example, view, passages, bounds)


def _activation(
    example: Example, view: FeatureView, passages: Passages, bounds: tuple[float, float, float]
) -> dict[str, Any]:
    """Return one text. bounds: of its interval, and the share of firings in it; -1 for the strongest contexts."""
    window = passages.window(example.doc, example.pos, BEFORE, AFTER)
    values = [_rounded(v) for v in shade(window, view.fires).tolist()]
    return {
        "tokens": window.text,
        "values": values,
        "maxValue": max(values),
        "maxValueTokenIndex": int(np.argmax(values)),
        "minValue": min(values),
        "qualifyingTokenIndex": window.at,
        "binMin": _rounded(bounds[0]),
        "binMax": _rounded(bounds[1]),
        "binContains": _rounded(bounds[2]),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
