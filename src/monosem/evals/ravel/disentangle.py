"""The scores of RAVEL: Cause, Isolate and Disentangle, and their intervals over base entities. Imports no torch.

Source: Huang et al. 2024 (arXiv 2402.17700), section 3.3, and the code published with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from monosem.metrics import Array
from monosem.types import Estimate, UserError

PAIR = ("split", "type", "target", "attribute", "template", "source_template", "base", "source")
NAMES = ("cause", "isolate", "disentangle")
Scores = dict[str, Estimate | None]


class Key(NamedTuple):
    """What a score is of; None: averaged over. Targets are averaged to types, those to splits, and these to one."""

    split: str | None = None
    type: str | None = None
    target: str | None = None


def scores(
    cause: Any, isolate: Any = None, cause_templates: Any = None, isolate_templates: Any = None
) -> dict[str, float]:
    """Return "cause", "isolate" and "disentangle" of one target attribute, from the hits of its interventions.

    cause: bool or float [n], whether the model gave the source's answer to prompts for the target. isolate: for each
    other attribute, whether it still gave the base's, {attribute: [m]}; an array alone counts as one attribute.
    cause_templates [n], isolate_templates (shaped as isolate): which template each prompt has; None: one for all.
    Hits are averaged within a template, then over templates, then over attributes; disentangle is the mean of cause and
    isolate. Nothing is rounded on the way (the published code rounds each template's accuracy to two decimals).

    Where all pairs differ in all attributes, leaving the activation alone has cause 0, isolate 1, and replacing all of
    it cause 1, isolate 0: disentangle is 0.5 both times, and says nothing without the other two. Without isolate pairs
    isolate and disentangle are NaN; so are cause and disentangle without cause pairs. Raises UserError where templates
    don't fit the hits.
    """
    other = isolate if isinstance(isolate, Mapping) else {} if isolate is None else {"": isolate}
    ids = isolate_templates if isinstance(isolate_templates, Mapping) else dict.fromkeys(other, isolate_templates)
    moved = _over_templates(cause, cause_templates, "cause")
    kept = [_over_templates(hits, ids.get(name), f"isolate {name}".strip()) for name, hits in other.items()]
    kept = [value for value in kept if not np.isnan(value)]
    left = float(np.mean(kept)) if kept else float("nan")
    return {"cause": moved, "isolate": left, "disentangle": (moved + left) / 2}


def intervals(rows: pl.DataFrame, draws: int = 1000, seed: int = 0) -> dict[Key, Scores]:
    """Return the scores of one method with 95 % intervals, for every (split, type, target) and every average of them.

    rows: one an intervention, with the columns split, type, target, attribute, template, base and hit; those with
    attribute == target are cause pairs. Averages are means of targets, then of types, then of splits; a score that is
    None (no such pairs) is left out of them. n: interventions.

    Bootstrap: base entities of a type are drawn with replacement and bring all their interventions, in whatever
    template; percentiles of the draws. A template that has no entity in a draw is left out of that draw. Templates,
    source entities and what was trained are taken as given. Raises UserError without rows.
    """
    _check(rows)
    weights = _weights(rows, draws, seed)
    return _estimates(_leaves(rows, weights), _counts(rows))


def differences(rows: pl.DataFrame, other: pl.DataFrame, draws: int = 1000, seed: int = 0) -> dict[Key, Scores]:
    """Return the scores of `rows` minus those of `other`, two methods on the same pairs, as `intervals` does.

    Only pairs that both have count (split, type, target, attribute, templates, entities), and both get the same draws
    of entities, so that what the pairs have in common cancels. Raises UserError when they share none.
    """
    _check(rows)
    _check(other)
    on = [name for name in PAIR if name in rows.columns and name in other.columns]
    both = rows.join(other.select(*on, other_hit="hit").unique(on), on=on, how="inner")
    if not len(both):
        raise UserError("the two methods' rows have no pair in common: compare runs of the same study and settings")
    weights = _weights(both, draws, seed)
    mine, theirs = _leaves(both, weights), _leaves(both.with_columns(hit="other_hit"), weights)
    return _estimates({key: mine[key] - theirs[key] for key in mine}, _counts(both))


def _over_templates(hits: Any, templates: Any, what: str) -> float:
    values = np.asarray(hits, dtype=np.float64)
    ids = np.zeros(len(values)) if templates is None else np.asarray(templates)
    if values.ndim != 1 or ids.shape != values.shape:
        raise UserError(f"{what}: hits of shape {values.shape} and templates of shape {ids.shape}, must be the same")
    if not len(values):
        return float("nan")
    _, template = np.unique(ids, return_inverse=True)
    return float(np.mean(np.bincount(template, values) / np.bincount(template)))


def _check(rows: pl.DataFrame) -> None:
    needed = {"split", "type", "target", "attribute", "template", "base", "hit"}
    if missing := sorted(needed - set(rows.columns)):
        raise UserError(f"rows lack the column(s) {', '.join(missing)}")
    if not len(rows):
        raise UserError("rows: there are none, so there is nothing to score")


def _weights(rows: pl.DataFrame, draws: int, seed: int) -> dict[str, tuple[pl.DataFrame, Array]]:
    """Return by type its entities (base, entity: their number) and how often each is drawn, [1 + draws, entities].

    The first row is the data as they are.
    """
    found = {}
    for number, name in enumerate(sorted(rows["type"].unique())):
        base = rows.filter(type=name)["base"].unique().sort()
        n, rng = len(base), np.random.default_rng([seed, number])
        drawn = np.vstack([np.ones((1, n)), rng.multinomial(n, np.full(n, 1 / n), size=draws)])
        found[name] = pl.DataFrame({"base": base, "entity": np.arange(n)}), drawn
    return found


def _leaves(rows: pl.DataFrame, weights: dict[str, tuple[pl.DataFrame, Array]]) -> dict[Key, Array]:
    """Return cause and isolate of each (split, type, target) in each draw, [2, 1 + draws]; NaN where there is none."""
    found = {}
    for (split, type_, target), part in sorted(rows.group_by("split", "type", "target"), key=lambda pair: pair[0]):
        entities, drawn = weights[type_]
        table = part.join(entities, on="base").with_columns(
            cell=pl.struct("attribute", "template").rank("dense").cast(pl.Int64) - 1, hit=pl.col("hit").cast(pl.Float64)
        )
        cells = table.group_by("cell").agg(pl.col("attribute").first()).sort("cell")["attribute"].to_numpy()
        where = table["entity"].to_numpy() * len(cells) + table["cell"].to_numpy()
        shape = len(entities), len(cells)
        hits = np.bincount(where, table["hit"].to_numpy(), shape[0] * shape[1]).reshape(shape)
        count = np.bincount(where, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
        with np.errstate(invalid="ignore"):
            accuracy = (drawn @ hits) / (drawn @ count)
        of = {name: _mean([accuracy[:, cell] for cell in np.flatnonzero(cells == name)]) for name in np.unique(cells)}
        nothing = np.full(len(drawn), np.nan)
        others = [value for name, value in of.items() if name != target]
        found[Key(split, type_, target)] = np.stack([of.get(target, nothing), _mean([nothing, *others])])
    return found


def _estimates(leaves: dict[Key, Array], counts: dict[Key, tuple[int, int]]) -> dict[Key, Scores]:
    """Return the scores of every key and average. leaves: [2, 1 + draws]; counts: cause and isolate pairs of each."""
    full = {key: np.concatenate([value, value.mean(0, keepdims=True)]) for key, value in leaves.items()}
    splits, types = sorted({str(key.split) for key in full}), sorted({str(key.type) for key in full})
    for split, type_ in product(splits, types):
        _add(full, Key(split, type_), [key for key in leaves if key[:2] == (split, type_)])
    for split in splits:
        _add(full, Key(split), [Key(split, type_) for type_ in types])
    for type_, target in sorted({key[1:] for key in leaves}):
        _add(full, Key(None, type_, target), [Key(split, type_, target) for split in splits])
    for type_ in types:
        _add(full, Key(None, type_), [Key(split, type_) for split in splits])
    _add(full, Key(), [Key(split) for split in splits])
    return {key: _as_estimates(value, _total(counts, key)) for key, value in full.items()}


def _add(full: dict[Key, Array], key: Key, parts: list[Key]) -> None:
    if known := [full[part] for part in parts if part in full]:
        full[key] = _mean(known)


def _as_estimates(value: Array, n: tuple[int, int]) -> Scores:
    numbers = dict(zip(NAMES, (*n, sum(n)), strict=True))
    out: Scores = {}
    for name, row in zip(NAMES, value, strict=True):
        drawn = row[1:][~np.isnan(row[1:])]
        low, high = np.quantile(drawn, (0.025, 0.975)) if len(drawn) else (row[0], row[0])
        out[name] = None if np.isnan(row[0]) else Estimate(float(row[0]), float(low), float(high), numbers[name])
    return out


def _counts(rows: pl.DataFrame) -> dict[Key, tuple[int, int]]:
    is_cause = pl.col("attribute") == pl.col("target")
    table = rows.group_by("split", "type", "target").agg(cause=is_cause.sum(), isolate=(~is_cause).sum())
    return {Key(*row[:3]): (row[3], row[4]) for row in table.rows()}


def _total(counts: dict[Key, tuple[int, int]], key: Key) -> tuple[int, int]:
    inside = [n for leaf, n in counts.items() if all(k is None or k == v for k, v in zip(key, leaf, strict=True))]
    return sum(n[0] for n in inside), sum(n[1] for n in inside)


def _mean(values: list[Array]) -> Array:
    """Return the mean over a list of arrays of one shape, elementwise, NaNs left out; NaN where all are."""
    stacked = np.stack(values)
    known = ~np.isnan(stacked)
    with np.errstate(invalid="ignore"):
        return np.where(known, stacked, 0).sum(0) / known.sum(0)
