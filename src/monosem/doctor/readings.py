"""Other readings of an SAE's file: pure functions from an SAE to the one that was meant, each with how to mend it.

All work on `monosem.equivalents.Plain`: what the SAE computes on raw activations. Those with `fitted` 0 are guesses
without a free number (units, flags, roles); 1 have one number found from the sample, 2 one for each feature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from monosem.doctor.fits import best_factor, crossing, feature_gains, matched_rows, output_gain
from monosem.equivalents import Plain
from monosem.normaliser import PER_TOKEN, Kind, fit_normaliser, fold

ADDED = ("b_enc", "b_gate", "b_mag", "threshold")  # what is added to or compared with pre-activations
SCALAR: tuple[Kind, ...] = ("mean_norm", "rms_norm", "unit_rms")
MAX_K = 1024
NEAR = (2 / 3, 3 / 2)  # factors in between are no mistake: an L1 penalty shrinks reconstructions by as much


@dataclass(frozen=True)
class Change:
    """One difference from the file as read.

    kind: the kind of mistake; what: the reading in a few words; mend: what to do about it, a clause; fitted: how much
    of it was found from the sample (see the module); option: of `monosem convert`, where one mends it.
    """

    kind: str
    what: str
    mend: str
    fitted: int = 0
    option: str = ""


@dataclass(frozen=True)
class Reading:
    """A way to read the file: what it computes, where its activations are from, and what was changed for that.

    special: whether position 0, special tokens and outliers are read, too.
    """

    found: Plain
    site: str
    special: bool = False
    changes: tuple[Change, ...] = ()

    @property
    def name(self) -> str:
        """The changes in words."""
        return " + ".join(change.what for change in self.changes) or "as read"

    def but(self, change: Change, **differences: Any) -> Reading:
        """Return this reading with one more change."""
        return replace(self, changes=(*self.changes, change), **differences)


Other = Iterator[tuple[Change, Plain]]


def alternatives(reading: Reading, x: Tensor, sites: list[str]) -> list[Reading]:
    """Return every reading that differs from `reading` in one respect that hasn't been changed yet.

    x: raw activations [n, d_in] of text at the reading's site, for what is found from data; sites: names to try.
    """
    done = {change.kind for change in reading.changes}
    out = [
        reading.but(change, found=found)
        for make in WEIGHTS
        for change, found in make(reading.found, x)
        if change.kind not in done
    ]
    if "site" not in done:
        for site in sites:
            mend = f"the SAE belongs to {site}, not to {reading.site}"
            change = Change("site", f"at {site}", mend, option=f"--site {site}")
            out += [reading.but(change, site=site)] if site != reading.site else []
    if reading.special and "positions" not in done:
        mend = "leave out position 0 of every context, special tokens and outliers: the SAE was trained without them"
        out.append(reading.but(Change("positions", "text positions only", mend), special=False))
    return out


def _scaled(p: Plain, names: tuple[str, ...], factor: float | Tensor) -> Plain:
    return replace(p, weights={n: v * factor if n in names else v for n, v in p.weights.items()})


def normalisation(p: Plain, x: Tensor) -> Other:
    """Yield readings with a normaliser missing, doubled, of another kind, or applied on one side only."""
    scales = {kind: fit_normaliser(kind, x).scale for kind in SCALAR}
    s = scales["mean_norm"]
    for kind in PER_TOKEN:
        if kind != p.per_token:
            missing = f"the weights expect activations normalised token by token ({kind}): set that normalisation"
            yield Change("normalisation", f"{kind} normalisation", missing), replace(p, per_token=kind)
            if not p.per_token:
                instead = f"{kind} instead of a scale"
                unfolded = replace(p, per_token=kind, weights=fold(p.weights, 1 / s))
                yield Change("normalisation", instead, f"{missing}, in the place of one scale for all tokens"), unfolded
    if p.per_token:
        mend = f"the weights expect no {p.per_token} normalisation"
        yield Change("normalisation", "no normalisation", f"{mend}: turn it off"), replace(p, per_token="")
    factors = {f"{kind} missing": scale for kind, scale in scales.items()}
    if not p.per_token:
        factors |= {f"{kind} doubled": 1 / scale for kind, scale in scales.items()}
        factors |= {"unit_rms, not mean_norm": x.shape[1] ** -0.5, "mean_norm, not unit_rms": x.shape[1] ** 0.5}
    for name, factor in factors.items():
        mend = f"multiply activations by {factor:.4g} before encoding and divide reconstructions by it ({name})"
        folded = replace(p, per_token="", weights=fold(p.weights, factor))
        option = "" if p.per_token else f"--scale {factor:.6g}"
        yield Change("normalisation", f"normalisation {name}", mend, option=option), folded
    if p.per_token:
        return
    for power in (1, -1):
        f = s**power
        what = "normalise" if power == 1 else "don't normalise"
        mend = f"{what} what goes into the encoder (times {f:.4g}); decoder and b_dec are in the right units already"
        yield Change("normalisation", f"encoder's input times {f:.3g}", mend), _scaled(p, ("W_enc",), f)
        mend = f"multiply reconstructions (W_dec and b_dec) by {1 / f:.4g}; the encoder is in the right units already"
        out = _scaled(p, ("W_dec", "b_dec"), 1 / f)
        yield Change("normalisation", f"output times {1 / f:.3g}", mend), out
    factor = best_factor(p, x)
    mend = f"multiply activations by about {factor:.3g} before encoding and divide reconstructions by it"
    found = replace(p, weights=fold(p.weights, factor))
    if not NEAR[0] < factor < NEAR[1]:
        option = f"--scale {factor:.3g}"
        yield Change("normalisation", f"scale of {factor:.3g}, found", mend, 1, option), found
    gain = output_gain(p, x)
    mend = f"multiply W_dec by about {gain:.3g}: the reconstruction has the wrong size"
    if not NEAR[0] < gain < NEAR[1]:
        yield Change("normalisation", f"W_dec times {gain:.3g}, found", mend, 1), _scaled(p, ("W_dec",), gain)


def biases(p: Plain, x: Tensor) -> Other:
    """Yield readings with b_dec subtracted or not, and with biases and thresholds in other units."""
    turn = "off" if p.centred else "on"
    what = "b_dec not subtracted from the input" if p.centred else "b_dec subtracted from the input"
    mend = f"turn {turn} the subtraction of b_dec before encoding"
    yield Change("b_dec", what, mend), replace(p, centred=not p.centred)
    s = fit_normaliser("mean_norm", x).scale
    for factor in (s, 1 / s):
        mend = f"multiply the encoder's biases and thresholds by {factor:.4g}: they are in other units than W_enc"
        yield Change("biases", f"encoder biases times {factor:.3g}", mend), _scaled(p, ADDED, factor)
        mend = f"multiply b_dec by {factor:.4g}: it is in other units than W_dec"
        yield Change("b_dec units", f"b_dec times {factor:.3g}", mend), _scaled(p, ("b_dec",), factor)
    yield Change("b_dec units", "b_dec times -1", "b_dec has the wrong sign"), _scaled(p, ("b_dec",), -1.0)


def decoder_norms(p: Plain, x: Tensor) -> Other:
    """Yield readings with decoder norms folded on one side only."""
    norms = p.weights["W_dec"].norm(dim=1)
    alive = norms > 0
    if not alive.any():
        return
    typical = norms[alive].median()
    if (norms[alive] / typical).log().std(correction=0) > 0.02:
        safe = torch.where(alive, norms, 1.0)
        mend = "divide W_dec's rows by their norms: the encoder has the norms already"
        unit = replace(p, weights={**p.weights, "W_dec": p.weights["W_dec"] / safe[:, None]})
        yield Change("decoder norms", "W_dec with unit rows", mend), unit
        mend = "multiply W_enc, encoder biases and thresholds by the norms of W_dec's rows"
        yield Change("decoder norms", "encoder times decoder norms", mend), _scaled(p, ("W_enc", *ADDED), safe)
        mend = "divide W_enc, encoder biases and thresholds by the norms of W_dec's rows"
        yield Change("decoder norms", "encoder over decoder norms", mend), _scaled(p, ("W_enc", *ADDED), 1 / safe)
        return
    gains = feature_gains(p, x)
    spread = gains[gains > 0].log().std() if (gains > 0).sum() > 1 else torch.tensor(0.0)
    if spread > 0.2:
        mend = (
            "W_dec's rows were brought to one norm and the encoder was not: multiply each row by its old norm, which "
            "the file no longer has (found here from the sample)"
        )
        weights = {**p.weights, "W_dec": p.weights["W_dec"] * gains[:, None]}
        yield Change("decoder norms", "W_dec's rows rescaled, found", mend, 2), replace(p, weights=weights)


def roles(p: Plain, x: Tensor) -> Other:
    """Yield readings with encoder and decoder exchanged, transposed, or in another order of features."""
    e, d = p.weights["W_enc"], p.weights["W_dec"]
    mend = "W_enc and W_dec are exchanged: read each, transposed, in the other's place"
    yield Change("roles", "encoder and decoder exchanged", mend), _with(p, W_enc=d.t(), W_dec=e.t())
    if e.shape[0] == e.shape[1]:
        yield Change("roles", "W_enc transposed", "transpose W_enc"), _with(p, W_enc=e.t())
        yield Change("roles", "W_dec transposed", "transpose W_dec"), _with(p, W_dec=d.t())
        yield Change("roles", "both transposed", "transpose W_enc and W_dec"), _with(p, W_enc=e.t(), W_dec=d.t())
    order = matched_rows(e, d)
    if order is not None:
        mend = (
            "encoder and decoder don't belong together, their features are in different orders: get the file anew (for "
            "the figure, each encoder column was given the decoder row that is most like it)"
        )
        yield Change("order", "decoder rows in another order", mend, 2), _with(p, W_dec=d[order])


def _with(p: Plain, **weights: Tensor) -> Plain:
    made = {name: value.contiguous() for name, value in weights.items()}
    return replace(p, weights={**p.weights, **made})


def activation(p: Plain, x: Tensor) -> Other:
    """Yield readings with other thresholds, another k, or another activation function."""
    if p.architecture == "jumprelu":
        yield from _thresholds(p, x)
    elif p.architecture == "gated":
        w, mend = p.weights, "b_gate and b_mag are exchanged"
        yield Change("biases", "b_gate and b_mag exchanged", mend), _with(p, b_gate=w["b_mag"], b_mag=w["b_gate"])
        if (w["r_mag"] > 0).all():
            mend = "r_mag is stored as its exponential: take its logarithm"
            yield Change("biases", "log(r_mag)", mend), _with(p, r_mag=w["r_mag"].log())
    else:
        yield from _sparser(p, x)
    if p.architecture in ("topk", "jumprelu"):
        relu = {name: value for name, value in p.weights.items() if name != "threshold"}
        mend = "read it as a ReLU SAE, without " + ("k" if p.architecture == "topk" else "thresholds")
        yield Change("activation", "plain ReLU", mend), Plain("standard", relu, p.centred, 0, p.per_token)


def _thresholds(p: Plain, x: Tensor) -> Other:
    threshold, norms = p.weights["threshold"], p.weights["W_dec"].norm(dim=1)
    s = fit_normaliser("mean_norm", x).scale
    mend = "the thresholds are stored as logarithms: take their exponential"
    yield Change("threshold", "thresholds exp(threshold)", mend), _with(p, threshold=threshold.exp())
    for name, factor in (
        (f"times {s:.3g}", s),
        (f"times {1 / s:.3g}", 1 / s),
        ("over decoder norms", 1 / norms.clamp_min(1e-12)),
        ("times decoder norms", norms),
    ):
        mend = f"the thresholds are in other units than the pre-activations: take them {name}"
        yield Change("threshold", f"thresholds {name}", mend), _with(p, threshold=threshold * factor)
    factor = crossing(lambda f: _with(p, threshold=threshold * f), x, 0.01, 100, rising=False)
    if factor is not None:
        mend = f"the thresholds are in other units than the pre-activations: take them times about {factor:.3g}"
        found = _with(p, threshold=threshold * factor)
        yield Change("threshold", f"thresholds times {factor:.3g}, found", mend, 1), found


def _sparser(p: Plain, x: Tensor) -> Other:
    """Yield the k, and without one the threshold, at which reconstructions have the right size (`fits.size`)."""
    w = p.weights
    topk = replace(p, architecture="topk")
    high = min(MAX_K, w["W_dec"].shape[0])
    k = crossing(lambda value: replace(topk, k=round(value)), x, 1, high, rising=True)
    if k is not None:
        k = round(k)
        mend = f"set k to about {k}" + ("" if p.k else ": it is a TopK SAE")
        yield Change("k" if p.k else "activation", f"k = {k}, found", mend, 1), replace(topk, k=k)
    if p.architecture == "standard":
        norms = w["W_dec"].norm(dim=1).clamp_min(1e-12)
        unit = float(x.norm(dim=1).mean())

        def cut(value: float) -> Plain:
            return replace(p, architecture="jumprelu", weights={**w, "threshold": value / norms})

        value = crossing(cut, x, 1e-4 * unit, unit, rising=False)
        if value is not None:
            mend = (
                "its thresholds (or its gate) are missing: weak activations should be left out (for the figure, those "
                f"below {value:.3g} times the decoder norm); read it with its own architecture"
            )
            yield Change("activation", f"threshold of {value:.3g}, found", mend, 1), cut(value)


WEIGHTS: tuple[Callable[[Plain, Tensor], Other], ...] = (normalisation, biases, decoder_norms, roles, activation)
