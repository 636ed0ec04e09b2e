"""The report's tables on RAVEL's attributes, what the model answers, and single interventions. Imports no torch."""

from __future__ import annotations

from typing import Any

import polars as pl

from monosem.evals import Judged, cell
from monosem.evals.ravel.disentangle import intervals
from monosem.evals.ravel.lines import BARS, DRAWS, SECTION, Line
from monosem.evals.ravel.table import COVERAGE, TEST, sampled
from monosem.schema import Chart

SAMPLE = 10  # interventions of each type, target and method
PLACES = {"entity": "new entities", "context": "new contexts"}


def matrix(lines: list[Line]) -> Chart:
    """Return the scores of each attribute, and their mean over a type where there are several."""
    found = [intervals(line.rows, DRAWS) for line in lines]
    places = [key for key in (found[0] if found else ()) if key.split is None and key.type is not None]
    several = {key.type for key in places if sum(key.type == own.type for own in places) > 2}  # with the mean
    kept = [key for key in places if key.target is not None or key.type in several]
    cells: list[list[Any]] = []
    for key in sorted(kept, key=lambda key: (key.type, key.target is None, key.target)):
        name = f"{key.type}: {key.target or 'mean'}"
        scores = [("Disentangle", key, "disentangle")]
        scores += [(f"Disentangle, {PLACES[split]}", key._replace(split=split), "disentangle") for split in TEST]
        scores += [("Cause", key, "cause"), ("Isolate", key, "isolate")]
        for label, of, score in scores:
            cells.append([name, label, *(cell(one[of][score]) if of in one else None for one in found)])
    return Chart(
        "ravel-attributes",
        "Scores by attribute",
        "table",
        columns=["Attribute", "Score", *(line.name for line in lines)],
        cells=cells,
        note=f"One run a variant, at like L0, without the error. {BARS} within the attribute; hover over a number for "
        "how many.",
        section=SECTION,
    )


def coverage(one: Judged) -> Chart:
    """Return what the model's own answers left of the data."""
    scalars, reasons = one.result.scalars, one.result.reasons
    rows = one.result.rows
    unstable = one.value("unstable_pairs")
    left = f" {unstable:,.0f} pairs are left out as their answers change with the batch." if unstable > 0 else ""
    columns = ["Type", "Attribute", "Prompts", "Answered", "Entities", "Templates", "Training pairs", "Test pairs"]
    columns.append("Used")
    cells: list[list[Any]] = []
    for place in [name.removeprefix("answered/") for name in scalars if name.startswith("answered/")]:
        kind, attribute = place.split("/", 1)
        answered, *counts = (scalars.get(f"{name}/{place}") for name in COVERAGE)
        asked = rows.filter((pl.col("type") == kind) & (pl.col("attribute") == attribute) & pl.col("split").is_in(TEST))
        pairs = asked.select("base", "source", "template", "split").n_unique()
        row = [kind, attribute, None if answered is None else answered.n, cell(answered)]
        row += [None if e is None else int(e.value) for e in counts]
        cells.append([*row, pairs, reasons.get(f"train_pairs/{place}", "used")])
    return Chart(
        "ravel-coverage",
        "What the model itself answers",
        "table",
        columns=columns,
        cells=cells,
        note="An intervention means something only where the model answers both base and source prompt rightly by "
        "itself, and differently. Answered: share of the prompts that were tried (Wilson interval). Entities, "
        "templates: those that have right answers. Attributes with too few are left out." + left,
        section=SECTION,
    )


def single(lines: list[Line]) -> Chart:
    """Return a fair sample of the interventions of each line, to read."""
    columns = ["Method", "Swapped", "Asked", "Score", "Hit", "Prompt", "Source", "Base answer", "Source answer"]
    columns.append("Answer")
    cells: list[list[Any]] = []
    total = 0
    for line in lines:
        rows = line.rows
        total += rows.height
        for row in sampled(rows, SAMPLE).iter_rows(named=True):
            score = "Cause" if row["target"] == row["attribute"] else "Isolate"
            prompt = row["template"].replace("%s", row["base"]).replace("\n", " ⏎ ")
            swapped = f"{row['type']}: {row['target']}"
            hit = "yes" if row["hit"] else "no"
            cells.append([line.name, swapped, row["attribute"], score, hit, prompt])
            cells[-1] += [row[name] for name in ("source", "base_answer", "source_answer", "answer")]
    return Chart(
        "ravel-single",
        f"Single interventions: {len(cells):,} of {total:,}",
        "table",
        columns=columns,
        cells=cells,
        note=f"Of each swapped attribute and method, {SAMPLE // 2} that count for Cause and {SAMPLE // 2} for Isolate, "
        "drawn with a fixed seed so that every intervention is as likely to be drawn and hits and misses keep their "
        "proportion. Source: the entity whose activation is put in. Base and source answer: what the model answers by "
        "itself to this prompt with either entity. Answer: after the edit, up to the first token that isn't the "
        "looked-for one's; a hit for Cause gives the source's, one for Isolate the base's. rows.parquet has them all.",
        section=SECTION,
    )
