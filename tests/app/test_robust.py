"""Stale, altered and hostile files behind the pages and exports, and addresses that no page has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from starlette.testclient import TestClient

from monosem.app import make_app
from monosem.app.export import export
from monosem.app.study import Study
from monosem.app.table import features_table
from monosem.evals import make_evaluation
from monosem.exports import FEATURE_FORMATS, export_features
from monosem.formats.saelens import save_sae
from monosem.model import load_model
from monosem.rating.draw import draw
from monosem.sae import make_sae
from monosem.serving import make_search, serve
from monosem.types import UserError

from .study import D_SAE, DENSE, client, make_study

RUN, OTHER = "topk-k4", "gated-l1_2"
DIGITS = "9" * 5000


@pytest.fixture
def study(folder: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(folder, tmp_path / "study"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def train_again(study: Path) -> None:
    ours = json.loads((study / "saes" / RUN / "cfg.json").read_text())["monosem"]
    edit(study / "saes" / RUN / "cfg.json", monosem={**ours, "weights_sha256": "new"})


def other_text(study: Path) -> None:
    edit(study / "codes" / "passages.json", header={"tokens": "new"})
    edit(study / "codes" / RUN / "meta.json", header={"tokens": "old", "sae": RUN})


def damage(study: Path) -> None:
    path = study / "codes" / RUN / "part-00000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


LOST = {
    "other weights": train_again,
    "another text": other_text,
    "a damaged part": damage,
    "no passages": lambda study: (study / "codes" / "passages.parquet").unlink(),
    "no vocabulary": lambda study: (study / "codes" / "vocabulary.json").unlink(),
    "no codes": lambda study: shutil.rmtree(study / "codes" / RUN),
}


@pytest.mark.parametrize("make", [train_again, other_text])
def test_stale_codes_are_told_and_not_shown(study: Path, make: Any) -> None:
    app = client(study)
    feature = f"/run/{RUN}/feature/{DENSE}"
    assert "Strongest contexts" in app.get(feature).text
    make(study)
    for page in (f"/run/{RUN}", feature):
        answer = app.get(page)
        assert answer.status_code == 200
        assert "monosem measure" in answer.text
        assert 'class="word"> word' not in answer.text
    assert "Strongest contexts" not in app.get(feature).text
    assert app.get(f"{feature}/document/0").status_code == 404
    assert "Strongest contexts" in app.get(f"/run/{OTHER}/feature/{DENSE}").text
    with pytest.raises(UserError, match=r"codes of (other weights|another text).*monosem measure"):
        draw(study, features=1)


def test_results_of_other_weights_are_not_shown(study: Path) -> None:
    """The table loses what an evaluation says of the weights that were there before."""
    app = client(study)
    assert "scored.pearson" in app.get(f"/run/{RUN}").text
    train_again(study)
    assert "scored.pearson" not in app.get(f"/run/{RUN}").text


def test_results_must_say_of_which_weights_they_are(study: Path) -> None:
    result, cfg = study / "results" / RUN / "scored" / "result.json", study / "saes" / RUN / "cfg.json"
    for path, changes in ((result, {"header": {}}), (result, {"header": "x"}), (cfg, {"monosem": {}})):
        before = path.read_text()
        assert Study(study).rows(RUN, "scored") is not None
        edit(path, **changes)
        assert Study(study).rows(RUN, "scored") is None
        path.write_text(before)
    result.unlink()
    assert Study(study).rows(RUN, "scored") is None


@pytest.mark.parametrize("format", FEATURE_FORMATS)
@pytest.mark.parametrize("how", LOST)
def test_exports_refuse_codes_that_are_lost(study: Path, tmp_path: Path, how: str, format: str) -> None:
    LOST[how](study)
    with pytest.raises(UserError, match="monosem measure"):
        export_features(study, tmp_path / "out", runs=RUN, features=0, format=format)
    assert not list((tmp_path / "out").rglob("*.json*"))


def test_a_bad_run_leaves_the_others_their_neighbours(study: Path) -> None:
    for content in (b"", b"PK\3\4" + bytes(100)):
        (study / "codes" / OTHER / "counts.npy").write_bytes(content)
        answer = client(study).get(f"/run/{RUN}/feature/{DENSE}/near")
        assert answer.status_code == 200
        assert OTHER in answer.text


@pytest.mark.parametrize(
    "query", ["is.count=abc", "is.feature=3", "min.scored.verdict=1", "max.scored.checked=3", "has.count=1", "sort=x"]
)
def test_filters_of_the_wrong_kind_are_left_out(folder: Path, query: str) -> None:
    for page in (f"/run/{RUN}", f"/run/{RUN}/feature/{DENSE}"):
        answer = client(folder).get(f"{page}?{query}")
        assert answer.status_code == 200
        assert query.replace("=", "%3D") not in answer.text
        assert query not in answer.text
    assert f"of {D_SAE} features" in client(folder).get(f"/run/{RUN}?{query}").text


def test_unknown_columns_do_not_swell_the_page(folder: Path) -> None:
    query = "&".join(f"is.x{i}=aaaaaaaa" for i in range(3000)) + f"&is.scored.verdict={'a' * 5000}"
    for page in (f"/run/{RUN}", f"/run/{RUN}/feature/{DENSE}/near"):
        assert len(client(folder).get(f"{page}?{query}").content) < 200_000


@pytest.mark.parametrize(
    "page",
    [
        f"/run/{RUN}/feature/{DIGITS}",
        f"/run/{RUN}/feature/{DIGITS}/near",
        f"/run/{RUN}/feature/1/document/{DIGITS}",
        f"/run/{RUN}/feature/1/document/{'9' * 18}",
        f"/rate/item/{DIGITS}",
    ],
)
def test_endless_numbers_are_not_found(folder: Path, page: str) -> None:
    assert client(folder).get(page).status_code == 404
    assert client(folder).get(f"/run/{RUN}/feature/1/document/0?pos={DIGITS}").status_code == 200


def test_failures_have_the_security_headers(folder: Path) -> None:
    def search(_run: str, _text: str) -> Any:
        raise RuntimeError("cut")

    app = TestClient(make_app(folder, search=search), base_url="http://127.0.0.1", raise_server_exceptions=False)
    answer = app.get("/search?text=a")
    assert answer.status_code == 500
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_files_of_another_shape_are_left_out(study: Path) -> None:
    edit(study / "summary.json", runs=5, tokens="many", headline="topk", model=["a"])
    columns = {"words": ["1", "3"], "large": [1, 2**40], "gaps": [1, None], "minus": [-1, 2], "whole": [1, 2]}
    for name, column in columns.items():
        where = study / "results" / RUN / name
        where.mkdir()
        (where / "result.json").write_text(json.dumps({"header": {"sae": RUN}}))
        pl.DataFrame({"feature": column, "score": [1.0, 2.0]}).write_parquet(where / "rows.parquet")
    density = study / "results" / RUN / "density" / "rows.parquet"
    pl.read_parquet(density).with_columns(count=pl.lit("few"), density_low=pl.lit("x")).write_parquet(density)
    app = client(study)
    for page in ("/", f"/run/{RUN}?show=alive&min.count=1&sort=peak", f"/run/{RUN}/feature/1", "/search"):
        assert app.get(page).status_code == 200, page
    table = features_table(Study(study), Study(study).runs()[RUN])
    assert {column.name.split(".")[0] for column in table.columns} & set(columns) == {"whole"}
    edit(study / "saes" / RUN / "cfg.json", monosem="topk")
    assert all(app.get(page).status_code == 200 for page in ("/", f"/run/{RUN}", f"/run/{RUN}/feature/1"))


def test_numbers_of_runs_that_are_none_are_left_out(study: Path) -> None:
    edit(study / "summary.json", runs=[{"name": RUN, "l0": {"value": ["x"]}, "nmse": "y", "dead": {}}, 7])
    assert client(study).get("/").status_code == client(study).get(f"/run/{RUN}").status_code == 200


def test_dashboards_have_tokens_as_they_are(folder: Path, tmp_path: Path) -> None:
    where = export_features(folder, tmp_path, runs=RUN, features=0, format="saedashboard")
    for one in json.loads((where / "batch-0.json").read_text())["features"]:
        assert {"\n", "\u202e"} <= set(one["pos_str"]) & set(one["neg_str"])
    assert ">↵<" in client(folder).get(f"/run/{RUN}/feature/{DENSE}").text


@pytest.mark.parametrize("blocked", [RUN, f"{RUN}/0.html", f"{RUN}/index.html", "index.html", "assets"])
def test_what_is_in_the_way_of_an_export_is_named(folder: Path, tmp_path: Path, blocked: str) -> None:
    path = tmp_path / blocked
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix:
        (path / "sub").mkdir(parents=True)
    else:
        path.write_text("")
    with pytest.raises(UserError, match="can't be written"):
        export(folder, tmp_path, runs=RUN, features=0)


def test_an_export_wants_a_folder(study: Path) -> None:
    (study / "study.toml").write_text("")
    with pytest.raises(UserError, match="a study folder is wanted here"):
        export(study / "study.toml", study / "study.toml" / "features")
    with pytest.raises(UserError, match="can't be used"):
        serve(study, host="a..b")


def test_a_search_takes_the_weights_that_there_are(tiny_lm: Path, tmp_path: Path) -> None:
    folder = make_study(tmp_path)
    toml = 'name = "x"\n[model]\nsite = "blocks.1.hook_resid_post"\ncontext = 32\n[[run]]\nvariant = "topk"\nk = 4\n'
    (folder / "study.toml").write_text(toml, encoding="utf-8")
    model = load_model(str(tiny_lm), dtype="float32", device="cpu")
    search = make_search(folder, lambda: model)
    found = []
    for bias in (-1e9, 1e9):
        sae = make_sae("standard", d_in=32, d_sae=8)
        sae.weights["b_enc"] = torch.full((8,), bias)
        save_sae(sae, folder / "saes" / RUN)
        found.append(sum(len(features) for _, features in search(RUN, "the old dog")))
    assert found[0] == 0 < found[1]


@pytest.mark.parametrize("setting", ["version", "needs"])
def test_constants_of_an_evaluation_are_no_settings(setting: str) -> None:
    with pytest.raises(UserError, match=f'{setting}: unknown setting of evaluation "dense"; known are cap, sample,'):
        make_evaluation("dense", {setting: 99})


def test_the_home_page_leads_to_the_rating(study: Path) -> None:
    assert "Rate features blind" not in client(study).get("/").text
    (study / "ratings").mkdir()
    (study / "ratings" / "packet.json").write_text("{}")
    assert '<a href="/rate/">Rate features blind</a>' in client(study).get("/").text
