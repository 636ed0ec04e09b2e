"""Writes a study folder with synthetic but realistic numbers, for the tests of the report."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from monosem.definitions import METRICS
from monosem.schema import Axis, Chart, Series

D_IN, D_SAE = 512, 4096
VARIANTS: dict[str, tuple[str, list[float], float]] = {
    # hyperparameter, its values, error relative to standard at equal L0
    "standard": ("l1", [2.0, 5.0, 12.0], 1.0),
    "tanh": ("tanh_coefficient", [0.3, 0.8, 2.0], 0.93),
    "gated": ("l1", [1.5, 4.0, 9.0], 0.78),
    "topk": ("k", [80, 40, 20], 0.71),
}
L0S = [82.0, 41.0, 19.5]


def estimate(value: float, spread: float = 0.01, n: int = 1_048_576) -> dict[str, Any]:
    """Return an estimate whose interval is `spread` of the value wide to either side."""
    return {"value": value, "low": value * (1 - spread), "high": value * (1 + spread), "n": n}


def make_run(variant: str, setting: int, seed: int = 0) -> dict[str, Any]:
    """Return one run of the summary."""
    key, values, factor = VARIANTS[variant]
    noise = random.Random(f"{variant}{setting}{seed}")
    value = values[setting % len(values)]
    l0 = float(value) if variant == "topk" else L0S[setting % 3] * noise.uniform(0.97, 1.05)
    nmse = factor * 0.9 * l0**-0.42 * noise.uniform(0.985, 1.015)
    clean, zero, mean = 3.412, 9.87, 6.4
    sae = clean + 0.55 * nmse**1.2
    dead = int(D_SAE * {"standard": 0.03, "tanh": 0.12, "gated": 0.06, "topk": 0.02}[variant] * noise.uniform(0.5, 1.5))
    gamma = 1 - {"standard": 0.11, "tanh": 0.06, "gated": 0.012, "topk": 0.004}[variant] * noise.uniform(0.8, 1.2)
    many = int(D_SAE * l0 / 260)
    numbers = {
        "l0": l0,
        "mse": nmse * D_IN * 0.93,
        "nmse": nmse,
        "explained_variance": 1 - nmse,
        "ce_clean": clean,
        "ce_sae": sae,
        "ce_zero": zero,
        "ce_mean": mean,
        "ce_recovered": (zero - sae) / (zero - clean),
        "ce_recovered_mean": (mean - sae) / (mean - clean),
        "delta_ce": sae - clean,
        "gamma": gamma,
        "gamma_centered": gamma * 0.995,
        "dead_fraction": dead / D_SAE,
        "mean_activation": 1.9 * gamma,
        "activation_spread": 0.21 / gamma,
    }
    spreads = {"ce_clean": 0.004, "ce_sae": 0.004, "ce_recovered": 0.002, "ce_zero": 0.003, "gamma": 0.001}
    run: dict[str, Any] = {
        "name": f"{variant}-{key}{value:g}-s{seed}",
        "variant": variant,
        "hyper": {key: value, "decoder_norm": "unit"},
        "seed": seed,
        "site": "blocks.2.hook_resid_post",
        "d_in": D_IN,
        "d_sae": D_SAE,
        "tokens": 20_000_000,
        "train_tokens_per_second": 151_234.5 * noise.uniform(0.9, 1.1),
        "dead": dead,
        "reasons": {},
    }
    run |= {name: estimate(number, spreads.get(name, 0.006)) for name, number in numbers.items()}
    if variant == "topk":
        run["l0"] = estimate(l0, 0.0)
    run["features_above_1e-2"] = estimate(many, 0.02, D_SAE)
    run["features_above_1e-3"] = estimate(min(D_SAE - dead, many * 4), 0.01, D_SAE)
    return run


def make_summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a whole summary around the runs."""
    comparisons = [
        comparison("topk", 0.71, 0.70, 0.72, "lower"),
        comparison("gated", 0.78, 0.76, 0.80, "lower"),
        comparison("tanh", 0.97, 0.93, 1.02, "undecided"),
    ]
    return {
        "schema": 1,
        "study": "quickstart",
        "created": "2026-01-31T12:00:00+00:00",
        "model": "embedded-lm",
        "site": "blocks.2.hook_resid_post",
        "d_in": D_IN,
        "tokens": {
            "train": 20_000_000,
            "eval": 1_048_576,
            "eval_documents": 1234,
            "ce": 200_000,
            "hash": "ab" * 32,
        },
        "runs": runs,
        "headline": {
            "baseline": "standard",
            "sentence": "TopK reconstructs best: at equal L0 its error is 0.71× Standard's [0.70, 0.72]; "
            "Gated follows at 0.78× [0.76, 0.80]; for Tanh the data do not decide.",
            "comparisons": comparisons,
        },
        "note": "One seed a run: intervals cover the held-out tokens, not the luck of the initialisation.",
        "training": {
            "steps": 4883,
            "batch_size": 4096,
            "passes": 1,
            "lr": 3e-4,
            "optimiser": {"betas": [0.9, 0.999]},
        },
        "stages": {
            "harvest": {"seconds": 41.2, "status": "done"},
            "train": {"seconds": 612.0, "status": "done"},
            "measure": {"seconds": 88.8, "status": "reused"},
        },
        "sources": [{"name": "Manual pages", "package": "manpages", "licence": "MIT", "documents": 2104}],
        "caveats": [
            "Small model: rankings may differ at scale.",
            "CE was measured on the first 200 k tokens only.",
        ],
    }


def comparison(variant: str, value: float, low: float, high: float, verdict: str) -> dict[str, Any]:
    """Return one comparison of the headline."""
    at = [
        {
            "l0": l0,
            "nmse": 0.9 * l0**-0.42 * value,
            "baseline_nmse": 0.9 * l0**-0.42,
            "ratio": {"value": value, "low": low, "high": high, "n": 1_048_576},
        }
        for l0 in (20, 40, 80)
    ]
    ratio = {"value": value, "low": low, "high": high, "n": 1_048_576}
    found = {
        "variant": variant,
        "ratio": ratio,
        "l0_low": 20.0,
        "l0_high": 80.0,
        "at": at,
        "verdict": verdict,
    }
    return found | {"reason": "The interval lies on one side of 1." if verdict != "undecided" else "Includes 1."}


def make_charts(runs: list[dict[str, Any]]) -> dict[str, list[Chart]]:
    """Return charts by evaluation name."""
    return {
        "frontier": [_frontier(runs, "nmse", True), _frontier(runs, "ce_recovered", False), _gammas(runs)],
        "density": [_densities(runs)],
        "levels": [_levels(runs)],
        "training": [_training(runs, "loss"), _training(runs, "l0")],
    }


def _frontier(runs: list[dict[str, Any]], metric: str, log: bool) -> Chart:
    series = []
    for variant in dict.fromkeys(run["variant"] for run in runs):
        own = [run for run in runs if run["variant"] == variant]
        series.append(
            Series(
                name={"standard": "Standard", "tanh": "Tanh", "gated": "Gated", "topk": "TopK"}[variant],
                group=variant,
                x=[run["l0"]["value"] for run in own],
                y=[run[metric]["value"] for run in own],
                y_low=[run[metric]["low"] for run in own],
                y_high=[run[metric]["high"] for run in own],
                x_low=[run["l0"]["low"] for run in own],
                x_high=[run["l0"]["high"] for run in own],
                hover=[f"{run['name']}\n" + "\n".join(f"{k} = {v}" for k, v in run["hyper"].items()) for run in own],
                join=[json.dumps(run["hyper"]) for run in own],
            )
        )
    shown = METRICS[metric]
    title = "Reconstruction error at each sparsity" if metric == "nmse" else "Loss recovered at each sparsity"
    note = {"nmse": "Lower left is better.", "ce_recovered": "Upper left is better; 1 is lossless."}[metric]
    x, y = Axis("L0", "features a token", log=True), Axis(shown.label, shown.unit, log=log)
    return Chart(metric, title, "line", x, y, series, note, first_screen=True, section="Frontier")


def _gammas(runs: list[dict[str, Any]]) -> Chart:
    series = [
        Series(
            name=variant,
            group=variant,
            x=[run["l0"]["value"] for run in runs if run["variant"] == variant],
            y=[run["gamma"]["value"] for run in runs if run["variant"] == variant],
        )
        for variant in dict.fromkeys(run["variant"] for run in runs)
    ]
    x, y = Axis("L0", "features a token", log=True), Axis("Shrinkage gamma", "ratio", reference=1.0)
    return Chart("gamma", "Shrinkage", "points", x, y, series, METRICS["gamma"].definition, section="Shrinkage")


def _densities(runs: list[dict[str, Any]]) -> Chart:
    centres = [10 ** (-6 + 0.1 * i) for i in range(61)]
    series = []
    for index, run in enumerate(runs):
        middle, width = -2.6 - 0.12 * (index % 3), 0.5 + 0.1 * (index // 3)
        counts = [round(D_SAE * 0.1 * math.exp(-(((math.log10(x) - middle) / width) ** 2))) for x in centres]
        series.append(Series(run["name"], list(centres), counts, run["variant"]))
    x, y = Axis("Density", "share of tokens", log=True), Axis("Features", "count a bin")
    note = "How often each feature fires. Dead features are not drawn."
    return Chart("density", "Feature density", "steps", x, y, series, note, section="Density")


def _levels(runs: list[dict[str, Any]]) -> Chart:
    names = [f"L0 ≈ {l0:.0f}" for l0 in L0S]
    series = []
    for variant in dict.fromkeys(run["variant"] for run in runs):
        levels = [run["mean_activation"]["value"] for run in runs if run["variant"] == variant][:3]
        series.append(Series(variant, names[: len(levels)], levels, variant))
    y = Axis("Mean activation", "normalised units")
    return Chart("levels", "Activation levels", "bars", Axis("Sparsity"), y, series, section="Activation levels")


def _training(runs: list[dict[str, Any]], what: str) -> Chart:
    steps = list(range(0, 5000, 50))
    series = []
    for index, run in enumerate(runs):
        noise = random.Random(index)
        end = run["mse"]["value"] if what == "loss" else run["l0"]["value"]
        curve = [end * (1 + 9 * math.exp(-step / 400)) * noise.uniform(0.97, 1.03) for step in steps]
        series.append(Series(run["name"], list(steps), curve, run["variant"]))
    y = Axis("Loss", "normalised units", log=True) if what == "loss" else Axis("L0", "features a token", log=True)
    title = "Training loss" if what == "loss" else "L0 during training"
    return Chart(f"training-{what}", title, "line", Axis("Step", "batches"), y, series, section="Training")


def write_study(folder: Path, runs: list[dict[str, Any]] | None = None, charts: bool = True) -> Path:
    """Write a study folder and return it: 12 runs, four variants at three sparsities, unless `runs` are given."""
    if runs is None:
        runs = [make_run(variant, setting) for variant in VARIANTS for setting in range(3)]
    (folder / "results").mkdir(parents=True, exist_ok=True)
    write_summary(folder, make_summary(runs))
    for name, items in make_charts(runs).items() if charts else []:
        write_charts(folder, name, [chart.as_dict() for chart in items])
    (folder / "study.toml").write_text('[model]\nname = "embedded-lm"\n\n[[run]]\nvariant = "topk"\n', encoding="utf-8")
    environment = {
        "monosem": "0.1.0",
        "commit": "0123abc",
        "machine": {"cpu": "x86_64", "cores": 8, "gpu": None},
    }
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    return folder


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write (or replace) the summary of a study folder."""
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


def write_charts(folder: Path, name: str, charts: Any) -> None:
    """Write (or replace) one charts file of a study folder."""
    (folder / "results" / f"{name}.charts.json").write_text(json.dumps(charts), encoding="utf-8")
