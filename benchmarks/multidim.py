"""Time the search for multi-dimensional features: clusters of decoder rows, their planes, the indices of each plane.

    python benchmarks/multidim.py [--full] [--processes 2] [--tokens 20000] --json multidim.json

Clustering (graph): 16,384 random rows of width 576, in this process, on the threads that numpy has (OMP_NUM_THREADS).
Planes and indices: clusters of 16 features of which 2 fire at each of 20,000 tokens, from arrays in memory, 50 clusters
or with --full 1,000, shared by processes of one thread each. Wall time there includes making the arrays.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from command import exit_code

from monosem.environment import describe
from monosem.evals.multidim.clusters import cluster_decoder
from monosem.evals.multidim.planes import planes, score
from monosem.store import write_json
from monosem.types import UserError

FEATURES, WIDTH, ROWS = 16, 576, 16_384


def one_cluster(number: int, tokens: int, bins: int) -> tuple[float, float, int]:
    """Return (seconds for the planes, seconds for the indices, planes) of a random cluster."""
    rng = np.random.default_rng(number)
    rows = rng.standard_normal((FEATURES, WIDTH)) / WIDTH**0.5
    token, feature = np.divmod(np.flatnonzero(rng.random(tokens * FEATURES) < 2 / FEATURES), FEATURES)
    values = rng.exponential(size=len(token)).astype(np.float32)
    start = time.perf_counter()
    found = planes(rows, token, feature, values)
    middle = time.perf_counter()
    scored = score(found.coordinates, bins)
    return middle - start, time.perf_counter() - middle, len(scored.planes)


def cluster_seconds() -> float:
    """Return how long the clusters of 16,384 rows take."""
    W_dec = np.random.default_rng(0).standard_normal((ROWS, WIDTH), dtype=np.float32)
    start = time.perf_counter()
    cluster_decoder(W_dec)
    return time.perf_counter() - start


def main() -> None:
    """Parse the command line, time, print, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--full", action="store_true", help="1,000 clusters instead of 50")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=20_000, help="in a cluster")
    parser.add_argument("--bins", type=int, default=10)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.processes < 1 or args.tokens < 1000:
        raise UserError(f"--processes {args.processes} --tokens {args.tokens}: at least 1 process and 1,000 tokens")
    clustering, clusters = cluster_seconds(), 1000 if args.full else 50
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of the processes that start now
    with ProcessPoolExecutor(args.processes, multiprocessing.get_context("spawn")) as pool:
        work = partial(one_cluster, tokens=args.tokens, bins=args.bins)
        list(pool.map(work, range(2 * args.processes)))  # imports, allocates
        start = time.perf_counter()
        seconds = np.array(list(pool.map(work, range(clusters))))
        wall = time.perf_counter() - start
    of_planes, of_indices, count = seconds.sum(0)
    print(f"clusters of {ROWS:,} rows  {clustering:8.2f} s")
    print(f"planes      {1e3 * of_planes / clusters:8.1f} ms a cluster")
    print(f"indices     {1e3 * of_indices / clusters:8.1f} ms a cluster, {1e3 * of_indices / count:.1f} ms a plane")
    print(f"{clusters:,} clusters, {args.processes} processes: {wall:.1f} s")
    if args.json:
        facts = {"clusters": clusters, "planes": int(count), "tokens": args.tokens, "processes": args.processes}
        taken = {"clustering": clustering, "planes": of_planes, "indices": of_indices, "wall": wall}
        write_json(args.json, {**facts, "bins": args.bins, "seconds": taken, "environment": describe()})


if __name__ == "__main__":
    sys.exit(exit_code(main))
