"""Text: documents packed into rows of tokens, split by document. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from monosem.sources import Document, documents
from monosem.types import UserError

__all__ = [
    "Document",
    "Packed",
    "Rows",
    "documents",
    "keep_mask",
    "pack",
    "row_start_id",
    "separator_id",
    "special_ids",
]

_BATCH_CHARACTERS = 500_000
_BATCH_DOCUMENTS = 1_000
_SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")


@dataclass(frozen=True)
class Rows:
    """One split: `tokens`, `doc`, `pos` int32 [rows, context] and `keep` bool [rows, context].

    `doc` is an index into `Packed.documents`, `pos` the position within that document (in tokens, from 0); both are
    -1 at separators and other special tokens. `keep` leaves out position 0 of every row and all special tokens.
    """

    tokens: np.ndarray
    doc: np.ndarray
    pos: np.ndarray
    keep: np.ndarray

    @property
    def kept(self) -> int:
        """Return the number of tokens that `keep` keeps."""
        return int(self.keep.sum())


@dataclass(frozen=True)
class Packed:
    """Both splits, and what made them.

    documents: (source, key) of each document, in the order of `Rows.doc`. separator: the id between documents.
    row_start: the id that starts every row, None for models without one. duplicates: exact copies left out.
    sha256: of the rows' content.
    """

    train: Rows
    eval: Rows
    documents: list[tuple[str, str]]
    separator: int
    row_start: int | None
    duplicates: int
    sha256: str


def pack(
    documents: Iterable[Document],
    tokenizer: Any,
    *,
    context: int,
    train_tokens: int,
    eval_tokens: int,
    max_document_tokens: int = 0,
    separator: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Packed:
    """Tokenise documents and pack them into rows of `context` tokens: the eval split first, then the train split.

    No document is in both splits; exact copies are left out; each document gives at most `max_document_tokens` tokens
    (0: all). One separator stands between documents. There is no padding; what doesn't fill a row is dropped. When
    the tokenizer adds a start token, every row starts with it (and no separator follows it). `train_tokens` and
    `eval_tokens` count kept tokens: each split gets the fewest rows that reach them.
    `tokenizer` is a fast tokenizer of transformers or one of the tokenizers library. `progress(kept, wanted)` is called
    after each batch. Documents are read no further than needed, and held one batch at a time.
    Raises UserError when there is not enough text, or no fast tokenizer or separator.
    """
    if context < 2:
        raise UserError(f"model.context is {context}; it must be at least 2, as position 0 of every row is left out")
    backend = _backend(tokenizer)
    separator = separator_id(tokenizer) if separator is None else separator
    special = np.union1d(special_ids(tokenizer), [separator])
    start = row_start_id(tokenizer)
    evaluation, training = (_Split(n, context, separator, start) for n in (eval_tokens, train_tokens))
    names: list[tuple[str, str]] = []
    unique = _Unique(documents)
    batches = _batches(unique)
    while not (evaluation.full and training.full) and (batch := next(batches, None)):
        encodings = backend.encode_batch_fast([document.text for document in batch], add_special_tokens=False)
        for document, encoding in zip(batch, encodings, strict=True):
            ids = np.array(encoding.ids[: max_document_tokens or None], dtype=np.int32)
            split = training if evaluation.full else evaluation
            if len(ids) and not split.full:
                split.add(ids, len(names), np.isin(ids, special))
                names.append((document.source, document.key))
        if progress is not None:
            progress(evaluation.kept + training.kept, eval_tokens + train_tokens)
    if not (evaluation.full and training.full):
        raise _too_little(evaluation, training, len(names), max_document_tokens)
    rows = evaluation.rows(special), training.rows(special)
    return Packed(rows[1], rows[0], names, separator, start, unique.duplicates, _content_hash(*rows))


def _too_little(evaluation: _Split, training: _Split, count: int, cap: int) -> UserError:
    got = min(evaluation.kept, evaluation.wanted) + min(training.kept, training.wanted)
    cut = f" (each cut at text.max_document_tokens = {cap})" if cap else ""
    return UserError(
        f"the text has only {got:,} tokens in {count:,} documents{cut}, the study needs "
        f"{training.wanted + evaluation.wanted:,}; lower text.train_tokens ({training.wanted:,}) or text.eval_tokens "
        f"({evaluation.wanted:,}), or add text"
    )


def keep_mask(tokens: np.ndarray, special: np.ndarray, attention: np.ndarray | None = None) -> np.ndarray:
    """Return bool [rows, context]: False at position 0, at the ids in `special` and where `attention` (if any) is 0."""
    keep = ~np.isin(tokens, special)
    keep[:, 0] = False
    return keep if attention is None else keep & (attention != 0)


def special_ids(tokenizer: Any) -> np.ndarray:
    """Return the ids of all special tokens of a tokenizer, sorted, int64."""
    added = _backend(tokenizer).get_added_tokens_decoder()
    ids = {number for number, token in added.items() if token.special}
    return np.array(sorted(ids | set(getattr(tokenizer, "all_special_ids", ()))), dtype=np.int64)


def row_start_id(tokenizer: Any) -> int | None:
    """Return the id that the tokenizer itself puts before a text (as Gemma's and Llama's do), or None."""
    backend = _backend(tokenizer)
    plain, full = (backend.encode("a", add_special_tokens=add).ids for add in (False, True))
    return full[0] if len(full) > len(plain) and full[0] in special_ids(tokenizer) else None


def separator_id(tokenizer: Any) -> int:
    """Return the id to put between documents: the start token, else <|endoftext|>, else the end-of-sequence token.

    Raises UserError when the tokenizer has none of them.
    """
    start = row_start_id(tokenizer)
    if start is not None:
        return start
    backend = _backend(tokenizer)
    end = getattr(tokenizer, "eos_token_id", None)
    found = [backend.token_to_id(word) for word in _SEPARATORS]
    for number in (found[0], end, *found[1:]):
        if number is not None:
            return number
    raise UserError("the model's tokenizer has no end-of-text token to put between documents; choose another model")


def _backend(tokenizer: Any) -> Any:
    """Return the `tokenizers.Tokenizer` inside, without truncation or padding; raises UserError when there is none."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "encode_batch_fast"):
        kind = type(tokenizer).__name__
        raise UserError(f"the model's tokenizer ({kind}) is not a fast one; choose a model that has a tokenizer.json")
    if backend.truncation is not None or backend.padding is not None:
        backend = type(backend).from_str(backend.to_str())
        backend.no_truncation()
        backend.no_padding()
    return backend


class _Unique:
    """Iterate over documents without exact copies of earlier texts; `duplicates` counts the copies."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self.documents = documents
        self.duplicates = 0

    def __iter__(self) -> Iterator[Document]:
        seen: set[bytes] = set()
        for document in self.documents:
            digest = hashlib.blake2b(document.text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            if digest in seen:
                self.duplicates += 1
            else:
                seen.add(digest)
                yield document


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS or len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


@dataclass
class _Split:
    """A split that is being filled: complete rows [3, context] (tokens, doc, pos) and what is left over [3, n]."""

    wanted: int
    context: int
    separator: int
    start: int | None
    kept: int = 0
    done: list[np.ndarray] = field(default_factory=list)
    rest: np.ndarray | None = None

    @property
    def full(self) -> bool:
        return self.kept >= self.wanted

    def add(self, ids: np.ndarray, number: int, special: np.ndarray) -> None:
        """Append document `number` (ids, special: [n]) and cut the rows that it completes, until the split is full."""
        stream = np.stack([ids, np.full_like(ids, number), np.arange(len(ids), dtype=np.int32)])
        stream[1:, special] = -1
        if self.rest is not None:
            stream = np.concatenate([self.rest, [[self.separator], [-1], [-1]], stream], axis=1, dtype=np.int32)
        first = [] if self.start is None else [[self.start], [-1], [-1]]
        width = self.context - (self.start is not None)
        at = 0
        while not self.full:
            if first and at < stream.shape[1] and stream[0, at] == self.separator and stream[1, at] == -1:
                at += 1
            if stream.shape[1] - at < width:
                break
            row = stream[:, at : at + width]
            row = np.concatenate([first, row], axis=1, dtype=np.int32) if first else row
            self.done.append(row)
            self.kept += int((row[1, 1:] >= 0).sum())
            at += width
        self.rest = stream[:, at:].copy()

    def rows(self, special: np.ndarray) -> Rows:
        shape = (len(self.done), self.context)
        tokens, doc, pos = (
            np.array([row[plane] for row in self.done], dtype=np.int32).reshape(shape) for plane in range(3)
        )
        return Rows(tokens, doc, pos, keep_mask(tokens, special))


def _content_hash(*splits: Rows) -> str:
    digest = hashlib.sha256()
    for rows in splits:
        digest.update(repr(rows.tokens.shape).encode())
        for array in (rows.tokens, rows.doc, rows.pos, rows.keep):
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
