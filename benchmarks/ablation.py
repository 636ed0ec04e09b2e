"""Time exact ablation effects against a loop of whole forward passes, one a feature, in the same float32 and threads.

    python benchmarks/ablation.py [--threads 1] [--positions 3] [--features 32] --json ablation.json

Loop: `Model.run` over the whole row with the vector taken out at one position, logits of all positions, median by
torch, norms. Cut loop: the same on the row up to the last position that is looked at. Ours: what the evaluation
`ablation` does; the prefix of a sequence, which serves all runs of a study, is timed by itself. All run in one process
in turns.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from command import exit_code
from torch import Tensor

from monosem.environment import describe
from monosem.evals.ablation.effects import ablate
from monosem.evals.ablation.positions import SPAN
from monosem.evals.ablation.suffix import Suffix, in_float32, start_at
from monosem.model import Model, Site, load_model
from monosem.sources import documents
from monosem.store import write_json
from monosem.text import pack

T = TypeVar("T")


class Clock:
    """Sums wall and CPU seconds (all threads) by name. CPU seconds stand a busy machine better."""

    def __init__(self) -> None:
        """Start at nothing."""
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    def __call__(self, name: str, work: Callable[[], T]) -> T:
        """Do some work and add its time."""
        wall, cpu = time.perf_counter(), time.process_time()
        done = work()
        self.wall[name] = self.wall.get(name, 0.0) + time.perf_counter() - wall
        self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() - cpu
        return done

    def ratio(self, slow: str, *fast: str) -> dict[str, float]:
        """Return how many times as long the first takes as the others together."""
        return {
            clock: times[slow] / sum(times[name] for name in fast)
            for clock, times in (("wall", self.wall), ("cpu", self.cpu))
        }


@torch.no_grad()
def loop(model: Model, site: Site, tokens: Tensor, at: int, removed: Tensor) -> tuple[Tensor, list[float]]:
    """Return the effects on the logits [m, SPAN, V] and their sparsities, one whole forward pass each."""
    seen = slice(at, at + SPAN)
    base = model.run(tokens)[0, seen]
    changes, sparsities = [], []
    for vector in removed:

        def edit(x: Tensor, vector: Tensor = vector) -> Tensor:
            x = x.clone()
            x[:, at] -= vector
            return x

        change = model.run(tokens, site, edit)[0, seen] - base
        centred = change - change.median(dim=-1, keepdim=True).values
        l1, l2 = centred.abs().sum(), centred.square().sum().sqrt()
        sparsities.append(float((l1 / l2) ** 2 / centred.numel()))
        changes.append(change)
    return torch.stack(changes), sparsities


@torch.no_grad()
def difference(suffix: Suffix, removed: Tensor, expected: Tensor) -> float:
    """Return the largest difference of effects on any logit."""
    logits = suffix.logits(torch.cat([torch.zeros_like(removed[:1]), removed]))
    return float((logits[1:] - logits[0] - expected).abs().max())


def one_position(model: Model, site: Site, tokens: Tensor, at: int, features: int, clock: Clock) -> dict[str, float]:
    """Time both loops and ours at one position; return how far the results are apart."""
    cut = tokens[:, : at + SPAN + 1]
    start = clock("prefix", lambda: start_at(model, site, cut, at))
    directions = torch.randn(features, len(start.x), generator=torch.Generator().manual_seed(at))
    removed = 0.1 * start.x.norm() * torch.nn.functional.normalize(directions, dim=1)
    suffix = Suffix(model, site, cut, at, start)
    found = clock("ours", lambda: list(ablate(suffix, removed)))
    expected, sparsities = clock("loop", lambda: loop(model, site, tokens, at, removed))
    clock("cut_loop", lambda: loop(model, site, cut, at, removed))
    return {
        "largest_difference": difference(suffix, removed, expected),
        "largest_difference_sparsity": max(abs(a.sparsity - b) for a, b in zip(found, sparsities, strict=True)),
        "largest_effect": float(expected.abs().max()),
    }


def main() -> None:
    """Parse the command line, time, print, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="", help="local folder or id; the embedded model when left out")
    parser.add_argument("--site", default="blocks.10.hook_resid_post")
    parser.add_argument("--text", default="", help="file, folder or glob; the embedded corpus when left out")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--positions", type=int, default=3)
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = in_float32(load_model(args.model, device="cpu"))
    site, wanted = model.site(args.site), args.context * (args.positions + 1)
    packed = pack(
        documents(args.text), model.tokenizer, context=args.context, train_tokens=wanted, eval_tokens=args.context
    )
    rows = torch.from_numpy(packed.train.tokens[: args.positions + 1].astype("int64"))
    places = torch.linspace(8, args.context - SPAN - 1, len(rows)).int().tolist()
    one_position(model, site, rows[:1], places[0], 2, Clock())  # compiles, allocates
    clock = Clock()
    each = [one_position(model, site, rows[i : i + 1], places[i], args.features, clock) for i in range(1, len(rows))]
    largest = {name: max(one[name] for one in each) for name in each[0]}
    number = args.features * len(each)
    ratios = {
        "loop_to_ours": clock.ratio("loop", "ours"),
        "loop_to_ours_with_prefix": clock.ratio("loop", "ours", "prefix"),
        "cut_loop_to_ours": clock.ratio("cut_loop", "ours"),
    }
    for name in ("loop", "cut_loop", "ours"):
        print(
            f"{name:9} {1e3 * clock.wall[name] / number:8.1f} ms an ablation, {1e3 * clock.cpu[name] / number:.1f} CPU"
        )
    print(f"prefix    {1e3 * clock.wall['prefix'] / len(each):8.1f} ms a sequence")
    for name, found in ratios.items():
        print(f"{name:28} {found['wall']:.1f} in wall time, {found['cpu']:.1f} in CPU time")
    for name, value in largest.items():
        print(f"{name:28} {value:.3g}")
    if args.json:
        facts = {"site": site.name, "context": args.context, "threads": args.threads, "ablations": number}
        seconds = {"wall": clock.wall, "cpu": clock.cpu}
        write_json(args.json, {**facts, "seconds": seconds, **ratios, **largest, "environment": describe()})


if __name__ == "__main__":
    sys.exit(exit_code(main))
