"""Documents from every kind of source, and one clear sentence for every bad one."""

from __future__ import annotations

import gzip
import json
import sys
import types
from pathlib import Path

import polars as pl
import pytest

from monosem.sources import Document, documents
from monosem.types import UserError


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_every_kind_of_file_and_their_mixture(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "one", "n": 1}, {"text": "two"}, {"text": None}])
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write('{"text": "three"}\n\n{"text": "  "}\n')
    pl.DataFrame({"text": ["four", None, "five"], "n": [1, 2, 3]}).write_parquet(tmp_path / "c.parquet")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.txt").write_bytes("\ufeffsix é\r\n\r\nseven".encode())
    (tmp_path / "ignored.csv").write_text("x")
    found = {document.text: document for document in documents(str(tmp_path))}
    assert set(found) == {"one", "two", "three", "four", "five", "six é\n\nseven"}
    assert found["two"] == Document("two", "a.jsonl", f"{tmp_path / 'a.jsonl'}:2")
    assert found["five"].key == f"{tmp_path / 'c.parquet'}:2"
    assert {d.text for d in documents(str(tmp_path / "*.parquet"))} == {"four", "five"}
    assert {d.text for d in documents(str(tmp_path / "**" / "*.txt"))} == {"six é\n\nseven"}
    assert [d.text for d in documents(str(tmp_path / "c.parquet"), limit=1)] in (["four"], ["five"])


def test_a_single_text_file_is_cut_into_documents(tmp_path):
    paragraphs = [f"paragraph {number} " + "word " * 300 + "\n\n" for number in range(20)]
    path = tmp_path / "book.txt"
    path.write_text("".join(paragraphs) + "x" * 50_000)
    pieces = sorted(documents(str(path)), key=lambda d: int(d.key.rpartition("#")[2]))
    assert "".join(piece.text for piece in pieces) == path.read_text()
    assert len(pieces) > 5
    assert max(len(piece.text) for piece in pieces) < 32_000
    assert all(piece.text.startswith("paragraph") for piece in pieces[:4])


def test_order_is_shuffled_by_the_seed(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": str(number)} for number in range(300)])
    one, again, other = ([d.text for d in documents(str(path), seed=seed)] for seed in (1, 1, 2))
    assert one == again != other
    assert sorted(one) == sorted(other) == sorted(map(str, range(300)))
    assert one != list(map(str, range(300)))
    monkeypatch.setattr("monosem.sources._BUFFER_DOCUMENTS", 7)
    short = [d.text for d in documents(str(path), seed=1)]
    assert sorted(short) == sorted(one)
    assert short != list(map(str, range(300)))
    monkeypatch.setattr("monosem.sources._BUFFER_CHARACTERS", 3)
    assert sorted(d.text for d in documents(str(path), seed=1)) == sorted(one)


def test_half_surrogates_do_not_reach_the_tokenizer(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "bad \\ud800 half"}\n')
    (document,) = documents(str(tmp_path / "a.jsonl"))
    assert document.text == "bad ? half"


def bad(tmp_path: Path, name: str, content: bytes) -> str:
    (tmp_path / name).write_bytes(content)
    return str(tmp_path / name)


BAD_INPUTS = {
    "missing file": (lambda p: str(p / "no.txt"), "text", ["no.txt", "no such file"]),
    "missing csv is a path, not a dataset": (lambda p: "nowhere.csv", "text", ["nowhere.csv", "no such file"]),
    "empty glob": (lambda p: str(p / "*.jsonl"), "text", ["*.jsonl", "no file matches"]),
    "empty folder": (lambda p: str(p), "text", ["the folder holds no .txt, .jsonl"]),
    "unsupported": (lambda p: bad(p, "a.csv", b"x"), "text", ["a.csv", "can't be read; use .txt"]),
    "blank": (lambda p: bad(p, "a.txt", b" \n\n "), "text", ["a.txt", "holds no text"]),
    "no bytes": (lambda p: bad(p, "a.jsonl", b""), "text", ["a.jsonl", "holds no text"]),
    "latin-1": (lambda p: bad(p, "a.txt", b"caf\xe9"), "text", ["a.txt", "not UTF-8", "convert"]),
    "bad line": (lambda p: bad(p, "a.jsonl", b'{"text": "x"}\n{"te'), "text", ["a.jsonl, line 2", "not valid JSON"]),
    "nested": (lambda p: bad(p, "a.jsonl", b"[" * 200_000), "text", ["a.jsonl, line 1", "not valid JSON"]),
    "not an object": (lambda p: bad(p, "a.jsonl", b"[1]\n"), "text", ["line 1", "not a JSON object"]),
    "column": (
        lambda p: bad(p, "a.jsonl", b'{"body": "x", "id": 1}\n'),
        "text",
        ["line 1", "no column 'text'", "body, id"],
    ),
    "number": (lambda p: bad(p, "a.jsonl", b'{"text": 3}\n'), "text", ["line 1", "holds a int, not text"]),
    "gzip": (lambda p: bad(p, "a.jsonl.gz", b"not gzip"), "text", ["a.jsonl.gz", "can't be read"]),
    "cut gzip": (
        lambda p: bad(p, "a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 99)[:30]),
        "text",
        ["a.jsonl.gz", "can't be read"],
    ),
    "parquet": (lambda p: bad(p, "a.parquet", b"PAR1 no"), "text", ["a.parquet", "can't be read as parquet"]),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_one_clear_sentence(tmp_path, case):
    make, text_key, parts = BAD_INPUTS[case]
    with pytest.raises(UserError) as caught:
        list(documents(make(tmp_path), text_key))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_bad_parquet_columns(tmp_path):
    path = tmp_path / "a.parquet"
    pl.DataFrame({"body": ["x"], "n": [1]}).write_parquet(path)
    with pytest.raises(UserError, match=r"no column 'text'; set text\.text_key to one of: body, n"):
        list(documents(str(path)))
    with pytest.raises(UserError, match="'n' holds Int64, not text"):
        list(documents(str(path), "n"))
    assert [d.text for d in documents(str(path), "body")] == ["x"]


# --- the `datasets` library ------------------------------------------------------------------------------------------


def fake_datasets(monkeypatch, load):
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load))


def test_dataset_names(monkeypatch):
    datasets = pytest.importorskip("datasets")
    calls = []

    def load(name, config, *, split, streaming):
        calls.append((name, config, split, streaming))
        return datasets.IterableDataset.from_generator(lambda: ({"body": f"text {n}", "n": n} for n in range(9)))

    monkeypatch.setattr(datasets, "load_dataset", load)
    one = [d.text for d in documents("owner/name:small/validation", "body", seed=3)]
    assert sorted(one) == [f"text {n}" for n in range(9)]
    assert one == [d.text for d in documents("owner/name:small/validation", "body", seed=3)]
    for name in ("owner/name", "name:small", "name:/test"):
        assert next(documents(name, "body")).source == name.partition(":")[0]
    assert calls[0] == ("owner/name", "small", "validation", True)
    assert [call[:3] for call in calls[2:]] == [
        ("owner/name", None, "train"),
        ("name", "small", "train"),
        ("name", None, "test"),
    ]
    with pytest.raises(UserError, match=r"no column 'text'; set text\.text_key to one of: body, n"):
        next(documents("name"))
    with pytest.raises(UserError, match="'n' holds a int"):
        next(documents("name", "n"))


def test_dataset_library_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'monosem\[datasets\]'"):
        next(documents("owner/name"))


@pytest.mark.parametrize("error", [ConnectionError("offline\nlong story"), ValueError("Unknown split"), OSError()])
def test_dataset_that_cannot_be_read(monkeypatch, error):
    def load(*args, **options):
        raise error

    fake_datasets(monkeypatch, load)
    with pytest.raises(UserError, match="'owner/name': this dataset can't be read") as caught:
        next(documents("owner/name"))
    assert "\n" not in str(caught.value)
