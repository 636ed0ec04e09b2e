"""Where a model keeps the attributes of IOI prompts: residual streams by layer, and heads.

Activation patching as in Wang et al. 2022 (arXiv 2211.00593), with the counterfactuals of Makelov et al. 2024.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from monosem.evals import scored
from monosem.evals.ioi.circuit import Place, head_node, residual
from monosem.evals.ioi.patching import Task, activations, said, task_of, unedited
from monosem.evals.ioi.prompts import ATTRIBUTES, POSITIONS, counterfactual
from monosem.metrics import estimated, once_and_resampled
from monosem.progress import Ticker
from monosem.types import Estimate

LAYERS = 10  # at most, spread evenly
CARRIERS = {"S": ("S1", "S2", "END"), "IO": ("IO", "S2", "END"), "Pos": ("S2", "END")}
NEARLY = 0.9  # of the largest effect


def layer_map(task: Task, seed: int, draws: int, ticker: Ticker) -> list[dict[str, Any]]:
    """Return for layers, positions and attributes the share of the logit difference that patching takes away.

    Patched is the residual stream behind the block, with that of the prompt whose attribute is changed. One dict a
    cell: attribute, value (the position), x (the layer), score, low, high, n.
    """
    model, depth = task.model, len(task.model.blocks)
    d_model = model.lm.config.hidden_size
    layers = sorted({round(i) for i in np.linspace(0, depth - 1, min(LAYERS, depth))})
    clean = unedited(task).ld
    others = {a: task_of(model, counterfactual(task.prompts, a, seed)) for a in ATTRIBUTES}
    places = {
        (layer, position): residual(model, f"blocks.{layer}.hook_resid_post", position, d_model)
        for position in POSITIONS
        for layer in layers
    }
    with ticker.bar("ioi: layers", len(places) + len(others), "patches") as bar:
        values = {}
        for attribute, other in others.items():
            values[attribute] = activations(other, list(places.values()), like=task)
            bar.add(1)
        rows = []
        for (layer, position), place in places.items():
            new = {a: values[a][place.name] for a in ATTRIBUTES if position in CARRIERS[a]}
            for attribute, said_so in said(task, place, new).items():
                share = _share(clean - said_so.ld, clean, draws)
                rows.append({"attribute": attribute, "value": position, "x": float(layer), **_score(share)})
            bar.add(1)
    return rows


def head_map(task: Task, draws: int, ticker: Ticker) -> list[dict[str, Any]]:
    """Return the fall of the logit difference (logits) when a head's z at END is set to its mean, largest first.

    One dict a head: value ("L9H1"), x (the layer), score, low, high, n.
    """
    model = task.model
    count = model.lm.config.num_attention_heads
    clean = unedited(task).ld
    rows = []
    with ticker.bar("ioi: heads", len(model.blocks), "layers") as bar:
        for layer in range(len(model.blocks)):
            place = Place(f"L{layer}", tuple(head_node(model, "z", layer, head, "END") for head in range(count)))
            z = activations(task, [place])[place.name]
            new = {}
            for head, own in enumerate(place.slices):
                new[head] = z.clone()
                new[head][:, own] = z[:, own].mean(0)
            for head, one in said(task, place, new).items():
                fall = once_and_resampled(len(clean), draws) @ (clean - one.ld) / len(clean)
                found = estimated(fall, len(clean))
                rows.append({"value": f"L{layer}H{head}", "x": float(layer), **_score(found)})
            bar.add(1)
    return sorted(rows, key=lambda row: -row["score"])


def found_layers(layers: list[dict[str, Any]]) -> dict[str, int]:
    """Return the layer where each of S2 and END is judged.

    S2: where patching Pos has the largest effect, as S is there from the first layer on, being the token itself. END:
    the first layer where all attributes together have nearly their largest effect. Not the last one: it only holds the
    answer.
    """
    every = sorted({row["x"] for row in layers})
    inner = every[:-1] or every

    def totals(position: str, attributes: tuple[str, ...]) -> dict[int, float]:
        own = [
            row for row in layers if row["value"] == position and row["attribute"] in attributes and row["x"] in inner
        ]
        return {int(row["x"]): sum(abs(r["score"]) for r in own if r["x"] == row["x"]) for row in own}

    subject, end = totals("S2", ("Pos",)), totals("END", ATTRIBUTES)
    best = max(end.values())
    return {
        "S2": max(subject, key=lambda layer: subject[layer]),
        "END": min(layer for layer, total in end.items() if total >= NEARLY * best),
    }


def _share(fall: np.ndarray, clean: np.ndarray, draws: int) -> Estimate | None:
    weights = once_and_resampled(len(clean), draws)
    values = (weights @ fall) / (weights @ clean)
    return estimated(values, len(clean))


def _score(e: Estimate | None) -> dict[str, Any]:
    return {"score": np.nan, "n": 0} if e is None else scored(e)
