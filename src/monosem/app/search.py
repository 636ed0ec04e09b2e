"""Features that fire on a typed text, and features by words of their explanations.

The function that runs the model is given from outside; nothing here loads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from monosem.app.explanations import any_explained, find
from monosem.app.feature import words_of
from monosem.app.links import Links
from monosem.app.rendering import render
from monosem.app.study import Run, Study
from monosem.app.table import LONGEST, features_table
from monosem.app.tokens import visible
from monosem.types import UserError

# search(run, text): for each token its text and the features that fire on it, (feature, activation), strongest first.
Search = Callable[[str, str], list[tuple[str, list[tuple[int, float]]]]]

LONGEST_TEXT = 2000  # characters
SHOWN_TOKEN, SHOWN_POOLED = 6, 25
OFF = "Search runs the language model, which this page was started without. Start it with `monosem serve STUDY_DIR`."


@dataclass(frozen=True)
class Hit:
    """A feature found. value: its activation; at: the token's number; density: over the held-out tokens, if known."""

    feature: int
    value: float
    at: int
    density: float | None
    words: list[str]


def search_routes(study: Study, search: Search | None) -> list[BaseRoute]:
    """Return the route of the search page."""

    def page(request: Request) -> Response:
        asked = request.query_params
        text, runs = asked.get("text", "")[:LONGEST_TEXT], study.runs()
        chosen = runs.get(asked.get("run", "")) or next(iter(runs.values()), None)
        rare = asked.get("rare") == "1"
        values: dict[str, Any] = {"text": text, "chosen": chosen, "rare": rare, "longest": LONGEST_TEXT}
        found, problem = [], OFF if search is None else ""
        if search is not None and text.strip() and chosen is not None:
            try:
                found = search(chosen.name, text)
            except UserError as error:
                problem = str(error)
        results = results_of(study, chosen, found, rare) if chosen is not None and found else {}
        values |= {"problem": problem, "tokens": [], "pooled": [], **results}
        values |= explained_values(study, asked.get("about", "").strip()[:LONGEST], asked.get("within", ""))
        return HTMLResponse(render("search.html.j2", study, Links(), **values))

    return [Route("/search", page)]


def explained_values(study: Study, about: str, within: str) -> dict[str, Any]:
    """Return what the page shows of a search by explanation. about: words; within: a run's name, else all runs."""
    runs = study.runs()
    within = within if within in runs else ""
    found, number = find(study, [runs[within]] if within else runs.values(), about)
    return {
        "about": about,
        "within": within,
        "explained": bool(found) or any_explained(study, runs.values()),
        "found": [(one, words_of(study, one.run.name, one.feature)) for one in found],
        "found_number": number,
    }


def results_of(
    study: Study, run: Run, found: list[tuple[str, list[tuple[int, float]]]], rare: bool = False
) -> dict[str, Any]:
    """Return the page's results: features of each token, and pooled over tokens by their strongest activation.

    rare: without features that fire on more than a tenth of the held-out tokens.
    """
    table = features_table(study, run)
    known = "density" in table.frame.columns
    density = dict(zip(table.frame["feature"], table.frame["density"], strict=True)) if known else {}
    kept = [
        (text, [(i, v) for i, v in features if not rare or (density.get(i) or 0) <= 0.1]) for text, features in found
    ]
    best: dict[int, tuple[float, int]] = {}
    for at, (_, features) in enumerate(kept):
        for feature, value in features:
            if value > best.get(feature, (0.0, 0))[0]:
                best[feature] = value, at
    order = sorted(best, key=lambda i: -best[i][0])[:SHOWN_POOLED]
    pooled = [Hit(i, best[i][0], best[i][1], density.get(i), words_of(study, run.name, i)) for i in order]
    tokens = [(visible(text), features[:SHOWN_TOKEN]) for text, features in kept]
    return {"tokens": tokens, "pooled": pooled}
