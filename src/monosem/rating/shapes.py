"""The files of a rating, read and checked: what is gone, damaged or of another shape is named. Imports no torch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from monosem.store import file_hash, value_hash
from monosem.types import UserError

PACKET = "restore it from a copy or, if nothing is rated yet, draw anew with `monosem rate draw --force`"
KEY = "restore it from a copy: it can't be made again, and ratings mean nothing without it"
FROZEN = "restore it from a copy: it says what was frozen"


def read_packet(path: Path) -> dict[str, Any]:
    """Return what raters see. Raises UserError when it is gone or no packet."""
    return _checked(path, _is_packet, PACKET)


def read_frozen(path: Path) -> dict[str, Any]:
    """Return what was frozen. Raises UserError when it is gone or of another shape."""
    return _checked(path, _is_frozen, FROZEN)


def read_key(path: Path, packet: Path) -> dict[str, Any]:
    """Return the key of a packet. Raises UserError when it is gone, or not what was drawn with the packet."""
    key = _checked(path, _is_key, KEY)
    if key["packet_sha256"] != file_hash(packet):
        raise UserError(f"{path}: belongs to another packet than {packet}; restore the one it was drawn with")
    if key_digest(key) != read_packet(packet)["key_digest"]:
        raise UserError(f"{path}: was changed since the draw; {KEY}")
    return key


def key_digest(key: dict[str, Any]) -> str:
    """Return what the packet keeps of its key: a hash of all but the packet's own. The secret in it makes it opaque."""
    return value_hash({name: value for name, value in key.items() if name != "packet_sha256"})


def is_record(value: Any) -> bool:
    """Return whether a line of the ratings is a whole one."""
    if not _has(value, event=str, submission=str, rater_id=str, item_id=str):
        return False
    if value["event"] != "rating":
        return value["event"] == "back"
    scores = (value.get(axis, "") for axis in ("consistency", "complexity"))
    return (
        _has(value, cannot_tell=bool, note=str)
        and all(score is None or (type(score) is int and 1 <= score <= 5) for score in scores)
        and isinstance(value.get("guess", 0), str | None)
    )


def _checked(path: Path, is_whole: Any, cure: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: not there; {cure}") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}); make it readable for yourself") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not valid JSON; {cure}") from None
    if not is_whole(value):
        raise UserError(f"{path}: is not what `monosem rate` wrote; {cure}")
    return value


def _has(value: Any, **kinds: type) -> bool:
    """Return whether it is an object with these fields; True is no int."""
    return isinstance(value, dict) and all(
        isinstance(value.get(name), kind) and not (kind is int and isinstance(value[name], bool))
        for name, kind in kinds.items()
    )


def _is_packet(value: Any) -> bool:
    if not _has(value, study_id=str, groups=list, steps=int, families=list, key_digest=str, training=list, items=list):
        return False
    names = [*value["groups"], *value["families"]]
    return all(isinstance(name, str) for name in names) and all(
        _has(item, id=str, groups=list)
        and len(item["groups"]) == len(value["groups"])
        and all(isinstance(group, list) and all(map(_is_window, group)) for group in item["groups"])
        for item in [*value["training"], *value["items"]]
    )


def _is_window(value: Any) -> bool:
    return _has(value, tokens=list, shades=list, at=int)


def _is_frozen(value: Any) -> bool:
    hashes = {"packet_sha256": str, "ratings_sha256": str, "key_sha256": str}
    return _has(value, frozen=str, ratings=int, raters=list, **hashes) and all(
        isinstance(rater, str) for rater in value["raters"]
    )


def _is_key(value: Any) -> bool:
    words = {"study_id": str, "packet_sha256": str, "secret": str, "sampling": str, "empty": str}
    if not _has(value, seed=int, features=int, left_out=list, cuts=list, runs=dict, items=dict, **words):
        return False
    runs, items = value["runs"], value["items"]
    return all(
        _is_folder_name(run) and _has(facts, variant=str, sae=str, d_sae=int, eligible=int)
        for run, facts in runs.items()
    ) and all(_is_key_item(item, runs, items) for item in items.values())


def _is_key_item(value: Any, runs: dict[str, Any], items: dict[str, Any]) -> bool:
    if not _has(value, run=str, feature=int, training=bool) or value["training"]:
        return _has(value, run=str, feature=int, training=bool)
    first = value.get("is_duplicate_of", 0)
    return (
        value["run"] in runs
        and _has(value, stratum=int, weight=float)
        and math.isfinite(value["weight"])
        and value["weight"] > 0
        and (first is None or (isinstance(first, str) and first in items))
    )


def _is_folder_name(name: str) -> bool:
    """Return whether a run's results can be written under this name without leaving the study folder."""
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")
