"""The tables of the report: which columns, which cells, and the definition that stands beside each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from monosem.definitions import METRICS
from monosem.report.inputs import finite
from monosem.report.numbers import decimals_for, fixed, plain, short, tokens
from monosem.schema import Chart

DASH = "–"
NBSP = "\u00a0"


@dataclass(frozen=True)
class Cell:
    """One cell: the text, the interval below it, what it sorts by, and why it is empty."""

    text: str
    interval: str = ""
    sort: float | str | None = None
    reason: str = ""
    variant: str | None = None
    detail: str = ""


@dataclass(frozen=True)
class Column:
    """A column's heading, unit and definition."""

    label: str
    unit: str = ""
    definition: str = ""
    number: bool = True


@dataclass(frozen=True)
class Table:
    """A sortable table. `id` names it for links and tests."""

    id: str
    caption: str
    columns: list[Column]
    rows: list[list[Cell]] = field(default_factory=list)


def metric_names(runs: list[dict[str, Any]]) -> list[str]:
    """Return the metrics that at least one run has, in schema order, then estimates that the schema doesn't know."""
    known = [name for name in METRICS if any(name in run for run in runs)]
    unknown = {key for run in runs for key, value in run.items() if isinstance(value, dict) and "value" in value}
    return known + sorted(unknown - set(known))


def metric_column(name: str) -> Column:
    """Return the column of a metric; one without a definition says so."""
    metric = METRICS.get(name)
    if metric is None:
        return Column(name, definition="This version of monosem has no definition of this quantity.")
    return Column(metric.label, metric.unit, metric.definition)


def estimate_cells(runs: list[dict[str, Any]], name: str) -> list[Cell]:
    """Return one cell a run, all with the same number of decimals; a missing value says why."""
    estimates = [run.get(name) if isinstance(run.get(name), dict) else None for run in runs]
    decimals = decimals_for([estimate for estimate in estimates if estimate])
    return [
        _estimate_cell(estimate, decimals, reason_for(run, name)) for run, estimate in zip(runs, estimates, strict=True)
    ]


def reason_for(run: dict[str, Any], name: str) -> str:
    """Return why a run lacks a number."""
    reasons = run.get("reasons")
    reason = reasons.get(name) if isinstance(reasons, dict) else None
    if reason:
        return str(reason)
    return "Not a finite number." if isinstance(run.get(name), dict) else "Not measured for this run."


def _estimate_cell(estimate: dict[str, Any] | None, decimals: int, reason: str) -> Cell:
    value, low, high = (finite((estimate or {}).get(key)) for key in ("value", "low", "high"))
    if value is None:
        return Cell(DASH, reason=reason)
    interval = ""
    if low is not None and high is not None and high > low:
        interval = f"[{fixed(low, decimals)}, {fixed(high, decimals)}]"
    count = finite((estimate or {}).get("n"))
    return Cell(fixed(value, decimals), interval, value, detail=f"n = {short(count)}" if count else "")


def varying(runs: list[dict[str, Any]], variant: str) -> list[str]:
    """Return the hyperparameters that differ between the runs of a variant (all of them for a single run)."""
    hypers = [run.get("hyper") or {} for run in runs if run["variant"] == variant]
    keys = list(dict.fromkeys(key for hyper in hypers for key in hyper))
    if len(hypers) == 1:
        return keys
    return [key for key in keys if len({repr(hyper.get(key)) for hyper in hypers}) > 1]


def run_cells(runs: list[dict[str, Any]], labels: dict[str, str]) -> list[Cell]:
    """Return the first cell of each run: variant, what sets it apart, and the run's name."""
    seeds = len({run.get("seed") for run in runs}) > 1
    keys = {variant: varying(runs, variant) for variant in {run["variant"] for run in runs}}
    cells = []
    for position, run in enumerate(runs):
        hyper = run.get("hyper") or {}
        parts = [f"{key}{NBSP}={NBSP}{plain(hyper[key])}" for key in keys[run["variant"]] if key in hyper]
        if seeds and run.get("seed") is not None:
            parts.append(f"seed{NBSP}{plain(run['seed'])}")
        text = labels[run["variant"]]
        cells.append(Cell(text, sort=position, variant=run["variant"], detail=", ".join(parts), reason=run["name"]))
    return cells


def seed_table(runs: list[dict[str, Any]], labels: dict[str, str]) -> Table:
    """Return the table of run types: L0 and how many features fire often, with dead and total."""
    names = ["l0", "features_above_1e-2", "features_above_1e-3"]
    columns = [Column("Run type", number=False), *[metric_column(name) for name in names]]
    columns.append(Column("Dead", "features", METRICS["dead_fraction"].definition))
    columns.append(Column("Total", "features", "Number of features of the autoencoder (d_sae)."))
    by_column = [run_cells(runs, labels), *[estimate_cells(runs, name) for name in names]]
    by_column += [[_dead_cell(run) for run in runs], [_count_cell(run, "d_sae") for run in runs]]
    caption = "Run types, their sparsity and how often their features fire"
    return Table("runs-table", caption, columns, [list(row) for row in zip(*by_column, strict=True)])


def _dead_cell(run: dict[str, Any]) -> Cell:
    """Return the number of dead features, with the interval of the dead fraction in features."""
    share = run.get("dead_fraction") if isinstance(run.get("dead_fraction"), dict) else {}
    total, count = finite(run.get("d_sae")), finite(run.get("dead"))
    value, low, high = (finite((share or {}).get(key)) for key in ("value", "low", "high"))
    if count is None and total is not None and value is not None:
        count = round(value * total)
    if count is None:
        return Cell(DASH, reason=reason_for(run, "dead_fraction"))
    interval = ""
    if total is not None and low is not None and high is not None and high > low:
        interval = f"[{fixed(low * total, 0)}, {fixed(high * total, 0)}]"
    detail = f"{100 * count / total:.1f} % of {fixed(total, 0)} features" if total else ""
    return Cell(fixed(count, 0), interval, count, detail=detail)


def _count_cell(run: dict[str, Any], key: str) -> Cell:
    count = finite(run.get(key))
    return Cell(DASH, reason=reason_for(run, key)) if count is None else Cell(fixed(count, 0), sort=count)


def metrics_table(runs: list[dict[str, Any]], labels: dict[str, str]) -> Table:
    """Return the table of every measured quantity."""
    names = metric_names(runs)
    columns = [Column("Run", number=False), *[metric_column(name) for name in names]]
    columns.append(Column("Training", "tokens", "Tokens that the run was trained on."))
    columns.append(Column("Speed", "tokens a second", "Training throughput, all runs that trained together."))
    by_column = [run_cells(runs, labels), *[estimate_cells(runs, name) for name in names]]
    by_column.append([_token_cell(run, "tokens") for run in runs])
    by_column.append([_token_cell(run, "train_tokens_per_second") for run in runs])
    caption = "Every measured quantity, with its 95 % interval"
    return Table("metrics-table", caption, columns, [list(row) for row in zip(*by_column, strict=True)])


def _token_cell(run: dict[str, Any], key: str) -> Cell:
    value = finite(run.get(key))
    return Cell(DASH, reason=reason_for(run, key)) if value is None else Cell(tokens(value), sort=value)


def chart_table(chart: Chart) -> Table:
    """Return the table that a chart of kind `table` holds; cells may be text, numbers or estimates."""
    width = len(chart.columns)
    padded = [[*row, *[None] * width][:width] for row in chart.cells]
    decimals = [decimals_for([cell for cell in cells if isinstance(cell, dict)]) for cells in zip(*padded, strict=True)]
    rows = [[_any_cell(*pair) for pair in zip(row, decimals, strict=True)] for row in padded]
    numeric = [
        any(cell.sort is not None for cell in cells) and all(not isinstance(cell.sort, str) for cell in cells)
        for cells in (list(zip(*rows, strict=True)) if rows else [()] * width)
    ]
    columns = [Column(str(name), number=numeric[index]) for index, name in enumerate(chart.columns)]
    return Table(f"chart-{chart.id}", chart.title, columns, rows)


def _any_cell(value: Any, decimals: int) -> Cell:
    if isinstance(value, dict):
        return _estimate_cell(value, decimals, "Not measured.")
    number = finite(value)
    if number is not None:
        return Cell(short(number), sort=number)
    if value is None or isinstance(value, float):
        return Cell(DASH, reason="Not measured.")
    return Cell(plain(value), sort=plain(value))
