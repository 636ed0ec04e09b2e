"""Explanations on the pages: beside the feature, in the table and its filter, found by words, and escaped."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import polars as pl
import pytest

from monosem.app.explanations import explanations_of, find
from monosem.app.study import Study
from monosem.app.table import Query, features_table

from .study import DENSE, EXPLAINED_ATTACK, client


def hits(text: str) -> list[tuple[str, int]]:
    return [(run, int(n)) for run, n in re.findall(r'row-link name" href="/run/([^/]+)/feature/(\d+)"', text)]


def rows(text: str) -> list[int]:
    return [n for _, n in hits(re.sub(r"\?[^\"]*", "", text))]


def test_a_feature_shows_its_explanation_with_author_and_scores(folder: Path) -> None:
    text = client(folder).get("/run/topk-k4/feature/1").text
    said = re.search(r'<p class="explanation">(.*?)</p>', text, re.DOTALL)
    assert said
    assert said[1].startswith("Names of months, topk-k4 ")
    assert "autointerp by tiny@http://127.0.0.1:8080/v1" in said[1]
    assert re.search(r'detection <span class="unit">autointerp</span></dt><dd>0.875</dd>', text)
    assert text.count("Names of months") == 1  # not among the numbers again
    assert 'class="explanation"' not in client(folder).get(f"/run/topk-k4/feature/{DENSE}").text
    assert "NaN" not in client(folder).get("/run/topk-k4/feature/11").text.split("<h1>")[1].split("<dl")[0]


def test_explanations_are_escaped_everywhere(folder: Path) -> None:
    app = client(folder)
    for path in ("/run/topk-k4/feature/9", "/run/topk-k4", "/search?about=date"):
        text = app.get(path).text
        assert "&lt;script&gt;alert(2)&lt;/script&gt; a date" in text
        assert EXPLAINED_ATTACK not in text
    answer = app.get("/search", params={"about": '"><b>x'})
    assert "<b>x" not in answer.text


def test_the_table_has_them_first_and_filters_by_words(folder: Path) -> None:
    study = Study(folder)
    table = features_table(study, study.runs()["topk-k4"])
    assert [column.name for column in table.columns[:3]] == ["feature", "autointerp.explanation", "count"]
    app = client(folder)
    for query, expected in [
        ("has.autointerp.explanation=MONTHS names", [1, 11]),
        ("has.autointerp.explanation=months, topk", [1]),
        ("has.autointerp.explanation=.*", []),
        ("has.autointerp.explanation=names&min.autointerp.pearson=0.6", [11]),
        ("has.autointerp.explanation=names&sort=autointerp.pearson&order=desc", [11, 1]),
    ]:
        assert rows(app.get(f"/run/topk-k4?{query}").text) == expected, query
    assert len(rows(app.get("/run/topk-k4?has.nothing=a&has.count=a&has.autointerp.explanation=+").text)) == 50
    assert len(rows(app.get("/run/topk-k4", params={"has.autointerp.explanation": " " * 300}).text)) == 50
    text = app.get("/run/topk-k4?has.autointerp.explanation=names").text
    assert 'name="has.autointerp.explanation" id="has-autointerp.explanation" value="names"' in text
    assert "has.autointerp.explanation=names" in Query.of({"has.autointerp.explanation": "names"}).text(page=2)


def test_words_are_found_within_a_run_and_in_all(folder: Path) -> None:
    app = client(folder)
    both = hits(app.get("/search?about=names of").text)
    assert both == [("topk-k4", 11), ("gated-l1_2", 11), ("topk-k4", 1), ("gated-l1_2", 1)]
    assert hits(app.get("/search?about=gated names").text) == [("gated-l1_2", 1)]
    assert hits(app.get("/search?about=names&within=topk-k4").text) == [("topk-k4", 11), ("topk-k4", 1)]
    assert len(hits(app.get("/search?about=names&within=nothing").text)) == 4
    assert "No explanation has all of these words" in app.get("/search?about=nothing").text
    assert "2 explanations with these words" in app.get("/search?about=date").text
    assert hits(app.get("/search?about=++").text) == []


def test_words_beside_each_other_come_first_then_the_score(folder: Path) -> None:
    study = Study(folder)
    runs = list(study.runs().values())[:1]
    assert [one.feature for one in find(study, runs, "names months")[0]] == [11, 1]
    assert [one.feature for one in find(study, runs, "Months,")[0]] == [1]
    assert [one.feature for one in find(study, runs, "names of months")[0]] == [1, 11]
    found, number = find(study, runs, "names", shown=1)
    assert (len(found), number) == (1, 2)
    assert find(study, runs, "") == ([], 0)


def test_without_explanations_the_search_says_how_to_get_them(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for run in ("topk-k4", "gated-l1_2"):
        shutil.rmtree(copy / "results" / run / "autointerp")
    assert "explanation" not in client(copy).get("/search").text
    assert "monosem eval autointerp" in client(copy).get("/search?about=x").text


@pytest.mark.parametrize("broken", ["rows", "settings", "kind"])
def test_damaged_files_cost_their_own_part_only(folder: Path, tmp_path: Path, broken: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    where = copy / "results" / "topk-k4" / "autointerp"
    if broken == "rows":
        (where / "rows.parquet").write_bytes(b"nothing")
    elif broken == "settings":
        (where / "result.json").write_text("[", encoding="utf-8")
    else:
        pl.DataFrame({"feature": [1], "explanation": [3.5]}).write_parquet(where / "rows.parquet")
    app = client(copy)
    assert app.get("/run/topk-k4/feature/1").status_code == 200
    assert app.get("/run/topk-k4").status_code == 200
    assert hits(app.get("/search?about=names").text)
    assert explanations_of(Study(copy), "topk-k4", 1) == []
    assert [one.author for one in explanations_of(Study(copy), "gated-l1_2", 1)] == ["tiny@http://127.0.0.1:8080/v1"]
