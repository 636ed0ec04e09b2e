"""Several processes train the SAE that one would: every variant, split over tokens, over features, over both."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import Tensor

from monosem.checkpoints import in_step, resume
from monosem.mesh import ALONE, Axis, Mesh, per_token, token_mean
from monosem.normaliser import Normaliser
from monosem.processes import World
from monosem.trainer import Plan, Preparation, RunSpec, Trainer
from monosem.types import UserError
from monosem.variants import Recipe, make_variant
from tests.train_together import (
    BATCH,
    CASES,
    D_IN,
    D_SAE,
    SHAPES,
    STEPS,
    chosen,
    go_on,
    make_trainer,
    rows,
    trained,
    work,
)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four processes wrote."""
    folder = tmp_path_factory.mktemp("together")
    mp.spawn(work, (folder, free_port()), nprocs=4)
    return folder


@pytest.fixture(scope="module")
def alone() -> dict[str, tuple[dict[str, Tensor], Tensor]]:
    """Weights and log of each case, trained by this process."""
    out = {}
    with one_thread():
        for case in CASES:
            trainer = trained(case, rows(), ALONE)
            log = torch.tensor([[row["l0"], row["nmse"], row["dead"]] for row in trainer.log])
            out[case] = {name: w.detach() for name, w in trainer.weights.items()}, log
    return out


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-12))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_weights_are_those_of_one_process(
    together: Path, alone: dict[str, tuple[dict[str, Tensor], Tensor]], shape: tuple[int, int], case: str
) -> None:
    found = load_file(together / f"{shape[0]}x{shape[1]}.safetensors")
    weights, log = alone[case]
    for name, wanted in weights.items():
        assert found[f"{case}.{name}"].shape == wanted.shape
        assert distance(found[f"{case}.{name}"], wanted) < 1e-5, name
    assert torch.allclose(found[f"{case}.log"], log, rtol=1e-4)


@pytest.mark.slow
def test_dead_features_were_there(alone: dict[str, tuple[dict[str, Tensor], Tensor]]) -> None:
    """Else ghost gradients, AuxK and resampling would not have been compared."""
    assert alone["topk-auxk"][1][-1, 2] >= 40
    assert alone["ghost"][1][-1, 2] >= 30
    reset = make_trainer("resample", rows(), ALONE).weights["b_enc"] - alone["resample"][0]["b_enc"]
    assert (reset < -90).sum() >= 40


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["1x2", "1x4"])
def test_topk_chooses_the_same_features_ties_included(together: Path, shape: str) -> None:
    found = load_file(together / f"{shape}.safetensors")["chosen"]
    with one_thread():
        wanted = chosen(rows(), ALONE)
    assert (wanted.sum(1) <= 8).all()
    assert (wanted[:, 0] & ~wanted[:, 639]).any()  # the first of two equal ones, where there is room for one
    assert torch.equal(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_traffic_is_that_of_the_formula(together: Path, shape: tuple[int, int]) -> None:
    """The formulas of docs/scale.md, in bytes a process and step."""
    (data, features), d, n, k = shape, D_IN, BATCH // shape[0], 8
    reduced, gathered = load_file(together / f"{data}x{features}.safetensors")["traffic"].tolist()
    wanted = 4 * (n * d if features > 1 else 0) + 4 * d
    if data > 1:
        wanted += 4 * (2 * d + 1) * (D_SAE // features) + 4 * D_SAE // features  # gradients; which features fired
    assert reduced == pytest.approx(wanted, rel=0.1)
    assert gathered == (4 * n * k if features > 1 else 0)


@pytest.mark.slow
def test_a_checkpoint_of_four_is_gone_on_from_by_two_and_by_one(
    together: Path, alone: dict[str, tuple[dict[str, Tensor], Tensor]]
) -> None:
    with one_thread():
        trainer = make_trainer("topk-auxk", rows(), ALONE)
        assert resume([trainer], together / "four") == 6
        go_on(trainer, rows(), range(6, STEPS))
    by_two = load_file(together / "gone-on.safetensors")
    for name, wanted in alone["topk-auxk"][0].items():
        assert distance(trainer.weights[name].detach(), wanted) < 1e-5
        assert distance(by_two[name], wanted) < 1e-5
    assert not list((together / "four").rglob(".metadata"))  # which would be a pickle


def test_a_damaged_checkpoint_is_left_aside(tmp_path: Path) -> None:
    trainer = make_trainer("topk", rows(), ALONE)
    for name in ("step-000000006", "step-000000007"):
        (tmp_path / "topk" / "checkpoint" / name).mkdir(parents=True)
    (tmp_path / "topk" / "checkpoint" / "step-000000007" / "facts.json").write_text('{"key": "topk"}')
    assert resume([trainer], tmp_path) == 0


def test_runs_at_different_steps_are_trained_apart(tmp_path: Path) -> None:
    """As groups of processes leave them; a new run beside others doesn't send those back to the start."""
    for run, steps in {"a": [7], "b": [6, 7], "c": [5], "d": [6], "e": [], "f": []}.items():
        for step in steps:
            place = tmp_path / run / "checkpoint"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"step-{step:09d}.safetensors").touch()
    assert in_step(list("abcdef"), tmp_path, ALONE) == [["a", "b"], ["c"], ["d"], ["e", "f"]]


def test_features_that_do_not_reach_for_all_processes() -> None:
    variant = make_variant("topk", {"k": 2})
    start = Preparation(Normaliser(), 1.0, torch.ones(8, 4))
    spec = RunSpec("narrow", "topk", variant, 6, 0, Recipe())
    with pytest.raises(UserError, match="run narrow: d_sae = 6 can't be split by feature_parallel = 4"):
        Trainer(spec, Plan(8, 1), start, torch.device("cpu"), Mesh(features=Axis(4, 0)))


def test_shares_are_those_of_dtensor() -> None:
    for n, size in ((10, 4), (9, 4), (8, 4), (2, 4)):
        spans = [Axis(size, rank).span(n) for rank in range(size)]
        chunks = [len(chunk) for chunk in torch.arange(n).chunk(size)]
        assert [span.stop - span.start for span in spans] == chunks + [0] * (size - len(chunks))
        assert [i for span in spans for i in range(span.start, span.stop)] == list(range(n))


def test_alone_it_is_an_ordinary_mean() -> None:
    x = torch.arange(12.0).view(4, 3)
    assert torch.equal(token_mean(x), x.mean(0))
    assert per_token(x, 4) == x.sum() / 4
    assert ALONE.both.total(x) is x


def test_processes_that_do_not_fit() -> None:
    with pytest.raises(UserError, match=r"2 times compute.feature_parallel = 3: 4 processes can't be split .* of 6"):
        World(0, 4).meshes(2, 3, "cpu")
    assert BATCH % 4 == 0


@pytest.mark.slow
def test_what_one_process_cannot_do_is_said_in_all(together: Path) -> None:
    said = [(together / f"failure-{rank}.txt").read_text() for rank in range(4)]
    assert said == ["process 2 lacks a file"] * 4
