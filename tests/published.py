"""Writes a study folder that can be published: synthetic numbers, small SAEs, and files that stay at home."""

from __future__ import annotations

from pathlib import Path

from tests.report.fixture import make_run, write_study

SECRETS = (
    "activations/meta.json",
    "codes/topk-k20-s0/part-00000.parquet",
    "judges/local.jsonl",
    "ratings/key.json",
    "results/heldout.safetensors",
    "saes/topk-k20-s0/checkpoint/step-1.safetensors",
    "saes/topk-k20-s0/log.parquet",
    "stages.json",
)


def write_publishable(folder: Path) -> Path:
    """Write runs standard-l1_5-s0 and topk-k20-s0, of width 8, and return the folder."""
    import monosem

    runs = [make_run("standard", 1) | {"name": "standard-l1_5-s0"}, make_run("topk", 2) | {"name": "topk-k20-s0"}]
    write_study(folder, runs)
    for run, hyper in zip(runs, ({"l1_coefficient": 5.0}, {"k": 4}), strict=True):
        sae = monosem.make_sae(run["variant"], d_in=8, d_sae=16, seed=0, **hyper)
        sae.facts.update(name=run["name"], seed=0, tokens=20_000_000, site=run["site"], model="org/model", context=128)
        sae.facts["recipe"] = {"lr": 3e-4, "clip": 1.0}
        monosem.save_sae(sae, folder / "saes" / run["name"])
    for name in SECRETS:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("secret")
    (folder / "report.html").write_text("<p>report</p>")
    return folder
