"""From ratings to the report: freezing, unblinding, what is compared, and what the report shows."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from monosem.firings import FiringsWriter
from monosem.rating.analysis import analyse, feature_scores, unblind
from monosem.rating.comparison import EQUAL
from monosem.rating.draw import draw
from monosem.rating.store import Files, append, latest, read_records
from monosem.report.inputs import parse_chart
from monosem.types import UserError

from .study import RUNS, key_of, make_study, packet_of, rate_all, rating


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = make_study(tmp_path / "study")
    draw(folder, features=12, sampling="stratified", empty="drop")
    return folder


def score(run: str, feature: int, rater: str) -> dict[str, Any]:
    """gated is a point and a half clearer; raters differ by a little noise; complexity is the same everywhere."""
    rng = random.Random(f"{run}{feature}")
    noise = random.Random(f"{run}{feature}{rater}").choice([0, 0, 0, 1])
    level = min(5, max(1, rng.choice([2, 3, 3]) + 2 * run.startswith("gated") + noise))
    return {"consistency": level, "complexity": rng.randint(1, 5), "guess": rng.choice(["topk", "gated", "standard"])}


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    analysis = json.loads(Files(folder).analysis.read_text())
    return analysis, json.loads((folder / "results" / "rating.charts.json").read_text())


def test_the_whole_way_finds_what_was_put_in(study: Path) -> None:
    rate_all(study, ("ann", "bob"), score)
    told = analyse(study, draws=2000)
    assert "frozen now" in told[0]
    analysis, charts = read(study)
    consistency = analysis["axes"]["consistency"]
    assert set(consistency["runs"]) == set(RUNS)
    assert all(facts["n"] == 12 for facts in consistency["runs"].values())
    apart = {(p["a"], p["b"]) for p in consistency["pairs"] if p["p_corrected"] < 0.05}
    assert apart == {("gated-l1_7732", "standard-l1_7733"), ("gated-l1_7732", "topk-k7731")}
    assert "gated-l1_7732 scores" in consistency["sentence"]
    assert "no difference between runs was found; one of" in analysis["axes"]["complexity"]["sentence"]
    assert consistency["agreement"]["alpha"] > 0.5
    assert analysis["axes"]["complexity"]["agreement"]["alpha"] == 1.0
    assert consistency["agreement"]["kappa"] == 1.0  # the made-up raters repeat themselves
    assert analysis["axes"]["complexity"]["agreement"]["pairs"] == 8
    assert analysis["blinding"]["n"] == 16
    titles = [parse_chart(chart).title for chart in charts]
    assert titles[:4] == [
        "Activation Consistency, mean a run",
        "Activation Consistency, distribution",
        "Activation Consistency, by run",
        "Activation Consistency, pairs of runs",
    ]
    assert {chart["section"] for chart in charts} == {"Human rating"}
    assert all(None not in row for row in charts[3]["cells"])  # a detectable difference beside every verdict
    assert analyse(study, draws=2000)[0] == consistency["sentence"]
    for run, facts in consistency["runs"].items():
        rows = pl.read_parquet(study / "results" / run / "rating" / "rows.parquet")
        assert rows.columns == ["feature", "consistency", "complexity"]
        assert rows.height == 12
        result = json.loads((study / "results" / run / "rating" / "result.json").read_text())
        assert result["scalars"]["consistency"]["value"] == facts["mean"]
        assert result["header"]["sae"] == f"sha-{run}"


def test_scores_are_means_over_copies_then_raters(study: Path) -> None:
    packet, key = packet_of(study), key_of(study)
    second = next(i["id"] for i in packet["items"] if key["items"][i["id"]]["is_duplicate_of"])
    first = key["items"][second]["is_duplicate_of"]
    files = Files(study)
    for item, rater, level in ((first, "ann", 1), (second, "ann", 2), (first, "bob", 5)):
        append(files, rating(packet, item, rater, consistency=level))
    facts = key["items"][first]
    found = feature_scores("consistency", unblind(read_records(files.ratings)[0], key))
    assert found == {facts["run"]: {facts["feature"]: (1.5 + 5) / 2}}


def test_cannot_tell_counts_nowhere_but_is_counted(study: Path) -> None:
    packet, key = packet_of(study), key_of(study)
    files = Files(study)
    items = [i["id"] for i in packet["items"] if not key["items"][i["id"]]["is_duplicate_of"]]
    for n, item in enumerate(items):
        values = {"consistency": None, "complexity": None, "cannot_tell": True} if n < 4 else {"consistency": 4}
        append(files, rating(packet, item, "ann", **values))
    append(files, rating(packet, packet["training"][0]["id"], "ann", consistency=1))
    analyse(study, draws=200)
    analysis, _ = read(study)
    assert sum(run["cannot_tell"] for run in analysis["runs"].values()) == 4
    assert sum(run["n"] for run in analysis["axes"]["consistency"]["runs"].values()) == len(items) - 4
    assert all(run["mean"] == 4 for run in analysis["axes"]["consistency"]["runs"].values())
    assert analysis["axes"]["consistency"]["agreement"]["alpha"] is None


def test_a_partly_rated_stratum_counts_in_full(study: Path) -> None:
    packet, key = packet_of(study), key_of(study)
    run = "topk-k7731"
    mine = {i: f for i, f in key["items"].items() if f["run"] == run and not f["training"] and not f["is_duplicate_of"]}
    sizes = {s: sum(f["weight"] for f in mine.values() if f["stratum"] == s) for s in range(5)}
    kept = {min(i for i, f in mine.items() if f["stratum"] == s): s for s in range(5)}
    for item, stratum in kept.items():
        append(Files(study), rating(packet, item, "ann", consistency=stratum + 1))
    analyse(study, ("consistency",), draws=200)
    analysis, charts = read(study)
    expected = np.average(np.arange(1, 6), weights=[sizes[s] for s in range(5)])
    assert analysis["axes"]["consistency"]["runs"][run]["mean"] == pytest.approx(expected)
    assert set(analysis["axes"]) == {"consistency"}
    assert len(charts) == 4  # one run: no pairs


def test_the_key_must_belong_to_the_packet(study: Path) -> None:
    rate_all(study, ("ann",), score)
    key = key_of(study)
    Files(study).key.write_text(json.dumps({**key, "packet_sha256": "0"}))
    with pytest.raises(UserError, match=r"key.json: belongs to another packet"):
        analyse(study)


def test_an_item_that_the_key_does_not_know_is_named(study: Path) -> None:
    packet = packet_of(study)
    append(Files(study), rating(packet, packet["items"][0]["id"], "ann"))
    append(Files(study), rating(packet, "nothing", "ann"))
    with pytest.raises(UserError, match=r"item nothing of .*: not in key"):
        analyse(study)


def test_only_training_items_rated_is_said(study: Path) -> None:
    packet = packet_of(study)
    append(Files(study), rating(packet, packet["training"][0]["id"], "ann"))
    with pytest.raises(UserError, match="no item of the study has a score for consistency"):
        analyse(study)
    assert not Files(study).frozen.exists()
    with pytest.raises(UserError, match='--axis "beauty": unknown; known are consistency, complexity'):
        analyse(study, ("beauty",))


def test_the_last_rating_counts_in_the_analysis(study: Path) -> None:
    packet = packet_of(study)
    item = packet["items"][0]["id"]
    for level in (1, 5):
        append(Files(study), rating(packet, item, "ann", consistency=level))
    records, _ = read_records(Files(study).ratings)
    assert latest(records)["ann", item]["consistency"] == 5
    analyse(study, draws=100)
    assert read(study)[0]["submissions"] == 2


def test_ratings_of_earlier_weights_are_not_handed_on(study: Path) -> None:
    rate_all(study, ("ann",), score)
    writer = FiringsWriter(study, "topk-k7731", 9, {"sae": "trained anew"})
    writer.add(np.array([1]), np.array([0]), np.array([0]), np.ones(1))
    writer.finish(9)
    assert any("topk-k7731: trained anew since the draw" in line for line in analyse(study, draws=100))
    assert not (study / "results" / "topk-k7731").exists()
    assert (study / "results" / "gated-l1_7732" / "rating" / "rows.parquet").exists()


def test_runs_swapped_in_the_key_are_noticed(study: Path) -> None:
    rate_all(study, ("ann",), score)
    key = key_of(study)
    for item in key["items"].values():
        item["run"] = {"topk-k7731": "gated-l1_7732", "gated-l1_7732": "topk-k7731"}.get(item["run"], item["run"])
    whole = Files(study).key.read_text()
    Files(study).key.write_text(json.dumps(key))
    with pytest.raises(UserError, match=r"key.json: was changed since the draw"):
        analyse(study, draws=100)
    Files(study).key.write_text(whole)
    analyse(study, draws=100)
    Files(study).key.write_text(json.dumps(key))
    with pytest.raises(UserError, match=r"key.json: was changed after it was frozen"):
        analyse(study, draws=100)


def test_lines_that_do_not_count_are_told(study: Path) -> None:
    rate_all(study, ("ann",), score)
    with open(Files(study).ratings, "a") as file:
        file.write('{"event": "rating"}\n')
    assert any("1 lines are cut short or damaged" in line for line in analyse(study, draws=100))


def test_what_cannot_be_known_of_equal_scores_is_said_so(study: Path) -> None:
    rate_all(study, ("ann",), lambda *_: {"consistency": 4, "complexity": 4})
    told = analyse(study, draws=100)
    assert any(
        "no difference between runs was found; how large one would have been found can't be said" in line
        for line in told
    )
    analysis, charts = read(study)
    facts = analysis["axes"]["consistency"]["runs"]["topk-k7731"]
    assert (facts["low"], facts["high"], facts["reasons"]) == (None, None, {"interval": EQUAL})
    assert [parse_chart(chart) for chart in charts]
