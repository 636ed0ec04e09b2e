"""What the doctor found, as figures and in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from monosem.doctor.fits import agreement
from monosem.doctor.readings import Change, Reading
from monosem.doctor.sample import Sample
from monosem.doctor.search import FLOOR, SCREEN_TOKENS, Score, Search, clearly_better, score
from monosem.equivalents import Plain
from monosem.types import Estimate

HARMLESS = 0.005  # a difference of explained variance that nobody needs to mind
KEYS = {
    ("saelens", "site"): "metadata.hook_name in cfg.json",
    ("saelens", "normalisation"): "normalize_activations in cfg.json",
    ("saelens", "b_dec"): "apply_b_dec_to_input in cfg.json",
    ("saelens", "k"): "k in cfg.json",
    ("saelens", "activation"): "architecture in cfg.json",
    ("dictionary_learning", "site"): "layer and submodule_name in config.json",
    ("dictionary_learning", "k"): "k in config.json and in ae.pt",
    ("dictionary_learning", "activation"): "dict_class in config.json",
    ("sparsify", "site"): "the folder's name",
    ("sparsify", "k"): "k in cfg.json",
    ("gemma_scope", "site"): "the folder's name",
}


@dataclass(frozen=True)
class Row:
    """A reading with its figures. kinds: what it changes; mark: what that makes of it, in a word or two."""

    reading: str
    kinds: tuple[str, ...]
    l0: Estimate
    nmse: Estimate
    explained_variance: Estimate
    mark: str


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found.

    verdict: "right" as it stands; "mistake", with the changes that mend it; "unknown", when no reading helps. sentence:
    the verdict with its figures; notes: what else is worth knowing. rows: as read first, then the best reading, then
    the others. best: the reading that the verdict recommends.
    """

    verdict: Literal["right", "mistake", "unknown"]
    sentence: str
    notes: tuple[str, ...]
    changes: tuple[Change, ...]
    rows: tuple[Row, ...]
    model: str
    site: str
    best: Reading

    @property
    def kinds(self) -> set[str]:
        """The kinds of the mistakes that were found."""
        return {change.kind for change in self.changes}

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the weights, for JSON."""
        told = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("best", "changes", "rows")}
        return {**told, "changes": [asdict(c) for c in self.changes], "rows": [asdict(row) for row in self.rows]}


def diagnose(found: Search, sample: Sample, model: str, facts: dict[str, Any]) -> Diagnosis:
    """Return the verdict on a search. facts: the SAE's, for the names of files and keys."""
    first, last = found.path[0], found.path[-1]
    start, best = first.reading, last.reading
    if not last.plausible if best.changes else last.estimate("explained_variance").low < FLOOR:
        verdict, changes, sentence = "unknown", (), _unknown(found)
        best = start
    elif best.changes:
        verdict, changes, sentence = "mistake", best.changes, _mistake(first, last, facts)
    else:
        verdict, changes, sentence = "right", (), _right(first, len(found.tried), model)
    rounding = _rounding(best, sample)
    special = score([replace(best, special=not best.special)], sample)
    notes = (_special(last if best is not start else first, special, sample), rounding[1])
    rows = [_row(first, "as read"), *[_row(step, "step") for step in found.path[1:-1]]]
    rows += [_row(last, "right" if verdict == "mistake" else "best, no help")] if len(found.path) > 1 else []
    others = sorted(found.tried, key=lambda tried: float(tried.nmse[0]))
    on_path = {step.reading.name for step in found.path}
    screened = {tried.reading.name: tried for tried in found.tried}
    rows += [_row(o, _mark(o, screened, found.as_read)) for o in others if o.reading.name not in on_path]
    return Diagnosis(
        verdict, sentence, tuple(filter(None, notes)), changes, (*rows, *rounding[0]), model, start.site, best
    )


def _row(found: Score, mark: str) -> Row:
    kinds = tuple(change.kind for change in found.reading.changes)
    l0, nmse, explained = (found.estimate(name) for name in ("l0", "nmse", "explained_variance"))
    return Row(found.reading.name, kinds, l0, nmse, explained, mark)


def _mark(tried: Score, screened: dict[str, Score], as_read: Score) -> str:
    changes = tried.reading.changes[:-1]
    before = screened[replace(tried.reading, changes=changes).name] if changes else as_read
    if clearly_better(tried, before):
        return "better"
    return "no better" if tried.nmse[0] <= 1.1 * before.nmse[0] else "worse"


def _figures(found: Score) -> str:
    return f"{shown(found.estimate('explained_variance'))} at L0 {found.l0[0]:.3g}"


def shown(e: Estimate) -> str:
    """Return an explained variance with its interval, in words of a fitting precision."""
    digits = 3 if abs(e.value) < 10 else 0
    return f"{e.value:,.{digits}f} [{e.low:,.{digits}f}, {e.high:,.{digits}f}]"


def _right(first: Score, tried: int, model: str) -> str:
    return (
        f"Nothing is wrong: read as it stands, at {first.reading.site} of {model}, explained variance is "
        f"{_figures(first)}, and none of {tried} other readings is clearly better."
    )


def _mistake(first: Score, last: Score, facts: dict[str, Any]) -> str:
    parts = []
    for change in last.reading.changes:
        key = KEYS.get((str(facts.get("format", "")), change.kind))
        ways = [f"see {key}"] if key and not change.option.startswith("--scale") else []
        ways += [f"`monosem convert SPEC FOLDER {change.option}` writes it so"] if change.option else []
        parts.append(change.mend + (f" ({'; '.join(ways)})" if ways else ""))
    number = "One mistake" if len(parts) == 1 else f"{len(parts)} mistakes"
    return (
        f"{number} in the reading: {'; and '.join(parts)}. Explained variance is {_figures(first)} as read, "
        f"{_figures(last)} with {'it' if len(parts) == 1 else 'them'} mended."
    )


def _unknown(found: Search) -> str:
    first, last = found.path[0], found.path[-1]
    w = first.reading.found.weights
    cosine = agreement(w["W_enc"], w["W_dec"])
    if cosine > 0.98:
        why = f"encoder and decoder are the same (cosine {cosine:.2f}), as before training: it is untrained"
    elif cosine > 0.1:
        why = (
            f"encoder and decoder agree (cosine {cosine:.2f}), so the SAE itself looks whole: it belongs to another "
            "model, to a site further away (give --model, --site), or to several mistakes at once"
        )
    else:
        why = (
            f"encoder and decoder have nothing in common (cosine {cosine:.2f}): these are no trained weights, or they "
            "don't belong together"
        )
    return (
        f"None of {len(found.tried)} readings helps: explained variance is {_figures(first)} as read, "
        f"{_figures(last)} at best; {why}."
    )


def _special(best: Score, special: list[Score], sample: Sample) -> str:
    left_out = int((~sample.text).sum())
    if not special or best.reading.special:
        return ""
    ev, others = best.estimate("explained_variance"), special[0].estimate("explained_variance")
    said = (
        f"With position 0, special tokens and outliers ({left_out:,} of {len(sample.text):,} positions) explained "
        f"variance is {shown(others)}"
    )
    if others.value < ev.value - 10 * HARMLESS:
        return f"{said}: leave them out, this SAE was trained without them."
    return f"{said}."


def _rounded(p: Plain) -> Plain:
    return replace(p, weights={name: value.bfloat16().float() for name, value in p.weights.items()})


def _rounding(reading: Reading, sample: Sample) -> tuple[list[Row], str]:
    """Return what bfloat16 does to the figures of a reading, weights, then activations, on some of the tokens."""
    screen = sample.thin(SCREEN_TOKENS)
    coarse = replace(screen, x={reading.site: screen.x[reading.site].bfloat16()})
    weights = reading.but(Change("bf16", "weights in bfloat16", ""), found=_rounded(reading.found))
    activations = reading.but(Change("bf16", "activations in bfloat16", ""))
    exact, *rounded = score([reading, weights], screen) + score([activations], coarse)
    rows, parts = [], []
    for found in rounded:
        change = float(exact.nmse[0] - found.nmse[0])
        rows.append(_row(found, "harmless" if abs(change) < HARMLESS else "harmful"))
        parts.append(f"{found.reading.changes[-1].what}: {change:+.4f}, {rows[-1].mark}")
    return rows, f"What rounding does to explained variance: {'; '.join(parts)}."
