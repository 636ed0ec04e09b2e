"""Run one evaluation over a study's runs: results with headers on disk, reused while the header matches, and charts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import polars as pl

from monosem.evals import Evaluation, Inputs, Judged, Result, RunInfo
from monosem.schema import SCHEMA_VERSION
from monosem.store import read_json, write_atomic, write_json
from monosem.types import Estimate, UserError


def result_folder(folder: Path, run: str, name: str) -> Path:
    """Where a run's result of one evaluation lies."""
    return folder / "results" / run / name


def evaluate(
    evaluation: Evaluation, name: str, inputs: Inputs, sources: dict[str, Any], only: Collection[str] | None = None
) -> int:
    """Judge every run that has no current result, and write the charts; return how many were judged.

    sources: hashes of what the evaluation reads besides the SAEs. only: names of the runs to judge; the charts show
    every run that has a current result. Files: results/<run>/<name>/result.json and rows.parquet,
    results/<name>.charts.json.
    """
    headers = _headers(evaluation, name, inputs, sources)
    todo = _lacking(headers, inputs, name, only)
    if todo:
        prepared = evaluation.prepare(inputs)
        for info in todo:
            _write(result_folder(inputs.folder, info.name, name), headers[info.name], evaluation.run(info, prepared))
    shown = [info for info in inputs.runs if _current(inputs.folder, info, name, headers[info.name])]
    charts = evaluation.figure(load_results(replace(inputs, runs=shown), name))
    write_json(inputs.folder / "results" / f"{name}.charts.json", [chart.as_dict() for chart in charts])
    return len(todo)


def to_judge(
    evaluation: Evaluation, name: str, inputs: Inputs, sources: dict[str, Any], only: Collection[str] | None = None
) -> list[RunInfo]:
    """Return the runs, `only` among these names, whose result is missing, out of date or incomplete."""
    return _lacking(_headers(evaluation, name, inputs, sources), inputs, name, only)


def _lacking(headers: dict[str, Any], inputs: Inputs, name: str, only: Collection[str] | None) -> list[RunInfo]:
    partial = incomplete(inputs, name)
    wanted = [info for info in inputs.runs if only is None or info.name in only]
    return [i for i in wanted if i.name in partial or not _current(inputs.folder, i, name, headers[i.name])]


def _headers(evaluation: Evaluation, name: str, inputs: Inputs, sources: dict[str, Any]) -> dict[str, Any]:
    return {info.name: _header(evaluation, name, info, inputs, sources) for info in inputs.runs}


def _header(
    evaluation: Evaluation, name: str, info: RunInfo, inputs: Inputs, sources: dict[str, Any]
) -> dict[str, Any]:
    settings = {**asdict(evaluation), "bootstrap": inputs.bootstrap}
    return {
        "schema": SCHEMA_VERSION,
        "eval": name,
        "version": evaluation.version,
        "settings": settings,
        "sae": info.sae,
        "inputs": {**sources, **evaluation.reads(inputs, info)},
    }


def _current(folder: Path, info: RunInfo, name: str, header: dict[str, Any]) -> bool:
    path = result_folder(folder, info.name, name) / "result.json"
    return path.exists() and read_json(path)["header"] == header


def _write(folder: Path, header: dict[str, Any], result: Result) -> None:
    write_atomic(folder / "rows.parquet", result.rows.write_parquet)
    scalars = {key: None if value is None else value.as_dict() for key, value in result.scalars.items()}
    stored = {"header": header, "scalars": scalars, "reasons": result.reasons}
    write_json(folder / "result.json", stored | ({"incomplete": result.incomplete} if result.incomplete else {}))


def incomplete(inputs: Inputs, name: str) -> dict[str, str]:
    """Return what is missing from results of one evaluation, in words, by run; complete ones are left out."""
    found = {}
    for info in inputs.runs:
        path = result_folder(inputs.folder, info.name, name) / "result.json"
        if path.exists() and (missing := read_json(path).get("incomplete")):
            found[info.name] = missing
    return found


def last_settings(evaluation: Evaluation, name: str, inputs: Inputs) -> dict[str, Any]:
    """Return the settings that the results on disk share, {} if they differ or there are none.

    With these, the measure stage keeps what `monosem eval NAME --set ...` made instead of making it anew.
    """
    found: list[dict[str, Any]] = []
    for info in inputs.runs:
        path = result_folder(inputs.folder, info.name, name) / "result.json"
        if path.exists():
            found.append({k: v for k, v in read_json(path)["header"]["settings"].items() if k != "bootstrap"})
    alike = found and all(settings == found[0] for settings in found) and set(found[0]) == set(asdict(evaluation))
    return found[0] if alike else {}


def load_results(inputs: Inputs, name: str) -> list[Judged]:
    """Return every run with its stored result of one evaluation.

    Raises UserError when a result is missing, or belongs to other weights than the run has now.
    """
    judged = []
    for info in inputs.runs:
        folder = result_folder(inputs.folder, info.name, name)
        stored = read_json(folder / "result.json")
        if stored["header"]["sae"] != info.sae:
            raise UserError(
                f"{folder / 'result.json'}: belongs to other weights of {info.name}; run `monosem measure` first"
            )
        scalars = {key: None if value is None else Estimate(**value) for key, value in stored["scalars"].items()}
        rows = pl.read_parquet(folder / "rows.parquet")
        judged.append(Judged(info, Result(scalars, rows, stored["reasons"])))
    return judged
