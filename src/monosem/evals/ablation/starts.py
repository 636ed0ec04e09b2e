"""What serves all runs: positions, what ablations start from there, gradients, baselines. Kept in `ablation/`.

`ablation/starts.safetensors` and `ablation/baselines.safetensors`, each with the header of what it depends on, are made
anew when that differs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from monosem.activations import Activations
from monosem.evals.ablation.effects import ablate
from monosem.evals.ablation.positions import Positions, draw_positions
from monosem.evals.ablation.suffix import Start, Suffix, in_float32, start_at
from monosem.model import Model, Site
from monosem.progress import Ticker
from monosem.store import read_json, write_atomic

STARTS_VERSION = 1
SAMPLE = 16_384  # tokens for the mean and the principal components
KINDS = ("neuron", "pca")  # baselines that are the same for all runs


@dataclass(frozen=True, eq=False)
class Shared:
    """Positions with what ablations start from. gradients: of the loss by what is removed; x: activations; both
    [n, d_in]; starts: the opened file.
    """

    model: Model
    site: Site
    positions: Positions
    x: Tensor
    gradients: Tensor
    header: dict[str, Any]
    starts: Any = field(repr=False)

    def suffix(self, i: int) -> Suffix:
        """Return what runs ablations at a position."""
        p, names = self.positions, set(self.starts.keys())
        hidden = self.starts.get_tensor(f"{i}.hidden") if f"{i}.hidden" in names else None
        keys, values = (
            [self.starts.get_tensor(f"{i}.{kind}.{layer}") for layer in range(self.header["layers"])]
            for kind in ("keys", "values")
        )
        start = Start(self.x[i].cpu(), hidden, keys, values, self.header["in_tuples"])
        return Suffix(self.model, self.site, p.sequence(i), int(p.at[i]), start)


def shared_work(
    folder: Path, model: Model, site: str, sequences: int, seed: int, exact: bool, ticker: Ticker
) -> tuple[Shared, Activations]:
    """Return what is common to all runs, from disk or computed; and the stored activations.

    exact: whether prefixes are kept for exact effects; gradients always are. Raises UserError as `draw_positions` does.
    """
    positions, store = draw_positions(folder / "activations", sequences, seed)
    model = in_float32(model)
    depends = {
        "version": STARTS_VERSION,
        "activations": read_json(folder / "activations" / "meta.json")["hash"],
        "model": model.identity,
        "site": site,
        "sequences": sequences,
        "seed": seed,
        "exact": exact,
    }
    path = folder / "ablation" / "starts.safetensors"
    found = _header(path)
    if found is None or found["depends"] != depends:
        _write_starts(path, model, model.site(site), positions, depends, ticker)
        found = _header(path)
        assert found is not None
    file: Any = safe_open(path, framework="pt")
    x, gradients = (file.get_tensor(name).to(model.device) for name in ("x", "gradients"))
    return Shared(model, model.site(site), positions, x, gradients, found, file), store


def _header(path: Path) -> dict[str, Any] | None:
    """Return the header of a file, None when there is no whole one."""
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()["header"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return None


def _write(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    metadata = {"header": json.dumps(header, default=str)}
    write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata))


def _write_starts(
    path: Path, model: Model, site: Site, positions: Positions, depends: dict[str, Any], ticker: Ticker
) -> None:
    x, gradients, tensors = [], [], {}
    layers, in_tuples = 0, False
    with ticker.bar("prefixes", len(positions), "sequences") as bar:
        for i in range(len(positions)):
            tokens, at = positions.sequence(i), int(positions.at[i])
            start = start_at(model, site, tokens, at)
            x.append(start.x)
            gradients.append(Suffix(model, site, tokens, at, start).gradient())
            layers, in_tuples = len(start.keys), start.in_tuples
            if depends["exact"]:
                if start.hidden is not None:
                    tensors[f"{i}.hidden"] = start.hidden.cpu().contiguous()
                for kind, parts in (("keys", start.keys), ("values", start.values)):
                    tensors |= {f"{i}.{kind}.{layer}": part.cpu().contiguous() for layer, part in enumerate(parts)}
            bar.add(1)
    tensors |= {"x": torch.stack(x).cpu(), "gradients": torch.stack(gradients).cpu()}
    _write(path, tensors, {"depends": depends, "layers": layers, "in_tuples": in_tuples})


def baselines(common: Shared, store: Activations, number: int, folder: Path, ticker: Ticker) -> dict[str, np.ndarray]:
    """Return the sparsities of ablations of coordinates and of principal components, by kind, each [n, number].

    `number` of each are drawn at each position; the coordinate, or the component along the direction, is set to its
    mean over held-out tokens. From disk or computed.
    """
    path = folder / "ablation" / "baselines.safetensors"
    depends = {**common.header["depends"], "baselines": number}
    found = _header(path)
    if found is None or found["depends"] != depends:
        d = common.x.shape[1]
        number = min(number, d)
        mean, components = mean_and_components(store)
        found = {kind: torch.full((len(common.positions), number), torch.nan, dtype=torch.float64) for kind in KINDS}
        with ticker.bar("baselines", len(common.positions) * 2 * number, "ablations") as bar:
            for i, row in enumerate(common.positions.row.tolist()):
                rng = np.random.default_rng([depends["seed"], row, 1])
                picked = {kind: rng.choice(d, number, replace=False) for kind in KINDS}
                away = common.x[i].cpu() - mean
                unit = {"neuron": torch.eye(d)[picked["neuron"]], "pca": components[picked["pca"]]}
                removed = torch.cat([(unit[kind] @ away)[:, None] * unit[kind] for kind in KINDS])
                effects = list(ablate(common.suffix(i), removed.to(common.x.device)))
                for kind, part in zip(KINDS, (effects[:number], effects[number:]), strict=True):
                    found[kind][i] = torch.tensor([effect.sparsity for effect in part], dtype=torch.float64)
                bar.add(2 * number)
        _write(path, found, {"depends": depends})
    with safe_open(path, framework="pt") as file:
        return {kind: file.get_tensor(kind).numpy() for kind in KINDS}


def mean_and_components(store: Activations) -> tuple[Tensor, Tensor]:
    """Return the mean [d_in] and the principal components, one a row [d_in, d_in], of the held-out activations."""
    wanted = np.linspace(0, store.n - 1, min(SAMPLE, store.n)).astype(np.int64)
    x = store.rows(wanted).double()
    mean = x.mean(0)
    x -= mean
    return mean.float(), torch.linalg.eigh(x.T @ x).eigenvectors.T.flip(0).float().contiguous()
