"""Codes on disk: where and how strongly each feature of an SAE fires on the held-out tokens. Imports no torch.

`codes/<run>/part-00000.parquet` ... hold one row a firing: `feature`, `doc`, `pos` (int32) and `value` (float32, > 0),
sorted by (feature, doc, pos) over the parts in order, in row groups of at most 65,536 rows with statistics. `doc` and
`pos` are those of `activations/`; `value` is f_i |w_i| in normalised units. `counts.npy` holds the firings of each
feature, from which a feature's place in the parts follows, so that only its own row groups are read. `meta.json` is
written last, with the SHA-256 of every file: without it there are no codes. The counts are checked when codes are
opened, a part when it is first read and whenever it has changed since.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from monosem.sorting import Rows, Sorter
from monosem.store import file_hash, read_json, write_atomic, write_bytes, write_json
from monosem.types import UserError

CODES_VERSION = 2
GROUP_ROWS = 65_536  # rows of a Parquet row group: the least that is decoded to read one feature
READ_ROWS = 2**20  # rows that `each` reads at once
PANIC = pl.exceptions.PanicException  # what polars raises on some damaged files; it is no Exception


class Fires(NamedTuple):
    """Where one feature fires: doc, pos int32 [n], sorted by (doc, pos); value float32 [n], normalised units."""

    doc: np.ndarray
    pos: np.ndarray
    value: np.ndarray


class _Part(NamedTuple):
    path: Path
    first: int  # row number of its first row over all parts
    rows: int
    sha256: str


_WHOLE: dict[_Part, tuple[int, int]] = {}  # parts that were whole, with the times and sizes that they had then


@dataclass(frozen=True, eq=False)
class Firings:
    """One run's codes, opened; several threads may read at once.

    folder: codes/<run>; d_sae: features; tokens: held-out tokens that were encoded; rows: firings; sae: SHA-256 of the
    weights; counts: firings of each feature, int64 [d_sae].
    """

    folder: Path
    run: str
    d_sae: int
    tokens: int
    rows: int
    sae: str
    counts: np.ndarray = field(repr=False)
    starts: np.ndarray = field(repr=False)
    parts: tuple[_Part, ...] = field(repr=False)

    def of(self, feature: int) -> Fires:
        """Return where a feature fires. Raises UserError for a feature out of range and for damaged files."""
        if not 0 <= feature < self.d_sae:
            raise UserError(f"feature {feature}: {self.run} has the features 0 to {self.d_sae - 1}")
        return self._cut(self._read(feature, feature), feature, feature)

    def each(self, features: Iterable[int] | None = None) -> Iterator[tuple[int, Fires]]:
        """Yield (feature, where it fires) in ascending order, for all features or the given ones, also for silent ones.

        Neighbours are read together, at most READ_ROWS rows (or one feature) at a time. Raises UserError as `of` does.
        """
        wanted = range(self.d_sae) if features is None else sorted({int(feature) for feature in features})
        for feature in wanted[:1], wanted[-1:]:
            if feature and not 0 <= feature[0] < self.d_sae:
                raise UserError(f"feature {feature[0]}: {self.run} has the features 0 to {self.d_sae - 1}")
        for block in self._blocks(wanted):
            frame = self._read(block[0], block[-1])
            for feature in block:
                yield feature, self._cut(frame, block[0], feature)

    def _blocks(self, wanted: Iterable[int]) -> Iterator[list[int]]:
        """Yield features that are worth reading together: few rows from first to last, small gaps between."""
        block: list[int] = []
        for feature in wanted:
            if block:
                rows = self.starts[feature + 1] - self.starts[block[0]]
                gap = self.starts[feature] - self.starts[block[-1] + 1]
                if rows > READ_ROWS or gap > GROUP_ROWS:
                    yield block
                    block = []
            block.append(feature)
        if block:
            yield block

    def _read(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Read the rows of the features `first` to `last`."""
        low, high = int(self.starts[first]), int(self.starts[last + 1])
        pieces = [pl.DataFrame(schema=_SCHEMA)]
        for part in self.parts:
            start, stop = max(low, part.first), min(high, part.first + part.rows)
            if start < stop:
                pieces.append(self._slice(part, start - part.first, stop - start))
        frame = pl.concat(pieces)
        if frame.height != high - low:
            raise self._damaged(f"{frame.height} rows where {high - low} should be")
        return {name: frame[name].to_numpy() for name in _SCHEMA}

    def _slice(self, part: _Part, offset: int, rows: int) -> pl.DataFrame:
        try:
            stat = part.path.stat()
            if _WHOLE.get(part) != (stamp := (stat.st_mtime_ns, stat.st_size)):
                if file_hash(part.path) != part.sha256:
                    raise self._damaged(f"{part.path.name} is altered")
                _WHOLE[part] = stamp
            return pl.scan_parquet(part.path, glob=False).slice(offset, rows).select(*_SCHEMA).collect()
        except (pl.exceptions.PolarsError, OSError, PANIC) as error:
            raise self._damaged(f"{part.path.name} can't be read: {str(error).splitlines()[0]}") from error

    def _cut(self, rows: dict[str, np.ndarray], first: int, feature: int) -> Fires:
        """Return one feature's part of the rows that begin with those of the feature `first`."""
        here = slice(*(self.starts[feature : feature + 2] - self.starts[first]).tolist())
        owner = rows["feature"][here]
        if len(owner) and not owner[0] == owner[-1] == feature:
            raise self._damaged(f"rows of feature {owner[0]} where those of {feature} should be")
        return Fires(rows["doc"][here], rows["pos"][here], rows["value"][here])

    def _damaged(self, how: str) -> UserError:
        return UserError(f"{self.folder}: these codes are damaged ({how}); delete the folder and run `monosem measure`")


_SCHEMA = {"feature": pl.Int32, "doc": pl.Int32, "pos": pl.Int32, "value": pl.Float32}


def codes_folder(folder: Path, run: str) -> Path:
    """Return where a run's codes lie. Raises UserError for what is no run's name, such as one with a slash."""
    if not re.fullmatch(r"[\w.-]+", run) or not run.strip("."):
        raise UserError(f'run "{run}": no such run; names have letters, digits, ".", "_" and "-" only')
    return folder / "codes" / run


def open_firings(folder: Path, run: str) -> Firings:
    """Open a run's codes; folder: the study folder. Reads meta.json and the counts, no rows.

    Raises UserError when they are missing, not whole, altered or of an earlier version.
    """
    where = codes_folder(folder, run)
    if not (where / "meta.json").exists():
        raise UserError(
            f"{where}: no codes of run {run}; run `monosem measure {folder}` first, with measure.codes = true"
        )
    meta = read_json(where / "meta.json")
    try:
        if "counts" not in meta:
            raise ValueError("an earlier version wrote them")
        stored = (where / "counts.npy").read_bytes()
        if hashlib.sha256(stored).hexdigest() != meta["counts"]:
            raise ValueError("counts.npy is truncated or altered")
        counts = np.load(BytesIO(stored), allow_pickle=False)
        parts, first = [], 0
        for name, facts in meta["parts"].items():
            if (where / name).stat().st_size != facts["bytes"]:
                raise ValueError(f"{name} is truncated or altered")
            parts.append(_Part(where / name, first, facts["rows"], facts["sha256"]))
            first += facts["rows"]
        if not counts.shape == (meta["d_sae"],) or not counts.sum() == first == meta["rows"]:
            raise ValueError("counts.npy doesn't fit the parts")
        starts = np.concatenate([[0], np.cumsum(counts)])
        sae = meta["header"]["sae"]
        return Firings(where, run, meta["d_sae"], meta["tokens"], first, sae, counts, starts, tuple(parts))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{where}: these codes are not whole ({error}); delete the folder and run `monosem measure {folder}`"
        ) from error


def codes_header(folder: Path, run: str) -> dict[str, Any] | None:
    """Return the header of a run's codes, None when there are no whole ones."""
    try:
        return read_json(open_firings(folder, run).folder / "meta.json")["header"]
    except UserError:
        return None


def require_current(firings: Firings) -> None:
    """Raise UserError when a run's codes are not of the weights and of the held-out text that the study has now."""
    folder = firings.folder.parents[1]
    mend = f"run `monosem measure {folder}`"
    ours = read_json(folder / "saes" / firings.run / "cfg.json").get("monosem")
    if isinstance(ours, dict) and ours.get("weights_sha256", firings.sae) != firings.sae:
        raise UserError(f"{firings.folder}: codes of other weights than {firings.run} has now; {mend}")
    passages = folder / "codes" / "passages.json"
    if passages.exists():
        text, own = (read_json(path).get("header") or {} for path in (passages, firings.folder / "meta.json"))
        if any(text.get(key, own[key]) != own[key] for key in ("activations", "tokens") if key in own):
            raise UserError(f"{firings.folder}: codes of another text than the held-out one; {mend}")


@contextlib.contextmanager
def all_or_none(writers: Iterable[FiringsWriter]) -> Iterator[None]:
    """Remove what the writers have written when an error ends the block before all are finished."""
    try:
        yield
    except BaseException:
        for writer in writers:
            if not (writer.folder / "meta.json").exists():
                shutil.rmtree(writer.folder, ignore_errors=True)
        raise


class FiringsWriter:
    """Writes a run's codes from firings in any order, sorted on disk, with bounded memory (see sorting.py).

    Codes that were there are removed at once; until `finish` has ended there are none.
    """

    def __init__(self, folder: Path, run: str, d_sae: int, header: dict[str, Any], *, memory_rows: int = 4_000_000):
        """Begin anew. folder: the study folder; header: what the codes depend on, with `sae` among it."""
        self.folder, self.d_sae, self.header = codes_folder(folder, run), d_sae, header
        (self.folder / "meta.json").unlink(missing_ok=True)
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.sorter = Sorter(self.folder / "sorting", d_sae, memory_rows)

    @property
    def rows(self) -> int:
        """Return the number of rows so far."""
        return int(self.sorter.counts.sum())

    def add(self, feature: np.ndarray, doc: np.ndarray, pos: np.ndarray, value: np.ndarray) -> None:
        """Add firings, each [n], in any order. Raises UserError when the disk is full."""
        place = np.asarray(doc, dtype=np.int64) << 32 | np.asarray(pos, dtype=np.int64)
        self.sorter.add(Rows(np.array(feature, dtype=np.int32), place, np.array(value, dtype=np.float32)))

    def finish(self, tokens: int, progress: Callable[[int], object] = lambda _rows: None) -> None:
        """Sort and write everything; tokens: how many were encoded; progress: called with rows written.

        Raises UserError when the disk is full.
        """
        parts: dict[str, dict[str, Any]] = {}
        for rows in self.sorter.ordered():
            name = f"part-{len(parts):05d}.parquet"
            size = _write_part(self.folder / name, rows)
            parts[name] = {"rows": len(rows.place), "bytes": size, "sha256": file_hash(self.folder / name)}
            progress(len(rows.place))
        self.sorter.close()
        with BytesIO() as file:
            np.save(file, self.sorter.counts, allow_pickle=False)
            counts = write_bytes(self.folder / "counts.npy", file.getvalue())
        facts = {"d_sae": self.d_sae, "tokens": tokens, "rows": self.rows, "counts": counts}
        write_json(self.folder / "meta.json", {"header": self.header, **facts, "parts": parts})


def _write_part(path: Path, rows: Rows) -> int:
    """Write one part and return its bytes."""
    columns = (rows.feature, (rows.place >> 32).astype(np.int32), rows.place.astype(np.int32), rows.value)
    frame = pl.DataFrame(dict(zip(_SCHEMA, columns, strict=True)), schema=_SCHEMA)
    write_atomic(path, lambda file: frame.write_parquet(file, compression="zstd", row_group_size=GROUP_ROWS))
    return path.stat().st_size
