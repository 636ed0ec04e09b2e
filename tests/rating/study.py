"""A made-up study folder with codes and text, on which ratings are drawn: no model, no SAE weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from monosem.firings import FiringsWriter, open_firings
from monosem.passages import write_passages
from monosem.rating.store import Files, append

DOCS, LENGTH, D_SAE = 120, 64, 60_000
FIRST = 41_000  # feature numbers that nothing else is likely to spell
RUNS = {"topk-k7731": "topk", "gated-l1_7732": "gated", "standard-l1_7733": "standard"}
WORDS = ["vexq", "zumb", "quor", "blim", "frob", "snarg", "plonk", "wibb", "drosk", "yelp"]


def make_study(folder: Path, runs: dict[str, str] = RUNS, features: int = 30, seed: int = 0) -> Path:
    """Write `features` features a run, every third of which leaves intervals empty, and return the folder."""
    rng = np.random.default_rng(seed)
    shape = (DOCS // 2, 2 * LENGTH)
    vocabulary = [f" {word}{i}" for i in range(20) for word in WORDS] + ["\n", "<script>alert(1)</script>"]
    doc = np.repeat(np.arange(DOCS), LENGTH).reshape(shape)
    pos = np.tile(np.arange(LENGTH), DOCS).reshape(shape)
    tokens = rng.integers(0, len(vocabulary), shape)
    write_passages(folder, tokens, doc, pos, np.ones(shape, dtype=bool), vocabulary, {"tokens": "made up"})
    for run, variant in runs.items():
        (folder / "saes" / run).mkdir(parents=True)
        (folder / "saes" / run / "cfg.json").write_text(json.dumps({"monosem": {"variant": variant}}))
        writer = FiringsWriter(folder, run, D_SAE, {"sae": f"sha-{run}"})
        for k in range(features):
            count = int(rng.integers(60, 400))
            place = np.sort(rng.choice(DOCS * LENGTH, count, replace=False))
            share = rng.uniform(0.02, 1, count) if k % 3 else np.append(rng.uniform(0.02, 0.4, count - 1), 1.0)
            value = (37.19 + k) * share / share.max()
            writer.add(np.full(count, FIRST + 17 * k), place // LENGTH, place % LENGTH, value)
        few = np.arange(5)
        writer.add(np.full(5, 7), few, few, np.ones(5))  # alive, but too seldom to be eligible
        writer.finish(DOCS * LENGTH)
    return folder


def packet_of(folder: Path) -> dict[str, Any]:
    """Return what raters see."""
    return json.loads(Files(folder).packet.read_text())


def key_of(folder: Path) -> dict[str, Any]:
    """Return what they don't."""
    return json.loads(Files(folder).key.read_text())


def rating(packet: dict[str, Any], item: str, rater: str, **values: Any) -> dict[str, Any]:
    """Return a whole record."""
    defaults = {"consistency": 3, "complexity": 3, "cannot_tell": False, "note": "", "guess": None}
    times = {"order_index": 0, "t_open": "", "t_submit": "", "ui_version": 1, "view_hash": ""}
    who = {"event": "rating", "study_id": packet["study_id"], "item_id": item, "rater_id": rater}
    return {"submission": f"{rater}-{item}-{sorted(values.items())}", **who, **times, **defaults, **values}


def rate_all(folder: Path, raters: tuple[str, ...], score: Any) -> None:
    """Rate every item as every rater; score(run, feature, rater) returns what differs from the defaults."""
    packet, key = packet_of(folder), key_of(folder)
    for rater in raters:
        for item in [*packet["training"], *packet["items"]]:
            facts = key["items"][item["id"]]
            values = score(facts["run"], facts["feature"], rater)
            if not item.get("guess"):
                values.pop("guess", None)
            append(Files(folder), rating(packet, item["id"], rater, **values))


def revealed(text: str, study: Path) -> list[str]:
    """Return what a text tells of a study's items: runs, variants, feature numbers, densities, activations, counts."""
    low = text.lower()
    found = [name for name in (*RUNS, *RUNS.values()) if name in low]
    words: set[str] = {str(D_SAE), *(f"sha-{run}" for run in RUNS)}
    for run in RUNS:
        firings = open_firings(study, run)
        for feature, fires in firings.each([FIRST + 17 * k for k in range(30)]):
            density = len(fires.value) / firings.tokens
            values = [density, np.log10(density), *map(float, fires.value), float(fires.value.mean())]
            words |= {str(feature), *(repr(v) for v in values), *(f"{v:.{d}g}" for v in values for d in (4, 5, 6))}
    words = {word for word in words if len(re.sub(r"\D", "", word)) > 3}  # 37, or 0.5, may stand for anything
    return [*found, *sorted(words & set(re.findall(r"[\w.-]+", text)))]
