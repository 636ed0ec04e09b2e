"""A run's multi-dimensional features, clusters and points of planes: read from the evaluation `multidim`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from monosem.app.feature import words_of
from monosem.app.rendering import KNOWN_LOOKS, three
from monosem.app.study import Run, Study
from monosem.app.table import PAGE_ROWS
from monosem.app.tokens import visible
from monosem.report.palette import MARKER_PATHS
from monosem.types import UserError

EVALUATION = "multidim"
VERDICTS = ("irreducible", "reducible")
FEATURES = 8  # of a cluster that the list names
WORDED = 40  # that the cluster's page shows with the tokens on which they are strongest
GROUPS = 20  # of points with a look of their own
OTHER = "other"
SIDE, LEFT, BOTTOM, EDGE = 520, 48, 42, 10  # of the drawing, in its own units
TICKS = 9  # of an axis, at most
LARGEST = 1e30  # coordinate that is drawn
LOOKS = range(1, len(KNOWN_LOOKS))  # the first is grey like the points without a group
ANGLE = pl.arctan2("y", "x") % (2 * math.pi)
SYMBOLS = [name for name in MARKER_PATHS if name != "circle"]  # those are circles

Axes = tuple[list[tuple[float, str]], list[tuple[float, str]]]  # tick marks of x and y: (place, label)


@dataclass(frozen=True)
class Point:
    """A token in its plane. number: its place by angle, from 1; x, y: where it is drawn; fires: features that fire on
    it with their activations, the strongest first.
    """

    number: int
    x: float
    y: float
    group: int
    fires: list[tuple[int, float]]
    token: str
    doc: int
    pos: int
    before: str
    after: str

    @property
    def shown(self) -> str:
        """The token as pages show it."""
        return visible(self.token)

    @property
    def around(self) -> tuple[str, str]:
        """What stands before and after it, as pages show it."""
        return visible(self.before), visible(self.after)


@dataclass(frozen=True)
class Group:
    """Points that look alike: those of one word. look: None for all that have no group."""

    text: str
    count: int
    look: int | None
    symbol: str
    dots: str  # the points as the path of a small drawing


@dataclass(frozen=True)
class Scatter:
    """Points and their groups, both in the order of their angle. plane: the first of its two components."""

    plane: int
    points: list[Point]
    groups: list[Group]
    axes: Axes


def best_planes(study: Study, run: str) -> pl.DataFrame | None:
    """Return the most irreducible plane of each judged cluster, by the cluster's rank; None without results."""
    rows = study.rows(run, EVALUATION, _planes)
    return None if rows is None else rows.unique("cluster", keep="first", maintain_order=True)


def counted(study: Study) -> dict[str, tuple[int, int]]:
    """Return (irreducible, judged) clusters of every run with results."""
    found = {name: best_planes(study, name) for name in study.runs()}
    judged = {name: best["verdict"].to_list() for name, best in found.items() if best is not None}
    return {name: (verdicts.count(VERDICTS[0]), len(verdicts)) for name, verdicts in judged.items()}


def cluster_of(study: Study, run: str, feature: int) -> dict[str, Any] | None:
    """Return the best plane of the judged cluster that a feature belongs to, None where it belongs to none."""
    best = best_planes(study, run)
    own = None if best is None else best.filter(pl.col("features").list.contains(feature))
    return None if own is None or not own.height else own.row(0, named=True)


def clusters_values(study: Study, run: Run, asked: Mapping[str, str]) -> dict[str, Any]:
    """Return what the list of clusters shows. asked: `verdict`, one of VERDICTS, and `page`.

    Raises UserError for another verdict or page.
    """
    verdict, page = asked.get("verdict", ""), _number(asked, "page")
    if verdict and verdict not in VERDICTS:
        raise UserError(f'verdict "{verdict[:40]}": unknown; known are {", ".join(VERDICTS)}')
    best = best_planes(study, run.name)
    notice = "" if best is not None else _missing(study.folder)
    chosen = pl.DataFrame(schema={"verdict": pl.String}) if best is None else best
    chosen = chosen.filter(pl.col("verdict") == verdict) if verdict else chosen
    pages = max(1, -(-chosen.height // PAGE_ROWS))
    first = (min(page, pages) - 1) * PAGE_ROWS
    rows = _dicts(chosen.slice(first, PAGE_ROWS))
    drawn = [(row, scatter(study, run, row)) for row in rows]
    return {
        "run": run,
        "notice": notice,
        "verdict": verdict,
        "verdicts": VERDICTS,
        "rows": rows,
        "pictures": [(row, one) for row, one in drawn if one is not None],
        "found": chosen.height,
        "pages": pages,
        "page": min(page, pages),
        "first": first + 1,
        "listed": FEATURES,
        "side": SIDE,
    }


def cluster_values(study: Study, run: Run, number: int, asked: Mapping[str, str]) -> dict[str, Any]:
    """Return what the page of a cluster shows. asked: `point`, from 1. Raises UserError for an unknown one."""
    rows, best = study.rows(run.name, EVALUATION, _planes), best_planes(study, run.name)
    if rows is None or best is None:
        raise UserError(_missing(study.folder))
    own = rows.filter(pl.col("cluster") == number)
    if not own.height:
        raise UserError(f"cluster {number}: {run.name} has {best.height} judged clusters; choose one from their list")
    drawn, point = scatter(study, run, own.row(0, named=True), fires=True), _number(asked, "point")
    if drawn is not None and point > len(drawn.points):
        raise UserError(f"point {point}: this cluster has the points 1 to {len(drawn.points)}")
    features = own["features"][0].to_list()
    ranks = best["cluster"].to_list()
    at = ranks.index(number)
    return {
        "run": run,
        "planes": own.sort("plane").to_dicts(),
        "best": _dicts(own)[0],
        "features": [(one, words_of(study, run.name, one)) for one in features[:WORDED]],
        "more": features[WORDED:],
        "scatter": drawn,
        "point": None if drawn is None else drawn.points[point - 1],
        "before": ranks[at - 1] if at else None,
        "after": ranks[at + 1] if at + 1 < len(ranks) else None,
        "size": (SIDE, LEFT, BOTTOM, EDGE),
    }


def scatter(study: Study, run: Run, plane: dict[str, Any], fires: bool = False) -> Scatter | None:
    """Return the points of a cluster's plane, drawn to one scale on both axes; None where none are kept.

    fires: whether the features that fire on each token are looked up.
    """
    points = study.rows(run.name, EVALUATION, _points)
    own = None if points is None else points.filter(cluster=plane["cluster"], plane=plane["plane"])
    if own is None or not own.height:
        return None
    own = own.sort(ANGLE, "doc", "pos")
    across, up, axes = _placed(own["x"].to_numpy(), own["y"].to_numpy())
    groups, of = _groups(own, across, up)
    firing = _firing(study, run.name, plane["features"], own) if fires else [[] for _ in of]
    rows = enumerate(own.select("label", "doc", "pos", "before", "after").iter_rows())
    found = [Point(i + 1, float(across[i]), float(up[i]), of[i], firing[i], *row) for i, row in rows]
    return Scatter(plane["plane"], found, groups, axes)


def _placed(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, Axes]:
    """Return where points are drawn, with one unit as long on both axes, and the axes."""
    (x0, y0), width = ((v.min() + v.max()) / 2 for v in (x, y)), SIDE - LEFT - EDGE
    half = 1.06 * max(float(np.ptp(x)), float(np.ptp(y))) / 2 or 1.0

    def across(value: Any) -> Any:
        return LEFT + width * ((value - x0) / half + 1) / 2

    def up(value: Any) -> Any:
        return EDGE + width * (1 - (value - y0) / half) / 2

    ticks = [(across(v), three(v)) for v in _ticks(x0 - half, x0 + half)]
    return across(x), up(y), (ticks, [(up(v), three(v)) for v in _ticks(y0 - half, y0 + half)])


def _dicts(planes: pl.DataFrame) -> list[dict[str, Any]]:
    """Return planes with their tokens as pages show them."""
    return [{**row, "tokens": [visible(text) for text in row["tokens"]]} for row in planes.to_dicts()]


def _groups(own: pl.DataFrame, across: np.ndarray, up: np.ndarray) -> tuple[list[Group], list[int]]:
    """Return the groups by the angle of their means, those without a look last, and the group of each point."""
    count = Counter(text for text in own["group"] if text != OTHER)
    named = {text for text, _ in count.most_common(GROUPS)}
    names = pl.Series("name", [text if text in named else OTHER for text in own["group"]])
    means = own.select("x", "y").with_columns(names).group_by("name").mean()
    order = means.sort(pl.col("name") == OTHER, ANGLE, "name")["name"].to_list()
    of = [order.index(name) for name in names]
    groups = []
    for i, text in enumerate(order):
        here = np.flatnonzero(np.array(of) == i)
        dots = "".join(f"M{across[j]:.0f} {up[j]:.0f}h0" for j in here)
        look, symbol = LOOKS[i % len(LOOKS)], SYMBOLS[(i + i // len(LOOKS)) % len(SYMBOLS)]
        other = text == OTHER
        groups.append(Group(visible(text), len(here), None if other else look, "circle" if other else symbol, dots))
    return groups, of


def _firing(study: Study, run: str, features: list[int], own: pl.DataFrame) -> list[list[tuple[int, float]]]:
    """Return the features that fire on each of a cluster's tokens, the strongest first; none without codes."""
    places = own["doc"].to_numpy() << 32 | own["pos"].to_numpy()

    def look_up() -> dict[int, list[tuple[int, float]]]:
        found: dict[int, list[tuple[int, float]]] = {}
        for feature, fires in study.firings(run).each(features):
            place = fires.doc.astype(np.int64) << 32 | fires.pos
            here = np.isin(place, places)
            for at, value in zip(place[here].tolist(), fires.value[here].tolist(), strict=True):
                found.setdefault(at, []).append((feature, value))
        return found

    paths = [*study.codes_files(run), *study.rows_files(run, EVALUATION)]
    try:
        found = study.kept(("firing", run, str(own["cluster"][0])), paths, look_up)
    except UserError:
        found = {}
    return [sorted(found.get(place, []), key=lambda one: -one[1]) for place in places.tolist()]


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers from low to high, at most TICKS."""
    size = 10.0 ** math.floor(math.log10((high - low) / TICKS))
    step = next(size * round_ for round_ in (1, 2, 5, 10, 20) if (high - low) / (size * round_) < TICKS)
    return [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _number(asked: Mapping[str, str], name: str) -> int:
    """Return a whole number from 1 that an address gives, 1 where it gives none. Raises UserError for another value."""
    text = asked.get(name, "1")
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
        raise UserError(f'{name} "{text[:40]}": a whole number from 1 is wanted')
    return int(text)


def _missing(folder: Path) -> str:
    return f"There are no results on multi-dimensional features of these weights; run `monosem eval multidim {folder}`."


def _planes(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the planes, by cluster, the most irreducible first. Raises a PolarsError where a column is missing."""
    whole = ("cluster", "plane", "n")
    numbers = ("separability", "null", "mixture", "score")
    return (
        rows.filter(pl.col("kind") == "plane")
        .select(
            pl.col(*whole).cast(pl.Int64),
            pl.col(*numbers, "low", "high").cast(pl.Float64),
            pl.col("features").cast(pl.List(pl.Int64)),
            pl.col("tokens").cast(pl.List(pl.String)),
            verdict=pl.col("method").cast(pl.String),
        )
        .drop_nulls([*whole, *numbers, "features", "tokens", "verdict"])
        .filter(pl.col("features").list.len() > 0)
        .with_columns(excess=(pl.col("separability") - pl.col("null")).clip(0))
        .sort("cluster", "score", "plane", descending=[False, True, False])
    )


def _points(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the points. Raises a PolarsError where a column is missing."""
    return (
        rows.filter(pl.col("kind") == "point")
        .select(
            pl.col("cluster", "plane", "doc", "pos").cast(pl.Int64),
            pl.col("x", "y").cast(pl.Float64),
            pl.col("label", "group", "before", "after").cast(pl.String),
        )
        .drop_nulls()
        .filter(pl.all_horizontal(pl.col("x", "y").is_between(-LARGEST, LARGEST)))
    )
