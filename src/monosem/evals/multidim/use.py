"""What the model makes of its circles: can it do the task, where do the words lie, and is the circle used?

Source: Engels et al. 2024 (arXiv 2405.14860), sections 5 and 6 and their appendices, with the centring of `circle`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from monosem.evals import scored
from monosem.evals.multidim import regression
from monosem.evals.multidim.asking import Asked, activations, patched, unedited
from monosem.evals.multidim.circle import EDITS, ONE_WORD, Circle, Move, fit_circle, order
from monosem.evals.multidim.table import as_table
from monosem.evals.multidim.tasks import SOLVES
from monosem.metrics import estimated, once_and_resampled, proportion
from monosem.model import Site
from monosem.progress import Bar, Ticker

RADII = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
TURNS = 2  # angles a word in the sweep
PARTS = {"attention": "hook_attn_out", "MLP": "hook_mlp_out", "residual": "hook_resid_post"}
WANTS = 3  # other words that each word is patched to, for the parts of blocks
DRAWS = 1000
WHERE = {"word": False, "last token": True}


def accuracy(asked: Asked) -> dict[str, Any]:
    """Return the row that says how often the right word is the likeliest of the words."""
    logits = unedited(asked)
    share = proportion(int((logits.argmax(1) == asked.gamma).sum()), len(logits))
    return {**_about(asked, "accuracy"), "method": asked.task.kind, **scored(share)}


def used(cycle: Sequence[Asked], layers: Sequence[int], own: int, seed: int, ticker: Ticker) -> pl.DataFrame:
    """Return the rows of a cycle. cycle: its tasks; layers: residual streams behind these blocks; own: the study's one,
    where words and sweeps are shown.
    """
    known = [(asked, accuracy(asked)) for asked in cycle]
    tables = [as_table(row) for _, row in known]
    successors = [(asked, row["score"]) for asked, row in known if asked.task.kind == "successor"]
    base, best = max(successors, key=lambda one: one[1])
    sites = {layer: base.model.site(f"blocks.{layer}.hook_resid_post") for layer in layers}
    x = {asked.task.name: activations(asked, list(sites.values())) for asked, _ in successors}
    for asked, _ in successors:
        for layer, site in sites.items():
            tables.append(_probe(asked, layer, x[asked.task.name][site.name], seed, asked is base and layer == own))
    last = {asked.task.name: activations(asked, list(sites.values()), last=True) for asked, _ in successors}
    for label, found in (("word", x), ("last token", last)):
        for layer, site in sites.items():
            tables.append(_regression(successors, {name: one[site.name] for name, one in found.items()}, layer, label))
    if best < SOLVES:
        return pl.concat(tables)
    m = base.m
    changes = len(sites) * m * ((m - 1) * (len(EDITS) - len(ONE_WORD)) + len(ONE_WORD))
    total = changes + len(sites) * m * WANTS * len(PARTS) * len(WHERE) + m * len(RADII) * m * TURNS
    with ticker.bar(f"multidim: {base.task.cycle}", total, "answers") as bar:
        for layer, site in sites.items():
            here = x[base.task.name][site.name]
            circle = fit_circle(here, base.alpha, m)
            tables.append(_patches(base, site, here, circle, layer, seed, bar))
            if layer == own:
                tables.append(_sweep(base, site, circle, layer, bar))
        tables.append(_parts(base, layers, seed, bar))
    return pl.concat(tables)


def _about(asked: Asked, kind: str) -> dict[str, Any]:
    return {"kind": kind, "cycle": asked.task.cycle, "template": asked.task.template}


def _probe(asked: Asked, layer: int, x: Tensor, seed: int, shown: bool) -> pl.DataFrame:
    """Return the row of a probe; shown: with those of the words."""
    found, m = order(x, asked.alpha, asked.m, seed=seed), asked.m
    about = {**_about(asked, "probe"), "layer": layer, **scored(found.error), "null": found.null, "p": found.p}
    label = f"{found.next_fitted} of {m} ({found.next} when left out)"
    tables = [as_table({**about, "x": found.r2, "y": found.r2_null, "label": label})]
    if shown:
        place = found.place.tolist()
        words = {"x": [p[0] for p in place], "y": [p[1] for p in place], "label": list(asked.task.words)}
        tables.append(as_table({**_about(asked, "word"), "layer": layer, **words, "score": found.errors.tolist()}))
    return pl.concat(tables)


def _patches(asked: Asked, site: Site, x: Tensor, circle: Circle, layer: int, seed: int, bar: Bar) -> pl.DataFrame:
    m = asked.m
    word = (torch.arange(m)[:, None] + torch.arange(1, m)) % m  # the other words of each, [m, m - 1]
    flat = word.flatten()
    move = Move(x.repeat_interleave(m - 1, 0), x[flat], flat, circle, x, seed)
    old, new = asked.gamma[:, None], (word + asked.beta[:, None]) % m
    signals, tables = {}, []
    for method, edit in EDITS.items():
        edited = edit(move).unflatten(0, (m, m - 1))
        logits = patched(asked, site, edited[:, :1] if method in ONE_WORD else edited, progress=bar.add)
        logits = logits.expand(m, m - 1, m)
        signal = logits.gather(2, old[:, :, None].expand(m, m - 1, 1)) - logits.gather(2, new[:, :, None])
        signals[method] = signal[:, :, 0]
        hit = float((logits.argmax(2) == new).double().mean())
        about = {**_about(asked, "patch"), "layer": layer, "method": method, "x": hit}
        tables.append(as_table({**about, **_over_words(signals[method], torch.ones(m, m - 1))}))
    none, whole, circled = (signals[name] for name in ("unpatched", "whole", "circle"))
    drawn = once_and_resampled(m, DRAWS)[1:]
    for method, signal in signals.items():
        p = float((drawn @ (circled - signal).double().sum(1).numpy() >= 0).mean())
        about = {**_about(asked, "effect"), "layer": layer, "method": method, "p": p}
        tables.append(as_table({**about, **_over_words(none - signal, none - whole)}))
    return pl.concat(tables)


def _over_words(above: Tensor, below: Tensor) -> dict[str, Any]:
    """Return the sum of one over the sum of the other [m, c], words resampled, as columns; none where undefined."""
    weights = once_and_resampled(len(above), DRAWS)
    with np.errstate(divide="ignore", invalid="ignore"):  # behind the last block a word has no effect at all
        values = (weights @ above.double().sum(1).numpy()) / (weights @ below.double().sum(1).numpy())
    found = estimated(values, above.numel())
    return {} if found is None else scored(found)


def _sweep(asked: Asked, site: Site, circle: Circle, layer: int, bar: Bar) -> pl.DataFrame:
    """Return what is answered to points inside and outside the circle, in place of each word."""
    m, tables = asked.m, []
    angle = torch.arange(m * TURNS).double() / TURNS
    points = torch.stack([circle.mean + circle.point(angle, radius) for radius in RADII]).flatten(0, 1).float()
    answer = patched(asked, site, points.expand(m, *points.shape), progress=bar.add).argmax(2)
    for base in range(m):
        said = answer[base].view(len(RADII), -1)
        meant = (said - asked.beta[base]) % m
        near = ((meant - angle + m / 2) % m - m / 2).abs() <= 0.5
        words = [asked.task.words[i] for i in said.flatten().tolist()]
        place = {"x": np.repeat(RADII, len(angle)).tolist(), "y": angle.tolist() * len(RADII), "group": words}
        about = {**_about(asked, "sweep"), "layer": layer, "label": asked.task.words[base]}
        tables.append(as_table({**about, **place, "score": near.double().flatten().tolist()}))
    return pl.concat(tables)


def _parts(asked: Asked, layers: Sequence[int], seed: int, bar: Bar) -> pl.DataFrame:
    """Return how much of the other word's answer the output of attention, of the MLP and the stream bring over."""
    m, model = asked.m, asked.model
    rng = np.random.default_rng(seed)
    word = torch.stack([torch.from_numpy((rng.permutation(m - 1)[:WANTS] + 1 + a) % m) for a in range(m)])
    old, new = asked.gamma, (word + asked.beta[:, None]) % m

    def difference(logits: Tensor) -> Tensor:  # of the other word's answer and the own one, [m, WANTS]
        return (logits.gather(2, new[:, :, None]) - logits.gather(2, old[:, None, None].expand(m, WANTS, 1)))[:, :, 0]

    clean = unedited(asked)
    before, there = difference(clean[:, None].expand(m, WANTS, m)), difference(clean[word])
    tables = []
    for label, last in WHERE.items():
        sites = {(i, part): model.site(f"blocks.{i}.{hook}") for i in layers for part, hook in PARTS.items()}
        found = activations(asked, list(sites.values()), last)
        for (layer, part), site in sites.items():
            logits = patched(asked, site, found[site.name][word], last, bar.add)
            score = _over_words(difference(logits) - before, there - before)
            about = {**_about(asked, "parts"), "layer": layer, "method": part, "label": label}
            tables.append(as_table({**about, **score}))
    return pl.concat(tables)


def _regression(
    successors: Sequence[tuple[Asked, float]], x: dict[str, Tensor], layer: int, label: str
) -> pl.DataFrame:
    """Return what part of the activations template, turns of the circle and the words themselves explain."""
    first, m = successors[0][0], successors[0][0].m
    words = torch.cat([asked.alpha for asked, _ in successors])
    template = torch.cat([torch.full_like(asked.alpha, i) for i, (asked, _) in enumerate(successors)])
    functions = {"template": regression.named(template, len(successors))}
    for turns in range(1, (m - 1) // 2 + 1):
        functions["circle" if turns == 1 else f"circle, {turns} turns"] = regression.circle(words, m, turns)
    functions["word"] = regression.named(words, m)
    steps = regression.explain(torch.cat([x[asked.task.name] for asked, _ in successors]), functions)
    scores = {"method": [s.name for s in steps], "score": [s.r2_held for s in steps], "x": [s.r2 for s in steps]}
    about = {"kind": "regression", "cycle": first.task.cycle, "layer": layer, "label": label, "n": len(words)}
    return as_table({**about, **scores})
