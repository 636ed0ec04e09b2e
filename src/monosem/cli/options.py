"""Arguments and options that several commands have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

StudyFolder = Annotated[str, typer.Argument(metavar="STUDY_DIR", help="A study folder, also s3:// or gs://.")]


def on_this_machine(path: Path | None) -> Path | None:
    """Return the path that a callback of an option gets. Raises BadParameter for a URL, which would become a folder."""
    if path is not None and re.match(r"[a-z][\w+.-]+:/", str(path)):
        raise typer.BadParameter(f"{path} is not on this machine; write to a folder here, and copy it from there.")
    return path
