"""Features as files: pages that open without a server, and JSON in Neuronpedia's layout."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from monosem.app.export import export
from monosem.app.study import Study
from monosem.types import UserError

from .study import D_SAE, DEAD, DENSE

KEYS = {
    "modelId", "layer", "index", "sourceSetName", "hookName", "maxActApprox", "frac_nonzero", "pos_str", "pos_values",
    "neg_str", "neg_values", "freq_hist_data_bar_heights", "freq_hist_data_bar_values", "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values", "explanations", "activations",
}  # fmt: skip


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


def test_neuronpedia_lines_hold_every_field(folder: Path, tmp_path: Path) -> None:
    path = export(folder, tmp_path, runs="topk*", features=0, format="neuronpedia")
    features = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [f["index"] for f in features] == [str(i) for i in range(D_SAE)]
    assert all(set(f) == KEYS for f in features)
    one, firings = features[DENSE], Study(folder).firings("topk-k4")
    fires = firings.of(DENSE)
    assert one["maxActApprox"] == pytest.approx(fires.value.max(), rel=1e-3)
    assert one["frac_nonzero"] == pytest.approx(len(fires.value) / firings.tokens)
    assert sum(one["freq_hist_data_bar_heights"]) == len(fires.value)
    assert len(one["freq_hist_data_bar_heights"]) == len(one["freq_hist_data_bar_values"])
    assert one["pos_values"] == sorted(one["pos_values"], reverse=True)
    assert one["neg_values"] == sorted(one["neg_values"])
    for text in one["activations"]:
        assert len(text["tokens"]) == len(text["values"])
        assert text["values"][text["maxValueTokenIndex"]] == text["maxValue"] == max(text["values"])
        assert text["binMin"] * 0.999 <= text["values"][text["qualifyingTokenIndex"]] or text["binContains"] == -1
        assert text["values"][text["qualifyingTokenIndex"]] <= text["binMax"] * 1.001
    assert features[1]["explanations"] == [
        {
            "description": "Names of months, topk-k4",
            "typeName": "autointerp",
            "explanationModelName": "tiny@http://127.0.0.1:8080/v1",
            "scores": [
                {"explanationScoreTypeName": "pearson", "value": 0.5},
                {"explanationScoreTypeName": "detection", "value": 0.875},
            ],
        }
    ]
    assert one["explanations"] == features[2]["explanations"] == []
    assert features[DEAD]["activations"] == []
    assert features[DEAD]["maxActApprox"] == 0


def test_features_are_spread_evenly_over_those_that_fire(folder: Path, tmp_path: Path) -> None:
    path = export(folder, tmp_path, runs="topk*", features=5, format="neuronpedia")
    picked = [int(json.loads(line)["index"]) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(picked) == 5
    assert DEAD not in picked
    assert (np.diff(picked) > 8).all()


def test_bad_wishes_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="known are html, neuronpedia"):
        export(folder, tmp_path, format="pdf")
    with pytest.raises(UserError, match="runs are topk-k4, gated-l1_2"):
        export(folder, tmp_path, runs="x*")
