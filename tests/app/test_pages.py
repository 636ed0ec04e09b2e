"""The browser's pages over plain HTTP: the table, a feature, its neighbours, documents, search, errors."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from monosem.app.drawing import BINS, histogram, histogram_svg
from monosem.app.feature import words_of
from monosem.app.neighbours import decoder_rows, nearest
from monosem.app.study import Study
from monosem.app.table import Query, features_table
from monosem.app.tokens import level, strongest_tokens, token_html, visible
from monosem.firings import Fires, Firings
from monosem.types import UserError

from .study import D_SAE, DEAD, DENSE, client


def rows(text: str) -> list[int]:
    return [int(n) for n in re.findall(r'class="row-link name"[^>]*>(\d+)<', text)]


def test_home_names_runs_numbers_and_the_verdict(folder: Path) -> None:
    text = client(folder).get("/").text
    for expected in ("topk-k4", "gated-l1_2", "topk reconstructs best.", "0.25", 'href="/report.html"'):
        assert expected in text


def test_a_folder_without_results_still_opens(tmp_path: Path) -> None:
    assert "No SAE is trained yet" in client(tmp_path).get("/").text
    assert client(tmp_path).get("/report.html").status_code == 404
    (tmp_path / "summary.json").write_text("{", encoding="utf-8")
    assert client(tmp_path).get("/").status_code == 200


def test_missing_codes_are_named_and_the_rest_is_shown(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "codes")
    assert len(rows(client(copy).get("/run/topk-k4").text)) == 50
    feature = client(copy).get("/run/topk-k4/feature/1")
    assert feature.status_code == 200
    assert "monosem measure" in feature.text
    shutil.rmtree(copy / "results")
    assert client(copy).get("/run/topk-k4").status_code == 200


def test_a_changed_file_is_read_again(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    app = client(copy)
    assert "never fires" in app.get("/run/topk-k4").text
    path = copy / "results" / "topk-k4" / "density" / "rows.parquet"
    pl.read_parquet(path).with_columns(count=pl.lit(5)).write_parquet(path)
    assert "never fires" not in app.get("/run/topk-k4").text


def test_the_table_has_every_score_and_marks_dead_features(folder: Path) -> None:
    text = client(folder).get("/run/topk-k4").text
    for label in ("Density", "Mean", "Max", "pearson", "verdict", "checked"):
        assert label in text
    assert "top_logits" not in text
    assert rows(text) == list(range(50))
    dead = re.search(r'<tr class="dead">.*?</tr>', text, re.DOTALL)
    assert dead
    assert f">{DEAD}<" in dead[0]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("show=dead", [DEAD]),
        ("min.scored.pearson=0.5", [DENSE]),
        ("max.scored.pearson=0.5", [1]),
        ("is.scored.verdict=odd", [1]),
        ("is.scored.checked=no", [DENSE]),
        ("min.feature=10&max.feature=12&order=desc", [12, 11, 10]),
        ("min.density=0.4", [DENSE]),
        ("min.density=nan&min.nothing=3&page=99&sort=nothing&max.feature=2", [0, 1, 2]),
        ("min.feature=55&page=99", [55, 56, 57, 58, 59]),
        ("min.density=2", []),
    ],
)
def test_filters_and_nonsense(folder: Path, query: str, expected: list[int]) -> None:
    assert rows(client(folder).get(f"/run/topk-k4?{query}").text) == expected


def test_sorting_puts_missing_values_last_in_both_directions(folder: Path) -> None:
    table = features_table(Study(folder), Study(folder).runs()["topk-k4"])
    for descending in (False, True):
        order = table.chosen(Query(sort="scored.pearson", descending=descending)).tolist()
        assert order[:2] == ([DENSE, 1] if descending else [1, DENSE])
        assert len(order) == D_SAE
    peaks = dict(zip(table.frame["feature"], table.frame["peak"], strict=True))
    order = table.chosen(Query(sort="peak", descending=True)).tolist()
    assert [peaks[i] for i in order] == sorted(peaks.values(), reverse=True)


def test_pages_follow_each_other_and_htmx_gets_the_table_alone(folder: Path) -> None:
    app = client(folder)
    second = app.get("/run/topk-k4?page=2", headers={"hx-request": "true"})
    assert rows(second.text) == list(range(50, 60))
    assert "<html" not in second.text
    assert "HX-Request" in second.headers["vary"]
    assert "<html" in app.get("/run/topk-k4", headers={"hx-request": "true", "hx-history-restore-request": "true"}).text


def test_a_feature_shows_contexts_intervals_density_and_logits(folder: Path) -> None:
    text = client(folder).get(f"/run/topk-k4/feature/{DENSE}").text
    study = Study(folder)
    fires = study.firings("topk-k4").of(DENSE)
    n = study.firings("topk-k4").tokens
    assert f"of {n}" in text.replace("\u2009", "")
    assert text.count('class="passage"') > 20
    assert "92 to 100" in text
    assert text.count("of firings") == 12
    shares = [float(s.replace("\u2009", "")) for s in re.findall(r"([\d.\u2009]+)\u2009% of firings", text)]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert '<svg class="histogram"' in text
    assert "Raised" in text
    assert f"{float(f'{fires.value.max():.3g}'):g}" in text
    assert 'class="a20 here"' in text


def test_tokens_are_shaded_by_their_share_of_the_largest(folder: Path) -> None:
    assert [level(v, 2.0) for v in (0.0, 1e-6, 0.1, 0.11, 1.0, 2.0, 3.0)] == [0, 1, 1, 2, 10, 20, 20]
    assert token_html(" a&b", 1.0, 2.0, True) == '<span class="a10 here" data-tip="1"> a&amp;b</span>'
    assert token_html("x", 0.0, 2.0) == "<span>x</span>"
    assert visible("a\n\x00\ufffd\u200b日") == "a↵·\ufffd·日"


@pytest.mark.parametrize("firings", [1, 3, 19, 900])
def test_words_are_those_of_the_strongest_firings(folder: Path, monkeypatch: pytest.MonkeyPatch, firings: int) -> None:
    passages = Study(folder).passages()
    doc, pos = (column[:firings] for column in passages.measured_positions())
    value = np.random.default_rng(firings).integers(1, 60, len(doc)).astype(np.float32)
    expected: dict[str, None] = {}
    for i in np.argsort(-value, kind="stable")[:20]:
        expected[visible(passages.window(int(doc[i]), int(pos[i]), 0, 0).text[0])] = None
    for stretches in (4096, 100, 20):
        monkeypatch.setattr("monosem.app.tokens.STRETCHES", stretches)
        assert strongest_tokens(Fires(doc, pos, value), passages) == list(expected)[:4]
    assert strongest_tokens(Fires(doc[:0], pos[:0], value[:0]), passages) == []


def test_words_of_a_feature_are_read_once_until_its_codes_change(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    study = Study(copy)
    read: list[int] = []
    of = Firings.of
    monkeypatch.setattr(Firings, "of", lambda self, feature: (read.append(feature), of(self, feature))[1])
    assert words_of(study, "topk-k4", 1) == words_of(study, "topk-k4", 1) == [" word1"]
    assert words_of(study, "topk-k4", DEAD) == []
    assert read == [1, DEAD]
    os.utime(copy / "codes" / "topk-k4" / "meta.json", ns=(1, 1))
    assert words_of(study, "topk-k4", 1) == [" word1"]
    assert read == [1, DEAD, 1]


def test_a_dead_feature_says_so_and_keeps_its_logits(folder: Path) -> None:
    text = client(folder).get(f"/run/topk-k4/feature/{DEAD}").text
    assert "never fires on the" in text
    assert "Strongest contexts" not in text
    assert "Raised" in text


def test_before_and_after_follow_the_order_that_was_asked_for(folder: Path) -> None:
    app = client(folder)
    query = "min.feature=10&max.feature=12&order=desc"
    text = app.get(f"/run/topk-k4/feature/11?{query}").text
    link = r'href="([^"]+)" data-key="{}"'
    previous, after = (re.search(link.format(key), text) for key in ("previous", "next"))
    assert previous
    assert after
    assert previous[1].startswith("/run/topk-k4/feature/12?")
    assert after[1].startswith("/run/topk-k4/feature/10?")
    assert "min.feature=10" in after[1]
    assert "2 of 3 in this order" in text
    edge = app.get("/run/topk-k4/feature/0").text
    assert 'data-key="previous"' not in edge
    assert 'href="/run/topk-k4/feature/1"' in edge


def test_nearest_features_within_and_across_runs(folder: Path) -> None:
    rows = decoder_rows(folder, "topk-k4", [9, 20])
    own = nearest(folder, "topk-k4", rows, 3, leave_out=[9, 20])
    assert own[0][0].feature == 10
    assert own[0][0].cosine == pytest.approx(1, abs=1e-3)
    assert 20 not in [near.feature for near in own[1]]
    other = nearest(folder, "gated-l1_2", rows, 1)
    assert [near[0].feature for near in other] == [D_SAE - 1 - 9, D_SAE - 1 - 20]
    assert other[1][0].cosine == pytest.approx(1, abs=1e-6)
    assert nearest(folder, "topk-k4", rows[:, :4], 3) == [[], []]
    text = client(folder).get("/run/topk-k4/feature/9/near", headers={"hx-request": "true"}).text
    assert 'href="/run/topk-k4/feature/10"' in text
    assert f'href="/run/gated-l1_2/feature/{D_SAE - 10}"' in text
    with pytest.raises(UserError, match="can't be read"):
        decoder_rows(folder, "nothing", [1])


def test_a_whole_document_on_demand(folder: Path) -> None:
    answer = client(folder).get(f"/run/topk-k4/feature/{DENSE}/document/5?pos=3", headers={"hx-request": "true"})
    assert answer.text.count("<span") == 24
    assert len(re.findall(r'class="(?:a\d+ )?here"', answer.text)) == 1
    assert client(folder).get(f"/run/topk-k4/feature/{DENSE}/document/5?pos=x").status_code == 200


def test_search_shows_features_of_each_token_and_pooled(folder: Path) -> None:
    asked: list[tuple[str, str]] = []

    def search(run: str, text: str) -> list[tuple[str, list[tuple[int, float]]]]:
        asked.append((run, text))
        return [(" the", [(DENSE, 3.0), (5, 1.0)]), (" cat", [(5, 2.0)]), (" .", [])]

    app = client(folder, search)
    text = app.get("/search", params={"run": "gated-l1_2", "text": "the cat."}).text
    assert asked == [("gated-l1_2", "the cat.")]
    assert rows(text) == [DENSE, 5]
    assert 'href="/run/gated-l1_2/feature/5"' in text
    assert re.search(r"cat</span></td><td class=\"number\">2<", text)
    rare = app.get("/search", params={"run": "gated-l1_2", "text": "the cat.", "rare": "1"}).text
    assert rows(rare) == [5]
    assert app.get("/search", params={"text": "  "}).status_code == 200
    assert len(asked) == 2


def test_search_says_in_words_why_it_can_not(folder: Path) -> None:
    assert "started without" in client(folder).get("/search", params={"text": "a"}).text

    def broken(_run: str, _text: str) -> list[tuple[str, list[tuple[int, float]]]]:
        raise UserError("the text has 900 tokens; shorten it")

    answer = client(folder, broken).get("/search", params={"text": "a"})
    assert answer.status_code == 200
    assert "900 tokens" in answer.text


def test_the_histogram_counts_every_firing() -> None:
    values = np.array([1.2, 1.0, 0.55, 0.3, 0.05], dtype=np.float32)
    counts, edges = histogram(values, float(values.max()))
    assert counts.sum() == 5
    assert len(counts) == BINS
    assert edges[-1] == pytest.approx(1.2)
    svg = histogram_svg(values, float(values.max()))
    assert svg.count('class="column"') == 5
    assert "style=" not in svg
