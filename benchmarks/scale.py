"""Predict how fast several processes train one SAE, from figures of one process, and compare with what they do.

    .venv/bin/python benchmarks/scale.py --d-sae 16384 --processes 1 2 4

Features are split (`compute.feature_parallel`). The prediction for F processes is the time that one process takes for
d_sae / F features, times F / cores where there are fewer cores than processes, plus the time of the collectives of
`docs/scale.md`, which are timed by themselves with the same number of processes. Each process has one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from monosem.mesh import ALONE, Mesh
from monosem.normaliser import Normaliser
from monosem.processes import joined
from monosem.trainer import Plan, Preparation, RunSpec, Trainer
from monosem.variants import Recipe, make_variant

SKIPPED = 2  # first steps, in which kernels are compiled and moments are made


def rows(n: int, d_in: int) -> Tensor:
    """Return sums of few of 4 d_in directions, of mean norm sqrt(d_in), [n, d_in]."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(4 * d_in, d_in, generator=generator) / 4
    return torch.relu(torch.randn(n, 4 * d_in, generator=generator) - 2) @ directions


def seconds_a_step(options: dict[str, Any], d_sae: int, mesh: Mesh) -> float:
    """Return the median time of a step of TopK."""
    x = rows(2 * options["batch"], options["d_in"])
    start = Preparation(Normaliser(), float(x.double().var(dim=0, correction=0).sum()), x[:1024])
    variant, plan = make_variant("topk", {"k": options["k"]}), Plan(options["batch"], options["steps"])
    spec = RunSpec("topk", "topk", variant, d_sae, 0, Recipe(lr=1e-4))
    trainer = Trainer(spec, plan, start, torch.device("cpu"), mesh)
    taken = []
    for step in range(options["steps"]):
        mesh.both.wait()
        began = time.perf_counter()
        trainer.step(x[step % 2 :: 2], step, log=False)
        taken.append(time.perf_counter() - began)
    return median(taken[SKIPPED:])


def seconds_of_collectives(options: dict[str, Any], mesh: Mesh) -> float:
    """Return the median time of a step's collectives with nothing between them."""
    n, d, k = options["batch"], options["d_in"], options["k"]
    taken = []
    for _ in range(options["steps"]):
        mesh.both.wait()
        began = time.perf_counter()
        mesh.features.reduced(torch.ones(n, d))
        mesh.features.gathered(torch.ones(n, k))
        mesh.both.reduced(torch.ones(d))
        mesh.features.reduced(torch.ones(()))
        taken.append(time.perf_counter() - began)
    return median(taken[SKIPPED:])


def work(rank: int, processes: int, port: int, options: dict[str, Any], out: Path) -> None:
    """Time steps and collectives as one of several processes; the first one writes them."""
    torch.set_num_threads(1)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "WORLD_SIZE": processes, "LOCAL_RANK": rank}
    os.environ.update({name: str(value) for name, value in place.items()})
    with joined() as world:
        mesh, _, _ = world.meshes(1, processes, "cpu")
        before = world.traffic.all_reduce + world.traffic.all_gather
        step = seconds_a_step(options, options["d_sae"], mesh)
        sent = (world.traffic.all_reduce + world.traffic.all_gather - before) / options["steps"]
        collectives = seconds_of_collectives(options, mesh)
        if rank == 0:
            out.write_text(json.dumps({"step": step, "collectives": collectives, "bytes": sent}))


def main() -> None:
    """Print a line for each number of processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--d-in", type=int, default=576)
    parser.add_argument("--d-sae", type=int, default=16_384)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/scale.json"))
    options = vars(parser.parse_args())
    out: Path = options.pop("json")
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    cores, lines = os.cpu_count() or 1, []
    for processes in options["processes"]:
        alone = seconds_a_step(options, options["d_sae"] // processes, ALONE)
        found = {"step": alone, "collectives": 0.0, "bytes": 0.0}
        if processes > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            spawn(work, (processes, port, options, out), nprocs=processes)
            found = json.loads(out.read_text())
        predicted = alone * max(1.0, processes / cores) + found["collectives"]
        measured, guess = options["batch"] / found["step"], options["batch"] / predicted
        share = found["collectives"] / predicted
        lines.append({"processes": processes, "predicted": guess, "measured": measured, "bytes": found["bytes"]})
        print(
            f"{processes} processes: {guess:,.0f} tokens/s predicted, {measured:,.0f} measured "
            f"({measured / guess:.2f}); {found['bytes'] / 1e6:.2f} MB a step and process, "
            f"{share:.0%} of the predicted time in collectives"
        )
    out.write_text(json.dumps({"cores": cores, **options, "lines": lines}, indent=1))


if __name__ == "__main__":
    if not dist.is_available():
        raise SystemExit("this build of torch has no torch.distributed")
    main()
