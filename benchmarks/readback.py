"""Read shuffled batches back from a store of activations, from memory and from disk.

    python benchmarks/readback.py --gib 4 --folder /tmp/store --json readback.json

Writes a store of random bf16 activations in the harvest's own format, drops it from the page cache, opens it (which
hashes every byte), drops it again and reads training batches in the project's own order: gathered by the caller, and
by `prefetched` while the caller does something else. To make the store larger than memory without a huge one, run in
a group with little memory, for example `systemd-run --scope -p MemoryMax=3G python benchmarks/readback.py --gib 6`.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from command import exit_code
from safetensors import safe_open
from safetensors.torch import save

from monosem.activations import Activations, open_activations, prefetched, training_order
from monosem.environment import describe
from monosem.readahead import read_at_random
from monosem.store import read_json, value_hash, write_bytes, write_json
from monosem.types import UserError

TRAINER = 20_000  # tokens per CPU-second of the fastest trainer known to us (TopK, d_sae 4,608)
SHARD = 512 * 127  # kept tokens of 512 rows of 128


def make_store(folder: Path, gib: float, d_in: int) -> None:
    """Write shards of random activations, and the meta.json that a harvest would have written, unless they are there.

    The numbers of all shards come from one drawing, each shard multiplied by its own factor. Raises UserError rather
    than write among other files.
    """
    if (folder / "meta.json").exists():
        return
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"--folder {folder}: holds other files; name a new folder")
    base = torch.randn(SHARD, d_in, generator=torch.Generator().manual_seed(0))
    shards = {}
    for number in range(max(1, round(gib * 2**30 / (SHARD * d_in * 2)))):
        at = torch.arange(SHARD)
        columns = {name: (at // 127).to(torch.int32) for name in ("doc", "pos", "token")}
        columns |= {"x": (base * (1 + number / 7)).bfloat16(), "place": at + number * SHARD}
        name = f"train-{number:05d}.safetensors"
        shards[name] = {"sha256": write_bytes(folder / name, save(columns)), "rows": SHARD, "outliers": 0}
    split = {"shards": shards, "tokens": SHARD * len(shards), "outliers": 0, "documents": 512}
    write_json(folder / "meta.json", {"splits": {"train": split}, "hash": value_hash(shards)})


def mapped(folder: Path) -> Activations:
    """Map the shards without hashing them, which would bring them into the page cache."""
    paths = sorted(folder.glob("train-*.safetensors"))
    shards = [safe_open(path, framework="pt").get_tensor("x") for path in paths]
    for shard in shards:
        read_at_random(shard)
    return Activations(shards, {}, 0, "")


def drop(folder: Path) -> None:
    """Drop the store's files from the page cache; those that are mapped stay."""
    os.sync()
    for path in folder.glob("*.safetensors"):
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def read(store: Activations, batch: int, tokens: int, capacity: int, ahead: bool, work: float) -> Any:
    """Read `tokens` tokens in training order; sleep `work` seconds after each batch, as if a trainer worked on it.

    Returns tokens a second without the sleeping, waits for the first and for later batches, what came from disk.
    """
    order = training_order(store.n, batch, max(1, tokens // batch), capacity=capacity, seed=0)
    batches: Iterator[torch.Tensor] = prefetched(store, order) if ahead else map(store.rows, order)
    before, cpu = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    began = last = time.perf_counter()
    waits = []
    for _ in batches:
        waits.append(time.perf_counter() - last)
        time.sleep(work)
        last = time.perf_counter()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "tokens_per_second": len(waits) * batch / sum(waits),
        "tokens_per_cpu_second": len(waits) * batch / (time.process_time() - cpu),
        "seconds": time.perf_counter() - began,
        "first_wait": waits[0],
        "longest_wait": max(waits[1:], default=0.0),
        "waiting_share": sum(waits[1:]) / max(1e-9, time.perf_counter() - began - waits[0]),
        "gib_read": (after.ru_inblock - before.ru_inblock) * 512 / 2**30,
    }


def main() -> None:
    """Parse the command line, write the store, time, print, write JSON, delete the store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/monosem-readback"))
    parser.add_argument("--d-in", type=int, default=576)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=1_000_000, help="tokens to read in each arm")
    parser.add_argument("--capacity", type=int, default=2**19, help="train.shuffle_rows")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--keep",
        action="store_true",
        help="leave the store for the next run; a folder that was there is left in any case",
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    made = not args.folder.exists()  # what was there before is not ours to delete
    result: dict[str, Any] = {key: value for key, value in vars(args).items() if isinstance(value, int | float)}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began, cpu = time.perf_counter(), time.process_time()
        value = work()
        result[name] = {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu}
        print(f"{name:28} {result[name]['wall']:8.2f} s ({result[name]['cpu']:.2f} CPU-seconds)", flush=True)
        return value

    timed("write the store", lambda: make_store(args.folder, args.gib, args.d_in))
    size = sum(path.stat().st_size for path in args.folder.glob("*.safetensors"))
    drop(args.folder)
    store: Activations = timed("open (hash), cold", lambda: open_activations(args.folder, "train"))
    result["open_gb_per_second"] = size / 1e9 / result["open (hash), cold"]["wall"]
    print(f"{size / 2**30:.1f} GiB, {store.n:,} tokens, hashed at {result['open_gb_per_second']:.2f} GB/s")
    arms = [
        ("cold, by the caller", False, True, 0.0),
        ("warm, by the caller", False, False, 0.0),
        ("cold, prefetched", True, True, 0.0),
        ("warm, prefetched", True, False, 0.0),
        ("cold, by the caller, trainer", False, True, args.batch / TRAINER),
        ("cold, prefetched, trainer", True, True, args.batch / TRAINER),
    ]
    for name, ahead, cold, work in arms:
        if cold:
            del store  # its mapping holds the pages
            drop(args.folder)
            store = mapped(args.folder)
        tokens = args.tokens // 4 if work else args.tokens
        arm = read(store, args.batch, tokens, args.capacity, ahead, work)
        result[name] = arm
        print(
            f"{name:28} {arm['tokens_per_second']:12,.0f} tokens/s {arm['tokens_per_cpu_second']:12,.0f} a CPU-second, "
            f"{arm['tokens_per_second'] / TRAINER:6.1f} x trainer, first batch {1e3 * arm['first_wait']:4.0f} ms, "
            f"longest wait after it {1e3 * arm['longest_wait']:4.0f} ms, waiting {arm['waiting_share']:.1%}, "
            f"{arm['gib_read']:.2f} GiB from disk",
            flush=True,
        )
    if args.json:
        write_json(args.json, {**result, "meta": read_json(args.folder / "meta.json")["hash"], **describe()})
    if made and not args.keep:
        shutil.rmtree(args.folder)


if __name__ == "__main__":
    sys.exit(exit_code(main))
