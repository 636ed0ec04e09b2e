"""The held-out text as tokens: what stands around a position, readable without the model. Imports no torch.

`codes/passages.parquet` has one row for each held-out position that belongs to a document, sorted by (doc, pos): `doc`,
`pos`, `token`, `row` (the packed row that the model saw) int32, and `measured` bool, whether codes were computed there.
`codes/vocabulary.json` lists the text of each token id. `codes/passages.json`, written last, holds the SHA-256 of both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from monosem.store import file_hash, read_json, write_atomic, write_json
from monosem.types import UserError

PASSAGES_VERSION = 2
_SCHEMA = {"doc": pl.Int32, "pos": pl.Int32, "token": pl.Int32, "row": pl.Int32, "measured": pl.Boolean}


@dataclass(frozen=True, eq=False)
class Window:
    """A stretch of one document, never across what the model saw at once (a packed row).

    pos, token: int32 [n]; text: of each token; measured: bool [n], whether codes were computed there; at: index of the
    middle token within the window.
    """

    doc: int
    pos: np.ndarray
    token: np.ndarray
    text: list[str]
    measured: np.ndarray
    at: int


@dataclass(frozen=True, eq=False)
class Passages:
    """The held-out text, in memory: 21 bytes a position. Several threads may read at once.

    tokens: measured tokens; documents: those that have any; vocabulary: text of each token id; place: int64
    [positions], doc * 2^32 + pos, ascending; bounds: where each stretch (document and packed row) begins and, last,
    where all end.
    """

    tokens: int
    documents: int
    vocabulary: list[str] = field(repr=False)
    place: np.ndarray = field(repr=False)
    token: np.ndarray = field(repr=False)
    measured: np.ndarray = field(repr=False)
    bounds: np.ndarray = field(repr=False)

    def window(self, doc: int, pos: int, before: int = 4, after: int = 4) -> Window:
        """Return the tokens around a position; fewer where the document or the packed row ends.

        Raises UserError when there is no such position.
        """
        wanted = (int(doc) << 32) + int(pos)
        at = int(np.searchsorted(self.place, wanted))
        if not (pos >= 0 and at < len(self.place) and self.place[at] == wanted):
            raise UserError(f"document {doc}, position {pos}: no such place in the held-out text")
        stretch = int(np.searchsorted(self.bounds, at, side="right"))
        low, high = int(self.bounds[stretch - 1]), int(self.bounds[stretch])
        return self._window(max(low, at - before), min(high, at + after + 1), at)

    def document(self, doc: int) -> list[Window]:
        """Return a document's stretches, one a packed row, each with at = 0. Raises UserError for an unknown one."""
        low, high = np.searchsorted(self.place, [int(doc) << 32, (int(doc) + 1) << 32])
        if low == high:
            raise UserError(f"document {doc}: not in the held-out text")
        first, last = np.searchsorted(self.bounds, [low, high])
        edges = self.bounds[first : last + 1].tolist()
        return [self._window(start, stop, start) for start, stop in pairwise(edges)]

    def text(self, tokens: Iterable[int]) -> list[str]:
        """Return the text of each token id; bytes that are no whole character show as \\ufffd."""
        return [self.vocabulary[int(i)] if 0 <= int(i) < len(self.vocabulary) else nameless(int(i)) for i in tokens]

    def measured_positions(self) -> tuple[np.ndarray, np.ndarray]:
        """Return doc and pos, int32 [tokens], of all measured tokens, in order."""
        place = self.place[self.measured]
        return (place >> 32).astype(np.int32), place.astype(np.int32)

    def _window(self, start: int, stop: int, at: int) -> Window:
        token = self.token[start:stop]
        pos = self.place[start:stop].astype(np.int32)
        measured = self.measured[start:stop]
        return Window(int(self.place[at] >> 32), pos, token, self.text(token), measured, at - start)


def passages_header(folder: Path) -> dict[str, Any] | None:
    """Return the header of a study's passages, None when there are no whole ones."""
    try:
        return _header(folder)
    except UserError:
        return None


def _header(folder: Path) -> dict[str, Any]:
    where = folder / "codes"
    if not (where / "passages.json").exists():
        raise UserError(f"{where}: no held-out text; run `monosem measure {folder}` first, with measure.codes = true")
    facts = read_json(where / "passages.json")
    try:
        if "sha256" not in facts:
            raise ValueError("an earlier version wrote it")
        for name, digest in facts["sha256"].items():
            if file_hash(where / name) != digest:
                raise ValueError(f"{name} is truncated or altered")
        return facts["header"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{where / 'passages.json'}: the held-out text is not whole ({error}); delete this file and run "
            f"`monosem measure {folder}`"
        ) from error


def open_passages(folder: Path) -> Passages:
    """Read the held-out text; folder: the study folder. Raises UserError when it is missing, not whole or altered."""
    _header(folder)
    path = folder / "codes" / "passages.parquet"
    try:
        frame = pl.read_parquet(path, glob=False).select(*_SCHEMA)
    except (pl.exceptions.PolarsError, OSError, pl.exceptions.PanicException) as error:
        raise UserError(f"{path}: can't be read ({error}); delete it and run `monosem measure {folder}`") from error
    doc, pos, token, row, measured = (frame[name].to_numpy() for name in _SCHEMA)
    begins = np.flatnonzero((np.diff(doc, prepend=-1) != 0) | (np.diff(row, prepend=-1) != 0))
    return Passages(
        int(measured.sum()),
        len(np.unique(doc[measured])),
        read_json(folder / "codes" / "vocabulary.json"),
        doc.astype(np.int64) << 32 | pos,
        token,
        measured,
        np.append(begins, len(doc)),
    )


def write_passages(
    folder: Path,
    tokens: np.ndarray,
    doc: np.ndarray,
    pos: np.ndarray,
    measured: np.ndarray,
    vocabulary: list[str],
    header: dict[str, Any],
) -> None:
    """Write the held-out text; header: what it depends on.

    tokens, doc, pos: packed rows, int32 [rows, context]; doc is -1 at what belongs to no document, which is left out.
    measured: bool [rows, context]. Raises UserError when the disk is full.
    """
    where = folder / "codes"
    (where / "passages.json").unlink(missing_ok=True)
    row, column = np.nonzero(doc >= 0)
    at = row, column
    numbers = (values.astype(np.int32) for values in (doc[at], pos[at], tokens[at], row))
    columns = dict(zip(_SCHEMA, (*numbers, measured[at]), strict=True))
    frame = pl.DataFrame(columns, schema=_SCHEMA).sort("doc", "pos")
    write_atomic(where / "passages.parquet", lambda file: frame.write_parquet(file, compression="zstd"))
    write_json(where / "vocabulary.json", vocabulary)
    digests = {name: file_hash(where / name) for name in ("passages.parquet", "vocabulary.json")}
    write_json(where / "passages.json", {"header": header, "sha256": digests})


def token_texts(tokenizer: Any) -> list[str]:
    """Return the text of each token id, by the tokenizer's own decoder, with leading spaces.

    tokenizer: a fast one of transformers, or one of the tokenizers library. Each token is decoded after a letter,
    because decoders drop the space before a text's first word. Ids without a text of their own are named.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
    letter = backend.encode("a", add_special_tokens=False).ids[-1:]
    before = backend.decode(letter, skip_special_tokens=False)
    after_letter = backend.decode_batch([[*letter, i] for i in range(size)], skip_special_tokens=False)
    return [
        text.removeprefix(before) if text.startswith(before) and text != before else _alone(backend, i)
        for i, text in enumerate(after_letter)
    ]


def _alone(backend: Any, token: int) -> str:
    return backend.decode([token], skip_special_tokens=False) or nameless(token)


def nameless(token: int) -> str:
    """Return what stands for a token id that has no text."""
    return f"<token {token}>"
