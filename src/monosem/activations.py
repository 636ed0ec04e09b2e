"""Stored activations: opened after checking their hashes, memory-mapped, read back shuffled.

What a harvest writes is described in harvest.py. A store may be larger than memory: rows are gathered from the mapped
files, and what the next batches need is read ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from monosem.readahead import read_at_random, will_need
from monosem.remote import fetch
from monosem.store import file_hash, read_json, value_hash
from monosem.types import UserError

READ_AHEAD_ROWS = 2**17  # rows of training batches that are announced before they are needed
HASH_THREADS = 2  # one shard is read from disk while another is hashed; both let other threads go on


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
        """Return the activations with these row numbers, float32 [len(index), d_in], in this order.

        Raises IndexError for row numbers that aren't there.
        """
        self.will_need(index)
        return self._gather(index)

    def will_need(self, index: np.ndarray) -> None:
        """Have these rows read from disk in the background, unless they are in memory."""
        for shard, local in self._by_shard(np.sort(index)):
            will_need(shard, local)

    def _gather(self, index: np.ndarray) -> Tensor:
        # In the order of the file, then put into the order asked for: twice as fast as filling in shard by shard.
        by_place = np.argsort(index, kind="stable")
        found = torch.empty(len(index), self.d_in, dtype=self.shards[0].dtype)
        done = 0
        for shard, local in self._by_shard(index[by_place]):
            torch.index_select(shard, 0, torch.from_numpy(local), out=found[done : done + len(local)])
            done += len(local)
        if done < len(index):
            raise IndexError(f"row numbers go from 0 to {self.n - 1}, not {index.min()} to {index.max()}")
        back = np.empty_like(by_place)
        back[by_place] = np.arange(len(index))
        return found.index_select(0, torch.from_numpy(back)).float()

    def _by_shard(self, ordered: np.ndarray) -> Iterator[tuple[Tensor, np.ndarray]]:
        """Yield each shard that has some of the rows `ordered` (ascending), with their numbers in it."""
        cuts = np.searchsorted(ordered, self._starts)
        for shard, start, lo, hi in zip(self.shards, self._starts, cuts, cuts[1:], strict=False):
            if lo < hi:
                yield shard, ordered[lo:hi] - start

    def batches(self, size: int) -> Iterator[tuple[Tensor, slice]]:
        """Yield (activations float32 [<= size, d_in], their row range) in stored order."""
        for start in range(0, self.n, size):
            here = slice(start, min(start + size, self.n))
            yield self.rows(np.arange(here.start, here.stop)), here


def open_activations(folder: Path, split: str) -> Activations:
    """Open a split of a harvested folder after checking every shard's hash.

    Raises UserError naming the shard that is missing, truncated or altered.
    """
    fetch(folder, f"{split}-*.safetensors")
    meta = read_json(folder / "meta.json")
    shards: list[Tensor] = []
    columns: dict[str, list[Tensor]] = {name: [] for name in ("doc", "pos", "token", "place")}
    facts = meta["splits"][split]
    digests = [entry["sha256"] for entry in facts["shards"].values()]
    with ThreadPoolExecutor(HASH_THREADS) as hashers:
        for shard in hashers.map(open_hashed, (folder / name for name in facts["shards"]), digests):
            with shard as file:
                shards.append(file.get_tensor("x"))
                for column, pieces in columns.items():
                    pieces.append(file.get_tensor(column))
            read_at_random(shards[-1])
    joined = {name: torch.cat(pieces) for name, pieces in columns.items()}
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


def prefetched(store: Activations, order: Iterable[np.ndarray], depth: int = 2) -> Iterator[Tensor]:
    """Yield `store.rows(index)` for every index of `order`, in order, each gathered by a thread beforehand.

    At most `depth` batches wait, and what later ones need is read ahead from disk; `order` is therefore taken up to
    2 * READ_AHEAD_ROWS rows early. An error of the thread is raised at the batch that it belongs to. The thread ends
    with the iterator, also when the caller stops early or fails.
    """
    waiting: deque[Future[Tensor]] = deque()
    reader = ThreadPoolExecutor(1, "prefetch", initializer=torch.set_num_threads, initargs=(1,))
    try:
        for block, next_block in pairwise(chain([[]], _blocks(order, READ_AHEAD_ROWS), [[]])):
            if next_block:
                reader.submit(store.will_need, np.concatenate(next_block))
            for index in block:
                waiting.append(reader.submit(store._gather, index))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        reader.shutdown(cancel_futures=True)


def _blocks(order: Iterable[np.ndarray], rows: int) -> Iterator[list[np.ndarray]]:
    """Yield the batches of `order` in lists of at least `rows` rows, the last one with what is left."""
    block: list[np.ndarray] = []
    for index in order:
        block.append(index)
        if sum(map(len, block)) >= rows:
            yield block
            block = []
    if block:
        yield block


def load_tokens(folder: Path, split: str, sha256: str = "") -> dict[str, Tensor]:
    """Return the packed rows of a split: `tokens`, `doc`, `pos` (int32) and `keep` (bool), each [rows, context].

    sha256: of their file, where the harvest isn't done yet.
    """
    fetch(folder / "tokens.safetensors")
    digest = sha256 or read_json(folder / "meta.json")["tokens_sha256"]
    with open_hashed(folder / "tokens.safetensors", digest) as file:
        return {name: file.get_tensor(f"{split}.{name}") for name in ("tokens", "doc", "pos", "keep")}
