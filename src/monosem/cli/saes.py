"""Commands of single SAEs: read anybody's, convert, examine, describe, share."""

from __future__ import annotations

import typer

app = typer.Typer()
