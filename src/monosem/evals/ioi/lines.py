"""Dictionaries as lines of the report, and the scores of their rows with intervals over prompts. Imports no torch.

Rows are those of the table: one a prompt and intervention, with the columns kind, name, variant, place, criterion,
attribute, method, x, prompt, ld, hit, removed, score, low, high, n.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from monosem.evals import Judged
from monosem.metrics import Array, estimated, once_and_resampled
from monosem.types import Estimate

SECTION = "IOI"
DRAWS = 1000
BARS = "95 % intervals, prompts resampled"
FEW, MANY = 2, 32  # features changed, in scalars and in the table
SMALLEST = 0.05  # of a denominator, in logits (or in weight): below it a ratio says nothing
WORDS = {"full": "study's SAE", "task": "task SAE", "supervised": "supervised", "none": "no dictionary"}
UNCHANGED = "unchanged model"


def average(rows: pl.DataFrame, column: str, draws: int = DRAWS) -> Estimate | None:
    """Return the mean of a column: over prompts, then over a place's attributes, then over places. None: no values.

    Bootstrap: prompts are drawn with replacement and bring all their rows, at every place; percentiles of the draws.
    n: prompts.
    """
    means = _means(rows, column, ("place", "attribute"), draws)
    return _estimate(_over_places(means), rows) if means else None


def success(rows: pl.DataFrame, draws: int = DRAWS) -> Estimate | None:
    """Return the share of edits that hit, as `average` does. rows: edits of one dictionary, method and size."""
    return average(rows, "hit", draws)


def difference(rows: pl.DataFrame, other: pl.DataFrame, draws: int = DRAWS) -> Estimate | None:
    """Return the success of `rows` minus that of `other`, on the edits that both have (place, attribute, prompt).

    Both get the same draws of prompts, so that what they have in common cancels. None where they share nothing.
    """
    on = ["place", "attribute", "prompt"]
    both = rows.join(other.select(*on, other="hit"), on=on)
    if both.is_empty():
        return None
    mine, theirs = (_over_places(_means(both, name, ("place", "attribute"), draws)) for name in ("hit", "other"))
    return _estimate(mine - theirs, both)


def sufficiency(rows: pl.DataFrame, draws: int = DRAWS, method: str = "reconstruction") -> Estimate | None:
    """Return mean logit difference with `method` in the activation's place / that of the clean run, mean over places.

    rows: approximations of one dictionary, those of method "clean" included. A place where the denominator is below
    0.05 logits has no ratio and is left out; None where no place has one.
    """
    means = _means(rows.filter(pl.col("method").is_in(["clean", method])), "ld", ("place", "method"), draws)
    ratios = [
        means[place, method] / clean
        for (place, name), clean in means.items()
        if name == "clean" and (place, method) in means and abs(clean[0]) >= SMALLEST
    ]
    return _estimate(np.mean(ratios, 0), rows) if ratios else None


def necessity(rows: pl.DataFrame, draws: int = DRAWS) -> Estimate | None:
    """Return 1 - |mean - remainder| / |mean - clean|, all three mean logit differences, mean over places.

    rows: approximations of one dictionary: methods "clean", "mean" (the mean activation in the place) and "remainder"
    (the mean and what the dictionary leaves over). Places are left out as in `sufficiency`.
    """
    means = _means(rows.filter(pl.col("method") != "reconstruction"), "ld", ("place", "method"), draws)
    ratios = []
    for place in {place for place, _ in means}:
        clean, mean, remainder = (means.get((place, name)) for name in ("clean", "mean", "remainder"))
        if clean is not None and mean is not None and remainder is not None and abs((mean - clean)[0]) >= SMALLEST:
            ratios.append(1 - np.abs(mean - remainder) / np.abs(mean - clean))
    return _estimate(np.mean(ratios, 0), rows) if ratios else None


def mean_score(rows: pl.DataFrame, draws: int = DRAWS) -> Estimate | None:
    """Return the mean of `score` over an attribute's values, then attributes of a place, then places. None: no scores.

    rows: one a value of an attribute; scores that are null or NaN are left out. Bootstrap: an attribute's values are
    drawn with replacement. n: values.
    """
    known = rows.filter(pl.col("score").is_not_null() & pl.col("score").is_not_nan()).with_columns(prompt="value")
    means: dict[tuple[Any, ...], Array] = {}
    for _, part in known.group_by("attribute", maintain_order=True):
        means |= _means(part, "score", ("place", "attribute"), draws)
    return _estimate(_over_places(means), known) if means else None


def _means(rows: pl.DataFrame, column: str, by: Sequence[str], draws: int) -> dict[tuple[Any, ...], Array]:
    """Return by cell the mean of a column, [1 + draws]: over the prompts as they are, then as they are drawn."""
    known = rows.filter(pl.col(column).is_not_null())
    cells = known.select(by).unique().sort(by).with_row_index("cell")
    table = known.join(cells, on=by).with_columns(who=pl.col("prompt").rank("dense").cast(pl.Int64) - 1)
    if table.is_empty():
        return {}
    shape = table["prompt"].n_unique(), cells.height
    where = table["who"].to_numpy() * shape[1] + table["cell"].to_numpy()
    size = shape[0] * shape[1]
    total = np.bincount(where, table[column].cast(pl.Float64).to_numpy(), size).reshape(shape)
    count = np.bincount(where, minlength=size).reshape(shape).astype(np.float64)
    weights = once_and_resampled(shape[0], draws)
    with np.errstate(invalid="ignore"):
        means = (weights @ total) / (weights @ count)
    return {row[1:]: means[:, row[0]] for row in cells.rows()}


def _over_places(means: dict[tuple[Any, ...], Array]) -> Array:
    of: dict[Any, list[Array]] = {}
    for (place, _), value in means.items():
        of.setdefault(place, []).append(value)
    return np.mean([np.mean(values, 0) for values in of.values()], 0)


def _estimate(values: Array, rows: pl.DataFrame) -> Estimate | None:
    return estimated(values, rows["prompt"].n_unique())


@dataclass(frozen=True)
class Line:
    """A dictionary with its rows; those of the clean and the mean activation come along.

    kind: of WORDS. name: as it is shown. variant: of the SAE, "" without one. carried: what its places carry, the
    columns place and attribute; edits and F1 of other attributes don't count.
    """

    kind: str
    name: str
    variant: str
    l0: float
    rows: pl.DataFrame
    carried: pl.DataFrame

    @property
    def group(self) -> str:
        """What picks its colour."""
        return self.variant or ("supervised" if self.kind == "supervised" else self.name)

    def at(self, *places: str) -> Line:
        """Return it with its rows of these places only."""
        return replace(self, rows=self.rows.filter(pl.col("place").is_in(places)))

    def of(self, criterion: str) -> pl.DataFrame:
        """Return its rows of a criterion."""
        return self.rows.filter(pl.col("criterion") == criterion)

    def edits(self, x: float = FEW, method: str = "greedy") -> pl.DataFrame:
        """Return its edits of x features chosen by a method; of a line that isn't an SAE, all there are."""
        rows = self.of("edit").join(self.carried, on=["place", "attribute"], how="semi")
        if self.kind not in ("full", "task"):
            return rows.filter(pl.col("method") == ("unchanged" if self.kind == "none" else "supervised"))
        return rows.filter((pl.col("method") == method) & (pl.col("x") == x))

    @property
    def approximations(self) -> pl.DataFrame:
        """Its approximations at places that carry something: elsewhere there is nothing to approximate."""
        return self.of("approximation").join(self.carried, on="place", how="semi")

    def success(self, x: float = FEW, method: str = "greedy", draws: int = DRAWS) -> Estimate | None:
        """Return the share of these edits that hit."""
        return success(self.edits(x, method), draws)

    @property
    def value(self) -> float:
        """Its point value with few features, below all others where undefined."""
        return -1.0 if (found := self.success()) is None else found.value

    def f1(self, method: str, draws: int = DRAWS) -> Estimate | None:
        """Return its mean F1 for the attributes that its places carry. method: "single" or "union"."""
        rows = self.of("f1").filter(pl.col("method") == method)
        return mean_score(rows.join(self.carried, on=["place", "attribute"], how="semi"), draws)


def carried(one: Judged) -> pl.DataFrame:
    """Return which place carries which attribute, as `carried_in`."""
    return carried_in(one.result.scalars)


def carried_in(scalars: Mapping[str, Estimate | None]) -> pl.DataFrame:
    """Return which place carries which attribute, the columns place and attribute, by the scalars "carries/..."."""
    names = [name for name, e in scalars.items() if name.startswith("carries/") and e is not None]
    pairs = [name.removeprefix("carries/").rsplit("/", 1) for name in names]
    return pl.DataFrame(pairs, schema={"place": pl.String, "attribute": pl.String}, orient="row")


def run_lines(judged: list[Judged]) -> list[Line]:
    """Return every run's own SAE, those that have rows."""
    lines = []
    for one in judged:
        rows = _own(one, pl.col("kind") == "full")
        lines.append(Line("full", one.info.name, one.info.variant, one.value("l0"), rows, carried(one)))
    return [line for line in lines if not line.of("edit").is_empty()]


def task_lines(one: Judged, places: Sequence[str], by_variant: bool = True) -> list[Line]:
    """Return the best task SAE of each variant at these places, or of all variants; each place has its own best."""
    own = carried(one)
    rows = one.result.rows.filter(pl.col("place").is_in(places))
    found = best_tasks(rows.join(own, on=["place", "attribute"], how="semi"))
    if not by_variant:
        found = found.with_columns(variant=pl.lit(""))
    lines = []
    for (variant,), group in found.group_by("variant", maintain_order=True):
        best = group.group_by("place", maintain_order=True).first()
        name = "task: " + " / ".join(best["name"].unique(maintain_order=True))
        chosen = [(pl.col("place") == place) & (pl.col("name") == of) for place, of in best["place", "name"].rows()]
        mine = _own(one, (pl.col("kind") == "task") & pl.any_horizontal(chosen))
        lines.append(Line("task", name, str(variant), float("nan"), mine, own))
    return lines


def best_tasks(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the task SAEs of each place (columns place, variant, name, value), highest edit success (2) first."""
    kept = (pl.col("kind") == "task") & (pl.col("criterion") == "edit") & (pl.col("method") == "greedy")
    by = ["place", "variant", "name"]
    hits = rows.filter(kept & (pl.col("x") == FEW)).group_by(*by, "attribute").agg(value=pl.col("hit").mean())
    return hits.group_by(by).agg(pl.col("value").mean()).sort("value", *by, descending=[True, False, False, False])


def supervised_lines(one: Judged) -> list[Line]:
    """Return the supervised dictionaries."""
    is_supervised = pl.col("kind") == "supervised"
    names = one.result.rows.filter(is_supervised)["name"].unique(maintain_order=True)
    kept = {name: _own(one, is_supervised & (pl.col("name") == name)) for name in names}
    return [Line("supervised", name, "", float("nan"), rows, carried(one)) for name, rows in kept.items()]


def floor(one: Judged) -> Line:
    """Return what the model scores when nothing is changed."""
    return Line("none", UNCHANGED, "", float("nan"), one.result.rows.filter(pl.col("kind") == "none"), carried(one))


def _own(one: Judged, kept: pl.Expr) -> pl.DataFrame:
    """Return the rows that are kept, and the approximations that need no dictionary: clean and mean."""
    return one.result.rows.filter(kept | ((pl.col("kind") == "none") & (pl.col("criterion") == "approximation")))
