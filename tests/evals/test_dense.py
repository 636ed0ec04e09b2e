"""Dense features (section L): planted causes, each screen by hand, what removal costs, verdicts, the whole story."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import monosem
from monosem.evals import Inputs, Judged, Result, RunInfo, make_evaluation
from monosem.evals.dense.causes import Screens, TokenFacts, adjusted, bimodality, correlation, hinges, screens
from monosem.evals.dense.charts import dense_charts
from monosem.evals.dense.directions import directions, found_again, nearest, principal_components
from monosem.evals.dense.evidence import read_evidence
from monosem.evals.dense.impact import Spliced, ce_effects, contributions, next_token_entropy, take_apart
from monosem.evals.dense.scalars import band_scalars, ce_scalars, share_scalars
from monosem.evals.dense.verdicts import band_of, cause_of, choose, verdict
from monosem.heldout import scored_positions
from monosem.metrics import SaeSums
from monosem.model import Model, load_model
from monosem.normaliser import Normaliser, fit_normaliser
from monosem.sae import Sae, make_sae
from monosem.types import UserError


@pytest.fixture(scope="module")
def facts() -> TokenFacts:
    """Made-up tokens: 150 rows of 128, documents of 200, token ids by a power law, log-normal norms."""
    rng = np.random.default_rng(0)
    n = 150 * 128
    token = np.minimum(rng.zipf(1.5, n), 2000)
    place = np.arange(n)
    return TokenFacts(place % 128, place % 200, token, rng.lognormal(3, 0.4, n), np.full(n, 200) + place // 200)


def judge(f: np.ndarray, facts: TokenFacts) -> tuple[dict[str, float], str]:
    found = screens(f, facts)
    return found, verdict(found["screen_r2"], cause_of(found))


def test_golden_planted_causes(facts: TokenFacts) -> None:
    """Section L: a position sinusoid and a norm detector are explained (R^2 > 0.9), a random 30 % feature is not."""
    rng = np.random.default_rng(1)
    n = len(facts.token)
    wave, told = judge(np.maximum(np.sin(2 * np.pi * facts.row_position / 16), 0), facts)
    assert wave["screen_r2"] > 0.9
    assert told == "explained by position"
    assert abs(wave["corr_position"]) < 0.2  # a straight line does not see it
    in_document, told = judge(np.maximum(np.sin(2 * np.pi * facts.document_position / 25), 0), facts)
    assert in_document["r2_position"] > 0.9
    assert told == "explained by position"
    detector, told = judge(np.maximum(facts.norm - np.quantile(facts.norm, 0.6), 0), facts)
    assert detector["screen_r2"] > 0.9
    assert told == "explained by norm"
    f = (rng.random(n) < 0.3) * rng.lognormal(0, 0.3, n)
    random, told = judge(f, facts)
    assert random["screen_r2"] < 0.05
    assert random["r2_token"] < 0.05
    assert random["token_information"] < 0.02
    assert told == "unexplained by screens"
    alike = (verdict(one["screen_r2"], cause_of(one), score=0.05) for one in (wave, detector, random))
    assert list(alike) == [
        "not pathological",
        "not pathological",
        "pathological",
    ]


def test_token_features_are_explained(facts: TokenFacts) -> None:
    chosen = np.isin(facts.token, [3, 7, 11, 40])
    found, told = judge(chosen * 2.0, facts)
    assert found["r2_token"] == pytest.approx(1, abs=1e-9)
    assert found["token_information"] == pytest.approx(1, abs=1e-9)
    p = chosen.mean()
    assert found["token_bits"] == pytest.approx(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)), rel=0.15)
    assert told == "explained by token"
    frequent, told = judge(np.log(np.bincount(facts.token)[facts.token]), facts)
    assert frequent["r2_frequency"] > 0.99
    assert told == "explained by token frequency"


def test_screens_by_hand() -> None:
    """Four tokens, two ids, f = (1, 0, 2, 0): the ids' means are 1.5 and 0."""
    facts = TokenFacts(
        np.array([0, 1, 0, 1]), np.array([0, 1, 2, 3]), np.array([5, 6, 5, 6]), np.ones(4), np.array([1, 2, 3, 4])
    )
    found = screens(np.array([1.0, 0, 2, 0]), facts)
    share = (2 * 1.5**2 - 4 * 0.75**2) / (5 - 4 * 0.75**2)  # 2.25 / 2.75
    assert share == pytest.approx(0.8181818)
    assert found["r2_token"] == pytest.approx(1 - (1 - share) * 3 / 2)
    assert found["corr_position"] == pytest.approx(-1.5 / np.sqrt(2.75))
    assert found["corr_document_length"] == pytest.approx(correlation(np.array([1.0, 0, 2, 0]), np.arange(1.0, 5)))
    assert np.isnan(found["corr_norm"])  # constant
    # firing (1, 0, 1, 0) is fixed by the id: entropy 1 bit; at random 2 of 4 are split (2, 0), (1, 1), (0, 2) with
    # chances 1/6, 4/6, 1/6, which leaves 2/3 of a bit
    assert found["token_information"] == pytest.approx(1)
    assert found["token_bits"] == pytest.approx(2 / 3)
    assert all(np.isnan(value) for value in screens(np.full(4, 2.0), facts).values())
    assert all(np.isnan(value) for value in screens(np.zeros(4), facts).values())


def test_joint_r2_is_that_of_least_squares(facts: TokenFacts) -> None:
    rng = np.random.default_rng(2)
    n = len(facts.token)
    f = np.maximum(rng.normal(size=n) + np.cos(facts.row_position / 5) + facts.norm / 30, 0)
    frequency = np.log(np.bincount(facts.token)[facts.token] / n)
    design = np.concatenate([np.eye(128)[facts.row_position], hinges(frequency), hinges(facts.norm)], axis=1)
    rest = f - design @ np.linalg.lstsq(design, f, rcond=None)[0]
    share = 1 - rest @ rest / ((f - f.mean()) ** 2).sum()
    columns = 127 + hinges(frequency).shape[1] + hinges(facts.norm).shape[1]
    assert screens(f, facts)["screen_r2"] == pytest.approx(adjusted(share, n, columns), abs=1e-6)


def test_chance_is_taken_off_the_token_information(facts: TokenFacts) -> None:
    """Random firing has information with the token id in any sample; over many draws what is left is 0 on average."""
    made, rng = Screens(facts), np.random.default_rng(3)
    n, size = len(facts.token), np.bincount(facts.token)

    def entropy(p: np.ndarray) -> np.ndarray:
        p = np.clip(p, 1e-12, 1 - 1e-12)
        return -(p * np.log(p) + (1 - p) * np.log(1 - p))

    left = []
    for _ in range(20):
        f = np.zeros(n)
        f[rng.permutation(n)[: n // 5]] = 1
        on = np.bincount(facts.token, f, len(size))[size > 0]
        left.append((size[size > 0] / n) @ entropy(on / size[size > 0]))
    assert made.chance(n // 5) == pytest.approx(np.mean(left), abs=4 * np.std(left) / np.sqrt(20) + 1e-6)
    assert np.mean(left) < entropy(np.array(0.2)) - 0.01  # without the correction it would look like information


def test_bimodality() -> None:
    assert bimodality(np.array([0.0, 0, 0, 1, 1, 1])) == pytest.approx(1 / ((5 / 12) * (7 * -2 + 6) + 75 / 12))
    rng = np.random.default_rng(0)
    assert bimodality(rng.normal(size=200_000)) == pytest.approx(1 / 3, abs=0.01)
    assert bimodality(rng.random(200_000)) == pytest.approx(5 / 9, abs=0.01)
    assert bimodality(np.concatenate([rng.normal(-3, 1, 1000), rng.normal(3, 1, 1000)])) > 5 / 9
    assert np.isnan(bimodality(np.ones(9)))
    assert np.isnan(bimodality(np.array([1.0, 2, 3])))


def test_bands_and_choice() -> None:
    density = np.array([0.01, 0.0101, 0.1, 0.11, 0.2, 0.21, 0.5, 0.51, 1.0, 0.0])
    assert band_of(density).tolist() == ["", "B4", "B4", "B3", "B3", "B2", "B2", "B1", "B1", ""]
    assert choose(density, 200, 50).tolist() == [8, 7, 6, 5, 4, 3, 2, 1]
    assert choose(density, 2, 1).tolist()[:2] == [8, 7]
    assert len(choose(density, 2, 1)) == 3
    assert choose(np.zeros(4), 5, 5).tolist() == []


def test_verdicts() -> None:
    assert verdict(0.1, None) == "unexplained by screens"
    assert verdict(0.5, "position") == "explained by position"
    assert verdict(0.9, "position", consistency=2.0) == "pathological"
    assert verdict(0.1, None, consistency=2.5) == "not pathological"
    assert verdict(0.1, None, score=0.09) == "pathological"
    assert verdict(0.2, "norm", score=0.09) == "not pathological"
    assert verdict(0.1, None, score=0.1) == "not pathological"
    assert verdict(0.1, None, consistency=4.0, score=0.05) == "pathological"


def test_causes() -> None:
    nothing = {"screen_r2": 0.19, "r2_token": 0.19, "mean_cosine": -0.69, "antipode_cosine": -0.9}
    assert cause_of(nothing) is None
    assert cause_of({**nothing, "screen_r2": None, "r2_token": float("nan")}) is None
    assert cause_of({**nothing, "mean_cosine": -0.7}) == "mean direction"
    assert cause_of({**nothing, "antipode_cosine": -0.91}) == "antipode"
    assert cause_of({**nothing, "corr_document_length": -0.5}) == "document length"
    assert cause_of({**nothing, "corr_entropy_after": 0.5}) == "entropy"
    assert cause_of({**nothing, "r2_token": 0.2, "corr_entropy_after": 1.0}) == "token"
    assert cause_of({**nothing, "r2_token": 0.9, "mean_cosine": 1.0}) == "mean direction"
    together = {"screen_r2": 0.3, "r2_position": 0.1, "r2_norm": 0.15, "r2_frequency": 0.05}
    assert cause_of({**together, "r2_token": 0.49}) == "norm"
    assert cause_of({**together, "r2_token": 0.51}) == "token"


def test_directions() -> None:
    w = np.array([[2.0, 0, 0], [0, 1, 0], [-3, 0.3, 0]])
    found = directions(w[:2], w, np.array([1.0, 1, 0]), np.eye(3)[[2, 0]])
    assert found["mean_cosine"] == pytest.approx([0.5**0.5, 0.5**0.5])
    assert found["pc"][0] == 2
    assert found["pc_cosine"][0] == pytest.approx(1)
    assert found["antipode"][0] == 2
    assert found["antipode_cosine"][0] == pytest.approx(-3 / np.sqrt(9.09))
    assert nearest(np.eye(2), np.zeros((0, 2)))[1].tolist() == [-1, -1]
    x = np.random.default_rng(0).normal(size=(5000, 3)) * [1, 5, 2] + 100
    assert np.abs(principal_components(x, 2)) == pytest.approx(np.eye(3)[[1, 2]], abs=0.05)


def test_a_feature_is_found_again() -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(20, 8))
    moved = w[::-1] * rng.uniform(1, 3, (20, 1))
    assert found_again(w[:3], [moved]) == pytest.approx(np.ones(3))
    three = [moved, -np.eye(8)[:1], moved]
    assert found_again(w[:3], three) == pytest.approx(np.ones(3))  # the median over dictionaries
    assert np.isnan(found_again(w[:3], [])).all()


def random_sae(kind: str = "standard", normaliser: Normaliser | None = None, d_in: int = 8) -> Sae:
    sae = make_sae(kind, d_in=d_in, d_sae=24, seed=1, **({"k": 4} if kind == "topk" else {}))
    generator = torch.Generator().manual_seed(2)
    w = {name: value + 0.3 * torch.randn(value.shape, generator=generator) for name, value in sae.weights.items()}
    return Sae(kind, sae.variant, w, normaliser or Normaliser())


@pytest.mark.parametrize("kind", ["standard", "topk", "gated"])
@pytest.mark.parametrize("normalise", ["none", "mean_norm", "token_ln"])
def test_removal_is_what_recomputing_gives(kind: str, normalise: Any) -> None:
    """sum 2 <u, r> + |u|^2 equals the squared error with f_i = 0, less that with f; also summed over all features."""
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) * 3 + 1
    sae = random_sae(kind, fit_normaliser(normalise, x))
    features = np.arange(24)
    mean = x.double().mean(0).numpy()
    found = contributions(sae, x.split(20), features, mean)
    normalised, undo = sae.normaliser.apply(x)
    f = sae.variant.encode(sae.weights, normalised).dense()
    before = (x - sae(x)).square().sum()
    again = []
    for i in features:
        without = f.clone()
        without[:, i] = 0
        xhat = undo(without @ sae.weights["W_dec"] + sae.weights["b_dec"])
        again.append(float((x - xhat).square().sum() - before))
    assert found.error == pytest.approx(np.array(again), rel=1e-3, abs=1e-3 * float(before))
    assert found.fires.tolist() == (f > 0).sum(0).tolist()
    assert found.error_all == pytest.approx(found.error.sum(), rel=1e-4)
    assert found.fires_all == found.fires.sum()
    assert found.tokens == 50
    assert found.squared_error == pytest.approx(float(before), rel=1e-5)
    assert found.variance == pytest.approx(float((x - x.mean(0)).square().sum()), rel=1e-5)
    some = contributions(sae, [x], features[[7, 3]], mean)
    assert some.error == pytest.approx(found.error[[7, 3]], rel=1e-4, abs=1e-4)


@pytest.fixture(scope="module")
def model(tiny_lm: Path) -> Model:
    return load_model(str(tiny_lm), dtype="float32", device="cpu")


def spliced_rows() -> Spliced:
    tokens = torch.randint(1, 300, (20, 24), generator=torch.Generator().manual_seed(0))
    keep = torch.ones(20, 24, dtype=torch.bool)
    keep[:, 0] = False
    return Spliced(tokens, keep, scored_positions(keep, torch.zeros(20, 24, dtype=torch.int64)))


def test_cross_entropy_of_removal(model: Model) -> None:
    """Small features: estimate and re-run agree. Twenty rows in one batch or several: the same sums."""
    site, rows = model.site("blocks.1.hook_resid_post"), spliced_rows()
    x = model.activations(rows.tokens, site)[rows.keep]
    sae = random_sae("topk", fit_normaliser("mean_norm", x), d_in=32)
    sae.weights["W_dec"] *= 0.001
    sae.weights["b_dec"] = x.mean(0) * sae.normaliser.scale
    features = np.arange(12)
    found = ce_effects(model, site, sae, rows, features, 12)
    assert found.tokens == int(rows.scored.sum())
    assert np.corrcoef(found.exact, found.estimate)[0, 1] > 0.999
    assert (np.sign(found.exact) == np.sign(found.estimate))[np.abs(found.exact) > 1e-3].all()
    assert found.fires.tolist() == (sae.encode(x) > 0).sum(0)[:12].tolist()
    assert found.exact_rows.shape == (12, 20)
    assert found.error == pytest.approx(found.exact_rows.std(1, ddof=1) * 20**0.5)
    assert ce_effects(model, site, sae, rows, features, 0).exact.shape == (0,)
    everything = ce_effects(model, site, sae, rows, np.arange(24), 24)
    assert everything.exact[:12] == pytest.approx(found.exact, abs=1e-2)
    assert everything.everything == pytest.approx(everything.estimate.sum(), rel=0.1)
    assert everything.fires_all == everything.fires.sum()


def test_parts_of_a_reconstruction_add_up() -> None:
    x = torch.randn(30, 8)
    sae = random_sae("standard", fit_normaliser("token_const", x))
    parts = take_apart(sae, x)
    total = sum(parts.of(i, sae.weights["W_dec"][i]) for i in range(24))
    assert torch.allclose(torch.as_tensor(total), parts.added, atol=1e-4)


def test_entropy_of_the_next_token(model: Model) -> None:
    rows = spliced_rows()
    found = next_token_entropy(model, rows)
    logits = model.run(rows.tokens)
    assert np.isnan(found[:, 0]).all()
    expected = torch.distributions.Categorical(logits=logits).entropy()
    assert found[:, 1:] == pytest.approx(expected[:, 1:].numpy(), abs=1e-4)


def sums_of(count: np.ndarray) -> SaeSums:
    zeros, n = np.zeros(2), count / 2
    total = count * 2.0
    active = np.array([n.sum(), n.sum()])
    return SaeSums(np.zeros((2, 3)), zeros, zeros, zeros, active, zeros, count, total, total, total, count)


def test_scalars_by_hand() -> None:
    count = np.array([60, 30, 15, 5, 1, 0])
    weights = np.array([[2.0, 0], [1, 1], [0, 2]])
    found, _ = band_scalars(sums_of(count), np.array([60.0, 45]), weights, 100)
    values = {name: e.value for name, e in found.items() if e}
    assert values["features_above_0.1"] == 3
    assert [values[f"features_b{i}"] for i in (1, 2, 3, 4)] == [1, 1, 1, 1]
    assert values["l0"] == pytest.approx(1.11)
    assert values["l0_share_b1"] == pytest.approx(60 / 111)
    assert values["activation_share_b2"] == pytest.approx(30 / 111)
    share = found["dense_l0_share"]
    assert share
    assert share.value == pytest.approx(105 / 111)
    assert share.low < share.value < share.high


def rows_of(verdicts: list[str], causes: list[str | None]) -> pl.DataFrame:
    cause = pl.Series("cause", causes, dtype=pl.String)
    return pl.DataFrame({"band": ["B3"] * len(verdicts), "verdict": verdicts}).with_columns(cause)


def test_shares_never_call_pathological_without_evidence() -> None:
    screened = rows_of(["unexplained by screens", "explained by norm"], [None, "norm"])
    scalars, reasons = share_scalars(screened)
    assert scalars["pathological_share"] == scalars["unexplained_share"]
    assert "no ratings or scores" in reasons["pathological_share"]
    rated = rows_of(["pathological", "not pathological", "unexplained by screens"], [None, "norm", None])
    scalars, reasons = share_scalars(rated)
    assert scalars["pathological_share"]
    assert (scalars["pathological_share"].value, scalars["pathological_share"].n) == (0.5, 2)
    assert scalars["pathological_share"].low == pytest.approx(0.0945312, abs=1e-6)
    assert not reasons
    scalars, reasons = share_scalars(rows_of([], []))
    assert scalars == {"unexplained_share": None, "pathological_share": None}
    assert set(reasons) == set(scalars)


def test_estimates_are_compared_with_re_runs() -> None:
    exact = [1.0, 2, 3, 5, None]
    frame = pl.DataFrame({"delta_ce": exact, "delta_ce_estimate": [2.0, 4, 6, 10, 7]})
    found = ce_scalars(frame)[0]["ce_estimate_correlation"]
    assert found
    assert (found.value, found.n) == (pytest.approx(1), 4)
    assert ce_scalars(frame.head(3))[0] == {"ce_estimate_correlation": None}
    assert "ce_tokens = 0" in ce_scalars(frame.drop("delta_ce"))[1]["ce_estimate_correlation"]


def test_evidence_is_read_from_other_results(tmp_path: Path) -> None:
    info = RunInfo("a", "topk", {}, 0, 4, "0", tmp_path)
    inputs = Inputs(tmp_path, [info])
    dense = make_evaluation("dense")
    assert read_evidence(inputs, info) == ({}, {})
    before = dense.reads(inputs, info)
    for name, column in (("rating", "consistency"), ("autointerp", "pearson")):
        folder = tmp_path / "results" / "a" / name
        folder.mkdir(parents=True)
        pl.DataFrame({"feature": [1, 1, 2, 3], column: [1.0, 2.0, 0.05, None]}).write_parquet(folder / "rows.parquet")
    assert read_evidence(inputs, info) == ({1: 1.5, 2: 0.05}, {1: 1.5, 2: 0.05})
    assert dense.reads(inputs, info) != before  # so that verdicts are made anew


@pytest.mark.parametrize("settings", [{"cap": -1}, {"exact": "many"}, {"nosuch": 1}])
def test_bad_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        make_evaluation("dense", settings)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path, corpus: Path) -> Path:
    """A measured study of six small SAEs, two pairs of them differing in the seed only."""
    source = {"source": str(corpus), "train_tokens": 3000, "eval_tokens": 1200}
    return monosem.compare(
        {
            "name": "dense",
            "model": {"name": str(tiny_lm), "site": "blocks.1.hook_resid_post", "dtype": "float32", "context": 32},
            "text": source,
            "train": {"d_sae": 64, "batch_size": 128, "tokens": 6400, "lr": 3e-3},
            "measure": {"bootstrap": 200, "ce_tokens": 200},
            "run": [
                {"variant": "topk", "k": [4, 16], "seeds": [0, 1]},
                {"variant": "gated", "l1_coefficient": [0.1, 1.0]},
            ],
        },
        tmp_path_factory.mktemp("dense") / "out",
    ).parent


def test_story(study: Path) -> None:
    from monosem.cli import app

    report = (study / "report.html").read_text()
    assert "Dense features by band" in report
    settings = [f"--set={s}" for s in ("ce_tokens=300", "exact=4", "sample=5")]
    from typer.testing import CliRunner

    done = CliRunner().invoke(app, ["eval", "dense", str(study), *settings])
    assert done.exit_code == 0, done.output
    for run in json.loads((study / "summary.json").read_text())["runs"]:
        folder = study / "results" / run["name"]
        scalars = json.loads((folder / "dense" / "result.json").read_text())["scalars"]
        rows, all_rows = (pl.read_parquet(folder / name / "rows.parquet") for name in ("dense", "density"))
        above = all_rows.filter(pl.col("density") > 0.1)
        assert scalars["features_above_0.1"]["value"] == above.height
        assert scalars["dense_l0_share"]["value"] == pytest.approx(above["density"].sum() / run["l0"]["value"])
        assert rows.filter(pl.col("band") != "B4").height == above.height
        assert rows.filter(pl.col("band") == "B4").height <= 5
        assert rows["delta_ce"].drop_nulls().len() == min(4, rows.height)
        assert rows["seed_cosine"].null_count() == (0 if run["variant"] == "topk" else rows.height)
        assert rows["setting_cosine"].null_count() == 0
        assert set(rows["verdict"]) <= {"unexplained by screens", *(f"explained by {c}" for c in set(rows["cause"]))}
        by_feature = dict(all_rows.select("feature", "density").iter_rows())
        assert [by_feature[f] for f in rows["feature"]] == rows["density"].to_list()
    monosem.compare(study, only="measure")  # keeps the settings that the evaluation was last run with
    for path in (study / "results").glob("*/dense/result.json"):
        assert json.loads(path.read_text())["header"]["settings"]["ce_tokens"] == 300


def test_a_dead_sae_is_no_accident(study: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(study, folder)
    name = json.loads((study / "summary.json").read_text())["runs"][-1]["name"]
    sae = monosem.load_sae(folder / "saes" / name)
    sae.weights["b_gate"] -= 1e4
    monosem.save_sae(sae, folder / "saes" / name)
    monosem.compare(folder, only="measure")
    found = json.loads((folder / "results" / name / "dense" / "result.json").read_text())
    assert found["scalars"]["l0"]["value"] == 0
    assert found["scalars"]["l0_share_b1"] is None
    assert set(found["reasons"]) == {name for name, value in found["scalars"].items() if value is None}
    assert pl.read_parquet(folder / "results" / name / "dense" / "rows.parquet").height == 0


def test_missing_codes_are_named(study: Path, tmp_path: Path) -> None:
    from monosem.config import load_study
    from monosem.stages import run_evaluation

    folder = tmp_path / "copy"
    shutil.copytree(study, folder)
    shutil.rmtree(folder / "codes")
    with pytest.raises(UserError, match="codes"):
        run_evaluation(load_study(folder / "study.toml"), folder, "dense", "topk*", ["sample=3"])


def judged(name: str, l0: float, verdicts: list[str], causes: list[str | None]) -> Judged:
    rows = rows_of(verdicts, causes)
    columns = ("feature", "density", "mean_activation", "screen_r2", "r2_token", "mean_cosine", "setting_cosine")
    columns += ("seed_cosine", "delta_nmse", "impact_ratio", "impact_ratio_firing")
    rows = rows.with_columns(pl.lit(0.3).alias(column) for column in columns)
    found, _ = band_scalars(sums_of(np.array([60, 30])), np.array([60.0, 30]), np.ones((2, 2)), 100)
    found |= share_scalars(rows)[0]
    assert found["l0"]
    found["l0"] = type(found["l0"]).exact(l0, 100)
    return Judged(RunInfo(name, "topk", {"k": l0}, 0, 4, "0", Path()), Result(found, rows))


def test_an_effect_without_an_interval_is_shown_alone() -> None:
    """One spliced row has no standard error."""
    one = judged("a", 10, ["unexplained by screens"] * 2, [None] * 2)
    ends = {"delta_ce_low": [None, 0.1], "delta_ce_high": [None, 0.3]}
    rows = one.result.rows.with_columns(*(pl.Series(name, values, pl.Float64) for name, values in ends.items()))
    rows = rows.with_columns(pl.lit(0.2).alias(c) for c in ("delta_ce", "ce_impact_ratio", "delta_ce_estimate"))
    cells = dense_charts([Judged(one.info, Result(one.result.scalars, rows))])[-1].cells
    assert [row[-3] for row in cells] == ["0.2", "0.2 [0.1, 0.3]"]


def test_the_answer_says_no_more_than_the_numbers() -> None:
    none, left = "explained by norm", "unexplained by screens"
    few = judged("a", 10, [none] * 30, ["norm"] * 30)
    many = judged("b", 100, [left] * 30, [None] * 30)
    answer = dense_charts([many, few])[0]
    assert answer.title == "60 dense features in 2 runs; screens leave 30 of them unexplained"
    (row,) = answer.cells
    assert row == [
        "topk",
        "30 (L0 10), 30 (L0 100)",
        "0 (L0 10), 30 (L0 100)",
        "0 % [0, 11]",
        "100 % [89, 100]",
        "more",
    ]
    assert "none of them is called pathological" in answer.note
    alike = dense_charts([few, judged("c", 50, [left, none], [None, "norm"])])[0].cells[0]
    assert alike[3:] == ["0 % [0, 11]", "50 % [9, 91]", "not clear"]
    assert dense_charts([few])[0].cells[0][3:] == ["0 % [0, 11]", None, "one L0 only"]
    assert dense_charts([judged("d", 10, [], [])])[0].cells[0][3:] == [None, None, "no dense features"]
    rated = dense_charts([judged("e", 10, ["pathological", "not pathological"], [None, None])])
    assert "1 of 2 rated or scored ones are pathological" in rated[0].title
    assert rated[0].columns[3] == "Pathological, lowest L0"
    assert rated[2].title.startswith("Pathological")
    assert "Unexplained" in dense_charts([few])[2].title
