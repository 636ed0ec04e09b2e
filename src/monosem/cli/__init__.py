"""The command line: thin, and quick to start (heavy imports happen inside the commands).

One file for what concerns studies, ratings and single SAEs each.
"""

from __future__ import annotations

import sys
import warnings
from signal import SIGINT
from typing import Any

import typer

from monosem.cli import rating, saes, studies
from monosem.environment import leads
from monosem.types import FormatWarning, UserError

app = typer.Typer(
    name="monosem",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train sparse autoencoder variants side by side and find out which is better.",
)
for commands in (studies.app, saes.app):
    app.registered_commands += commands.registered_commands
app.add_typer(rating.app, name="rate")


def run() -> int:
    """Run the command line and return its exit code: 2 with one sentence for what the user can mend."""
    with warnings.catch_warnings():
        warnings.showwarning = _show
        try:
            app()
        except SystemExit as exit_:
            return int(exit_.code or 0)
        except UserError as error:
            if leads():  # all of several processes fail at the same
                from monosem.remote import named

                typer.echo(f"error: {named(str(error))}", err=True)
            return 2
        return 0


def run_arguments(arguments: list[str]) -> int:
    """Run the command line with these arguments in a process that was launched for it, and return its exit code.

    Raises SystemExit when it was interrupted: who returns waits for the launcher, which waits for its processes then.
    """
    sys.argv = ["monosem", *arguments]
    code = run()
    if code == 128 + SIGINT:
        raise SystemExit(code)
    return code


def _show(message: Any, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
    ours = issubclass(category, FormatWarning)
    text = f"warning: {message}\n" if ours else warnings.formatwarning(message, category, filename, lineno)
    typer.echo(text, err=True, nl=False)
