"""The command line: thin, and quick to start (heavy imports happen inside the commands)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from monosem.types import UserError

app = typer.Typer(
    name="monosem",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train sparse autoencoder variants side by side and find out which is better.",
)

Target = Annotated[
    str,
    typer.Argument(
        metavar="[STUDY.toml | STUDY_DIR | NAME]", help="A study file, a study folder or a study that comes along."
    ),
]
Out = Annotated[Path | None, typer.Option("--out", help="Study folder; default runs/<study name>.")]
Reference = Annotated[
    bool, typer.Option("--reference", help="Use the slow, readable references instead of the kernels.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. train.d_sae=1024 or run.0.k=[20,50]."),
]


@app.command()
def compare(study: Target = "quickstart", out: Out = None, settings: Set = None, reference: Reference = False) -> None:
    """Run every stage of a study and write its report; finished stages are skipped."""
    _run(study, out, _with_reference(settings, reference), None)


@app.command()
def harvest(study: Target, out: Out = None, settings: Set = None) -> None:
    """Read the model's activations on the study's text."""
    _run(study, out, settings, "harvest")


@app.command()
def train(study: Target, out: Out = None, settings: Set = None, reference: Reference = False) -> None:
    """Train the study's SAEs on the harvested activations."""
    _run(study, out, _with_reference(settings, reference), "train")


@app.command()
def measure(study: Target, out: Out = None, settings: Set = None, reference: Reference = False) -> None:
    """Measure every SAE on the same held-out tokens."""
    _run(study, out, _with_reference(settings, reference), "measure")


@app.command()
def report(study: Target, out: Out = None, settings: Set = None) -> None:
    """Write report.html and summary.json from the measurements."""
    _run(study, out, settings, "report")


@app.command(name="eval")
def evaluate(
    name: Annotated[str, typer.Argument(help="An evaluation (see `monosem list evals`) or `all`.")],
    study: Target,
    runs: Annotated[str, typer.Option("--runs", help="Only runs whose name matches this pattern.")] = "*",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the evaluation.")
    ] = None,
) -> None:
    """Run one evaluation over a study's SAEs."""
    from monosem.stages import run_evaluation

    loaded, folder = _load(study, None, None)
    for line in run_evaluation(loaded, folder, name, runs, settings or []):
        _say(line)


@app.command(name="list")
def list_(what: Annotated[str, typer.Argument(help="variants, evals, formats or studies.")]) -> None:
    """List what there is."""
    from monosem import catalogue

    for line in catalogue.lines(what):
        typer.echo(line)


def _with_reference(settings: list[str] | None, reference: bool) -> list[str] | None:
    return [*(settings or []), "compute.reference=true"] if reference else settings


def _load(target: str, out: Path | None, settings: list[str] | None) -> tuple[Any, Path]:
    from monosem.catalogue import find_study
    from monosem.config import load_study

    path, folder = find_study(target)
    study = load_study(path, settings)
    return study, out or folder or Path("runs") / study.file.name


def _run(target: str, out: Path | None, settings: list[str] | None, only: str | None) -> None:
    from rich.console import Console

    from monosem.progress import TerminalTicker
    from monosem.stages import compare as run_stages

    study, folder = _load(target, out, settings)
    ticker = TerminalTicker(Console(stderr=True))
    try:
        path = run_stages(study, folder, only=only, say=_say, ticker=ticker)
    except KeyboardInterrupt:
        _say("stopped; the same command goes on from the last finished shard or checkpoint")
        raise typer.Exit(130) from None
    if only in (None, "report"):
        _say(f"report: {path}")


def _say(line: str) -> None:
    typer.echo(line)


def run() -> int:
    """Run the command line and return its exit code: 2 with one sentence for what the user can mend."""
    try:
        app()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        return 2
    return 0
