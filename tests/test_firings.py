"""Codes on disk: written by an external sort, read one feature at a time."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monosem import firings
from monosem.firings import Firings, FiringsWriter, all_or_none, codes_header, open_firings, require_current
from monosem.store import write_json
from monosem.types import UserError

HEADER = {"version": 1, "sae": "abc"}
Table = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

# feature, doc, pos, value; feature 1 and the last one never fire
SMALL = [(2, 1, 7, 0.5), (0, 0, 3, 1.0), (2, 0, 9, 2.0), (2, 1, 2, 4.0), (0, 0, 1, 8.0), (3, 5, 0, 16.0)]


def table(rows: list[tuple[int, int, int, float]]) -> Table:
    feature, doc, pos, value = (np.array(column) for column in zip(*rows, strict=True))
    return feature, doc, pos, value.astype(np.float32)


def random_table(rows: int, d_sae: int, seed: int = 0) -> Table:
    """Distinct places; half of the rows belong to feature 1."""
    rng = np.random.default_rng(seed)
    feature = np.where(rng.random(rows) < 0.5, 1, rng.integers(0, d_sae, rows))
    place = rng.permutation(3 * rows)[:rows]
    return feature, place // 50, place % 50, rng.random(rows, dtype=np.float32) + 0.1


def write(folder: Path, data: Table, d_sae: int, memory_rows: int = 4_000_000, batches: int = 1) -> Firings:
    writer = FiringsWriter(folder, "run", d_sae, HEADER, memory_rows=memory_rows)
    for piece in zip(*(np.array_split(column, batches) for column in data), strict=True):
        writer.add(*piece)
    assert writer.rows == len(data[0])
    writer.finish(10)
    return open_firings(folder, "run")


def check(opened: Firings, data: Table) -> None:
    """Compare every feature, read alone and streamed, with a sort of everything in memory."""
    feature, doc, pos, value = data
    order = np.lexsort((pos, doc, feature))
    streamed = dict(opened.each())
    assert list(streamed) == list(range(opened.d_sae))
    assert opened.counts.tolist() == np.bincount(feature, minlength=opened.d_sae).tolist()
    for number in range(opened.d_sae):
        mine = order[feature[order] == number]
        for fires in (opened.of(number), streamed[number]):
            assert fires.doc.tolist() == doc[mine].tolist()
            assert fires.pos.tolist() == pos[mine].tolist()
            assert fires.value.tolist() == value[mine].tolist()


def test_a_small_case_by_hand(tmp_path: Path) -> None:
    opened = write(tmp_path, table(SMALL), 5)
    assert (opened.d_sae, opened.tokens, opened.rows, opened.sae) == (5, 10, 6, "abc")
    assert opened.counts.tolist() == [2, 0, 3, 1, 0]
    fires = opened.of(2)
    assert list(zip(fires.doc, fires.pos, fires.value, strict=True)) == [(0, 9, 2.0), (1, 2, 4.0), (1, 7, 0.5)]
    assert [column.dtype for column in fires] == [np.int32, np.int32, np.float32]
    assert all(len(column) == 0 for column in opened.of(1))
    assert [column.dtype for column in opened.of(4)] == [np.int32, np.int32, np.float32]
    assert [(number, fires.value.tolist()) for number, fires in opened.each([3, 1, 3])] == [(1, []), (3, [16.0])]
    assert codes_header(tmp_path, "run") == HEADER


def test_the_files_are_plain_sorted_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(firings, "GROUP_ROWS", 64)
    opened = write(tmp_path, random_table(1000, 20), 20, memory_rows=300, batches=7)
    files = sorted((tmp_path / "codes" / "run").glob("*.parquet"))
    assert [path.name for path in files] == [f"part-{number:05d}.parquet" for number in range(len(files))]
    assert len(files) > 3
    whole = pl.concat([pl.read_parquet(path) for path in files])
    assert dict(whole.schema) == {"feature": pl.Int32, "doc": pl.Int32, "pos": pl.Int32, "value": pl.Float32}
    assert whole.equals(whole.sort("feature", "doc", "pos"))
    assert (whole["value"] > 0).all()
    assert whole.height == opened.rows == 1000
    metas = [parquet.ParquetFile(path).metadata for path in files]
    groups = [meta.row_group(number) for meta in metas for number in range(meta.num_row_groups)]
    assert max(group.num_rows for group in groups) == 64
    assert all(group.column(0).statistics.has_min_max for group in groups)


@pytest.mark.parametrize("memory_rows", [20, 60, 300, 10**6])
@pytest.mark.parametrize("in_order", [True, False])
def test_what_does_not_fit_into_memory_is_merged(tmp_path: Path, memory_rows: int, in_order: bool) -> None:
    """Half of the rows are of one feature, which is cut by places when it doesn't fit."""
    data = random_table(500, 20)
    if in_order:
        order = np.lexsort((data[2], data[1]))
        data = tuple(column[order] for column in data)
    opened = write(tmp_path, data, 20, memory_rows, batches=9)  # type: ignore[arg-type]
    check(opened, data)  # type: ignore[arg-type]
    assert max(part.rows for part in opened.parts) <= memory_rows
    assert [path.name for path in opened.folder.iterdir() if path.is_dir()] == []


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2**31 - 1), st.integers(0, 3)), unique=True),
    memory_rows=st.integers(1, 40),
    batches=st.integers(1, 6),
)
def test_any_firings_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, int]], memory_rows: int, batches: int
) -> None:
    columns = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    data = (*columns, np.arange(1, len(rows) + 1, dtype=np.float32))
    check(write(tmp_path_factory.mktemp("codes"), data, 6, memory_rows, batches), data)  # type: ignore[arg-type]


def test_a_feature_cut_by_row_groups_and_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firings, "GROUP_ROWS", 7)
    monkeypatch.setattr(firings, "READ_ROWS", 11)
    data = random_table(400, 12)
    opened = write(tmp_path, data, 12, memory_rows=90, batches=3)
    check(opened, data)
    some = [number for number, _ in opened.each([11, 0, 5])]
    assert some == [0, 5, 11]


def test_streaming_reads_little_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = write(tmp_path, random_table(400, 40), 40)
    monkeypatch.setattr(firings, "READ_ROWS", 30)
    sizes: list[int] = []
    read = Firings._read

    def spy(self: Firings, first: int, last: int) -> dict[str, np.ndarray]:
        rows = read(self, first, last)
        sizes.append(len(rows["feature"]))
        return rows

    monkeypatch.setattr(Firings, "_read", spy)
    assert sum(len(fires.doc) for _, fires in opened.each()) == 400
    assert max(sizes) == max(30, int(opened.counts.max()))
    assert len(sizes) < 20


def test_threads_read_side_by_side(tmp_path: Path) -> None:
    opened = write(tmp_path, random_table(2000, 30), 30, memory_rows=500, batches=4)
    wanted = [number % 30 for number in range(300)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda number: opened.of(number).value.tolist(), wanted))
    alone = {number: opened.of(number).value.tolist() for number in range(30)}
    assert got == [alone[number] for number in wanted]


def test_no_firings_at_all(tmp_path: Path) -> None:
    opened = write(tmp_path, table(SMALL[:1]), 3)
    writer = FiringsWriter(tmp_path, "run", 3, HEADER)
    writer.finish(10)
    opened = open_firings(tmp_path, "run")
    assert (opened.rows, opened.tokens) == (0, 10)
    assert [len(fires.doc) for _, fires in opened.each()] == [0, 0, 0]


def test_progress_counts_rows(tmp_path: Path) -> None:
    writer = FiringsWriter(tmp_path, "run", 20, HEADER, memory_rows=60)
    for piece in zip(*(np.array_split(column, 5) for column in random_table(200, 20)), strict=True):
        writer.add(*piece)
    told: list[int] = []
    writer.finish(10, told.append)
    assert sum(told) == 200
    assert len(told) > 2


@pytest.mark.parametrize("feature", [-1, 5, 10**9])
def test_a_feature_out_of_range(tmp_path: Path, feature: int) -> None:
    opened = write(tmp_path, table(SMALL), 5)
    with pytest.raises(UserError, match=f"feature {feature}: run has the features 0 to 4"):
        opened.of(feature)
    with pytest.raises(UserError, match="features 0 to 4"):
        list(opened.each([2, feature]))
    with pytest.raises(ValueError, match="features must be 0 to 4"):
        FiringsWriter(tmp_path, "other", 5, HEADER).add(*table([(feature, 0, 0, 1.0)]))


@pytest.mark.parametrize("run", ["../run", "a/b", "", ".", "..", "run\n", "/etc"])
def test_names_that_leave_the_folder(tmp_path: Path, run: str) -> None:
    with pytest.raises(UserError, match="no such run"):
        open_firings(tmp_path, run)


def test_missing_codes_say_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no codes of run r; run `monosem measure .* first"):
        open_firings(tmp_path, "r")
    assert codes_header(tmp_path, "r") is None


def _truncate(folder: Path) -> None:
    path = folder / "part-00000.parquet"
    path.write_bytes(path.read_bytes()[:-1])


def _counts(folder: Path, value: Any) -> None:
    with open(folder / "counts.npy", "wb") as file:
        np.save(file, value)


def _meta(folder: Path, **changes: Any) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, **changes}))


DAMAGE = {
    "a part is missing": lambda folder: (folder / "part-00000.parquet").unlink(),
    "a part is truncated": _truncate,
    "the counts are missing": lambda folder: (folder / "counts.npy").unlink(),
    "the counts are pickled": lambda folder: (folder / "counts.npy").write_bytes(pickle.dumps([2, 0, 3, 1, 0])),
    "the counts are empty": lambda folder: (folder / "counts.npy").write_bytes(b""),
    "the counts are a zip": lambda folder: (folder / "counts.npy").write_bytes(b"PK\3\4" + bytes(100)),
    "the counts are fractions": lambda folder: _counts(folder, np.array([2.0, 0, 3, 1, 0])),
    "the counts hold objects": lambda folder: _counts(folder, np.array([2, 0, 3, 1, None])),
    "the counts are of another run": lambda folder: _counts(folder, np.array([1, 0, 3, 1, 0])),
    "another width": lambda folder: _meta(folder, d_sae=6),
    "no parts": lambda folder: _meta(folder, parts=None),
    "no header": lambda folder: _meta(folder, header=None),
    "meta.json is no JSON": lambda folder: (folder / "meta.json").write_text("{"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_altered_codes_are_refused(tmp_path: Path, how: str) -> None:
    folder = write(tmp_path, table(SMALL), 5).folder
    DAMAGE[how](folder)
    with pytest.raises(UserError, match=r"codes.run"):
        open_firings(tmp_path, "run")
    assert codes_header(tmp_path, "run") is None


def test_damage_that_keeps_the_size_is_found_when_read(tmp_path: Path) -> None:
    opened = write(tmp_path, random_table(1000, 20), 20)
    path = opened.parts[0].path
    data = path.read_bytes()
    path.write_bytes(bytes(len(data)))
    with pytest.raises(UserError, match=r"damaged .*part-00000.parquet is altered"):
        opened.of(1)
    path.write_bytes(data)
    moved = Firings(*({**vars(opened), "starts": opened.starts + 1}).values())
    with pytest.raises(UserError, match="rows of feature"):
        moved.of(0)
    path.unlink()
    with pytest.raises(UserError, match="damaged"):
        list(opened.each())


def test_other_rows_of_the_same_size_are_found_when_read(tmp_path: Path) -> None:
    """Also after the part was read once; whoever opened it before."""
    opened = write(tmp_path, table(SMALL), 5)
    assert opened.of(3).value.tolist() == [16.0]
    path = opened.parts[0].path
    size = path.stat().st_size
    frame = pl.read_parquet(path).with_columns(pl.col("value") * 2)
    frame.write_parquet(path, compression="zstd", row_group_size=firings.GROUP_ROWS)
    assert path.stat().st_size == size
    for one in (opened, open_firings(tmp_path, "run")):
        with pytest.raises(UserError, match=r"part-00000.parquet is altered"):
            one.of(3)


def test_codes_of_an_earlier_version_say_what_to_run(tmp_path: Path) -> None:
    folder = write(tmp_path, table(SMALL), 5).folder
    meta = json.loads((folder / "meta.json").read_text())
    del meta["counts"]
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match=r"an earlier version wrote them.*monosem measure"):
        open_firings(tmp_path, "run")


def test_codes_must_be_of_the_weights_and_the_text_that_there_are(tmp_path: Path) -> None:
    writer = FiringsWriter(tmp_path, "run", 3, {"sae": "abc", "tokens": "t1"})
    writer.finish(10)
    opened = open_firings(tmp_path, "run")
    cfg, passages = tmp_path / "saes" / "run" / "cfg.json", tmp_path / "codes" / "passages.json"
    write_json(cfg, {"monosem": {"weights_sha256": "abc"}})
    require_current(opened)
    write_json(passages, {"header": {"tokens": "t1", "version": 9}})
    require_current(opened)
    write_json(passages, {"header": {"tokens": "t2"}})
    with pytest.raises(UserError, match="another text than the held-out one; run `monosem measure"):
        require_current(opened)
    write_json(cfg, {"monosem": {"weights_sha256": "abd"}})
    with pytest.raises(UserError, match="other weights than run has now; run `monosem measure"):
        require_current(opened)


def test_a_disk_that_fills_while_rows_wait_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy says it without the system's error number. Writers beside it are cleared, too, unless they had finished."""
    done, full, beside = (FiringsWriter(tmp_path, run, 20, HEADER, memory_rows=50) for run in "abc")
    beside.add(*random_table(200, 20))
    done.finish(10)

    def save(*_args: object, **_options: object) -> None:
        raise OSError("120000 requested and 28656 written")

    monkeypatch.setattr(np, "save", save)
    with pytest.raises(UserError, match="no space left on the device"), all_or_none([done, full, beside]):
        full.add(*random_table(200, 20))
    assert [path.name for path in (tmp_path / "codes").iterdir()] == ["a"]


def test_an_interrupted_writer_leaves_no_codes_and_no_rubbish(tmp_path: Path) -> None:
    """As after kill -9: what was there is gone, nothing half-written counts, the next writer starts clean."""
    folder = write(tmp_path, table(SMALL), 5).folder
    first = FiringsWriter(tmp_path, "run", 20, HEADER, memory_rows=50)
    first.add(*random_table(200, 20))
    assert list(folder.rglob("*.npy"))
    assert codes_header(tmp_path, "run") is None
    merged = first.sorter.ordered()
    firings._write_part(folder / "part-00000.parquet", next(merged))  # killed after its first part
    with pytest.raises(UserError, match="no codes of run"):
        open_firings(tmp_path, "run")
    data = random_table(300, 20, seed=1)
    check(write(tmp_path, data, 20), data)
    assert sorted(path.name for path in folder.iterdir()) == ["counts.npy", "meta.json", "part-00000.parquet"]
