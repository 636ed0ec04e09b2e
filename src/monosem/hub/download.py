"""Fetches the files of one SAE into huggingface_hub's cache: those of one folder, nothing else of its repository."""

from __future__ import annotations

import glob
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monosem.hub.errors import explained, is_unreachable
from monosem.hub.specs import Address, is_plain, nearest, parse
from monosem.types import UserError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CONFIGS, WEIGHTS = (".json",), (".safetensors", ".npz", ".pt", ".pth")
MOST_WEIGHTS = 8  # an SAE has one to three such files; more are a collection, of which a part has to be named


@dataclass(frozen=True)
class Fetched:
    """Files of the hub on this machine.

    folder: the folder that the spec names, or that holds the file it names; it may hold links. root: the folder that
    all of its links stay within (the repository's part of the cache). facts: `repo`, `revision` (the commit), `file`
    if the spec names one, and for a release of SAELens what its table says of the SAE, by the table's keys: release,
    id, repo_id, path, model, conversion_func, config_overrides, norm_scaling_factor, l0, variance_explained,
    neuronpedia, where there are any.
    """

    folder: Path
    root: Path
    facts: dict[str, Any] = field(default_factory=dict)


def fetch(spec: str) -> Fetched:
    """Download what a spec names, or find it in the cache: .json, .safetensors, .npz, .pt and .pth of that one folder.

    With HF_HUB_OFFLINE set, or without a network, the cache is all there is. Raises UserError, in one sentence: a bad
    spec, no such repository, revision, folder or file, no access, a folder without weights or with those of many SAEs,
    not in the cache.
    """
    address = parse(spec)
    with explained(spec, address.repo, address.revision):
        snapshot = _download(spec, address)
    target = snapshot / address.path if address.path else snapshot
    is_file = target.is_file()
    if not is_file and not (target.is_dir() and any(_of_an_sae(path.name) for path in target.iterdir())):
        raise UserError(
            f"{spec}: not in the cache of {address.repo}, and the hub can't be reached; run this once with a network"
        )
    facts = {"repo": address.repo, "revision": snapshot.name, **({"file": target.name} if is_file else {})}
    return Fetched(target.parent if is_file else target, snapshot.parents[1], facts | address.facts)


def _download(spec: str, address: Address) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    reachable = True
    try:
        allowed, ignored = [glob.escape(path) for path in _files(HfApi(), spec, address)], []
    except Exception as error:
        if not is_unreachable(error):
            raise
        (allowed, ignored), reachable = _patterns(address.path), False
    snapshot = Path(
        snapshot_download(
            address.repo,
            revision=address.revision,
            allow_patterns=allowed,
            ignore_patterns=ignored,
            local_files_only=not reachable,
        )
    )
    if not is_plain(snapshot.name) or snapshot.parent.name != "snapshots":
        raise UserError(f"{spec}: the hub names a commit that is none ({snapshot.name}); nothing of it is read")
    return snapshot


def _patterns(path: str) -> tuple[list[str], list[str]]:
    """Return patterns that take the file `path`, or the files of an SAE in the folder `path` but not below it.

    The second are those of what is left out; `*` matches slashes, too.
    """
    within = f"{glob.escape(path)}/" if path else ""
    own = [glob.escape(path)] if path else []
    return [*own, *(f"{within}*{suffix}" for suffix in (*CONFIGS, *WEIGHTS))], [f"{within}*/*"]


def _files(api: HfApi, spec: str, address: Address) -> list[str]:
    """Return the paths to download: a folder's, or the file that was named and the .json files beside it."""
    api.repo_info(address.repo, revision=address.revision)  # fails at once without a network, a listing tries for long
    parent, _, name = address.path.rpartition("/")
    if name:
        beside = _listing(api, spec, address, parent)
        if name not in beside:
            where = f"{address.repo}/{parent}" if parent else address.repo
            raise UserError(f'{spec}: {where} has no "{name}"; {nearest(name, beside, "it has")}')
        if beside[name]:
            configs = [other for other, is_file in beside.items() if is_file and other.endswith(CONFIGS)]
            return [f"{parent}/{one}" if parent else one for one in dict.fromkeys([name, *configs])]
    inside = _listing(api, spec, address, address.path)
    chosen = [name for name, is_file in inside.items() if is_file and _of_an_sae(name)]
    weights = [name for name in chosen if name.endswith(WEIGHTS)]
    if not weights:
        folders = [name for name, is_file in inside.items() if not is_file]
        within = f"; {nearest('', folders, 'name one of its folders')}" if folders else ""
        raise UserError(f"{spec}: no weights there (no {', '.join(WEIGHTS)}){within}")
    if len(weights) > MOST_WEIGHTS:
        raise UserError(
            f"{spec}: {len(weights)} files of weights there, too many for one SAE; "
            f"{nearest('', weights, 'name one of them')}"
        )
    return [f"{address.path}/{name}" if address.path else name for name in chosen]


def _of_an_sae(name: str) -> bool:
    return name.endswith((*CONFIGS, *WEIGHTS))


def _listing(api: HfApi, spec: str, address: Address, folder: str) -> dict[str, bool]:
    """Return the names in a folder of the repository, and whether each is a file (else it is a folder)."""
    from huggingface_hub import RepoFile
    from huggingface_hub.errors import RemoteEntryNotFoundError

    names = {}
    try:
        for entry in api.list_repo_tree(address.repo, folder or None, recursive=False, revision=address.revision):
            name = entry.path.removeprefix(f"{folder}/" if folder else "")
            if "/" in name or not is_plain(name):
                raise UserError(
                    f'{spec}: the hub lists "{entry.path}" in "{folder}", where it can\'t be; nothing is read'
                )
            names[name] = isinstance(entry, RepoFile)
    except RemoteEntryNotFoundError as error:
        raise UserError(
            f'{spec}: {address.repo} has no folder "{folder}"; its folders are at https://huggingface.co/{address.repo}/tree/main'
        ) from error
    return names
