"""Commands of single SAEs: read anybody's, convert, examine, describe, share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from monosem.cli.options import on_this_machine

app = typer.Typer()
Spec = Annotated[
    str, typer.Argument(metavar="SPEC", help="A folder, a file, hf:owner/name[/folder] or saelens:release/id.")
]


@app.command()
def convert(
    source: Spec,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder.", callback=on_this_machine)],
    to: Annotated[str, typer.Option("--to", help="A format (see `monosem list formats`).")] = "saelens",
    site: Annotated[str, typer.Option("--site", help="Where it was trained, if the files don't say.")] = "",
    model: Annotated[str, typer.Option("--model", help="On which model, if the files don't say.")] = "",
    scale: Annotated[float, typer.Option("--scale", help="It was trained on activations times this; fold it.")] = 1.0,
) -> None:
    """Write an SAE in another format; it computes the same."""
    from monosem.formats import convert as convert_sae

    sae = convert_sae(source, folder, to, site=site, model=model, scale=scale)
    where = sae.facts.get("site") or "a site that the files don't name"
    typer.echo(f"{folder}: {sae.variant_name}, {sae.d_sae:,} features, d_in {sae.d_in}, of {where}, as {to}")


@app.command()
def doctor(
    source: Spec,
    site: Annotated[str, typer.Option("--site", help="Where it was trained, if not as the files say.")] = "",
    model: Annotated[str, typer.Option("--model", help="An id, a folder or `embedded`, if not as the files say.")] = "",
    text: Annotated[str, typer.Option("--text", help="A file, folder or data set; default the embedded text.")] = "",
    tokens: Annotated[int, typer.Option("--tokens", help="How many tokens of it to read.", min=2000)] = 20_000,
    positions: Annotated[
        Literal["text", "all"], typer.Option("--positions", help="all: read it at position 0 and special tokens, too.")
    ] = "text",
    json: Annotated[
        Path | None, typer.Option("--json", help="Write the diagnosis there, too.", callback=on_this_machine)
    ] = None,
) -> None:
    """Say which reading of an SAE's file is right; exit code 1 when it isn't the one as it stands."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from monosem.doctor import examine, shown
    from monosem.store import write_json

    told = partial(typer.echo, err=True)
    found = examine(source, site=site, model=model, text=text, tokens=tokens, positions=positions, say=told)
    few, many = (f"{row.l0.n:,}" for row in (found.rows[-1], found.rows[0]))
    caption = f"{few} tokens a reading, {many} for those that the verdict rests on; 95 % intervals over documents"
    table = Table("reading", "L0", "explained variance", "", box=box.SIMPLE_HEAD, caption=caption)
    for row in found.rows:
        table.add_row(row.reading, f"{row.l0.value:,.1f}", shown(row.explained_variance), row.mark)
    Console(soft_wrap=True).print(table)
    for line in (*found.notes, found.sentence):
        typer.echo(line)
    if json is not None:
        write_json(json, found.as_dict())
    raise typer.Exit(0 if found.verdict == "right" else 1)


Shared = Annotated[
    str, typer.Argument(metavar="DIR", help="An SAE (saes/<run>) or a whole study, also s3:// or gs://.")
]
License = Annotated[str | None, typer.Option("--license", help="The hub's name of a licence, for the card.")]
Repository = Annotated[str, typer.Argument(metavar="hf:OWNER/NAME[/FOLDER]", help="A model repository of the hub.")]


@app.command()
def card(
    shared: Shared,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to; default DIR/README.md.", callback=on_this_machine)
    ] = None,
    repo: Annotated[str, typer.Option("--repo", help="The repository that it will lie in.")] = "hf:OWNER/NAME",
    license: License = None,
) -> None:
    """Write a model card with its figure beside it: numbers, definitions, how to load, how it was trained."""
    from monosem.card import write_card

    with _at_hand(shared) as folder:
        for path in write_card(folder, out or folder / "README.md", repo, license):
            typer.echo(path)


@app.command()
def push(
    shared: Shared,
    repo: Repository,
    private: Annotated[bool, typer.Option("--private", help="Only you and your organisation can read it.")] = False,
    revision: Annotated[str | None, typer.Option("--revision", help="A branch, made if there is none.")] = None,
    message: Annotated[str | None, typer.Option("--message", help="The commit's message.")] = None,
    card: Annotated[Path | None, typer.Option("--card", help="A card of your own instead of a fresh one.")] = None,
    license: License = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the files and their sizes.")] = False,
) -> None:
    """Publish an SAE or a study on the Hugging Face hub, with a model card, as one commit."""
    from monosem.card import shared_files
    from monosem.hub import push as push_files

    place = f"{repo}@{revision}" if revision else repo
    with _at_hand(shared) as folder:
        files = shared_files(folder, place, license, card)
        sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
        for name, size in sizes.items():
            typer.echo(f"{size:>13,}  {name}")
        total = f"{len(files)} files, {sum(sizes.values()):,} bytes"
        if dry_run:
            typer.echo(f"{total}; nothing was sent")
            return
        message = message or f"monosem: {Path(shared).absolute().name}"
        url = push_files(files, place, private=private, message=message)
    typer.echo(f"{total}, in one commit: {url}")


@contextmanager
def _at_hand(shared: str) -> Iterator[Path]:
    """Have a study, or saes/<run> in one, at hand."""
    from monosem.remote import at_hand, is_study, is_url

    study, _, run = shared.rstrip("/").rpartition("/saes/")
    if is_url(shared) and study and is_study(study):
        with at_hand(study) as folder:
            yield folder / "saes" / run
    else:
        with at_hand(shared) as folder:
            yield folder
