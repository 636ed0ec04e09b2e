"""Task SAEs: trained on the activations of IOI prompts at one place, every variant, kept on disk.

Makelov et al. 2024 (arXiv 2405.08366), section 5 and appendix; a few settings of each variant, from which the report
takes the one that edits best.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monosem.formats.saelens import load_sae, save_sae
from monosem.normaliser import fit_normaliser
from monosem.optimiser import make_optimiser
from monosem.progress import Ticker
from monosem.sae import Sae
from monosem.store import value_hash
from monosem.types import UserError
from monosem.variants import Step, make_variant

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("standard", {"l1_coefficient": 2.0}),
    ("standard", {"l1_coefficient": 8.0}),
    ("tanh", {"l1_coefficient": 1.0}),
    ("tanh", {"l1_coefficient": 4.0}),
    ("gated", {"l1_coefficient": 2.5}),
    ("gated", {"l1_coefficient": 9.0}),
    ("topk", {"k": 8}),
    ("topk", {"k": 16}),
]
LR = 1e-3
BATCH = 512


def task_saes(
    x: Tensor, site: str, d_sae: int, steps: int, seed: int, folder: Path, depends: dict[str, Any], ticker: Ticker
) -> list[Sae]:
    """Return an SAE of each of SETTINGS on activations x [n, d_in], from disk where they are there already.

    depends: what x depends on; another one, and they are trained again.
    """
    out = []
    with ticker.bar(f"ioi: task SAEs, {site}", len(SETTINGS) * steps, "steps") as bar:
        for variant, hyper in SETTINGS:
            key = value_hash([variant, hyper, d_sae, steps, seed, depends])
            name = f"{variant} " + ", ".join(f"{'k' if k == 'k' else 'l1'}={v:g}" for k, v in hyper.items())
            where = folder / key[:16]
            try:
                sae = load_sae(where)
            except UserError:
                sae = _trained(x, variant, hyper, d_sae, steps, seed)
                sae.facts |= {"name": name, "site": site}
                save_sae(sae, where)
            bar.add(steps)
            out.append(sae)
    return out


def _trained(x: Tensor, variant: str, hyper: dict[str, Any], d_sae: int, steps: int, seed: int) -> Sae:
    normaliser = fit_normaliser("mean_norm", x)
    x = normaliser.apply(x)[0]
    made = make_variant(variant, hyper)
    made.check(x.shape[1], d_sae)
    generator = torch.Generator().manual_seed(seed)
    weights = {name: w.to(x).requires_grad_() for name, w in made.init(x.shape[1], d_sae, generator, x).items()}
    recipe = made.recipe(d_sae)
    optimiser = make_optimiser(weights, (recipe.beta1, recipe.beta2), recipe.eps, made.constraint() == "unit")
    variance = float(x.double().var(dim=0, correction=0).sum())
    rng = np.random.default_rng(seed)
    for index in range(steps):
        rows = torch.from_numpy(rng.integers(len(x), size=min(BATCH, len(x)))).to(x.device)
        with optimiser.collecting():
            loss = made.loss(weights, x[rows], Step(index, steps, variance))
        norm = optimiser.backward(loss.total)
        factor = min(1.0, recipe.clip / norm) if recipe.clip and norm else 1.0
        optimiser.step(LR * min(1.0, (steps - index) / (0.2 * steps)), factor)
    return Sae(variant, made, {name: w.detach() for name, w in weights.items()}, normaliser, {"seed": seed})
