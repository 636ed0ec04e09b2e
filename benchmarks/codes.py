"""Write synthetic codes as the measure stage does and read single features back.

    python benchmarks/codes.py --rows 100_000_000 --json codes.json

Densities are spread as in trained SAEs: log-normal over the features, a few firing on a third of the tokens. Rows are
added in the order of the text, a batch of tokens at a time. Reading is done by a process of its own, so that the memory
it reports (resident, above what it had before it opened the codes) holds nothing of the writing. A feature is read once
before the clock starts; files are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from command import exit_code

from monosem.firings import FiringsWriter, open_firings
from monosem.store import write_json
from monosem.types import UserError

BATCH_ROWS = 200_000  # 2,048 tokens at an L0 of 100
TOKENS_A_DOCUMENT = 400
L0 = 50
MIB = 2**20


def firings(rows: int, d_sae: int, seed: int = 0) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield (feature, doc, pos, value), about `rows` rows in all, a batch of tokens at a time."""
    rng = np.random.default_rng(seed)
    density = np.minimum(rng.lognormal(0, 1.5, d_sae), 400)
    share = np.cumsum(density / density.sum())
    tokens = BATCH_ROWS // L0
    for start in range(0, rows // L0, tokens):
        wanted = min(BATCH_ROWS, rows - start * L0)
        feature = np.minimum(np.searchsorted(share, rng.random(wanted)), d_sae - 1)
        entry = np.unique(rng.integers(0, tokens, wanted) * d_sae + feature)  # a feature fires once on a token
        token, feature = entry // d_sae + start, entry % d_sae
        yield feature, token // TOKENS_A_DOCUMENT, token % TOKENS_A_DOCUMENT, rng.lognormal(0, 0.7, len(entry))


def resident() -> float:
    """Return this process's resident memory, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def peak() -> float:
    """Return the most resident memory that this process has had, in MiB; mapped file pages count."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def write(folder: Path, rows: int, d_sae: int) -> dict[str, Any]:
    """Write the codes; return rows, seconds of adding and finishing (without making the rows), bytes, peak memory."""
    before = resident()
    writer = FiringsWriter(folder, "synthetic", d_sae, {"version": 1, "sae": ""})
    adding = 0.0
    for batch in firings(rows, d_sae):
        began = time.perf_counter()
        writer.add(*batch)
        adding += time.perf_counter() - began
    began = time.perf_counter()
    writer.finish(rows // L0)
    finishing = time.perf_counter() - began
    size = sum(path.stat().st_size for path in (folder / "codes").rglob("*.*"))
    return {
        "rows": writer.rows,
        "add_seconds": adding,
        "finish_seconds": finishing,
        "rows_per_second": writer.rows / (adding + finishing),
        "bytes_per_row": size / writer.rows,
        "peak_mib": peak() - before,
    }


def read(folder: Path, features: int) -> dict[str, Any]:
    """Open the codes, read random features; return latencies in milliseconds and memory above the start in MiB."""
    before = resident()
    began = time.perf_counter()
    codes = open_firings(folder, "synthetic")
    opening = time.perf_counter() - began
    opened = resident()
    rng = np.random.default_rng(1)
    codes.of(0)
    latencies, most = [], 0
    for feature in rng.integers(0, codes.d_sae, features).tolist():
        began = time.perf_counter()
        fires = codes.of(feature)
        latencies.append(1000 * (time.perf_counter() - began))
        most = max(most, len(fires.doc))
    densest = int(codes.counts.argmax())
    began = time.perf_counter()
    codes.of(densest)
    return {
        "open_ms": 1000 * opening,
        "median_ms": float(np.median(latencies)),
        "p95_ms": float(np.percentile(latencies, 95)),
        "most_rows": most,
        "densest_rows": int(codes.counts[densest]),
        "densest_ms": 1000 * (time.perf_counter() - began),
        "mib_opened": opened - before,
        "mib_read": resident() - before,
        "peak_mib": peak() - before,
    }


def main() -> None:
    """Parse the command line, write, read in a new process, print, write JSON, delete the codes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--d-sae", type=int, default=16_384)
    parser.add_argument("--features", type=int, default=50, help="random features that are read")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/monosem-codes"))
    parser.add_argument("--only-read", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.only_read:
        print(json.dumps(read(args.folder, args.features)))
        return
    if args.folder.exists() and any(args.folder.iterdir()):
        raise UserError(f"--folder {args.folder}: holds other files; name a new folder")
    if args.rows < L0:
        raise UserError(f"--rows {args.rows}: write at least {L0}")
    from record import surroundings

    load = os.getloadavg()[0]
    result: dict[str, Any] = {"d_sae": args.d_sae, "write": write(args.folder, args.rows, args.d_sae)}
    wrote = result["write"]
    print(
        f"wrote {wrote['rows']:,} rows at {wrote['rows_per_second']:,.0f} rows/s ({wrote['add_seconds']:.1f} s adding, "
        f"{wrote['finish_seconds']:.1f} s finishing), {wrote['bytes_per_row']:.2f} bytes a row, "
        f"{wrote['peak_mib']:,.0f} MiB at the peak",
        flush=True,
    )
    again = [sys.executable, __file__, "--only-read", "--folder", str(args.folder), "--features", str(args.features)]
    done = subprocess.run(again, stdout=subprocess.PIPE, check=True)
    result["read"] = json.loads(done.stdout)
    print(
        "opened in {open_ms:.1f} ms, a feature in {median_ms:.2f} ms (median), {p95_ms:.2f} ms (95 %), the densest "
        "({densest_rows:,} rows) in {densest_ms:.1f} ms; memory +{mib_opened:.1f} MiB opened, +{mib_read:.1f} MiB "
        "after reading, +{peak_mib:.1f} MiB at the peak".format(**result["read"])
    )
    if args.json:
        write_json(args.json, {**result, **surroundings(load)})
    shutil.rmtree(args.folder)


if __name__ == "__main__":
    sys.exit(exit_code(main))
