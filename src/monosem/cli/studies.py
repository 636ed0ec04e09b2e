"""Commands of a study: its stages, its evaluations, its browser."""

from __future__ import annotations

from multiprocessing import parent_process
from pathlib import Path
from signal import SIGINT
from typing import Annotated, Any

import typer

from monosem.cli.options import StudyFolder, on_this_machine
from monosem.environment import leads

app = typer.Typer()
STOPPED = "stopped; the same command goes on from the last finished shard or checkpoint"

Target = Annotated[
    str,
    typer.Argument(
        metavar="[STUDY.toml | STUDY_DIR | NAME]", help="A study file, a study folder or a study that comes along."
    ),
]
Out = Annotated[str | None, typer.Option("--out", help="Study folder, also s3:// or gs://; default runs/<study name>.")]
Reference = Annotated[
    bool, typer.Option("--reference", help="Use the slow, readable references instead of the kernels.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. train.d_sae=1024 or run.0.k=[20,50]."),
]

Nproc = Annotated[
    int,
    typer.Option(
        "--nproc",
        help="How many processes train; one that dies is replaced. 0: one, or what a cluster has room for.",
        min=0,
    ),
]
EngineName = Annotated[
    str, typer.Option("--engine", help="Where the work is done: local, ray or ray://HOST:PORT (a Ray cluster).")
]


@app.command()
def compare(
    study: Target = "quickstart",
    out: Out = None,
    settings: Set = None,
    reference: Reference = False,
    nproc: Nproc = 0,
    engine: EngineName = "local",
) -> None:
    """Run every stage of a study and write its report; finished stages are skipped."""
    _run("compare", study, out, _with_reference(settings, reference), engine, nproc)


@app.command()
def harvest(study: Target, out: Out = None, settings: Set = None, engine: EngineName = "local") -> None:
    """Read the model's activations on the study's text."""
    _run("harvest", study, out, settings, engine)


@app.command()
def train(
    study: Target,
    out: Out = None,
    settings: Set = None,
    reference: Reference = False,
    nproc: Nproc = 0,
    engine: EngineName = "local",
) -> None:
    """Train the study's SAEs on the harvested activations."""
    _run("train", study, out, _with_reference(settings, reference), engine, nproc)


@app.command()
def measure(
    study: Target, out: Out = None, settings: Set = None, reference: Reference = False, engine: EngineName = "local"
) -> None:
    """Measure every SAE on the same held-out tokens."""
    _run("measure", study, out, _with_reference(settings, reference), engine)


@app.command()
def report(study: Target, out: Out = None, settings: Set = None) -> None:
    """Write report.html and summary.json from the measurements."""
    _run("report", study, out, settings)


@app.command(name="eval")
def evaluate(
    name: Annotated[str, typer.Argument(help="An evaluation (see `monosem list evals`) or `all`.")],
    study: Target,
    runs: Annotated[str, typer.Option("--runs", help="Only runs whose name matches this pattern.")] = "*",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the evaluation.")
    ] = None,
    features: Annotated[int | None, typer.Option("--features", help="autointerp: how many of each run.")] = None,
    explainer: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="autointerp: n2g, local, local:MODEL or MODEL@https://host/v1."),
    ] = None,
    simulator: Annotated[
        str | None, typer.Option(metavar="SPEC", help="autointerp: the same; without it the explainer.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="autointerp: only say what it would cost.")] = False,
    engine: EngineName = "local",
) -> None:
    """Run one evaluation over a study's SAEs."""
    from rich.console import Console

    from monosem.progress import TerminalTicker
    from monosem.stages import run_evaluation

    loaded, folder = _load(study, None, None)
    named = {"features": features, "explainer": explainer, "simulator": simulator}
    values = [*(settings or []), *(f"{key}={value}" for key, value in named.items() if value is not None)]
    ticker = TerminalTicker(Console(stderr=True))
    try:
        lines = run_evaluation(loaded, folder, name, runs, values, dry_run=dry_run, ticker=ticker, engine=engine)
        for line in lines:
            typer.echo(line)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on after the runs that are finished, and asks for no answer twice")
        raise typer.Exit(128 + SIGINT) from None


@app.command()
def serve(
    study: StudyFolder,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; others than this machine's are open.")] = (
        "127.0.0.1"
    ),
    port: Annotated[
        int, typer.Option("--port", help="Port to listen on; 0 takes a free one.", min=0, max=65535)
    ] = 8137,
    show: Annotated[bool, typer.Option("--open", help="Open a browser.")] = False,
) -> None:
    """Browse a study's features, search them by a text, and rate them, in a local web app."""
    from monosem.catalogue import find_folder
    from monosem.remote import RATING, at_hand
    from monosem.serving import serve as serve_app

    with at_hand(find_folder(study), RATING) as folder:
        serve_app(folder, host=host, port=port, show=show, say=typer.echo)


@app.command(name="export-features")
def export_features(
    study: StudyFolder,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to; default STUDY_DIR/features.", callback=on_this_machine)
    ] = None,
    runs: Annotated[str, typer.Option("--runs", help="Only runs whose name matches this pattern.")] = "*",
    features: Annotated[int, typer.Option("--features", help="How many of each run, evenly spaced; 0: all.", min=0)] = (
        100
    ),
    format: Annotated[str, typer.Option("--format", help="html, saedashboard or neuronpedia.")] = "html",
) -> None:
    """Write features as pages that need no server, or as SAEDashboard's or Neuronpedia's JSON."""
    from monosem.catalogue import find_folder
    from monosem.exports import export_features as export
    from monosem.remote import at_hand

    with at_hand(find_folder(study)) as folder:
        typer.echo(f"{export(folder, out or folder / 'features', runs, features, format, typer.echo)}")


@app.command(name="export-results")
def export_results(
    study: StudyFolder,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to; default STUDY_DIR/saebench.", callback=on_this_machine)
    ] = None,
    runs: Annotated[str, typer.Option("--runs", help="Only runs whose name matches this pattern.")] = "*",
    format: Annotated[str, typer.Option("--format", help="saebench.")] = "saebench",
) -> None:
    """Write results as SAEBench result files, with monosem's definitions and intervals beside its names."""
    from monosem.catalogue import find_folder
    from monosem.exports import export_results as export
    from monosem.remote import at_hand

    with at_hand(find_folder(study)) as folder:
        out = out or folder / "saebench"
        files = export(folder, out, runs, format, typer.echo)
    typer.echo(f"{len(files)} files in {out}")


@app.command(name="list")
def list_(what: Annotated[str, typer.Argument(help="variants, evals, formats or studies.")]) -> None:
    """List what there is."""
    from monosem import catalogue

    for line in catalogue.lines(what):
        typer.echo(line)


def _with_reference(settings: list[str] | None, reference: bool) -> list[str] | None:
    return [*(settings or []), "compute.reference=true"] if reference else settings


def _load(target: str, out: str | None, settings: list[str] | None) -> tuple[Any, str | Path]:
    from monosem.catalogue import find_study
    from monosem.config import load_study

    path, folder = find_study(target)
    study = load_study(path, settings)
    return study, out or folder or Path("runs") / study.file.name


def _run(
    command: str, target: str, out: str | None, settings: list[str] | None, engine: str = "local", processes: int = 0
) -> None:
    """Run the stages of a command, or start several processes that do, and end with their exit code."""
    if engine == "local" and processes > 1:
        from monosem.cli import run_arguments
        from monosem.processes import launch

        options = [
            *(["--out", out] if out else []),
            *(part for text in settings or [] for part in ("--set", text)),
        ]
        code = launch(run_arguments, [command, target, *options], processes)
        if code == 128 + SIGINT:
            typer.echo(STOPPED)
        raise typer.Exit(code)
    from rich.console import Console

    from monosem.progress import TerminalTicker
    from monosem.remote import address, is_url
    from monosem.stages import compare as run_stages

    study, folder = _load(target, out, settings)
    ticker, only = TerminalTicker(Console(stderr=True)), None if command == "compare" else command
    try:
        path = run_stages(study, folder, only=only, say=typer.echo, ticker=ticker, engine=engine, processes=processes)
    except KeyboardInterrupt:
        if leads() and not parent_process():  # which says it
            typer.echo(STOPPED)
        raise typer.Exit(128 + SIGINT) from None
    if only in (None, "report") and leads():
        where = address(path.parent)
        typer.echo(f"report: {path}" + (f" ({where}/{path.name})" if is_url(where) else ""))
