"""Prints result files as one table: `python benchmarks/table.py [FILE ...]` (default: benchmarks/results/*.json)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from command import exit_code

from monosem.store import read_json
from monosem.types import UserError

RESULTS = Path(__file__).resolve().parent / "results"
COLUMNS = (
    "variant",
    "d_sae",
    "threads",
    "library",
    "tokens / CPU-s",
    "quartiles",
    "ours is",
    "of product",
    "peak MB",
    "L0",
    "steps",
)


def cells(row: dict[str, Any], batch: int) -> list[str]:
    """Return a row of a result file as the texts of `COLUMNS`."""
    cpu = row["cpu_seconds"]
    peak, l0 = row["peak_bytes"], row["l0"]
    return [
        row["variant"],
        f"{row['d_sae']:,}",
        str(row["threads"]),
        row["library"],
        f"{row['tokens_per_cpu_second']:,.0f}",
        f"{batch / cpu['q3']:,.0f} to {batch / cpu['q1']:,.0f}",
        f"{row['ratio_ours_to_this']:.2f} x",
        f"{row['ratio_to_encoder_product']:.2f}",
        "-" if peak is None else f"{peak / 1e6:,.0f}",
        "-" if l0 is None else f"{l0:.1f}",
        str(row["steps"]),
    ]


def rows_of(results: list[dict[str, Any]]) -> list[list[str]]:
    """Return the texts of all rows, sorted by variant, width, threads; in each the fastest library first."""
    found = [(row, result["settings"]["batch"]) for result in results for row in result["rows"]]
    found.sort(
        key=lambda one: (one[0]["variant"], one[0]["d_sae"], one[0]["threads"], -one[0]["tokens_per_cpu_second"])
    )
    return [cells(row, batch) for row, batch in found]


def text_table(results: list[dict[str, Any]], markdown: bool = False) -> str:
    """Return a table for the terminal, or in Markdown."""
    rows = [list(COLUMNS), *rows_of(results)]
    if markdown:
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([lines[0], "|---" * len(COLUMNS) + "|", *lines[1:]])
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    left = {0, 3}
    return "\n".join(
        "  ".join(
            text.ljust(width) if column in left else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def read_results(files: list[Path]) -> list[dict[str, Any]]:
    """Return result files of train_step.py and growth.py; others are passed over."""
    return [result for result in map(read_json, files) if "rows" in result]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python benchmarks/table.py", description="Print results as one table.")
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args(arguments)
    return exit_code(lambda: print_table(options.files, options.markdown))


def print_table(files: list[Path], markdown: bool) -> None:
    """Print `files` (default: all results but the growth) as one table. Raises UserError."""
    files = files or sorted(path for path in RESULTS.glob("*.json") if path.stem != "growth")
    if not files:
        raise UserError(f"{RESULTS}: no result files; run `make bench` first")
    print(text_table(read_results(files), markdown))


if __name__ == "__main__":
    sys.exit(main())
