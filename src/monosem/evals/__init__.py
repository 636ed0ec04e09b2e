"""Evaluations: one file or folder each, found by name.

An evaluation is a frozen dataclass whose fields are its settings. It reads what earlier stages wrote (`needs`), does
what is common to all SAEs once (`prepare`), judges one run at a time (`run`) and describes its charts as data
(`figure`). `version` rises when numbers may change.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import polars as pl
from pydantic import TypeAdapter, ValidationError

from monosem.progress import Ticker
from monosem.schema import Chart, Series
from monosem.store import value_hash, write_atomic
from monosem.types import Estimate, UserError

if TYPE_CHECKING:
    from monosem.model import Model


@dataclass(frozen=True)
class RunInfo:
    """What an evaluation may know of a run without loading it.

    sae: SHA-256 of its weights; variant, hyper, seed: how it was made. folder: of the SAE.
    """

    name: str
    variant: str
    hyper: dict[str, Any]
    seed: int
    d_sae: int
    sae: str
    folder: Path


@dataclass(frozen=True)
class Inputs:
    """What `prepare` gets: the study folder, its runs, and the settings of its `[measure]` section.

    site: where the activations were read. model: loads the study's language model, once; None where there is none.
    ticker: opens progress bars.
    """

    folder: Path
    runs: list[RunInfo]
    bootstrap: int = 1000
    site: str = ""
    model: Callable[[], Model] | None = None
    ticker: Ticker = field(default_factory=Ticker)


@dataclass(frozen=True)
class Result:
    """What `run` returns. scalars: estimates by name, None where undefined; reasons: why; rows: a table.

    incomplete: what is missing from it, in words; such a run is judged again when the same command is repeated.
    """

    scalars: dict[str, Estimate | None]
    rows: pl.DataFrame
    reasons: dict[str, str] = field(default_factory=dict)
    incomplete: str = ""


@dataclass(frozen=True)
class Judged:
    """A run with its result, as `figure` gets it."""

    info: RunInfo
    result: Result

    def value(self, name: str) -> float:
        """Return a scalar's point value, NaN where undefined."""
        estimate = self.result.scalars.get(name)
        return float("nan") if estimate is None else estimate.value


@dataclass(frozen=True)
class Evaluation:
    """Interface of an evaluation."""

    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ()

    def reads(self, inputs: Inputs, info: RunInfo) -> dict[str, Any]:
        """Return hashes of what a run's result depends on besides its SAE and the sums; they go into its header."""
        return {}

    def prepare(self, inputs: Inputs) -> Any:
        """Do once what serves all runs."""
        raise NotImplementedError

    def run(self, info: RunInfo, prepared: Any) -> Result:
        """Judge one run."""
        raise NotImplementedError

    def figure(self, judged: list[Judged]) -> list[Chart]:
        """Return the charts of these results."""
        raise NotImplementedError

    def estimate(self, inputs: Inputs) -> list[str]:
        """Return what judging the runs would cost, a line each; nothing is spent. Raises UserError where it is free."""
        raise UserError(f"--dry-run: evaluation {type(self).__name__.lower()} costs no tokens; run it without")


@dataclass(frozen=True)
class Kept:
    """A table on disk with what it depends on (JSON values)."""

    path: Path
    depends: Any

    @cached_property
    def stored(self) -> pl.DataFrame | None:
        """The table if it is there and was made from the same things."""
        if self.path.exists() and pl.read_parquet_metadata(self.path).get("depends") == value_hash(self.depends):
            return pl.read_parquet(self.path)
        return None

    def get(self, made: Callable[[], pl.DataFrame]) -> pl.DataFrame:
        """Return the table; made and written if it isn't there."""
        if self.stored is not None:
            return self.stored
        rows, metadata = made(), {"depends": value_hash(self.depends)}
        write_atomic(self.path, lambda to: rows.write_parquet(to, metadata=metadata))
        return rows


def evaluation_names() -> list[str]:
    """Return the names of all evaluations: the modules of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def make_evaluation(name: str, settings: dict[str, Any] | None = None) -> Evaluation:
    """Return the evaluation `name`. Raises UserError for an unknown name or setting."""
    if name not in evaluation_names():
        raise UserError(f'evaluation "{name}": unknown; known are {", ".join(evaluation_names())}')
    module = importlib.import_module(f"{__name__}.{name}")
    found = [
        v
        for v in vars(module).values()
        if isinstance(v, type) and issubclass(v, Evaluation) and v.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define exactly one Evaluation, found {len(found)}")
    known = [setting.name for setting in fields(found[0])]
    for key in settings or {}:
        if key not in known:
            raise UserError(f'{key}: unknown setting of evaluation "{name}"; known are {", ".join(known) or "none"}')
    try:
        return TypeAdapter(found[0]).validate_python(settings or {})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f'{where} = {first["input"]!r}: {first["msg"]} (evaluation "{name}")') from error


def hyper_text(info: RunInfo) -> str:
    """Return a run's hyperparameters as one readable line."""
    return ", ".join(
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in info.hyper.items()
    )


def setting(info: RunInfo) -> str:
    """Return a key that is equal for runs that differ in their seed only."""
    return f"{info.variant} {info.d_sae} {hyper_text(info)}"


def short(value: Any) -> float | None:
    """Return a number to three digits, as the cell of a table; None where there is none, or NaN."""
    return None if value is None or value != value else float(f"{value:.3g}")


def interval(e: Estimate | None, form: str = ".3f") -> str | None:
    """Return an estimate with its interval as text, None where there is none."""
    return None if e is None else f"{e.value:{form}} [{e.low:{form}}, {e.high:{form}}]"


def cell(e: Estimate | None) -> dict[str, Any] | None:
    """Return an estimate as the cell of a table."""
    return None if e is None else e.as_dict()


def scored(e: Estimate) -> dict[str, Any]:
    """Return an estimate as the columns of a row: score, low, high, n."""
    return {"score": e.value, "low": e.low, "high": e.high, "n": e.n}


def fair_sample(rows: pl.DataFrame, by: list[str], order: list[str], size: int, seed: int) -> pl.DataFrame:
    """Return up to `size` rows of each group `by`, in the order of the rows.

    They are drawn systematically (every n-th, from a random start) from a random order sorted by the columns `order`,
    so that every row of a group is as likely to be drawn and values of the first one keep their proportion to within 1.
    """
    rng = np.random.default_rng(seed)
    kept = rows.with_row_index("row").with_columns(shuffled=pl.Series(rng.permutation(rows.height)))
    chosen: list[int] = []
    for _, group in kept.sort(*by, *order, "shuffled").group_by(by, maintain_order=True):
        few = min(size, group.height)
        chosen += group["row"].gather(((np.arange(few) + rng.random()) * group.height / few).astype(np.int64)).to_list()
    return rows[sorted(chosen)]


def without_empty(columns: list[str], cells: list[list[Any]]) -> tuple[list[str], list[list[Any]]]:
    """Return a table without the columns in which no row has anything."""
    kept = [i for i in range(len(columns)) if any(row[i] is not None for row in cells)]
    return [columns[i] for i in kept], [[row[i] for i in kept] for row in cells]


def against_l0(name: str, judged: list[Judged], scalar: str, hover: Callable[[Judged, Estimate], str]) -> list[Series]:
    """Return a line of a scalar against L0, through the means over seeds, with the interval of each point.

    Nothing where no run has the scalar. hover: what a point says.
    """
    points = [(j, e) for j in judged if (e := j.result.scalars.get(scalar)) is not None]
    points.sort(key=lambda point: point[0].value("l0"))
    if not points:
        return []
    return [
        Series(
            name,
            [j.value("l0") for j, _ in points],
            [e.value for _, e in points],
            group=name,
            y_low=[e.low for _, e in points],
            y_high=[e.high for _, e in points],
            hover=[hover(j, e) for j, e in points],
            join=[setting(j.info) for j, _ in points],
        )
    ]


def at_like_l0(judged: list[Judged], l0: dict[str, float]) -> list[Judged]:
    """Return one run a variant, those whose L0 lies nearest to the middle of the range that all variants share.

    l0: of each run, by name. The middle is geometric; where the ranges don't overlap it is the median of all L0.
    """
    by_variant: dict[str, list[Judged]] = {}
    for one in judged:
        if l0.get(one.info.name, 0) > 0:
            by_variant.setdefault(one.info.variant, []).append(one)
    if not by_variant:
        return []
    lows = [min(l0[j.info.name] for j in group) for group in by_variant.values()]
    highs = [max(l0[j.info.name] for j in group) for group in by_variant.values()]
    low, high = max(lows), min(highs)
    everything = sorted(l0[j.info.name] for group in by_variant.values() for j in group)
    middle = (low * high) ** 0.5 if low < high else everything[len(everything) // 2]
    return [min(group, key=lambda j: abs(math.log(l0[j.info.name] / middle))) for group in by_variant.values()]
