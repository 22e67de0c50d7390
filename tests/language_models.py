"""Tiny random language models of real families, with a byte tokenizer made of the same pieces as real ones."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY = 300
_MODERN: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
FAMILIES: dict[str, tuple[type, dict[str, Any]]] = {
    "gpt2": (
        GPT2Config,
        {
            "vocab_size": VOCABULARY,
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 128,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
    ),
    "opt": (
        OPTConfig,
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "word_embed_proj_dim": 16,
            "ffn_dim": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
            "dropout": 0.0,
        },
    ),
    "llama": (LlamaConfig, {**_MODERN, "tie_word_embeddings": True}),
    "gpt_neox": (
        GPTNeoXConfig,
        {key: value for key, value in _MODERN.items() if key != "num_key_value_heads"},
    ),
    "qwen2": (Qwen2Config, _MODERN),
    "qwen3": (Qwen3Config, {**_MODERN, "head_dim": 16}),
    "mistral": (MistralConfig, {**_MODERN, "sliding_window": 6}),
    "gemma": (GemmaConfig, {**_MODERN, "head_dim": 16}),
    "gemma2": (Gemma2Config, {**_MODERN, "head_dim": 16, "sliding_window": 6}),
}
"""Families that are proven; Mistral and Gemma 2 with a window shorter than the tests' rows."""


def tiny_model(family: str, seed: int = 0) -> Any:
    """A model whose every parameter is drawn anew: a fresh one is so near zero that tests would pass on nothing."""
    make, settings = FAMILIES[family]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(make(**settings, bos_token_id=1, eos_token_id=2, pad_token_id=0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") and "gemma" not in family else 0.0
            parameter.copy_(centre + torch.randn_like(parameter) * 0.25)
    return model.eval()


def tiny_tokenizer(*, bos: str | None = "<s>", template: str | None = None) -> Any:
    """Bytes as ids 3 and above, after padding, BOS and EOS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token="</s>", pad_token="<pad>")
    tokenizer.chat_template = template
    return tokenizer
