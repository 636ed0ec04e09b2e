"""SAEs in the formats of the field: one file each, found by its file name, with the same three functions.

`recognises(place)` looks at file names only; `read(place)` returns an `Sae` on raw activations and raises UserError for
whatever is wrong with the files; `write(sae, folder)` writes one that the format's own library loads, and raises
UserError for what the format can't say. Nothing in a file is executed (`monosem.untrusted`).
"""

from __future__ import annotations

import contextlib
import importlib
import math
import pkgutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from monosem.normaliser import fold
from monosem.sae import Sae
from monosem.types import FormatWarning, UserError
from monosem.untrusted import Place, printable, shown

Model = TypeVar("Model", bound=BaseModel)
HUBS = ("hf:", "saelens:")


class Origin(BaseModel):
    """What we add to a configuration under `monosem`, so that nothing is lost in formats with no word for it."""

    model_config = ConfigDict(extra="ignore", strict=True)
    site: str | None = None
    model: str | None = None
    context: int | None = None

    @classmethod
    def of(cls, sae: Sae) -> dict[str, Any]:
        """Return what is known of the origin of `sae`."""
        known = {name: sae.facts.get(name) for name in cls.model_fields}
        return {name: value for name, value in known.items() if value is not None}


class Format(Protocol):
    """What a module of this folder has."""

    def recognises(self, place: Place) -> bool:
        """Return whether the files of `place` look like this format."""
        ...

    def read(self, place: Place) -> Sae:
        """Return the SAE. Raises UserError."""
        ...

    def write(self, sae: Sae, folder: Path) -> None:
        """Write the SAE. Raises UserError for what the format can't express."""
        ...


def format_names() -> list[str]:
    """Return the names of all formats: the modules of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def format_of(name: str) -> Format:
    """Return the format `name`. Raises UserError when there is none."""
    if name not in format_names():
        raise UserError(f'format "{name}": unknown; known are {", ".join(format_names())}')
    return cast(Format, importlib.import_module(f"{__name__}.{name}"))


def place_of(spec: str | Path) -> Place:
    """Return the files that a spec means: a folder, a file, `hf:owner/name[/folder]` or `saelens:release/id`.

    Raises UserError when they can't be found or fetched.
    """
    text = str(spec)
    if text.startswith(HUBS):
        from monosem.hub import fetch

        found = fetch(text)
        return Place(found.folder, found.root, {"source": text, **found.facts})
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # names that are too long, and users that don't exist
        path = Path(text).expanduser()
        if path.is_dir():
            return Place(path, known={"source": text})
        if path.is_file():
            return Place(path.parent, known={"source": text, "file": path.name})
    raise UserError(
        f"{text}: no SAE here; give a folder, a file, hf:owner/name[/folder] or saelens:release/id "
        f"(formats: {', '.join(format_names())})"
    )


def detect(place: Place) -> str:
    """Return the name of the format that the files of `place` are in. Raises UserError when it is none or unclear."""
    found = [name for name in format_names() if format_of(name).recognises(place)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{place.folder}: could be {' or '.join(found)}; keep one SAE a folder")
    names = sorted(path.name for path in place.folder.iterdir())
    raise UserError(
        f"{place.folder}: no SAE here; it holds {', '.join(names[:8]) or 'nothing'}, and known are "
        "cfg.json + sae_weights.safetensors (saelens), params.npz (gemma_scope), ae.pt + config.json "
        "(dictionary_learning), cfg.json + sae.safetensors (sparsify) and one .pt file (openai)"
    )


def load_sae(spec: str | Path) -> Sae:
    """Return the SAE that `spec` means, in whichever format its files are; see `place_of` for specs.

    It takes and returns raw activations [n, d_in]. `facts` has what the files say of its origin: `site`, `model`,
    `context`, `format`, `source`. Unknown keys of its configuration raise a FormatWarning.
    Raises UserError naming the file and the key that is missing, unsupported or damaged.
    """
    place = place_of(spec)
    try:
        name = detect(place)
        sae = format_of(name).read(place)
    except OSError as error:
        raise UserError(f"{error.filename or place.folder}: can't be read ({error.strerror})") from error
    except UserError as error:
        if str(place.folder) in str(error):
            raise
        raise UserError(f"{place.folder}: {error}") from error
    for key in ("site", "model"):
        sae.facts[key] = sae.facts.get(key) or place.known.get(key)
    sae.facts.setdefault("format", name)
    sae.facts.setdefault("source", place.known["source"])
    return sae


def save_sae(sae: Sae, folder: str | Path, format: str = "saelens") -> None:
    """Write `sae` into `folder` in a format of `format_names()`. Raises UserError for what the format can't express."""
    format_of(format).write(sae, Path(folder))


def convert(
    source: str | Path, folder: str | Path, to: str, *, site: str = "", model: str = "", scale: float = 1.0
) -> Sae:
    """Write the SAE that `source` means into `folder` in the format `to`, and return it.

    site, model: what its files should say of where it was trained. scale: it was trained on activations times this,
    and its files don't tell; the scale is folded into the weights.
    Raises UserError when it can't be read, when the format can't express it, or when `folder` isn't empty.
    """
    writer, target = format_of(to), Path(folder).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: not an empty folder; give a new one, so that no file of another SAE stays in it")
    if not 0 < scale < math.inf:
        raise UserError(f"scale = {scale}: must be a number above 0")
    sae = load_sae(source)
    facts = {**sae.facts, **({"site": site} if site else {}), **({"model": model} if model else {})}
    if scale != 1.0:
        facts.pop("scale_missing", None)
    sae = replace(sae, weights=sae.weights if scale == 1.0 else fold(sae.weights, scale), facts=facts)
    writer.write(sae, target)
    return sae


def configuration(kind: type[Model], raw: Any, where: str) -> Model:
    """Return a configuration as checked by `kind`; keys that it doesn't have raise a FormatWarning.

    where: what the message begins with, the file. Raises UserError naming the key that is missing or wrong.
    """
    try:
        made = kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = printable(".".join(str(part)[:80] for part in first["loc"])) or "all of it"
        if first["type"] == "missing":
            raise UserError(f'{where}: "{key}" is missing') from error
        said = f"{first['msg'][0].lower()}{first['msg'][1:]}"
        raise UserError(f"{where}: {key} = {shown(first['input'])}: {said}") from error
    for key in made.model_extra or {}:
        warnings.warn(f"{where}: unknown key {shown(key)} is left out of account", FormatWarning, stacklevel=2)
    return made
