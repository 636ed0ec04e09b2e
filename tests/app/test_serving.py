"""The server and its search: a planted direction is found at its token; addresses that can't be had are named."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import torch

from monosem.formats.saelens import save_sae
from monosem.model import Model, load_model
from monosem.sae import Sae, make_sae
from monosem.serving import features_of, make_search, serve
from monosem.types import UserError

from .study import client, make_study

SITE, CONTEXT, PLANTED = "blocks.1.hook_resid_post", 32, 5
TEXT = "the old dog sees a red river"


@pytest.fixture(scope="module")
def model(tiny_lm: Path) -> Model:
    return load_model(str(tiny_lm), dtype="float32", device="cpu")


def planted(model: Model, word: str) -> tuple[Sae, int]:
    """Return an SAE whose feature PLANTED is the direction of one word of TEXT, and that word's token number."""
    tokens = model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    pieces = [model.tokenizer.decode([i]) for i in tokens]
    at = next(i for i, piece in enumerate(pieces) if piece.strip() == word)
    x = model.activations(torch.tensor([[0, *tokens]]), model.site(SITE))[0, 1:]
    direction = torch.nn.functional.normalize(x[at] - x.mean(0), dim=0)
    along = x @ direction
    second = along[torch.arange(len(along)) != at].max()
    assert along[at] > second
    sae = make_sae("standard", d_in=32, d_sae=8)
    sae.weights["W_enc"].zero_()
    sae.weights["b_enc"].fill_(-1.0)
    sae.weights["b_dec"].zero_()
    sae.weights["W_enc"][:, PLANTED] = direction
    sae.weights["b_enc"][PLANTED] = -(along[at] + second) / 2
    sae.weights["W_dec"][PLANTED] = 2 * direction
    return sae, at


@pytest.mark.parametrize("word", ["dog", "river", "red"])
def test_a_planted_direction_is_found_at_its_token(model: Model, word: str) -> None:
    sae, at = planted(model, word)
    found = features_of(model, SITE, sae, TEXT, CONTEXT)
    assert "".join(text for text, _ in found) == TEXT
    assert [[feature for feature, _ in features] for _, features in found] == [
        [PLANTED] if i == at else [] for i in range(len(found))
    ]
    tokens = model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    x = model.activations(torch.tensor([[0, *tokens]]), model.site(SITE))[0, 1 + at]
    expected = 2 * float(sae.encode(x[None])[0, PLANTED])  # the decoder norm is folded in
    assert found[at][1][0][1] == pytest.approx(expected, rel=1e-5)


def test_texts_that_do_not_fit_are_named(model: Model) -> None:
    sae, _ = planted(model, "dog")
    with pytest.raises(UserError, match=r"the model was read on 31 at once"):
        features_of(model, SITE, sae, "dog " * 200, CONTEXT)
    with pytest.raises(UserError, match="no tokens"):
        features_of(model, SITE, sae, "", CONTEXT)


def test_the_search_page_finds_it_and_loads_the_model_once(model: Model, tmp_path: Path) -> None:
    folder = make_study(tmp_path)
    sae, _ = planted(model, "dog")
    sae.facts["site"] = SITE
    save_sae(sae, folder / "saes" / "topk-k4")
    study = f'name = "t"\n[model]\nsite = "{SITE}"\ncontext = {CONTEXT}\n[[run]]\nvariant = "topk"\nk = 4\n'
    (folder / "study.toml").write_text(study, encoding="utf-8")
    loads: list[int] = []

    def load() -> Model:
        loads.append(1)
        return model

    app = client(folder, make_search(folder, load))
    for _ in range(2):
        text = app.get("/search", params={"run": "topk-k4", "text": TEXT}).text
        assert 'class="row-link name" href="/run/topk-k4/feature/5"' in text
        assert text.count("row-link") == 1
    assert loads == [1]


def test_the_app_imports_no_torch() -> None:
    code = "import monosem.app, monosem.app.export, monosem.serving, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_addresses_that_can_not_be_had_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text("", encoding="utf-8")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="choose another with --host or --port"):
            serve(tmp_path, port=taken.getsockname()[1])
    with pytest.raises(UserError, match="not a study folder"):
        serve(tmp_path / "none")


class Server:
    """`monosem serve` in a process of its own, on a free port."""

    def __init__(self, folder: Path, *options: str) -> None:
        command = [sys.executable, "-m", "monosem", "serve", str(folder), "--port", "0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.said: list[str] = []
        assert self.process.stdout
        while "Ctrl-C" not in "".join(self.said[-1:]):
            self.said.append(self.process.stdout.readline())
            assert self.said[-1], self.said
        self.address = next(word for word in self.said[-1].split() if word.startswith("http"))

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.address.rstrip("/") + path, timeout=60, **options)


@pytest.mark.slow
def test_the_benchmark_times_pages_of_a_synthetic_run(folder: Path, tmp_path: Path) -> None:
    (folder / "study.toml").write_text('[[run]]\nvariant = "topk"\n', encoding="utf-8")
    script, found = Path(__file__).parents[2] / "benchmarks" / "serve.py", tmp_path / "found.json"
    options = ["--rows", "50000", "--pages", "5", "--json", str(found)]
    subprocess.run([sys.executable, str(script), str(folder), *options], check=True, timeout=120)
    numbers = json.loads(found.read_text(encoding="utf-8"))
    assert numbers["rows"] == pytest.approx(50_000, rel=0.05)
    assert numbers["pages"] == 5
    assert 0 < numbers["median_ms"] <= numbers["p95_ms"]
    assert numbers["memory_before_mib"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_command_serves_on_this_machine_only_unless_told(folder: Path, host: str, tmp_path: Path) -> None:
    (folder / "study.toml").write_text('[[run]]\nvariant = "topk"\n', encoding="utf-8")
    server = Server(folder, *([] if host == "127.0.0.1" else ["--host", host]))
    try:
        assert server.address.startswith("http://127.0.0.1:")
        assert ("warning" in server.said[0]) is (host != "127.0.0.1")
        assert server.get("/").status_code == 200
        assert server.get("/", headers={"host": "evil.example"}).status_code == 403
        bound = Path(f"/proc/{server.process.pid}/net/tcp").read_text(encoding="ascii")
        port = int(server.address.rstrip("/").rpartition(":")[2])
        expected = "0100007F" if host == "127.0.0.1" else "00000000"
        assert f"{expected}:{port:04X}" in bound
    finally:
        server.process.terminate()
        server.process.wait(10)
