"""A random model whose tokenizer has a token for every word of the cyclic tasks."""

from __future__ import annotations

import re

import torch

from monosem.evals.multidim.tasks import CYCLES, tasks_of
from monosem.model import Model


def day_model(vocabulary: list[str] | None = None) -> Model:
    """Return the model; vocabulary: its words, those of all prompts without."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    texts = [prompt.text for task in tasks_of(list(CYCLES)) for prompt in task.prompts]
    words = ["<|endoftext|>", *(vocabulary or sorted({w for text in texts for w in re.findall(r"\w+|[^\w\s]", text)}))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    return Model(LlamaForCausalLM(config), fast, "random", {"name": "random"})
