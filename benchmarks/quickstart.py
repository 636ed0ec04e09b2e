"""Times every stage of a study in a temporary folder, as a user runs it.

    python benchmarks/quickstart.py --study quickstart --json FILE

Records the seconds of each stage, the CPU seconds and peak memory of the whole command and the size of its folder. The
first run on a machine also makes the embedded model and corpus; run it twice and keep the second.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from command import exit_code

from monosem.store import read_json, write_json
from monosem.types import UserError


def measure(study: str, threads: int, settings: list[str]) -> dict[str, Any]:
    """Run `monosem compare STUDY` once and return what it took. Raises UserError with its last line if it fails."""
    environment = dict(os.environ)
    if threads:
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), str(threads))
    with tempfile.TemporaryDirectory(prefix="monosem-quickstart-") as temporary:
        folder = Path(temporary) / "study"
        command = [sys.executable, "-m", "monosem", "compare", study, "--out", str(folder)]
        command += [part for setting in settings for part in ("--set", setting)]
        began = time.perf_counter()
        with open(Path(temporary) / "output.txt", "w+") as output:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            seconds = time.perf_counter() - began
            output.seek(0)
            said = output.read().strip().splitlines()
        if process.returncode != 0:
            raise UserError(said[-1] if said else f"monosem compare {study} failed ({process.returncode})")
        stages = read_json(folder / "stages.json")
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        activations = sum(path.stat().st_size for path in (folder / "activations").rglob("*") if path.is_file())
    return {
        "stages": {name: stage["seconds"] for name, stage in stages.items()},
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "folder_bytes": size,
        "activations_bytes": activations,
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python benchmarks/quickstart.py", description="Time every stage of a study.")
    parser.add_argument("--study", default="quickstart", help="name or file of a study (tiny for a short try)")
    parser.add_argument("--threads", type=int, default=0, help="0: as the environment has it")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="passed on to monosem compare")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    return exit_code(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Measure, write the file and print the stages. Raises UserError."""
    load = os.getloadavg()[0]
    measured = measure(options.study, options.threads, options.set)
    from record import surroundings  # imports torch: only now, the child's peak starts from what its parent held

    settings = {"study": options.study, "threads": options.threads or None, "set": options.set}
    result = {**measured, **surroundings(load), "settings": settings}
    if options.json:
        write_json(options.json, result)
    for name, seconds in measured["stages"].items():
        print(f"{name:<10} {seconds:8.1f} s")
    print(f"{'all':<10} {measured['seconds']:8.1f} s, {measured['cpu_seconds']:.1f} CPU-s")
    print(f"peak memory {measured['peak_bytes'] / 1e6:,.0f} MB, folder {measured['folder_bytes'] / 1e6:,.0f} MB")


if __name__ == "__main__":
    sys.exit(main())
