"""Does the 8-bit first look ever change what TopK selects? Trains on stored activations and compares every token.

    python benchmarks/exactness.py STUDY_DIR --d-sae 4608 --k 32 --tokens 10000000 --json FILE

Before each training step, the features that the kernels select for each token of the batch are compared with those of
a float32 product and `torch.topk`. A token on which they differ is a *tie* if the features that were exchanged have
pre-activations (in float64) closer than float32 rounding tells apart, else a *miss*. The kernels fall back to nothing:
`candidates` is how many products a token took exactly.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command import exit_code
from record import surroundings
from torch import Tensor

from monosem.activations import open_activations, training_order
from monosem.kernels import cpu, search
from monosem.kernels.settings import describe
from monosem.store import write_json
from monosem.train import prepare
from monosem.trainer import Plan, RunSpec, Trainer
from monosem.types import UserError
from monosem.variants import make_variant

ROUNDING = 2e-6  # of |x| |w_i|: float32 sums of d_in terms in whatever order


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("study", type=Path, help="a study folder with activations")
    parser.add_argument("--d-sae", type=int, default=4608)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--train-every", type=int, default=1, help="train on every so many batches, compare on all")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    return exit_code(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Train and compare, print the counts and write the file. Raises UserError."""
    load = os.getloadavg()[0]
    result = measure(options)
    print(result)
    if options.json:
        write_json(options.json, {**result, **surroundings(load)})


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train and compare; return the counts. Raises UserError."""
    for name in ("d_sae", "k", "batch", "tokens", "train_every"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be at least 1")
    if not (options.study / "activations" / "meta.json").exists():
        raise UserError(f"{options.study}: no activations there; run `monosem harvest` first")
    store = open_activations(options.study / "activations", "train")
    steps = -(-options.tokens // options.batch)
    plan = Plan(options.batch, steps)
    variant = make_variant("topk", {"k": options.k})
    start = prepare(store, plan)
    spec = RunSpec("run", "topk", variant, options.d_sae, 0, replace(variant.recipe(options.d_sae), lr=1e-3))
    trainer = Trainer(spec, plan, start, torch.device("cpu"))
    counted = count_candidates()
    counts = {"tokens": 0, "identical": 0, "ties": 0, "misses": 0}
    began = time.perf_counter()
    for step, index in enumerate(training_order(store.n, options.batch, steps, capacity=2**19, seed=0)):
        x = start.normaliser.apply(store.rows(index))[0]
        for name, value in compare(trainer, x, options.k).items():
            counts[name] += value
        if step % options.train_every == 0:
            trainer.step(x, step, False)
        if step % 100 == 0 or step == steps - 1:
            seconds = time.perf_counter() - began
            print(f"{step + 1} of {steps} steps, {counts}, {seconds:.0f} s", file=sys.stderr, flush=True)
    looked_at = sum(n for n, _ in counted)
    return {
        **counts,
        "candidates_per_token": sum(work for _, work in counted) / looked_at,
        "d_sae": options.d_sae,
        "k": options.k,
        "train_steps": -(-steps // options.train_every),
        "kernels": describe(),
    }


def count_candidates() -> list[tuple[int, int]]:
    """Have every search append (tokens, products computed exactly) to the list that is returned."""
    seen: list[tuple[int, int]] = []
    top_candidates = search.top_candidates

    def counting(products: np.ndarray, *rest: Any) -> int:
        work = top_candidates(products, *rest)
        seen.append((len(products), work))
        return work

    cpu.search.top_candidates = counting
    return seen


@torch.no_grad()
def compare(trainer: Trainer, x: Tensor, k: int) -> dict[str, int]:
    """Return how many tokens of a batch get the same features from the kernels and from torch.topk."""
    w = trainer.weights
    ours = trainer.spec.variant.encode(w, x).indices.sort(dim=1).values  # type: ignore[union-attr]
    h = torch.addmm(w["b_enc"], x - w["b_dec"], w["W_enc"])
    theirs = h.topk(k, dim=1, sorted=False).indices.sort(dim=1).values
    differ = (ours != theirs).any(dim=1).nonzero().squeeze(1)
    misses = sum(not _tied(x[t] - w["b_dec"], ours[t], theirs[t], w) for t in differ)
    n = len(x)
    return {"tokens": n, "identical": n - len(differ), "ties": len(differ) - misses, "misses": misses}


def _tied(c: Tensor, ours: Tensor, theirs: Tensor, w: dict[str, Tensor]) -> bool:
    """Whether the features in one selection only, for a centred token c [d_in], are equal within float32 rounding."""
    exchanged = torch.tensor(sorted(set(ours.tolist()) ^ set(theirs.tolist())))
    columns = w["W_enc"][:, exchanged].double()
    h = c.double() @ columns + w["b_enc"][exchanged].double()
    return bool(h.max() - h.min() <= ROUNDING * c.norm() * columns.norm(dim=0).max())


if __name__ == "__main__":
    sys.exit(main())
