"""The report's section on indirect object identification, as data. Imports no torch."""

from __future__ import annotations

from typing import Any

from monosem.evals import Judged, at_like_l0, cell, interval, short, without_empty
from monosem.evals.ioi.details import accuracy, f1_table, heads, layers, matrix, occlusion, single, slug, splitting
from monosem.evals.ioi.lines import (
    BARS,
    FEW,
    MANY,
    SECTION,
    WORDS,
    Line,
    average,
    carried,
    difference,
    floor,
    necessity,
    run_lines,
    sufficiency,
    supervised_lines,
    task_lines,
)
from monosem.evals.ioi.prompts import ATTRIBUTES
from monosem.schema import Axis, Chart, Series
from monosem.types import Estimate

OTHERS = ((MANY, "greedy"), (FEW, "f1"))  # edits beside the main ones
CHOICES = {"greedy": "chosen greedily", "f1": "chosen by what they stand for"}


def ioi_charts(judged: list[Judged]) -> list[Chart]:
    """Return the tables and charts; judged: every run with its result."""
    if not judged:
        return []
    one = judged[0]
    runs, every = run_lines(judged), carried(one)["place"].unique(maintain_order=True).to_list()
    shown = _representatives(judged, runs)
    tasks = {place: task_lines(one, [place]) for place in every}
    overall = task_lines(one, every, by_variant=False)
    plain = [floor(one), *supervised_lines(one)]
    charts = [
        *_comparison(one, runs, every),
        *(layers(one, attribute) for attribute in ATTRIBUTES),
        heads(one),
        *(_budgets(one, shown, place, method) for place in every for method in CHOICES),
        f1_table([*shown, *task_lines(one, every)]),
        matrix(one, [*plain, *shown], overall),
        *(chart([*shown, *tasks[place]], place) for chart in (occlusion, splitting) for place in every),
        single([*plain, *shown, *overall]),
        accuracy(one),
    ]
    return [chart for chart in charts if chart.cells or chart.series]


def _representatives(judged: list[Judged], runs: list[Line]) -> list[Line]:
    names = {j.info.name for j in at_like_l0(judged, {j.info.name: j.value("l0") for j in judged}) or judged[:1]}
    return [line for line in runs if line.name in names]


def _comparison(one: Judged, runs: list[Line], every: list[str]) -> list[Chart]:
    """Return the charts that compare all dictionaries where the study's own exist (everywhere without such)."""
    theirs = {place for line in runs for place in line.edits()["place"].unique()}
    places = [place for place in every if place in theirs] or every
    tasks = task_lines(one, places)
    supervised = sorted((line.at(*places) for line in supervised_lines(one)), key=lambda line: -line.value)
    runs = sorted((line.at(*places) for line in runs), key=lambda line: -line.value)
    none = floor(one).at(*places)
    return [_answer(runs, tasks, supervised, none, places), _magnitude(runs, tasks, supervised, places)]


def _answer(runs: list[Line], tasks: list[Line], supervised: list[Line], none: Line, places: list[str]) -> Chart:
    columns = ["Dictionary", "Kind", "L0", "Sufficiency", "Necessity", f"Edit success, {FEW} features"]
    columns += ["From supervised", f"{MANY} features", f"{FEW} features by F1", "Weight removed", "F1", "F1, union"]
    lines = sorted([*runs, *tasks, *supervised, none], key=lambda line: -line.value)
    cells: list[list[Any]] = []
    for line in [line for line in lines if line.value >= 0]:
        few, is_sae = line.edits(), line.kind in ("full", "task")
        parts = line.approximations
        gap = difference(few, supervised[0].edits()) if supervised and line is not supervised[0] else None
        row = [line.name, WORDS[line.kind], short(line.l0), cell(sufficiency(parts)), cell(necessity(parts))]
        row += [cell(line.success()), cell(gap), *(cell(line.success(*which)) for which in OTHERS if is_sae)]
        row += [None] * (0 if is_sae else len(OTHERS))
        cells.append([*row, cell(average(few, "removed")), cell(line.f1("single")), cell(line.f1("union"))])
    note = (
        f"At {', '.join(places)}; means over prompts, then attributes, then places. Sufficiency: logit difference with "
        "the reconstruction in the activation's place, as a share of the clean one. Necessity: 1 if nothing of the "
        "logit difference is left where only what the dictionary leaves out stays, 0 if it misses all. Edit success: "
        "share of prompts whose likeliest next token is the one under true patching, where the edit changes one "
        f"attribute (S, IO or Pos) with {FEW} or {MANY} features, chosen greedily to come near the true change; by F1: "
        "those that stand for the old and the new value. From supervised: paired difference from the best supervised "
        "edit, same prompts. Weight removed: share of the reconstruction that the edit takes away (0 nothing, 1 "
        "everything). F1: how well features match values of the attributes. Task SAEs: the best of a variant by edit "
        "success, at each place, chosen on these prompts, which flatters them a little. Unchanged model: what an edit "
        f"that does nothing scores. {BARS} (F1: values)."
    )
    columns, cells = without_empty(columns, cells)
    title = _title(runs, tasks, supervised, none)
    return Chart("ioi", title, "table", columns=columns, cells=cells, note=note, section=SECTION)


def _title(runs: list[Line], tasks: list[Line], supervised: list[Line], none: Line) -> str:
    """Return the first run, how far task SAEs and supervised codes are above it, and if the paper's order holds."""
    runs = [line for line in runs if line.value >= 0]
    task = max(tasks, key=lambda line: line.value, default=None)
    parts = []
    if runs:
        told = f"edits {runs[0].value:.2f} of the prompts as true patching does, with {FEW} features"
        parts.append(f"{runs[0].name} {told}{_lead(runs)}")
    for what, line in (("the best task SAE", task), ("supervised", supervised[0] if supervised else None)):
        if line is not None and line.value >= 0:
            told = f", {_gap(difference(line.edits(), runs[0].edits()))}" if runs else ""
            parts.append(f"{what} ({line.name.removeprefix('task: ')}) {line.value:.2f}{told}")
    if runs and task is not None and supervised:
        steps = [difference(supervised[0].edits(), task.edits()), difference(task.edits(), runs[0].edits())]
        parts.append(f"the paper's order, supervised > task > full distribution, {_verdict(steps)}")
    if none.value >= 0:
        parts.append(f"changing nothing scores {none.value:.2f}")
    return f"IOI: {'; '.join(parts)}" if parts else "IOI: no edit was made"


def _lead(runs: list[Line]) -> str:
    gaps = [difference(runs[0].edits(), line.edits()) for line in runs[1:]]
    like = sum(gap is None or gap.low <= 0 for gap in gaps)
    return f" ({like} of the {len(gaps)} other runs can't be told from it)" if like else ""


def _gap(gap: Estimate | None) -> str:
    if gap is None:
        return "on other prompts"
    if gap.low <= 0 <= gap.high:
        return f"not to be told from it ({interval(gap, '+.2f')})"
    if gap.low > 0:
        return f"{interval(gap, '.2f')} above it"
    return f"{interval(Estimate(-gap.value, -gap.high, -gap.low, gap.n), '.2f')} below it"


def _verdict(steps: list[Estimate | None]) -> str:
    if any(step is not None and step.high < 0 for step in steps):
        return "fails here"
    return "holds here" if all(step is not None and step.low > 0 for step in steps) else "is not decided here"


def _magnitude(runs: list[Line], tasks: list[Line], supervised: list[Line], places: list[str]) -> Chart:
    groups = {variant: [line for line in runs if line.variant == variant] for variant in {r.variant: 0 for r in runs}}
    groups |= {"task SAEs": tasks, "supervised": supervised}
    series = []
    for name, lines in groups.items():
        found = [(line, x, y) for line in lines if (x := average(line.edits(), "removed")) and (y := line.success())]
        if not found:
            continue
        series.append(
            Series(
                name,
                [x.value for _, x, _ in found],
                [y.value for *_, y in found],
                name,
                y_low=[y.low for *_, y in found],
                y_high=[y.high for *_, y in found],
                x_low=[x.low for _, x, _ in found],
                x_high=[x.high for _, x, _ in found],
                hover=[line.name for line, *_ in found],
            )
        )
    return Chart(
        "ioi-magnitude",
        "Edit success against what the edit takes away",
        "points",
        Axis("Weight removed", "share of the reconstruction"),
        Axis(f"Edit success, {FEW} features", "fraction"),
        series,
        note=f"At {', '.join(places)}. Upper left is better: the attribute changes and little else is removed. At the "
        "right the edit replaces nearly everything, and success says nothing about the dictionary. Supervised: the "
        f"share that the attribute's own code has. Bars: {BARS}.",
        section=SECTION,
    )


def _budgets(one: Judged, shown: list[Line], place: str, method: str) -> Chart:
    """Return edit success at a place against the number of features changed."""
    series: list[Series] = []
    few: list[tuple[float, str]] = []
    for line in [*(run.at(place) for run in shown), *task_lines(one, [place])]:
        rows = line.of("edit")
        sizes = sorted(rows.filter(method=method)["x"].unique())
        found = [(x, e) for x in sizes if (e := line.success(x, method)) is not None]
        series += [_against(line.name, line.group, found)] if found else []
        few += [(e.value, line.name) for x, e in found if x == FEW]
    levels: list[str] = []
    span = [x for one_series in series for x in one_series.x]
    for line in [line.at(place) for line in (*supervised_lines(one), floor(one))]:
        if span and (e := line.success()) is not None:
            series.append(_against(line.name, line.group, [(min(span), e), (max(span), e)]))
            levels.append(f"{line.name} {e.value:.2f}")
    told = [f"{max(few)[1]} {max(few)[0]:.2f} with {FEW}"] if few else []
    return Chart(
        f"ioi-edits-{slug(place)}" + ("" if method == "greedy" else f"-{method}"),
        f"Edit success at {place}, features {CHOICES[method]}: {', '.join([*told, *levels])}",
        "line",
        Axis("Features changed", log=True),
        Axis("Edit success", "fraction"),
        series,
        note="Share of prompts whose likeliest next token is the one under true patching, mean over the attributes "
        "that the place carries. Level lines: supervised edits, which change one code for another, and the unchanged "
        f"model. A dictionary that has the attribute as few features is near the supervised line from {FEW} on; one "
        "that needs dozens has spread it. One run a variant, at like L0, and the best task SAE of each variant. "
        f"Bars: {BARS}.",
        section=SECTION,
    )


def _against(name: str, group: str, points: list[tuple[float, Estimate]]) -> Series:
    low, high = [e.low for _, e in points], [e.high for _, e in points]
    return Series(name, [x for x, _ in points], [e.value for _, e in points], group, y_low=low, y_high=high)
