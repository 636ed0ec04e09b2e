"""Unblinds frozen ratings and says what they show (section J.5): `ratings/analysis.json`. Imports no torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from monosem.firings import codes_header
from monosem.rating.agreement import alpha, blinding_check, weighted_kappa
from monosem.rating.charts import charts_of
from monosem.rating.comparison import compare_runs
from monosem.rating.shapes import read_key
from monosem.rating.store import AXES, Files, check_scored, freeze, latest, read_records, writable
from monosem.store import write_atomic, write_json
from monosem.types import UserError

Rating = dict[str, Any]  # a record with what the key says of its item


def analyse(folder: Path, axes: tuple[str, ...] = AXES, draws: int = 10_000) -> list[str]:
    """Unblind; write ratings/analysis.json, results/<run>/rating/ and results/rating.charts.json; return lines to say.

    Freezes the ratings first if that was not done. Raises UserError for an unknown axis, without ratings, and when
    frozen files or the key were changed.
    """
    for axis in axes:
        if axis not in AXES:
            raise UserError(f'--axis "{axis}": unknown; known are {", ".join(AXES)}')
    files = Files(folder)
    if files.frozen.exists():
        told, frozen = [], freeze(files)
        check_scored(files, axes)
    else:
        check_scored(files, axes)
        told, frozen = [f"{files.ratings}: frozen now, before anything was unblinded"], freeze(files)
    key = read_key(files.key, files.packet)
    records, damaged = read_records(files.ratings)
    if damaged:
        told.append(f"{files.ratings}: {damaged} lines are cut short or damaged and not counted")
    ratings = unblind(records, key)
    analysis = {
        "study_id": key["study_id"],
        "frozen": frozen,
        "damaged_lines": damaged,
        "submissions": sum(r["event"] == "rating" for r in records),
        "steps_back": sum(r["event"] == "back" for r in records),
        "raters": frozen["raters"],
        "draw": {name: key[name] for name in ("sampling", "features", "empty", "left_out", "seed", "cuts")},
        "runs": {run: _run_counts(run, facts, ratings, key) for run, facts in key["runs"].items()},
        "axes": {axis: _axis(axis, ratings, key, draws) for axis in axes},
        "blinding": _blinding(ratings, key),
    }
    with writable(folder):
        told += _write_results(folder, analysis, ratings, key)
    told += [analysis["axes"][axis]["sentence"] for axis in axes]
    return [*told, f"{files.analysis}; run `monosem report {folder}` to have it in the report"]


def _write_results(folder: Path, analysis: dict[str, Any], ratings: list[Rating], key: dict[str, Any]) -> list[str]:
    """Write all that comes of an analysis; return lines to say."""
    told = []
    write_json(Files(folder).analysis, analysis)
    for run, facts in key["runs"].items():
        if (codes_header(folder, run) or facts)["sae"] == facts["sae"]:
            _write_result(folder / "results" / run / "rating", run, analysis, ratings)
        else:
            told.append(
                f"{run}: trained anew since the draw; its ratings are of the earlier features, left out of results"
            )
    charts = charts_of(analysis)
    write_json(folder / "results" / "rating.charts.json", [chart.as_dict() for chart in charts])
    return told


def _write_result(where: Path, run: str, analysis: dict[str, Any], ratings: list[Rating]) -> None:
    """Write a run's scores as evaluations do, so that pages and other evaluations find a feature's rating."""
    import polars as pl

    found = {axis: feature_scores(axis, ratings).get(run, {}) for axis in analysis["axes"]}
    features = sorted({r["feature"] for r in ratings if r["run"] == run})
    columns = {axis: pl.Series([scores.get(f) for f in features], dtype=pl.Float64) for axis, scores in found.items()}
    rows = pl.DataFrame({"feature": pl.Series(features, dtype=pl.Int32), **columns})
    write_atomic(where / "rows.parquet", rows.write_parquet)
    scalars = {
        axis: {name: one["runs"][run][key] for name, key in _ESTIMATE.items()} if run in one["runs"] else None
        for axis, one in analysis["axes"].items()
    }
    reasons = {axis: "no feature of this run has a score" for axis, value in scalars.items() if value is None}
    header = {"eval": "rating", "frozen": analysis["frozen"], "sae": analysis["runs"][run]["sae"]}
    write_json(where / "result.json", {"header": header, "scalars": scalars, "reasons": reasons})


_ESTIMATE = {"value": "mean", "low": "low", "high": "high", "n": "n"}


def unblind(records: list[Rating], key: dict[str, Any]) -> list[Rating]:
    """Return the ratings that count, with run, feature, stratum and weight; without training items.

    Raises UserError for an item that the key doesn't know.
    """
    found = []
    for (_, item), record in latest(records).items():
        if item not in key["items"]:
            raise UserError(f"item {item} of ratings.jsonl: not in key.json; they belong to different draws")
        if not key["items"][item]["training"]:
            found.append({**record, **key["items"][item]})
    return found


def _run_counts(run: str, facts: dict[str, Any], ratings: list[Rating], key: dict[str, Any]) -> dict[str, Any]:
    mine = [r for r in ratings if r["run"] == run]
    drawn = [i for i in key["items"].values() if i["run"] == run and not i["training"] and not i["is_duplicate_of"]]
    return {
        **facts,
        "drawn": len(drawn),
        "rated": len({r["feature"] for r in mine}),
        "ratings": len(mine),
        "cannot_tell": sum(bool(r["cannot_tell"]) for r in mine),
    }


def feature_scores(axis: str, ratings: list[Rating]) -> dict[str, dict[int, float]]:
    """Return by run and feature the mean over raters of each rater's mean over copies."""
    by: dict[str, dict[int, dict[str, list[int]]]] = {}
    for r in ratings:
        if r[axis] is not None:
            by.setdefault(r["run"], {}).setdefault(r["feature"], {}).setdefault(r["rater_id"], []).append(r[axis])
    return {
        run: {feature: float(np.mean([np.mean(own) for own in raters.values()])) for feature, raters in found.items()}
        for run, found in by.items()
    }


def _axis(axis: str, ratings: list[Rating], key: dict[str, Any], draws: int) -> dict[str, Any]:
    by_run = feature_scores(axis, ratings)
    place = {(i["run"], i["feature"]): i for i in key["items"].values() if not i["training"]}
    names = [run for run in key["runs"] if run in by_run]
    scores = {run: np.array([*by_run[run].values()]) for run in names}
    strata = {run: np.array([place[run, f]["stratum"] for f in by_run[run]]) for run in names}
    weights = {run: _weights(run, [*by_run[run]], place) for run in names}
    compared = compare_runs(scores, strata, draws, key["seed"], weights)
    agreement = {"alpha": _alpha(axis, ratings), **_kappas(axis, ratings)}
    return {**compared, "agreement": agreement, "sentence": _sentence(axis, compared)}


def _weights(run: str, features: list[int], place: dict[Any, Any]) -> np.ndarray:
    """Return the drawn weights, raised so that a stratum counts in full although some of it has no score."""
    planned: dict[int, float] = {}
    for (of, _), item in place.items():
        if of == run:
            planned[item["stratum"]] = planned.get(item["stratum"], 0.0) + item["weight"]
    weight = np.array([place[run, f]["weight"] for f in features])
    stratum = np.array([place[run, f]["stratum"] for f in features])
    for one in np.unique(stratum).tolist():
        weight[stratum == one] *= planned[one] / weight[stratum == one].sum()
    return weight


def _alpha(axis: str, ratings: list[Rating]) -> float | None:
    """Return the ordinal alpha over raters and items (a second showing is an item of its own)."""
    raters, items = sorted({r["rater_id"] for r in ratings}), sorted({r["item_id"] for r in ratings})
    table = np.full((len(raters), len(items)), np.nan)
    for r in ratings:
        if r[axis] is not None:
            table[raters.index(r["rater_id"]), items.index(r["item_id"])] = r[axis]
    return _or_none(alpha(table))


def _kappas(axis: str, ratings: list[Rating]) -> dict[str, Any]:
    """Return each rater's weighted kappa between first and second showing of an item, and that of all pairs."""
    scores = {(r["rater_id"], r["item_id"]): r[axis] for r in ratings if r[axis] is not None}
    pairs = [
        (r["rater_id"], scores[r["rater_id"], r["is_duplicate_of"]], r[axis])
        for r in ratings
        if r["is_duplicate_of"] and r[axis] is not None and (r["rater_id"], r["is_duplicate_of"]) in scores
    ]
    by_rater = {}
    for rater in sorted({rater for rater, _, _ in pairs}):
        mine = [(first, second) for who, first, second in pairs if who == rater]
        by_rater[rater] = {"kappa": _or_none(weighted_kappa(*zip(*mine, strict=True))), "pairs": len(mine)}
    every = [(first, second) for _, first, second in pairs]
    kappa = _or_none(weighted_kappa(*zip(*every, strict=True))) if every else None
    return {"kappa": kappa, "pairs": len(every), "kappa_by_rater": by_rater}


def _blinding(ratings: list[Rating], key: dict[str, Any]) -> dict[str, Any] | None:
    guessed = [r for r in ratings if r["guess"]]
    return blinding_check([r["guess"] for r in guessed], [key["runs"][r["run"]]["variant"] for r in guessed])


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _sentence(axis: str, compared: dict[str, Any]) -> str:
    """Return what came out of one axis in a sentence."""
    runs, pairs = compared["runs"], compared["pairs"]
    told = f"{axis.capitalize()}: "
    if not pairs:
        ((run, facts),) = runs.items()
        reason = facts["reasons"].get("interval")
        within = f"(no interval: {reason})" if reason else f"[{facts['low']:.2f}, {facts['high']:.2f}]"
        return f"{told}{run} has a mean of {facts['mean']:.2f} {within}."
    apart = [p for p in pairs if p["p_corrected"] < 0.05]
    if apart:
        p = min(apart, key=lambda pair: (pair["p_corrected"], -abs(pair["difference"])))
        high, low = (p["a"], p["b"]) if p["difference"] > 0 else (p["b"], p["a"])
        return (
            f"{told}{len(apart)} of {len(pairs)} pairs of runs differ (corrected p < .05); {high} scores "
            f"{abs(p['difference']):.2f} above {low} (corrected p {p['p_corrected']:.2g})."
        )
    detectable = [p["mde"] for p in pairs if p["mde"] is not None]
    if not detectable:
        return (
            f"{told}no difference between runs was found; how large one would have been found can't be said "
            f"({pairs[0]['reasons']['mde']})."
        )
    return (
        f"{told}no difference between runs was found; one of {max(detectable):.2f} points would have been found in "
        "80 % of such studies."
    )
