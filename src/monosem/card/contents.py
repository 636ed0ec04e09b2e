"""The tables and lists of a card, from the summary's runs and each SAE's cfg.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from monosem.card.subject import Subject
from monosem.definitions import METRICS
from monosem.report.frontier import hyper_text
from monosem.report.inputs import finite
from monosem.report.numbers import plain
from monosem.report.palette import styles_for
from monosem.report.tables import Cell, estimate_cells

HEADLINE = ("l0", "nmse", "ce_recovered", "delta_ce", "gamma", "dead_fraction")


def count(value: Any) -> str:
    """Return a number with commas between thousands, a dash for anything else."""
    number = finite(value)
    return "–" if number is None else f"{number:,}"


@dataclass(frozen=True)
class Column:
    """A column of the headline table: label, unit, definition, and how many tokens its numbers were read on."""

    label: str
    unit: str
    definition: str
    count: str


def columns(runs: list[dict[str, Any]]) -> list[Column]:
    """Return the columns of the headline table."""
    found = []
    for name in HEADLINE:
        counts = [n for run in runs if (n := finite((run.get(name) or {}).get("n"))) is not None]
        ends = dict.fromkeys((min(counts), max(counts))) if counts else {}
        metric = METRICS[name]
        found.append(Column(metric.label, metric.unit, metric.definition, " to ".join(map(count, ends))))
    return found


def rows(runs: list[dict[str, Any]]) -> list[tuple[str, list[Cell]]]:
    """Return name and cells of each run; the numbers of a column have equally many decimals."""
    by_column = [estimate_cells(runs, name) for name in HEADLINE]
    return [(run["name"], list(cells)) for run, cells in zip(runs, zip(*by_column, strict=True), strict=True)]


def unmeasured(runs: list[dict[str, Any]]) -> list[str]:
    """Return why cells of the headline table are empty, each reason once."""
    return list(dict.fromkeys(cell.reason for _, cells in rows(runs) for cell in cells if cell.reason))


@dataclass(frozen=True)
class Setting:
    """What an SAE is: name, variant, SAELens' architecture, features, hyperparameters, seed, training tokens, hash."""

    name: str
    variant: str
    architecture: str
    d_sae: str
    hyper: str
    seed: str
    tokens: str
    sha256: str


def settings(subject: Subject) -> list[Setting]:
    """Return what each SAE is, from its cfg.json; what that doesn't say is a dash."""
    found = []
    for name, (_, cfg) in subject.saes.items():
        ours = cfg.get("monosem", {})
        variant = str(ours.get("variant") or cfg["architecture"])
        found.append(
            Setting(
                name,
                styles_for([variant])[variant].label,
                str(cfg["architecture"]),
                count(cfg["d_sae"]),
                _hyper(ours.get("hyper") or {name: cfg[name] for name in ("k",) if name in cfg}),
                plain(ours["seed"]) if ours.get("seed") is not None else "–",
                count(ours.get("tokens")),
                str(ours.get("weights_sha256") or "–")[:12],
            )
        )
    return found


def _hyper(hyper: dict[str, Any]) -> str:
    return hyper_text({"hyper": {key: value for key, value in hyper.items() if value is not None}}) or "–"


def recipes(subject: Subject) -> list[tuple[str, list[str]]]:
    """Return each optimiser recipe in words, with the names of the SAEs that were trained by it."""
    found: dict[str, list[str]] = {}
    for name, (_, cfg) in subject.saes.items():
        if recipe := cfg.get("monosem", {}).get("recipe"):
            found.setdefault(_hyper(recipe), []).append(name)
    return list(found.items())


def normalisers(subject: Subject) -> list[str]:
    """Return in words what training did to activations, and whether a reader of the files has to do it again."""
    found: dict[str, None] = {}
    for _, cfg in subject.saes.values():
        mode = cfg.get("normalize_activations") or "none"
        record = cfg.get("monosem", {}).get("normaliser")
        if mode != "none":
            words = (
                f'cfg.json has `normalize_activations = "{mode}"`; it depends on each token and can\'t be folded: '
                "whoever runs the weights applies it (monosem and SAELens do)"
            )
        elif record and record.get("kind", "none") != "none":
            words = (
                f"`{record['kind']}`, x = {plain(record.get('scale'))} a. It is folded into the weights of the files, "
                "so that raw activations go in and come out in any library; feature activations are in normalised units"
            )
        else:
            words = "none: raw activations go in and come out"
        found[words] = None
    return list(found)


def versions(environment: dict[str, Any] | None) -> list[str]:
    """Return environment.json as `name value` texts; what lies in `versions` and other objects under its own name."""
    pairs: list[str] = []
    for key, value in (environment or {}).items():
        if value is not None:
            pairs += versions(value) if isinstance(value, dict) else [f"{key} {plain(value)}"]
    return pairs
