"""Features as SAEDashboard's batches: `<run>/batch-0.json` and so on, 128 features each, as its runner writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from monosem.app.drawing import histogram
from monosem.app.neighbours import decoder_rows
from monosem.app.study import Run, Study
from monosem.examples import Example, Examples, examples_of, shade
from monosem.exports.facts import Facts
from monosem.firings import Fires
from monosem.passages import Passages
from monosem.store import write_bytes

BATCH = 128  # features of a file, SAEDashboard's default
ALIGNED = 3  # dimensions that are listed for a decoder row, as many as its runner lists
BEFORE, AFTER = 32, 32  # tokens around the one that an example is chosen for
ABSENT = (  # what takes other passes over activations or logits than ours; SAEDashboard's lists are empty then, too
    "correlated_neurons_indices", "correlated_neurons_l1", "correlated_neurons_pearson", "correlated_features_indices",
    "correlated_features_l1", "correlated_features_pearson", "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values", "decoder_weights_dist", "vector",
)  # fmt: skip


def write_batches(study: Study, run: Run, facts: Facts, features: Sequence[int], out: Path) -> Path:
    """Write the features into `out/<run>` and return that folder; batches of an earlier export are removed.

    Raises UserError when codes, text or weights are missing, damaged or of other weights.
    """
    where = out / run.name
    number = 0
    for number, batch in enumerate(batches(study, run, facts, features), 1):
        write_bytes(where / f"batch-{number - 1}.json", json.dumps(batch, allow_nan=False).encode())
    remove_others(where, "batch-*.json", number)
    return where


def batches(study: Study, run: Run, facts: Facts, features: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield the content of each file."""
    passages, firings, logits = study.passages(), study.firings(run.name), study.rows(run.name, "logits")
    texts = {"n_prompts_total": _prompts(passages), "n_tokens_in_prompt": facts.context, "dataset": facts.dataset}
    head = {"model_id": facts.model_id, "layer": facts.layer, "sae_set": facts.set_name, "sae_id_suffix": facts.run}
    for first in range(0, len(features), BATCH):
        here = features[first : first + BATCH]
        rows = decoder_rows(study.folder, run.name, here)
        found = []
        for decoder, (feature, fires) in zip(rows, firings.each(here), strict=True):
            one = {"feature_index": feature, **_aligned(decoder), **_argued(logits, feature, passages)}
            found.append(one | _activity(feature, fires, passages, firings.tokens) | texts)
        yield head | {"features": found}


def remove_others(folder: Path, pattern: str, number: int) -> None:
    """Remove files that match from the folder, except those numbered below `number`."""
    for path in folder.glob(pattern):
        digits = path.name.partition("-")[2].partition(".")[0]
        if not (digits.isdigit() and int(digits) < number):
            path.unlink()


def rounded(value: float) -> float:
    """Return a number to four significant digits."""
    return float(f"{value:.4g}")


def _prompts(passages: Passages) -> int:
    """Return how many stretches of text the model saw: parts of a document within one of its inputs."""
    return len(passages.bounds) - 1


def _aligned(decoder: np.ndarray) -> dict[str, Any]:
    """Return the dimensions in which a decoder row of length 1 is largest, and their shares of its L1 norm."""
    unit = decoder / max(float(np.linalg.norm(decoder)), 1e-30)
    largest = np.argsort(-unit, kind="stable")[:ALIGNED]
    shares = np.abs(unit[largest]) / max(float(np.abs(unit).sum()), 1e-30)
    return {
        "neuron_alignment_indices": largest.tolist(),
        "neuron_alignment_values": [rounded(v) for v in unit[largest].tolist()],
        "neuron_alignment_l1": [rounded(v) for v in shares.tolist()],
    }


def _argued(logits: pl.DataFrame | None, feature: int, passages: Passages) -> dict[str, Any]:
    """Return the output tokens that the feature raises and lowers most, empty lists where that was not computed."""
    found: dict[str, Any] = {"neg_str": [], "neg_values": [], "pos_str": [], "pos_values": []}
    if logits is not None and feature < logits.height:
        row = logits.row(feature, named=True)
        for name, side in (("neg", "bottom"), ("pos", "top")):
            found[f"{name}_str"] = passages.text(row[f"{side}_tokens"])
            found[f"{name}_values"] = [rounded(v) for v in row[f"{side}_logits"]]
    return found


def _activity(feature: int, fires: Fires, passages: Passages, tokens: int) -> dict[str, Any]:
    """Return how often the feature fires, how strongly, and where; empty lists for what wants other passes."""
    found = examples_of(feature, fires, passages)
    counts, edges = histogram(fires.value, found.peak) if found.peak else (np.empty(0, np.int64), np.empty(1))
    return {
        "frac_nonzero": len(fires.value) / tokens if tokens else 0.0,
        "freq_hist_data_bar_values": [rounded(v) for v in ((edges[:-1] + edges[1:]) / 2).tolist()],
        "freq_hist_data_bar_heights": counts.tolist(),
        "activations": list(_activations(found, fires, passages, tokens)) if found.peak else [],
        **{key: [] for key in ABSENT},
    }


def _activations(found: Examples, fires: Fires, passages: Passages, tokens: int) -> Iterator[dict[str, Any]]:
    """Yield the strongest contexts, then the samples of each interval, from the strongest on."""
    peak, n, firing = found.peak, len(found.intervals), len(fires.value) / tokens
    for example in found.top:
        yield _activation(example, fires, passages, (-1, peak, -1))
    for i, sample in enumerate(found.intervals):
        bounds = (peak * (n - i - 1) / n, peak * (n - i) / n, found.shares[i] * firing)
        for example in sample:
            yield _activation(example, fires, passages, bounds)


def _activation(
    example: Example, fires: Fires, passages: Passages, bounds: tuple[float, float, float]
) -> dict[str, Any]:
    """Return one text. bounds: of its interval, and the share of all tokens in it; -1, M, -1 for the strongest."""
    window = passages.window(example.doc, example.pos, BEFORE, AFTER)
    low, high, share = (rounded(value) for value in bounds)
    return {
        "bin_min": low,
        "bin_max": high,
        "bin_contains": share,
        "tokens": window.text,
        "values": [rounded(v) for v in shade(window, fires).tolist()],
        "qualifying_token_index": window.at,
    }
