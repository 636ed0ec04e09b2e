"""The doctor: which reading of an SAE's file is right? Measures it as read, then with the usual mistakes corrected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from monosem.doctor.diagnosis import Diagnosis, Row, diagnose, shown
from monosem.doctor.readings import Change, Reading
from monosem.doctor.sample import Sample, take_sample
from monosem.doctor.search import find
from monosem.equivalents import plain, sae_of
from monosem.formats import load_sae
from monosem.model import load_model
from monosem.sae import Sae
from monosem.types import UserError

__all__ = ["Change", "Diagnosis", "Row", "Sample", "examine", "mended", "model_for", "shown", "take_sample"]

EMBEDDED = "SmolLM2-135M-Instruct"
CONTEXT = 128


def examine(
    spec: str | Path | Sae,
    *,
    site: str = "",
    model: str = "",
    text: str = "",
    tokens: int = 20_000,
    positions: str = "text",
    sample: Sample | None = None,
    say: Callable[[str], object] = lambda _line: None,
) -> Diagnosis:
    """Say which reading of an SAE is right, with figures on sample text.

    spec: an SAE, or what `monosem.load_sae` takes. site, model: where it was trained, if not as the files say; model is
    an id, a folder or "embedded". text: as `monosem.sources.documents` takes it; tokens: how many to read, at least.
    positions: "text", or "all" to read it at position 0 and special tokens, too. sample: activations, from
    `take_sample`, instead of model and text. say: is told what is being done.
    Raises UserError when the SAE, its site or the model isn't known, or doesn't fit.
    """
    if positions not in ("text", "all"):
        raise UserError(f'positions = "{positions}": "text" or "all"')
    sae = spec if isinstance(spec, Sae) else load_sae(spec)
    site = site or sae.facts.get("site") or ""
    if sample is not None:
        site, name = next(iter(sample.x)), model or "the sample's model"
    else:
        if not site:
            raise UserError(
                "the SAE's files don't say where it was trained; name it, as --site blocks.10.hook_resid_post"
            )
        lm = load_model(model_for(model, sae.facts.get("model")))
        name = lm.name
        say(f"reading {tokens:,} tokens with {name}, for an SAE of {sae.facts.get('model') or 'an unnamed model'}")
        context = sae.facts.get("context") or CONTEXT
        sample = take_sample(lm, site, d_in=sae.d_in, source=text, context=min(context, 512), tokens=tokens)
    say(f"trying readings of {sae.d_sae:,} features at {site}")
    found = find(Reading(plain(sae), site, positions == "all"), sample)
    return diagnose(found, sample, name, sae.facts)


def mended(spec: str | Path | Sae, diagnosis: Diagnosis) -> Sae:
    """Return the SAE of `spec` as the diagnosis says that it should be read; raw activations in and out."""
    sae = spec if isinstance(spec, Sae) else load_sae(spec)
    return sae_of(diagnosis.best.found, {**sae.facts, "site": diagnosis.best.site})


def model_for(asked: str, named: str | None) -> str:
    """Return what `load_model` takes for the model that was asked for, or that an SAE names.

    Raises UserError when an SAE names one that isn't on this machine: nothing is downloaded that wasn't asked for.
    """
    if asked:
        return "" if asked == "embedded" else asked
    if not named or named.split("/")[-1].startswith(EMBEDDED):
        return ""
    if Path(named).expanduser().is_dir():
        return named
    raise UserError(
        f'the SAE says that it was trained on "{named}": give --model {named} to get it from the hub, or its folder; '
        f"--model embedded examines the SAE on {EMBEDDED} all the same"
    )
