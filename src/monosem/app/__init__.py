"""The browser of features: a web app over the files of a study folder. Reads codes and results, never the model.

`make_app(folder)` gives the application; `monosem serve` runs it. Pages are HTML from the server, htmx swaps parts of
them, nothing is loaded from elsewhere, and nothing is built. Imports no torch.
"""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.routing import Mount

from monosem.app.features import error_handlers, feature_routes, plane_routes
from monosem.app.rating import rating_routes
from monosem.app.search import Search, search_routes
from monosem.app.security import Guard
from monosem.app.study import Study


def make_app(folder: Path, *, search: Search | None = None, host: str = "127.0.0.1") -> Guard:
    """Return the web app of a study folder.

    search: finds the features that fire on a text (see `app.search`); without it the search page says why it can't.
    host: what the server is bound to, one of the names it answers to.
    """
    study = Study(Path(folder))
    routes = [
        *feature_routes(study),
        *plane_routes(study),
        *search_routes(study, search),
        Mount("/rate", routes=rating_routes(Path(folder))),
    ]
    return Guard(Starlette(routes=routes, exception_handlers=error_handlers(study)), host)  # around every answer


__all__ = ["make_app"]
