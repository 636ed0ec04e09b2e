"""Templates, filters, and the style sheet of the variants' colours."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from monosem.app.links import Links
from monosem.app.study import Study
from monosem.report import numbers
from monosem.report.palette import FIXED, MARKER_PATHS, OTHERS, Style, styles_for

KNOWN_LOOKS = [*FIXED.values(), *(Style("", *other) for other in OTHERS)]


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Return the templates' environment: everything is escaped, an unknown name is an error."""
    made = Environment(
        loader=PackageLoader("monosem.app", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(short=numbers.short, three=three, percent=percent)
    made.globals.update(markers=MARKER_PATHS, zip=zip)
    return made


def render(template: str, study: Study, links: Links, **values: Any) -> str:
    """Return a page (or a fragment of one) as HTML text."""
    runs = study.runs()
    styles = styles_for(run.variant for run in runs.values())
    looks = {variant: KNOWN_LOOKS.index(_look(style)) for variant, style in styles.items()}
    shared = {
        "study": study,
        "links": links,
        "runs": runs,
        "styles": styles,
        "looks": looks,
        "title_of_study": study.summary().get("study") or study.folder.name,
        "has_report": (study.folder / "report.html").is_file(),
        "has_packet": (study.folder / "ratings" / "packet.json").is_file(),
        "run": None,
    }
    return environment().get_template(template).render({**shared, **values})


def _look(style: Style) -> Style:
    """Return the same look as it stands in the list of all looks."""
    return next(known for known in KNOWN_LOOKS if (known.light, known.symbol) == (style.light, style.symbol))


def palette_css() -> str:
    """Return a style sheet that gives every look its colours, in light and dark, without inline styles."""
    lines = [f".look{i} {{ --light: {s.light}; --dark: {s.dark}; }}" for i, s in enumerate(KNOWN_LOOKS)]
    return "\n".join(lines) + "\n"


def report_css() -> str:
    """Return the report's style sheet, which the browser's pages build on."""
    return resources.files("monosem.report").joinpath("assets", "report.css").read_text(encoding="utf-8")


def three(value: Any) -> str:
    """Return a number with three significant digits; words as they are."""
    if isinstance(value, float):
        return numbers.short(float(f"{value:.3g}"))
    return numbers.short(value)


def percent(value: Any) -> str:
    """Return a share as a percentage with three significant digits."""
    return "–" if value is None else f"{numbers.short(float(f'{100 * value:.3g}'))}\u2009%"
