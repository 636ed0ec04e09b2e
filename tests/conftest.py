"""Shared fixtures: a tiny random language model on disk, a corpus of made-up documents, and a study on both."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side; threads of tiny products only wait

COMMON = "the a cat dog tree river stone walks sees finds red blue old 12 7 2024 of and in under over then it was"
WORDS = COMMON.split(" ")
WIDE = {"width": 1280, "height": 800}


def cli(*arguments: str | Path) -> int:
    """Run a command of monosem and return its exit code."""
    from monosem.cli import run

    old = sys.argv
    sys.argv = ["monosem", *map(str, arguments)]
    try:
        return run()
    finally:
        sys.argv = old


def make_documents(number: int = 60, words: int = 80, seed: int = 0) -> list[str]:
    """Return made-up documents of `words` words each."""
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(words)) + f" end {i}." for i in range(number)]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .jsonl corpus of 60 documents."""
    import json

    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in make_documents()))
    return path


def make_tokenizer() -> Any:
    """Return a byte-level BPE tokenizer trained on the made-up documents, `<|endoftext|>` = 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=sorted(alphabet))
    tokenizer.train_from_iterator(make_documents(20), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>"
    )


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 4 blocks and width 32 with random weights, saved as a Hugging Face folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny_lm")
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def study_of(lm: Path, corpus: Path, runs: list[dict[str, Any]], eval_tokens: int = 1200) -> dict[str, Any]:
    """Return a study that runs in seconds: SAEs of 64 features on the tiny model."""
    model = {"name": str(lm), "site": "blocks.1.hook_resid_post", "dtype": "float32", "device": "cpu"}
    return {
        "name": "tiny",
        "model": {**model, "context": 32, "batch_rows": 4},
        "text": {"source": str(corpus), "train_tokens": 3000, "eval_tokens": eval_tokens},
        "train": {"d_sae": 64, "batch_size": 128, "tokens": 6400, "lr": 3e-3},
        "measure": {"bootstrap": 200},
        "run": runs,
    }


def wait_until(there: Callable[[], Any], seconds: float = 240) -> Any:
    """Return what `there()` returns once it is something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := there():
            return found
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def while_running(process: subprocess.Popen[bytes], log: Path, there: Callable[[], Any]) -> Any:
    """Wait until something is there, as long as a process runs; log: where it says what it does."""

    def check() -> Any:
        assert process.poll() is None, log.read_text()[-3000:]
        return there()

    return wait_until(check)


@pytest.fixture
def tiny_study(tiny_lm: Path, corpus: Path) -> dict[str, Any]:
    """A study of eight SAEs, two of a variant."""
    runs = [{"variant": variant, "l1_coefficient": [0.5, 2.0]} for variant in ("standard", "tanh", "gated")]
    study = study_of(tiny_lm, corpus, [*runs, {"variant": "topk", "k": [4, 8]}])
    study["train"]["checkpoint_seconds"] = 0.0
    return study


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path, corpus: Path) -> Path:
    """The folder of a finished study, to be read only: standard-l1_0.5-d_sae_32 and topk-k8, of 64 features."""
    import monosem

    folder = tmp_path_factory.mktemp("finished") / "study"
    runs = [{"variant": "standard", "l1_coefficient": 0.5, "d_sae": 32}, {"variant": "topk", "k": 8}]
    monosem.compare(study_of(tiny_lm, corpus, runs, eval_tokens=1800), folder)
    return folder


@pytest.fixture
def study(finished_study: Path, tmp_path: Path) -> Path:
    """A copy of the finished study, to be changed."""
    return Path(shutil.copytree(finished_study, tmp_path / "study"))


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """The URL of an empty place in an S3 server on loopback, which this process and its children find."""
    import os

    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    s3fs = pytest.importorskip("s3fs")
    server.start()
    host, port = server.get_host_and_port()
    names = {"ENDPOINT_URL": f"http://{host}:{port}", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}
    os.environ |= {f"AWS_{name}": value for name, value in (names | {"DEFAULT_REGION": "us-east-1"}).items()}
    try:
        s3fs.S3FileSystem().mkdir("lab")
        yield "s3://lab"
    finally:
        server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium; tests that want one are skipped, saying why, where none can be had."""
    from monosem.report.screenshot import chromium
    from monosem.types import UserError

    opened = chromium()
    try:
        browser = opened.__enter__()
    except UserError as error:
        pytest.skip(str(error))
    yield browser
    opened.__exit__(None, None, None)


class Visit:
    """An opened report and everything that it complained about or asked for."""

    def __init__(self, browser: Browser, report: Path, viewport: Any = WIDE, scheme: Any = "light") -> None:
        self.page: Page = browser.new_page(viewport=viewport, color_scheme=scheme)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.route("**/*", lambda route: route.continue_() if route.request.url == url else route.abort())
        url = report.resolve().as_uri()
        self.page.goto(url)
        self.page.wait_for_selector("html[data-plots=ready]", timeout=60_000)
        self.outside = [asked for asked in self.requests if asked != url]


@pytest.fixture
def visit(browser: Browser) -> Iterator[Any]:
    visits: list[Visit] = []

    def open_report(report: Path, viewport: Any = WIDE, scheme: Any = "light") -> Visit:
        visits.append(Visit(browser, report, viewport, scheme))
        return visits[-1]

    yield open_report
    for opened in visits:
        opened.page.close()
