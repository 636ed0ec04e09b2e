"""The report's section on probes, as data. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from monosem.definitions import METRICS
from monosem.evals import Judged, against_l0, at_like_l0, interval, short
from monosem.evals.probes.scores import SPARSE
from monosem.evals.probes.table import mean_over_tasks, used
from monosem.schema import Axis, Chart, Series
from monosem.types import Estimate

SECTION = "Probes"
DRAWS = 2000
LN2 = float(np.log(2))
TOLD = (1, 5)  # of SPARSE, in the first table; the chart has all
CONTROLS = {
    "random": "random directions",
    "neuron": "single dimensions",
    "pca": "principal components",
    "dense": "dense probe",
}
BARS = " Bars: 95 % BCa interval over tasks."


def probes_charts(judged: list[Judged]) -> list[Chart]:
    """Return the tables and charts; judged: every run with its result."""
    if not judged:
        return []
    charts = [
        _answer(judged),
        _against_l0(judged),
        _gain(judged),
        _against_width(judged),
        _sparse(judged),
        _by_task(judged),
    ]
    return [chart for chart in [*charts, _left_out(judged)] if chart.cells or chart.series]


def _losses(one: Judged, column: str = "pre_loss") -> dict[str, float]:
    kept = used(one.result.rows)
    return dict(zip(kept["task"], kept[column], strict=True))


def paired(one: Judged, other: Judged, column: str = "pre_loss") -> Estimate | None:
    """Return the mean difference of two runs over the tasks that both have, with its BCa interval."""
    x, y = _losses(one, column), _losses(other, column)
    both = [x[task] - y[task] for task in x if task in y]
    return mean_over_tasks(np.array(both, dtype=np.float64), DRAWS)


def _answer(judged: list[Judged]) -> Chart:
    best = min(judged, key=lambda j: j.value("probe_loss"))
    columns = ["Run", "L0", "Features", "Probe loss", "From the lowest", "Below random directions", "In-sample"]
    columns += ["Accuracy", "Loss, post-activations", *(f"{k}-sparse accuracy" for k in TOLD), "Seconds"]
    names = ["probe_gain", "probe_loss_train", "probe_accuracy", "probe_loss_post"]
    names += [f"sparse_accuracy_{k}" for k in TOLD]
    cells: list[list[Any]] = []
    for one in judged:
        distance = None if one is best else interval(paired(one, best), "+.3f")
        row = [one.info.name, short(one.value("l0")), one.info.d_sae, interval(one.result.scalars["probe_loss"])]
        rest = [interval(one.result.scalars[name]) for name in names]
        cells.append([*row, distance or ("lowest" if one is best else None), *rest, short(one.value("seconds"))])
    kept = used(best.result.rows)
    note = (
        f"{kept.height} tasks, {kept['train'].sum():,} texts to fit to and {kept['test'].sum():,} held out. Intervals: "
        "BCa over tasks. From the lowest: difference from the run with the lowest loss, paired by task; the lowest of "
        "many is chosen on these same tasks, and nothing is corrected for that. Below random: the loss of as many "
        "random directions as the run has features, minus the run's. In-sample: the loss on the texts that feature, "
        "weight and intercept were chosen on; noise alone would reach about "
        f"{best.value('noise_probe_loss'):.3f} there, and ln 2 = 0.693 on held-out texts. "
        + " ".join(METRICS[name].definition for name in ("probe_loss", "sparse_accuracy_1"))
    )
    return Chart(
        "probes-answer", _title(judged, best), "table", columns=columns, cells=cells, note=note, section=SECTION
    )


def _title(judged: list[Judged], best: Judged) -> str:
    told = (
        f"{best.info.name} has the lowest probe loss, {best.value('probe_loss'):.3f} nats at L0 {best.value('l0'):.3g}"
    )
    if len(judged) > 1:
        gaps = [paired(one, best) for one in judged if one is not best]
        like = sum(gap is None or gap.low <= 0 for gap in gaps)
        told += f"; {like} of the {len(gaps)} other runs can't be told from it" if like else "; all others are higher"
    below = sum((e := j.result.scalars["probe_gain"]) is not None and e.low > 0 for j in judged)
    return (
        f"{told}. {below} of {len(judged)} runs are below random directions ({best.value('random_probe_loss'):.3f}); a "
        f"dense probe reaches {best.value('dense_probe_loss'):.3f}"
    )


def _groups(judged: list[Judged]) -> list[tuple[str, str, list[Judged]]]:
    """Return (name, variant, runs) of each variant, and of each width where there are several."""
    several = len({j.info.d_sae for j in judged}) > 1
    keys = dict.fromkeys((j.info.variant, j.info.d_sae) for j in judged)
    return [
        (
            f"{variant}, {width:,}" if several else variant,
            variant,
            [j for j in judged if (j.info.variant, j.info.d_sae) == (variant, width)],
        )
        for variant, width in keys
    ]


def _against_l0(judged: list[Judged]) -> Chart:
    alive = [j for j in judged if j.value("l0") > 0]
    series = []
    for name, variant, own in _groups(alive):
        series += [replace(line, group=variant) for line in against_l0(name, own, "probe_loss", _hover)]
    reach = [j.value("l0") for j in alive]
    for control, label in CONTROLS.items():
        levels = {(j.value(f"{control}_probe_loss"), j.info.d_sae if control == "random" else 0): j for j in alive}
        for (level, width), one in levels.items():
            many = control == "random" and len({j.info.d_sae for j in alive}) > 1
            told = f"mean over tasks {interval(one.result.scalars[f'{control}_probe_loss'])}"
            ends = [min(reach) * 0.93, max(reach) * 1.07]
            named = f"{label}, {width:,}" if many else label
            series.append(Series(named, ends, [level] * 2, group=label, hover=[told] * 2))
    return Chart(
        "probes-l0",
        "Probe loss against sparsity",
        "line",
        Axis("L0", "features a token", log=True),
        Axis(METRICS["probe_loss"].label, "nats a text", reference=LN2),
        series,
        note="Mean over tasks, held-out texts, pre-activations. Dashed line: ln 2, what the majority class scores. "
        "Lines without bars are controls: the best of as many random directions as there are features, of the model's "
        "own dimensions, of the principal components of the held-out activations, and one probe on all dimensions "
        "together. The difference between two runs is surer than their bars say, because both have the same tasks: "
        "see below." + BARS,
        section=SECTION,
    )


def _gain(judged: list[Judged]) -> Chart:
    """Return by how much runs are below random directions, task by task, against L0."""
    series = []
    for name, variant, own in _groups([j for j in judged if j.value("l0") > 0]):
        series += [replace(line, group=variant) for line in against_l0(name, own, "probe_gain", _hover)]
    return Chart(
        "probes-gain",
        "How far below random directions, against sparsity",
        "line",
        Axis("L0", "features a token", log=True),
        Axis(METRICS["probe_gain"].label, "nats a text", reference=0.0),
        series,
        note=METRICS["probe_gain"].definition + " Tasks differ from each other, so this interval is much narrower than "
        "that of the loss." + BARS,
        section=SECTION,
    )


def _hover(one: Judged, e: Estimate) -> str:
    return f"{one.info.name}\n{e.n} tasks, {one.info.d_sae:,} features"


def _against_width(judged: list[Judged]) -> Chart:
    """Return probe loss against d_sae, empty where all runs have the same."""
    series = []
    if len({j.info.d_sae for j in judged}) > 1:
        for variant in dict.fromkeys(j.info.variant for j in judged):
            own = [(j, e) for j in judged if j.info.variant == variant and (e := j.result.scalars["probe_loss"])]
            series.append(
                Series(
                    variant,
                    [j.info.d_sae for j, _ in own],
                    [e.value for _, e in own],
                    group=variant,
                    y_low=[e.low for _, e in own],
                    y_high=[e.high for _, e in own],
                    hover=[f"{j.info.name}\nL0 {j.value('l0'):.3g}" for j, _ in own],
                    join=[str(j.info.d_sae) for j, _ in own],
                )
            )
        known = {j.info.d_sae: e for j in judged if (e := j.result.scalars["random_probe_loss"])}
        widths, levels = sorted(known), [known[width] for width in sorted(known)]
        bars = ([e.value for e in levels], CONTROLS["random"], [e.low for e in levels], [e.high for e in levels])
        series.append(Series(CONTROLS["random"], widths, *bars))
    return Chart(
        "probes-width",
        "Probe loss against the number of features",
        "line",
        Axis("Features", "d_sae", log=True),
        Axis(METRICS["probe_loss"].label, "nats a text"),
        series,
        note="Lines run through the means of a variant's runs of one size, whatever their L0. More "
        "directions are more tries: a fall that random directions share says nothing of the features." + BARS,
        section=SECTION,
    )


def _sparse(judged: list[Judged]) -> Chart:
    series = []
    for one in _representatives(judged):
        found = [(k, e) for k in SPARSE if (e := one.result.scalars[f"sparse_accuracy_{k}"]) is not None]
        series.append(
            Series(
                one.info.name,
                [k for k, _ in found],
                [e.value for _, e in found],
                group=one.info.variant,
                y_low=[e.low for _, e in found],
                y_high=[e.high for _, e in found],
            )
        )
    dense = judged[0].value("dense_probe_accuracy")
    series.append(Series("dense probe", [SPARSE[0], SPARSE[-1]], [dense, dense], group="dense probe"))
    return Chart(
        "probes-sparse",
        "Accuracy of k features together",
        "line",
        Axis("k", "features", log=True),
        Axis("Accuracy", "fraction of held-out texts"),
        series,
        note=METRICS["sparse_accuracy_1"].definition + " One run a variant, at like L0. Post-activations." + BARS,
        section=SECTION,
    )


def _representatives(judged: list[Judged]) -> list[Judged]:
    return at_like_l0(judged, {j.info.name: j.value("l0") for j in judged}) or judged[:1]


def _by_task(judged: list[Judged]) -> Chart:
    shown = _representatives(judged)
    kept = used(judged[0].result.rows)
    every = {one.info.name: _losses(one) for one in judged}
    columns = ["Task", "Texts", "Dense probe", *(f"{one.info.name}" for one in shown)]
    columns += ["Random directions", "Single dimensions", "Principal components", "Lowest of all runs", "Feature"]
    cells: list[list[Any]] = []
    for row in kept.iter_rows(named=True):
        task = row["task"]
        losses = [short(every[one.info.name].get(task)) for one in shown]
        best = min(judged, key=lambda j: every[j.info.name].get(task, np.inf))
        feature = best.result.rows.filter(pl.col("task") == task)["pre_feature"][0]
        texts = f"{row['train']:,} + {row['test']:,}, {row['pool']}"
        numbers = [short(row[f"{name}_loss"]) for name in ("random", "neuron", "pca")]
        found = [f"{best.info.name}, {every[best.info.name][task]:.3f}", str(feature)]
        cells.append([task, texts, short(row["dense_loss"]), *losses, *numbers, *found])
    note = (
        "Held-out probe loss in nats, pre-activations, 0.693 is chance. Texts: fitted to + held out, and how their "
        "tokens are brought together. One run a variant, at like L0; the lowest of all runs is chosen on these same "
        "held-out texts, so it flatters. Classes are balanced; rows.parquet has how many texts were left out, and why."
    )
    title = "Probe loss by task"
    return Chart("probes-tasks", title, "table", columns=columns, cells=cells, note=note, section=SECTION)


def _left_out(judged: list[Judged]) -> Chart:
    rows = judged[0].result.rows.filter(pl.col("reason").is_not_null())
    cells: list[list[Any]] = [list(row) for row in rows.select("task", "read", "empty", "duplicates", "reason").rows()]
    columns = ["Task", "Texts read", "Empty", "Duplicates", "Why"]
    return Chart("probes-left-out", "Tasks left out", "table", columns=columns, cells=cells, section=SECTION)
