"""What a spec names: a repository of the hub, a path in it, a revision, and what is known of the SAE there."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monosem import wheels
from monosem.types import UserError

HF, SAELENS = "hf:", "saelens:"
TABLE = "pretrained_saes.yaml"
FORM = "write hf:owner/name, hf:owner/name/sub/folder or hf:owner/name/sub/folder@revision"


@dataclass(frozen=True)
class Address:
    """Where an SAE lies on the hub.

    repo: `owner/name`; path: a folder or a file in it, "" for its top; revision: branch, tag or commit, None for the
    main branch; facts: what SAELens' table says of the SAE, by the table's own keys.
    """

    repo: str
    path: str = ""
    revision: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def parse(spec: str) -> Address:
    """Return what a spec names. Raises UserError for one that can't be read, or that SAELens' table lacks."""
    if spec.startswith(SAELENS):
        release, _, name = spec.removeprefix(SAELENS).partition("/")
        if not release or not name:
            raise UserError(
                f"{spec}: not a spec; write saelens:release/id, e.g. saelens:gpt2-small-res-jb/blocks.8.hook_resid_pre"
            )
        return _of_release(release, name)
    return parse_repository(spec)


def parse_repository(spec: str) -> Address:
    """Return what a spec that starts with `hf:` names. Raises UserError for any other text."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not spec.startswith(HF):
        raise UserError(f"{spec}: not a place on the hub; {FORM}")
    body, at, revision = spec.removeprefix(HF).rpartition("@") if "@" in spec else (spec.removeprefix(HF), "", "")
    owner, _, rest = body.partition("/")
    name, _, path = rest.partition("/")
    try:
        validate_repo_id(f"{owner}/{name}")
    except HFValidationError as error:
        raise UserError(f"{spec}: {owner}/{name} can't be the name of a repository; {FORM}") from error
    path = path.removesuffix("/")
    if path and not is_plain(path):
        raise UserError(f'{spec}: "{path}" is not a path inside a repository; {FORM}')
    if at and not is_plain(revision):
        raise UserError(f'{spec}: "{revision}" is not a revision; name a branch, a tag or a commit after the @')
    return Address(f"{owner}/{name}", path, revision or None)


def is_plain(path: str) -> bool:
    """Tell whether a path of the hub has plain names only: no way up, no absolute path, nothing unprintable."""
    return path.isprintable() and "\\" not in path and not {"", ".", ".."} & set(path.split("/"))


def nearest(name: str, names: Iterable[str], some: str) -> str:
    """Return the end of a sentence: the names that are most like a misspelt one, else a few of them all."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"nearest: {', '.join(close)}"
    return f"{some}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"


def _of_release(release: str, name: str) -> Address:
    """Look an SAE up in SAELens' table; its facts are the table's entry, and the release's without the other SAEs."""
    table = releases()
    if release not in table:
        raise UserError(
            f'saelens:{release}/{name}: SAELens has no release "{release}"; {nearest(release, table, "some")}'
        )
    entry = table[release]
    saes = {str(sae["id"]): sae for sae in entry["saes"]}
    if name not in saes:
        raise UserError(f'saelens:{release}/{name}: the release has no SAE "{name}"; {nearest(name, saes, "it has")}')
    whole = {key: value for key, value in entry.items() if key not in ("saes", "links")}
    return Address(entry["repo_id"], str(saes[name]["path"]), None, {"release": release, **whole, **saes[name]})


@functools.cache
def releases() -> dict[str, dict[str, Any]]:
    """Return SAELens' table of releases, from an installed sae_lens, else from its pinned wheel in the cache.

    Neither is imported. Raises UserError when the wheel can't be downloaded or an installed table can't be read.
    """
    import yaml

    found = importlib.util.find_spec("sae_lens")
    installed = Path(found.origin).parent / TABLE if found and found.origin else None
    if installed is not None and installed.exists():
        text = installed.read_bytes()
    else:
        with zipfile.ZipFile(wheels.wheel(wheels.SAELENS)) as archive:
            text = archive.read(f"sae_lens/{TABLE}")
    try:
        return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise UserError(f"{installed}: not valid YAML; install sae-lens again") from error
