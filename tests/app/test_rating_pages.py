"""The rating pages without a browser: what they load, what they store, what they refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from monosem.app.rating import ASSET_NAMES, rating_routes
from monosem.rating.draw import draw
from monosem.rating.store import Files, append, freeze, latest, read_records
from monosem.variants import variant_names

from ..rating.study import RUNS, make_study, packet_of, rating, revealed

SCORES = {"consistency": 4, "complexity": 2, "cannot_tell": False, "note": "", "guess": None}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_study(tmp_path_factory.mktemp("study"))
    draw(folder, features=6, sampling="stratified")
    return folder


@pytest.fixture
def study(drawn: Path) -> Iterator[Path]:
    yield drawn
    for path in (Files(drawn).ratings, Files(drawn).frozen):
        path.unlink(missing_ok=True)


@pytest.fixture
def client(study: Path) -> TestClient:
    return TestClient(Starlette(routes=[Mount("/rate", routes=rating_routes(study))]), raise_server_exceptions=False)


def payload(client: TestClient, index: int, rater: str = "Ann", **values: Any) -> dict[str, Any]:
    session = client.get("/rate/session", params={"rater": rater}).json()
    item = client.get(f"/rate/item/{index}").json()
    times = {"t_open": "2025-01-01T00:00:00.000Z", "t_submit": "2025-01-01T00:00:09.000Z"}
    who = {"submission": f"{rater}-{index}", "study_id": session["study"], "item_id": item["id"], "rater_id": rater}
    guess = session["families"][0] if item["guess"] else None
    return {**who, **times, **SCORES, "guess": guess, "ui_version": 1, "view_hash": item["view"], **values}


def test_a_rating_is_stored_with_every_field_and_comes_back(client: TestClient, study: Path) -> None:
    sent = payload(client, 7, rater=" Ann  Lee ", note="ein Käfer <b>", cannot_tell=False)
    answered = client.post("/rate/submit", json=sent)
    assert (answered.status_code, answered.json()) == (200, {"stored": True})
    (record,), damaged = read_records(Files(study).ratings)
    assert damaged == 0
    assert set(record) == {
        *("event", "submission", "study_id", "item_id", "rater_id", "order_index", "t_open", "t_submit", "t_stored"),
        *("consistency", "complexity", "cannot_tell", "note", "guess", "ui_version", "view_hash"),
    }
    assert (record["rater_id"], record["order_index"], record["note"]) == ("Ann Lee", 7, "ein Käfer <b>")
    session = client.get("/rate/session", params={"rater": "Ann Lee"}).json()
    assert session["answers"] == {sent["item_id"]: {**SCORES, "note": "ein Käfer <b>", "guess": sent["guess"]}}
    assert client.get("/rate/session", params={"rater": "Bob"}).json()["answers"] == {}
    again = client.post("/rate/submit", json=sent)
    assert again.status_code == 200
    assert len(read_records(Files(study).ratings)[0]) == 1


def test_a_submission_with_other_content_is_refused(client: TestClient, study: Path) -> None:
    assert client.post("/rate/submit", json=payload(client, 6)).status_code == 200
    answered = client.post("/rate/submit", json=payload(client, 6, complexity=5))
    assert answered.status_code == 409
    assert "submit it anew" in answered.json()["reason"]
    assert [r["complexity"] for r in read_records(Files(study).ratings)[0]] == [2]


def test_a_name_is_the_same_however_it_is_typed(client: TestClient, study: Path) -> None:
    assert client.post("/rate/submit", json=payload(client, 6, rater="Rene\u0301")).status_code == 200
    for name in ("Ren\u00e9", "Rene\u0301"):
        assert len(client.get("/rate/session", params={"rater": name}).json()["answers"]) == 1


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"study_id": "x", "training": [], "items": []}'])
def test_damaged_files_are_answered_cleanly(client: TestClient, tmp_path: Path, content: str) -> None:
    files = Files(tmp_path)
    files.folder.mkdir()
    files.packet.write_text(content)
    mine = TestClient(Starlette(routes=[Mount("/rate", routes=rating_routes(tmp_path))]), raise_server_exceptions=False)
    assert "Nothing to rate yet" in mine.get("/rate/").text
    for path in ("/rate/session?rater=a", "/rate/item/0"):
        assert mine.get(path).status_code == 404
    assert mine.post("/rate/submit", json=payload(client, 6)).status_code == 404


def test_damaged_lines_don_t_stop_the_raters(client: TestClient, study: Path) -> None:
    assert client.post("/rate/submit", json=payload(client, 6)).status_code == 200
    with open(Files(study).ratings, "a") as file:
        file.write('{"event": "rating", "submission": "s", "rater_id": ["Ann"], "item_id": "x"}\n{}\n')
    assert len(client.get("/rate/session", params={"rater": "Ann"}).json()["answers"]) == 1
    assert client.post("/rate/submit", json=payload(client, 7)).status_code == 200


def test_a_rating_of_items_that_are_drawn_anew_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_study(tmp_path / "other")
    mine = TestClient(Starlette(routes=[Mount("/rate", routes=rating_routes(folder))]), raise_server_exceptions=False)
    draw(folder, features=5)
    sent = payload(mine, 6)
    real = Files.locked

    def late(files: Files) -> Any:
        monkeypatch.setattr(Files, "locked", real)
        draw(folder, features=5, force=True)
        return real(files)

    monkeypatch.setattr(Files, "locked", late)
    assert mine.post("/rate/submit", json=sent).status_code == 409
    assert not Files(folder).ratings.exists()


def test_cannot_tell_has_no_scores_and_back_is_logged(client: TestClient, study: Path) -> None:
    index = next(i for i in range(5, 25) if not client.get(f"/rate/item/{i}").json()["guess"])
    sent = payload(client, index, cannot_tell=True, consistency=None, complexity=None)
    assert client.post("/rate/submit", json=sent).status_code == 200
    assert client.post("/rate/back", json={**sent, "submission": "back"}).status_code == 200
    records, _ = read_records(Files(study).ratings)
    assert [r["event"] for r in records] == ["rating", "back"]
    assert (records[0]["consistency"], records[0]["cannot_tell"]) == (None, True)
    assert "consistency" not in records[1]
    assert len(latest(records)) == 1


@pytest.mark.parametrize(
    ("wrong", "status", "reason"),
    [
        ({"consistency": None}, 400, "Activation Consistency needs a score from 1 to 5."),
        ({"complexity": 6}, 400, "Complexity needs a score"),
        ({"complexity": True}, 400, "Complexity needs a score"),
        ({"complexity": 2.5}, 400, "Complexity needs a score"),
        ({"item_id": "x"}, 400, "There is no such item."),
        ({"study_id": "other"}, 409, "The items were drawn anew"),
        ({"view_hash": "0"}, 409, "The item has changed"),
        ({"rater_id": "  "}, 400, "A name needs"),
        ({"rater_id": "a\u0007"}, 400, "A name needs"),
        ({"rater_id": "a" * 61}, 400, "`rater_id` must be text of at most 60"),
        ({"note": "n" * 2001}, 400, "`note` must be text of at most 2000"),
        ({"submission": 5}, 400, "`submission` must be text"),
        ({"submission": "\ud800"}, 400, "`submission` has half a character"),
        ({"note": "a \udc00"}, 400, "`note` has half a character in it"),
        ({"t_submit": "\ud800"}, 400, "`t_submit` has half a character"),
    ],
)
def test_what_is_wrong_is_refused_in_words(
    client: TestClient, study: Path, wrong: dict[str, Any], status: int, reason: str
) -> None:
    sent = json.dumps({**payload(client, 6), **wrong})
    answered = client.post("/rate/submit", content=sent, headers={"content-type": "application/json"})
    assert answered.status_code == status
    assert reason in answered.json()["reason"]
    assert not Files(study).ratings.exists()


def test_a_guess_is_wanted_only_where_it_is_asked_for(client: TestClient, study: Path) -> None:
    asked = [client.get(f"/rate/item/{i}").json()["guess"] for i in range(25)]
    assert asked[:5] == [False] * 5  # practice
    assert sum(asked) == 4
    index = asked.index(True)
    assert client.post("/rate/submit", json=payload(client, index, guess=None)).json() == {
        "reason": "This item needs a guess."
    }
    assert client.post("/rate/submit", json=payload(client, index, guess="gated")).status_code == 200
    assert client.post("/rate/submit", json=payload(client, asked.index(False), guess="gated")).status_code == 200
    assert [r["guess"] for r in read_records(Files(study).ratings)[0]] == ["gated", None]


def test_other_bodies_are_refused(client: TestClient) -> None:
    assert client.post("/rate/submit", data={"consistency": "3"}).status_code == 415
    headers = {"content-type": "application/json"}
    assert client.post("/rate/submit", content=b"{", headers=headers).status_code == 400
    assert client.post("/rate/submit", content=b"[1]", headers=headers).status_code == 400
    assert client.post("/rate/submit", content=b"[" * 60_000, headers=headers).status_code == 400
    assert client.post("/rate/submit", content=b" " * 70_000, headers=headers).status_code == 413
    assert client.get("/rate/submit").status_code == 405


def test_frozen_ratings_refuse_more(client: TestClient, study: Path) -> None:
    assert client.post("/rate/submit", json=payload(client, 6)).status_code == 200
    freeze(Files(study))
    answered = client.post("/rate/submit", json=payload(client, 8))
    assert answered.status_code == 409
    assert "frozen" in answered.json()["reason"]
    assert client.get("/rate/session", params={"rater": "Ann"}).json()["frozen"] is True
    assert len(read_records(Files(study).ratings)[0]) == 1


def test_a_full_disk_is_said_and_may_be_tried_again(
    client: TestClient, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("monosem.app.rating.add", full)
    answered = client.post("/rate/submit", json=payload(client, 6))
    assert answered.status_code == 503
    assert "No space left" in answered.json()["reason"]


def test_only_the_named_assets_are_served(client: TestClient) -> None:
    for name in ASSET_NAMES:
        assert client.get(f"/rate/assets/{name}").status_code == 200
    for path in ("/rate/assets/app.css", "/rate/assets/..%2frating.py", "/rate/assets/../../ratings/key.json"):
        assert client.get(path).status_code == 404
    assert client.get("/rate/item/25").status_code == 404
    assert client.get("/rate/item/-1").status_code == 404
    assert client.get("/rate/key.json").status_code == 404


def test_without_a_draw_the_page_says_so(tmp_path: Path) -> None:
    client = TestClient(Starlette(routes=[Mount("/rate", routes=rating_routes(tmp_path))]))
    page = client.get("/rate/")
    assert page.status_code == 200
    assert "Nothing to rate yet" in page.text
    assert client.get("/rate/session", params={"rater": "a"}).status_code == 404


def test_a_new_draw_is_noticed_without_a_restart(client: TestClient, tmp_path: Path) -> None:
    folder = make_study(tmp_path / "other")
    mine = TestClient(Starlette(routes=[Mount("/rate", routes=rating_routes(folder))]))
    assert mine.get("/rate/item/0").status_code == 404
    draw(folder, features=5)
    before = payload(mine, 6)
    draw(folder, features=5, force=True)
    assert mine.post("/rate/submit", json=before).status_code == 409
    assert mine.post("/rate/submit", json=payload(mine, 6)).status_code == 200


def test_nothing_that_the_pages_load_names_what_is_hidden(client: TestClient, study: Path) -> None:
    """Every response but the fixed list of families, with its headers and address, against every hidden text."""
    paths = ["/rate/", "/rate/session?rater=Ann", *(f"/rate/assets/{name}" for name in ASSET_NAMES)]
    paths += [f"/rate/item/{i}" for i in range(25)]
    answers = [client.get(path) for path in paths]
    answers += [client.post("/rate/submit", json=payload(client, i)) for i in range(25)]
    answers += [client.post("/rate/submit", json={}), client.get("/rate/nothing")]
    append(Files(study), rating(packet_of(study), packet_of(study)["items"][0]["id"], "Ann"))
    answers.append(client.get("/rate/session?rater=Ann"))
    everything = []
    for answer in answers:
        text = answer.text
        if "/rate/session" in str(answer.url):
            session = answer.json()
            assert session.pop("families") == variant_names()  # the same for every item, and every study
            for one in session["answers"].values():
                one.pop("guess")
            text = json.dumps(session)
        everything.append(f"{answer.url}\n{dict(answer.headers)}\n{text}")
    found = revealed("\n".join(everything), study)
    assert found == []
    low = "\n".join(everything).lower()
    assert not [word for word in (*RUNS, *RUNS.values(), "density", "feature_index", "latent", "peak") if word in low]


def test_text_is_data_not_markup(client: TestClient) -> None:
    script = client.get("/rate/assets/rate.js").text
    assert "innerHTML" not in script
    assert "insertAdjacentHTML" not in script
    page = client.get("/rate/").text
    assert "<script>" not in page
    assert 'style="' not in page
