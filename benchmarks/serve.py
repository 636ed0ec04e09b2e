"""Times the browser of features: the real server on a study, random feature pages, and its memory.

    python benchmarks/serve.py STUDY_DIR [--run NAME] [--pages 50] [--rows N] [--json FILE]

--rows N writes a run `synthetic` of about N code rows into a copy of the study (in a temporary folder) and times that.
Prints the median and the 95 % time of whole HTTP requests, and the server's resident memory before the first feature
page (after the home page) and after all of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from monosem.app.study import Study
from monosem.firings import FiringsWriter, codes_header
from monosem.store import file_hash

SYNTHETIC = "synthetic"
ROWS_A_TOKEN = 100


class Server:
    """`monosem serve` in a process of its own, on a free port."""

    def __init__(self, folder: Path):
        """Start it and wait until it answers."""
        command = [sys.executable, "-m", "monosem", "serve", str(folder), "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        line = ""
        while "Ctrl-C" not in line:
            line = self.process.stdout.readline()
            if not line:
                raise SystemExit(f"the server did not start: {self.process.wait()}")
        self.address = next(word for word in line.split() if word.startswith("http")).rstrip("/")

    def seconds(self, path: str) -> float:
        """Return how long a whole request takes."""
        began = time.perf_counter()
        with urllib.request.urlopen(self.address + path) as answer:
            answer.read()
        return time.perf_counter() - began

    def memory(self) -> float:
        """Return the resident memory, MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024

    def stop(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait(10)


def add_synthetic(source: Path, target: Path, rows: int) -> None:
    """Copy what the server reads of a study, and add a run of about `rows` firings.

    The held-out text is repeated until no more than ROWS_A_TOKEN features fire on a token. Densities follow a power
    law, as those of real runs do.
    """
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("train-*", "eval-*", "checkpoint", "report.html"))
    like = next(iter(Study(target).runs().values()))
    shutil.copytree(target / "saes" / like.name, target / "saes" / SYNTHETIC)
    tokens = Study(target).passages().tokens
    repeat_text(target / "codes", -(-rows // (ROWS_A_TOKEN * tokens)))
    doc, pos = Study(target).passages().measured_positions()
    tokens, d_sae = len(doc), like.d_sae
    density = (np.arange(d_sae) + 3.0) ** -0.8
    for _ in range(50):  # what a token can't hold goes to the other features
        density = np.minimum(density * rows / (density.sum() * tokens), 1.0)
    rng = np.random.default_rng(0)
    writer = FiringsWriter(target, SYNTHETIC, d_sae, codes_header(target, like.name) or {})
    for feature, share in enumerate(density):
        here = np.flatnonzero(rng.random(tokens, dtype=np.float32) < share)
        value = rng.gamma(1.0, 1.0, len(here)).astype(np.float32) + 0.01
        writer.add(np.full(len(here), feature), doc[here], pos[here], value)
    writer.finish(tokens)


def repeat_text(codes: Path, times: int) -> None:
    """Write the held-out text `times` times over, each time as other documents."""
    path = codes / "passages.parquet"
    once = pl.read_parquet(path)
    documents, rows = (int(once[name].max()) + 1 for name in ("doc", "row"))  # pyright: ignore[reportArgumentType]
    again = [once.with_columns(pl.col("doc") + i * documents, pl.col("row") + i * rows) for i in range(times)]
    pl.concat(again).cast(once.schema).write_parquet(path)  # pyright: ignore[reportArgumentType]
    facts = json.loads((codes / "passages.json").read_text(encoding="utf-8"))
    facts["sha256"][path.name] = file_hash(path)
    (codes / "passages.json").write_text(json.dumps(facts), encoding="utf-8")


def measure(folder: Path, run: str, pages: int) -> dict[str, Any]:
    """Return the times of random feature pages of a run, and the server's memory."""
    study = Study(folder)
    firings = study.firings(run)
    alive = np.flatnonzero(firings.counts)
    chosen = np.random.default_rng(0).choice(alive, min(pages, len(alive)), replace=False)
    server = Server(folder)
    try:
        server.seconds("/")
        base = server.memory()
        first = server.seconds(f"/run/{run}/feature/{alive[0]}")
        times = np.array([server.seconds(f"/run/{run}/feature/{i}") for i in chosen]) * 1000
        densest = server.seconds(f"/run/{run}/feature/{int(firings.counts.argmax())}")
        table = server.seconds(f"/run/{run}?sort=density&order=desc")
        near = server.seconds(f"/run/{run}/feature/{alive[0]}/near")
        after = server.memory()
    finally:
        server.stop()
    return {
        "run": run,
        "rows": firings.rows,
        "tokens": firings.tokens,
        "features": firings.d_sae,
        "pages": len(chosen),
        "first_ms": round(first * 1000, 1),
        "median_ms": round(float(np.median(times)), 1),
        "p95_ms": round(float(np.quantile(times, 0.95)), 1),
        "densest_ms": round(densest * 1000, 1),
        "table_ms": round(table * 1000, 1),
        "nearest_ms": round(near * 1000, 1),
        "memory_before_mib": round(base),
        "memory_after_mib": round(after),
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Time the browser of features.")
    parser.add_argument("study", type=Path, metavar="STUDY_DIR")
    parser.add_argument("--run", help="the run to look at; default: the one with the most code rows")
    parser.add_argument("--pages", type=int, default=50, help="random feature pages (50)")
    parser.add_argument("--rows", type=int, default=0, help="write and time a synthetic run of so many code rows")
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, run = options.study, options.run
        if options.rows:
            folder, run = Path(scratch) / "study", SYNTHETIC
            add_synthetic(options.study, folder, options.rows)
        study = Study(folder)
        run = run or max(study.runs(), key=lambda name: study.firings(name).rows)
        found = measure(folder, run, options.pages)
    for name, value in found.items():
        print(f"{name:20} {value:,}" if isinstance(value, int | float) else f"{name:20} {value}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
