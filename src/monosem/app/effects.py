"""What a feature does to the model's output when it is taken out: read from the evaluation `ablation`."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from monosem.app.study import Study
from monosem.app.tokens import visible
from monosem.passages import Passages

SHOWN = 6
NUMBERS = ("sparsity", "loss", "first_order")
WHERE = {"here": "At this token", "later": "At the 15 after it"}
SIDES = {"raised": True, "lowered": False}


@dataclass(frozen=True)
class Affected:
    """An output token and what the feature adds to its logit, mean over its ablations."""

    text: str
    value: float

    @property
    def shown(self) -> str:
        """The text as pages show it."""
        return visible(self.text)


@dataclass(frozen=True)
class Effects:
    """Means over a feature's ablations, None without any; and the tokens that are affected most.

    active: sampled tokens on which it is active; number: those at which it was ablated; sides: where, with the tokens
    whose logits it raises, and lowers.
    """

    active: int
    number: int
    sparsity: float | None
    loss: float | None
    first_order: float | None
    sides: list[tuple[str, list[Affected], list[Affected]]]


def effects_of(study: Study, run: str, feature: int, passages: Passages | None) -> Effects | None:
    """Return the effects of a feature; None where it was active at no sampled token, or there are no results."""
    rows = study.rows(run, "ablation", _of_features)
    own = None if rows is None else rows.filter(pl.col("feature") == feature)
    if own is None or not own.height:
        return None
    ablated = own.drop_nulls("size")
    means = {name: own.select(pl.col(name).mean()).item() for name in NUMBERS}
    sides = []
    if ablated.height and passages is not None:
        for where, title in WHERE.items():
            found = [_top(ablated, f"{side}_{where}", raised, passages) for side, raised in SIDES.items()]
            sides.append((title, found[0], found[1]))
    return Effects(own.height, ablated.height, means["sparsity"], means["loss"], means["first_order"], sides)


def _top(rows: pl.DataFrame, side: str, largest: bool, passages: Passages) -> list[Affected]:
    """Return the tokens of a side with the largest means over ablations; one that an ablation doesn't list counts as 0
    there. Ties go by the token's id.
    """
    by = pl.col("by").sum() / rows.height
    listed = rows.select(token=side, by=f"{side}_by").explode("token", "by").group_by("token").agg(by)
    right = listed.filter(pl.col("by") > 0 if largest else pl.col("by") < 0)
    top = right.sort("by", "token", descending=[largest, False]).head(SHOWN)
    return [Affected(text, value) for text, value in zip(passages.text(top["token"]), top["by"].to_list(), strict=True)]


def _of_features(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of features, with the columns that are used. Raises a PolarsError where one is missing."""
    lists = [f"{side}_{where}" for where in WHERE for side in SIDES]
    return rows.filter(pl.col("kind") == "feature").select(
        pl.col("feature").cast(pl.Int64),
        pl.col("size", *NUMBERS).cast(pl.Float64),
        pl.col(lists).cast(pl.List(pl.Int64)),
        pl.col([f"{name}_by" for name in lists]).cast(pl.List(pl.Float64)),
    )
