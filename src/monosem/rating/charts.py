"""The rating's part of the report: charts as data, definitions in their notes. Imports no torch."""

from __future__ import annotations

from typing import Any

from monosem.rating.agreement import LEVELS
from monosem.rating.rubric import SCALES
from monosem.schema import Axis, Chart, Series

SECTION = "Human rating"


def charts_of(analysis: dict[str, Any]) -> list[Chart]:
    """Return the charts of an analysis (the content of ratings/analysis.json)."""
    charts = []
    for scale in SCALES:
        if scale.field in analysis["axes"]:
            one = analysis["axes"][scale.field]
            anchors = "; ".join(f"{level}: {text}" for level, text in scale.anchors)
            charts.append(_means(scale.field, scale.name, one, analysis, anchors))
            charts.append(_distributions(scale.field, scale.name, one, analysis))
            charts.append(_run_table(scale.field, scale.name, one, analysis))
            if one["pairs"]:
                charts.append(_pair_table(scale.field, scale.name, one))
    return [*charts, _agreement_table(analysis)]


def _means(axis: str, name: str, one: dict[str, Any], analysis: dict[str, Any], anchors: str) -> Chart:
    """Return the mean score of every run with its interval, one series a variant."""
    variants = {run: analysis["runs"][run]["variant"] for run in one["runs"]}
    series = []
    for variant in dict.fromkeys(variants.values()):
        mine = {run: facts for run, facts in one["runs"].items() if variants[run] == variant}
        series.append(
            Series(
                variant,
                [*mine],
                [facts["mean"] for facts in mine.values()],
                variant,
                [facts["low"] for facts in mine.values()],
                [facts["high"] for facts in mine.values()],
                [f"{facts['n']} features" for facts in mine.values()],
            )
        )
    raters = len(analysis["raters"])
    draw = analysis["draw"]
    note = (
        f"{one['sentence']} Blind ratings by {raters} {'person' if raters == 1 else 'people'} of {draw['features']} "
        f"features a run ({draw['sampling']} sampling). Bars: 95 % BCa bootstrap over features; a feature's ratings "
        f"are averaged first (over its copies, then over raters). Anchors: {anchors}."
    )
    axes = Axis("Run"), Axis(f"Mean {name.lower()}", "1 to 5")
    return Chart(f"rating-{axis}", f"{name}, mean a run", "points", *axes, series, note, section=SECTION)


def _distributions(axis: str, name: str, one: dict[str, Any], analysis: dict[str, Any]) -> Chart:
    series = [
        Series(run, [*LEVELS], facts["distribution"], analysis["runs"][run]["variant"])
        for run, facts in one["runs"].items()
    ]
    note = "Share of features by score; means over raters are rounded half up." + _weighting(analysis)
    axes = Axis(name, "score"), Axis("Features", "share")
    return Chart(f"rating-{axis}-distribution", f"{name}, distribution", "bars", *axes, series, note, section=SECTION)


def _weighting(analysis: dict[str, Any]) -> str:
    sampling = analysis["draw"]["sampling"]
    if sampling == "uniform":
        return ""
    what = "stand for all eligible features of the run" if sampling == "stratified" else "weigh by activation mass"
    return f" Features are weighted so that they {what}."


def _run_table(axis: str, name: str, one: dict[str, Any], analysis: dict[str, Any]) -> Chart:
    cells = []
    for run, facts in one["runs"].items():
        counts = analysis["runs"][run]
        mean = {"value": facts["mean"], "low": facts["low"], "high": facts["high"], "n": facts["n"]}
        shares = [facts["median"], facts["trimmed_mean"], facts["share_low"], facts["sd"]]
        cells.append([run, mean, *shares, facts["n"], counts["cannot_tell"], counts["eligible"], counts["d_sae"]])
    rule = (
        "at least 20 firings and an example in each interval shown"
        if analysis["draw"]["empty"] == "exclude"
        else "at least 20 firings"
    )
    note = (
        "Trimmed: 20 % of the features cut at each end, since scores are heavy-tailed at the low end. Cannot tell: "
        f"ratings without a score, which count nowhere else. Eligible: {rule}." + _weighting(analysis)
    )
    columns = [
        "Run",
        "Mean",
        "Median",
        "Trimmed mean",
        "Share <= 2",
        "SD",
        "Scored",
        "Cannot tell",
        "Eligible",
        "Total",
    ]
    return Chart(
        f"rating-{axis}-runs", f"{name}, by run", "table", columns=columns, cells=cells, note=note, section=SECTION
    )


def _pair_table(axis: str, name: str, one: dict[str, Any]) -> Chart:
    cells = []
    for p in sorted(one["pairs"], key=lambda pair: (pair["p_corrected"], -abs(pair["difference"]))):
        difference = {"value": p["difference"], "low": p["low"], "high": p["high"], "n": None}
        found = p["p_corrected"] < 0.05
        verdict = f"{p['a'] if p['difference'] > 0 else p['b']} higher" if found else "no difference found"
        detectable = p["mde"]
        cells.append(
            [f"{p['a']} - {p['b']}", difference, p["p"], p["p_corrected"], p["mann_whitney_p"], detectable, verdict]
        )
    note = (
        "p: two-sided permutation of run labels within strata, on the difference of means; corrected for all pairs by "
        "the largest standardised difference (max-T). Mann-Whitney: on ranks, without strata, weights and correction. "
        "Detectable: the difference that such a study finds in 80 % of repetitions at 5 %, before correction. No "
        "difference found does not mean that a smaller one is absent. Intervals: 95 % BCa, not corrected."
    )
    columns = ["Pair", "Difference", "p", "p, corrected", "Mann-Whitney p", "Detectable", "Verdict"]
    return Chart(
        f"rating-{axis}-pairs", f"{name}, pairs of runs", "table", columns=columns, cells=cells, note=note,
        section=SECTION,
    )  # fmt: skip


def _agreement_table(analysis: dict[str, Any]) -> Chart:
    cells: list[list[Any]] = []
    for scale in SCALES:
        if scale.field in analysis["axes"]:
            agreement = analysis["axes"][scale.field]["agreement"]
            raters = len(analysis["raters"])
            cells.append([f"{scale.name}: alpha between raters", agreement["alpha"], f"{raters} raters"])
            pairs = f"{agreement['pairs']} pairs of all raters"
            cells.append([f"{scale.name}: kappa of repeated items", agreement["kappa"], pairs])
            for rater, own in agreement["kappa_by_rater"].items():
                cells.append([f"{scale.name}: kappa of {rater}", own["kappa"], f"{own['pairs']} pairs"])
    blinding = analysis["blinding"]
    if blinding:
        cells.append(["Blinding: guesses that hit", blinding["share"], f"{blinding['hits']} of {blinding['n']}"])
        cells.append(["Blinding: by chance", blinding["chance"], f"p = {blinding['p']:.3g}"])
    note = (
        "Krippendorff's alpha, ordinal: 1 is perfect agreement, 0 chance; it needs two raters. Kappa: Cohen's with "
        "quadratic weights between two showings of an item to the same rater. Blinding: guesses of the run family on "
        "a fifth of the items; chance is what the same guesses would score if dealt at random, p one-sided binomial. "
        "A small p means that raters could tell the runs apart, and that the rating was not blind."
    )
    title = "Agreement and blinding"
    return Chart(
        "rating-agreement",
        title,
        "table",
        columns=["Quantity", "Value", "From"],
        cells=cells,
        note=note,
        section=SECTION,
    )
