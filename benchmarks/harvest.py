"""Time a whole harvest against the bare truncated forward pass of the same model on the same batches.

    python benchmarks/harvest.py [--threads 1] [--tokens 20000] --json harvest.json

Bare is the leanest loop over the same Hugging Face modules: embedding, rotary angles made once, the blocks up to the
site, nothing kept. Harvest is `monosem.harvest.harvest`: hooks, gather of the kept tokens, finite check, hashing,
writing, flushing. Both run in one process in turns; figures are medians over the repetitions. Then each part of the
harvest's extra is timed by itself on one shard. Llama-shaped models only (the embedded one is).
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from command import exit_code
from safetensors.torch import save

from monosem.embedded import model_folder
from monosem.environment import describe
from monosem.harvest import first_not_finite, harvest, within_norm
from monosem.model import Model, Site, load_model
from monosem.sources import documents
from monosem.store import write_bytes, write_json
from monosem.text import Packed, pack


def bare_pass(model: Model, layers: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function from tokens [rows, context] to the output of block `layers - 1` [rows, context, d_model]."""
    inner = model.lm.model
    angles: dict[int, Any] = {}

    @torch.inference_mode()
    def run(tokens: torch.Tensor) -> torch.Tensor:
        hidden = inner.embed_tokens(tokens)
        context = tokens.shape[1]
        if context not in angles:
            angles[context] = inner.rotary_emb(hidden, position_ids=torch.arange(context)[None])
        for block in inner.layers[:layers]:
            hidden = block(hidden, position_embeddings=angles[context], use_cache=False)
        return hidden

    return run


def clocked(work: Callable[[], object]) -> tuple[float, float]:
    """Return the wall seconds and the CPU seconds (all threads) of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(model: Model, site: Site, packed: Packed, batch_rows: int, repeats: int) -> dict[str, Any]:
    """Time bare passes and harvests in turns; return tokens per wall and CPU second of both, and their ratios."""
    bare = bare_pass(model, site.stop + 1)
    batches = [
        torch.from_numpy(part.tokens[start : start + batch_rows].astype("int64"))
        for part in (packed.eval, packed.train)
        for start in range(0, len(part.tokens), batch_rows)
    ]
    if not torch.equal(bare(batches[0]), model.activations(batches[0], site)):
        raise SystemExit("the bare pass and Model.activations differ: the comparison would be of two things")

    def all_bare() -> None:
        for tokens in batches:
            bare(tokens)

    def all_harvest() -> None:
        folder = Path(tempfile.mkdtemp(prefix="harvest-"))
        try:
            harvest(model, site, packed, folder, {}, batch_rows=batch_rows)
        finally:
            shutil.rmtree(folder)

    taken: dict[str, list[tuple[float, float]]] = {"bare": [], "harvest": []}
    for number in range(repeats):
        arms = [("bare", all_bare), ("harvest", all_harvest)]
        for name, work in arms if number % 2 else reversed(arms):
            taken[name].append(clocked(work))
    tokens = packed.eval.tokens.size + packed.train.tokens.size
    rates = {
        name: {
            "tokens_per_second": tokens / statistics.median(wall for wall, _ in times),
            "tokens_per_cpu_second": tokens / statistics.median(cpu for _, cpu in times),
        }
        for name, times in taken.items()
    }
    # Neighbours in time are compared with each other: the machine's speed drifts more than the two arms differ.
    ratio = {
        clock: statistics.median(b[at] / h[at] for b, h in zip(taken["bare"], taken["harvest"], strict=True))
        for at, clock in enumerate(("wall", "cpu"))
    }
    return {"tokens": tokens, "repeats": repeats, **rates, "harvest_to_bare": ratio, "seconds": taken}


def parts(model: Model, site: Site, packed: Packed, batch_rows: int, rows: int = 64) -> dict[str, float]:
    """Return CPU microseconds a token of each thing that a harvest does besides the forward pass (wall for flush)."""
    rows = min(rows, len(packed.train.tokens))
    tokens = torch.from_numpy(packed.train.tokens[:rows].astype("int64"))
    keep = torch.from_numpy(packed.train.keep[:rows])
    acts = torch.cat([model.activations(piece, site) for piece in tokens.split(batch_rows)])
    x = acts[keep]
    pieces = list(x.split(batch_rows * tokens.shape[1]))
    data = save({"x": x})
    folder = Path(tempfile.mkdtemp(prefix="harvest-"))
    whole: dict[str, Callable[[], object]] = {
        "gather": lambda: acts[keep],
        "finite": lambda: first_not_finite(x),
        "norm_limit": lambda: within_norm(x, 10.0),
        "copy": lambda: torch.cat(pieces),
        "serialise": lambda: save({"x": x}),
        "hash": lambda: hashlib.sha256(data).hexdigest(),
        "write_hash_flush": lambda: write_bytes(folder / "x.safetensors", data),
    }
    out: dict[str, float] = {}
    for name, work in whole.items():
        times = sorted(clocked(work) for _ in range(7))
        wall, cpu = times[len(times) // 2]
        out[name] = 1e6 * cpu / len(x)
        if name == "write_hash_flush":
            out["write_hash_flush_wall"] = 1e6 * wall / len(x)
    shutil.rmtree(folder)
    return out


def main() -> None:
    """Parse the command line, time, print, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="", help="local folder; the embedded model when left out")
    parser.add_argument("--site", default="blocks.10.hook_resid_post", help="blocks.{L}.hook_resid_post")
    parser.add_argument("--text", default="", help="file, folder or glob; the embedded corpus when left out")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=int, default=16_000, help="tokens a repetition")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--batch-rows", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_model(args.model or str(model_folder()), dtype=args.dtype, device="cpu")
    site = model.site(args.site)
    if not site.name.endswith("hook_resid_post") or not hasattr(model.lm, "model"):
        parser.error("the bare pass is written for hook_resid_post of Llama-shaped models")
    packed = pack(
        documents(args.text), model.tokenizer, context=args.context, train_tokens=args.tokens, eval_tokens=args.context
    )
    result = {
        "site": site.name,
        "dtype": str(model.dtype),
        "context": args.context,
        "batch_rows": args.batch_rows,
        "threads": args.threads,
        **compare(model, site, packed, args.batch_rows, args.repeats),
        "cpu_us_per_token": parts(model, site, packed, args.batch_rows),
        "environment": describe(),
    }
    for arm in ("bare", "harvest"):
        rates = result[arm]
        print(
            f"{arm:8} {rates['tokens_per_second']:8,.0f} tokens/s {rates['tokens_per_cpu_second']:8,.0f} a CPU-second"
        )
    ratio = result["harvest_to_bare"]
    print(f"harvest / bare: {ratio['wall']:.3f} in wall time, {ratio['cpu']:.3f} in CPU time")
    forward = 1e6 / result["bare"]["tokens_per_cpu_second"]
    print(f"CPU microseconds a token (the forward pass takes {forward:.0f}):")
    for name, value in result["cpu_us_per_token"].items():
        print(f"  {name:22} {value:7.3f}")
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    sys.exit(exit_code(main))
