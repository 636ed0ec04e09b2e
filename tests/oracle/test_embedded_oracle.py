"""The converted model against transformers' own GGUF loader, the tokenizer against llama.cpp's."""

from __future__ import annotations

import json
import os
import urllib.request
import zipfile
from collections.abc import Callable

import pytest

from monosem import embedded, text
from monosem.wheels import MODEL, wheel

pytestmark = [pytest.mark.oracle, pytest.mark.lm, pytest.mark.slow]

TRICKY = [
    "In 2017, 1234567890 people; 3.14159 + 10,000 = 1e-9?",
    "def f(x):\n\tif x >= 10:\n        return {'a': x ** 2}  # comment\n\n\n",
    "  leading,  double   spaces and trailing   ",
    "\n\n\r\n\t \u00a0\u2003 x",
    "naïve café — “quotes” … Ærø ßtraße İstanbul ǆ",
    "日本語 中文 한국어 العربية हिन्दी ไทย עברית",
    "👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \u200b\ufeff",
    "don't we'll I'M they'VE 'tis rock'n'roll",
    "²³¹⁄₂ ½ Ⅷ ٣٤ ४५",
]


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    with zipfile.ZipFile(wheel(MODEL)) as archive:
        return archive.extract(next(n for n in archive.namelist() if n.endswith(".gguf")), folder)


def test_weights_equal_transformers_bit_by_bit(gguf_path):
    pytest.importorskip("accelerate")
    import torch
    from transformers import AutoModelForCausalLM

    folder, name = os.path.split(gguf_path)
    theirs = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(embedded.model_folder(), dtype=torch.float32)
    expected, found = theirs.state_dict(), ours.state_dict()
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key
    for key in ("rope_parameters", "rms_norm_eps", "head_dim", "tie_word_embeddings", "max_position_embeddings"):
        assert getattr(theirs.config, key) == getattr(ours.config, key), key
    ids = torch.arange(100, 164)[None]
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, ours(ids).logits)


@pytest.fixture(scope="module")
def tokenize(gguf_path) -> Callable[[str], list[int]]:
    """llama.cpp's tokenizer, through its server."""
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = gguf_path
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = 256
    params.n_parallel = 1
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)

    def ask(string: str) -> list[int]:
        body = json.dumps({"content": string, "add_special": False, "parse_special": False}).encode()
        request = urllib.request.Request(
            server.listening_address + "/tokenize", data=body, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["tokens"]

    return ask


def test_tokenizer_equals_llama_cpp(tokenize):
    from tokenizers import Tokenizer

    ours = Tokenizer.from_file(str(embedded.model_folder() / "tokenizer.json"))
    texts = [document.text[:4000] for document in text.documents(seed=5, limit=300)] + TRICKY
    different = [
        string[:80] for string in texts if tokenize(string) != ours.encode(string, add_special_tokens=False).ids
    ]
    assert len(texts) >= 200
    assert different == []
