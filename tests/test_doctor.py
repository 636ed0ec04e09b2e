"""The doctor names planted mistakes and leaves sound SAEs alone: on made-up activations and on the embedded model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from monosem.doctor import Diagnosis, Sample, examine, mended, model_for, take_sample
from monosem.doctor.fits import best_factor, crossing, feature_gains, matched_rows, nmse, rebuilt, size
from monosem.doctor.readings import Reading, alternatives
from monosem.equivalents import Plain, plain, sae_of
from monosem.formats import save_sae
from monosem.normaliser import fit_normaliser, fold
from monosem.types import UserError
from tests.conftest import cli
from tests.doctor.made_up import D_IN, EARLIER, LATER, SITE, activations, sample
from tests.doctor.planted import Plant, plants, train_all

ARCHITECTURES = ("standard", "gated", "topk", "jumprelu")
NAMED_HERE = (
    "hook one block late",
    "position 0 included",
    "normalisation doubled",
    "normalisation not undone",
    "b_dec subtraction toggled",
    "encoder and decoder exchanged",
    "features in another order",
    "k halved",
    "k doubled",
    "k ignored",
)
FOUND_FROM_DATA = {"site", "k", "activation", "order"}
Saes = tuple[dict[str, Plain], float]


@pytest.fixture(scope="session")
def saes() -> Saes:
    """SAEs of the four architectures on made-up activations, and the scale that those are normalised with."""
    x = activations(8000, seed=0)
    return train_all(x, steps=400, d_sae=128, k=8, l1=1.0, lr=5e-3), fit_normaliser("mean_norm", x).scale


def planted(saes: Saes, architecture: str) -> dict[str, Plant]:
    others = {"hook one block early": EARLIER, "hook one block late": LATER}
    return plants(saes[0][architecture], saes[1], SITE, others)


def diagnosed(plant: Plant, sample_at: Callable[[str], Sample]) -> Diagnosis:
    positions = "all" if plant.special else "text"
    return examine(sae_of(plant.found, {}), sample=sample_at(plant.site), positions=positions)


def at(site: str) -> Sample:
    return sample(asked=site)


# --- made-up activations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sound_saes_are_left_alone(saes: Saes, architecture: str) -> None:
    for name in ("as trained", "bfloat16 weights"):
        found = diagnosed(planted(saes, architecture)[name], at)
        assert (found.verdict, found.changes) == ("right", ()), found.sentence
        assert found.sentence.startswith("Nothing is wrong")
        assert "leave them out" in found.notes[0]  # the attention sink at position 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_reading_undoes_each_mistake_exactly(saes: Saes, architecture: str) -> None:
    """Apart from what has to be found from data, and from what moves the SAE to other activations."""
    x, _ = at(SITE).at(SITE, special=False)
    few, exact = x[:64], rebuilt(saes[0][architecture], x[:64])[1]
    for name, plant in planted(saes, architecture).items():
        if plant.verdict != "mistake" or plant.special or len(plant.kinds) != 1 or plant.kinds <= FOUND_FROM_DATA:
            continue
        if name in ("normalisation by token instead", "norms folded into the decoder only"):
            continue  # found from data, too: the scale, the norms
        options = [o for o in alternatives(Reading(plant.found, SITE), x, []) if {o.changes[-1].kind} == plant.kinds]
        errors = [float((rebuilt(option.found, few)[1] - exact).norm() / exact.norm()) for option in options]
        assert min(errors) < 0.02, f"{name}: {errors}"  # the scale is that of other text


@pytest.mark.parametrize("name", NAMED_HERE)
def test_planted_mistakes_are_named(saes: Saes, name: str) -> None:
    plant = planted(saes, "topk")[name]
    found = diagnosed(plant, at)
    assert (found.verdict, found.kinds) == (plant.verdict, plant.kinds), found.sentence


def test_the_sentence_has_both_figures_and_the_way_to_mend_it(saes: Saes) -> None:
    p = saes[0]["topk"]
    misread = sae_of(replace(p, weights=fold(p.weights, 1 / saes[1])), {"format": "saelens"})
    found = examine(misread, sample=at(LATER))
    assert found.kinds == {"normalisation", "site"}
    for said in ("2 mistakes", f"belongs to {SITE}, not to {LATER}", "metadata.hook_name in cfg.json", "--scale 0.0"):
        assert said in found.sentence
    as_read, best = found.rows[0], next(row for row in found.rows if row.mark == "right")
    assert as_read.explained_variance.high < 0.5 < best.explained_variance.low
    for row in (as_read, best):
        assert f"{row.explained_variance.value:.3f} [{row.explained_variance.low:.3f}, " in found.sentence
    again = mended(misread, found)
    assert again.facts["site"] == SITE
    x, _ = at(SITE).at(SITE, special=False)
    assert nmse(plain(again), x) == pytest.approx(nmse(p, x), rel=0.02)


def test_nothing_helps_random_weights_and_the_sentence_says_what_they_look_like(saes: Saes) -> None:
    made = planted(saes, "standard")
    random, other = (diagnosed(made[name], at) for name in ("random weights", "another model"))
    assert "nothing in common" in random.sentence
    assert "another model" in other.sentence
    untrained = {**made["random weights"].found.weights}
    untrained["W_enc"] = untrained["W_dec"].t().contiguous()
    found = diagnosed(replace(made["random weights"], found=Plain("standard", untrained, False)), at)
    assert found.verdict == "unknown"
    assert "untrained" in found.sentence


def test_weights_that_give_nan_are_refused(saes: Saes) -> None:
    p = saes[0]["standard"]
    broken = replace(p, weights={**p.weights, "b_dec": torch.full((D_IN,), float("nan"))})
    with pytest.raises(UserError, match="NaN"):
        examine(sae_of(broken, {}), sample=at(SITE))


def test_size_is_one_at_the_k_of_training(saes: Saes) -> None:
    x, _ = at(SITE).at(SITE, special=False)
    topk = saes[0]["topk"]
    assert size(topk, x) == pytest.approx(1.0, abs=0.02)
    assert size(replace(topk, k=4), x) < 0.99 < 1.05 < size(replace(topk, k=32), x)
    found = crossing(lambda k: replace(topk, k=round(k)), x, 1, 128, rising=True)
    assert found == pytest.approx(8, rel=0.2)
    assert crossing(lambda k: replace(topk, k=round(k)), x, 16, 128, rising=True) is None


def test_scale_and_norms_are_found_from_data(saes: Saes) -> None:
    x, _ = at(SITE).at(SITE, special=False)
    topk, standard = saes[0]["topk"], saes[0]["standard"]
    doubled = replace(topk, weights=fold(topk.weights, 0.03))
    assert best_factor(doubled, x) == pytest.approx(1 / 0.03, rel=0.3)
    norms = standard.weights["W_dec"].norm(dim=1)
    unit = replace(standard, weights={**standard.weights, "W_dec": standard.weights["W_dec"] / norms[:, None]})
    gains = feature_gains(unit, x)
    often = sae_of(unit, {}).encode(x).gt(0).sum(0) > 100
    assert torch.corrcoef(torch.stack([gains[often].log(), norms[often].log()]))[0, 1] > 0.8
    order = torch.randperm(128)
    matched = matched_rows(topk.weights["W_enc"], topk.weights["W_dec"][order])
    assert matched is not None
    assert (order[matched] == torch.arange(128)).float().mean() > 0.9
    assert matched_rows(topk.weights["W_enc"], topk.weights["W_dec"]) is None


# --- models and the command line -------------------------------------------------------------------------------------


def test_the_model_is_the_one_asked_for_or_named(tiny_lm: Path) -> None:
    assert model_for("embedded", "gpt2") == ""
    assert model_for("gpt2", None) == "gpt2"
    assert model_for("", None) == model_for("", "HuggingFaceTB/SmolLM2-135M-Instruct") == ""
    assert model_for("", str(tiny_lm)) == str(tiny_lm)
    with pytest.raises(UserError, match='trained on "gpt2": give --model gpt2'):
        model_for("", "gpt2")


def test_the_sample_has_the_sites_beside_and_no_place_twice(tiny_lm: Path, corpus: Path) -> None:
    from monosem.model import load_model

    model = load_model(str(tiny_lm), dtype="float32")
    taken = take_sample(model, "blocks.1.hook_resid_pre", d_in=32, source=str(corpus), context=16, tokens=640)
    assert next(iter(taken.x)) == "blocks.1.hook_resid_pre"
    streams = {name for name in taken.x if "resid" in name}
    same = "blocks.0.hook_resid_post"  # what enters block 1
    assert streams == {
        "blocks.1.hook_resid_pre",
        "blocks.0.hook_resid_pre",
        *(f"blocks.{i}.hook_resid_post" for i in (1, 2)),
    }
    assert same not in taken.x
    assert {f"blocks.{layer}.hook_mlp_out" for layer in (0, 1, 2)} < set(taken.x)
    total = taken.x["blocks.0.hook_resid_pre"] + taken.x["blocks.0.hook_attn_out"] + taken.x["blocks.0.hook_mlp_out"]
    assert torch.allclose(total, taken.x["blocks.1.hook_resid_pre"], atol=1e-5)
    assert not taken.text[::16].any()
    assert taken.text.sum() > 600
    part = taken.thin(160)
    assert 120 <= len(part.group) <= 240
    assert torch.equal(part.x["blocks.1.hook_resid_pre"][:16], taken.x["blocks.1.hook_resid_pre"][:16])
    with pytest.raises(UserError, match="width 32, the SAE reads 48"):
        take_sample(model, "blocks.1.hook_resid_pre", d_in=48, source=str(corpus), context=16, tokens=640)


def test_the_command_says_what_is_wrong_and_exits_with_1(
    finished_study: Path, tiny_lm: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished_study / "saes" / "topk-k8"
    options = ("--text", corpus, "--tokens", "2000")
    assert cli("doctor", run, *options) == 0
    shown = capsys.readouterr()
    assert "Nothing is wrong" in shown.out
    assert str(tiny_lm) in shown.err  # which model was used
    from monosem.formats import load_sae

    sae = load_sae(run)
    p = plain(sae)
    weights = {**p.weights, "W_dec": 4 * p.weights["W_dec"]}
    save_sae(sae_of(replace(p, weights=weights), sae.facts), tmp_path / "misread")
    assert cli("doctor", tmp_path / "misread", *options, "--json", tmp_path / "found.json") == 1
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["verdict"] == "mistake"
    assert written["changes"][0]["kind"] == "normalisation"
    assert written["sentence"] in capsys.readouterr().out
    assert {"reading", "kinds", "l0", "nmse", "explained_variance", "mark"} == set(written["rows"][0])


def test_bad_input_is_one_sentence(finished_study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished_study / "saes" / "topk-k8"
    for arguments, said in (
        ((tmp_path / "nothing",), "no SAE here"),
        ((run, "--site", "blocks.9.hook_resid_post"), "has blocks 0 to 3"),
        ((run, "--model", "/no/such/folder"), "no such model folder"),
        ((run, "--text", "/no/such/text.txt"), "no such file"),
    ):
        assert cli("doctor", *arguments) == 2
        assert said in capsys.readouterr().err


@pytest.mark.lm
@pytest.mark.slow
def test_nine_of_ten_kinds_are_named_on_the_embedded_model(tmp_path: Path) -> None:
    """By the script that makes the table of docs/doctor.md, with a smaller SAE and ten kinds of mistakes."""
    small = "--layer 8 --train-tokens 8000 --steps 150 --d-sae 512 --tokens 1500 --architectures topk"
    kinds = ("bfloat16", "block late", "mlp_out", "position 0", "normalisation missing", "normalisation doubled")
    kinds += ("not undone", "b_dec subtraction", "and decoder", "another order", "k doubled", "k ignored")
    script = [sys.executable, "benchmarks/doctor.py", *small.split(), "--json", str(tmp_path / "found.json")]
    subprocess.run([*script, "--mistakes", *kinds], check=True, stdout=subprocess.DEVNULL)
    outcomes = {row["mistake"]: row["outcome"] for row in json.loads((tmp_path / "found.json").read_text())}
    assert outcomes.pop("as trained") == outcomes.pop("bfloat16 weights") == "named"
    mattering = [outcome for outcome in outcomes.values() if outcome != "harmless"]
    assert len(mattering) >= 10, outcomes
    assert mattering.count("named") >= 0.9 * len(mattering), outcomes
