"""A whole study from Python: a made-up text, a tiny language model with random weights, four SAEs, one report.

Needs no network and takes seconds. With your own model and text, change `name` and `source`.
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import monosem

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "tree",
    "river",
    "stone",
    "walks",
    "sees",
    "finds",
    "red",
    "blue",
    "old",
    "in",
    "then",
]


def make_text(path: Path) -> Path:
    """Write 100 documents of 80 words, one JSON object a line."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=80)) + f" number {i}." for i in range(100)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def make_model(folder: Path, text: Path) -> Path:
    """Write a Llama of 2 blocks and width 32, with a tokenizer trained on the text, as a Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    end = "<|endoftext|>"
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        (json.loads(line)["text"] for line in text.read_text(encoding="utf-8").splitlines()),
        trainers.BpeTrainer(vocab_size=320, special_tokens=[end], initial_alphabet=alphabet),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=end)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.2,  # larger than usual, so that random weights do something
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_study(folder: Path) -> dict[str, Any]:
    """Return the content of a study file, on a text and a model that are written into `folder`."""
    text = make_text(folder / "text.jsonl")
    return {
        "name": "example",
        "model": {
            "name": str(make_model(folder / "model", text)),
            "site": "blocks.0.hook_resid_post",
            "dtype": "float32",
            "device": "cpu",
            "context": 32,
        },
        "text": {"source": str(text), "train_tokens": 6000, "eval_tokens": 2000},
        "train": {"d_sae": 128, "batch_size": 128, "tokens": 25_600, "lr": 3e-3},
        "measure": {"bootstrap": 200},
        "run": [
            {"variant": "standard", "l1_coefficient": [0.3, 1.0]},
            {"variant": "topk", "k": [24, 48]},
        ],
    }


def print_runs(folder: Path) -> None:
    """Print a few numbers of each run from summary.json."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    for run in summary["runs"]:
        nmse = run["nmse"]
        interval = f"[{nmse['low']:.4f}, {nmse['high']:.4f}]"
        print(f"{run['name']:<20} L0 {run['l0']['value']:6.2f}  NMSE {nmse['value']:.4f} {interval}")
    print(summary["headline"]["sentence"])


def main() -> None:
    """Run the study in a temporary folder; load one of its SAEs."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        report = monosem.compare(make_study(folder), folder / "out", say=print)
        print_runs(folder / "out")
        sae = monosem.load_sae(folder / "out" / "saes" / "topk-k24")
        print(f"{sae.variant} on {sae.facts['site']}: {sae.d_sae} features of width {sae.d_in}")
        print(f"{report.name} has {report.stat().st_size / 1e6:.1f} MB; give a lasting folder to keep it")


if __name__ == "__main__":
    main()
