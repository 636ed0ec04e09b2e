"""Draws the features to be rated: `ratings/packet.json` is what raters see, `ratings/key.json` what they must not.

The sample is frozen here, before anyone looks (sections J.2 and J.3). Imports no torch.
"""

from __future__ import annotations

import fnmatch
import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from monosem.catalogue import lines
from monosem.examples import MIN_FIRINGS
from monosem.firings import Firings, open_firings, require_current
from monosem.passages import open_passages
from monosem.rating.packet import STEPS, lay_out, view_of
from monosem.rating.sampling import Population, Sample, Sampling, draw_samples, survey
from monosem.rating.shapes import key_digest
from monosem.rating.store import Files, read_records, sync
from monosem.store import read_json, value_hash, write_bytes
from monosem.types import UserError

Empty = Literal["exclude", "drop"]
TRAINING = 5
DUPLICATES, GUESSES = 0.1, 0.2  # shares of the items that are shown twice, and whose run family is guessed


class Drawn(NamedTuple):
    """One item: the feature it shows, and how often that feature was shown before."""

    run: str
    feature: int
    copy: int


def draw(
    folder: Path,
    *,
    features: int = 25,
    runs: str = "*",
    sampling: Sampling = "uniform",
    empty: Empty = "exclude",
    seed: int = 0,
    force: bool = False,
) -> list[str]:
    """Draw `features` of each run whose name matches `runs`, write packet and key; return lines to say.

    empty: what is done about intervals without an example, which could tell runs apart: `exclude` draws only features
    that fill all of them, `drop` draws from all and leaves an interval out of the study if any item lacks it.

    Raises UserError when there are ratings already, no codes, or too few eligible features.
    """
    files = Files(folder)
    _refuse_overwriting(files, force)
    if features < 1:
        raise UserError(f"--features {features}: must be at least 1")
    firings, outside = _runs(folder, runs)
    rng = np.random.default_rng(seed)
    populations = {run: survey(opened, empty == "exclude") for run, opened in firings.items()}
    samples, cuts = draw_samples(populations, features, sampling, rng)
    drawn = [Drawn(run, int(f), 0) for run, sample in samples.items() for f in sample.feature]
    again = rng.choice(len(drawn), int(np.ceil(DUPLICATES * len(drawn))), replace=False)
    drawn += [drawn[i]._replace(copy=1) for i in np.sort(again)]
    training = _training(outside, populations, drawn, empty == "exclude", rng)
    packet, key, left_out = _packet_and_key(folder, firings | outside, drawn, training, seed)
    guessed = rng.choice(len(drawn), int(np.ceil(GUESSES * len(drawn))), replace=False)
    asked = {key["ids"][drawn[i]] for i in guessed}
    for item in packet["items"]:
        item["guess"] = item["id"] in asked
    of_run = {run: _variant(folder, run) for run in firings | outside}
    packet["families"] = sorted({*(line.split()[0] for line in lines("variants")), *of_run.values()})
    facts = {
        "study_id": packet["study_id"],
        "secret": key["secret"],
        "seed": seed,
        "sampling": sampling,
        "features": features,
        "empty": empty,
        "left_out": left_out,
        "cuts": cuts,
        "training_from": "other runs" if outside else "features that were not drawn",
        "runs": {run: _run_facts(firings[run], populations[run], of_run[run]) for run in firings},
        "items": _key_items(key["ids"], samples, training),
    }
    packet["key_digest"] = key_digest(facts)
    _write(files, packet, facts, force)
    return _told(facts, packet, populations, files)


def _write(files: Files, packet: dict[str, Any], facts: dict[str, Any], force: bool) -> None:
    """Write key and packet, while nothing can be rated. At no moment is there a packet without its key."""
    data = (json.dumps(packet, ensure_ascii=False, allow_nan=False) + "\n").encode()
    with files.locked():
        _refuse_overwriting(files, force)  # what was rated since the draw began
        files.packet.unlink(missing_ok=True)
        _write_private(files.key, {**facts, "packet_sha256": hashlib.sha256(data).hexdigest()})
        write_bytes(files.packet, data)


def _refuse_overwriting(files: Files, force: bool) -> None:
    if files.frozen.exists():
        raise UserError(f"{files.frozen}: the draw that is there was frozen; move {files.folder} away first")
    if any(read_records(files.ratings)):
        raise UserError(f"{files.ratings}: there are ratings of the draw that is there; move {files.folder} away first")
    if files.packet.exists() and not force:
        raise UserError(f"{files.packet}: already drawn; rate it, or draw again with --force (nothing is rated yet)")


def _runs(folder: Path, pattern: str) -> tuple[dict[str, Firings], dict[str, Firings]]:
    """Return the codes of the matching runs and of the other ones. Raises UserError when none matches."""
    names = sorted(path.parent.name for path in folder.glob("codes/*/meta.json"))
    chosen = fnmatch.filter(names, pattern)
    if not chosen:
        known = ", ".join(names) or "none; run `monosem measure` first"
        raise UserError(f'--runs "{pattern}": no run with codes matches; there are {known}')
    opened = {name: open_firings(folder, name) for name in names}
    for codes in opened.values():
        require_current(codes)
    return {name: opened[name] for name in chosen}, {name: opened[name] for name in names if name not in chosen}


def _variant(folder: Path, run: str) -> str:
    return read_json(folder / "saes" / run / "cfg.json")["monosem"]["variant"]


def _training(
    outside: dict[str, Firings],
    populations: dict[str, Population],
    drawn: list[Drawn],
    filled: bool,
    rng: np.random.Generator,
) -> list[Drawn]:
    """Return items to practise on: of runs outside the study, or else features that were not drawn."""
    pools = {run: survey(opened, filled) for run, opened in outside.items()} or populations
    taken = {(item.run, item.feature) for item in drawn}
    pool = [(run, int(f)) for run, p in pools.items() for f in p.feature if (run, int(f)) not in taken]
    chosen = rng.choice(len(pool), min(TRAINING, len(pool)), replace=False)
    return [Drawn(pool[i][0], pool[i][1], 0) for i in chosen]


def _packet_and_key(
    folder: Path, firings: dict[str, Firings], drawn: list[Drawn], training: list[Drawn], seed: int
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return the packet without guesses, secret and item ids, and the groups that are not shown."""
    secret = secrets.token_bytes(32)
    passages = open_passages(folder)
    every = [*training, *drawn]
    ids = {item: _digest(secret, f"{item.run}|{item.feature}|{item.copy}") for item in every}
    views: list[Any] = [None] * len(every)
    for run in {item.run for item in every}:  # ascending features, so that neighbours are read together
        mine = sorted((item.feature, i) for i, item in enumerate(every) if item.run == run)
        fires = dict(firings[run].each([feature for feature, _ in mine]))
        for feature, i in mine:
            views[i] = view_of(feature, fires[feature], passages, seed)
    groups, laid, left_out = lay_out(views)
    shown = {item: {"id": ids[item], "groups": view} for item, view in zip(every, laid, strict=True)}
    order = sorted(drawn, key=lambda item: _digest(secret, f"order|{ids[item]}"))
    packet = {
        "study_id": secrets.token_hex(8),
        "groups": groups,
        "steps": STEPS,
        "training": [shown[item] for item in training],
        "items": [shown[item] for item in order],
    }
    return packet, {"secret": secret.hex(), "ids": ids}, left_out


def _digest(secret: bytes, text: str) -> str:
    return hmac.new(secret, text.encode(), "sha256").hexdigest()[:20]


def _run_facts(firings: Firings, population: Population, variant: str) -> dict[str, Any]:
    return {
        "variant": variant,
        "sae": firings.sae,
        "codes": value_hash(read_json(firings.folder / "meta.json")["header"]),
        "d_sae": firings.d_sae,
        "alive": population.alive,
        "fired": population.fired,
        "eligible": len(population.feature),
    }


def _key_items(ids: dict[Drawn, str], samples: dict[str, Sample], training: list[Drawn]) -> dict[str, dict[str, Any]]:
    items: dict[str, dict[str, Any]] = {
        ids[item]: {"run": item.run, "feature": item.feature, "training": True} for item in training
    }
    for run, sample in samples.items():
        for feature, stratum, weight in zip(*(column.tolist() for column in sample), strict=True):
            first = ids[Drawn(run, feature, 0)]
            facts = {"run": run, "feature": feature, "stratum": stratum, "weight": weight, "training": False}
            items[first] = {**facts, "is_duplicate_of": None}
            if (copy := Drawn(run, feature, 1)) in ids:
                items[ids[copy]] = {**facts, "is_duplicate_of": first}
    return items


def _write_private(path: Path, value: Any) -> None:
    """Write JSON that only its owner may read, whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


def _told(facts: dict[str, Any], packet: dict[str, Any], populations: dict[str, Population], files: Files) -> list[str]:
    twice = sum(item.get("is_duplicate_of") is not None for item in facts["items"].values())
    rest = ", the rest of these leave an interval empty" if facts["empty"] == "exclude" else ""
    told = [
        f"{run}: {facts['features']} of {len(p.feature):,} eligible features; of {p.alive:,} alive ones {p.fired:,} "
        f"fire at least {MIN_FIRINGS} times{rest}"
        for run, p in populations.items()
    ]
    told.append(
        f"{len(packet['items'])} items in one random order, {twice} of them shown for the second time; "
        f"{len(packet['training'])} training items from {facts['training_from']}"
    )
    sizes = ", ".join(str(len(group)) for group in packet["items"][0]["groups"])
    told.append(f"shown of each item, as many as every one has: {sizes} examples ({', '.join(packet['groups'])})")
    if facts["left_out"]:
        told.append(f"not shown, since some item has none: {', '.join(facts['left_out'])}")
    told.append(f"packet: {files.packet}; key, for `monosem rate analyse` only: {files.key}")
    return told
