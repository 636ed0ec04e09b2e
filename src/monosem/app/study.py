"""A study folder as the browser reads it: files are opened when they are needed, kept, and reread when they change."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from monosem.firings import PANIC, Firings, codes_folder, open_firings, require_current
from monosem.passages import Passages, open_passages
from monosem.store import read_json
from monosem.types import UserError

SUMMARY = {"runs": list, "tokens": dict, "headline": dict}  # what is used as such
Take = Callable[[pl.DataFrame], pl.DataFrame | None]
KEPT = 64  # opened files; a table of 65,536 features with 20 columns takes 10 MB


@dataclass(frozen=True)
class Run:
    """What is known of a run before its features are opened. numbers: its entry in summary.json, empty without one."""

    name: str
    variant: str
    d_sae: int
    site: str
    numbers: dict[str, Any]

    def number(self, name: str) -> float | None:
        """Return an estimate's value, None where there is none."""
        found = self.numbers.get(name)
        value = found.get("value") if isinstance(found, dict) else found
        return value if isinstance(value, int | float) else None


class Study:
    """A study folder, read."""

    def __init__(self, folder: Path):
        """Look at nothing yet."""
        self.folder = folder
        self._opened: OrderedDict[tuple[Hashable, ...], tuple[Any, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def summary(self) -> dict[str, Any]:
        """Return the content of summary.json, empty when there is none that can be read."""
        path = self.folder / "summary.json"
        return self._kept(("summary",), [path], lambda: _summary(path))

    def runs(self) -> dict[str, Run]:
        """Return the trained runs by name, in the order of the summary."""
        found = sorted((self.folder / "saes").glob("*/cfg.json"))
        return self._kept(("runs",), [*found, self.folder / "summary.json"], lambda: self._read_runs(found))

    def _read_runs(self, found: list[Path]) -> dict[str, Run]:
        entries = [e for e in self.summary().get("runs", []) if isinstance(e, dict)]
        numbers = {str(entry.get("name")): entry for entry in entries}
        runs = {}
        for path in found:
            cfg = _object(path)
            ours, name = _dict(cfg.get("monosem")), path.parent.name
            variant = str(ours.get("variant") or cfg.get("architecture") or "")
            if isinstance(cfg.get("d_sae"), int):
                runs[name] = Run(name, variant, cfg["d_sae"], str(ours.get("site") or ""), numbers.get(name, {}))
        order = {name: place for place, name in enumerate(numbers)}
        return {name: runs[name] for name in sorted(runs, key=lambda name: (order.get(name, len(order)), name))}

    def firings(self, run: str) -> Firings:
        """Return a run's codes. Raises UserError when they are missing, damaged, or of other weights or text."""

        def opened() -> Firings:
            firings = open_firings(self.folder, run)
            require_current(firings)
            return firings

        return self._kept(("firings", run), self.codes_files(run), opened)

    def codes_files(self, run: str) -> list[Path]:
        """Return the files that tell whether what was read of a run's codes still holds."""
        codes = codes_folder(self.folder, run)
        return [codes / "meta.json", codes.parent / "passages.json", self.folder / "saes" / run / "cfg.json"]

    def passages(self) -> Passages:
        """Return the held-out text. Raises UserError when it is missing or damaged."""
        path = self.folder / "codes" / "passages.json"
        return self._kept(("passages",), [path], lambda: open_passages(self.folder))

    def rows(self, run: str, evaluation: str, take: Take | None = None) -> pl.DataFrame | None:
        """Return what `take` makes of an evaluation's rows of a run; without it the rows, when they are one a feature.

        None where they are missing or damaged, not said to be of the run's weights, or not what `take` can read.
        """
        taken, paths = take or _one_a_feature, self.rows_files(run, evaluation)
        return self._kept(("rows", run, evaluation, taken), paths, lambda: _rows(paths, taken))

    def rows_files(self, run: str, evaluation: str) -> list[Path]:
        """Return the files that an evaluation's rows of a run depend on, the rows first."""
        where = self.folder / "results" / run / evaluation
        return [where / "rows.parquet", where / "result.json", self.folder / "saes" / run / "cfg.json"]

    def evaluations(self, run: str) -> list[str]:
        """Return the evaluations of a run that left rows."""
        return sorted(path.parent.name for path in (self.folder / "results" / run).glob("*/rows.parquet"))

    def settings(self, run: str, evaluation: str) -> dict[str, Any]:
        """Return the settings that an evaluation's result was made with, empty when that can't be read."""
        path = self.folder / "results" / run / evaluation / "result.json"
        found = self._kept(("settings", run, evaluation), [path], lambda: _object(path))
        return _dict(_dict(found.get("header")).get("settings"))

    def kept(self, key: tuple[str, ...], paths: list[Path], make: Callable[[], Any]) -> Any:
        """Return `make()`, or what it returned before as long as none of the files `paths` has changed."""
        return self._kept(("other", *key), paths, make)

    def _kept(self, key: tuple[Hashable, ...], paths: list[Path], make: Callable[[], Any]) -> Any:
        stamp = [path.stat().st_mtime_ns if path.exists() else 0 for path in paths]
        with self._lock:
            if key in self._opened and self._opened[key][0] == stamp:
                self._opened.move_to_end(key)
                return self._opened[key][1]
        made = make()
        with self._lock:
            self._opened[key] = stamp, made
            while len(self._opened) > KEPT:
                self._opened.popitem(last=False)
        return made


def _object(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except UserError:
        return {}
    return _dict(found)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _summary(path: Path) -> dict[str, Any]:
    return {key: value for key, value in _object(path).items() if isinstance(value, SUMMARY.get(key, object))}


def _rows(paths: list[Path], take: Take) -> pl.DataFrame | None:
    path, result, cfg = paths
    judged, now = _dict(_object(result).get("header")).get("sae"), _dict(_object(cfg).get("monosem"))
    if judged is None or judged != now.get("weights_sha256"):
        return None
    try:
        return take(pl.read_parquet(path, glob=False))
    except (OSError, pl.exceptions.PolarsError, PANIC):
        return None


def _one_a_feature(rows: pl.DataFrame) -> pl.DataFrame | None:
    """Return the rows as they are, None when they are not about features, each at most once."""
    if "feature" not in rows.columns or not rows.schema["feature"].is_integer():
        return None
    feature = rows["feature"]
    return rows if feature.is_unique().all() and feature.is_between(0, 2**31 - 1).all(ignore_nulls=False) else None
