"""The report's section on dense features, as data. Imports no torch."""

from __future__ import annotations

from collections import Counter
from typing import Any

import polars as pl

from monosem.definitions import METRICS
from monosem.evals import Judged, against_l0, short, without_empty
from monosem.evals.dense.verdicts import ALIGNED, BANDS, DENSE, EXPLAINED, PATHOLOGICAL, is_judged
from monosem.schema import Axis, Chart, Series
from monosem.types import Estimate

SECTION = "Dense features"
SHOWN = 5  # densest features a run in the table
NOTE = (
    f"Explained: position, log token frequency and norm together reach R² {EXPLAINED:g}, or the token id, the model's "
    f"next-token entropy or the document length do alone, or |cos| with the mean activation is at least {ALIGNED:g}, "
    "or an antipodal feature exists. R² is of the activation over all tokens, zeros included. Unexplained is not "
    "pathological: that takes a rating of at most 2, or an interpretation score below 0.1 with R² below 0.2."
)


def dense_charts(judged: list[Judged]) -> list[Chart]:
    """Return the tables and charts; judged: every run with its result."""
    l0 = Axis("L0", "features a token", log=True)
    name = "pathological_share" if _evidence(judged) else "unexplained_share"
    metric = METRICS[name]
    return [
        _answer(judged),
        Chart(
            "dense-share-of-l0",
            "Share of L0 that is dense, against sparsity",
            "line",
            l0,
            Axis(METRICS["dense_l0_share"].label, "fraction"),
            _lines(judged, "dense_l0_share"),
            note=METRICS["dense_l0_share"].definition + " Bars: 95 % document bootstrap.",
            section=SECTION,
        ),
        Chart(
            "dense-verdicts",
            f"{metric.label}, against sparsity",
            "line",
            l0,
            Axis(metric.label, "fraction"),
            _lines(judged, name),
            note=f"{metric.definition} Runs without such features have no point. Bars: Wilson interval over features.",
            section=SECTION,
        ),
        _bands(judged),
        _densest(judged),
    ]


def _evidence(judged: list[Judged]) -> bool:
    return any(is_judged(text) for j in judged for text in _dense(j)["verdict"])


def _dense(one: Judged) -> pl.DataFrame:
    return one.result.rows.filter(pl.col("band").is_in(DENSE))


def _lines(judged: list[Judged], name: str) -> list[Series]:
    """Return one line a variant against L0, with intervals, through the means over seeds."""
    lines = []
    for variant in dict.fromkeys(j.info.variant for j in judged):
        lines += against_l0(variant, [j for j in judged if j.info.variant == variant], name, _hover)
    return lines


def _hover(one: Judged, _: Estimate) -> str:
    return f"{one.info.name}\n{_dense(one).height} features above 10 %"


def _answer(judged: list[Judged]) -> Chart:
    """Return the table that answers the question, one row a variant; the title is the answer over all of them."""
    tables = [_dense(j) for j in judged]
    number = sum(table.height for table in tables)
    found = [text for table in tables for text in table["verdict"] if is_judged(text)]
    title, note = f"No feature of these {len(judged)} runs fires on more than 10 % of tokens", NOTE
    if number:
        left = sum(table["cause"].null_count() for table in tables)
        title = f"{number} dense features in {len(judged)} runs; screens leave {left} of them unexplained"
    if found:
        title += f"; {found.count(PATHOLOGICAL)} of {len(found)} rated or scored ones are pathological"
    elif number:
        note = "None of these features is rated or scored, so none of them is called pathological. " + note
    word = "Pathological" if found else "Unexplained"
    columns = ["Variant", "Features above 10 %", "Unexplained by screens", f"{word}, lowest L0", f"{word}, highest L0"]
    cells: list[list[Any]] = []
    for variant in dict.fromkeys(j.info.variant for j in judged):
        own = sorted((j for j in judged if j.info.variant == variant), key=lambda j: j.value("l0"))
        counts, left = (
            ", ".join(f"{n} (L0 {j.value('l0'):.3g})" for j, n in zip(own, numbers, strict=True))
            for numbers in ([_dense(j).height for j in own], [_dense(j)["cause"].null_count() for j in own])
        )
        cells.append([variant, counts, left, *change(own, "pathological_share" if found else "unexplained_share")])
    columns.append("From low to high L0")
    return Chart("dense-answer", title, "table", columns=columns, cells=cells, note=note, section=SECTION)


def change(own: list[Judged], name: str) -> tuple[str | None, str | None, str]:
    """Return a share at the lowest and highest L0 at which there are dense features, and whether it differs for sure.

    own: the runs of a variant, by rising L0. It differs when the intervals don't overlap.
    """
    told = [e for j in own if (e := j.result.scalars[name]) is not None]
    if not told:
        return None, None, "no dense features"
    if len(told) == 1:
        return _interval(told[0]), None, "one L0 only"
    low, high = told[0], told[-1]
    word = "more" if high.low > low.high else "fewer" if high.high < low.low else "not clear"
    return _interval(low), _interval(high), word


def _interval(e: Estimate) -> str:
    return f"{100 * e.value:.0f} % [{100 * e.low:.0f}, {100 * e.high:.0f}]"


def _bands(judged: list[Judged]) -> Chart:
    columns = ["Run", "L0", "Band", "Features", "Share of L0", "Unexplained", "Causes", "Screen R²", "Token R²"]
    columns += ["Along the mean", "Found at other settings", "Found in other seeds", "NMSE impact", "ΔCE a firing"]
    cells = []
    for one in judged:
        for band, (low, high) in BANDS.items():
            rows = one.result.rows.filter(pl.col("band") == band)
            if not rows.height:
                continue
            causes = Counter(cause for cause in rows["cause"] if cause is not None)
            key = band.lower()
            cells.append(
                [
                    one.info.name,
                    short(one.value("l0")),
                    f"{100 * low:g}–{100 * high:g} %",
                    one.value(f"features_{key}"),
                    short(one.value(f"l0_share_{key}")),
                    f"{rows['cause'].null_count()} of {rows.height}",
                    ", ".join(f"{cause} {n}" for cause, n in causes.most_common()) or "none found",
                    short(rows["screen_r2"].median()),
                    short(rows["r2_token"].median()),
                    _above(rows["mean_cosine"].abs()),
                    _above(rows["setting_cosine"]),
                    _above(rows["seed_cosine"]),
                    short(rows["impact_ratio"].mean()),
                    short(rows["delta_ce_firing"].mean()) if "delta_ce_firing" in rows.columns else None,
                ]
            )
    note = (
        "Of the band 1–10 % a random sample is inspected, of the others all features. R²: median. Along the mean: "
        "share with |cos| with the mean activation above 0.7. Found: share whose decoder row has a cosine above 0.7 "
        "with a live feature of the family's other settings, or seeds (median over runs); runs with one seed begin "
        "with the same weights, so that settings prove less. NMSE impact: mean rise of NMSE when one feature is "
        "zeroed, relative to the run's average live feature. ΔCE: mean over the features for which the model was run "
        "again, in nats."
    )
    names, shown = without_empty(columns, cells)
    title = "Dense features by band"
    return Chart("dense-bands", title, "table", columns=names, cells=shown, note=note, section=SECTION)


def _above(cosines: pl.Series) -> float | None:
    """Return the share of cosines above ALIGNED."""
    known = cosines.drop_nulls()
    return short((known > ALIGNED).mean()) if len(known) else None


def _densest(judged: list[Judged]) -> Chart:
    columns = ["Run", "Feature", "Density", "Verdict", "Screen R²", "Token R²", "cos, mean", "cos, other settings"]
    columns += ["ΔNMSE", "NMSE × average", "a firing"]
    with_ce = any("delta_ce" in j.result.rows.columns for j in judged)
    names = ["screen_r2", "r2_token", "mean_cosine", "setting_cosine", "delta_nmse"]
    names += ["impact_ratio", "impact_ratio_firing"]
    if with_ce:
        columns += ["ΔCE", "CE × average", "ΔCE, first order"]
        names += ["delta_ce", "ce_impact_ratio", "delta_ce_estimate"]
    cells: list[list[Any]] = []
    for one in judged:
        for row in _dense(one).head(SHOWN).iter_rows(named=True):
            numbers: list[Any] = [short(row.get(name)) for name in ["density", *names]]
            if with_ce and row.get("delta_ce") is not None:
                numbers[-3] = f"{row['delta_ce']:.2g}"
                if row["delta_ce_low"] is not None:  # one spliced row has no interval
                    numbers[-3] += f" [{row['delta_ce_low']:.2g}, {row['delta_ce_high']:.2g}]"
            cells.append([one.info.name, str(row["feature"]), numbers[0], row["verdict"], *numbers[1:]])
    note = (
        f"The {SHOWN} densest features of each run, if above 10 %. ΔNMSE and ΔCE: change when the feature is zeroed; a "
        "negative one means that the model is better off without it. cos: with the mean activation, and the largest "
        "with a live feature at the family's other settings. Average: of the run's live features, or of all their "
        "firings; for ΔCE an equal share of what zeroing all features at once costs."
    )
    return Chart(
        "dense-features", "The densest features", "table", columns=columns, cells=cells, note=note, section=SECTION
    )
