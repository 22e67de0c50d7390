"""Tiny random masked language models of the BERT and RoBERTa families, with a byte tokenizer."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLMRobertaConfig,
)

VOCABULARY = 300
_SETTINGS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 130,
    "type_vocab_size": 2,
}
FAMILIES: dict[str, type] = {"bert": BertConfig, "roberta": RobertaConfig, "xlm-roberta": XLMRobertaConfig}


def tiny_masked(family: str, seed: int = 0, *, head: bool = True) -> Any:
    """A model whose every parameter is drawn anew: a fresh one is so near zero that tests would pass on nothing."""
    torch.manual_seed(seed)
    make = AutoModelForMaskedLM if head else AutoModel
    model = make.from_config(FAMILIES[family](**_SETTINGS, pad_token_id=0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "LayerNorm.weight" in name or "layer_norm.weight" in name else 0.0
            parameter.copy_(centre + torch.randn_like(parameter) * 0.25)
    return model.eval()


def tiny_masked_tokenizer() -> Any:
    """Bytes as ids 4 and above, after padding, first, last and mask."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<cls>", "<sep>", "<mask>"]
    backend = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate([*special, *alphabet])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", cls_token="<cls>", sep_token="<sep>", mask_token="<mask>"
    )
