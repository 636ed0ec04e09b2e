"""Predict how fast several processes train one SAE, from figures of one process, and compare with what they do.

    .venv/bin/python benchmarks/scale.py --d-sae 16384 --processes 1 2 4
    .venv/bin/python benchmarks/scale.py --d-sae 1048576 --predict 8 64 --network 50 --latency 20
    .venv/bin/python benchmarks/scale.py --plan --flops 400 --memory 2.3 --price 3

Features are split (`compute.feature_parallel`), TopK is trained. The prediction for F processes is the time that one
process takes for a step of d_sae / F features, plus the time of the collectives of `docs/scale.md`: for each a latency,
and its bytes by a bandwidth. Both are measured here with two sizes of all-reduce; `--network` (GB/s) and `--latency`
(microseconds) give those of another machine, for processes that this one has no room for. Processes of one machine
share its memory and its cores, so that the figure of one process is measured while as many others do the same, without
a word between them. Each has one thread. `--plan` measures nothing: it prints the tables of `docs/scale.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from monosem.mesh import ALONE, Axis, Mesh
from monosem.normaliser import Normaliser
from monosem.processes import joined
from monosem.trainer import Plan, Preparation, RunSpec, Trainer
from monosem.variants import Recipe, make_variant

SKIPPED = 2  # first steps, in which kernels are compiled and moments are made
SMALL, LARGE = 1, 2**20  # numbers in an all-reduce
PLAN_BATCH = 8192  # tokens a step, over which the passes of Adam over all weights are spread


def rows(n: int, d_in: int) -> Tensor:
    """Return sums of few of 4 d_in directions, [n, d_in]."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(4 * d_in, d_in, generator=generator) / 4
    return torch.relu(torch.randn(n, 4 * d_in, generator=generator) - 2) @ directions


def seconds(what: Callable[[int], object], times: int, together: Axis) -> float:
    """Return the median time of `what(number)`, which all processes start together."""
    taken = []
    for number in range(times):
        together.wait()
        began = time.perf_counter()
        what(number)
        taken.append(time.perf_counter() - began)
    return median(taken[SKIPPED:])


def seconds_a_step(options: dict[str, Any], d_sae: int, mesh: Mesh, together: Axis) -> float:
    """Return the median time of a step of TopK."""
    x = rows(2 * options["batch"], options["d_in"])
    start = Preparation(Normaliser(), float(x.double().var(dim=0, correction=0).sum()), x[:1024])
    variant, plan = make_variant("topk", {"k": options["k"]}), Plan(options["batch"], options["steps"])
    spec = RunSpec("topk", "topk", variant, d_sae, 0, Recipe(lr=1e-4))
    trainer = Trainer(spec, plan, start, torch.device(options["device"]), mesh)
    batches = [x[part::2].contiguous().to(options["device"]) for part in range(2)]

    def step(number: int) -> None:
        trainer.step(batches[number % 2], number, log=False)
        if options["device"] == "cuda":
            torch.cuda.synchronize()

    return seconds(step, options["steps"], together)


def volume(options: dict[str, Any]) -> list[int]:
    """Return the bytes that a process gives to each collective of a step (docs/scale.md), scalars included."""
    n, d, k = options["batch"], options["d_in"], options["k"]
    return [4 * n * d, 4 * n * k, 4 * d, 4]


def collectives(sizes: list[int], latency: float, bandwidth: float) -> float:
    """Return the seconds of collectives of these bytes."""
    return sum(latency + size / bandwidth for size in sizes)


def work(rank: int, processes: int, port: int, options: dict[str, Any], out: Path) -> None:
    """Time steps alone beside the others, collectives, and steps together; the first process writes them."""
    torch.set_num_threads(1)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "WORLD_SIZE": processes, "LOCAL_RANK": rank}
    os.environ.update({name: str(value) for name, value in place.items()})
    with joined() as world:
        mesh, _, _ = world.meshes(1, processes, "cpu")
        alone = seconds_a_step(options, options["d_sae"] // processes, ALONE, mesh.both)
        numbers = torch.ones(LARGE)
        small, large = (seconds(lambda _, n=n: mesh.both.reduced(numbers[:n]), 12, mesh.both) for n in (SMALL, LARGE))
        before = world.traffic.all_reduce + world.traffic.all_gather
        step = seconds_a_step(options, options["d_sae"], mesh, mesh.both)
        sent = (world.traffic.all_reduce + world.traffic.all_gather - before) / options["steps"]
        if rank == 0:
            bandwidth = 4 * LARGE / max(large - small, 1e-9)
            found = {"alone": alone, "latency": small, "bandwidth": bandwidth, "step": step, "bytes": sent}
            out.write_text(json.dumps(found))


def measured(processes: int, options: dict[str, Any], out: Path) -> dict[str, float]:
    """Return what was measured with this many processes."""
    if processes == 1:
        alone, step = (seconds_a_step(options, options["d_sae"], ALONE, ALONE.both) for _ in range(2))
        return {"alone": alone, "latency": 0.0, "bandwidth": float("inf"), "step": step, "bytes": 0.0}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(work, (processes, port, options, out), nprocs=processes)
    return json.loads(out.read_text())


def compared(processes: int, options: dict[str, Any], out: Path) -> dict[str, Any]:
    """Return and print predicted and measured tokens a second."""
    found, sizes = measured(processes, options, out), volume(options) if processes > 1 else []
    exchange = collectives(sizes, found["latency"], found["bandwidth"])
    guess, fact = options["batch"] / (found["alone"] + exchange), options["batch"] / found["step"]
    print(
        f"{processes} processes: {guess:,.0f} tokens/s predicted, {fact:,.0f} measured ({fact / guess:.2f} of it); "
        f"{found['bytes'] / 1e6:.2f} MB a step and process by count, {sum(sizes) / 1e6:.2f} by formula, "
        f"{exchange / (found['alone'] + exchange):.1%} of the predicted time"
    )
    return {"processes": processes, "predicted": guess, "measured": fact, **found}


def predicted(processes: int, options: dict[str, Any], network: float, latency: float) -> dict[str, Any]:
    """Return and print predicted tokens a second for processes that each have a device like this one."""
    alone = seconds_a_step(options, options["d_sae"] // processes, ALONE, ALONE.both)
    exchange = collectives(volume(options), latency, network) if processes > 1 else 0.0
    guess = options["batch"] / (alone + exchange)
    share = exchange / (alone + exchange)
    print(f"{processes} processes: {guess:,.0f} tokens/s predicted, {share:.1%} of the time in collectives")
    return {"processes": processes, "predicted": guess, "alone": alone}


def print_plan(flops: float, memory: float, price: float) -> None:
    """Print memory, time and cost of one TopK SAE, and storage, as Markdown.

    flops: product of a device, FLOP/s; memory: its bandwidth, bytes/s; price: of it, dollars an hour.
    """
    print("| d_in | d_sae | GiB | GFLOP a token | microseconds a token | device hours | dollars |\n|" + "---|" * 7)
    for d_in in (576, 2304, 4096, 8192):
        for power in range(14, 25, 2):
            weights = 2 * d_in * 2**power
            product, adam = 2 * d_in * 2**power / flops, 28 * weights / memory / PLAN_BATCH
            hours = (product + adam) * 1e9 / 3600
            print(
                f"| {d_in} | 2^{power} | {16 * weights / 2**30:.1f} | {2 * d_in * 2**power / 1e9:.3g} | "
                f"{(product + adam) * 1e6:.2g} | {hours:.2g} | {hours * price:.2g} |"
            )
    print("\n| d_in | 1 B tokens | 4 B | 10 B | 40 B |\n|" + "---|" * 5)
    for d_in in (576, 2304, 4096, 8192):
        sizes = (f"{billions * (2 * d_in + 20) / 1000:.3g} TB" for billions in (1, 4, 10, 40))
        print(f"| {d_in} | {' | '.join(sizes)} |")


def main() -> None:
    """Print a line for each number of processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--d-in", type=int, default=576)
    parser.add_argument("--d-sae", type=int, default=16_384)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: for --predict only")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--predict", type=int, nargs="+", default=[], help="only predict, for so many processes")
    parser.add_argument("--network", type=float, default=50.0, help="GB/s, for --predict")
    parser.add_argument("--latency", type=float, default=20.0, help="microseconds a collective, for --predict")
    parser.add_argument("--plan", action="store_true", help="only print tables of memory, time, cost and storage")
    parser.add_argument("--flops", type=float, default=400.0, help="TFLOP/s that products reach, for --plan")
    parser.add_argument("--memory", type=float, default=2.3, help="TB/s that Adam reaches, for --plan")
    parser.add_argument("--price", type=float, default=3.0, help="dollars a device and hour, for --plan")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/scale.json"))
    options = vars(parser.parse_args())
    if options["plan"]:
        print_plan(options["flops"] * 1e12, options["memory"] * 1e12, options["price"])
        return
    out: Path = options.pop("json")
    out.parent.mkdir(parents=True, exist_ok=True)
    if options["device"] == "cpu":
        torch.set_num_threads(1)
    if options["predict"]:
        network, latency = options["network"] * 1e9, options["latency"] * 1e-6
        lines = [predicted(processes, options, network, latency) for processes in options["predict"]]
    else:
        lines = [compared(processes, options, out) for processes in options["processes"]]
    out.write_text(json.dumps({"cores": os.cpu_count(), **options, "lines": lines}, indent=1))


if __name__ == "__main__":
    if not dist.is_available():
        raise SystemExit("this build of torch has no torch.distributed")
    main()
