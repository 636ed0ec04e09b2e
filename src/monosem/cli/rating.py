"""Commands of the blinded rating: draw, freeze, analyse."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from monosem.cli.options import StudyFolder

app = typer.Typer(no_args_is_help=True, help="Draw features for blind rating, lock the ratings, unblind them.")


@app.command()
def draw(
    study: StudyFolder,
    features: Annotated[int, typer.Option("--features", help="How many features of each run.", min=1)] = 25,
    runs: Annotated[str, typer.Option("--runs", help="Only runs whose name matches this pattern.")] = "*",
    sampling: Annotated[
        Literal["uniform", "stratified", "mass"],
        typer.Option("--sampling", help="Uniform, equally many of five density strata, or by activation mass."),
    ] = "uniform",
    empty: Annotated[
        Literal["exclude", "drop"],
        typer.Option("--empty", help="Exclude features with an empty interval, or drop that interval for all."),
    ] = "exclude",
    seed: Annotated[int, typer.Option("--seed", help="Which sample.", min=0)] = 0,
    force: Annotated[bool, typer.Option("--force", help="Draw anew over a draw that has no ratings.")] = False,
) -> None:
    """Draw the features to be rated: a packet for the raters, and a key apart."""
    from monosem.catalogue import find_folder
    from monosem.rating.draw import draw as draw_features
    from monosem.rating.store import writable
    from monosem.remote import held

    folder = find_folder(study)
    with writable(folder), held(folder):
        told = draw_features(
            folder, features=features, runs=runs, sampling=sampling, empty=empty, seed=seed, force=force
        )
    for line in told:
        typer.echo(line)


@app.command()
def freeze(study: StudyFolder) -> None:
    """Lock the ratings: later ones are refused, and changes are noticed."""
    from monosem.catalogue import find_folder
    from monosem.rating.store import Files
    from monosem.rating.store import freeze as freeze_ratings
    from monosem.remote import RATING, at_hand

    with at_hand(find_folder(study), RATING) as folder:
        files = Files(folder)
        found = freeze_ratings(files)
    typer.echo(f"{found['ratings']} ratings by {', '.join(found['raters'])} are frozen: {files.frozen}")


@app.command()
def analyse(
    study: StudyFolder,
    axis: Annotated[
        list[str] | None, typer.Option("--axis", help="consistency or complexity; both without this.")
    ] = None,
) -> None:
    """Unblind frozen ratings and compare the runs; freezes first if need be."""
    from monosem.catalogue import find_folder
    from monosem.rating.analysis import AXES
    from monosem.rating.analysis import analyse as analyse_ratings
    from monosem.remote import RATING, at_hand

    with at_hand(find_folder(study), RATING) as folder:
        for line in analyse_ratings(folder, tuple(axis or AXES)):
            typer.echo(line)
