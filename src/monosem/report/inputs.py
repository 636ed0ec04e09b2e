"""Reads a study folder for the report: the summary, the charts, and what is needed to say where they came from."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from monosem.schema import SCHEMA_VERSION, Axis, Chart, Series
from monosem.store import read_json
from monosem.types import UserError

CHART_KINDS = ("line", "points", "bars", "steps", "table")


OPTIONAL_FIELDS: dict[str, tuple[type, str]] = {
    "headline": (dict, "an object"),
    "tokens": (dict, "an object"),
    "training": (dict, "an object"),
    "stages": (dict, "an object"),
    "sources": (list, "a list"),
    "caveats": (list, "a list"),
}


@dataclass(frozen=True)
class Study:
    """What the report is drawn from. `notes` name the files (or charts) that were left out, and why."""

    summary: dict[str, Any]
    charts: list[Chart] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    toml: str | None = None
    environment: dict[str, Any] | None = None

    @property
    def runs(self) -> list[dict[str, Any]]:
        """The runs of the summary, one object each."""
        return self.summary["runs"]


def read_study(folder: Path) -> Study:
    """Read everything that the report shows. Raises UserError when the summary can't be used."""
    summary = _read_summary(folder / "summary.json")
    charts, notes = _read_charts(folder)
    toml = None
    try:
        toml = (folder / "study.toml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        notes.append(f"study.toml: not shown ({_reason(error)})")
    environment = None
    try:
        environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        if not isinstance(environment, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        environment = None
        notes.append(f"environment.json: not shown ({_reason(error)})")
    return Study(summary, charts, notes, toml, environment)


def _reason(error: Exception) -> str:
    return "no such file" if isinstance(error, FileNotFoundError) else str(error)


def _read_summary(path: Path) -> dict[str, Any]:
    summary = read_json(path)
    again = "delete it and run the measure stage again"
    if not isinstance(summary, dict) or not isinstance(summary.get("runs"), list):
        raise UserError(f"{path}: field `runs` must be a list of runs; {again}")
    if summary.get("schema") != SCHEMA_VERSION:
        raise UserError(
            f"{path}: field `schema` is {summary.get('schema')!r}, this version of monosem reads {SCHEMA_VERSION}; "
            "run the measure stage again with this version"
        )
    for key, (kind, word) in OPTIONAL_FIELDS.items():
        if not isinstance(summary.get(key), kind | None):
            raise UserError(f"{path}: field `{key}` must be {word}; {again}")
    for index, run in enumerate(summary["runs"]):
        if not isinstance(run, dict) or not isinstance(run.get("name"), str):
            raise UserError(f"{path}: runs[{index}] must be an object with a `name`; {again}")
        if not isinstance(run.get("variant"), str) or not isinstance(run.get("hyper", {}), dict):
            raise UserError(f"{path}: run {run['name']} needs `variant` (text) and `hyper` (an object); {again}")
    return summary


def _read_charts(folder: Path) -> tuple[list[Chart], list[str]]:
    charts: list[Chart] = []
    notes: list[str] = []
    for path in sorted((folder / "results").glob("*.charts.json")):
        name = f"results/{path.name}"
        try:
            items = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            notes.append(f"{name}: not shown ({_reason(error)})")
            continue
        if not isinstance(items, list):
            notes.append(f"{name}: not shown (not a list of charts)")
            continue
        for index, item in enumerate(items):
            try:
                charts.append(parse_chart(item, default_section=_section_of(path)))
            except (KeyError, TypeError, ValueError) as error:
                notes.append(f"{name}: chart {index + 1} is not shown ({error})")
    return charts, notes


def _section_of(path: Path) -> str:
    return path.name.removesuffix(".charts.json").replace("_", " ").replace("-", " ").capitalize()


def parse_chart(value: Any, default_section: str = "Other") -> Chart:
    """Return the chart that a JSON object describes; unknown keys are ignored, a broken chart raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    known = _known(Chart, value)
    for key in ("id", "title", "kind"):
        if not isinstance(known.get(key), str):
            raise ValueError(f"no `{key}`")
    if known["kind"] not in CHART_KINDS:
        raise ValueError(f"unknown kind `{known['kind']}`, known are {', '.join(CHART_KINDS)}")
    known["section"] = str(known.get("section") or default_section)
    known["x"] = _parse_axis(known.get("x"))
    known["y"] = _parse_axis(known.get("y"))
    if not all(isinstance(row, list) for row in [known.get("columns", []), *known.get("cells", [])]):
        raise ValueError("`columns` and the rows of `cells` must be lists")
    known["series"] = [_parse_series(item) for item in known.get("series") or []]
    return Chart(**known)


def _known(cls: type, value: dict[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(cls)}
    return {key: item for key, item in value.items() if key in names}


def _parse_axis(value: Any) -> Axis:
    if value is None:
        return Axis("")
    if not isinstance(value, dict):
        raise ValueError("an axis is not a JSON object")
    return Axis(**{"label": "", **_known(Axis, value)})


def _parse_series(value: Any) -> Series:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError("a series without `name`")
    known = _known(Series, value)
    count = len(known["x"]) if isinstance(known.get("x"), list) else -1
    for key in ("x", "y", "y_low", "y_high", "x_low", "x_high", "hover", "join", "labels"):
        column = known.get(key)
        if column is None and key not in ("x", "y"):
            continue
        if not isinstance(column, list) or len(column) != count:
            raise ValueError(f"series {known['name']}: `{key}` is not a list as long as `x`")
    return Series(**known)


def finite(value: Any) -> float | None:
    """Return the number, or None for anything that is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value
