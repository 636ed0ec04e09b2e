"""Weights & Biases' own client, offline: what it has written down is what was logged, once, after a resume too."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.test_tracking import interrupted

import monosem

pytestmark = pytest.mark.oracle


def records(folder: Path) -> dict[str, tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]]:
    """Return history, summary and configuration of each run in `folder/wandb`, by name, as W&B's messages say."""
    from wandb.proto import wandb_internal_pb2

    found = {}
    for path in folder.glob("wandb/offline-run-*/run-*.wandb"):
        name, config, history, summary = "", {}, [], {}
        for data in pieces(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                name = record.run.display_name
                config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif kind == "history":
                history.append({_key(item): json.loads(item.value_json) for item in record.history.item})
            elif kind == "summary":
                summary |= {_key(item): json.loads(item.value_json) for item in record.summary.update}
        assert name not in found, f"{name} is there twice"
        found[name] = (history, summary, config)
    return found


def pieces(data: bytes) -> Iterator[bytes]:
    """Yield the records of a W&B file: after 7 bytes LevelDB's log format (32 KiB blocks; checksum, length, kind)."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of a record, or its last part
            yield whole
            whole = b""


def _key(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


def test_offline_runs_hold_every_row_once(
    tiny_study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb_data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb_cache"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb_config"))
    study = {**tiny_study, "run": [{"variant": "standard", "l1_coefficient": 0.5}, {"variant": "topk", "k": 8}]}
    study["train"] |= {"track": "wandb", "log_every": 5}
    folder, said = tmp_path / "out", []
    interrupted(monkeypatch, 23, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        monosem.compare(study, folder)
    assert {name: len(history) for name, (history, _, _) in records(folder).items()} == dict.fromkeys(
        ("standard-l1_0.5", "topk-k8"), 5
    )
    monosem.compare(study, folder, say=said.append)
    assert not [line for line in said if line.startswith("warning")]
    found = records(folder)
    for run in json.loads((folder / "summary.json").read_text())["runs"]:
        history, summary, config = found[run["name"]]
        rows = pl.read_parquet(folder / "saes" / run["name"] / "log.parquet").to_dicts()
        assert [row["_step"] for row in history] == [row["step"] for row in rows] == [*range(0, 50, 5), 49]
        for theirs, ours in zip(history, rows, strict=True):
            assert {name: value for name, value in ours.items() if name != "step"} == {
                name: value for name, value in theirs.items() if not name.startswith("_")
            }
        assert summary["heldout/nmse"] == run["nmse"]["value"]
        assert (config["variant"], config["d_sae"]) == (run["variant"], 64)
