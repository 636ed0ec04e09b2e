"""Sums over held-out tokens: every SAE on the very same tokens, in one pass over the stored activations, and the
language model's cross-entropy with each SAE spliced in, re-running only the blocks after the site.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from monosem.kernels.threads import own_threads, run_all
from monosem.metrics import (
    MAX_GROUPS,
    DataSums,
    Downstream,
    SaeSums,
    activation_level,
    dead_fraction,
    features_above,
    intervals,
    reconstruction,
    resamples,
)
from monosem.metrics import downstream as downstream_metrics
from monosem.model import Model, Site
from monosem.normaliser import PER_TOKEN
from monosem.sae import Sae
from monosem.types import Estimate, UserError
from monosem.variants import Codes, DenseCodes

Progress = Callable[[int], object]
# Takes firings, each [n]: token (number in the order of the batches), feature, effective activation (float32, > 0).
Sink = Callable[[np.ndarray, np.ndarray, np.ndarray], object]


class DataAccumulator:
    """Collects `DataSums` over batches of raw activations. groups: number of document groups."""

    def __init__(self, center: Tensor, groups: int):
        """Start at zero; center [d_in] is any point near the mean."""
        self.center = center.double()
        self.n = torch.zeros(groups, dtype=torch.float64, device=center.device)
        self.xx = torch.zeros_like(self.n)
        self.x = torch.zeros(groups, len(center), dtype=torch.float64, device=center.device)

    def add(self, x: Tensor, group: Tensor) -> None:
        """Add activations [n, d_in] of document groups [n]."""
        shifted = x.double() - self.center
        self.n.index_add_(0, group, torch.ones_like(group, dtype=torch.float64))
        self.xx.index_add_(0, group, shifted.square().sum(1))
        self.x.index_add_(0, group, shifted)

    def sums(self) -> DataSums:
        """Return the sums as numpy arrays."""
        return DataSums(*(t.cpu().numpy() for t in (self.center, self.n, self.x, self.xx)))


class SaeAccumulator:
    """Collects `SaeSums` of one SAE over the same batches, and hands every firing to `sink` if there is one."""

    def __init__(self, sae: Sae, center: Tensor, groups: int, sink: Sink | None = None):
        """Start at zero."""
        self.sae, self.center, self.sink = sae, center.double(), sink
        self.seen = 0
        zeros = {"dtype": torch.float64, "device": center.device}
        self.per_group = {name: torch.zeros(groups, **zeros) for name in ("hh", "xh", "r", "active", "activation")}
        self.h = torch.zeros(groups, len(center), **zeros)
        self.total, self.square, self.peak = (torch.zeros(sae.d_sae, **zeros) for _ in range(3))
        self.count = torch.zeros(sae.d_sae, dtype=torch.int64, device=center.device)
        self.l0_counts = torch.zeros(sae.d_sae + 1, dtype=torch.int64, device=center.device)
        self.ev_token = 0.0
        self.norms = sae.weights["W_dec"].norm(dim=1)

    @torch.no_grad()
    def add(self, x: Tensor, group: Tensor) -> None:
        """Encode and decode raw activations [n, d_in] and add what came out. Raises UserError for NaN."""
        codes, xhat = self.sae.reconstruct(x)
        if not torch.isfinite(xhat).all():
            raise UserError(f"SAE {self.sae.facts.get('name', '')}: its reconstruction holds NaN or infinite values")
        a, b = x.double() - self.center, xhat.double() - self.center
        r = (a - b).square().sum(1)
        aa = a.square().sum(1)
        active, activation = self._features(codes)
        rows = {"hh": b.square().sum(1), "xh": (a * b).sum(1), "r": r, "active": active, "activation": activation}
        for name, values in rows.items():
            self.per_group[name].index_add_(0, group, values.double())
        self.h.index_add_(0, group, b)
        self.l0_counts += torch.bincount(active, minlength=len(self.l0_counts))
        self.ev_token += float((1 - r / aa.clamp_min(1e-30)).sum())

    def _features(self, codes: Codes) -> tuple[Tensor, Tensor]:
        """Add the per-feature sums; return the L0 and the summed activations of each token."""
        token, feature, value = active_entries(codes)
        single = value * self.norms[feature]
        if self.sink is not None:
            self.sink((token + self.seen).cpu().numpy(), feature.cpu().numpy(), single.cpu().numpy())
        self.seen += codes.n_tokens
        effective = single.double()
        self.count += torch.bincount(feature, minlength=len(self.count))
        self.total.index_add_(0, feature, effective)
        self.square.index_add_(0, feature, effective.square())
        self.peak.scatter_reduce_(0, feature, effective, "amax")
        n = codes.n_tokens
        summed = torch.zeros(n, dtype=torch.float64, device=value.device).index_add_(0, token, effective)
        return torch.bincount(token, minlength=n), summed

    def sums(self) -> SaeSums:
        """Return the sums as numpy arrays."""
        arrays: dict[str, Any] = {name: t.cpu().numpy() for name, t in self.per_group.items()}
        for name in ("h", "count", "total", "square", "peak", "l0_counts"):
            arrays[name] = getattr(self, name).cpu().numpy()
        return SaeSums(**arrays, ev_token=self.ev_token, scale=self.sae.normaliser.scale)


def active_entries(codes: Codes) -> tuple[Tensor, Tensor, Tensor]:
    """Return the active entries of codes as (token, feature, value), each [entries], values > 0."""
    if isinstance(codes, DenseCodes):
        token, feature = codes.values.nonzero(as_tuple=True)
        return token, feature, codes.values[token, feature]
    values = codes.values.flatten()
    on = values > 0
    return codes.layout.rows[on], codes.layout.indices[on], values[on]


def document_groups(doc: Tensor) -> tuple[Tensor, int]:
    """Return a group number for each token and the number of groups: documents, folded to at most MAX_GROUPS."""
    _, dense = doc.unique(return_inverse=True)
    documents = int(dense.max()) + 1
    return dense % MAX_GROUPS, min(documents, MAX_GROUPS)


def accumulate(
    saes: list[Sae],
    batches: Iterable[tuple[Tensor, Tensor]],
    groups: int,
    device: torch.device | None = None,
    progress: Progress = lambda _tokens: None,
    center: Tensor | None = None,
    sinks: Sequence[Sink | None] = (),
) -> tuple[DataSums, list[SaeSums]]:
    """Run every SAE over the same batches of (raw activations [n, d_in], document group [n]).

    center: [d_in], any point near the mean, by default the first batch's; sums belong together only if it is the same.
    sinks: one an SAE, each called in the order of the batches with the firings of that SAE.
    """
    data: DataAccumulator | None = None
    accumulators: list[SaeAccumulator] = []
    for raw, of in batches:
        x, group = (raw, of) if device is None else (raw.to(device), of.to(device))
        if data is None:
            center = x.double().mean(dim=0) if center is None else center.to(x.device)
            data = DataAccumulator(center, groups)
            pairs = zip_longest(saes, sinks)
            accumulators = [SaeAccumulator(sae, center, groups, sink) for sae, sink in pairs]
        data.add(x, group)
        with own_threads():
            run_all([partial(accumulator.add, x, group) for accumulator in accumulators])
        progress(len(x))
    if data is None:
        raise UserError("no held-out tokens to measure on; raise text.eval_tokens")
    return data.sums(), [accumulator.sums() for accumulator in accumulators]


@dataclass(frozen=True)
class Splice:
    """The held-out rows on which the model is re-run, each [rows, context]. keep: bool, positions that are replaced;
    scored: bool, kept positions whose next token is text of the same document; group: document groups as in the sums.
    """

    tokens: Tensor
    keep: Tensor
    scored: Tensor
    group: Tensor


@torch.no_grad()
def downstream(
    model: Model,
    site: Site,
    saes: list[Sae],
    splice: Splice,
    mean: Tensor,
    groups: int,
    batch_rows: int,
    progress: Progress = lambda _tokens: None,
) -> list[Downstream]:
    """Return summed cross-entropies, clean, ablated (zero and mean [d_in]) and with each SAE spliced in.

    Positions that are not kept pass through unchanged in every arm. progress: called with scored tokens times arms.
    """
    mean = mean.to(model.device)
    totals = [{f.name: np.zeros(groups) for f in fields(Downstream)} for _ in saes]
    shared = {name: np.zeros(groups) for name in ("n", "clean", "zero", "mean")}
    for start in range(0, len(splice.tokens), batch_rows):
        here = slice(start, start + batch_rows)
        scored = splice.scored[here].to(model.device)
        if not scored.any():
            continue
        arms = _Arms(model, site, splice.tokens[here], splice.keep[here].to(model.device), scored)
        group = splice.group[here][splice.scored[here]].numpy()
        np.add.at(shared["n"], group, 1.0)
        clean = arms.log_probabilities(None)
        np.add.at(shared["clean"], group, arms.ce(clean))
        np.add.at(shared["zero"], group, arms.ce(arms.log_probabilities(torch.zeros_like)))
        np.add.at(shared["mean"], group, arms.ce(arms.log_probabilities(mean.expand_as)))
        chances = clean.exp()
        negative_entropy = torch.linalg.vecdot(chances, clean)
        for sae, total in zip(saes, totals, strict=True):
            spliced = arms.log_probabilities(lambda x, sae=sae: sae(x.float()).to(x.dtype))
            np.add.at(total["sae"], group, arms.ce(spliced))
            kl = negative_entropy - torch.linalg.vecdot(chances, spliced)
            np.add.at(total["kl"], group, kl.double().cpu().numpy())
        progress(int(scored.sum()) * (len(saes) + 3))
    return [Downstream(**{**total, **shared}) for total in totals]


class _Arms:
    """One batch of rows: the prefix is run once, every arm re-runs what comes after the site."""

    def __init__(self, model: Model, site: Site, tokens: Tensor, keep: Tensor, scored: Tensor):
        self.model, self.site, self.keep, self.scored = model, site, keep, scored
        self.tokens = tokens.long().to(model.device)
        self.prefix = model.prefix(self.tokens, site)
        self.targets = torch.roll(self.tokens, -1, dims=1)[scored]

    def log_probabilities(self, replace: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Return log probabilities [scored, vocabulary], `replace` applied to the kept activations [kept, d_in]."""

        def edit(acts: Tensor) -> Tensor:
            if replace is None:
                return acts
            out = acts.clone()
            out[self.keep] = replace(acts[self.keep]).to(acts.dtype)
            return out

        logits = self.model.run(self.tokens, self.site, edit, self.prefix, rows=self.scored)
        return log_softmax(logits.float(), dim=-1)

    def ce(self, log_probabilities: Tensor) -> np.ndarray:
        """Return the cross-entropy of each scored token, float64 nats [scored]."""
        return -log_probabilities.gather(1, self.targets[:, None])[:, 0].double().cpu().numpy()


def scored_positions(keep: Tensor, doc: Tensor) -> Tensor:
    """Return bool [rows, context]: kept positions whose next token is ordinary text of the same document."""
    ahead = torch.roll(doc, -1, dims=1)
    scored = keep & (doc >= 0) & (ahead == doc)
    scored[:, -1] = False
    return scored


def estimates(
    data: DataSums, sae: SaeSums, ce: Downstream | None = None, draws: int = 1000
) -> dict[str, Estimate | None]:
    """Return every metric of `schema.METRICS` with its 95 % interval, from sums; document bootstrap, paired by seed."""
    n = int(data.n.sum())
    weights = resamples(len(data.n), draws)
    out = intervals(reconstruction(data, sae), reconstruction(data, sae, weights), n)
    if ce is not None:
        out |= intervals(downstream_metrics(ce), downstream_metrics(ce, weights), int(ce.n.sum()))
    out["dead_fraction"] = dead_fraction(sae.count, n)
    out["features_above_1e-2"] = features_above(sae.count, n, 1e-2)
    out["features_above_1e-3"] = features_above(sae.count, n, 1e-3)
    return out | activation_level(sae)


def measure(sae: Sae, batches: Iterable[Tensor | tuple[Tensor, Tensor]], *, draws: int = 1000) -> dict[str, Any]:
    """Measure an SAE on batches of raw activations [n, d_in].

    batches: tensors, or (activations, document number [n]) pairs; without documents every token is its own group, and
    intervals are too narrow for running text. Returns the metric names of summary.json (those that need no language
    model), each {"value", "low", "high", "n"}; None where a metric is undefined.
    """
    if sae.normaliser.kind in PER_TOKEN and not math.isfinite(sae.normaliser.scale):
        raise UserError("this SAE's normaliser carries no scale")
    pieces = [piece if isinstance(piece, tuple) else (piece, None) for piece in batches]
    if not pieces:
        raise UserError("no activations to measure on; give at least one batch [n, d_in]")
    x = torch.cat([piece[0] for piece in pieces])
    documents = [piece[1] for piece in pieces]
    doc = torch.cat([d for d in documents if d is not None]) if documents[0] is not None else torch.arange(len(x))
    group, groups = document_groups(doc)
    sizes = [len(piece[0]) for piece in pieces]
    data, (sums,) = accumulate([sae], zip(x.split(sizes), group.split(sizes), strict=True), groups)
    return {name: None if e is None else e.as_dict() for name, e in estimates(data, sums, draws=draws).items()}
