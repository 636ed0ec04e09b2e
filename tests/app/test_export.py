"""Features as files: pages that open without a server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from monosem.app.export import export
from monosem.types import UserError

from .study import DEAD


def test_pages_link_only_to_files_that_are_there(folder: Path, tmp_path: Path) -> None:
    first = export(folder, tmp_path / "out", features=10)
    assert first == tmp_path / "out" / "index.html"
    pages = sorted((tmp_path / "out").rglob("*.html"))
    assert len(pages) == 1 + 2 * 11
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "<script>" not in text
        assert "hx-" not in text
        links = re.findall(r'(?:href|src)="([^"#]+)"', text)
        assert links
        for link in links:
            assert link == "data:," or (page.parent / link).is_file(), (page, link)


def test_pages_have_what_the_browser_shows_with_neighbours_inside(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path, runs="topk*", features=0)
    text = (tmp_path / "topk-k4" / "9.html").read_text(encoding="utf-8")
    assert 'href="../topk-k4/10.html"' in text
    assert "gated-l1_2" in text  # without a page, so without a link
    assert "../gated-l1_2" not in text
    assert "Strongest contexts" in text
    assert "&lt;script&gt;alert(2)&lt;/script&gt; a date" in text
    assert "Names of months" in (tmp_path / "topk-k4" / "index.html").read_text(encoding="utf-8")
    assert "never fires" in (tmp_path / "topk-k4" / f"{DEAD}.html").read_text(encoding="utf-8")
    assert not (tmp_path / "gated-l1_2").exists()


def test_bad_wishes_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="runs are topk-k4, gated-l1_2"):
        export(folder, tmp_path, runs="x*")
