"""The report's charts on where the task is computed, what features stand for, and single edits. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import polars as pl

from monosem.evals import Judged, cell, fair_sample, interval, short
from monosem.evals.ioi.lines import BARS, FEW, MANY, SECTION, Line, mean_score, success, sufficiency
from monosem.evals.ioi.prompts import ATTRIBUTES, POSITIONS
from monosem.schema import Axis, Chart, Series

HEADS = 20  # shown
SAMPLE = 8  # edits of each dictionary, place, attribute and method


def slug(place: str) -> str:
    """Return a place as part of a chart's id."""
    return re.sub(r"[^a-z0-9]+", "-", place.lower()).strip("-")


def layers(one: Judged, attribute: str) -> Chart:
    """Return what patching an attribute's counterfactual takes away, by position and layer."""
    rows = _scores(one.result.rows, "layers").filter(pl.col("attribute") == attribute)
    series = []
    for position in _ordered(rows["value"].unique(maintain_order=True).to_list(), POSITIONS):
        own = rows.filter(pl.col("value") == position).sort("x")
        series.append(_series(position, position, own["x"].to_list(), own))
    title = f"Where the model keeps {attribute}"
    if rows.height:
        top = rows.sort("score", descending=True).row(0, named=True)
        title += f": at {top['value']}, layer {top['x']:g}, {top['score']:.2f} of the logit difference goes with it"
    return Chart(
        f"ioi-layers-{attribute}",
        title,
        "line",
        Axis("Layer"),
        Axis("Share of the logit difference taken away", "fraction", reference=0),
        series,
        note=f"{_prompts(rows)} The residual stream after a layer at one position is replaced by that of the same "
        f"prompt with {attribute} changed. 0: nothing changes; 1: the logit difference of the prompt's two names is "
        "gone; 2: turned round. S1 and S2 are the first and second mention of S, END the last token. Where "
        f"a line falls as another rises, the attribute moves on. Bars: {BARS}.",
        section=SECTION,
    )


def heads(one: Judged) -> Chart:
    """Return the heads without which the logit difference falls most."""
    rows = _scores(one.result.rows, "heads").sort("score", descending=True)
    shown = rows.head(HEADS)
    title = "Attention heads that the task needs"
    if rows.height:
        top = rows.row(0, named=True)
        title += f": without {top['value']} the logit difference falls by {top['score']:.2f} logits"
    return Chart(
        "ioi-heads",
        title,
        "bars",
        Axis("Head"),
        Axis("Fall of the logit difference", "logits", reference=0),
        [_series("mean ablation", "mean ablation", shown["value"].to_list(), shown)] if rows.height else [],
        note=f"{_prompts(rows)} The head's output is replaced by its mean over prompts at the last token; "
        f"{shown.height} of {rows.height} heads, those with the largest fall. L9H1 is head 1 of layer 9, counted "
        f"from 0. The largest of many are a little flattered by chance. Bars: {BARS}.",
        section=SECTION,
    )


def accuracy(one: Judged) -> Chart:
    """Return how often the model names the indirect object, by template."""
    rows = one.result.rows.filter(pl.col("criterion") == "accuracy").sort("template")
    told = one.result.scalars.get("accuracy")
    title = "What the model itself answers"
    if told is not None:
        title += f": the indirect object for {interval(told, '.2f')} of the prompts"
    cells = [[row["value"], _estimate(row), short(row["ld"])] for row in rows.iter_rows(named=True)]
    return Chart(
        "ioi-accuracy",
        title,
        "table",
        columns=["Template", "Right", "Logit difference"],
        cells=cells,
        note="Right: IO's name is the likeliest next token. IO stands for the name that is mentioned once, S for the "
        "one mentioned twice. Logit difference: logit(IO) - logit(S), mean over prompts, in logits. 95 % Wilson "
        "intervals. " + one.result.reasons.get("edit_success", ""),
        section=SECTION,
    )


def f1_table(lines: list[Line]) -> Chart:
    """Return how well single features and unions match what the prompt says."""
    columns = ["Place", "Attribute", "Measure", *(line.name for line in lines)]
    cells: list[list[Any]] = []
    most: dict[str, float] = {}
    for place in _places(lines, "f1"):
        here = [line.at(place) for line in lines]
        for method, label in (
            ("interpretable", "logit difference with interpretable features only"),
            ("uninterpretable", "logit difference without them"),
        ):
            values = [cell(sufficiency(line.of("approximation"), method=method)) for line in here]
            cells += [[place, "all", label, *values]] if any(values) else []
        known = pl.concat([line.of("f1") for line in here])
        for attribute in _ordered(known["attribute"].unique(maintain_order=True).to_list(), ATTRIBUTES):
            for method, label in (("single", "F1, one feature"), ("union", "F1, union")):
                asked = (pl.col("attribute") == attribute) & (pl.col("method") == method)
                values = [cell(mean_score(line.of("f1").filter(asked))) for line in here]
                cells += [[place, attribute, label, *values]] if any(values) else []
                if method == "single" and attribute in ATTRIBUTES:
                    most[attribute] = max([most.get(attribute, 0.0), *(one["value"] for one in values if one)])
        split = (pl.col("criterion") == "splitting") & (pl.col("method") == "splinters")
        values = [cell(mean_score(line.rows.filter(split))) for line in here]
        cells += [[place, "Pos", "splinters of a value", *values]] if any(values) else []
    told = ", ".join(f"{name} {most[name]:.2f}" for name in ATTRIBUTES if name in most)
    return Chart(
        "ioi-f1",
        f"What single features stand for: mean F1 at most {told}",
        "table",
        columns=columns,
        cells=cells,
        note="F1 of the prompts on which a feature fires, against those of which a statement is true (S is Mary; IO is "
        "first; a name of this gender), best feature of each value, mean over values. Features are chosen on training "
        "prompts and scored on test prompts. Union: several features of a value together, as many of the best as serve "
        "training prompts best. A feature that always fires has F1 0.67 for Pos and hardly any for a name. Logit "
        "difference as a share of the clean one: with the features of F1 >= 0.5 alone, and with all but them. "
        "Splinters: see the charts of splitting. "
        "One run a variant, at like L0, and the best task SAE of each variant. 95 % intervals: of F1 values resampled, "
        "of logit differences prompts.",
        section=SECTION,
    )


def matrix(one: Judged, lines: list[Line], task: list[Line]) -> Chart:
    """Return edit success by place and attribute. lines: floor, supervised and runs; task: the best of all."""
    carries = {key: e for key, e in one.result.scalars.items() if key.startswith("carries/")}
    columns = ["Place", "Attribute", "Carried", *(line.name for line in lines), *("best task SAE" for _ in task)]
    cells: list[list[Any]] = []
    for key in sorted(carries, key=lambda key: _rank(key.rsplit("/", 1)[-1])):
        place, attribute = key.removeprefix("carries/").rsplit("/", 1)
        told = "yes" if carries[key] is not None else one.result.reasons.get(key, "no")
        edits = [line.edits().filter(place=place, attribute=attribute) for line in [*lines, *task]]
        cells.append([place, attribute, told, *(cell(success(rows)) for rows in edits)])
    cells.sort(key=lambda row: row[0])
    return Chart(
        "ioi-matrix",
        "Edit success by place and attribute",
        "table",
        columns=columns,
        cells=cells,
        note=f"{FEW} features changed, chosen greedily. Carried: where patching the true counterfactual changes too "
        "few answers there is nothing that an edit could do, and the place isn't used for this attribute. Best task "
        "SAE: of the place, over its attributes, chosen on these prompts. A dictionary has a score only at the places "
        f"it was trained for. {BARS}.",
        section=SECTION,
    )


def occlusion(lines: list[Line], place: str) -> Chart:
    """Return how many names have a feature of their own as the stronger attribute is taken away."""
    series: list[Series] = []
    most: dict[str, float] = {}
    hidden: list[str] = []
    for line in lines:
        found = _scores(line.at(place).rows, "occlusion")
        rows = found.filter(pl.col("method").is_null())
        verdict = found.filter((pl.col("method") == "occluded") & (pl.col("score") > 0))
        hidden += [f"{attribute} in {line.name}" for attribute in verdict["attribute"]]
        for attribute in _ordered(rows["attribute"].unique(maintain_order=True).to_list(), ATTRIBUTES):
            own = rows.filter(pl.col("attribute") == attribute).sort("x")
            series.append(_series(f"{line.name}, {attribute}", line.group, own["x"].to_list(), own))
            most[attribute] = max(most.get(attribute, 0.0), series[-1].y[0])
    told = ", ".join(f"at most {value:.2f} as {name}" for name, value in most.items())
    return Chart(
        f"ioi-occlusion-{slug(place)}",
        f"Occlusion at {place}: {', '.join(hidden) or 'nothing'} occluded; names with a feature, {told}",
        "line",
        Axis("alpha: how much of IO's supervised code is subtracted"),
        Axis("Names with a feature of F1 >= 0.5", "fraction"),
        series,
        note="Share of names for which some feature has F1 >= 0.5, as S and as IO. If IO hides S, features for S "
        "appear when IO's code is taken away: S's line rises from left to right while IO's falls. Title: with nothing "
        "taken away, the best of these dictionaries. Occluded: an attribute of which less than half as many names have "
        "a feature as of the other, though its supervised codes, which are shorter, can be read off (nearest code "
        "right on at least half of the prompts). One run a variant, "
        "at like L0, and the best task SAE of each. Bars: Wilson's 95 % intervals over names.",
        section=SECTION,
    )


def splitting(lines: list[Line], place: str) -> Chart:
    """Return how well features that each stand for a small part of a value of Pos add up to it."""
    series, split, alone = [], [], 0.0
    for line in lines:
        rows = _scores(line.at(place).rows, "splitting")
        for value in rows["value"].unique(maintain_order=True):
            curve = rows.filter(value=value, method="union").sort("x")
            series += [_series(f"{line.name}, {value}", line.group, curve["x"].to_list(), curve)] if len(curve) else []
        split += [line.name] if rows.filter(method="split")["score"].sum() else []
        alone = max([alone, *rows.filter(method="single")["score"]])
    told = f"split by {' and '.join(split)}" if split else "not split"
    return Chart(
        f"ioi-splitting-{slug(place)}",
        f"Splitting of Pos at {place}: {told}; the best feature alone has F1 {alone:.2f}",
        "line",
        Axis("Splinters in the union", log=True),
        Axis("F1 of the union", "fraction"),
        series,
        note="Pos has two values, IO first and S first; one feature each would do. A splinter is right on at least "
        "90 % of the prompts where it fires, and fires on at most a fifth of those that it should, without "
        "standing for a name. Split: at least 10 splinters that together have an F1 above 0.8, which no feature "
        "has alone. One run a variant, at like L0, and the best task SAE of each; without a line: no splinters. "
        "Bars: 95 % intervals over prompts.",
        section=SECTION,
    )


def single(lines: list[Line]) -> Chart:
    """Return a fair sample of the edits whose text was kept."""
    columns = ["Dictionary", "Place", "Changed", "Features", "Hit", "Prompt", "Answer", "Wanted"]
    cells: list[list[Any]] = []
    for line in lines:
        kept = pl.concat([line.edits(FEW), line.edits(MANY)]) if line.kind in ("full", "task") else line.edits()
        for row in sampled(kept.filter(pl.col("text").is_not_null())).iter_rows(named=True):
            cells.append([line.name, row["place"], row["attribute"], row["x"] or None, "yes" if row["hit"] else "no"])
            cells[-1] += [row["text"], row["answer"], row["wanted"]]
    return Chart(
        "ioi-single",
        f"Single edits: {len(cells):,}",
        "table",
        columns=columns,
        cells=cells,
        note=f"Of each dictionary, place, attribute and number of features up to {SAMPLE} edits, drawn with a fixed "
        "seed so that hits and misses keep their proportion. Changed: the attribute that the edit is meant to change. "
        "Wanted: the likeliest next token when the true activation of the changed prompt is put in; hit: the edit "
        "gives the same.",
        section=SECTION,
    )


def sampled(rows: pl.DataFrame, size: int = SAMPLE, seed: int = 0) -> pl.DataFrame:
    """Return some edits of each place, attribute and number of features; hits and misses keep their proportion."""
    return fair_sample(rows, ["place", "attribute", "x"], ["hit"], size, seed)


def _scores(rows: pl.DataFrame, criterion: str) -> pl.DataFrame:
    known = pl.col("score").is_not_null() & pl.col("score").is_not_nan()
    return rows.filter(known & (pl.col("criterion") == criterion))


def _series(name: str, group: str, x: list[Any], rows: pl.DataFrame) -> Series:
    y, low, high = (rows[column].to_list() for column in ("score", "low", "high"))
    return Series(name, x, y, group, y_low=low, y_high=high)


def _prompts(rows: pl.DataFrame) -> str:
    return f"{rows['n'].max():,} prompts." if rows.height else ""


def _estimate(row: dict[str, Any]) -> dict[str, Any]:
    return {"value": row["score"], "low": row["low"], "high": row["high"], "n": row["n"]}


def _rank(attribute: str) -> int:
    return ATTRIBUTES.index(attribute) if attribute in ATTRIBUTES else len(ATTRIBUTES)


def _ordered(found: list[str], known: Sequence[str]) -> list[str]:
    return [name for name in known if name in found] + [name for name in found if name not in known]


def _places(lines: list[Line], criterion: str) -> list[str]:
    return sorted({place for line in lines for place in line.of(criterion)["place"].unique()})
