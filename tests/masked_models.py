"""Tiny random encoders of real families, with a byte tokenizer that has a mask."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

VOCABULARY = 300
SPECIAL = ["<pad>", "<s>", "</s>", "<mask>", "<unk>"]
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pad_token_id": 0,
}
ENCODERS: dict[str, tuple[type, type]] = {
    "bert": (BertConfig, BertForMaskedLM),
    "roberta": (RobertaConfig, RobertaForMaskedLM),
    "xlm_roberta": (XLMRobertaConfig, XLMRobertaForMaskedLM),
    "bert_headless": (BertConfig, BertModel),
}


def tiny_encoder(family: str, **sizes: Any) -> Any:
    """A model whose every parameter is drawn anew."""
    config, make = ENCODERS[family]
    torch.manual_seed(0)
    model = make(config(**{**_SIZES, **sizes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "LayerNorm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + torch.randn_like(parameter) * 0.25)
    return model.eval()


def mask_tokenizer() -> Any:
    """Bytes as ids 5 and above, after the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
        unk_token="<unk>",
    )
