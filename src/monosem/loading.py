"""SAEs that were trained elsewhere, as runs of a study: read, checked against it, written into its folder.

They are judged on the study's tokens like the study's own. Their function of raw activations is kept; only the units of
their activations become those of the other runs (F1 of `monosem.normaliser.fold`).
"""

from __future__ import annotations

import re
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from monosem.formats import load_sae, place_of
from monosem.formats.saelens import save_sae
from monosem.normaliser import PER_TOKEN, Kind, Normaliser, fold
from monosem.sae import Sae
from monosem.store import value_hash
from monosem.types import FormatWarning, UserError

LOAD_VERSION = 1


@dataclass(frozen=True)
class LoadSpec:
    """One SAE to load. source: as `monosem.load_sae` takes it; family: what its runs are called together in charts.

    site, model: what its files should have said of where it was trained; empty to believe them.
    """

    name: str
    source: str
    family: str
    site: str = ""
    model: str = ""


@dataclass(frozen=True)
class Where:
    """What a study's SAEs read: the model by name, the site, its width; what its units depend on."""

    model: str
    site: str
    d_in: int
    activations: str
    normalise: Kind


def load_specs(family: dict[str, Any]) -> list[LoadSpec]:
    """Return the SAEs that one `[[run]]` table with `load` names. Raises UserError naming the key that is wrong."""
    known = ("load", "name", "site", "model")
    for key, value in family.items():
        if key not in known:
            raise UserError(f"{key}: unknown key for a run with `load`; known are {', '.join(known)}")
        if not isinstance(value, str) and not (key == "load" and isinstance(value, list)):
            raise UserError(f"{key} = {value!r}: write a text in quotes")
    sources = family["load"] if isinstance(family["load"], list) else [family["load"]]
    label = run_label(family.get("name", "loaded"))
    loads = []
    for source in sources:
        if not isinstance(source, str) or not source:
            raise UserError(f"load = {source!r}: give folders, files, hf:owner/name or saelens:release/id")
        last = re.sub(r"[^\w.-]+", "_", source.rstrip("/").rsplit("/", 1)[-1])
        name = label if "name" in family and len(sources) == 1 else f"{label}-{last}"
        loads.append(LoadSpec(name, source, label, family.get("site", ""), family.get("model", "")))
    if not loads:
        raise UserError("load = []: give at least one SAE")
    return loads


def run_label(label: Any) -> str:
    """Return the label of a run if it can stand in a file name. Raises UserError."""
    if not isinstance(label, str) or not re.fullmatch(r"[\w.-]+", label):
        raise UserError(f'name = {label!r}: use letters, digits, ".", "_" and "-" only')
    return label


def load_key(spec: LoadSpec, where: Where) -> str:
    """Return a hash of all that a loaded run depends on: the spec, the study, name, size and time of each file."""
    place = place_of(spec.source)
    stats = {path.name: path.stat() for path in sorted(place.folder.iterdir()) if path.is_file()}
    files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()]
    return value_hash({"version": LOAD_VERSION, "spec": asdict(spec), "where": asdict(where), "files": files})


def load_run(spec: LoadSpec, where: Where, normaliser: Normaliser, key: str, folder: Path) -> list[str]:
    """Write the SAE of `spec` into `folder` as a run of the study, and return what its reader warned of.

    normaliser: the study's, in whose units the other runs have their activations.
    Raises UserError when it can't be read, or reads another model, site, width or scale than the study's.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FormatWarning)
        sae = load_sae(spec.source)
    try:
        _check(sae, spec, where)
    except UserError as error:
        raise UserError(f"run {spec.name}: {spec.source}: {error}") from error
    facts = {
        **sae.facts,
        "name": spec.name,
        "train_key": key,
        "site": where.site,
        "model": where.model,
        "loaded": {
            "source": spec.source,
            "format": sae.facts["format"],
            "variant": sae.variant_name,
            "unsaid": [what for what in ("site", "model") if not (getattr(spec, what) or sae.facts.get(what))],
        },
    }
    save_sae(replace(in_units_of(sae, normaliser), facts=facts), folder)
    return [str(warning.message) for warning in caught if issubclass(warning.category, FormatWarning)]


def in_units_of(sae: Sae, normaliser: Normaliser) -> Sae:
    """Return the same function of raw activations, with activations in the units that `normaliser` makes.

    An SAE that has a scale of its own keeps it, as it was trained in such units itself.
    """
    if sae.normaliser.kind in PER_TOKEN:
        return replace(sae, normaliser=replace(sae.normaliser, scale=normaliser.scale))
    if sae.normaliser.scale != 1.0 or normaliser.scale == 1.0:
        return sae
    kind = "mean_norm" if normaliser.kind in PER_TOKEN else normaliser.kind
    return replace(sae, weights=fold(sae.weights, 1 / normaliser.scale), normaliser=Normaliser(kind, normaliser.scale))


def _check(sae: Sae, spec: LoadSpec, where: Where) -> None:
    if sae.d_in != where.d_in:
        raise UserError(f"reads activations of width {sae.d_in}, {where.site} of the study's model has {where.d_in}")
    model, site = spec.model or sae.facts.get("model"), spec.site or sae.facts.get("site")
    if model and _model(model) != _model(where.model):
        raise UserError(
            f'was trained on model "{model}", the study reads "{where.model}"; leave it out, or write model = '
            f'"{where.model}" beside load if the file is wrong'
        )
    if site and _site(site) != _site(where.site):
        raise UserError(
            f'was trained at site "{site}", the study reads "{where.site}"; leave it out, or write site = '
            f'"{where.site}" beside load if the file is wrong'
        )
    if sae.facts.get("scale_missing"):
        raise UserError(
            "was trained on scaled activations, and its files don't tell the scale; `monosem doctor` estimates it, "
            "`monosem convert --scale` writes it"
        )


def _model(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].lower()


def _site(name: str) -> str:
    """Return a site in one notation: module paths of blocks as hooks, the input of a block as the output before it."""
    block = re.fullmatch(r"(?:\w+\.)*(?:layers|h)\.(\d+)(?:\.output)?", name)
    if block:
        return f"blocks.{int(block[1])}.hook_resid_post"
    before = re.fullmatch(r"blocks\.(\d+)\.hook_resid_pre", name)
    if before and int(before[1]) > 0:
        return f"blocks.{int(before[1]) - 1}.hook_resid_post"
    return name
