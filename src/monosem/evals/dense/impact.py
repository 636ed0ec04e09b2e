"""What zeroing a feature costs: squared error on all held-out tokens, cross-entropy on some (section L.2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from monosem.heldout import active_entries
from monosem.metrics import Array
from monosem.model import Model, Site
from monosem.sae import Sae

POSITIONS = 512  # positions whose logits are held at once


@dataclass
class Contributions:
    """Sums over tokens of what features add to the reconstruction, in raw units; u_ti = s_t f_ti w_i, r = x - xhat.

    s_t: what the normaliser multiplies token t by on the way back. cross: sum <u_i, r>; square: sum |u_i|^2; fires:
    number of firings, each [k], of the inspected features; cross_all, square_all, fires_all: summed over all features.
    tokens: their number; squared_error: sum |r|^2; variance: sum |x - mean|^2.
    """

    cross: Array
    square: Array
    fires: Array
    tokens: int = 0
    squared_error: float = 0.0
    variance: float = 0.0
    cross_all: float = 0.0
    square_all: float = 0.0
    fires_all: int = 0

    @property
    def error(self) -> Array:
        """Return by how much the squared error grows when each feature is zeroed, [k]: |r + u|^2 - |r|^2, summed."""
        return 2 * self.cross + self.square

    @property
    def error_all(self) -> float:
        """Return the same, each feature zeroed alone, summed over all features."""
        return 2 * self.cross_all + self.square_all


@dataclass(frozen=True)
class Parts:
    """An SAE's answer to activations [n, d_in]: the reconstruction, and what features add to it; both raw [n, d_in].

    token, feature, value [entries]: what is active; scale [n]: what the normaliser multiplies by on the way back.
    """

    xhat: Tensor
    added: Tensor
    token: Tensor
    feature: Tensor
    value: Tensor
    scale: Tensor

    def of(self, feature: int, row: Tensor) -> Tensor:
        """Return what one feature with decoder row [d_in] adds, [n, d_in]."""
        on = self.feature == feature
        token = self.token[on]
        out = torch.zeros_like(self.xhat)
        out[token] = (self.value[on] * self.scale[token])[:, None] * row
        return out


def take_apart(sae: Sae, x: Tensor) -> Parts:
    """Encode and decode raw activations [n, d_in]."""
    normalised, undo = sae.normaliser.apply(x)
    codes = sae.variant.encode(sae.weights, normalised)
    xhat = undo(sae.variant.decode(sae.weights, codes))
    ones = torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
    scale = (undo(ones) - undo(torch.zeros_like(ones)))[:, 0]
    bias = undo(sae.weights["b_dec"].expand_as(xhat))
    return Parts(xhat, xhat - bias, *active_entries(codes), scale)


@torch.no_grad()
def contributions(sae: Sae, batches: Iterable[Tensor], features: np.ndarray, mean: np.ndarray) -> Contributions:
    """Return the contributions of `features [k]` over batches of raw activations [n, d_in]; mean: [d_in], of these."""
    w = sae.weights["W_dec"]
    wanted = torch.from_numpy(features).to(w.device)
    rows, norms = w[wanted], w.norm(dim=1)
    slot = torch.full((sae.d_sae,), -1, device=w.device)
    slot[wanted] = torch.arange(len(features), device=w.device)
    cross, square, fires = torch.zeros(3, len(features), dtype=torch.float64, device=w.device)
    out = Contributions(cross.cpu().numpy(), square.cpu().numpy(), fires.cpu().numpy())
    middle = torch.from_numpy(mean).to(w.device)
    for batch in batches:
        x = batch.to(w.device)
        parts = take_apart(sae, x)
        r = x - parts.xhat
        out.tokens += len(x)
        out.squared_error += float(r.double().square().sum())
        out.variance += float((x.double() - middle).square().sum())
        size = (parts.value * parts.scale[parts.token] * norms[parts.feature]).double().square()
        out.square_all += float(size.sum())
        out.fires_all += len(size)
        out.cross_all += float((parts.added.double() * r.double()).sum())
        at = slot[parts.feature]
        on = at >= 0
        token, at = parts.token[on], at[on]
        weight = (parts.value[on] * parts.scale[token] * (r @ rows.T)[token, at]).double()
        cross.index_add_(0, at, weight)
        square.index_add_(0, at, size[on])
        fires.index_add_(0, at, torch.ones_like(weight))
    out.cross, out.square, out.fires = (total.cpu().numpy() for total in (cross, square, fires))
    return out


@dataclass(frozen=True)
class Spliced:
    """Held-out rows on which the model is run, each [rows, context]: token ids; kept positions; scored ones."""

    tokens: Tensor
    keep: Tensor
    scored: Tensor

    def batches(self) -> Iterable[Spliced]:
        """Yield a few rows at a time."""
        step = max(1, POSITIONS // self.tokens.shape[1])
        for start in range(0, len(self.tokens), step):
            here = slice(start, start + step)
            if self.scored[here].any():
                yield Spliced(self.tokens[here], self.keep[here], self.scored[here])


@dataclass
class CeEffects:
    """Effects on summed CE (nats) of zeroing features in the spliced model, over `tokens` scored tokens.

    estimate [k]: to first order, from one backward pass; exact_rows [e, rows]: of the first e features, by re-running,
    for each packed row; fires [k]: positions on which the feature was active. everything: the effect of zeroing all
    features at once, and fires_all: their firings.
    """

    estimate: Array
    exact_rows: Array
    fires: np.ndarray
    tokens: int = 0
    everything: float = 0.0
    fires_all: int = 0

    @property
    def exact(self) -> Array:
        """Return the effects of the first e features, [e]."""
        return self.exact_rows.sum(1)

    @property
    def error(self) -> Array:
        """Return their standard errors, with packed rows as independent draws; NaN for a single row, [e]."""
        rows = self.exact_rows.shape[1]
        return np.sqrt(rows * self.exact_rows.var(1, ddof=1)) if rows > 1 else np.full(len(self.exact_rows), np.nan)


def ce_effects(model: Model, site: Site, sae: Sae, rows: Spliced, features: np.ndarray, exact: int) -> CeEffects:
    """Return what zeroing each of `features [k]` does to the model's CE with the SAE spliced in.

    The first `exact` features are zeroed in turn and the model run again; all are estimated by minus the gradient of
    the CE times what the feature adds to the reconstruction. That is a straight line through where the model is:
    zeroing a strong feature goes far from there.
    """
    sae = sae.to(model.device)
    exact_rows: list[np.ndarray] = []
    out = CeEffects(np.zeros(len(features)), np.zeros((0, 0)), np.zeros(len(features), np.int64))
    w = sae.weights["W_dec"]
    for some in rows.batches():
        batch = _Batch(model, site, some)
        with torch.no_grad():
            parts = take_apart(sae, batch.x)
        leaf = parts.xhat.clone().requires_grad_()
        with torch.enable_grad():
            ce = batch.ce(leaf)
            (gradient,) = torch.autograd.grad(ce.sum(), leaf)
        with torch.no_grad():
            out.tokens += int(some.scored.sum())
            out.fires_all += len(parts.token)
            out.everything += float((batch.ce(parts.xhat - parts.added) - ce).sum())
            for i, feature in enumerate(features.tolist()):
                here = parts.feature == feature
                token = parts.token[here]
                out.fires[i] += len(token)
                along = (parts.value[here] * parts.scale[token]).double()
                out.estimate[i] -= float(along @ (gradient[token].double() @ w[feature].double()))
            less = [batch.ce(parts.xhat - parts.of(i, w[i])) - ce for i in features[:exact].tolist()]
            exact_rows.append(torch.stack(less or [ce]).cpu().numpy()[: len(less)])
    out.exact_rows = np.concatenate(exact_rows, axis=1)
    return out


class _Batch:
    """A few rows: what comes before the site is run once. x: activations at kept positions, float32 [kept, d_in]."""

    def __init__(self, model: Model, site: Site, rows: Spliced):
        self.model, self.site, self.rows = model, site, rows
        self.tokens = rows.tokens.long().to(model.device)
        self.keep, self.scored = rows.keep.to(model.device), rows.scored.to(model.device)
        self.prefix = model.prefix(self.tokens, site)
        self.x = self.prefix.activations[self.keep].float()
        self.targets = torch.roll(self.tokens, -1, dims=1)[self.scored]

    def ce(self, replacement: Tensor) -> Tensor:
        """Return each row's summed CE of its scored tokens, the kept activations replaced by [kept, d_in]; float64."""

        def edit(activations: Tensor) -> Tensor:
            out = activations.clone()
            out[self.keep] = replacement.to(activations.dtype)
            return out

        logits = self.model.run(self.tokens, self.site, edit, self.prefix, rows=self.scored)
        chosen = log_softmax(logits.float(), dim=-1).gather(1, self.targets[:, None])[:, 0]
        row = self.scored.nonzero()[:, 0]
        return torch.zeros(len(self.tokens), dtype=torch.float64, device=row.device).index_add(0, row, -chosen.double())


@torch.no_grad()
def next_token_entropy(model: Model, rows: Spliced) -> np.ndarray:
    """Return the entropy (nats) of the untouched model's next token [rows, context], NaN where not kept."""
    out = np.full(rows.tokens.shape, np.nan)
    step = max(1, POSITIONS // rows.tokens.shape[1])
    for start in range(0, len(rows.tokens), step):
        here = slice(start, start + step)
        keep = rows.keep[here]
        logits = model.run(rows.tokens[here].long(), rows=keep.to(model.device))
        chance = log_softmax(logits.float(), dim=-1)
        out[here][keep.numpy()] = -torch.linalg.vecdot(chance.exp(), chance).cpu().numpy()
    return out
