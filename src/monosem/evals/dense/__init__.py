"""Dense features, inspected (section L): how many, what they weigh, trivial causes, stability, and a verdict.

One row an inspected feature: all that fire on more than 10 % of held-out tokens (the densest `cap`), and `sample`
random ones of 1 to 10 %. See docs/dense.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import polars as pl
import torch
from pydantic import Field

from monosem.evals import Evaluation, Inputs, Judged, Result, RunInfo
from monosem.evals.dense.causes import Screens, bimodality, correlation
from monosem.evals.dense.charts import dense_charts
from monosem.evals.dense.directions import directions, found_again, principal_components
from monosem.evals.dense.evidence import evidence_files, read_evidence
from monosem.evals.dense.heldout_text import HeldOut, read_heldout_text, splice_rows
from monosem.evals.dense.impact import Spliced, ce_effects, contributions, next_token_entropy
from monosem.evals.dense.scalars import band_scalars, ce_scalars, share_scalars
from monosem.evals.dense.verdicts import DENSE, band_of, cause_of, choose, verdict
from monosem.firings import Firings, open_firings
from monosem.formats.saelens import load_sae
from monosem.metrics import DataSums, SaeSums, resamples
from monosem.model import Model, Site, resolve_device
from monosem.schema import Chart
from monosem.store import file_hash
from monosem.sums import read_heldout, read_sums
from monosem.types import UserError

Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class _Prepared:
    """What serves all runs. rows, number: the packed rows for cross-entropies, None without `ce_tokens`."""

    inputs: Inputs
    held: HeldOut
    data: DataSums
    model: Model | None
    site: Site | None
    rows: Spliced | None
    number: np.ndarray

    @cached_property
    def screens(self) -> Screens:
        return Screens(self.held.facts)

    @cached_property
    def space(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean activation [d_in] and principal components [10, d_in], as the SAEs see activations."""
        normaliser = load_sae(self.inputs.runs[0].folder).normaliser  # equal for all runs of a study
        x = torch.cat([normaliser.apply(raw)[0] for raw in self.held.spread_batches()]).double().numpy()
        return x.mean(0), principal_components(x)

    @cached_property
    def entropies(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Row numbers of some tokens, and the entropy of the model's prediction of the token and of the next one."""
        if self.model is None or self.rows is None:
            return np.array([], dtype=np.int64), {}
        after = next_token_entropy(self.model, self.rows)
        before = np.roll(after, 1, axis=1)
        before[:, 0] = np.nan
        known = np.isfinite(after) & np.isfinite(before)
        return self.number[known], {"before": before[known], "after": after[known]}

    @property
    def mean(self) -> np.ndarray:
        """Mean raw activation [d_in]."""
        return self.data.center + self.data.x.sum(0) / self.data.n.sum()


@dataclass(frozen=True)
class Dense(Evaluation):
    """Features that fire on more than 10 % of tokens (section L).

    cap, sample: how many features above 10 % and of 1 to 10 % are inspected. ce_tokens: scored tokens for the effect on
    cross-entropy, 0 to leave it out; exact: features a run for which the model is run again.
    """

    needs = ("sums", "codes", "activations", "sae")
    cap: Count = 200
    sample: Count = 50
    ce_tokens: Count = 0
    exact: Count = 8

    def reads(self, inputs: Inputs, info: RunInfo) -> dict[str, Any]:
        family = {other.name: other.sae for other in _family(inputs, info)}
        return {"family": family, "evidence": {p.parent.name: file_hash(p) for p in evidence_files(inputs, info)}}

    def prepare(self, inputs: Inputs) -> _Prepared:
        held = read_heldout_text(inputs.folder / "activations")
        model = inputs.model() if inputs.model is not None and self.ce_tokens else None
        site = None if model is None else model.site(inputs.site)
        rows, number = None, np.zeros((0, 0))
        if model is not None:
            rows, number = splice_rows(inputs.folder / "activations", held, self.ce_tokens)
        return _Prepared(inputs, held, read_heldout(inputs.folder), model, site, rows, number)

    def run(self, info: RunInfo, prepared: _Prepared) -> Result:
        firings = open_firings(prepared.inputs.folder, info.name)
        sums, _ = read_sums(prepared.inputs.folder, info.name)
        if firings.sae != info.sae:
            raise UserError(f"{firings.folder}: codes of other weights of {info.name}; run `monosem measure` first")
        n = int(prepared.data.n.sum())
        features = choose(sums.count / n, self.cap, self.sample)
        dense = np.zeros(prepared.held.groups)
        columns = _density_columns(sums, features, n)
        columns |= _screened(firings, features, prepared, dense)
        columns |= _impact(info, features, sums, prepared, self.exact)
        columns |= _stability(info, features, sums, prepared)
        rows = _judged(columns, prepared.inputs, info)
        scalars, reasons = band_scalars(sums, dense, resamples(prepared.held.groups, prepared.inputs.bootstrap), n)
        for more, why in (share_scalars(rows), ce_scalars(rows)):
            scalars |= more
            reasons |= why
        return Result(scalars, rows, reasons)

    def figure(self, judged: list[Judged]) -> list[Chart]:
        return dense_charts(judged)


def _density_columns(sums: SaeSums, features: np.ndarray, n: int) -> dict[str, np.ndarray]:
    count, total, square = (v[features].astype(np.float64) for v in (sums.count, sums.total, sums.square))
    mean = total / count
    return {
        "feature": features.astype(np.int32),
        "band": band_of(count / n),
        "density": count / n,
        "mean_activation": mean,
        "cv": np.sqrt(np.maximum(square / count - mean**2, 0)) / mean,
        "activation_share": total / sums.total.sum(),
    }


def _screened(firings: Firings, features: np.ndarray, p: _Prepared, dense: np.ndarray) -> dict[str, np.ndarray]:
    """Return the screens of the inspected features; add the firings of those above 10 % to `dense` [groups]."""
    place = {int(feature): i for i, feature in enumerate(features)}
    is_dense = np.isin(band_of(firings.counts / firings.tokens), DENSE)
    found: list[dict[str, float]] = [{} for _ in features]
    for feature, fires in firings.each([*place, *np.flatnonzero(is_dense).tolist()]):
        where = p.held.tokens_of(fires)
        if is_dense[feature]:
            dense += np.bincount(p.held.group[where], minlength=len(dense))
        if feature in place:
            f = np.zeros(p.held.store.n, dtype=np.float32)
            f[where] = fires.value
            some, entropies = p.entropies
            found[place[feature]] = {"bimodality": bimodality(np.log(fires.value)), **p.screens(f)} | {
                f"corr_entropy_{name}": correlation(f[some].astype(np.float64), x) for name, x in entropies.items()
            }
    names = dict.fromkeys(name for one in found for name in one)
    return {name: np.array([one[name] for one in found]) for name in names}


def _impact(info: RunInfo, features: np.ndarray, sums: SaeSums, p: _Prepared, exact: int) -> dict[str, np.ndarray]:
    """Return what zeroing each feature costs, and that relative to the run's average live feature."""
    sae = load_sae(info.folder).to(resolve_device("auto") if p.model is None else p.model.device)
    parts = contributions(sae, p.held.spread_batches(), features, p.mean)
    live = max(1, int((sums.count > 0).sum()))
    each = parts.error / np.where(parts.fires > 0, parts.fires, np.nan)
    out = {
        "delta_nmse": parts.error / parts.variance,
        "share_of_explained": parts.error / (parts.variance - parts.squared_error),
        "delta_nmse_firing": each / (parts.variance / parts.tokens),
        "impact_ratio": parts.error / (parts.error_all / live),
        "impact_ratio_firing": each / (parts.error_all / max(1, parts.fires_all)),
    }
    if p.model is None or p.site is None or p.rows is None:
        return out
    ce = ce_effects(p.model, p.site, sae, p.rows, features, exact)
    known, error = np.full((2, len(features)), np.nan)
    known[: len(ce.exact)], error[: len(ce.exact)] = ce.exact, 1.959964 * ce.error
    fires = np.where(ce.fires > 0, ce.fires, np.nan)
    return out | {
        "delta_ce_estimate": ce.estimate / ce.tokens,
        "delta_ce_estimate_firing": ce.estimate / fires,
        "delta_ce": known / ce.tokens,
        "delta_ce_low": (known - error) / ce.tokens,
        "delta_ce_high": (known + error) / ce.tokens,
        "delta_ce_firing": known / fires,
        "ce_impact_ratio": known / (ce.everything / live),
        "ce_impact_ratio_firing": known / fires / (ce.everything / max(1, ce.fires_all)),
    }


def _family(inputs: Inputs, info: RunInfo) -> list[RunInfo]:
    return [r for r in inputs.runs if r.variant == info.variant and r.d_sae == info.d_sae and r.name != info.name]


def _stability(info: RunInfo, features: np.ndarray, sums: SaeSums, p: _Prepared) -> dict[str, np.ndarray]:
    """Return where the decoder rows point, and the cosine with the nearest live feature of the family's other runs."""
    w = load_sae(info.folder).weights["W_dec"].numpy()
    live = np.flatnonzero(sums.count > 0)
    out: dict[str, np.ndarray] = dict(directions(w[features], w[live], *p.space))
    out["antipode"] = live[out["antipode"]].astype(np.int32)
    others: dict[str, list[np.ndarray]] = {"seed_cosine": [], "setting_cosine": []}
    for other in _family(p.inputs, info):
        fires = read_sums(p.inputs.folder, other.name)[0].count > 0
        kind = "seed_cosine" if other.hyper == info.hyper else "setting_cosine"
        others[kind].append(load_sae(other.folder).weights["W_dec"].numpy()[fires])
    return out | {name: found_again(w[features], dictionaries) for name, dictionaries in others.items()}


def _judged(columns: dict[str, np.ndarray], inputs: Inputs, info: RunInfo) -> pl.DataFrame:
    """Return the table with cause, evidence and verdict of each feature; undefined numbers are null."""
    numbers = pl.selectors.float()
    frame = pl.DataFrame(columns).with_columns(pl.when(numbers.is_finite()).then(numbers))
    consistency, score = read_evidence(inputs, info)
    causes, verdicts = [], []
    rated, scored = ([known.get(feature) for feature in frame["feature"]] for known in (consistency, score))
    for row, one, other in zip(frame.iter_rows(named=True), rated, scored, strict=True):
        causes.append(cause_of(row))
        verdicts.append(verdict(row.get("screen_r2") or 0.0, causes[-1], one, other))
    return frame.with_columns(
        pl.Series("cause", causes, dtype=pl.String),
        pl.Series("consistency", rated, dtype=pl.Float64),
        pl.Series("score", scored, dtype=pl.Float64),
        pl.Series("verdict", verdicts, dtype=pl.String),
    )
