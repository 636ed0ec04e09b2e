"""Draws cost a token against width from result files: `python benchmarks/figure.py OUT [FILE ...]`, OUT .svg or .png.

Both axes are logarithmic. The files default to benchmarks/results/topk-*-1.json and growth.json. Needs playwright and
any Chromium, as `python -m monosem.report.screenshot` does.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from command import exit_code
from table import RESULTS, read_results

from monosem.store import write_bytes
from monosem.types import UserError

WIDTH, HEIGHT = 900, 560
INK, GRID = "#24292f", "#e3e6ea"
# name -> label, colour, marker, width of the line, dash
LOOKS = {
    "sae-lens": ("sae-lens", "#b3263b", "circle", 2, "solid"),
    "dictionary-learning": ("dictionary-learning", "#c2500a", "diamond", 2, "solid"),
    "sae-lens-sparse": ("sae-lens, sparse path", "#a43c86", "cross", 2, "solid"),
    "eai-sparsify": ("eai-sparsify", "#00835e", "triangle-up", 2, "solid"),
    "monosem": ("monosem", "#0a66b0", "square", 4, "solid"),
    "encoder-product": ("one encoder product in float32", "#4a525c", "", 2, "dash"),
}


def lines(results: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Return for each library its CPU microseconds a token at each width; later results replace earlier ones."""
    found: dict[str, dict[int, float]] = {}
    for result in results:
        for row in result["rows"]:
            found.setdefault(row["library"], {})[row["d_sae"]] = 1e6 / row["tokens_per_cpu_second"]
    return {name: dict(sorted(found[name].items())) for name in LOOKS if name in found}


def chart(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the chart as plotly's JSON."""
    costs = lines(results)
    data = []
    for name, points in costs.items():
        label, colour, symbol, width, dash = LOOKS[name]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if symbol else "lines",
                "name": label,
                "x": list(points),
                "y": list(points.values()),
                "line": {"color": colour, "width": width, "dash": dash},
                "marker": {"color": colour, "symbol": symbol or "circle", "size": 9},
            }
        )
    settings, rows = results[0]["settings"], results[0]["rows"]
    setting = f"{rows[0]['variant']}, d_in {settings['d_in']}, batch {settings['batch']:,}, k {settings['k']}"
    threads = "one thread" if rows[0]["threads"] == 1 else f"{rows[0]['threads']} threads"
    axis = {"type": "log", "gridcolor": GRID, "linecolor": INK, "ticks": "outside", "showline": True}
    widths = [2**power for power in range(12, 18)]
    layout = {
        "title": {"text": f"Cost of a training step<br><sub>{setting}, {threads}; lower is better</sub>", "x": 0.06},
        "font": {"family": "Helvetica, Arial, sans-serif", "size": 15, "color": INK},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "xaxis": {
            **axis,
            "title": {"text": "features (d_sae)", "standoff": 12},
            "tickvals": widths,
            "ticktext": [f"{width:,}" for width in widths],
        },
        "yaxis": {
            **axis,
            "title": {"text": "CPU time a token [µs]", "standoff": 14},
            "dtick": "D2",
            "tickformat": ",~r",
        },
        "legend": {"x": 0.02, "y": 0.98, "bgcolor": "rgba(0,0,0,0)"},
        "margin": {"l": 105, "r": 25, "t": 80, "b": 75},
        "width": WIDTH,
        "height": HEIGHT,
    }
    return {"data": data, "layout": layout}


def draw(figure: dict[str, Any], kind: str) -> bytes:
    """Return the chart as an image of `kind` svg or png. Raises UserError without playwright or a Chromium."""
    from plotly.offline import get_plotlyjs

    from monosem.report.screenshot import chromium

    with chromium() as browser:
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_content("<div id=chart></div>")
        page.add_script_tag(content=get_plotlyjs())
        options = {"format": kind, "width": WIDTH, "height": HEIGHT, "scale": 1 if kind == "svg" else 2}
        url = page.evaluate(
            "async ([figure, options]) => { const chart = document.getElementById('chart');"
            " await Plotly.newPlot(chart, figure.data, figure.layout, {staticPlot: true});"
            " return await Plotly.toImage(chart, options); }",
            [json.loads(json.dumps(figure)), options],
        )
    head, _, body = url.partition(",")
    return base64.b64decode(body) if "base64" in head else unquote(body).encode()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python benchmarks/figure.py", description="Draw cost against width.")
    parser.add_argument("target", type=Path, metavar="OUT")
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE")
    options = parser.parse_args(arguments)
    return exit_code(lambda: write_figure(options.target, options.files))


def write_figure(target: Path, files: list[Path]) -> None:
    """Draw `files` (default: TopK on one thread) to `target`. Raises UserError."""
    kind = target.suffix.removeprefix(".")
    if kind not in ("svg", "png"):
        raise UserError(f"{target}: must end in .svg or .png")
    growth = RESULTS / "growth.json"
    files = files or [*sorted(RESULTS.glob("topk-*-1.json")), *([growth] if growth.exists() else [])]
    files = [path for path in files if not path.name.startswith("topk-auxk")]
    if not files:
        raise UserError(f"{RESULTS}: no result files; run `make bench` first")
    write_bytes(target, draw(chart(read_results(files)), kind))


if __name__ == "__main__":
    sys.exit(main())
