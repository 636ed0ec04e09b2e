"""Puts the page together: template, styles, scripts and data in one file that asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from itertools import groupby
from typing import Any

from jinja2 import ChainableUndefined, Environment, PackageLoader
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from monosem.report import numbers
from monosem.report.figures import figure, group_of
from monosem.report.frontier import first_screen
from monosem.report.headline import equal_l0_table, verdict_cards
from monosem.report.inputs import Study, finite
from monosem.report.palette import MARKER_PATHS, styles_for
from monosem.report.tables import chart_table, metric_column, metric_names, metrics_table, seed_table
from monosem.schema import Chart

SECTIONS = (
    "Frontier",
    "Downstream",
    "Density",
    "Dense features",
    "Activation levels",
    "Shrinkage",
    "Human rating",
    "Automatic interpretation",
    "Probes",
    "Ablation effects",
    "RAVEL",
    "IOI",
    "Multi-dimensional features",
    "Training",
)
NO_BASELINE = "No headline comparison: this study has no baseline run to compare the variants with."


def build_page(study: Study) -> str:
    """Return the report as HTML text."""
    runs, headline = study.runs, study.summary.get("headline") or {}
    compared = [str(item.get("variant", "")) for item in headline.get("comparisons") or []]
    groups = [run["variant"] for run in runs] + compared + [str(headline.get("baseline") or "standard")]
    groups += [group_of(series) for chart in study.charts for series in chart.series]
    styles = styles_for(groups)
    labels = {group: style.label for group, style in styles.items()}
    top = first_screen(study.charts, runs, styles)
    sections = _sections([chart for chart in study.charts if not chart.first_screen])
    drawn = [chart for chart in [*top, *[c for _, charts in sections for c in charts]] if chart.kind != "table"]
    # One file can't trust another to keep chart ids apart.
    keys = {id(chart): f"plot-{index}" for index, chart in enumerate(drawn)}
    data = {
        "plots": [figure(chart, styles) | {"key": keys[id(chart)]} for chart in drawn],
        "styles": {group: vars(style) for group, style in styles.items()},
        "markers": MARKER_PATHS,
    }
    scripts = [_plotly(), _asset("plots.js"), _asset("tables.js")]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            study=study,
            summary=study.summary,
            facts=_facts(study.summary),
            sentence=headline.get("sentence") or NO_BASELINE,
            headline=headline,
            cards=verdict_cards(headline),
            styles=styles,
            markers=MARKER_PATHS,
            key_of=lambda chart: keys[id(chart)],
            top=top,
            sections=sections,
            at_table=equal_l0_table(headline, labels),
            seed_table=seed_table(runs, labels),
            metrics_table=metrics_table(runs, labels),
            definitions=[(name, metric_column(name)) for name in metric_names(runs)],
            flat=_flat,
            chart_table=chart_table,
            css=Markup(_asset("report.css")),
            scripts=[Markup(script) for script in scripts],
            policy=_policy(scripts),
            data=htmlsafe_json_dumps(_clean(data), allow_nan=False, separators=(",", ":")),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("monosem.report", "templates"),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(short=numbers.short, tokens=numbers.tokens, plain=numbers.plain)
    return environment


def _sections(charts: list[Chart]) -> list[tuple[str, list[Chart]]]:
    def rank(chart: Chart) -> tuple[int, str]:
        known = chart.section in SECTIONS
        return (SECTIONS.index(chart.section) if known else len(SECTIONS), chart.section)

    ordered = sorted(charts, key=rank)
    return [(name, list(group)) for name, group in groupby(ordered, key=lambda chart: chart.section)]


def _facts(summary: dict[str, Any]) -> list[str]:
    """Return the line under the title: model, site, sizes."""
    counts = summary.get("tokens") or {}
    facts = [str(summary[key]) for key in ("model", "site") if summary.get(key)]
    if finite(summary.get("d_in")):
        facts.append(f"{numbers.short(summary['d_in'])} dimensions")
    if finite(counts.get("train")):
        facts.append(f"{numbers.tokens(counts['train'])} training tokens")
    if finite(counts.get("eval")):
        documents = counts.get("eval_documents")
        within = f" in {numbers.short(documents)} documents" if finite(documents) else ""
        facts.append(f"{numbers.tokens(counts['eval'])} held-out tokens{within}")
    if finite(counts.get("ce")):
        facts.append(f"CE on {numbers.tokens(counts['ce'])}")
    count = len(summary["runs"])
    return [*facts, f"{count} run" if count == 1 else f"{count} runs"]


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as (dotted name, text) pairs."""
    if isinstance(value, dict):
        return [pair for key, item in value.items() for pair in _flat(item, f"{prefix}.{key}" if prefix else str(key))]
    return [(prefix, numbers.plain(value) if value is not None else "–")]


def _clean(value: Any) -> Any:
    """Return the value with every number that JSON can't hold replaced by null."""
    if isinstance(value, dict):
        return {str(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return finite(value) if isinstance(value, float) else value


def _asset(name: str) -> str:
    return resources.files("monosem.report").joinpath("assets", name).read_text(encoding="utf-8")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().replace("</script", "<\\/script").replace("\r\n", "\n")


def _policy(scripts: list[str]) -> str:
    """Return a content security policy: these very scripts, no other, and no request to anywhere."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
