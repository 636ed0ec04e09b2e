"""Results written by hand: sums of a few made-up tokens, and tables of probes, RAVEL and auto-interpretation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from polars import selectors
from safetensors.numpy import save_file

from monosem.evals import Inputs, RunInfo, autointerp, make_evaluation, probes, ravel
from monosem.evaluate import evaluate
from monosem.metrics import DataSums, Downstream, SaeSums
from monosem.store import read_json, write_json
from monosem.sums import write_heldout, write_sums

RUN, D_IN, D_SAE, TOKENS, GROUPS, SCALE = "gated-l1_1", 6, 5, 200, 8, 0.25
PROBED = {"flat": (0.9, 0.6, 0.7, 0.8), "steep": (0.7, 0.5, 0.5, 0.9)}  # task: dense, then 1, 2 and 5 features


@dataclass(frozen=True)
class Planted:
    """A study folder and what its sums are over: x, xhat [n, d_in] raw; codes [n, d_sae] normalised, not folded."""

    folder: Path
    x: np.ndarray
    xhat: np.ndarray
    codes: np.ndarray
    weights: dict[str, np.ndarray]
    losses: dict[str, np.ndarray]


def plant(folder: Path) -> Planted:
    """Write a study of one gated SAE: feature 0 on every token, 1 on a twentieth, 2 on one token, 3 on none."""
    rng = np.random.default_rng(0)
    weights = {"W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,), "b_mag": (D_SAE,), "b_gate": (D_SAE,)}
    made = {name: rng.normal(size=shape).astype(np.float32) for name, shape in weights.items()}
    made["W_dec"][4] = -made["W_dec"][1]
    codes = np.zeros((TOKENS, D_SAE))
    codes[:, 0], codes[::20, 1], codes[7, 2], codes[::4, 4] = 2.0, 3.0, 4.0, 0.5
    x = rng.normal(size=(TOKENS, D_IN)) + 3.0
    xhat = codes @ made["W_dec"] / 8 + x * 0.75
    losses = {name: rng.random(TOKENS) + i for i, name in enumerate(("clean", "sae", "mean", "zero", "kl"))}
    planted = Planted(folder, x, xhat, codes, made, losses)
    where = folder / "saes" / RUN
    where.mkdir(parents=True)
    save_file(made, where / "sae_weights.safetensors")
    ours = {"variant": "gated", "site": "blocks.3.hook_mlp_out", "weights_sha256": "w", "model": "owner/Some-Model-It"}
    ours["normaliser"] = {"kind": "mean_norm", "scale": SCALE}
    write_json(where / "cfg.json", {"architecture": "gated", "d_in": D_IN, "d_sae": D_SAE, "monosem": ours})
    text = {"source": "owner/texts"}
    write_json(folder / "activations" / "meta.json", {"header": {"context": 64, "text": text}, "d_in": D_IN})
    _write_sums(planted)
    for name in ("frontier", "density"):
        evaluate(make_evaluation(name), name, Inputs(folder, [_info(folder)], bootstrap=50), {})
    summary = {"study": "planted", "created": "2026-01-02T03:04:05+00:00", "dtype": "float32", "runs": []}
    write_json(folder / "summary.json", summary)
    return planted


def _info(folder: Path, run: str = RUN) -> RunInfo:
    return RunInfo(run, "gated", {}, 0, D_SAE, "w", folder / "saes" / run)


def _write_sums(planted: Planted) -> None:
    group = np.arange(TOKENS) % GROUPS
    center = planted.x[:32].mean(0)
    a, b = planted.x - center, planted.xhat - center
    folded = planted.codes * np.linalg.norm(planted.weights["W_dec"], axis=1) * SCALE

    def by_group(values: np.ndarray) -> np.ndarray:
        return np.stack([values[group == g].sum(0) for g in range(GROUPS)])

    r, active = ((a - b) ** 2).sum(1), (planted.codes > 0).sum(1)
    data = DataSums(center, by_group(np.ones(TOKENS)), by_group(a), by_group((a**2).sum(1)))
    sums = SaeSums(
        h=by_group(b),
        hh=by_group((b**2).sum(1)),
        xh=by_group((a * b).sum(1)),
        r=by_group(r),
        active=by_group(active).astype(float),
        activation=by_group(folded.sum(1)),
        count=(planted.codes > 0).sum(0),
        total=folded.sum(0),
        square=(folded**2).sum(0),
        peak=folded.max(0),
        l0_counts=np.bincount(active, minlength=D_SAE + 1),
        ev_token=float((1 - r / (a**2).sum(1)).sum()),
        scale=SCALE,
    )
    ce = Downstream(by_group(np.ones(TOKENS)), **{name: by_group(values) for name, values in planted.losses.items()})
    write_heldout(planted.folder, data, {})
    write_sums(planted.folder, RUN, sums, ce, {"sae": "w"})


def plant_evaluations(folder: Path, run: str) -> None:
    """Add results of `probes`, `ravel` and `autointerp` to a run, of its weights."""
    tasks = [
        {"task": name, "pool": "mean", "train": 100, "test": 50, "dense_accuracy": values[0]}
        | {f"sparse_accuracy_{k}": value for k, value in zip((1, 2, 5), values[1:], strict=True)}
        for name, values in PROBED.items()
    ]
    rows = probes.as_table(tasks).with_columns(selectors.float().fill_null(0.5))
    rows = pl.concat([rows, probes.as_table([{"task": "small", "reason": "too few texts"}])])
    _write(
        folder, run, "probes", rows, probes.scalars_of(rows, 50), {"seed": 3, "train": 100, "test": 50, "context": 24}
    )
    swaps = [("Past", "Past", True), ("Past", "Past", False), ("Past", "Plural", True), ("Plural", "Plural", True)]
    swaps += [("Plural", "Past", True), ("Plural", "Past", False)]
    columns: dict[str, Any] = dict(
        zip(("target", "attribute", "hit"), map(list, zip(*swaps, strict=True)), strict=True)
    )
    columns |= {"method": "mdbm", "type": "verb", "split": "entity", "size": 7, "template": "t", "base": "a"}
    rows = ravel.as_table(columns | {"source": "b", "source_template": "t"})
    settings = {"entities": 40, "templates": 5, "train_pairs": 64, "answer_tokens": 3, "seed": 1}
    _write(folder, run, "ravel", rows, ravel.scalars_of(rows, 50), settings)
    told = [
        {"feature": 1, "explanation": "months", "detection": 0.9, "failed": False, "shuffled_failed": False},
        {"feature": 2, "explanation": "days", "detection": 0.5, "failed": False, "shuffled_failed": False},
        {"feature": 4, "explanation": None, "detection": None, "failed": True, "reason": "no answer"},
    ]
    rows = autointerp.as_table([row | {"detection_reason": None} for row in told])
    rows = rows.with_columns(pl.col("failed", "shuffled_failed").fill_null(True))
    _write(folder, run, "autointerp", rows, autointerp.scalars_of(rows, 50), {"seed": 0, "explainer": "local"})


def _write(folder: Path, run: str, name: str, rows: pl.DataFrame, found: tuple[Any, Any], settings: Any) -> None:
    sae = read_json(folder / "saes" / run / "cfg.json")["monosem"]["weights_sha256"]
    where = folder / "results" / run / name
    where.mkdir(parents=True, exist_ok=True)
    rows.write_parquet(where / "rows.parquet")
    scalars = {key: value and value.as_dict() for key, value in found[0].items()}
    header = {"sae": sae, "settings": settings, "inputs": {}}
    write_json(where / "result.json", {"header": header, "scalars": scalars, "reasons": found[1]})
