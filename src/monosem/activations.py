"""Harvest activations into hashed shards, and stream them back shuffled.

Files of `activations/`: `tokens.safetensors` (the packed rows of both splits), `train-00000.safetensors` ...,
`eval-00000.safetensors` ... (`x [n, d_in]` in the arithmetic of the forward pass, `doc`, `pos`, `token`, each
int32 [n]; `place` int64, row * context + column) and `meta.json` with the SHA-256 of every shard. `partial.json` is
there while a harvest is under way: the same command goes on after the last whole shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from monosem.model import Model, Site
from monosem.store import file_hash, read_json, value_hash, write_bytes, write_json
from monosem.text import Packed, Rows
from monosem.types import UserError

HARVEST_VERSION = 1
SHARD_ROWS = 512  # packed rows a shard, rounded up to whole forward passes
Progress = Callable[[int], object]


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
) -> dict[str, Any]:
    """Write the activations of the kept tokens of `packed` at `site` and return meta.json's content.

    header: what the activations depend on, stored and compared on resume. progress: called with packed tokens done.
    Raises UserError for NaN or infinite activations.
    """
    partial_path = folder / "partial.json"
    partial = read_json(partial_path) if partial_path.exists() else {}
    if partial.get("header") != header:
        partial = {"header": header, "shards": {}}
    tokens = {
        f"{split}.{name}": torch.from_numpy(np.ascontiguousarray(getattr(part, name)))
        for split, part in _splits(packed)
        for name in ("tokens", "doc", "pos", "keep")
    }
    partial["tokens"] = write_bytes(folder / "tokens.safetensors", save(tokens))
    per_shard = -(-SHARD_ROWS // batch_rows) * batch_rows
    for split, part in _splits(packed):
        for number, start in enumerate(range(0, len(part.tokens), per_shard)):
            name = f"{split}-{number:05d}.safetensors"
            rows = slice(start, min(start + per_shard, len(part.tokens)))
            if not _done(folder / name, partial["shards"].get(name)):
                columns, dropped = _shard(
                    model, site, part, rows, batch_rows, max_norm_ratio, f"{split} rows", progress
                )
                digest = write_bytes(folder / name, save(columns))
                partial["shards"][name] = {"sha256": digest, "rows": len(columns["x"]), "outliers": dropped}
                write_json(partial_path, partial)
            else:
                progress((rows.stop - rows.start) * part.tokens.shape[1])
    meta = {
        "header": header,
        "site": site.name,
        "d_in": int(columns_width(folder / "eval-00000.safetensors")),
        "tokens_sha256": partial["tokens"],
        "splits": {split: _split_facts(partial["shards"], split, part) for split, part in _splits(packed)},
    }
    meta["hash"] = value_hash(meta)
    write_json(folder / "meta.json", meta)
    partial_path.unlink(missing_ok=True)
    return meta


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
    with safe_open(path, framework="pt") as file:
        return file.get_slice("x").get_shape()[1]


def _shard(
    model: Model,
    site: Site,
    part: Rows,
    rows: slice,
    batch_rows: int,
    max_norm_ratio: float,
    what: str,
    progress: Progress,
) -> tuple[dict[str, Tensor], int]:
    """Run the forward passes of one shard and return its columns and the number of outliers left out."""
    pieces: dict[str, list[Tensor]] = {"x": [], "doc": [], "pos": [], "token": [], "place": []}
    dropped = 0
    for start in range(rows.start, rows.stop, batch_rows):
        here = slice(start, min(start + batch_rows, rows.stop))
        tokens = torch.from_numpy(part.tokens[here].astype(np.int64))
        acts = model.activations(tokens, site)
        kept = torch.from_numpy(part.keep[here])
        x = acts[kept.to(acts.device)].cpu()
        place = kept.flatten().nonzero()[:, 0] + here.start * kept.shape[1]
        columns = {key: torch.from_numpy(getattr(part, field)[here])[kept] for key, field in _COLUMNS.items()}
        finite = torch.isfinite(x).all(dim=1)
        if not finite.all():
            bad = int((~finite).nonzero()[0])
            raise UserError(
                f"{site.name}: the model gives NaN or infinite activations ({what} {here.start} to {here.stop - 1}, "
                f"document {int(columns['doc'][bad])}, position {int(columns['pos'][bad])}); try model.dtype = "
                '"float32", or check the weights'
            )
        small = within_norm(x, max_norm_ratio)
        dropped += int((~small).sum())
        for key, value in {"x": x, "place": place, **columns}.items():
            pieces[key].append(value[small])
        progress(tokens.numel())
    return {key: torch.cat(values).contiguous() for key, values in pieces.items()}, dropped


_COLUMNS = {"doc": "doc", "pos": "pos", "token": "tokens"}


def within_norm(x: Tensor, max_norm_ratio: float) -> Tensor:
    """Return bool [n]: rows of `x [n, d_in]` whose norm is at most `max_norm_ratio` times the median (0: all rows)."""
    if max_norm_ratio <= 0:
        return torch.ones(len(x), dtype=torch.bool)
    norms = x.float().norm(dim=1)
    return norms <= max_norm_ratio * norms.median()


@dataclass
class Activations:
    """The stored activations of one split, memory-mapped.

    n: tokens; d_in: width; documents: documents in the split; hash: SHA-256 over the shards' hashes.
    """

    shards: list[Tensor]
    columns: dict[str, Tensor]
    documents: int
    hash: str

    def __post_init__(self) -> None:
        """Index the shards."""
        self.n = sum(len(shard) for shard in self.shards)
        self.d_in = self.shards[0].shape[1]
        self._starts = np.cumsum([0, *(len(shard) for shard in self.shards)])

    def rows(self, index: np.ndarray) -> Tensor:
        """Return the activations with these row numbers, float32 [len(index), d_in], in this order."""
        out = torch.empty(len(index), self.d_in, dtype=torch.float32)
        if len(self.shards) == 1:
            return out.copy_(self.shards[0][torch.from_numpy(index)])
        which = np.searchsorted(self._starts, index, side="right") - 1
        for number in np.unique(which):
            here = np.flatnonzero(which == number)
            local = torch.from_numpy(index[here] - self._starts[number])
            out[torch.from_numpy(here)] = self.shards[number][local].float()
        return out

    def batches(self, size: int) -> Iterator[tuple[Tensor, slice]]:
        """Yield (activations float32 [<= size, d_in], their row range) in stored order."""
        for start in range(0, self.n, size):
            here = slice(start, min(start + size, self.n))
            yield self.rows(np.arange(here.start, here.stop)), here


def open_activations(folder: Path, split: str) -> Activations:
    """Open a split of a harvested folder after checking every shard's hash.

    Raises UserError naming the shard that is missing, truncated or altered.
    """
    meta = read_json(folder / "meta.json")
    shards: list[Tensor] = []
    columns: dict[str, list[Tensor]] = {name: [] for name in ("doc", "pos", "token", "place")}
    facts = meta["splits"][split]
    for name, entry in facts["shards"].items():
        with open_hashed(folder / name, entry["sha256"]) as file:
            shards.append(file.get_tensor("x"))
            for column, pieces in columns.items():
                pieces.append(file.get_tensor(column))
    joined = {name: torch.cat(pieces) for name, pieces in columns.items()}
    digests = [entry["sha256"] for entry in facts["shards"].values()]
    return Activations(shards, joined, facts["documents"], value_hash(digests))


def open_hashed(path: Path, sha256: str) -> Any:
    """Open a safetensors file (memory-mapped) after checking its hash. Raises UserError naming the file."""
    if not path.exists():
        raise UserError(f"{path}: this shard is missing; delete {path.parent / 'meta.json'} and run harvest again")
    if file_hash(path) != sha256:
        raise UserError(
            f"{path}: truncated or altered (its SHA-256 is not the one in meta.json); delete it and "
            f"{path.parent / 'meta.json'}, then run harvest again"
        )
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); run harvest again") from error


def shuffled(n: int, batch: int, *, capacity: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the row numbers 0..n-1 in batches of `batch`, shuffled by a mixing buffer of `capacity` rows.

    Fill the buffer, permute it, serve the first half, keep the rest, refill, repeat; the last filling is served whole.
    Every row is served exactly once, but for a final partial batch. With capacity >= n this is one permutation. Only
    row numbers are mixed, so that a resumed run finds its place at once.
    """
    rng = np.random.default_rng(seed)
    buffer = np.empty(0, dtype=np.int64)
    rest = np.empty(0, dtype=np.int64)
    next_row = 0
    while next_row < n or len(buffer):
        take = min(capacity - len(buffer), n - next_row)
        buffer = np.concatenate([buffer, np.arange(next_row, next_row + take)])
        next_row += take
        rng.shuffle(buffer)
        served = len(buffer) if next_row == n else max(1, len(buffer) // 2)
        ready = np.concatenate([rest, buffer[:served]])
        buffer = buffer[served:]
        whole = len(ready) // batch * batch
        yield from ready[:whole].reshape(-1, batch)
        rest = ready[whole:]


def training_order(n: int, batch: int, steps: int, *, capacity: int, seed: int, first: int = 0) -> Iterator[np.ndarray]:
    """Yield the row numbers of training steps `first` to `steps - 1`, over as many passes as it takes.

    Each pass is shuffled anew. Raises UserError when the store is smaller than one batch.
    """
    per_pass = n // batch
    if per_pass == 0:
        raise UserError(f"train.batch_size = {batch}: the training split has only {n} tokens; lower it or add text")
    for number in range(first // per_pass, -(-steps // per_pass)):
        for place, index in enumerate(shuffled(n, batch, capacity=capacity, seed=seed + number)):
            if first <= number * per_pass + place < steps:
                yield index


def load_tokens(folder: Path, split: str) -> dict[str, Tensor]:
    """Return the packed rows of a split: `tokens`, `doc`, `pos` (int32) and `keep` (bool), each [rows, context]."""
    meta = read_json(folder / "meta.json")
    with open_hashed(folder / "tokens.safetensors", meta["tokens_sha256"]) as file:
        return {name: file.get_tensor(f"{split}.{name}") for name in ("tokens", "doc", "pos", "keep")}
