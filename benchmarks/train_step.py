"""Times a whole training step, ours and other libraries', interleaved in one process on the same batches.

    python benchmarks/train_step.py --variant topk --d-sae 16384 --threads 1 --peers all --seconds 60 --json FILE

See docs/benchmarks.md for how it is measured and what the fields mean.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from command import exit_code

from monosem.types import UserError

MEMORY_STEPS = 3
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        raise UserError(message)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = Parser(prog="python benchmarks/train_step.py", description="Time a training step beside other libraries'.")
    add = parser.add_argument
    add("--variant", default="topk", help="standard, tanh, gated, topk, topk-auxk")
    add("--d-sae", type=int, default=16_384)
    add("--threads", type=int, default=1)
    add("--peers", default="none", help="names with commas, all, none")
    add("--seconds", type=float, default=60.0, help="how long all take turns (three rounds at least)")
    add("--json", type=Path, metavar="FILE")
    add("--d-in", type=int, help="width of made-up activations (576)")
    add("--batch", type=int, default=2048)
    add("--k", type=int, default=32)
    add("--l0", type=float, default=50.0, help="active features a token in standard, tanh, gated")
    add("--dead", type=float, default=0.1, help="share of dead features in topk-auxk")
    add("--lr", type=float, default=1e-7, help="so small that the weights, and with them L0, stay")
    add("--train-steps", type=int, default=0, help="train the common weights this long first, by our recipe")
    add("--activations", type=Path, help="safetensors file with x, or a study folder; default: made-up ones")
    add("--no-memory", action="store_true", help="skip the processes that measure peak memory")
    add("--reference", action="store_true", help="ours by its slow, readable path")
    add("--only", help=argparse.SUPPRESS)  # one library in this process; --activations is what write_start wrote
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return exit_code(lambda: run(parse(arguments)))


def run(options: argparse.Namespace) -> None:
    """Do what the options say. Raises UserError."""
    for name in THREAD_VARIABLES:  # before torch is imported
        os.environ[name] = str(max(1, options.threads))
    import torch

    torch.set_num_threads(max(1, options.threads))
    if options.only:
        measure_memory(options)
        return
    result = benchmark(options)
    if options.json:
        from monosem.store import write_json

        write_json(options.json, result)
    from table import text_table

    print(text_table([result]))


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Return the content of the JSON file: rows, machine, commit, settings."""
    from record import surroundings
    from roster import choose
    from workload import D_IN, Setting, prepare

    names = ("variant", "d_sae", "batch", "k", "l0", "dead", "lr", "threads", "train_steps")
    d_in = D_IN if options.d_in is None else options.d_in
    setting = Setting(**{name: getattr(options, name) for name in names}, d_in=d_in)
    setting.check()
    peers = choose(options.peers, setting.variant)
    if not options.seconds > 0:
        raise UserError(f"--seconds {options.seconds}: must be above 0")
    setting, start = prepare(setting, options.activations)
    if options.d_in is not None and setting.d_in != options.d_in:
        raise UserError(f"--d-in {options.d_in}: the activations have d_in {setting.d_in}; leave --d-in out")
    load = os.getloadavg()[0]
    if load + setting.threads > (os.cpu_count() or 1) + 0.5:
        print(
            f"load average {load:.1f}: other work disturbs the figures, above all on several threads", file=sys.stderr
        )
    memory = {} if options.no_memory else peaks(setting, start, peers, options)
    rows, kernels = timed_rows(setting, start, peers, memory, options)
    facts = {
        "seconds": options.seconds,
        "peers": peers,
        "activations": "made up (benchmarks/workload.py)" if options.activations is None else "stored",
        "reference": options.reference,
        "kernels": kernels,
    }
    return {"rows": rows, **surroundings(load), "settings": {**asdict(setting), **facts}}


def timed_rows(
    setting: Any, start: Any, peers: list[str], memory: dict[str, Any], options: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Time all libraries in turns; return a row for each, and how our kernels worked."""
    from clock import rotate
    from ours import NAME, PRODUCT, EncoderProduct, Ours
    from roster import PEERS

    libraries: dict[str, Any] = {NAME: Ours(setting, start, reference=options.reference)}
    libraries |= {name: PEERS[name].build(setting, start) for name in peers}
    libraries[PRODUCT] = EncoderProduct(setting, start)
    start.weights = {}
    gc.collect()
    batches = start.batches(setting.batch)
    first = {name: _check(library, batches[0]) for name, library in libraries.items()}
    times = rotate({name: library.step for name, library in libraries.items()}, batches, options.seconds)
    ours, product = (times[name].summary()["cpu_seconds"]["median"] for name in (NAME, PRODUCT))
    rows = []
    for name, library in libraries.items():
        measured, last = times[name].summary(), _check(library, batches[0])
        cpu, wall = (measured[key]["median"] for key in ("cpu_seconds", "wall_seconds"))
        rows.append(
            {
                "library": name,
                "version": _version(name),
                "variant": setting.variant,
                "d_sae": setting.d_sae,
                "threads": setting.threads,
                "tokens_per_cpu_second": setting.batch / cpu,
                "tokens_per_second": setting.batch / wall,
                "ratio_ours_to_this": cpu / ours,
                "ratio_to_encoder_product": cpu / product,
                **measured,
                "peak_bytes": memory.get(name, {}).get("peak_bytes"),
                "imports_bytes": memory.get(name, {}).get("imports_bytes"),
                "mse_first": first[name].get("mse"),
                "mse_last": last.get("mse"),
                "l0": last.get("l0"),
                "aux_loss": last.get("aux"),
                "dead_features": last.get("dead"),
                "note": PEERS[name].note(setting.variant) if name in PEERS else library.note,
            }
        )
    return rows, libraries[NAME].facts()


def _check(library: Any, x: Any) -> dict[str, Any]:
    """Return what the library computes on a batch; nothing for the bare product."""
    return asdict(library.check(x)) if hasattr(library, "check") else {}


def _version(name: str) -> str | None:
    from importlib import metadata

    from ours import NAME
    from roster import PEERS, version

    return version(name) if name in PEERS else metadata.version("monosem" if name == NAME else "torch")


def peaks(setting: Any, start: Any, peers: list[str], options: argparse.Namespace) -> dict[str, dict[str, int]]:
    """Return the peak memory of each library, alone in a fresh process that does a few steps."""
    from ours import NAME
    from workload import write_start

    from monosem.store import read_json

    found = {}
    with tempfile.TemporaryDirectory(prefix="monosem-bench-") as folder:
        path, answer = Path(folder) / "start.safetensors", Path(folder) / "answer.json"
        write_start(path, setting, start)
        for name in (NAME, *peers):
            command = [sys.executable, __file__, "--only", name, "--activations", str(path), "--json", str(answer)]
            command += ["--threads", str(setting.threads), *(["--reference"] if options.reference else [])]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"{name} alone in a process failed:\n{done.stderr[-3000:]}")
            found[name] = read_json(answer)
    return found


def measure_memory(options: argparse.Namespace) -> None:
    """Do a few steps of one library and write the peak memory of this process, in bytes.

    imports_bytes: the peak after one library's modules were loaded, before anything was built.
    """
    import importlib

    from clock import peak_bytes
    from ours import NAME, Ours
    from roster import PEERS
    from workload import read_start

    from monosem.store import write_json

    importlib.import_module("monosem.train" if options.only == NAME else PEERS[options.only].module)
    imports = peak_bytes()
    setting, start = read_start(options.activations)
    if options.only == NAME:
        start.weights = {name: w.clone() for name, w in start.weights.items()}
        library: Any = Ours(setting, start, reference=options.reference, own=True)
    else:
        library = PEERS[options.only].build(setting, start)
    start.weights = {}
    gc.collect()
    batches = start.batches(setting.batch)
    for step in range(MEMORY_STEPS):
        library.step(batches[step % len(batches)])
    write_json(options.json, {"peak_bytes": peak_bytes(), "imports_bytes": imports})


if __name__ == "__main__":
    sys.exit(main())
