"""A run's features as a table: one row a feature, with what every evaluation says of it; filtered, sorted, in pages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import urlencode

import numpy as np
import polars as pl

from monosem.app.study import Run, Study
from monosem.types import UserError

PAGE_ROWS = 50
LONGEST = 200  # characters of words that are looked for
EXPLANATION = "explanation"  # the column of words that says what a feature responds to
CHOICES = 20  # a column of words with more values than this is not offered as a filter
SHOW = {"all": "All", "alive": "That fire", "dead": "That never fire"}
DENSITY_COLUMNS = ("count", "density", "mean_activation", "peak")


@dataclass(frozen=True)
class Column:
    """A column of the table. name: as in the query of the page; choices: the values of a column of words.

    A column of words without choices is filtered by words that it contains.
    """

    name: str
    label: str
    definition: str = ""
    number: bool = True
    choices: tuple[str, ...] = ()

    @property
    def explains(self) -> bool:
        """Whether it holds explanations of features."""
        return not self.number and self.name.partition(".")[2] == EXPLANATION


FIXED = {
    "feature": Column("feature", "Feature", "The feature's number in its SAE."),
    "count": Column("count", "Firings", "Held-out tokens on which the feature is active."),
    "density": Column("density", "Density", "Share of the held-out tokens on which the feature is active."),
    "mean_activation": Column(
        "mean_activation", "Mean", "Mean activation on those tokens; normalised units, decoder norm folded in."
    ),
    "peak": Column("peak", "Max", "Largest activation on the held-out tokens; normalised units."),
}


@dataclass(frozen=True)
class Query:
    """What is asked of the table. low, high, equal, has: filters by column name; page: from 1.

    has: words, all of which a text must contain, in any order and whatever the case.
    """

    sort: str = "feature"
    descending: bool = False
    show: str = "all"
    low: dict[str, float] = field(default_factory=dict)
    high: dict[str, float] = field(default_factory=dict)
    equal: dict[str, str] = field(default_factory=dict)
    has: dict[str, str] = field(default_factory=dict)
    page: int = 1

    @classmethod
    def of(cls, values: Mapping[str, str]) -> Query:
        """Return the query of a page's parameters; what makes no sense is left out."""
        bounds: dict[str, dict[str, float]] = {"min": {}, "max": {}}
        for key, value in values.items():
            side, _, column = key.partition(".")
            if side in bounds and column and (number := _number(value)) is not None:
                bounds[side][column] = number
        chosen = ((key[3:], value) for key, value in values.items() if key.startswith("is."))
        equal = {name: value for name, value in chosen if 0 < len(value) <= LONGEST}
        texts = ((key[4:], value.strip()[:LONGEST]) for key, value in values.items() if key.startswith("has."))
        has = {name: text for name, text in texts if text}
        show = values.get("show", "")
        page = _number(values.get("page", ""))
        return cls(
            values.get("sort") or "feature",
            values.get("order") == "desc",
            show if show in SHOW else "all",
            bounds["min"],
            bounds["max"],
            equal,
            has,
            int(min(max(page or 1, 1), 10**9)),
        )

    def text(self, **changes: object) -> str:
        """Return the query as the part of an address after the question mark, with some fields changed."""
        new = replace(self, **changes)  # pyright: ignore[reportArgumentType]
        pairs: list[tuple[str, object]] = []
        if new.sort != "feature" or new.descending:
            pairs += [("sort", new.sort), ("order", "desc" if new.descending else "asc")]
        if new.show != "all":
            pairs.append(("show", new.show))
        pairs += [(f"min.{name}", f"{value:g}") for name, value in new.low.items()]
        pairs += [(f"max.{name}", f"{value:g}") for name, value in new.high.items()]
        pairs += [(f"is.{name}", value) for name, value in new.equal.items()]
        pairs += [(f"has.{name}", value) for name, value in new.has.items()]
        if new.page > 1:
            pairs.append(("page", new.page))
        return urlencode(pairs)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


@dataclass(frozen=True, eq=False)
class Table:
    """All features of a run. frame: one row a feature, in order, with the columns `columns`."""

    frame: pl.DataFrame
    columns: list[Column]

    def meant(self, query: Query) -> Query:
        """Return the query without what it asks of columns that are not there, or of another kind."""
        numbers = {column.name for column in self.columns if column.number}
        texts = {column.name for column in self.columns if not column.number}
        return replace(
            query,
            sort=query.sort if query.sort in numbers | texts else "feature",
            low={name: value for name, value in query.low.items() if name in numbers},
            high={name: value for name, value in query.high.items() if name in numbers},
            equal={name: value for name, value in query.equal.items() if name in texts},
            has={name: value for name, value in query.has.items() if name in texts},
        )

    def chosen(self, query: Query) -> np.ndarray:
        """Return the features that the query lets through, in its order, int64 [n]; missing values come last."""
        query, frame = self.meant(query), self.frame
        if query.show != "all" and "count" in frame.columns:
            frame = frame.filter((pl.col("count") > 0) == (query.show == "alive"))
        for name, value in query.low.items():
            frame = frame.filter(pl.col(name) >= value)
        for name, value in query.high.items():
            frame = frame.filter(pl.col(name) <= value)
        for name, value in query.equal.items():
            frame = frame.filter(pl.col(name) == value)
        for name, value in query.has.items():
            frame = frame.filter(contains(name, value))
        if query.sort != "feature" or query.descending:
            frame = frame.sort(query.sort, "feature", descending=[query.descending, False], nulls_last=True)
        return frame["feature"].to_numpy().astype(np.int64)

    def rows(self, features: np.ndarray) -> pl.DataFrame:
        """Return the rows of some features [n], in their order."""
        order = pl.DataFrame({"feature": features.astype(np.int32)})
        return order.join(self.frame, "feature", "left", maintain_order="left")

    def around(self, query: Query, feature: int) -> tuple[int | None, int | None, int, int]:
        """Return the features before and after one in the query's order, its place from 1 (0: not in it) and how many.

        A feature that the query leaves out has the neighbours of its number.
        """
        order = self.chosen(query)
        found = np.flatnonzero(order == feature)
        if not len(found):
            last = self.frame.height - 1
            return (feature - 1 if feature else None), (feature + 1 if feature < last else None), 0, len(order)
        at = int(found[0])
        before = int(order[at - 1]) if at else None
        return before, (int(order[at + 1]) if at + 1 < len(order) else None), at + 1, len(order)


def features_table(study: Study, run: Run) -> Table:
    """Return the table of a run: counts from its codes, the density evaluation, and every other with rows a feature."""
    names = study.evaluations(run.name)
    paths = [path for name in names for path in study.rows_files(run.name, name)]
    paths += study.codes_files(run.name)
    key = ("table", run.name, *names)
    return study.kept(key, paths, lambda: _build(study, run))


def _build(study: Study, run: Run) -> Table:
    frame = pl.DataFrame({"feature": np.arange(run.d_sae, dtype=np.int32)})
    columns = [FIXED["feature"]]
    density = study.rows(run.name, "density")
    if density is not None:
        numbers = {name for name, kind in density.schema.items() if kind.is_numeric()}
        kept = [name for name in DENSITY_COLUMNS if name in numbers]
        extra = [name for name in ("density_low", "density_high", "cv") if name in numbers]
        frame = frame.join(density.select("feature", *kept, *extra).cast({"feature": pl.Int32}), "feature", "left")
        columns += [FIXED[name] for name in kept]
    else:
        try:
            firings = study.firings(run.name)
        except UserError:
            return Table(frame, columns)
        frame = frame.with_columns(
            pl.Series("count", firings.counts), pl.Series("density", firings.counts / max(1, firings.tokens))
        )
        columns += [FIXED["count"], FIXED["density"]]
    for evaluation in study.evaluations(run.name):
        rows = None if evaluation == "density" else study.rows(run.name, evaluation)
        if rows is not None:
            frame, more = _with_scores(frame, rows, evaluation)
            columns += more
    columns[1:] = sorted(columns[1:], key=lambda column: not column.explains)  # stable: the others keep theirs
    return Table(frame, columns)


def contains(name: str, words: str) -> pl.Expr:
    """Return whether the texts of a column contain all of some words, whatever the case."""
    text = pl.col(name).str.to_lowercase()
    return pl.all_horizontal(text.str.contains(word, literal=True) for word in words.lower().split())


def _with_scores(frame: pl.DataFrame, rows: pl.DataFrame, evaluation: str) -> tuple[pl.DataFrame, list[Column]]:
    """Return the frame with the numbers, words and yes-or-no columns of an evaluation's rows added."""
    chosen, columns = [], []
    for name, kind in rows.schema.items():
        label = f"{evaluation}.{name}"
        if name == "feature":
            continue
        if kind.is_numeric():
            chosen.append(pl.col(name).fill_nan(None).alias(label) if kind.is_float() else pl.col(name).alias(label))
            columns.append(Column(label, name.replace("_", " "), f"From the evaluation {evaluation}: {name}."))
        elif kind in (pl.String, pl.Boolean, pl.Categorical):
            words = pl.col(name).replace_strict({True: "yes", False: "no"}) if kind == pl.Boolean else pl.col(name)
            chosen.append(words.cast(pl.String).alias(label))
            values = rows.select(chosen[-1])[label].drop_nulls().unique().sort().to_list()
            choices = tuple(values) if len(values) <= CHOICES and name != EXPLANATION else ()
            about = f"From the evaluation {evaluation}: {name}."
            columns.append(Column(label, name.replace("_", " "), about, False, choices))
    scores = rows.select(pl.col("feature").cast(pl.Int32), *chosen)
    return frame.join(scores, "feature", "left", maintain_order="left"), columns
