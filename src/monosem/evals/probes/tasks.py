"""Probe tasks: binary text classifications from a pinned wheel, or from a file of the user. Imports no torch.

The wheel `sae-probes` (MIT; Kantamneni et al. 2025, arXiv 2502.16681) ships 113 binary sets as compressed CSV, about 50
of them those of Gao et al. 2024. It is read as a zip file, never installed.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from monosem.store import file_hash, value_hash
from monosem.types import UserError
from monosem.wheels import Package, wheel

SETS = Package(
    "probe tasks",
    "sae-probes",
    "0.4.2",
    "sae_probes-0.4.2-py3-none-any.whl",
    "245700c8df310760e3d5b23d657ae5196489813f3012b55975057d8239d8be03",
    45_068_606,
)
FOLDER = "sae_probes/data"
MISLABELLED = (161, 162, 163)  # agnews_*: headlines against samples of code, says the authors' README
PHRASES, PEOPLE = range(65, 86), range(56, 65)
# What is asked of a name, a phrase or a statement is known at its last token; of other texts the mean is taken.
AT_THE_END = {5, 6, 7, *range(36, 55), *PEOPLE, *PHRASES, 89, 90, 91, *range(114, 130), *range(136, 139)}
AT_THE_END |= {154, 155, 156}
STATEMENTS, TEXTS = (36, 41, 44, 50, 51), (87, 92, 95, 96, 105, 113, 157, 158, 159, 160)
SUITE = (*PEOPLE, 65, 69, 73, 77, 81, 85, *STATEMENTS, *TEXTS)  # six of the 21 phrases, or half the tasks would be
LEAST = 10  # texts of each class, below which nothing is fitted
Pool = Literal["last", "mean", "max"]


@dataclass(frozen=True)
class Source:
    """Where a task comes from, before it is read. key: what its rows depend on; number: in the wheel, or None."""

    name: str
    key: str
    pool: Pool
    number: int | None = None
    path: Path | None = None


@dataclass(frozen=True)
class Task:
    """A task, ready. texts: the first `train` of them are fitted to, the others are held out; labels: 0 or 1, [N].

    classes: what 0 and 1 stand for. counts: texts read, and how many were left out, why. reason: why the task can't be
    used, else empty.
    """

    name: str
    texts: list[str]
    labels: np.ndarray
    train: int
    classes: tuple[str, str]
    counts: dict[str, int]
    reason: str = ""


def sources(names: Sequence[str], data: str) -> list[Source]:
    """Return the tasks that are asked for: names or numbers of sets, `all`, and a file with the columns text and label.

    Neither: the default suite. Raises UserError for a name that is not known, or a file that isn't there.
    """
    own = [_own(Path(data).expanduser())] if data else []
    if own and not names:
        return own
    known = sets()
    chosen = [known[number] for number in SUITE] if not names else []
    for name in names:
        found = (
            list(known.values()) if name == "all" else [s for s in known.values() if name in (s.name, str(s.number))]
        )
        if not found:
            raise UserError(
                f'tasks: "{name}" is not known; use "all", numbers, or names such as '
                f"{', '.join(known[number].name for number in SUITE[::4])} (docs/probes.md lists them)"
            )
        chosen += found
    return [*dict.fromkeys(chosen), *own]


@cache
def sets() -> dict[int, Source]:
    """Return the usable binary sets of the wheel, by number."""
    with zipfile.ZipFile(wheel(SETS)) as archive:
        table = _csv(archive.read(f"{FOLDER}/probing_datasets_MASTER.csv.zst"))
    found = {}
    for file in table.filter(pl.col("Data type") == "Binary Classification")["Dataset save name"]:
        number, _, name = file.removeprefix("cleaned_data/").removesuffix(".csv").partition("_")
        at = int(number)
        if at in MISLABELLED:
            continue
        name = f"phrase_{name}" if at in PHRASES else name
        found[at] = Source(name, f"{SETS.sha256} {file}", "last" if at in AT_THE_END else "mean", at)
    return dict(sorted(found.items()))


def _csv(packed: bytes) -> pl.DataFrame:
    return pl.read_csv(io.BytesIO(packed), infer_schema_length=0)  # polars unpacks zstd by itself


def _own(path: Path) -> Source:
    if not path.is_file():
        raise UserError(f'data = "{path}": no such file; name a .csv or .parquet file with the columns text and label')
    return Source(path.name, file_hash(path), "mean", path=path)


def read(source: Source, train: int, test: int, seed: int) -> Task:
    """Return a task with at most `train` and `test` texts. Raises UserError for a user's file that can't be used."""
    if source.path is None:
        with zipfile.ZipFile(wheel(SETS)) as archive:
            file = source.key.split(" ", 1)[1]
            rows = _csv(archive.read(f"{FOLDER}/{file}.zst")).select(pl.col("prompt").alias("text"), label="target")
        return make_task(source.name, rows, train, test, seed)
    task = make_task(source.name, _read_own(source.path), train, test, seed)
    if task.reason:
        raise UserError(f"{source.path}: {task.reason}; give at least {LEAST} texts of each of two classes")
    return task


def _read_own(path: Path) -> pl.DataFrame:
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(
            f"{path}: this kind of file can't be read; use .csv or .parquet with the columns text and label"
        )
    try:
        frame = pl.read_csv(path, infer_schema_length=0) if path.suffix == ".csv" else pl.read_parquet(path, glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        first = str(error).split("\n")[0]
        raise UserError(f"{path}: can't be read ({first}); give a table with the columns text and label") from error
    for column in ("text", "label"):
        if column not in frame.columns:
            raise UserError(f'{path}: the column "{column}" is missing; it has {", ".join(frame.columns)}')
    return frame.select(pl.col("text").cast(pl.String), pl.col("label").cast(pl.String))


def make_task(name: str, rows: pl.DataFrame, train: int, test: int, seed: int) -> Task:
    """Return a class-balanced task from a table with the columns text and label (text each).

    Left out are rows without text or label, texts that occur again, and texts that occur with both labels, before
    anything is drawn; so no text is on both sides of the split. Where there are fewer than wanted, both sides shrink.
    """
    full = rows.drop_nulls().filter(pl.col("text").str.strip_chars() != "")
    by_text = pl.col("text").str.strip_chars()
    kinds = full["label"].unique().sort().to_list()
    once = full.with_columns(pl.col("label").n_unique().over(by_text).alias("labels")).unique(by_text, keep="first")
    once = once.sort("text")  # whatever order the file has
    clear = once.filter(pl.col("labels") == 1)
    counts = {
        "read": rows.height,
        "empty": rows.height - full.height,
        "duplicates": full.height - once.height,
        "contradictory": once.height - clear.height,
    }
    if len(kinds) != 2:
        told = f"it has {len(kinds)} classes ({', '.join(map(str, kinds[:4]))})" if kinds else "it has no texts"
        return Task(name, [], np.zeros(0, np.uint8), 0, ("", ""), counts, told)
    rng = np.random.default_rng([seed, int(value_hash(name)[:8], 16)])
    each = [clear.filter(pl.col("label") == kind)["text"].to_list() for kind in kinds]
    least = min(map(len, each))
    share = min(1.0, 2 * least / (train + test))
    sides = [int(share * train) // 2, int(share * test) // 2]  # of each class
    counts["not drawn"] = clear.height - 2 * sum(sides)
    if least < LEAST:
        told = f'it has {least} usable texts of the class "{min(zip(map(len, each), kinds, strict=True))[1]}"'
        return Task(name, [], np.zeros(0, np.uint8), 0, ("", ""), counts, told)
    texts: list[str] = []
    labels: list[int] = []
    drawn = [[texts_of[i] for i in rng.permutation(len(texts_of))] for texts_of in each]
    for start, size in ((0, sides[0]), (sides[0], sides[1])):
        here = [(text, label) for label in (0, 1) for text in drawn[label][start : start + size]]
        for i in rng.permutation(len(here)):
            texts.append(here[i][0])
            labels.append(here[i][1])
    return Task(name, texts, np.array(labels, np.uint8), 2 * sides[0], (kinds[0], kinds[1]), counts)
