"""A run trained and saved here, read from disk by SAELens: same codes, same reconstructions of raw activations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.test_train import store_of

from monosem.formats.saelens import load_sae
from monosem.heldout import measure
from monosem.train import train
from monosem.trainer import Plan, RunSpec
from monosem.variants import make_variant

pytestmark = pytest.mark.oracle
sae_lens = pytest.importorskip("sae_lens")

RUNS: list[tuple[str, dict[str, Any]]] = [
    ("standard", {"l1_coefficient": 0.5}),
    ("standard", {"l1_coefficient": 0.5, "subtract_b_dec": True}),
    ("tanh", {"l1_coefficient": 0.5}),
    ("gated", {"l1_coefficient": 0.5}),
    ("gated", {"l1_coefficient": 0.5, "mode": "paper"}),
    ("topk", {"k": 4}),
]


@pytest.mark.parametrize(("variant", "hyper"), RUNS)
@pytest.mark.parametrize("normalise", ["mean_norm", "token_const", "token_ln"])
def test_sae_lens_reads_what_we_save(tmp_path: Path, variant: str, hyper: dict[str, Any], normalise: Any) -> None:
    made = make_variant(variant, hyper)
    spec = RunSpec("run", variant, made, 40, 0, replace(made.recipe(40), lr=1e-2), "key")
    store = store_of()
    train([spec], Plan(64, 150, normalise=normalise), store, tmp_path)
    ours = load_sae(tmp_path / "run")
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "run")
    x = store.rows(np.arange(500)) * 1.0
    with torch.no_grad():
        mine, other = ours(x), theirs(x)
        codes, other_codes = ours.encode(x), theirs.encode(x)
    assert float((mine - other).norm() / mine.norm()) < 1e-4
    assert float((codes - other_codes).norm() / codes.norm()) < 1e-4
    assert float((codes > 0).sum(1).float().mean()) > 1


def test_explained_variance_equals_sklearn(tmp_path: Path) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    made = make_variant("topk", {"k": 4})
    spec = RunSpec("run", "topk", made, 40, 0, replace(made.recipe(40), lr=1e-2), "key")
    store = store_of()
    train([spec], Plan(64, 150), store, tmp_path)
    sae, x = load_sae(tmp_path / "run"), store.rows(np.arange(1000))
    expected = metrics.r2_score(x.numpy(), sae(x).numpy(), multioutput="variance_weighted")
    assert measure(sae, [x])["explained_variance"]["value"] == pytest.approx(expected, abs=1e-6)
