"""The report's charts on the model's own circles: where they are, and if it uses them. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from monosem.evals import Judged, cell, interval, short
from monosem.evals.multidim.lines import (
    CONTROLS,
    METHODS,
    SECTION,
    SIDE,
    SWAPS,
    below_chance,
    counted,
    estimate,
    known,
    layer_of,
    leading,
    line,
    of_model,
    share_of_rows,
    template_of,
)
from monosem.evals.multidim.tasks import CYCLES
from monosem.schema import Axis, Chart, Series


def circle(judged: list[Judged], cycle: str) -> Chart:
    """Return the model's words in the circle's plane."""
    rows = of_model(judged, "word").filter(pl.col("cycle") == cycle)
    title, series, template = f"The model's circle of {cycle}", [], ""
    if rows.height:
        template = template_of(judged, rows)
        rows = rows.filter(pl.col("template") == template)
        layer = layer_of(judged, rows)
        own = rows.filter(pl.col("layer") == layer)
        asked = (pl.col("cycle") == cycle) & (pl.col("template") == template) & (pl.col("layer") == layer)
        for probe in of_model(judged, "probe").filter(asked).iter_rows(named=True):
            title = _circle_title(cycle, probe)
        looped = pl.concat([own, own.head(1).with_columns(label=pl.lit(""))])
        hover = [f"off by {error:.2f} steps" for error in looped["score"]]
        x, y, labels = (looped[name].to_list() for name in ("x", "y", "label"))
        series = [Series(cycle, x, y, cycle, hover=hover, labels=labels, path=True)]
    return Chart(
        f"multidim-circle-{cycle}",
        title,
        "points",
        Axis("Cosine", reference=0),
        Axis("Sine", reference=0),
        series,
        note=f'Template "{template}". The activation at the word, put into the plane of a circle that was fitted '
        "without this word (least squares from 5 principal components to cosine and sine); the line joins the words in "
        "their own order. Error: between a word's angle and the right one, mean over words; a step is the angle from "
        f"one word to the next. {_words(rows)} 95 % interval: words drawn again. By chance: words permuted.",
        section=SECTION,
        square=True,
    )


def _circle_title(cycle: str, probe: dict[str, Any]) -> str:
    error = f"error {interval(estimate(probe), '.2f')} steps, {probe['null']:.2f} by chance"
    error += "" if probe["p"] is None else f", p {probe['p']:.2g}"
    if below_chance(probe):
        return f"{probe['label']} {cycle} in order at layer {probe['layer']}: {error}"
    return f"No circle of {cycle} that can be told from chance at layer {probe['layer']}: {error}"


def errors(judged: list[Judged], found: list[str]) -> Chart:
    """Return the error of the words' angles against the layer, and what chance gives."""
    series: list[Series] = []
    told, templates = [], []
    for cycle, template, rows in _on_best_template(judged, "probe", found):
        templates.append(template)
        rows = rows.sort("layer")
        series.append(line(cycle, cycle, rows))
        series.append(Series(f"{cycle}, words permuted", rows["layer"].to_list(), rows["null"].to_list(), cycle))
        below = sum(map(below_chance, rows.iter_rows(named=True)))
        told.append(f"{cycle} at {below} of {counted(rows.height, 'layer')}")
    return Chart(
        "multidim-error",
        f"Where the model has circles: error below chance for {', '.join(told)}",
        "line",
        Axis("Layer"),
        Axis("Error of a left-out word's angle", "steps", reference=0),
        series,
        note=f"{_quoted(templates)} Each word's angle by a circle fitted without it; a step is the angle from one word "
        f"to the next. {_words(known(of_model(judged, 'probe')))} Below chance: the interval lies below the mean under "
        "permuted words, and p < 0.05. In-sample R² is no evidence: with few words and 5 components any order fits. "
        "Bars: 95 % intervals, words drawn again.",
        section=SECTION,
    )


def probes(judged: list[Judged], found: list[str]) -> Chart:
    """Return how well each template's words lie on a circle at the study's layer."""
    rows = known(of_model(judged, "probe").filter(pl.col("cycle").is_in(found)))
    cells: list[list[Any]] = []
    below = 0
    for (cycle, template), own in rows.group_by("cycle", "template", maintain_order=True):
        for row in own.filter(pl.col("layer") == layer_of(judged, own)).iter_rows(named=True):
            below += below_chance(row)
            cells.append([cycle, template, row["layer"], row["label"], row["n"], cell(estimate(row))])
            cells[-1] += [short(row[name]) for name in ("null", "p", "x", "y")]
    columns = ["Cycle", "Template", "Layer", "In order", "Words", "Error", "Permuted", "p", "R²", "R², permuted"]
    return Chart(
        "multidim-probe",
        f"Circles by template: {below} of {len(cells)} are below chance at the study's layer",
        "table",
        columns=columns,
        cells=cells,
        note="At the layer nearest to the study's site. In order: words whose neighbour on the circle is the next "
        "word, by a fit to all words (and left out). Error: of left-out words, steps, with 95 % intervals. Permuted: "
        "its mean when words are permuted; p: share of permutations with as small an error. R²: in-sample, of cosine "
        "and sine, beside its mean under permuted words: it is high by itself.",
        section=SECTION,
    )


def patch(judged: list[Judged], cycle: str) -> Chart:
    """Return what patching the circle does to the model's answers, by layer."""
    every = known(of_model(judged, "patch").filter(pl.col("cycle") == cycle))
    title, series, template, others = f"{cycle.capitalize()}: patching", [], "", []
    if every.height:
        template = template_of(judged, every)
        rows = every.filter(pl.col("template") == template)
        effects = of_model(judged, "effect").filter(cycle=cycle)
        title = _used(cycle, rows.filter(pl.col("layer") == layer_of(judged, rows)), effects)
        for method in [name for name in METHODS if name in rows["method"]]:
            own = rows.filter(pl.col("method") == method).sort("layer")
            hover = [f"new answer likeliest for {x:.2f} of {n:,} pairs" for x, n in own["x", "n"].rows()]
            series.append(line(METHODS[method], method, own, hover=hover))
        for (name,), own in every.filter(pl.col("template") != template).group_by("template", maintain_order=True):
            others.append(f'"{name}": {_used(cycle, own.filter(pl.col("layer") == layer_of(judged, own)), effects)}.')
    return Chart(
        f"multidim-patch-{cycle}",
        title,
        "line",
        Axis("Layer"),
        Axis("Old answer less new answer", "logits", reference=0),
        series,
        note=f'Template "{template}", {_pairs(every)}. The activation at a word is replaced, so that the model '
        "should answer for another word: lower is more effect. Circle: the new word's place on a circle fitted to the "
        "words, everything else at the mean of all words. Rest kept: what the activation has in the circle's plane is "
        "exchanged for the new word's; 5 components, all but the plane and random planes (of all directions, or among "
        "the words' differences) likewise. Whole activation: all is exchanged. At its mean: the word is taken away. "
        "Title: share of the whole activation's effect. The model uses the circle where it lowers the difference more "
        f"than the mean and than random planes do, in at least {1 - SIDE:.1%} of the draws of words. Bars: 95 % "
        f"intervals over words. {' '.join(['Other templates:', *others]) if others else ''}",
        section=SECTION,
    )


def _used(cycle: str, rows: pl.DataFrame, effects: pl.DataFrame) -> str:
    """Return in words what the rows of one template and layer say about the circle. effects: of the whole one's."""
    by = {row["method"]: estimate(row) for row in rows.iter_rows(named=True)}
    at, name = f"layer {rows['layer'][0]}", cycle.capitalize()
    here = known(effects.filter(template=rows["template"][0], layer=rows["layer"][0]))
    part = {row["method"]: estimate(row) for row in here.iter_rows(named=True)}
    if not {"unpatched", "circle", "whole"} <= set(by) or "circle" not in part:
        return f"{name}: patched at {at}"
    if by["whole"].high >= by["unpatched"].low:
        return f"{name}: at {at} not even the whole activation has an effect that can be told"
    told = f"at {at} it has {interval(part['circle'], '.2f')} of the whole activation's effect"
    if "mean" in part:
        told += f", the mean {interval(part['mean'], '.2f')}"
    if swaps := [part[method] for method in SWAPS if method in part]:
        strongest = max(swaps, key=lambda one: one.value)
        told += f", a random plane {'at most ' if len(swaps) > 1 else ''}{interval(strongest, '.2f')}"
    p = dict(here.select("method", "p").iter_rows())
    above = [p[method] for method in CONTROLS if method in p]
    if p["unpatched"] >= SIDE:
        verdict = "patching the circle has no effect that can be told"
    elif above and max(above) < SIDE:
        verdict = "the model uses the circle"
    else:
        verdict = "it is not decided if the model uses the circle"
    return f"{name}: {verdict}; {told}"


def sweep(judged: list[Judged], found: list[str]) -> Chart:
    """Return how many answers follow the angle as the circle is made smaller and larger."""
    series: list[Series] = []
    told, templates = [], []
    for cycle, template, rows in _on_best_template(judged, "sweep", found):
        templates.append(template)
        layer = layer_of(judged, rows)
        rows = rows.filter(pl.col("layer") == layer)
        by = {radius: share_of_rows(rows.filter(x=radius)) for radius in sorted(rows["x"].unique())}
        values = list(by.values())
        low, high = [one.low for one in values], [one.high for one in values]
        name = f"{cycle}, layer {layer}"
        series.append(Series(name, list(by), [one.value for one in values], cycle, y_low=low, y_high=high))
        chance = f", chance {1 / len(CYCLES[cycle].words):.2f}" if cycle in CYCLES else ""
        own = min(by, key=lambda radius: abs(radius - 1))
        told.append(f"{interval(by[own], '.2f')} of {cycle} at radius {own:g} (n {by[own].n:,}{chance})")
    return Chart(
        "multidim-sweep",
        f"Answers follow the angle: {', '.join(told)}",
        "line",
        Axis("Radius, 1: the circle's own"),
        Axis("Answers that follow the angle", "fraction"),
        series,
        note=f"{_quoted(templates)} The word's activation is replaced by a point of the circle's plane at any angle "
        "and radius, with everything else at the mean of all words. "
        "An answer follows the angle if the likeliest of the words is the right answer for the word that is nearest in "
        "angle. Chance: 1 of the words; at radius 0 all angles are the same. If direction "
        "alone counts, the line is flat from a small radius on. Bars: 95 % intervals, base words drawn again.",
        section=SECTION,
    )


def parts(judged: list[Judged], cycle: str) -> Chart:
    """Return which blocks bring the answer about, by layer, part and position."""
    rows = known(of_model(judged, "parts").filter(pl.col("cycle") == cycle))
    title, series, template = f"{cycle.capitalize()}: parts of the model", [], ""
    if rows.height:
        template = template_of(judged, rows)
        rows = rows.filter(pl.col("template") == template).sort("layer", maintain_order=True)
        for (part, place), own in rows.sort("method", "label").group_by("method", "label", maintain_order=True):
            series.append(line(f"{part}, {place}", str(part), own.sort("layer")))
        single = rows.filter(pl.col("method") != "residual")
        top, like = leading(single if single.height else rows)
        told = f"{top['method']} of layer {top['layer']} at the {top['label']}, {interval(estimate(top), '.2f')}"
        title = f"{cycle.capitalize()}: the largest part is the {told}"
        title += f"; {counted(like, 'other')} can't be told from it" if like else ""
    return Chart(
        f"multidim-parts-{cycle}",
        title,
        "line",
        Axis("Layer"),
        Axis("Share of the logit difference brought over", "fraction", reference=0),
        series,
        note=f'Template "{template}", {_pairs(rows)}. What one '
        "part of a block puts out at one position is replaced by what it puts out for another word. 0: the answer "
        "stays; 1: it is as for the other word. Residual: all that has been computed up to there. The answer is where "
        "the residual's line is high: it moves from the word to the last token. The largest of many is a little "
        "flattered by chance. Bars: 95 % intervals over words.",
        section=SECTION,
    )


def regression(judged: list[Judged], cycle: str) -> Chart:
    """Return how much of the activations functions of the word explain, added one after another."""
    rows = known(of_model(judged, "regression").filter(pl.col("cycle") == cycle))
    methods = rows["method"].unique(maintain_order=True).to_list()
    cells: list[list[Any]] = []
    for (layer, place), own in rows.sort("layer", maintain_order=True).group_by("layer", "label", maintain_order=True):
        by = dict(own.select("method", "score").rows())
        cells.append([layer, place, own["n"].max(), *(short(by.get(method)) for method in methods)])
    title = f"{cycle.capitalize()}: what explains the activations"
    if rows.height:
        here = rows.filter(pl.col("layer") == layer_of(judged, rows))
        told = []
        for (place,), own in here.group_by("label", maintain_order=True):
            steps = ", ".join(f"{method} {score:.2f}" for method, score in own["method", "score"].rows())
            told.append(f"at the {place} {steps}")
        title += f" at layer {here['layer'][0]}: {'; '.join(told)}"
    return Chart(
        f"multidim-regression-{cycle}",
        title,
        "table",
        columns=["Layer", "Position", "Prompts", *methods],
        cells=cells,
        note="r² of a least-squares fit of the activations on functions of the template and the word, on prompts "
        "that were left out; each column adds functions to all columns before it, up to the word as such, which no "
        "other function of it can surpass. A column that adds nothing, or lowers it, explains nothing. Below 0: "
        "worse than the mean. Without intervals: no difference here is claimed to be more than chance.",
        section=SECTION,
    )


def _on_best_template(judged: list[Judged], kind: str, found: list[str]) -> Iterator[tuple[str, str, pl.DataFrame]]:
    """Yield each cycle that has rows of a kind, the template that the model answers best, and the rows of this one."""
    every = known(of_model(judged, kind))
    for cycle in found:
        rows = every.filter(pl.col("cycle") == cycle)
        if rows.height:
            template = template_of(judged, rows)
            yield cycle, template, rows.filter(pl.col("template") == template)


def _pairs(rows: pl.DataFrame) -> str:
    return f"{rows['n'].max():,} pairs of words" if rows.height else ""


def _words(rows: pl.DataFrame) -> str:
    counts = rows.group_by("cycle", maintain_order=True).agg(pl.col("n").max(), pl.col("label").n_unique())
    return f"Words: {', '.join(f'{cycle} {n or labels}' for cycle, n, labels in counts.rows())}."


def _quoted(templates: list[str]) -> str:
    return "Templates: " + ", ".join(f'"{template}"' for template in templates) + "."
