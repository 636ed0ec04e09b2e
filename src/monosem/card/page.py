"""Puts a card together: front matter, tables and text in Markdown, and the figure beside it."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, PackageLoader

from monosem.card.contents import columns, count, normalisers, recipes, rows, settings, unmeasured, versions
from monosem.card.figure import error_figure
from monosem.card.subject import Subject, read_subject
from monosem.hub import parse_repository
from monosem.report.numbers import plain
from monosem.report.tables import NBSP
from monosem.store import write_text

FIGURE = "l0-nmse.svg"
NOWHERE = "hf:OWNER/NAME"
EMBEDDED, EMBEDDED_ID = "SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"


def model_card(folder: Path, repo: str = NOWHERE, license: str | None = None) -> dict[str, str]:
    """Return a card and its figure: {"README.md": Markdown with front matter, "l0-nmse.svg": SVG}.

    The figure is left out where nothing was measured. folder: an SAE's (`saes/<run>`) or a study's. repo: the place on
    the hub that the lines for loading name, `hf:owner/name[/folder][@revision]`. license: an identifier of the hub's
    list; without it the card states none. Raises UserError when the folder is neither, or one of its files is damaged.
    """
    address, subject = parse_repository(repo), read_subject(folder)
    study = subject.study
    every = study.runs if study else []
    marked = subject.name if subject.single and len(every) > 1 else None
    drawn = error_figure(every if subject.single else subject.runs, marked)
    name, (_, cfg) = next(iter(subject.saes.items()))
    inside = "/".join(part for part in (address.path, "" if subject.single else name) if part)
    at = f"@{address.revision}" if address.revision else ""
    text = (
        _environment()
        .get_template("card.md.j2")
        .render(
            front=_front_matter(subject, license),
            subject=subject,
            summary=study.summary if study else {},
            cfg=cfg,
            site=subject.fact("site"),
            model=_model(subject),
            figure=FIGURE if drawn else None,
            marked=marked,
            columns=columns(subject.runs),
            rows=rows(subject.runs),
            elsewhere={run["name"]: run["loaded"].get("source") for run in subject.runs if run.get("loaded")},
            unmeasured=unmeasured(subject.runs),
            settings=settings(subject),
            recipes=recipes(subject),
            normalisers=normalisers(subject),
            spec="/".join(part for part in (f"hf:{address.repo}", inside) if part) + at,
            address=address,
            inside=inside,
            versions=versions(study.environment if study else None),
            toml=study.toml if study else None,
            version=metadata.version("monosem"),
        )
    )
    return {"README.md": text} | ({FIGURE: drawn} if drawn else {})


def write_card(folder: Path, out: Path, repo: str = NOWHERE, license: str | None = None) -> list[Path]:
    """Write the card to `out` and its figure beside it; return their paths. Raises UserError as model_card does."""
    written = []
    for name, text in model_card(folder, repo, license).items():
        written.append(out if name == "README.md" else out.parent / name)
        write_text(written[-1], text)
    return written


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("monosem.card"),
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(NBSP=NBSP)
    environment.filters.update(plain=plain, cell=_cell, count=count)
    return environment


def _cell(text: Any) -> str:
    """Return text that stays within a cell of a Markdown table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def _model(subject: Subject) -> str | None:
    named = subject.study.summary.get("model") if subject.study else None
    return named or subject.fact("model")


def _front_matter(subject: Subject, license: str | None) -> str:
    from huggingface_hub import ModelCardData

    variants = {str(run["variant"]) for run in subject.runs}
    data = ModelCardData(
        base_model=_base_model(str(_model(subject) or "")),
        library_name="monosem",
        license=license,
        tags=["sparse-autoencoder", "saelens", "monosem", "interpretability", *sorted(variants)],
    )
    return data.to_yaml()


def _base_model(name: str) -> str | None:
    """Return the hub's name of a language model, or None for a folder, or a name that may be one of another library."""
    if name.removesuffix(" (embedded)") == EMBEDDED:
        return EMBEDDED_ID
    is_id = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and not Path(name).exists()
    return name if is_id else None
