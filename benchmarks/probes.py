"""Time the 1-d probes of every feature beside scikit-learn's regressions, one at a time.

    python benchmarks/probes.py --tasks 24 --features 16384 --texts 1000 --json probes.json

Columns are as SAEs make them: normal ones, and rectified ones that are silent on most texts, with a class difference
that varies from none to clear. scikit-learn's time is that of `--sample` features spread over the columns,
extrapolated; its regression has no penalty, and the columns are standardised for it. The largest difference between the
losses of these features is printed, too. Ours is compiled before the clock starts; making the columns is not counted.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from command import exit_code
from record import surroundings

from monosem.evals.probes import fit_1d
from monosem.store import write_json


def columns(texts: int, features: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return codes float32 [texts, features], half of them rectified, and balanced labels [texts]."""
    rng = np.random.default_rng(seed)
    labels = np.arange(texts) % 2
    effect = rng.exponential(0.3, features).astype(np.float32)
    codes = rng.standard_normal((texts, features), dtype=np.float32) + labels[:, None].astype(np.float32) * effect
    rectified = slice(0, features // 2)
    codes[:, rectified] = np.maximum(codes[:, rectified] - rng.uniform(0, 2.5, features // 2).astype(np.float32), 0)
    return codes, labels


def by_scikit_learn(codes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the loss of each column by a loop over scikit-learn's regression without a penalty."""
    from sklearn.linear_model import LogisticRegression

    found = []
    for x in codes.T.astype(np.float64):
        z = ((x - x.mean()) / (x.std() or 1))[:, None]
        model: Any = LogisticRegression(C=np.inf, max_iter=1000).fit(z, labels)
        logits = model.decision_function(z)
        found.append(np.mean(np.logaddexp(0, logits) - labels * logits))
    return np.array(found)


def measure(tasks: int, features: int, texts: int, sample: int) -> dict[str, Any]:
    """Return the seconds of both for `tasks` tasks of so many features and texts."""
    load = os.getloadavg()[0]
    fit_1d(*columns(64, 64, 0))
    by_scikit_learn(*columns(64, 4, 0))
    seconds = cpu = 0.0
    codes, labels, ours = np.zeros((0, 0)), np.zeros(0), np.zeros(0)
    for task in range(tasks):
        codes, labels = columns(texts, features, task)
        began, busy = time.perf_counter(), time.process_time()
        ours = fit_1d(codes, labels)
        seconds += time.perf_counter() - began
        cpu += time.process_time() - busy
    some = np.linspace(0, features - 1, sample).astype(np.int64)
    began = time.perf_counter()
    theirs = by_scikit_learn(codes[:, some], labels)
    each = (time.perf_counter() - began) / sample
    return {
        "tasks": tasks,
        "features": features,
        "texts": texts,
        "ours_seconds": seconds,
        "ours_cpu_seconds": cpu,
        "sample": sample,
        "scikit_learn_seconds_extrapolated": each * tasks * features,
        "ratio": each * tasks * features / seconds,
        "largest_difference": float(np.abs(ours[some] - theirs).max()),
        **surroundings(load),
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=24)
    parser.add_argument("--features", type=int, default=16_384)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--sample", type=int, default=400, help="features that scikit-learn fits (400)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    found = measure(options.tasks, options.features, options.texts, options.sample)
    size = f"{found['tasks']} tasks x {found['features']:,} features x {found['texts']:,} texts"
    print(f"ours: {found['ours_seconds']:.1f} s ({found['ours_cpu_seconds']:.1f} CPU-s) for {size}")
    print(
        f"scikit-learn, a loop: {found['scikit_learn_seconds_extrapolated']:,.0f} s (from {found['sample']} features)"
    )
    print(f"ratio: {found['ratio']:,.0f}; largest difference of the losses: {found['largest_difference']:.1e} nats")
    if options.json:
        write_json(options.json, found)


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
