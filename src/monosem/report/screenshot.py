"""Photographs a report: `python -m monosem.report.screenshot REPORT_HTML OUT_PNG [--width --height --dark --full]`.

Needs playwright (a development dependency) and any Chromium.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from monosem.types import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

BROWSER_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
NO_PLAYWRIGHT = "playwright is not installed; run `pip install playwright`"
NO_BROWSER = (
    "no Chromium found; run `apt install chromium` or `python -m playwright install chromium`, "
    "or name one with the environment variable MONOSEM_CHROMIUM"
)


def find_chromium() -> str | None:
    """Return the path of a Chromium: MONOSEM_CHROMIUM, one on the PATH, or None to let playwright try its own."""
    named = os.environ.get("MONOSEM_CHROMIUM")
    if named:
        return named
    return next((path for path in map(shutil.which, BROWSER_NAMES) if path), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yield a headless browser. Raises UserError, with the command to run, when there is none."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        raise UserError(NO_PLAYWRIGHT) from error
    with sync_playwright() as playwright:
        path = find_chromium()
        try:
            browser = playwright.chromium.launch(executable_path=path, headless=True, args=BROWSER_ARGUMENTS)
        except Error as error:
            first_line = str(error).strip().splitlines()[0]
            raise UserError(NO_BROWSER if path is None else f"{path}: {first_line}; {NO_BROWSER}") from error
        try:
            yield browser
        finally:
            browser.close()


def screenshot(
    report: Path, target: Path, width: int = 1280, height: int = 800, dark: bool = False, full: bool = False
) -> None:
    """Save a PNG of the first screen (or, with `full`, of the whole page) once every chart is drawn."""
    if not report.is_file():
        raise UserError(f"{report}: no such file; run monosem report STUDY_DIR first")
    with chromium() as browser:
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
        page.goto(report.resolve().as_uri())
        page.wait_for_selector("html[data-plots=ready]", timeout=60_000)
        page.screenshot(path=target, full_page=full)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m monosem.report.screenshot", description="Photograph a report.")
    parser.add_argument("report", type=Path, metavar="REPORT_HTML")
    parser.add_argument("target", type=Path, metavar="OUT_PNG")
    parser.add_argument("--width", type=int, default=1280, help="viewport width in pixels (1280)")
    parser.add_argument("--height", type=int, default=800, help="viewport height in pixels (800)")
    parser.add_argument("--dark", action="store_true", help="use the dark colour scheme")
    parser.add_argument("--full", action="store_true", help="the whole page, not the first screen only")
    options = parser.parse_args(arguments)
    try:
        screenshot(**vars(options))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
