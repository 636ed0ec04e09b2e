"""Harvest, shards, hashes, shuffled streaming."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monosem import activations
from monosem.activations import Activations, load_tokens, open_activations, prefetched, shuffled, training_order
from monosem.harvest import first_not_finite, harvest, within_norm
from monosem.model import Model, load_model
from monosem.sources import documents
from monosem.store import file_hash, read_json, write_bytes
from monosem.text import Packed, pack
from monosem.types import UserError


@pytest.fixture(scope="module")
def model(tiny_lm: Path) -> Model:
    return load_model(str(tiny_lm), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def packed(model: Model, corpus: Path) -> Packed:
    return pack(documents(str(corpus)), model.tokenizer, context=32, train_tokens=2500, eval_tokens=700)


def do_harvest(model: Model, packed: Packed, folder: Path, **options: Any) -> dict[str, Any]:
    return harvest(model, model.site("blocks.1.hook_resid_post"), packed, folder, {"test": 1}, batch_rows=4, **options)


def threads(prefix: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(prefix)]


def test_shards_hold_the_kept_activations_in_order(
    model: Model, packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monosem.harvest.SHARD_ROWS", 8)
    meta = do_harvest(model, packed, tmp_path)
    assert len(meta["splits"]["train"]["shards"]) > 3
    store = open_activations(tmp_path, "train")
    rows = torch.from_numpy(packed.train.tokens.astype(np.int64))
    whole = model.activations(rows, model.site("blocks.1.hook_resid_post"))
    keep = torch.from_numpy(packed.train.keep)
    assert store.n == int(keep.sum()) >= 2500
    stored = store.rows(np.arange(store.n))
    assert torch.allclose(stored, whole[keep], atol=1e-5)
    assert torch.equal(store.columns["token"].long(), rows[keep])
    assert torch.equal(store.columns["place"], keep.flatten().nonzero()[:, 0])
    index = np.random.default_rng(0).integers(0, store.n, 500)
    assert torch.equal(store.rows(index), stored[torch.from_numpy(index)])
    assert torch.equal(torch.cat([x for x, _ in store.batches(97)]), stored)
    assert torch.equal(load_tokens(tmp_path, "train")["keep"], keep)
    train_docs, eval_docs = store.columns["doc"].unique(), open_activations(tmp_path, "eval").columns["doc"].unique()
    assert not set(train_docs.tolist()) & set(eval_docs.tolist())


def test_a_cut_harvest_goes_on_and_gives_the_same_bytes(
    model: Model, packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monosem.harvest.SHARD_ROWS", 8)
    whole = do_harvest(model, packed, tmp_path / "whole")

    class Killed(Exception):
        pass

    done = 0

    def stop(tokens: int) -> None:
        nonlocal done
        done += tokens
        if done > 1500:
            raise Killed

    with pytest.raises(Killed):
        do_harvest(model, packed, tmp_path / "cut", progress=stop)
    assert not (tmp_path / "cut" / "meta.json").exists()
    finished = sorted(p.name for p in (tmp_path / "cut").glob("*-*.safetensors"))
    assert finished
    before = {name: (tmp_path / "cut" / name).stat().st_mtime_ns for name in finished}
    assert do_harvest(model, packed, tmp_path / "cut") == whole
    assert {name: (tmp_path / "cut" / name).stat().st_mtime_ns for name in finished} == before
    assert not (tmp_path / "cut" / "partial.json").exists()
    assert not list((tmp_path / "cut").glob(".*part"))


def test_an_interrupted_harvest_names_only_whole_shards(
    model: Model, packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monosem.harvest.SHARD_ROWS", 8)

    def press_ctrl_c(_tokens: int) -> None:
        if len(list(tmp_path.glob("*-*.safetensors"))) > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        do_harvest(model, packed, tmp_path, progress=press_ctrl_c)
    shards = read_json(tmp_path / "partial.json")["shards"]
    assert sorted(shards) == sorted(path.name for path in tmp_path.glob("*-*.safetensors"))
    assert all(file_hash(tmp_path / name) == entry["sha256"] for name, entry in shards.items())
    assert not threads("shard-writer")


def test_a_shard_that_cannot_be_written_stops_the_harvest_at_the_next_batch(
    model: Model, packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monosem.harvest.SHARD_ROWS", 8)
    written: list[str] = []

    def full_disk(path: Path, data: bytes) -> str:
        if path.name.startswith("train"):
            raise UserError(f"{path}: no space left on the device")
        written.append(path.name)
        return write_bytes(path, data)

    monkeypatch.setattr("monosem.harvest.write_bytes", full_disk)
    calls = []

    def wait_for_the_writer(tokens: int) -> None:
        calls.append(tokens)
        time.sleep(0.02)

    with pytest.raises(UserError, match=r"train-00000\.safetensors: no space left"):
        do_harvest(model, packed, tmp_path, progress=wait_for_the_writer)
    batches = [-(-len(part.tokens) // 4) for part in (packed.eval, packed.train)]
    assert len(calls) < sum(batches)
    assert "train-00000.safetensors" not in read_json(tmp_path / "partial.json")["shards"]
    assert not (tmp_path / "meta.json").exists()
    assert not threads("shard-writer")


def test_the_first_row_that_is_not_finite_is_found() -> None:
    x = torch.randn(7, 5).bfloat16()
    assert first_not_finite(x) is None
    assert first_not_finite(x[:0]) is None
    for bad in (float("nan"), float("inf"), -float("inf")):
        worse = x.clone()
        worse[3, 2] = worse[5, 0] = bad
        assert first_not_finite(worse) == 3


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damaged_shards_are_named(model: Model, packed: Packed, tmp_path: Path, damage: str) -> None:
    do_harvest(model, packed, tmp_path)
    shard = tmp_path / "train-00000.safetensors"
    data = bytearray(shard.read_bytes())
    if damage == "truncate":
        shard.write_bytes(data[:-10])
    elif damage == "flip":
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    else:
        shard.unlink()
    with pytest.raises(UserError, match=r"train-00000\.safetensors"):
        open_activations(tmp_path, "train")


def test_nan_activations_are_refused(tiny_lm: Path, packed: Packed, tmp_path: Path) -> None:
    model = load_model(str(tiny_lm), dtype="float32", device="cpu")
    with torch.no_grad():
        model.blocks[0].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"NaN or infinite activations .*document"):
        do_harvest(model, packed, tmp_path)
    assert not (tmp_path / "meta.json").exists()


def test_outlier_rows_are_left_out_and_counted(model: Model, packed: Packed, tmp_path: Path) -> None:
    meta = do_harvest(model, packed, tmp_path, max_norm_ratio=1.05)
    facts = meta["splits"]["train"]
    assert facts["outliers"] > 0
    assert facts["tokens"] + facts["outliers"] == packed.train.kept
    assert read_json(tmp_path / "meta.json") == meta


def test_within_norm_by_hand() -> None:
    x = torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.0, 5.0], [30.0, 40.0], [5.0, 0.0]])
    assert within_norm(x, 2.0).tolist() == [True, True, True, False, True]
    assert within_norm(x, 0.0).all()


@given(st.integers(1, 400), st.integers(1, 40), st.integers(2, 100), st.integers(0, 5))
def test_every_row_is_served_once_but_for_a_partial_batch(n: int, batch: int, capacity: int, seed: int) -> None:
    served = list(shuffled(n, batch, capacity=capacity, seed=seed))
    flat = np.concatenate(served) if served else np.empty(0, int)
    assert len(flat) == n // batch * batch
    assert len(np.unique(flat)) == len(flat)
    assert all(0 <= row < n for row in flat)


def test_batches_mix_documents_as_the_formula_says() -> None:
    """A.3: with M equal documents in the buffer a batch of M rows holds M(1-(1-1/M)^M) documents; 2589.35 at 4096."""
    m = 4096
    documents_in_batch = [
        len(np.unique(index // 128)) for index in list(shuffled(m * 128, m, capacity=m * 128, seed=0))[:8]
    ]
    expected = m * (1 - (1 - 1 / m) ** m)
    assert expected == pytest.approx(2589.35, abs=0.5)
    sd = np.sqrt(m * (1 - 1 / m) ** m * (1 - (1 - 1 / m) ** m))
    assert np.abs(np.array(documents_in_batch) - expected).max() < 5 * sd


def test_a_small_buffer_still_mixes_and_the_order_depends_on_the_seed() -> None:
    a = list(shuffled(10_000, 100, capacity=2_000, seed=0))
    assert len(np.unique(a[0] // 100)) > 15
    assert not np.array_equal(a[0], next(shuffled(10_000, 100, capacity=2_000, seed=1)))


def test_training_order_takes_passes_and_finds_its_place() -> None:
    whole = list(training_order(1000, 64, 40, capacity=300, seed=3))
    assert len(whole) == 40
    first_pass, second_pass = whole[:15], whole[15:30]
    assert sorted(np.concatenate(first_pass)) != list(np.concatenate(first_pass))
    assert not np.array_equal(first_pass[0], second_pass[0])
    for first in (0, 1, 14, 15, 16, 39):
        rest = list(training_order(1000, 64, 40, capacity=300, seed=3, first=first))
        assert all(np.array_equal(a, b) for a, b in zip(rest, whole[first:], strict=True))
    with pytest.raises(UserError, match="batch_size"):
        next(training_order(10, 64, 40, capacity=300, seed=3))


@pytest.fixture
def store() -> Activations:
    """600 rows of bfloat16 in three shards, the last one empty but for a row."""
    x = torch.randn(600, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    return Activations([x[:250], x[250:599], x[599:]], {}, 1, "")


@given(st.lists(st.integers(0, 599), max_size=50))
def test_rows_come_in_the_order_asked_for(index: list[int]) -> None:
    x = torch.arange(600, dtype=torch.float32)[:, None].expand(600, 3).contiguous()
    store = Activations([x[:250], x[250:599], x[599:]], {}, 1, "")
    assert store.rows(np.array(index, dtype=np.int64))[:, 0].tolist() == index
    for missing in (-1, 600):
        with pytest.raises(IndexError, match="0 to 599"):
            store.rows(np.array([*index, missing]))


@pytest.mark.parametrize("depth", [0, 1, 2, 50])
@pytest.mark.parametrize("ahead", [1, 64, 10_000])
def test_prefetched_batches_are_the_very_ones(
    store: Activations, depth: int, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "READ_AHEAD_ROWS", ahead)
    order = list(training_order(store.n, 32, 40, capacity=200, seed=1))
    got = list(prefetched(store, iter(order), depth))
    assert len(got) == len(order) == 40
    assert all(torch.equal(a, store.rows(index)) for a, index in zip(got, order, strict=True))
    assert all(a.dtype is torch.float32 and a.is_contiguous() for a in got)
    assert list(prefetched(store, [], depth)) == []
    assert not threads("prefetch")


def test_prefetching_ends_with_its_reader(store: Activations) -> None:
    batches = prefetched(store, training_order(store.n, 32, 1000, capacity=200, seed=1))
    next(batches)
    assert threads("prefetch")
    batches.close()  # type: ignore[attr-defined]
    assert not threads("prefetch")

    def consume() -> None:
        for _ in prefetched(store, training_order(store.n, 32, 1000, capacity=200, seed=1)):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert not threads("prefetch")


def test_prefetching_raises_at_the_batch_that_failed(store: Activations) -> None:
    order = [np.arange(5), np.arange(5), np.array([5, 100_000]), np.arange(5)]
    batches = prefetched(store, order)
    assert torch.equal(next(batches), store.rows(np.arange(5)))
    next(batches)
    with pytest.raises(IndexError, match="0 to 599"):
        next(batches)
    assert not threads("prefetch")

    def failing() -> Iterator[np.ndarray]:
        raise UserError("no order")
        yield

    with pytest.raises(UserError, match="no order"):
        next(prefetched(store, failing()))


@pytest.mark.parametrize("stride", [1, 3, 40])
def test_reading_ahead_changes_no_value(
    model: Model, packed: Packed, tmp_path: Path, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monosem.readahead.PIECE", 1024)
    do_harvest(model, packed, tmp_path)
    store = open_activations(tmp_path, "train")
    index = np.arange(store.n)[::-stride].copy()
    before = store.rows(index)
    store.will_need(index)
    store.will_need(index[:0])
    monkeypatch.setattr("monosem.readahead._MADVISE", None)  # a system without advice
    assert torch.equal(open_activations(tmp_path, "train").rows(index), before)
