"""The training loop: schedules, decoder constraint, silence counters, lockstep, checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from monosem.activations import Activations
from monosem.checkpoints import resume
from monosem.formats.saelens import load_sae
from monosem.kernels import cpu, sparse
from monosem.train import prepare, train
from monosem.trainer import Plan, RunSpec, Trainer
from monosem.types import UserError
from monosem.variants import Recipe, Step, make_variant

D_IN, D_SAE = 12, 40


@pytest.fixture(params=["reference", "kernels"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test by the references and by the compiled kernels, which such small widths wouldn't get."""
    if request.param == "kernels":
        monkeypatch.setattr(sparse, "SMALL", 0)
        monkeypatch.setattr(cpu, "DENSE_ABOVE", 1.0)


def store_of(n: int = 2000, seed: int = 0) -> Activations:
    generator = torch.Generator().manual_seed(seed)
    return as_store(torch.randn(n, 5, generator=generator).relu() @ torch.randn(5, D_IN, generator=generator) + 1)


def as_store(x: torch.Tensor) -> Activations:
    n = len(x)
    columns = {name: torch.zeros(n, dtype=torch.int32) for name in ("doc", "pos", "token")}
    return Activations([x[: n // 3], x[n // 3 :]], columns, 1, "hash")


def spec_of(variant: str, name: str = "", seed: int = 0, recipe: Recipe | None = None, **hyper: Any) -> RunSpec:
    made = make_variant(variant, hyper)
    return RunSpec(
        name or variant, variant, made, D_SAE, seed, recipe or replace(made.recipe(D_SAE), lr=1e-2), f"key-{name}"
    )


PLAN = Plan(batch_size=64, steps=60, dead_after=500, log_every=7, checkpoint_seconds=1e9)


def test_learning_rate_golden_b2() -> None:
    plan, recipe = Plan(1, 1000), Recipe(lr=1.0, lr_decay=0.2)
    assert [plan.learning_rate(recipe, t) for t in (0, 799, 800, 900, 999)] == pytest.approx([1, 1, 1, 0.5, 0.005])
    warm = Recipe(lr=1.0, lr_decay=0.0, lr_warmup=10)
    assert [plan.learning_rate(warm, t) for t in (0, 4, 9, 500, 999)] == pytest.approx([0.1, 0.5, 1, 1, 1])


def test_a_step_moves_unit_rows_along_the_sphere_golden_e4() -> None:
    """The gradient that Adam sees has no part along the rows, and the rows have norm 1 after the step."""
    store = store_of()
    trainer = Trainer(spec_of("topk", k=4), PLAN, prepare(store, PLAN), torch.device("cpu"))
    x = trainer.start.normaliser.apply(store.rows(np.arange(64)))[0]
    before = trainer.weights["W_dec"].detach().clone()
    trainer.step(x, 0, False)
    w_dec = trainer.weights["W_dec"].detach()
    first_moment = trainer.optimiser.moments()["W_dec"][0]  # 0.1 times the gradient
    assert first_moment.abs().sum() > 0
    assert (first_moment * before).sum(1).abs().max() < 1e-6
    assert (w_dec.norm(dim=1) - 1).abs().max() < 1e-6
    assert not torch.equal(w_dec, before)


def test_training_keeps_unit_rows_and_lowers_the_error(tmp_path: Path) -> None:
    specs = [
        spec_of("topk", k=4),
        spec_of("gated", mode="paper", l1_coefficient=0.5),
        spec_of("standard", l1_coefficient=0.5),
        spec_of("batchtopk", k=4),
        spec_of("matryoshka", k=4),
        spec_of("jumprelu", l0_coefficient=0.5, bandwidth=0.1, recipe=Recipe(lr=1e-2, beta1=0.0, clip=0.0)),
        spec_of("p_anneal", l1_coefficient=0.5),
    ]
    train(specs, replace(PLAN, steps=200), store_of(), tmp_path)
    units = {"topk": True, "gated": True, "standard": False, "batchtopk": True, "matryoshka": True, "jumprelu": True}
    for name, unit in {**units, "p_anneal": False}.items():
        log = pl.read_parquet(tmp_path / name / "log.parquet")
        assert log["nmse"][-1] < 0.5 * log["nmse"][0]
        assert log["step"][-1] == 199
        assert log["tokens"][-1] == 200 * 64
        sae = load_sae(tmp_path / name)
        norms = sae.weights["W_dec"].norm(dim=1)
        assert bool((norms - 1).abs().max() < 1e-5) == unit
        assert not (tmp_path / name / "checkpoint").exists()


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka"])
def test_the_threshold_gives_the_sparsity_that_was_asked_for(name: str, tmp_path: Path) -> None:
    """On held-out rows, one by one, from the saved file."""
    rows = store_of(8000).rows(np.arange(8000))
    train([spec_of(name, k=4)], replace(PLAN, steps=200), as_store(rows[:5000]), tmp_path)
    sae = load_sae(tmp_path / name)
    l0 = torch.stack([codes.l0() for codes in map(sae.codes, rows[5000:].split(50))]).mean()
    assert 3.6 < float(l0) < 4.4


def test_buffers_are_settled_restored_and_never_optimised(tmp_path: Path) -> None:
    store, plan = store_of(), replace(PLAN, checkpoint_seconds=0.0)
    specs = [spec_of("p_anneal", "p", p_updates=20, l1_coefficient=0.5), spec_of("batchtopk", "b", k=3)]
    seen: list[dict[str, torch.Tensor]] = []

    def stop(step: int, trainers: list[Trainer]) -> None:
        if step == 30:
            raise Killed
        seen[:] = [{key: w.detach().clone() for key, w in trainer.weights.items()} for trainer in trainers]

    with pytest.raises(Killed):
        train(specs, plan, store, tmp_path, report=stop)
    resumed = [Trainer(spec, plan, prepare(store, plan), torch.device("cpu")) for spec in specs]
    assert resume(resumed, tmp_path) == 30
    for trainer, weights in zip(resumed, seen, strict=True):
        assert all(torch.equal(w, weights[key]) for key, w in trainer.weights.items())
        assert not set(trainer.spec.variant.buffers) & trainer.optimiser.moments().keys()
    assert resumed[0].weights["penalty_scale"] != 1
    assert resumed[0].weights["penalty_sums"].any()
    assert resumed[1].weights["threshold"][0] > 0
    assert resumed[0].sae().weights.keys() == {"W_enc", "b_enc", "W_dec", "b_dec"}
    assert resumed[1].sae().weights.keys() == {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}


def test_one_step_equals_adam_written_out() -> None:
    """Clip, then Adam's first step: w -= lr * g / (|g| + eps), independent of its size (bias correction)."""
    store = store_of()
    plan = Plan(batch_size=64, steps=10)
    start = prepare(store, plan)
    spec = spec_of("standard", l1_coefficient=1.0, l1_warmup=0.0, recipe=Recipe(lr=1e-3, clip=0.01))
    trainer = Trainer(spec, plan, start, torch.device("cpu"))
    x = start.normaliser.apply(store.rows(np.arange(64)))[0]
    weights = {k: v.detach().clone().requires_grad_() for k, v in trainer.weights.items()}
    spec.variant.loss(weights, x, Step(0, 10, start.variance)).total.backward()
    grads = {k: v.grad for k, v in weights.items()}
    norm = torch.sqrt(sum((g**2).sum() for g in grads.values()))  # type: ignore[union-attr, operator]
    trainer.step(x, 0, True)
    for name, grad in grads.items():
        g = grad * (0.01 / norm)  # type: ignore[operator]
        expected = weights[name].detach() - 1e-3 * g / (g.abs() + 1e-8)
        assert torch.allclose(trainer.weights[name], expected, atol=1e-6), name
    assert trainer.log[0]["gradient_norm"] == pytest.approx(float(norm), rel=1e-5)


def test_silence_is_counted_in_tokens() -> None:
    store = store_of()
    plan = replace(PLAN, dead_after=100)
    trainer = Trainer(spec_of("topk", k=1), plan, prepare(store, plan), torch.device("cpu"))
    x = trainer.start.normaliser.apply(store.rows(np.arange(64)))[0]
    fired = trainer.spec.variant.encode(trainer.weights, x).fired()
    trainer.step(x, 0, False)
    assert torch.equal(trainer.silent == 0, fired)
    assert (trainer.silent[~fired] == 64).all()


def test_lockstep_gives_what_each_run_gives_alone(tmp_path: Path) -> None:
    specs = [spec_of("standard", "a", l1_coefficient=0.5), spec_of("topk", "b", k=3), spec_of("gated", "c", seed=4)]
    train(specs, PLAN, store_of(), tmp_path / "together")
    for spec in specs:
        train([spec], PLAN, store_of(), tmp_path / "alone")
        a = (tmp_path / "together" / spec.name / "sae_weights.safetensors").read_bytes()
        assert a == (tmp_path / "alone" / spec.name / "sae_weights.safetensors").read_bytes()


class Killed(Exception):
    pass


@pytest.mark.parametrize("moments", [(1,), (17, 18), (58, 59)])
def test_resumed_weights_are_bit_identical(tmp_path: Path, moments: tuple[int, ...]) -> None:
    specs = [
        spec_of("standard", "std", l1_coefficient=0.5, dead="resample", resample_at=(0.3, 0.6)),
        spec_of("standard", "ghost", l1_coefficient=0.5, dead="ghost"),
        spec_of("topk", "top", k=3, auxk=True),
        spec_of("gated", "gat"),
        spec_of("batchtopk", "bat", k=3, auxk=True, threshold_from=5),
        spec_of("jumprelu", "jmp", bandwidth=0.1),
        spec_of("matryoshka", "mat", k=3, fractions=(0.25, 1.0)),
        spec_of("p_anneal", "pan", p_updates=5),
    ]
    train(specs, PLAN, store_of(), tmp_path / "whole")
    plan = replace(PLAN, checkpoint_seconds=0.0)
    for moment in moments:

        def stop(step: int, _trainers: list[Trainer], moment: int = moment) -> None:
            if step == moment:
                raise Killed

        with pytest.raises(Killed):
            train(specs, plan, store_of(), tmp_path / "cut", report=stop)
    first_steps: list[int] = []
    train(specs, plan, store_of(), tmp_path / "cut", report=lambda step, _t: first_steps.append(step))
    assert first_steps[0] == moments[-1]  # the step that was cut had not been saved
    for spec in specs:
        whole, cut = tmp_path / "whole" / spec.name, tmp_path / "cut" / spec.name
        assert (whole / "sae_weights.safetensors").read_bytes() == (cut / "sae_weights.safetensors").read_bytes()
        columns = [c for c in pl.read_parquet(whole / "log.parquet").columns if c != "tokens_per_second"]
        assert pl.read_parquet(whole / "log.parquet")[columns].equals(pl.read_parquet(cut / "log.parquet")[columns])


def test_a_resumed_step_has_the_threads_of_an_undisturbed_one(tmp_path: Path) -> None:
    """With more threads than runs, a step whose codes were sparse before leaves all threads to the kernels."""
    store, plan = store_of(), replace(PLAN, checkpoint_seconds=0.0)
    spec = spec_of("topk", "a", k=3)

    def stop(step: int, _trainers: list[Trainer]) -> None:
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        train([spec], plan, store, tmp_path, report=stop)
    resumed = Trainer(spec, plan, prepare(store, plan), torch.device("cpu"))
    assert not resumed.sparse
    assert resume([resumed], tmp_path) == 5
    assert resumed.sparse


def test_a_checkpoint_of_other_settings_or_a_broken_one_is_not_used(tmp_path: Path) -> None:
    spec = spec_of("topk", "a", k=3)
    plan = replace(PLAN, checkpoint_seconds=0.0)

    def stop(step: int, _trainers: list[Trainer]) -> None:
        if step == 20:
            raise Killed

    def first_step(of: RunSpec) -> int:
        seen: list[int] = []

        def look(step: int, _trainers: list[Trainer]) -> None:
            seen.append(step)
            raise Killed

        with pytest.raises(Killed):
            train([of], plan, store_of(), tmp_path, report=look)
        return seen[0]

    with pytest.raises(Killed):
        train([spec], plan, store_of(), tmp_path, report=stop)
    assert first_step(replace(spec, key="other")) == 0
    file = next((tmp_path / "a" / "checkpoint").glob("step-*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    assert first_step(spec) == 0


def test_a_diverging_run_is_named(tmp_path: Path) -> None:
    spec = spec_of("standard", "wild", recipe=Recipe(lr=1e30, clip=0.0))
    with pytest.raises(UserError, match=r"run wild: loss .* step .* lower its lr"):
        train([spec], PLAN, store_of(), tmp_path)
    assert not (tmp_path / "wild" / "cfg.json").exists()


def test_resampling_gives_dead_features_new_directions_and_clears_their_moments() -> None:
    store = store_of()
    plan = replace(PLAN, dead_after=100)
    spec = spec_of("standard", "a", dead="resample", resample_at=(0.5,))
    trainer = Trainer(spec, plan, prepare(store, plan), torch.device("cpu"))
    x = trainer.start.normaliser.apply(store.rows(np.arange(64)))[0]
    for step in range(3):
        trainer.step(x, step, False)
    trainer.silent[:10] = 1000
    trainer.silent[10:] = 0
    before = {k: v.detach().clone() for k, v in trainer.weights.items()}
    trainer.maybe_resample(store, 29)
    assert torch.equal(trainer.weights["W_dec"], before["W_dec"])
    trainer.maybe_resample(store, 30)
    assert not torch.equal(trainer.weights["W_dec"][:10], before["W_dec"][:10])
    assert torch.equal(trainer.weights["W_dec"][10:], before["W_dec"][10:])
    for moment in trainer.optimiser.moments()["W_enc"]:
        assert not moment[:, :10].any()
        assert moment[:, 10:].any()
    assert (trainer.silent[:10] == 0).all()
