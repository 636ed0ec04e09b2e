"""Model cards: valid for the hub, with the summary's numbers; the figure's points; which files are published."""

from __future__ import annotations

import json
import math
import re
import shutil
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from monosem.card import model_card, shared_files, write_card
from monosem.card.figure import error_figure
from monosem.definitions import METRICS
from monosem.types import UserError
from tests.conftest import cli
from tests.published import SECRETS, write_publishable
from tests.report.fixture import make_run, make_summary, write_summary

SHOWN = ("l0", "nmse", "ce_recovered", "delta_ce", "gamma", "dead_fraction")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_publishable(tmp_path_factory.mktemp("card") / "study")


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "study"))


def table(text: str) -> dict[str, list[list[float]]]:
    """Return the headline table: run -> for each column the numbers in its cell."""
    lines = text.split("## Measurements")[1].split("## Load")[0].splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("|")][2:]
    number = re.compile(r"\d[\d\u2009]*\.?\d*|−\d+\.?\d*")
    return {
        row[0].strip(): [
            [float(n.replace("−", "-").replace("\u2009", "")) for n in number.findall(cell)] for cell in row[1:]
        ]
        for row in rows
    }


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def test_the_hub_reads_the_card(finished: Path) -> None:
    from huggingface_hub import ModelCard

    text = model_card(finished, "hf:me/study", "apache-2.0")["README.md"]
    data = ModelCard(text).data.to_dict()
    assert data["library_name"] == "monosem"
    assert data["license"] == "apache-2.0"
    assert {"sparse-autoencoder", "saelens", "standard", "topk"} <= set(data["tags"])
    assert "license" not in ModelCard(model_card(finished)["README.md"]).data.to_dict()


@pytest.mark.parametrize(
    ("model", "base"),
    [
        ("SmolLM2-135M-Instruct (embedded)", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("EleutherAI/pythia-70m", "EleutherAI/pythia-70m"),
        ("/home/me/models/mine", None),
        ("gpt2-small", None),
        ("models/mine", None),
    ],
)
def test_the_base_model_is_named_if_it_is_on_the_hub(
    model: str, base: str | None, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import ModelCard

    (study / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(study)
    write_summary(study, summary(study) | {"model": model})
    text = model_card(study)["README.md"]
    assert ModelCard(text).data.to_dict().get("base_model") == base
    assert model in text


def test_numbers_are_the_summarys(finished: Path) -> None:
    text = model_card(finished)["README.md"]
    rows = table(text)
    runs = {run["name"]: run for run in summary(finished)["runs"]}
    assert rows.keys() == runs.keys()
    for name, run in runs.items():
        for cell, metric in zip(rows[name], SHOWN, strict=True):
            wanted = [run[metric][key] for key in ("value", "low", "high")]
            wanted = wanted[:1] if wanted[1] == wanted[2] else wanted
            width = max(1e-9, wanted[-1] - wanted[1] if len(wanted) == 3 else 1)
            assert cell == pytest.approx(wanted, abs=0.1 * width), (name, metric)
    for metric in SHOWN:
        assert (
            f"**{METRICS[metric].label}** ({METRICS[metric].unit}; 1,048,576 tokens): {METRICS[metric].definition}"
            in text
        )
    assert "1,048,576 held-out tokens of 1,234 documents, cross-entropies on 200,000" in text
    assert summary(finished)["headline"]["sentence"] in text
    assert all(f"- {caveat}" in text for caveat in summary(finished)["caveats"])


def test_a_missing_number_says_why(study: Path) -> None:
    changed = summary(study)
    changed["runs"][0] |= {"ce_recovered": None, "reasons": {"ce_recovered": "no cross-entropies"}}
    write_summary(study, changed)
    text = model_card(study)["README.md"]
    assert "- –: no cross-entropies" in text
    assert [len(cell) for cell in table(text)["standard-l1_5-s0"]] == [3, 3, 0, 3, 3, 3]


def test_how_it_was_made(finished: Path) -> None:
    text = model_card(finished)["README.md"]
    block = re.search(r"```toml\n(.*?)```", text, re.DOTALL)
    assert block
    assert tomllib.loads(block[1]) == tomllib.loads((finished / "study.toml").read_text())
    cfg = json.loads((finished / "saes" / "topk-k20-s0" / "cfg.json").read_text())["monosem"]
    row = next(line for line in text.splitlines() if line.startswith("| topk-k20-s0 | TopK"))
    for part in ("| topk |", "| 16 |", "k = 4", "| 0 | 20,000,000 |", cfg["weights_sha256"][:12]):
        assert part in row
    assert "Adam, lr = 0.0003, clip = 1" in text
    assert "4,883 steps of 4,096 tokens" in text
    assert "blocks.2.hook_resid_post" in text
    assert "commit 0123abc" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"monosem": {"normaliser": {"kind": "mean_norm", "scale": 0.25}}}, "`mean_norm`, x = 0.25 a. It is folded"),
        ({"monosem": {"normaliser": {"kind": "none", "scale": 1.0}}}, "none: raw activations go in"),
        ({"normalize_activations": "layer_norm"}, 'cfg.json has `normalize_activations = "layer_norm"`; it depends'),
    ],
)
def test_the_normaliser(changes: dict[str, Any], words: str, study: Path) -> None:
    folder = study / "saes" / "topk-k20-s0"
    cfg = json.loads((folder / "cfg.json").read_text())
    ours = cfg["monosem"] | changes.get("monosem", {})
    (folder / "cfg.json").write_text(json.dumps(cfg | changes | {"monosem": ours}))
    assert f"- Normaliser: {words}" in model_card(folder)["README.md"]


@pytest.mark.parametrize(
    ("repo", "ours", "theirs"),
    [
        ("hf:me/s", "hf:me/s/standard-l1_5-s0", 'SAE.from_pretrained(release="me/s", sae_id="standard-l1_5-s0")'),
        ("hf:me/s/in", "hf:me/s/in/standard-l1_5-s0", 'release="me/s", sae_id="in/standard-l1_5-s0")'),
        ("hf:me/s@dev", "hf:me/s/standard-l1_5-s0@dev", 'snapshot_download("me/s", revision="dev")'),
    ],
)
def test_how_to_load(repo: str, ours: str, theirs: str, finished: Path) -> None:
    text = model_card(finished, repo)["README.md"]
    assert f'monosem.load_sae("{ours}")' in text
    assert theirs in text
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(block, "card", "exec")
    alone = model_card(finished / "saes" / "topk-k20-s0", repo)["README.md"]
    assert f'monosem.load_sae("{repo}")' in alone


def test_one_sae_is_shown_among_those_of_its_study(finished: Path) -> None:
    files = model_card(finished / "saes" / "topk-k20-s0")
    assert list(table(files["README.md"])) == ["topk-k20-s0"]
    tree = ElementTree.fromstring(files["l0-nmse.svg"])
    assert len(tree.findall(f".//{SVG}title")) == 2
    assert len(tree.findall(f".//{SVG}circle")) == 1
    ringed = next(g for g in tree.iter(f"{SVG}g") if g.find(f"{SVG}circle") is not None)
    assert (ringed.findtext(f"{SVG}title") or "").startswith("topk-k20-s0:")
    assert "- Study: quickstart" in files["README.md"]


def test_an_sae_without_a_study(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished / "saes" / "topk-k20-s0", tmp_path / "alone"))
    files = model_card(folder)
    assert list(files) == ["README.md"]
    assert "Nothing was measured for this card." in files["README.md"]
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({key: cfg[key] for key in ("architecture", "d_in", "d_sae", "k")}))
    text = model_card(folder)["README.md"]
    assert "# alone\n" in text
    assert "| alone | TopK | topk | 16 | k = 4 | – | – | `–` |" in text


def test_saes_of_others_are_compared_and_not_published(study: Path) -> None:
    changed = summary(study)
    changed["runs"][0]["loaded"] = {"source": "hf:them/theirs"}
    write_summary(study, changed)
    text = model_card(study)["README.md"]
    assert list(table(text)) == ["standard-l1_5-s0 (elsewhere: hf:them/theirs)", "topk-k20-s0"]
    assert 'load_sae("hf:OWNER/NAME/topk-k20-s0")' in text
    assert not any(name.startswith("standard") for name in shared_files(study, "hf:me/s"))


def test_points_of_the_figure_lie_where_the_numbers_say() -> None:
    """Two runs fix both axes; the third must lie between them by its logarithms."""
    runs = [make_run("topk", setting) for setting in range(3)]
    for run, l0, nmse in zip(runs, (10.0, 40.0, 160.0), (0.4, 0.2, 0.05), strict=True):
        run |= {"l0": {"value": l0, "low": l0, "high": l0}, "nmse": {"value": nmse, "low": nmse, "high": nmse * 1.1}}
    tree = ElementTree.fromstring(error_figure(runs) or "")
    line = tree.find(f".//{SVG}polyline")
    assert line is not None
    points = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert (x1 - x0) / (x2 - x0) == pytest.approx(0.5, abs=2e-3)
    assert (y1 - y0) / (y2 - y0) == pytest.approx(math.log(2) / math.log(8), abs=2e-3)
    assert x0 < x1 < x2
    assert y0 < y1 < y2  # smaller errors lie lower
    words = [title.text for title in tree.iter(f"{SVG}title")]
    assert words[1] == f"{runs[1]['name']}: L0 40, NMSE 0.2 [0.2, 0.22]"


def test_the_line_runs_through_the_means_of_seeds() -> None:
    runs = [make_run("topk", setting, seed) for setting in range(2) for seed in range(3)]
    tree = ElementTree.fromstring(error_figure(runs) or "")
    line = tree.find(f".//{SVG}polyline")
    assert line is not None
    assert len(line.attrib["points"].split()) == 2
    assert len(tree.findall(f".//{SVG}title")) == 6


def test_what_has_no_place_on_the_figure() -> None:
    good, dead, unmeasured = (make_run("topk", setting) for setting in range(3))
    dead["l0"] = {"value": 0.0, "low": 0.0, "high": 0.0, "n": 5}
    unmeasured["nmse"] = None
    assert error_figure([dead, unmeasured]) is None
    alone = error_figure([good, dead, unmeasured]) or ""
    assert len(re.findall("<title>", alone)) == 1
    assert not re.search("nan|inf", alone)


def test_what_is_published(finished: Path) -> None:
    files = shared_files(finished, "hf:me/s")
    saes = {
        f"{run}/{name}"
        for run in ("standard-l1_5-s0", "topk-k20-s0")
        for name in ("cfg.json", "sae_weights.safetensors")
    }
    whole = {"README.md", "l0-nmse.svg", "study.toml", "summary.json", "environment.json", "report.html"}
    assert set(files) == saes | whole
    sent = [file if isinstance(file, bytes) else file.read_bytes() for file in files.values()]
    assert b"secret" not in sent
    assert all((finished / name).read_text() == "secret" for name in SECRETS)
    alone = shared_files(finished / "saes" / "topk-k20-s0", "hf:me/s")
    assert set(alone) == {"README.md", "l0-nmse.svg", "cfg.json", "sae_weights.safetensors"}


def test_a_card_of_ones_own(finished: Path, tmp_path: Path) -> None:
    paths = write_card(finished, tmp_path / "mine.md")
    assert paths == [tmp_path / "mine.md", tmp_path / "l0-nmse.svg"]
    paths[0].write_text("mine")
    assert shared_files(finished, "hf:me/s", card=paths[0])["README.md"] == b"mine"
    with pytest.raises(UserError, match=r"none\.md: can't be read"):
        shared_files(finished, "hf:me/s", card=tmp_path / "none.md")


def test_what_can_not_be_published(study: Path, tmp_path: Path) -> None:
    weights = study / "saes" / "topk-k20-s0" / "sae_weights.safetensors"
    whole = weights.read_bytes()
    for content, words in ((whole[:-1] + b"x", "altered"), (None, "no such file")):
        weights.unlink(missing_ok=True)
        if content:
            weights.write_bytes(content)
        with pytest.raises(UserError, match=words):
            shared_files(study, "hf:me/s")
    (tmp_path / "elsewhere").write_bytes(whole)
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="leads out of"):
        shared_files(study, "hf:me/s")
    for empty, words in ((tmp_path, "neither an SAE"), (study / "saes", "neither an SAE")):
        with pytest.raises(UserError, match=words):
            model_card(empty)
    shutil.rmtree(study / "saes" / "standard-l1_5-s0")
    write_summary(study, make_summary([make_run("standard", 1) | {"name": "standard-l1_5-s0"}]))
    with pytest.raises(UserError, match="holds no SAE that the summary names"):
        model_card(study)


def test_commands(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = study / "saes" / "topk-k20-s0"
    assert cli("card", folder, "--license", "mit") == 0
    assert capsys.readouterr().out.split() == [str(folder / "README.md"), str(folder / "l0-nmse.svg")]
    assert "license: mit" in (folder / "README.md").read_text()
    assert cli("push", folder, "hf:me/s", "--dry-run", "--revision", "dev") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == [
        "README.md",
        "cfg.json",
        "l0-nmse.svg",
        "sae_weights.safetensors",
    ]
    assert lines[-1].endswith("bytes; nothing was sent")
    assert cli("push", folder, "me/s", "--dry-run") == 2
    assert "not a place on the hub" in capsys.readouterr().err
