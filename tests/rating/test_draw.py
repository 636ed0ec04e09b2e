"""Drawing: who is eligible, strata and weights, what raters see and what they must not."""

from __future__ import annotations

import json
import stat
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monosem.examples import MIN_FIRINGS
from monosem.firings import open_firings
from monosem.rating.draw import draw
from monosem.rating.packet import GROUPS, lay_out, view_of
from monosem.rating.sampling import Population, draw_samples, survey
from monosem.rating.shapes import read_key
from monosem.rating.store import Files, append, freeze
from monosem.types import UserError
from monosem.variants import variant_names

from .study import FIRST, RUNS, key_of, make_study, packet_of, rating, revealed


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("study"))


def population(n: int, seed: int = 0) -> Population:
    rng = np.random.default_rng(seed)
    density = rng.normal(-3, 0.5, n)
    return Population(np.arange(n) * 10, density, 10**density, n, n)


def drawn_anew(study: Path, **settings: Any) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    told = draw(study, force=True, **{"features": 10, **settings})
    return packet_of(study), key_of(study), told


def test_eligible_are_features_that_fire_often_enough_and_fill_the_view(study: Path) -> None:
    firings = open_firings(study, "topk-k7731")
    every, filled = survey(firings, filled=False), survey(firings, filled=True)
    assert (every.alive, every.fired) == (31, 30)
    assert every.feature.tolist() == [FIRST + 17 * k for k in range(30)]
    assert 0 < len(filled.feature) <= 20
    assert all((f - FIRST) // 17 % 3 for f in filled.feature)  # every third has no firing in the middle
    f = int(every.feature[4])
    fires = firings.of(f)
    assert every.density[4] == pytest.approx(np.log10(len(fires.value) / firings.tokens))
    assert every.mass[4] == pytest.approx(fires.value.mean() * len(fires.value) / firings.tokens)
    assert firings.counts[7] == 5 < MIN_FIRINGS


def test_uniform_samples_are_uniform() -> None:
    hits = Counter[int]()
    for seed in range(400):
        samples, cuts = draw_samples({"a": population(20)}, 5, "uniform", np.random.default_rng(seed))
        hits.update(samples["a"].feature.tolist())
        assert len(set(samples["a"].feature)) == 5
    assert cuts == []
    assert set(samples["a"].weight) == {4.0}
    assert max(abs(hits[10 * i] - 100) for i in range(20)) < 4 * np.sqrt(75)


def test_strata_are_quintiles_of_all_runs_with_equal_draws_and_weights_of_their_size() -> None:
    runs = {"a": population(100, 1), "b": population(60, 2)}
    samples, cuts = draw_samples(runs, 20, "stratified", np.random.default_rng(0))
    pooled = np.concatenate([p.density for p in runs.values()])
    assert np.searchsorted(np.sort(pooled), cuts).tolist() == [32, 64, 96, 128]
    for run, sample in samples.items():
        assert np.bincount(sample.stratum).tolist() == [4] * 5
        sizes = np.bincount(np.searchsorted(cuts, runs[run].density), minlength=5)
        assert sample.weight.tolist() == [sizes[s] / 4 for s in sample.stratum]
        assert sample.weight.sum() == pytest.approx(len(runs[run].feature))


def test_a_stratum_that_is_too_small_gives_what_it_has() -> None:
    dense = Population(np.arange(30), np.linspace(-1, -0.5, 30), np.ones(30), 30, 30)
    thin = Population(np.arange(30), np.append(np.linspace(-4, -3, 29), -0.6), np.ones(30), 30, 30)
    samples, _ = draw_samples({"dense": dense, "thin": thin}, 10, "stratified", np.random.default_rng(0))
    assert all(len(sample.feature) == 10 for sample in samples.values())
    assert samples["thin"].weight.sum() == pytest.approx(30)


def test_mass_sampling_meets_features_in_proportion_and_weighs_certain_ones() -> None:
    mass = np.array([10.0, 1, 1, 1, 1, 1])
    one = Population(np.arange(6), np.zeros(6), mass, 6, 6)
    hits, means = np.zeros(6), []
    for seed in range(600):
        samples, _ = draw_samples({"a": one}, 3, "mass", np.random.default_rng(seed))
        assert len(set(samples["a"].feature)) == 3
        hits[samples["a"].feature] += 1
        means.append(np.average(samples["a"].feature == 0, weights=samples["a"].weight))
    assert hits[0] == 600
    assert hits[1:] / 600 == pytest.approx(np.full(5, 0.4), abs=0.08)
    assert np.mean(means) == pytest.approx(10 / 15)  # the mass-weighted mean over all features


def test_a_draw_has_duplicates_guesses_training_items_and_one_order(study: Path) -> None:
    packet, key, told = drawn_anew(study)
    items = packet["items"]
    facts = [key["items"][item["id"]] for item in items]
    assert len(items) == 33
    assert Counter((f["run"], f["is_duplicate_of"] is None) for f in facts if f["is_duplicate_of"] is None) == {
        (run, True): 10 for run in RUNS
    }
    twice = [f for f in facts if f["is_duplicate_of"]]
    assert len(twice) == 3
    for copy in twice:
        first = key["items"][copy["is_duplicate_of"]]
        assert (first["run"], first["feature"], first["is_duplicate_of"]) == (copy["run"], copy["feature"], None)
    assert sum(item["guess"] for item in items) == 7
    assert len(packet["training"]) == 5
    assert all(key["items"][item["id"]]["training"] for item in packet["training"])
    assert key["training_from"] == "features that were not drawn"
    taken = {(f["run"], f["feature"]) for f in facts}
    assert not taken & {(key["items"][i["id"]]["run"], key["items"][i["id"]]["feature"]) for i in packet["training"]}
    runs = [f["run"] for f in facts]
    assert sum(a != b for a, b in pairwise(runs)) > 10
    assert len({item["id"] for item in [*items, *packet["training"]]}) == 38
    assert stat.S_IMODE(Files(study).key.stat().st_mode) == 0o600
    assert any("features that were not drawn" in line for line in told)


def test_training_items_come_from_other_runs_where_there_are_any(study: Path) -> None:
    packet, key, _ = drawn_anew(study, runs="topk*")
    assert {key["items"][i["id"]]["run"] for i in packet["items"]} == {"topk-k7731"}
    assert not {key["items"][i["id"]]["run"] for i in packet["training"]} & {"topk-k7731"}
    assert key["training_from"] == "other runs"


def test_the_sample_follows_the_seed_and_ids_and_order_do_not(study: Path) -> None:
    def features(key: dict[str, Any]) -> set[tuple[str, int, bool]]:
        return {(i["run"], i["feature"], i.get("is_duplicate_of") is None) for i in key["items"].values()}

    first, key, _ = drawn_anew(study)
    again, same, _ = drawn_anew(study)
    _, other, _ = drawn_anew(study, seed=1)
    assert features(key) == features(same) != features(other)
    assert not {i["id"] for i in first["items"]} & {i["id"] for i in again["items"]}


def test_the_packet_shows_the_view_in_one_layout(study: Path) -> None:
    packet, key, told = drawn_anew(study)
    assert packet["groups"] == list(GROUPS)
    assert key["left_out"] == []
    every = [*packet["training"], *packet["items"]]
    sizes = [len(group) for group in every[0]["groups"]]
    assert sizes[0] == 20
    assert all(1 <= size <= 5 for size in sizes[1:])
    assert any(
        line.startswith(f"shown of each item, as many as every one has: {sizes[0]}, {sizes[1]}") for line in told
    )
    for item in every:
        assert [len(group) for group in item["groups"]] == sizes
        for slot in (slot for group in item["groups"] for slot in group):
            assert len(slot["tokens"]) == len(slot["shades"]) <= 9
            assert 0 <= min(slot["shades"]) <= max(slot["shades"]) <= 10
            assert slot["shades"][slot["at"]] > 0
        top = [slot["shades"][slot["at"]] for slot in item["groups"][0]]
        assert top == sorted(top, reverse=True)
        assert top[0] == 10
        for i, group in enumerate(item["groups"][1:]):
            middle = [slot["shades"][slot["at"]] for slot in group]
            assert all(round(10 * (1 - (i + 1) / 12)) - 1 <= m <= round(10 * (1 - i / 12)) for m in middle)


def test_intervals_that_an_item_lacks_are_dropped_for_all(study: Path) -> None:
    packet, key, told = drawn_anew(study, features=25, empty="drop")
    assert key["left_out"]
    assert packet["groups"] == [name for name in GROUPS if name not in key["left_out"]]
    layouts = {tuple(map(len, item["groups"])) for item in [*packet["training"], *packet["items"]]}
    assert len(layouts) == 1
    assert len(layouts.pop()) == len(packet["groups"])
    assert any("not shown" in line and "Interval" in line for line in told)


def test_a_layout_by_hand() -> None:
    weak, strong = (0.5, {"at": 1}), (2.0, {"at": 2})
    views = [[[weak, strong], *[[weak, strong, weak]] * 7], [[strong], [], *[[weak, strong]] * 6]]
    names, laid, left_out = lay_out(views)
    assert left_out == ["Interval 0"]
    assert names == [GROUPS[0], *GROUPS[2:]]
    assert laid == [[[{"at": 1}], *[[{"at": 2}, {"at": 1}]] * 6], [[{"at": 2}], *[[{"at": 2}, {"at": 1}]] * 6]]


def test_the_packet_names_nothing_that_must_be_hidden(study: Path) -> None:
    packet, key, _ = drawn_anew(study, sampling="stratified")
    families = packet.pop("families")
    assert families == variant_names()
    assert revealed(json.dumps(packet), study) == []
    assert revealed(json.dumps(key), study) != []
    assert set(packet) == {"study_id", "groups", "steps", "training", "items", "key_digest"}
    assert set(packet["items"][0]) == {"id", "groups", "guess"}
    assert set(packet["items"][0]["groups"][0][0]) == {"tokens", "shades", "at"}


def test_intervals_fill_up_from_the_documents_of_the_top_set_only_at_need(study: Path) -> None:
    from monosem.examples import examples_of
    from monosem.passages import open_passages

    firings, passages = open_firings(study, "gated-l1_7732"), open_passages(study)
    for feature in survey(firings, filled=True).feature[:8].tolist():
        fires = firings.of(feature)
        examples = examples_of(feature, fires, passages, seed=3)
        view = view_of(feature, fires, passages, 3)
        for i, group in enumerate(view[1:]):
            available = int(((12 * (1 - fires.value / examples.peak)).astype(int) == i).sum())
            assert len(examples.intervals[i]) <= len(group) == min(5, available)
            assert {e.value for e in examples.intervals[i]} <= {value for value, _ in group}
        assert [value for value, _ in view[0]][: len(examples.top)] == [e.value for e in examples.top]
        assert len(view[0]) == 20


def test_it_refuses_what_would_lose_ratings(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s")
    draw(study, features=5)
    with pytest.raises(UserError, match="already drawn"):
        draw(study, features=5)
    draw(study, features=5, force=True)
    packet = packet_of(study)
    append(Files(study), rating(packet, packet["items"][0]["id"], "ann"))
    with pytest.raises(UserError, match="there are ratings of the draw"):
        draw(study, features=5, force=True)
    assert packet_of(study) == packet


def test_a_packet_is_never_there_without_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study(tmp_path / "s")
    files = Files(study)
    for force in (False, True):
        for name in ("_write_private", "write_bytes"):
            with monkeypatch.context() as patch:
                patch.setattr(f"monosem.rating.draw.{name}", lambda *_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    draw(study, features=5, force=force)
            assert not files.packet.exists()
        draw(study, features=5)
        key = read_key(files.key, files.packet)
        assert set(key["items"]) == {i["id"] for part in ("training", "items") for i in packet_of(study)[part]}


def test_a_rating_that_comes_during_a_draw_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study(tmp_path / "s")
    draw(study, features=5)
    packet = packet_of(study)

    def rated(*arguments: Any) -> Any:
        append(Files(study), rating(packet, packet["items"][0]["id"], "ann"))
        return draw_samples(*arguments)

    monkeypatch.setattr("monosem.rating.draw.draw_samples", rated)
    with pytest.raises(UserError, match="there are ratings of the draw"):
        draw(study, features=5, force=True)
    assert packet_of(study) == packet


def test_a_frozen_draw_stays_although_its_ratings_are_gone(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s")
    draw(study, features=5)
    packet = packet_of(study)
    append(Files(study), rating(packet, packet["items"][0]["id"], "ann"))
    freeze(Files(study))
    Files(study).ratings.unlink()
    with pytest.raises(UserError, match=r"frozen.json: the draw that is there was frozen; move .*ratings away first"):
        draw(study, features=5, force=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": 0}, "--features 0: must be at least 1"),
        ({"features": 29}, "has only .* eligible features .of 30 that fire 20 times.; lower it"),
        ({"runs": "none*"}, "no run with codes matches; there are gated-l1_7732, standard-l1_7733, topk-k7731"),
    ],
)
def test_bad_settings_are_named(study: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw(study, force=True, **settings)


def test_a_study_without_codes_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `monosem measure` first"):
        draw(tmp_path)
