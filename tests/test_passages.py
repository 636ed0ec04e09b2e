"""The held-out text as tokens: windows, stretches, and the text of single tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monosem.passages import Passages, open_passages, passages_header, token_texts, write_passages
from monosem.types import UserError
from tests.conftest import make_documents, make_tokenizer

WORDS = ["<s>", "a", " b", " c", "\ufffd", "\n", " <script>", "h", "i", "j"]
# Two packed rows: document 0, a separator, the beginning of document 1; its rest with a special token, document 4.
TOKENS = np.array([[1, 2, 3, 0, 4, 5, 6, 7], [8, 9, 0, 1, 2, 0, 3, 4]], dtype=np.int32)
DOC = np.array([[0, 0, 0, -1, 1, 1, 1, 1], [1, 1, -1, 1, 1, -1, 4, 4]], dtype=np.int32)
POS = np.array([[0, 1, 2, -1, 0, 1, 2, 3], [4, 5, -1, 7, 8, -1, 0, 1]], dtype=np.int32)
MEASURED = (DOC >= 0) & (np.arange(8) > 0)
HEADER = {"version": 1}


@pytest.fixture
def passages(tmp_path: Path) -> Passages:
    write_passages(tmp_path, TOKENS, DOC, POS, MEASURED, WORDS, HEADER)
    return open_passages(tmp_path)


def test_a_window_by_hand(passages: Passages) -> None:
    window = passages.window(1, 1, 2, 1)
    assert window.doc == 1
    assert window.pos.tolist() == [0, 1, 2]
    assert window.token.tolist() == [4, 5, 6]
    assert window.text == ["\ufffd", "\n", " <script>"]
    assert window.measured.tolist() == [True, True, True]
    assert window.at == 1
    assert (window.pos.dtype, window.token.dtype, window.measured.dtype) == (np.int32, np.int32, np.bool_)


def test_windows_end_with_the_packed_row_and_the_document(passages: Passages) -> None:
    assert passages.window(1, 3).pos.tolist() == [0, 1, 2, 3]
    after = passages.window(1, 4)
    assert after.pos.tolist() == [4, 5, 7, 8]  # the special token between them belongs to no document
    assert after.measured.tolist() == [False, True, True, True]
    assert passages.window(0, 2).pos.tolist() == [0, 1, 2]
    assert passages.window(4, 0, 3, 0).pos.tolist() == [0]
    assert passages.window(4, 1).at == 1


def test_a_document_is_its_stretches(passages: Passages) -> None:
    first, second = passages.document(1)
    assert (first.pos.tolist(), second.pos.tolist()) == ([0, 1, 2, 3], [4, 5, 7, 8])
    assert (first.at, second.at) == (0, 0)
    assert second.text == ["i", "j", "a", " b"]
    assert [len(window.pos) for window in passages.document(0)] == [3]
    assert [window.doc for window in passages.document(4)] == [4]


def test_counts_and_measured_positions(passages: Passages) -> None:
    assert (passages.tokens, passages.documents) == (11, 3)
    doc, pos = passages.measured_positions()
    assert doc.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1, 4, 4]
    assert pos.tolist() == [1, 2, 0, 1, 2, 3, 5, 7, 8, 0, 1]
    assert doc.dtype == pos.dtype == np.int32


def test_text_of_ids(passages: Passages) -> None:
    assert passages.text(np.array([2, 6])) == [" b", " <script>"]
    assert passages.text([10, -1]) == ["<token 10>", "<token -1>"]  # a model's logits may have more ids


@pytest.mark.parametrize(("doc", "pos"), [(0, 3), (0, -1), (2, 0), (-1, -1), (9, 0), (1, 6)])
def test_places_that_are_not_there(passages: Passages, doc: int, pos: int) -> None:
    with pytest.raises(UserError, match=f"document {doc}, position {pos}: no such place"):
        passages.window(doc, pos)


@pytest.mark.parametrize("doc", [2, -1, 7])
def test_documents_that_are_not_there(passages: Passages, doc: int) -> None:
    with pytest.raises(UserError, match="not in the held-out text"):
        passages.document(doc)


def test_every_position_is_in_its_window(passages: Passages) -> None:
    for doc in (0, 1, 4):
        for stretch in passages.document(doc):
            for pos, token in zip(stretch.pos.tolist(), stretch.token.tolist(), strict=True):
                window = passages.window(doc, pos, 1, 1)
                assert (window.pos[window.at], window.token[window.at]) == (pos, token)
                assert set(window.pos.tolist()) <= set(stretch.pos.tolist())


def test_missing_and_damaged_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `monosem measure"):
        open_passages(tmp_path)
    assert passages_header(tmp_path) is None
    write_passages(tmp_path, TOKENS, DOC, POS, MEASURED, WORDS, HEADER)
    assert passages_header(tmp_path) == HEADER
    path = tmp_path / "codes" / "passages.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"passages.parquet is truncated"):
        open_passages(tmp_path)
    path.write_bytes(bytes(len(whole)))
    with pytest.raises(UserError, match=r"passages.parquet is truncated or altered"):
        open_passages(tmp_path)
    path.write_bytes(whole)
    facts = tmp_path / "codes" / "passages.json"
    facts.write_text('{"header": {}, "bytes": {}}')
    with pytest.raises(UserError, match=r"an earlier version wrote it.*monosem measure"):
        open_passages(tmp_path)
    path.unlink()
    assert passages_header(tmp_path) is None


def test_a_write_that_was_cut_short_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_passages(tmp_path, TOKENS, DOC, POS, MEASURED, WORDS, HEADER)
    with pytest.raises(TypeError):
        write_passages(tmp_path, TOKENS, DOC, POS, MEASURED, [{1: {2}, (): 1}], HEADER)  # type: ignore[list-item]
    assert passages_header(tmp_path) is None


def test_byte_level_tokens_read_well() -> None:
    tokenizer = make_tokenizer()
    texts = token_texts(tokenizer)
    assert len(texts) == 320
    assert texts[0] == "<|endoftext|>"
    for text in (make_documents(1)[0], "  two spaces\tand\nlines"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert "".join(texts[i] for i in ids) == text
    ids = tokenizer.encode("é", add_special_tokens=False)
    assert [texts[i] for i in ids] == ["\ufffd", "\ufffd"]
    assert " the" in texts


def sentencepiece() -> Any:
    """Return a tokenizer like Llama's: the space is a letter of its own, unknown bytes are tokens `<0xE2>`."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "t", "r", "e", "a", "tr", "ee"]
    merges = [("t", "r"), ("e", "e"), ("▁", "tr"), ("▁tr", "ee")]
    vocabulary = {word: i for i, word in enumerate([*words, "▁tr", "▁tree"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def test_sentencepiece_tokens_keep_their_leading_space() -> None:
    tokenizer = sentencepiece()
    texts = token_texts(tokenizer)
    assert (texts[1], texts[2]) == ("<s>", "</s>")
    ids = tokenizer.encode("tree a\ntreeé", add_special_tokens=False).ids
    assert [texts[i] for i in ids] == [" tree", " ", "a", "\n", "tr", "ee", "\ufffd", "\ufffd"]


def test_unigram_and_wordpiece_tokens() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁the", -1.0), ("a", -2.0), ("▁", -3.0)], unk_id=0))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    assert token_texts(unigram) == ["<unk>", " the", "a", " "]
    wordpiece = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2, "the": 3, "gap": 5}, unk_token="[UNK]"))
    wordpiece.decoder = decoders.WordPiece()
    assert token_texts(wordpiece) == [" [UNK]", " a", "b", " the", "<token 4>", " gap"]
