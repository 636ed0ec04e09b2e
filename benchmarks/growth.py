"""Cost of our TopK step a token against the width, with the encoder product beside it.

    python benchmarks/growth.py --json benchmarks/results/growth.json

Runs train_step.py for d_sae = 2^12 to 2^17, one process each, and puts all rows into one file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from command import exit_code
from table import text_table

from monosem.store import read_json, write_json
from monosem.types import UserError

STEP = Path(__file__).resolve().parent / "train_step.py"


def measure(options: argparse.Namespace, rest: list[str]) -> dict[str, Any]:
    """Return the rows of all widths in one result; `rest` goes to train_step.py as it is."""
    results = []
    with tempfile.TemporaryDirectory(prefix="monosem-growth-") as folder:
        for power in range(options.low, options.high + 1):
            path = Path(folder) / f"{power}.json"
            command = [sys.executable, str(STEP), "--variant", options.variant, "--d-sae", str(2**power), *rest]
            command += ["--seconds", str(options.seconds), "--peers", options.peers, "--json", str(path)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise UserError(done.stderr.strip().splitlines()[-1])
            results.append(read_json(path))
            print(f"d_sae {2**power:,}: {results[-1]['rows'][0]['tokens_per_cpu_second']:,.0f} tokens a CPU-second")
    settings = {**results[0]["settings"], "d_sae": [2**power for power in range(options.low, options.high + 1)]}
    return {**results[0], "rows": [row for result in results for row in result["rows"]], "settings": settings}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/growth.py",
        description="Cost a token against the width.",
        epilog="Other options (--threads, --batch, --activations ...) go to train_step.py.",
    )
    parser.add_argument("--variant", default="topk")
    parser.add_argument("--low", type=int, default=12, help="smallest width, as a power of two")
    parser.add_argument("--high", type=int, default=17, help="largest width, as a power of two")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each width")
    parser.add_argument("--peers", default="none")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options, rest = parser.parse_known_args(arguments)
    return exit_code(lambda: run(options, rest))


def run(options: argparse.Namespace, rest: list[str]) -> None:
    """Measure, write the file and print the table. Raises UserError."""
    if not 1 <= options.low <= options.high <= 24:
        raise UserError(f"--low {options.low} --high {options.high}: must be powers from 1 to 24, the smaller first")
    result = measure(options, rest)
    if options.json:
        write_json(options.json, result)
    print(text_table([result]))


if __name__ == "__main__":
    sys.exit(main())
