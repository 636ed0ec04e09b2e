"""Reads mutated files of every format and counts how that ends: an SAE, a UserError, or anything else, which fails.

    python benchmarks/fuzz_formats.py --files 100000 --workers 2

Valid small files are mutated with a seed: bytes, lengths, JSON, safetensors headers, members of archives (with valid
checksums), instructions of pickles, whole files. Each result is read with `monosem.load_sae` and, when that succeeds,
used on activations. Fails too: ten seconds for one file, an allocation beyond the limit, an error message that isn't
one printable line, a process that dies. What failed stays in --keep, with its number: `--first N --files 1` repeats it.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from mutations import mutated
from valid_files import valid_files

import monosem
from monosem.types import UserError

SECONDS = 10
HEADROOM = 3 * 2**29
"""Address space beyond what a process has at the start: 1.5 GiB. The files have a few KiB."""


def outcome(folder: Path) -> str:
    """Return "sae" or "refused" for the files in a folder; raises whatever else happens, and for a bad message."""
    try:
        sae = monosem.load_sae(folder)
        if sae.d_in * sae.d_sae < 2**20:
            x = torch.ones(3, sae.d_in)
            assert sae(x).shape == x.shape
            assert sae.encode(x).shape == (3, sae.d_sae)
        return "sae"
    except UserError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, MemoryError) or "allocate" in str(cause):
                raise MemoryError("the file made the reader ask for more memory than there is") from error
            cause = cause.__cause__
        text = str(error)
        assert text.isprintable(), f"not one printable line: {text!r}"
        assert len(text) < 1000, f"a long message: {text!r}"
        assert str(folder) in text, f"doesn't name the file: {text!r}"
        return "refused"


@contextmanager
def limits(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in what takes longer."""

    def late(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} seconds")

    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def fuzz(numbers: range, seed: int, keep: Path) -> tuple[Counter[str], list[str]]:
    """Read the mutated files with these numbers; return how often "format outcome" came, and the failures."""
    valid, counts, failures = valid_files(), Counter[str](), []
    names = sorted(valid)
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory) as base, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in numbers:
            kind = names[number % len(names)]
            rng = random.Random(f"{seed} {number}")
            folder = Path(base) / "layers.3"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for name, data in mutated(valid[kind], rng, valid).items():
                (folder / name).write_bytes(data)
            (Path(base) / "number").write_text(str(number))
            faulthandler.dump_traceback_later(4 * SECONDS, exit=True)
            try:
                with limits(SECONDS):
                    ended = outcome(folder)
            except BaseException as error:  # a panic of Rust is none of Exception
                if isinstance(error, KeyboardInterrupt):
                    raise
                ended = "FAILED"
                failures.append(f"{number} ({kind}): {type(error).__name__}: {str(error)[:300]}")
                shutil.copytree(folder, keep / f"{seed}-{number}", dirs_exist_ok=True)
            finally:
                faulthandler.cancel_dump_traceback_later()
            counts[f"{kind.split(':')[0]} {ended}"] += 1
    return counts, failures


def limited(headroom: int) -> None:
    """Keep this process from growing by more than `headroom` bytes of address space."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + headroom
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def work(numbers: range, seed: int, keep: Path, ended: Any) -> None:
    """What one process does: its part, the result into a queue."""
    torch.set_num_threads(1)
    fuzz(range(numbers.start, numbers.start + 50), seed, keep)  # what is loaded once doesn't count as memory
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limited(HEADROOM)
    counts, failures = fuzz(numbers, seed, keep)
    ended.put((counts, failures, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000, help="how many mutated files are read")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="where files that fail are kept")
    given = parser.parse_args()
    start, context = time.monotonic(), multiprocessing.get_context("spawn")
    ended = context.Queue()
    bounds = [given.first + given.files * i // given.workers for i in range(given.workers + 1)]
    parts = [range(a, b) for a, b in pairwise(bounds)]
    processes = [context.Process(target=work, args=(part, given.seed, given.keep, ended)) for part in parts]
    for process in processes:
        process.start()
    results = []
    while len(results) < len(processes) and any(process.is_alive() or not ended.empty() for process in processes):
        try:
            results.append(ended.get(timeout=1))
        except Exception:  # queue.Empty, of a module that multiprocessing doesn't name
            continue
    for process in processes:
        process.join()
    counts = sum((result[0] for result in results), Counter[str]())
    failures = [line for result in results for line in result[1]]
    failures += [f"a process ended with exit code {p.exitcode}" for p in processes if p.exitcode != 0]
    forms = sorted({key.split()[0] for key in counts})
    print(f"{'format':24}{'files':>9}{'an SAE':>9}{'UserError':>11}{'else':>6}")
    for form in forms:
        row = [counts[f"{form} {ended}"] for ended in ("sae", "refused", "FAILED")]
        print(f"{form:24}{sum(row):>9,}{row[0]:>9,}{row[1]:>11,}{row[2]:>6,}")
    print(json.dumps({"files": counts.total(), "failures": len(failures)}), end=" ")
    grown = max((result[2] for result in results), default=0.0)
    print(f"{time.monotonic() - start:.0f} s, at most {grown:.0f} MiB more memory than at the start, pid {os.getpid()}")
    print("\n".join(failures[:50]), file=sys.stderr)
    return 1 if failures or counts.total() != given.files else 0


if __name__ == "__main__":
    sys.exit(main())
