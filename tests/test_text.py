"""Packing documents into rows."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from monosem import text
from monosem.text import Document, keep_mask, pack, row_start_id, separator_id, special_ids
from monosem.types import UserError


def make_tokenizer(*special: str, start: str | None = None) -> Tokenizer:
    """Train a tiny byte-level BPE; with `start` it puts that token before every text, as Gemma's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[AddedToken(word, special=True) for word in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat and the dog and the bird sat there then"] * 4, trainer)
    if start is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, tokenizer.token_to_id(start))]
        )
    return tokenizer


PLAIN = make_tokenizer("<|endoftext|>", "<|user|>")
STARTED = make_tokenizer("<pad>", "<eos>", "<bos>", start="<bos>")


def made(*texts: str) -> list[Document]:
    return [Document(content, "made", str(number)) for number, content in enumerate(texts)]


def slow_pack(docs, tokenizer, *, context, train_tokens, eval_tokens, cap):
    """Reference: token by token, with Python lists. Returns rows of (token, doc, pos) for eval and train."""
    separator, start, special = separator_id(tokenizer), row_start_id(tokenizer), set(special_ids(tokenizer).tolist())
    splits = []
    seen, number = set(), 0
    queue = list(docs)
    for wanted in (eval_tokens, train_tokens):
        rows, row, kept, empty = [], [], 0, True
        while kept < wanted and queue:
            document = queue.pop(0)
            if document.text in seen:
                continue
            seen.add(document.text)
            ids = tokenizer.encode(document.text, add_special_tokens=False).ids
            ids = ids[:cap] if cap else ids
            if not ids:
                continue
            stream = [(i, -1, -1) if i in special else (i, number, at) for at, i in enumerate(ids)]
            if not empty:
                stream.insert(0, (separator, -1, -1))
            empty = False
            number += 1
            for item in stream:
                if kept >= wanted:
                    break
                if not row and start is not None:
                    if item[0] == separator:
                        continue
                    row.append((start, -1, -1))
                row.append(item)
                if len(row) == context:
                    rows.append(row)
                    kept += sum(d >= 0 for _, d, _ in row[1:])
                    row = []
        splits.append((rows, kept))
    return splits


TEXTS = st.lists(
    st.text(alphabet="the catdog \n1é", max_size=60)
    | st.builds("{}<|user|>{}".format, st.text("ab ", max_size=9), st.text("ab ", max_size=9)),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.integers(2, 9), st.integers(0, 20), st.integers(0, 30), st.sampled_from([0, 1, 3, 10]), st.booleans())
def test_pack_equals_the_slow_reference(texts, context, eval_tokens, train_tokens, cap, started):
    tokenizer = STARTED if started else PLAIN
    sizes = {"context": context, "train_tokens": train_tokens, "eval_tokens": eval_tokens}
    expected = slow_pack(made(*texts), tokenizer, **sizes, cap=cap)
    if expected[0][1] < eval_tokens or expected[1][1] < train_tokens:
        with pytest.raises(UserError, match="the text has only"):
            pack(made(*texts), tokenizer, **sizes, max_document_tokens=cap)
        return
    packed = pack(made(*texts), tokenizer, **sizes, max_document_tokens=cap)
    for rows, (reference, kept) in zip((packed.eval, packed.train), expected, strict=True):
        planes = np.array(reference, dtype=np.int32).reshape(len(reference), context, 3)
        np.testing.assert_array_equal(rows.tokens, planes[..., 0])
        np.testing.assert_array_equal(rows.doc, planes[..., 1])
        np.testing.assert_array_equal(rows.pos, planes[..., 2])
        keep = planes[..., 1] >= 0
        keep[:, 0] = False
        np.testing.assert_array_equal(rows.keep, keep)
        assert rows.kept == kept
        assert all(a.dtype == np.int32 for a in (rows.tokens, rows.doc, rows.pos))
        assert rows.keep.dtype == bool


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.integers(2, 6))
def test_splits_share_no_document_and_keep_every_token_in_place(texts, context):
    docs = made(*texts)
    try:
        packed = pack(docs, PLAIN, context=context, train_tokens=8, eval_tokens=8)
    except UserError:
        return
    used = [set(rows.doc[rows.doc >= 0].tolist()) for rows in (packed.eval, packed.train)]
    assert used[0].isdisjoint(used[1])
    keys = [key for _, key in packed.documents]
    assert len(keys) == len(set(keys))
    for rows in (packed.eval, packed.train):
        inside = rows.doc >= 0
        found = Counter(zip(rows.doc[inside].tolist(), rows.pos[inside].tolist(), strict=True))
        assert not found or max(found.values()) == 1  # each token of each document is served once
        for token, doc, pos in zip(rows.tokens[inside], rows.doc[inside], rows.pos[inside], strict=True):
            ids = PLAIN.encode(docs[int(keys[doc])].text, add_special_tokens=False).ids
            assert ids[pos] == token


def test_keep_mask_golden():
    """A 2 x 5 batch with padding (0) and a start token (1): exactly these positions are kept."""
    tokens = np.array([[1, 5, 6, 7, 8], [9, 4, 1, 0, 0]])
    kept = {(0, 1), (0, 2), (0, 3), (0, 4), (1, 1)}
    assert set(map(tuple, np.argwhere(keep_mask(tokens, np.array([0, 1]))).tolist())) == kept
    attention = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
    masked = keep_mask(tokens, np.array([1]), attention)
    assert set(map(tuple, np.argwhere(masked).tolist())) == kept - {(0, 4)}


def test_pack_golden():
    ids = {word: PLAIN.encode(word, add_special_tokens=False).ids[0] for word in "abcdefgh"}
    packed = pack(made("abcd", "ef", "gh"), PLAIN, context=4, train_tokens=2, eval_tokens=3)
    assert packed.separator == 0
    assert packed.row_start is None
    assert packed.eval.tokens.tolist() == [[ids[c] for c in "abcd"]]
    assert packed.train.tokens.tolist() == [[ids["e"], ids["f"], 0, ids["g"]]]
    assert packed.train.doc.tolist() == [[1, 1, -1, 2]]
    assert packed.train.pos.tolist() == [[0, 1, -1, 0]]
    assert packed.train.keep.tolist() == [[False, True, False, True]]
    assert packed.documents == [("made", "0"), ("made", "1"), ("made", "2")]


def test_rows_start_with_the_models_start_token():
    packed = pack(made("abcd", "ef", "gh" * 9), STARTED, context=5, train_tokens=12, eval_tokens=4)
    start = STARTED.token_to_id("<bos>")
    assert packed.row_start == packed.separator == start
    for rows in (packed.eval, packed.train):
        assert (rows.tokens[:, 0] == start).all()
        assert not ((rows.tokens[:, 0] == start) & (rows.tokens[:, 1] == start)).any()
    assert pack(made("abcd"), STARTED, context=5, train_tokens=4, eval_tokens=0).train.kept == 4


def test_exact_copies_are_left_out():
    packed = pack(made("abcdefgh", "abcdefgh", "hgfedcba"), PLAIN, context=4, train_tokens=6, eval_tokens=6)
    assert packed.duplicates == 1
    assert packed.documents == [("made", "0"), ("made", "2")]


def test_hash_depends_on_content_only():
    sizes = {"context": 4, "train_tokens": 6, "eval_tokens": 3}
    one = pack(made("abcd", "ijklmnop"), PLAIN, **sizes)
    assert one.sha256 == pack(made("abcd", "ijklmnop"), PLAIN, **sizes).sha256
    assert one.sha256 != pack(made("abcd", "ijklmnoq"), PLAIN, **sizes).sha256
    assert one.sha256 != pack(made("abcd", "ijklmnop"), PLAIN, **(sizes | {"train_tokens": 3})).sha256


def test_documents_are_read_no_further_than_needed():
    read = 0

    def stream():
        nonlocal read
        for number in range(100_000):
            read += 1
            yield Document(f"{number} the cat", "made", str(number))

    seen = []
    pack(
        stream(),
        PLAIN,
        context=8,
        train_tokens=100,
        eval_tokens=100,
        progress=lambda kept, all: seen.append((kept, all)),
    )
    assert read <= text._BATCH_DOCUMENTS
    assert seen[-1][0] >= seen[-1][1] == 200


def test_a_tokenizers_own_truncation_is_undone():
    tokenizer = Tokenizer.from_str(PLAIN.to_str())
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    sizes = {"context": 4, "train_tokens": 9, "eval_tokens": 3}
    docs = made("abcdefghijkl", "mnopqrstuvwxyz")
    assert pack(docs, tokenizer, **sizes).sha256 == pack(docs, PLAIN, **sizes).sha256
    assert tokenizer.truncation is not None


def test_separator_and_special_ids():
    assert special_ids(PLAIN).tolist() == [0, 1]
    assert row_start_id(PLAIN) is None
    assert row_start_id(STARTED) == separator_id(STARTED) == 2
    assert separator_id(make_tokenizer("<unk>", "</s>")) == 1
    with pytest.raises(UserError, match="no end-of-text token"):
        separator_id(make_tokenizer("<unk>"))
    with pytest.raises(UserError, match="not a fast one"):
        separator_id(object())


def test_transformers_tokenizer_with_another_end_token():
    from transformers import PreTrainedTokenizerFast

    inner = make_tokenizer("<a>", "<end>", "<pad>")
    wrapped = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<pad>")
    assert separator_id(wrapped) == 1
    assert special_ids(wrapped).tolist() == [0, 1, 2]
    packed = pack(made("abcd", "efgh"), wrapped, context=4, train_tokens=3, eval_tokens=3)
    assert (packed.train.kept, packed.eval.kept) == (3, 3)


def test_too_little_text_says_how_much_there_is():
    with pytest.raises(UserError) as caught:
        pack(made("abcdefgh", "ijkl"), PLAIN, context=4, train_tokens=5_000, eval_tokens=3, max_document_tokens=6)
    message = str(caught.value)
    for part in ("only 6 tokens in 2 documents", "max_document_tokens = 6", "5,003", "text.train_tokens", "add text"):
        assert part in message
    with pytest.raises(UserError, match=r"model\.context is 1"):
        pack(made("abc"), PLAIN, context=1, train_tokens=1, eval_tokens=0)
