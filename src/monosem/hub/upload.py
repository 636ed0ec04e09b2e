"""Publishes files on the hub, as one commit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from monosem.hub.errors import LOGIN, explained
from monosem.hub.specs import parse_repository
from monosem.types import UserError


def push(files: Mapping[str, Path | bytes], spec: str, *, private: bool = False, message: str) -> str:
    """Publish files in the model repository that `spec` names, made if there is none, and return the commit's address.

    spec: `hf:owner/name[/folder][@branch]`; the branch is made if there is none. files: path in the repository, below
    the spec's folder -> local file or content. All go into one commit; what else the repository holds stays. private: a
    new repository is private, and one that everybody can read is refused. Raises UserError in one sentence: a bad spec,
    no token, no permission, a public repository where a private one was asked for, no network.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    address = parse_repository(spec)
    if not get_token():
        raise UserError(f"{spec}: there is no token to publish with; {LOGIN}, with a token that may write")
    within = f"{address.path}/" if address.path else ""
    operations = [CommitOperationAdd(within + path, _readable(content)) for path, content in files.items()]
    api = HfApi()
    with explained(spec, address.repo, address.revision, writing=True):
        api.create_repo(address.repo, private=private or None, exist_ok=True)
        if private and not api.repo_info(address.repo).private:
            raise UserError(
                f"{spec}: {address.repo} exists and everybody can read it; make it private, or leave --private out"
            )
        if address.revision not in (None, "main"):
            api.create_branch(address.repo, branch=address.revision, exist_ok=True)
        commit = api.create_commit(address.repo, operations, commit_message=message, revision=address.revision)
    return commit.commit_url


def _readable(content: Path | bytes) -> str | bytes:
    return str(content) if isinstance(content, Path) else content
