"""Run one evaluation over a study's runs: results with headers on disk, reused while the header matches, and charts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from monosem.evals import Evaluation, Inputs, Judged, Result, RunInfo
from monosem.schema import SCHEMA_VERSION
from monosem.store import read_json, value_hash, write_atomic, write_json
from monosem.types import Estimate


def result_folder(folder: Path, run: str, name: str) -> Path:
    """Where a run's result of one evaluation lies."""
    return folder / "results" / run / name


def evaluate(evaluation: Evaluation, name: str, inputs: Inputs, sources: dict[str, Any]) -> bool:
    """Judge every run that has no current result, write results and charts; return whether anything was new.

    sources: hashes of what the evaluation reads besides the SAEs. Files: results/<run>/<name>/result.json and
    rows.parquet, results/<name>.charts.json.
    """
    headers = {info.name: _header(evaluation, name, info, inputs, sources) for info in inputs.runs}
    todo = [info for info in inputs.runs if not _current(inputs.folder, info, name, headers[info.name])]
    if todo:
        prepared = evaluation.prepare(inputs)
        for info in todo:
            _write(result_folder(inputs.folder, info.name, name), headers[info.name], evaluation.run(info, prepared))
    charts_path = inputs.folder / "results" / f"{name}.charts.json"
    if not todo and charts_path.exists() and _charted(inputs.folder, name) == value_hash(list(headers.values())):
        return False
    charts = evaluation.figure(load_results(inputs, name))
    write_json(charts_path, [chart.as_dict() for chart in charts])
    write_json(inputs.folder / "results" / f"{name}.header.json", value_hash(list(headers.values())))
    return True


def _charted(folder: Path, name: str) -> str | None:
    path = folder / "results" / f"{name}.header.json"
    return read_json(path) if path.exists() else None


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
        "inputs": sources,
    }


def _current(folder: Path, info: RunInfo, name: str, header: dict[str, Any]) -> bool:
    path = result_folder(folder, info.name, name) / "result.json"
    return path.exists() and read_json(path)["header"] == header


def _write(folder: Path, header: dict[str, Any], result: Result) -> None:
    write_atomic(folder / "rows.parquet", result.rows.write_parquet)
    scalars = {key: None if value is None else value.as_dict() for key, value in result.scalars.items()}
    write_json(folder / "result.json", {"header": header, "scalars": scalars, "reasons": result.reasons})


def load_results(inputs: Inputs, name: str) -> list[Judged]:
    """Return every run with its stored result of one evaluation."""
    judged = []
    for info in inputs.runs:
        folder = result_folder(inputs.folder, info.name, name)
        stored = read_json(folder / "result.json")
        scalars = {key: None if value is None else Estimate(**value) for key, value in stored["scalars"].items()}
        rows = pl.read_parquet(folder / "rows.parquet")
        judged.append(Judged(info, Result(scalars, rows, stored["reasons"])))
    return judged
