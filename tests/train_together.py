"""What each of four processes does for test_mesh.py: train toys on meshes of several shapes, write what came out."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from monosem.checkpoints import resume, write_checkpoint
from monosem.mesh import ALONE, Mesh
from monosem.normaliser import Normaliser
from monosem.processes import joined
from monosem.trainer import Plan, Preparation, RunSpec, Trainer
from monosem.types import UserError
from monosem.variants import Recipe, make_variant

D_IN, D_SAE, BATCH, STEPS = 32, 640, 128, 12
SHAPES = ((1, 4), (1, 2), (2, 1), (4, 1), (2, 2))  # processes that share a batch, and those that share features
ONCE = {"p_updates": 1, "p_end": 0.9}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("standard", {"l1_coefficient": 1.0}),
    "ghost": ("standard", {"l1_coefficient": 1.0, "dead": "ghost"}),
    "resample": ("standard", {"l1_coefficient": 1.0, "dead": "resample", "resample_at": (0.5,)}),
    "tanh": ("tanh", {"l1_coefficient": 1.0}),
    "gated": ("gated", {"l1_coefficient": 1.0}),
    "gated-paper": ("gated", {"l1_coefficient": 1.0, "mode": "paper"}),
    "topk": ("topk", {"k": 8}),
    "topk-auxk": ("topk", {"k": 8, "auxk": True, "k_aux": 16}),
    "batchtopk": ("batchtopk", {"k": 8, "auxk": True, "k_aux": 16}),
    "jumprelu": ("jumprelu", {"l0_coefficient": 0.05}),
    "matryoshka": ("matryoshka", {"k": 8}),
    # p falls at the last step only: where it is smaller, tiny activations have huge slopes, and rounding errors grow
    "p_anneal": ("p_anneal", {"l1_coefficient": 1.0, "anneal_start": 0.0, "anneal_end": 11 / 12} | ONCE),
}


def rows() -> Tensor:
    """Return sums of few of 96 directions, [2048, d_in]."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(96, D_IN, generator=generator)
    strengths = torch.relu(torch.randn(2048, 96, generator=generator) - 1.5)
    return strengths @ directions + torch.randn(D_IN, generator=generator)


class Rows:
    """Activations in memory, as far as resampling asks for them."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.n = x, len(x)

    def rows(self, index: np.ndarray) -> Tensor:
        return self.x[torch.from_numpy(index)]


def batch(x: Tensor, step: int) -> Tensor:
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(step))[:BATCH]]


def make_trainer(case: str, x: Tensor, mesh: Mesh) -> Trainer:
    """Return a trainer in which every 16th feature is dead from the start, and two pairs of features are equal."""
    name, hyper = CASES[case]
    variant = make_variant(name, hyper)
    start = Preparation(Normaliser(), float(x.double().var(dim=0, correction=0).sum()), x[:1024])
    recipe = Recipe(lr=1e-3, beta1=variant.recipe(D_SAE).beta1)
    plan = Plan(BATCH, STEPS, dead_after=2 * BATCH)
    trainer = Trainer(RunSpec(case, name, variant, D_SAE, 0, recipe, key=case), plan, start, torch.device("cpu"), mesh)
    span = mesh.features.span(D_SAE)
    bias = trainer.weights["b_gate" if name == "gated" else "b_enc"]
    with torch.no_grad():
        bias[torch.arange(span.start, span.stop) % 16 == 5] = -100.0
    return trainer


def trained(case: str, x: Tensor, mesh: Mesh, steps: range = range(STEPS)) -> Trainer:
    trainer = make_trainer(case, x, mesh)
    go_on(trainer, x, steps)
    return trainer


def go_on(trainer: Trainer, x: Tensor, steps: range) -> None:
    for step in steps:
        trainer.maybe_resample(Rows(x), step)  # pyright: ignore[reportArgumentType]
        trainer.step(batch(x, step)[trainer.mesh.data.span(BATCH)], step, log=step % 4 == 0)


def chosen(x: Tensor, mesh: Mesh) -> Tensor:
    """Return which features TopK chooses, bool [n, d_sae], where features 0 and 639, 1 and 2, 150 and 330 are equal."""
    trainer = make_trainer("topk", x, ALONE)
    W_enc, b_enc = trainer.weights["W_enc"], trainer.weights["b_enc"]
    with torch.no_grad():
        for one, other in ((0, 639), (1, 2), (150, 330)):
            W_enc[:, other] = W_enc[:, one]
            b_enc[[one, other]] = b_enc[one].clone().clamp_min(0) + 0.5
    part = mesh.features.span(D_SAE)
    w = {"W_enc": W_enc[:, part].detach(), "b_enc": b_enc[part].detach(), "b_dec": trainer.weights["b_dec"].detach()}
    w["W_enc"] = w["W_enc"].t().contiguous().t()
    with mesh.entered():
        mine = trainer.spec.variant.encode(w, x[:512]).dense()
    return torch.cat([found.t() for found in mesh.features.gathered(mine.t().contiguous())], dim=1) > 0


def traffic(x: Tensor, mesh: Mesh) -> Tensor:
    """Return the bytes that a step of TopK gives to all-reduces and to all-gathers."""
    trainer, counted = make_trainer("topk", x, mesh), mesh.both.traffic
    assert counted is not None
    before = counted.all_reduce, counted.all_gather
    for step in range(4):
        trainer.step(batch(x, step)[mesh.data.span(BATCH)], step, log=False)
    return torch.tensor([counted.all_reduce - before[0], counted.all_gather - before[1]]) / 4


def fail_in(one: int, rank: int) -> None:
    if rank == one:
        raise UserError(f"process {rank} lacks a file")


def work(rank: int, folder: Path, port: int) -> None:
    """Train on every mesh; process 0 of each writes weights, logs and choices."""
    torch.set_num_threads(1)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "4"}
    os.environ.update({**place, "LOCAL_RANK": str(rank)})
    x = rows()
    with joined() as world:
        try:
            world.everyone.agreed(partial(fail_in, 2, rank))
        except UserError as error:
            (folder / f"failure-{rank}.txt").write_text(str(error))
        assert world.everyone.agreed(lambda: rank) == rank
        for shape in SHAPES:
            mesh, group, _ = world.meshes(*shape, "cpu")
            out: dict[str, Tensor] = {}
            for case in CASES:
                trainer = trained(case, x, mesh)
                out |= {f"{case}.{name}": w.contiguous() for name, w in trainer.everything().items()}
                out[f"{case}.log"] = torch.tensor([[row["l0"], row["nmse"], row["dead"]] for row in trainer.log])
            if mesh.data.size == 1:
                out["chosen"] = chosen(x, mesh)
            out["traffic"] = traffic(x, mesh)
            if mesh.both.rank == 0 and group == 0:
                save_file(out, folder / f"{shape[0]}x{shape[1]}.safetensors")
            _checkpoints(x, mesh, group, shape, folder)


def _checkpoints(x: Tensor, mesh: Mesh, group: int, shape: tuple[int, int], folder: Path) -> None:
    """On 1 x 4, stop halfway and leave a checkpoint; on 1 x 2, go on from it."""
    if shape == (1, 4):
        write_checkpoint([trained("topk-auxk", x, mesh, range(6))], folder / "four", 6)
    if shape == (1, 2):
        trainer = make_trainer("topk-auxk", x, mesh)
        assert resume([trainer], folder / "four") == 6
        go_on(trainer, x, range(6, STEPS))
        weights = {name: w.contiguous() for name, w in trainer.everything().items()}
        if mesh.both.rank == 0 and group == 0:
            save_file(weights, folder / "gone-on.safetensors")
