"""The shapes of what is reported: charts as data, and the fields of summary.json. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Axis:
    """A chart axis: what it shows, its unit, and whether it is logarithmic."""

    label: str
    unit: str = ""
    log: bool = False
    reference: float | None = None  # a value worth a thin line across the plot (1: unbiased, lossless)


@dataclass(frozen=True)
class Series:
    """One line, bar group or point set of a chart. `group` picks the colour (usually the variant)."""

    name: str
    x: list[Any]
    y: list[Any]
    group: str = ""
    y_low: list[float] | None = None
    y_high: list[float] | None = None
    hover: list[str] | None = None  # one text a point; plain text, line breaks as \n
    x_low: list[float] | None = None
    x_high: list[float] | None = None
    join: list[str] | None = None  # one key a point: the line runs through the means of equal keys (seeds of a run)
    labels: list[str] | None = None  # one word a point, written beside it
    path: bool = False  # points of a `points` chart are joined in the order given


@dataclass(frozen=True)
class Chart:
    """A chart as data. The report draws it without knowing the evaluation that made it.

    kind: `line` (points joined in x order), `points`, `bars`, `steps` (a histogram outline: x are bin centres,
    y are counts) or `table` (then `columns` and `cells` hold the content and the axes are unused).
    """

    id: str
    title: str
    kind: Literal["line", "points", "bars", "steps", "table"]
    x: Axis = Axis("")
    y: Axis = Axis("")
    series: list[Series] = field(default_factory=list)
    note: str = ""  # how to read it, and the definitions behind it
    columns: list[str] = field(default_factory=list)
    cells: list[list[Any]] = field(default_factory=list)
    first_screen: bool = False
    section: str = ""  # report section heading, e.g. "Density"
    square: bool = False  # one unit is as long on both axes: a circle looks round

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form stored in results/<eval>.charts.json."""
        return asdict(self)


SUMMARY_ESTIMATES = (
    "l0",
    "mse",
    "nmse",
    "explained_variance",
    "ce_clean",
    "ce_sae",
    "ce_zero",
    "ce_mean",
    "ce_recovered",
    "delta_ce",
    "gamma",
    "gamma_centered",
    "dead_fraction",
    "features_above_1e-2",
    "features_above_1e-3",
    "mean_activation",
)
SUMMARY_FACTS = ("name", "variant", "hyper", "seed", "site", "d_in", "d_sae", "tokens", "train_tokens_per_second")
