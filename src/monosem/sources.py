"""Documents from the embedded corpus, from files or from a dataset hub, shuffled by a seed. Imports no torch."""

from __future__ import annotations

import glob
import gzip
import itertools
import json
import random
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monosem.types import UserError

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
_OTHER_SUFFIXES = (".json", ".csv", ".tsv", ".md", ".zip", ".gz", ".zst", ".arrow", ".html", ".xml", ".pdf")
_BUFFER_DOCUMENTS = 10_000
_BUFFER_CHARACTERS = 64_000_000
_PIECE = 4_000  # characters: a single text file is cut into documents of about this length


@dataclass(frozen=True)
class Document:
    """A text, the name of the source that it is from, and a key that finds it there (file, line, row, title)."""

    text: str
    source: str
    key: str


def documents(source: str = "", text_key: str = "text", seed: int = 0, limit: int | None = None) -> Iterator[Document]:
    """Yield documents in an order shuffled by `seed` (with a buffer of 10,000 documents), at most `limit` of them.

    `source` is "" or "embedded" (the default corpus); a file, folder or glob of .txt (a document a file; a single
    file is cut at blank lines into documents of about 4,000 characters), .jsonl, .jsonl.gz or .parquet; or a name for
    the `datasets` library: "name", "name:config", "name:config/split", "name:/split" (split "train" unless named).
    Raises UserError when the source, its text column or its content can't be read.
    """
    if source in ("", "embedded"):
        from monosem.embedded import corpus_file

        stream = _parquet(corpus_file(), "text", corpus=True)
    elif _is_path(source):
        stream = _files(source, text_key, seed)
    else:
        stream = _hub(source, text_key, seed)
    stream = (document for document in stream if document.text.strip())
    first = next(stream, None)
    if first is None:
        raise UserError(f"text.source {source!r}: holds no text; name a source with at least one non-empty document")
    yield from itertools.islice(_shuffled(itertools.chain([first], stream), seed), limit)


def _shuffled(stream: Iterable[Document], seed: int) -> Iterator[Document]:
    """Shuffle with a buffer that holds at most 10,000 documents and about 64 million characters."""
    generator = random.Random(seed)
    buffer: list[Document] = []
    characters = 0
    for document in stream:
        buffer.append(document)
        characters += len(document.text)
        while len(buffer) > _BUFFER_DOCUMENTS or (characters > _BUFFER_CHARACTERS and len(buffer) > 1):
            chosen = generator.randrange(len(buffer))
            buffer[chosen], buffer[-1] = buffer[-1], buffer[chosen]
            out = buffer.pop()
            characters -= len(out.text)
            yield out
    generator.shuffle(buffer)
    yield from buffer


def _is_path(source: str) -> bool:
    if source.startswith((".", "/", "~")) or any(c in source for c in "*?[") or Path(source).exists():
        return True
    return source.lower().endswith((*SUFFIXES, *_OTHER_SUFFIXES))


def source_files(source: str) -> list[Path]:
    """Return the files that a path, folder or pattern means, sorted; none for the embedded corpus and hub names.

    Raises UserError when there is no such file, nothing matches, or a file's kind can't be read.
    """
    if source in ("", "embedded") or not _is_path(source):
        return []
    where = Path(source).expanduser()
    if where.is_dir():
        paths = [path for path in where.rglob("*") if path.is_file() and path.name.endswith(SUFFIXES)]
        if not paths:
            raise UserError(f"text.source {source!r}: the folder holds no {', '.join(SUFFIXES)} file")
    elif where.exists():
        paths = [where]
    elif any(c in source for c in "*?["):
        paths = [Path(path) for path in glob.glob(str(where), recursive=True) if Path(path).is_file()]
        if not paths:
            raise UserError(f"text.source {source!r}: no file matches this pattern; check it against the folder")
    else:
        raise UserError(f"text.source {source!r}: no such file or folder; check the path")
    for path in paths:
        if not path.name.endswith(SUFFIXES):
            raise UserError(f"{path}: this kind of file can't be read; use {', '.join(SUFFIXES)}")
    return sorted(paths)


def text_identity(source: str) -> Any:
    """Return what identifies a text source on disk: names, sizes and times of its files; None for other sources."""
    if source in ("", "embedded"):
        from monosem.embedded import CORPUS_VERSION

        return CORPUS_VERSION
    return [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in source_files(source)]


def _files(source: str, text_key: str, seed: int) -> Iterator[Document]:
    paths = source_files(source)
    random.Random(seed).shuffle(paths)
    for path in paths:
        if path.name.endswith(".parquet"):
            yield from _parquet(path, text_key)
        elif path.name.endswith(".txt"):
            yield from _text(path, whole=len(paths) > 1)
        else:
            yield from _jsonl(path, text_key)


def _lines(path: Path) -> Iterator[str]:
    """Yield lines (at most 16,000 characters of .txt at a time); raises UserError unless the file is UTF-8."""
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else open(path, encoding="utf-8-sig") as file
        ):
            while line := file.readline(4 * _PIECE if path.suffix == ".txt" else -1):
                yield line
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}); convert the file to UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: can't be read ({error}); check the file and its permissions") from error


def _text(path: Path, whole: bool) -> Iterator[Document]:
    if whole:
        yield Document("".join(_lines(path)), path.name, str(path))
        return
    piece: list[str] = []
    length = number = 0
    for line in itertools.chain(_lines(path), [None]):
        if line is not None:
            piece.append(line)
            length += len(line)
        ends = line is None or (length >= _PIECE and not line.strip()) or length >= 4 * _PIECE
        if ends and piece:
            yield Document("".join(piece), path.name, f"{path}#{number}")
            piece, length, number = [], 0, number + 1


def _jsonl(path: Path, text_key: str) -> Iterator[Document]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not valid JSON ({error}); mend or delete the line") from error
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {number}: not a JSON object; each line must be like {{{text_key!r}: ...}}")
        text = _field(record, text_key, f"{path}, line {number}")
        yield Document(text, path.name, f"{path}:{number}")


def _field(record: dict[str, Any], text_key: str, where: str) -> str:
    if text_key not in record:
        raise _no_column(where, text_key, record)
    text = record[text_key]
    if not isinstance(text, str | None):
        kind = type(text).__name__
        raise UserError(
            f"{where}: the column {text_key!r} holds a {kind}, not text; set text.text_key to a text column"
        )
    return (text or "").encode("utf-8", "replace").decode("utf-8")  # JSON can hold halves of surrogate pairs


def _no_column(where: str, text_key: str, columns: Iterable[str]) -> UserError:
    names = ", ".join(sorted(map(str, columns)))
    return UserError(f"{where}: has no column {text_key!r}; set text.text_key to one of: {names}")


def _parquet(path: Path, text_key: str, corpus: bool = False) -> Iterator[Document]:
    import polars as pl

    try:
        table = pl.scan_parquet(path)
        schema = table.collect_schema()
        if text_key not in schema:
            raise _no_column(str(path), text_key, schema)
        if schema[text_key] not in (pl.String, pl.Null):
            kind = schema[text_key]
            raise UserError(
                f"{path}: the column {text_key!r} holds {kind}, not text; set text.text_key to a text column"
            )
        table = table.select("text", "source", "key") if corpus else table.select(text_key)
        for start in itertools.count(0, _BUFFER_DOCUMENTS):
            rows = table.slice(start, _BUFFER_DOCUMENTS).collect().rows()
            for number, (text, *named) in enumerate(rows, start):
                yield Document(text or "", *(named or (path.name, f"{path}:{number}")))
            if len(rows) < _BUFFER_DOCUMENTS:
                return
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path}: can't be read as parquet ({error}); check the file") from error


def _hub(source: str, text_key: str, seed: int) -> Iterator[Document]:
    """Stream from the `datasets` library, shuffled there too (its shards and a buffer)."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"text.source {source!r}: a dataset's name needs the `datasets` library; run `pip install "
            "'monosem[datasets]'`, or name a file, folder or glob"
        ) from error
    name, _, rest = source.partition(":")
    config, _, split = rest.partition("/")
    try:
        rows = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
        for number, record in enumerate(rows.shuffle(seed=seed, buffer_size=_BUFFER_DOCUMENTS)):
            yield Document(_field(dict(record), text_key, f"dataset {source!r}"), name, f"{source}:{number}")
    except UserError:
        raise
    except Exception as error:  # the library lets through errors of its HTTP client, of pyarrow, and its own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"text.source {source!r}: this dataset can't be read ({first}); check its name (name:config/split), its "
            "access rights and the network, or name a local file, folder or glob"
        ) from error
