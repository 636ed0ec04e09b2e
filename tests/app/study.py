"""A study folder written by hand, for the browser of features: two runs, a text with a script in it, a dead feature."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from safetensors.numpy import save_file
from starlette.testclient import TestClient

from monosem.app import make_app
from monosem.app.search import Search
from monosem.firings import FiringsWriter
from monosem.passages import write_passages
from monosem.store import write_json

D_IN, D_SAE, DOCUMENTS, LENGTH = 16, 60, 40, 24
DEAD, DENSE = 7, 3
VOCABULARY = [f" word{i}" for i in range(40)] + ["<script>alert(1)</script>", "\n", "\u202e", " caf\u00e9"]
ATTACK = 40
EXPLAINED_ATTACK = "<script>alert(2)</script> a date"


def make_study(folder: Path, runs: tuple[str, ...] = ("topk-k4", "gated-l1_2")) -> Path:
    """Write the study and return its folder. Feature i fires on token i % 40; DENSE on half of all; DEAD never."""
    rng = np.random.default_rng(0)
    token = rng.integers(0, len(VOCABULARY), (DOCUMENTS, LENGTH)).astype(np.int32)
    doc = np.repeat(np.arange(DOCUMENTS, dtype=np.int32)[:, None], LENGTH, 1)
    pos = np.repeat(np.arange(LENGTH, dtype=np.int32)[None], DOCUMENTS, 0)
    measured = pos > 0
    write_passages(folder, token, doc, pos, measured, VOCABULARY, {})
    for number, run in enumerate(runs):
        _write_run(folder, run, rng, token, doc, pos, measured, number)
    summary = {
        "schema": 1,
        "study": "made-up",
        "headline": {"sentence": "topk reconstructs best."},
        "runs": [{"name": run, "l0": {"value": 4.0}, "nmse": {"value": 0.25}, "dead": 1} for run in runs],
    }
    write_json(folder / "summary.json", summary)
    (folder / "report.html").write_text("<!doctype html><title>report</title>", encoding="utf-8")
    return folder


def _write_run(folder: Path, run: str, rng: np.random.Generator, token, doc, pos, measured, number: int) -> None:
    weights = np.random.default_rng(5).normal(size=(D_SAE, D_IN)).astype(np.float32)
    weights[10] = weights[9] + 0.01  # the nearest of its run
    if number:
        weights = weights[::-1].copy()  # feature i is feature 59 - i of the other run
    (folder / "saes" / run).mkdir(parents=True)
    save_file({"W_dec": weights}, folder / "saes" / run / "sae_weights.safetensors")
    ours = {"variant": run.split("-")[0], "site": "blocks.1.hook_resid_post", "weights_sha256": run}
    write_json(folder / "saes" / run / "cfg.json", {"d_in": D_IN, "d_sae": D_SAE, "monosem": ours})
    writer = FiringsWriter(folder, run, D_SAE, {"sae": run})
    counts, peaks, totals = np.zeros(D_SAE, int), np.zeros(D_SAE), np.zeros(D_SAE)
    for feature in range(D_SAE):
        here = measured & ((token == feature % 44) | ((feature == DENSE) & (rng.random(token.shape) < 0.5)))
        here &= feature != DEAD
        value = (rng.exponential(size=here.sum()) + 0.1).astype(np.float32)
        writer.add(np.full(here.sum(), feature), doc[here], pos[here], value)
        if len(value):
            counts[feature], peaks[feature], totals[feature] = len(value), value.max(), value.sum()
    writer.finish(int(measured.sum()))
    n = measured.sum()
    density = {
        "feature": np.arange(D_SAE, dtype=np.int32),
        "count": counts,
        "density": counts / n,
        "density_low": counts / n,
        "density_high": counts / n,
        "mean_activation": [t / c if c else None for t, c in zip(totals, counts, strict=True)],
        "peak": peaks,
    }
    scores = {"feature": [1, DENSE], "pearson": [0.25, 0.75], "verdict": ["odd", "fine"], "checked": [True, False]}
    ids = np.tile(np.arange(10, dtype=np.int32), (D_SAE, 1)) + 35  # with the script among them
    logits = {"feature": np.arange(D_SAE, dtype=np.int32)}
    lists = {
        "top_tokens": ids.tolist(),
        "top_logits": [np.linspace(2, 1, 10).tolist()] * D_SAE,
        "bottom_tokens": ids[:, ::-1].tolist(),
        "bottom_logits": [np.linspace(-2, -1, 10).tolist()] * D_SAE,
    }
    told = {
        "feature": [1, 9, DENSE, 11],
        "explanation": [f"Names of months, {run}", EXPLAINED_ATTACK, None, "months and the names of days"],
        "pearson": [0.5, 0.25, None, 0.75],
        "detection": [0.875, None, 0.5, float("nan")],
    }
    tables = {
        "density": pl.DataFrame(density),
        "scored": pl.DataFrame(scores),
        "logits": pl.DataFrame(logits | lists),
        "autointerp": pl.DataFrame(told),
    }
    for name, table in tables.items():
        path = folder / "results" / run / name / "rows.parquet"
        path.parent.mkdir(parents=True)
        table.write_parquet(path)
        header = {"sae": run, "settings": {"explainer": "tiny@http://127.0.0.1:8080/v1"}}
        write_json(path.parent / "result.json", {"header": header})


def client(folder: Path, search: Search | None = None, host: str = "127.0.0.1") -> TestClient:
    """Return a client of the study's app, as a browser on this machine would be."""
    return TestClient(make_app(folder, search=search, host=host), base_url="http://127.0.0.1:8137")
