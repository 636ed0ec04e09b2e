"""The pages: home, a run's table, a feature, its neighbours, its documents; the report; the files they need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from monosem.app.feature import feature_view, neighbours, words_of
from monosem.app.links import Links
from monosem.app.planes import best_planes, cluster_of, cluster_values, clusters_values, counted
from monosem.app.rendering import palette_css, render, report_css
from monosem.app.security import REPORT_POLICY
from monosem.app.study import Run, Study
from monosem.app.table import PAGE_ROWS, SHOW, Query, Table, features_table
from monosem.app.tokens import window_html
from monosem.types import UserError

ASSETS = Path(__file__).parent / "assets"


def feature_routes(study: Study) -> list[BaseRoute]:
    """Return the routes of all pages but search and rating."""

    def home(_request: Request) -> Response:
        return HTMLResponse(render("home.html.j2", study, Links(), clusters=counted(study)))

    def run(request: Request) -> Response:
        one = run_of(study, request)
        return page(request, "run.html.j2", "table.html.j2", study, one, run_values(study, one, request))

    def feature(request: Request) -> Response:
        one, number = feature_of(study, request)
        values = feature_values(study, one, number, _query(study, one, request))
        return HTMLResponse(render("feature.html.j2", study, _links(study, one, request), **values))

    def near(request: Request) -> Response:
        one, number = feature_of(study, request)
        values = {"run": one, "feature": number, "near": neighbours(study, one, [number])[0]}
        return page(request, "near_page.html.j2", "near.html.j2", study, one, values)

    def document(request: Request) -> Response:
        one, number = feature_of(study, request)
        values = document_values(study, one, number, request.path_params["doc"], request.query_params.get("pos", ""))
        return page(request, "document_page.html.j2", "document.html.j2", study, one, values)

    def report(_request: Request) -> Response:
        return _file(study.folder / "report.html", {"content-security-policy": REPORT_POLICY})

    return [
        Route("/", home),
        Route("/run/{run}", run),
        Route("/run/{run}/feature/{feature:number}", feature),
        Route("/run/{run}/feature/{feature:number}/near", near),
        Route("/run/{run}/feature/{feature:number}/document/{doc:number}", document),
        Route("/report.html", report),
        Route("/summary.json", lambda _request: _file(study.folder / "summary.json", {})),
        Route("/assets/report.css", lambda _request: Response(report_css(), media_type="text/css")),
        Route("/assets/palette.css", lambda _request: Response(palette_css(), media_type="text/css")),
        Mount("/assets", StaticFiles(directory=ASSETS)),
    ]


def plane_routes(study: Study) -> list[BaseRoute]:
    """Return the routes of a run's multi-dimensional features."""

    def clusters(request: Request) -> Response:
        one = run_of(study, request)
        values = clusters_values(study, one, request.query_params)
        return page(request, "planes.html.j2", "clusters.html.j2", study, one, values)

    def cluster(request: Request) -> Response:
        one = run_of(study, request)
        values = cluster_values(study, one, request.path_params["cluster"], request.query_params)
        return page(request, "cluster.html.j2", "points.html.j2", study, one, values)

    return [Route("/run/{run}/planes", clusters), Route("/run/{run}/planes/{cluster:number}", cluster)]


def error_handlers(study: Study) -> dict[Any, Callable[[Request, Exception], Response]]:
    """Return what answers when something is not there: a page that says so in words."""

    def missing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _error_page(study, request, error.status_code, error.detail)

    def unusable(request: Request, error: Exception) -> Response:
        return _error_page(study, request, 404 if request.method == "GET" else 400, str(error))

    return {HTTPException: missing, UserError: unusable}


def _error_page(study: Study, request: Request, status: int, detail: str) -> Response:
    if request.url.path.startswith("/rate"):  # nothing about the study may show there
        return Response(f"{status}: {detail}\n", status, media_type="text/plain")
    return HTMLResponse(render("error.html.j2", study, Links(), status=status, detail=detail), status)


def _file(path: Path, headers: dict[str, str]) -> Response:
    if not path.is_file():
        raise HTTPException(404, f"There is no {path.name} yet; run `monosem report` on this study.")
    return FileResponse(path, headers=headers)


def run_of(study: Study, request: Request) -> Run:
    """Return the run that the address names. Raises HTTPException 404 for an unknown one."""
    found = study.runs().get(request.path_params["run"])
    if found is None:
        raise HTTPException(404, "This study has no run of that name.")
    return found


def feature_of(study: Study, request: Request) -> tuple[Run, int]:
    """Return the run and feature that the address names. Raises HTTPException 404 for unknown ones."""
    run, number = run_of(study, request), request.path_params["feature"]
    if number >= run.d_sae:
        raise HTTPException(404, f"{run.name} has the features 0 to {run.d_sae - 1}.")
    return run, number


def _query(study: Study, run: Run, request: Request) -> Query:
    return features_table(study, run).meant(Query.of(request.query_params))


def _links(study: Study, run: Run, request: Request) -> Links:
    return Links(query=_query(study, run, request).text())


def page(request: Request, whole: str, fragment: str, study: Study, run: Run, values: dict[str, Any]) -> Response:
    """Return the fragment alone when htmx asks for it, else the whole page with it inside."""
    wanted = request.headers.get("hx-request") == "true" and "hx-history-restore-request" not in request.headers
    text = render(fragment if wanted else whole, study, _links(study, run, request), **values)
    return HTMLResponse(text, headers={"vary": "HX-Request", "cache-control": "no-store"})


def run_values(study: Study, run: Run, request: Request) -> dict[str, Any]:
    """Return what the page of a run shows."""
    values = table_values(study, run, features_table(study, run), _query(study, run, request))
    return {**values, "clusters": best_planes(study, run.name) is not None}


def table_values(study: Study, run: Run, table: Table, query: Query, rows: int = PAGE_ROWS) -> dict[str, Any]:
    """Return what a page of the table shows: its rows, with the tokens on which each feature is strongest."""
    chosen = table.chosen(query)
    pages = max(1, -(-len(chosen) // rows))
    number = min(query.page, pages)
    here = chosen[(number - 1) * rows : number * rows]
    frame = table.rows(here)
    try:
        study.firings(run.name)
        notice = ""
    except UserError as error:
        notice = str(error)
    return {
        "run": run,
        "notice": notice,
        "query": query,
        "columns": table.columns,
        "rows": [(row, words_of(study, run.name, row["feature"])) for row in frame.iter_rows(named=True)],
        "found": len(chosen),
        "pages": pages,
        "page": number,
        "first": (number - 1) * rows + 1,
        "show": SHOW,
        "numbered": run.d_sae,
    }


def feature_values(study: Study, run: Run, number: int, query: Query) -> dict[str, Any]:
    """Return what the page of a feature shows, and the features before and after it in the table's order."""
    before, after, place, count = features_table(study, run).around(query, number)
    return {
        "run": run,
        "view": feature_view(study, run, number),
        "cluster": cluster_of(study, run.name, number),
        "before": before,
        "after": after,
        "place": place,
        "count": count,
        "near": None,
    }


def document_values(study: Study, run: Run, feature: int, doc: int, pos: str) -> dict[str, Any]:
    """Return a document with a feature's activations. Raises UserError for an unknown document."""
    fires = study.firings(run.name).of(feature)
    stretches = study.passages().document(doc)
    peak = float(fires.value.max()) if len(fires.value) else 0.0
    at = int(pos) if pos.isascii() and pos.isdigit() and len(pos) < 10 else -1
    lines = []
    for window in stretches:
        middle = (window.pos == at).argmax() if at in window.pos else -1
        lines.append(window_html(window, fires, peak, int(middle)))
    return {"run": run, "feature": feature, "doc": doc, "pos": at, "stretches": lines}
