"""Harvest: run the language model over packed text and write the activations at a site into hashed shards.

Files of `activations/`: `tokens.safetensors` (the packed rows of both splits), `train-00000.safetensors` ...,
`eval-00000.safetensors` ... (`x [n, d_in]` in the arithmetic of the forward pass, `doc`, `pos`, `token`, each
int32 [n]; `place` int64, row * context + column) and `meta.json` with the SHA-256 of every shard. `partial.json` is
there while a harvest is under way: the same command goes on after the last whole shard. A thread hashes and writes
each shard while the next one is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from monosem.model import Model, Site
from monosem.remote import fetch
from monosem.store import file_hash, read_json, value_hash, write_bytes, write_json
from monosem.text import Packed, Rows
from monosem.types import UserError

HARVEST_VERSION = 1
SHARD_ROWS = 512  # packed rows a shard, rounded up to whole forward passes
Progress = Callable[[int], object]


@dataclass(frozen=True)
class Shard:
    """A shard to be made: the file `name`, of the packed rows `start` to `stop - 1` of a split."""

    name: str
    split: str
    start: int
    stop: int


Record = Callable[[str, dict[str, Any]], object]
Make = Callable[[list[Shard], Record, Progress], object]


def harvest(
    model: Model,
    site: Site,
    packed: Packed,
    folder: Path,
    header: dict[str, Any],
    *,
    batch_rows: int,
    max_norm_ratio: float = 0.0,
    progress: Progress = lambda _tokens: None,
    make: Make | None = None,
) -> dict[str, Any]:
    """Write the activations of the kept tokens of `packed` at `site` and return meta.json's content.

    header: what the activations depend on, stored and compared on resume. progress: called with packed tokens done.
    make: makes shards elsewhere, in any order, and records each one that is whole; by default they are made here.
    Raises UserError for NaN or infinite activations.
    """
    under_way = folder / "partial.json"
    done = read_json(under_way) if under_way.exists() else {}
    if done.get("header") != header:
        done = {"header": header, "shards": {}}
    tokens = {
        f"{split}.{name}": torch.from_numpy(np.ascontiguousarray(getattr(part, name)))
        for split, part in _splits(packed)
        for name in ("tokens", "doc", "pos", "keep")
    }
    done["tokens"] = write_bytes(folder / "tokens.safetensors", save(tokens))
    todo = []
    for shard in _shards(packed, batch_rows):
        if _done(folder / shard.name, done["shards"].get(shard.name)):
            progress((shard.stop - shard.start) * packed.eval.tokens.shape[1])
        else:
            todo.append(shard)

    def record(name: str, entry: dict[str, Any]) -> None:
        done["shards"][name] = entry
        write_json(under_way, done)  # never names a shard that is not whole

    write_json(under_way, done)
    here = partial(_make, model, site, packed, folder, batch_rows, max_norm_ratio)
    (make or here)(todo, record, progress)
    meta = {
        "header": header,
        "site": site.name,
        "d_in": int(columns_width(folder / "eval-00000.safetensors")),
        "tokens_sha256": done["tokens"],
        "splits": {split: _split_facts(done["shards"], split, part) for split, part in _splits(packed)},
    }
    meta["hash"] = value_hash(meta)
    write_json(folder / "meta.json", meta)
    under_way.unlink(missing_ok=True)
    return meta


def _shards(packed: Packed, batch_rows: int) -> Iterator[Shard]:
    per_shard = -(-SHARD_ROWS // batch_rows) * batch_rows
    for split, part in _splits(packed):
        for number, start in enumerate(range(0, len(part.tokens), per_shard)):
            stop = min(start + per_shard, len(part.tokens))
            yield Shard(f"{split}-{number:05d}.safetensors", split, start, stop)


def _make(
    model: Model,
    site: Site,
    packed: Packed,
    folder: Path,
    batch_rows: int,
    max_norm_ratio: float,
    todo: list[Shard],
    record: Record,
    progress: Progress,
) -> None:
    """Make shards in this process."""
    parts = dict(_splits(packed))
    with _ShardWriter(folder, record) as writer:

        def advance(done: int) -> None:
            writer.check()
            progress(done)

        for shard in todo:
            rows = parts[shard.split]
            writer.add(shard.name, *columns_of(model, site, rows, shard, batch_rows, max_norm_ratio, advance))


def _splits(packed: Packed) -> tuple[tuple[str, Rows], ...]:
    return ("eval", packed.eval), ("train", packed.train)


def _done(path: Path, entry: dict[str, Any] | None) -> bool:
    return entry is not None and path.exists() and file_hash(path) == entry["sha256"]


def _split_facts(shards: dict[str, Any], split: str, part: Rows) -> dict[str, Any]:
    mine = {name: entry for name, entry in sorted(shards.items()) if name.startswith(f"{split}-")}
    return {
        "shards": mine,
        "tokens": sum(entry["rows"] for entry in mine.values()),
        "outliers": sum(entry["outliers"] for entry in mine.values()),
        "documents": len(np.unique(part.doc[part.keep])),
    }


def columns_width(path: Path) -> int:
    """Return d_in of a shard."""
    fetch(path)
    with safe_open(path, framework="pt") as file:
        return file.get_slice("x").get_shape()[1]


def columns_of(
    model: Model,
    site: Site,
    part: Rows,
    shard: Shard,
    batch_rows: int,
    max_norm_ratio: float = 0.0,
    progress: Progress = lambda _tokens: None,
) -> tuple[dict[str, Tensor], int]:
    """Run the forward passes of a shard of `part`; return its columns and the number of outliers left out.

    Raises UserError for NaN or infinite activations.
    """
    rows = slice(shard.start, shard.stop)
    kept = part.keep[rows]
    columns = {key: torch.from_numpy(getattr(part, field)[rows][kept]) for key, field in _COLUMNS.items()}
    columns["place"] = torch.from_numpy(np.flatnonzero(kept) + rows.start * kept.shape[1])
    small = torch.ones(len(columns["doc"]), dtype=torch.bool)
    done = 0
    for start in range(rows.start, rows.stop, batch_rows):
        here = slice(start, min(start + batch_rows, rows.stop))
        acts = model.activations(torch.from_numpy(part.tokens[here].astype(np.int64)), site)
        x = acts[torch.from_numpy(part.keep[here]).to(acts.device)]
        to = slice(done, done + len(x))
        if (bad := first_not_finite(x)) is not None:
            raise UserError(
                f"{site.name}: the model gives NaN or infinite activations ({shard.split} rows {here.start} to "
                f"{here.stop - 1}, document {int(columns['doc'][to][bad])}, position {int(columns['pos'][to][bad])}); "
                'try model.dtype = "float32", or check the weights'
            )
        if "x" not in columns:
            columns["x"] = torch.empty(len(small), x.shape[1], dtype=x.dtype)
        columns["x"][to] = x
        small[to] = within_norm(columns["x"][to], max_norm_ratio)
        done = to.stop
        progress(acts.shape[0] * acts.shape[1])
    dropped = int((~small).sum())
    return {key: values[small] if dropped else values for key, values in columns.items()}, dropped


_COLUMNS = {"doc": "doc", "pos": "pos", "token": "tokens"}


def first_not_finite(x: Tensor) -> int | None:
    """Return the first row of `x [n, d_in]` with NaN or an infinity, or None."""
    # The extremes carry NaN and infinities and cost a twentieth of looking at every number.
    if not x.numel() or torch.stack(torch.aminmax(x)).isfinite().all():
        return None
    return int((~torch.isfinite(x).all(dim=1)).nonzero()[0])


def write_shard(folder: Path, name: str, columns: dict[str, Tensor], outliers: int) -> dict[str, Any]:
    """Write a shard, and return what is kept of it in meta.json."""
    digest = write_bytes(folder / name, save(columns))
    return {"sha256": digest, "rows": len(columns["x"]), "outliers": outliers}


class _ShardWriter:
    """Writes one shard at a time in a thread of its own while the caller computes the next one, and records it."""

    def __init__(self, folder: Path, record: Record) -> None:
        self.folder, self.record = folder, record
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="shard-writer")
        self.last: Future[None] | None = None

    def __enter__(self) -> _ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for the shard that is being written, also when the caller has failed or was interrupted."""
        self.thread.shutdown()
        if kind is None:
            self.check()

    def check(self) -> None:
        """Raise what went wrong in the thread, if anything did by now."""
        if self.last is not None and self.last.done():
            self.last.result()

    def add(self, name: str, columns: dict[str, Tensor], outliers: int) -> None:
        """Write a shard once the one before is written, so that at most two are in memory. Raises its error."""
        if self.last is not None:
            self.last.result()
        self.last = self.thread.submit(self._write, name, columns, outliers)

    def _write(self, name: str, columns: dict[str, Tensor], outliers: int) -> None:
        self.record(name, write_shard(self.folder, name, columns, outliers))


def within_norm(x: Tensor, max_norm_ratio: float) -> Tensor:
    """Return bool [n]: rows of `x [n, d_in]` whose norm is at most `max_norm_ratio` times the median (0: all rows)."""
    if max_norm_ratio <= 0:
        return torch.ones(len(x), dtype=torch.bool)
    norms = x.float().norm(dim=1)
    return norms <= max_norm_ratio * norms.median()
