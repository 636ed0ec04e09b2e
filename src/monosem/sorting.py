"""Firings sorted by (feature, doc, pos) on disk, with bounded memory whatever their number. Imports no torch.

Sorted runs of rows wait in a temporary folder and are merged by ranges of features; a feature with more rows than fit
is merged by ranges of places.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from monosem.store import write_atomic

_END = 2**63 - 1


class Rows(NamedTuple):
    """Firings in memory. feature: int32; place: int64, doc * 2^32 + pos; value: float32; each [n]."""

    feature: np.ndarray
    place: np.ndarray
    value: np.ndarray


class Sorter:
    """Takes rows in any order and gives them back sorted.

    At most about `memory_rows` rows (16 bytes each, four times that while they are sorted) and one `add` are held.
    counts: rows of each feature so far, int64 [d_sae].
    """

    def __init__(self, folder: Path, d_sae: int, memory_rows: int):
        """Start with nothing; folder: for what doesn't fit, made when it is needed, removed by `close`."""
        self.folder, self.memory_rows = folder, memory_rows
        self.counts = np.zeros(d_sae, dtype=np.int64)
        self.pending: list[Rows] = []
        self.waiting = 0
        self.spilled = 0

    def add(self, rows: Rows) -> None:
        """Add rows. Raises ValueError for a feature out of range and UserError when the disk is full."""
        if len(rows.feature) and not 0 <= rows.feature.min() <= rows.feature.max() < len(self.counts):
            raise ValueError(f"features must be 0 to {len(self.counts) - 1}")
        self.counts += np.bincount(rows.feature, minlength=len(self.counts))
        self.pending.append(rows)
        self.waiting += len(rows.place)
        if self.waiting >= self.memory_rows:
            self._spill()

    def ordered(self) -> Iterator[Rows]:
        """Yield all rows sorted by (feature, place), at most `memory_rows` at a time. Raises UserError as `add`."""
        if not self.spilled:
            if self.waiting:
                yield in_order(self.pending)
            return
        self._spill()
        for low, high in self._feature_ranges():
            yield from self._by_place([self._slice(run, low, high) for run in range(self.spilled)], 0, _END)

    def close(self) -> None:
        """Forget all rows and remove the folder."""
        self.pending, self.waiting = [], 0
        shutil.rmtree(self.folder, ignore_errors=True)

    def _spill(self) -> None:
        """Write what is in memory as one sorted run, a file a column, so that columns can be mapped."""
        if self.waiting:
            rows = in_order(self.pending)
            starts = np.append(0, np.cumsum(np.bincount(rows.feature, minlength=len(self.counts))))
            for name, column in (("starts", starts), ("place", rows.place), ("value", rows.value)):
                write_atomic(self._file(self.spilled, name), _saver(column))
            self.spilled += 1
        self.pending, self.waiting = [], 0

    def _file(self, run: int, column: str) -> Path:
        return self.folder / f"{run:05d}.{column}.npy"

    def _slice(self, run: int, low: int, high: int) -> Rows:
        """Return a sorted run's rows of the features [low, high), mapped anew, so that read pages don't add up."""
        starts, place, value = (
            np.load(self._file(run, name), mmap_mode="r", allow_pickle=False) for name in ("starts", "place", "value")
        )
        bounds = np.array(starts[low : high + 1])
        here = slice(int(bounds[0]), int(bounds[-1]))
        if high - low == 1:  # may be more than fits into memory
            feature = np.broadcast_to(np.int32(low), here.stop - here.start)
        else:
            feature = np.repeat(np.arange(low, high, dtype=np.int32), np.diff(bounds))
        return Rows(feature, place[here], value[here])

    def _feature_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield half-open ranges of features with at most `memory_rows` rows, or of one feature."""
        ends = np.cumsum(self.counts)
        low = 0
        while low < len(ends):
            limit = ends[low] - self.counts[low] + self.memory_rows
            high = max(low + 1, int(np.searchsorted(ends, limit, side="right")))
            yield low, high
            low = high

    def _by_place(self, slices: list[Rows], low: int, high: int) -> Iterator[Rows]:
        """Yield the rows of sorted slices in order, halving the places [low, high) until they fit into memory.

        Only the rows of one feature are ever halved: others fit.
        """
        rows = sum(len(piece.place) for piece in slices)
        if rows > self.memory_rows and high - low > 1:
            middle = (low + high) // 2
            cuts = [int(np.searchsorted(piece.place, np.int64(middle))) for piece in slices]
            pairs = list(zip(slices, cuts, strict=True))
            yield from self._by_place([Rows(*(c[:cut] for c in piece)) for piece, cut in pairs], low, middle)
            yield from self._by_place([Rows(*(c[cut:] for c in piece)) for piece, cut in pairs], middle, high)
        elif rows:
            yield in_order(slices)


def _saver(column: np.ndarray) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        with open(path, "wb") as file:
            np.save(file, column, allow_pickle=False)

    return save


def in_order(pieces: list[Rows]) -> Rows:
    """Return all rows of `pieces` sorted by (feature, place); fewer than 2^32."""
    rows = Rows(*(np.concatenate(columns) for columns in zip(*pieces, strict=True)))
    # A stable sort by feature, made of one sort of whole numbers: several times faster than a stable argsort.
    order = np.sort(rows.feature.astype(np.int64) << 32 | np.arange(len(rows.place)))
    order &= 2**32 - 1
    ordered = Rows(*(column[order] for column in rows))
    same = ordered.feature[1:] == ordered.feature[:-1]
    if (same & (ordered.place[1:] < ordered.place[:-1])).any():  # not added in the order of the text
        order = np.lexsort((rows.place, rows.feature))
        ordered = Rows(*(column[order] for column in rows))
    return ordered
