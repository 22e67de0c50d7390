"""Instance-wise Prompt Tuning for Pretrained Language Models: its knowledge-enhanced pre-training.

Jiang, Yang, Lin, Zhao, Yang, Zhou, Yang, Yang, Cui. arXiv 2022. arXiv:2206.01958

A table with a vector for every token is trained, with a small network over it, to tell kinds of text apart (13 in the
paper). What it then knows of words is what the prompts of the strategy *pretrained* begin with.

Differences from the paper:
- The table is trained, as the paper says; in the released code it is in no optimiser (``trains_table: false``).
- Any corpus with categories serves, through the reader ``labelled``; the paper's own is not published.
- One AdamW for all networks; the paper has another optimiser and rate for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from graftlm.data.sentence import Sentence
from graftlm.data.tokenize import Layout
from graftlm.errors import DataError
from graftlm.lm.readout import pooled_loss
from graftlm.lm.sources import source_words
from graftlm.lm.word_table import keep_words
from graftlm.nn.text_encoders import NetworkName, TextEncoder, text_encoder
from graftlm.nn.token_table import StartName, TokenTable, table_start
from graftlm.systems.base import Parts, System, TextConfig


class KnowledgeConfig(TextConfig):
    """The paper's choices. Of the language model only words and their vectors are used."""

    network: NetworkName = Field("mlp", description="over the table (§3.2, §3.3)")
    num_classes: int = Field(13, ge=2, description="kinds of text (§3.2: 13)")
    num_tokens: int = Field(100, ge=1, le=512, description="K of the prompts to come; the network's shape follows")
    table: StartName = Field("uniform", description="what rows begin as: U(-.5, .5), the model's vectors, zeros")
    trains_table: bool = Field(True, description="false: as the released code, whose table stays as it was drawn")
    max_length: int = Field(200, ge=8, description="words of a text that are read (released code: 200)")


class Knowledge(System):
    """Words -> table -> network -> kind of text."""

    name = "knowledge"
    Config = KnowledgeConfig
    config: KnowledgeConfig

    def __init__(self, config: KnowledgeConfig, parts: Parts, table: TokenTable, network: TextEncoder) -> None:
        super().__init__(config, parts)
        self.table = table.requires_grad_(config.trains_table)
        self.network = network
        if config.network != "mlp":
            network.project.requires_grad_(False)  # it writes prompts, and is not yet in use
        self.classify = nn.Linear(network.feature_dim, config.num_classes)

    @classmethod
    def build(cls, config: KnowledgeConfig, parts: Parts) -> Self:
        """Wires the parts."""
        lm = parts.lm
        table = TokenTable(lm.vocab_size, lm.dim, table_start(config.table, lm.vocab_size, lm.dim, lm.embed))
        return cls(config, parts, table, text_encoder(config.network, lm.dim, config.num_tokens))

    @property
    def writes(self) -> bool:
        """It tells kinds of text apart, and no more."""
        return False

    @property
    def layout(self) -> Layout:
        """Words alone."""
        return Layout(bos="start", max_length=self.config.max_length)

    def learn(self, sentences: Iterable[Sentence]) -> None:
        """Gives every word of the corpus a row."""
        keep_words(self.table, sentences, self._words)

    def make_room(self, tensors: Mapping[str, Tensor]) -> None:
        """The table has as many rows as the tensors say."""
        self.table.resize(tensors.get("table.rows"))

    def trainable_state(self) -> dict[str, Tensor]:
        """Trained parameters, and the table's rows with the tokens they belong to."""
        return {**super().trainable_state(), **self.table.state("table.")}

    def losses(self, sentences: Sequence[Sentence]) -> dict[str, Tensor]:
        """Cross-entropy of the kind."""
        return {"label": pooled_loss(self._logits(sentences), sentences)}

    @torch.no_grad()
    def class_scores(self, sentences: Sequence[Sentence], words: Sequence[Sequence[str]], **how: Any) -> Tensor:
        """Log-probabilities of the kinds, (B, C)."""
        return self._logits(sentences).log_softmax(dim=-1)

    def _logits(self, sentences: Sequence[Sentence]) -> Tensor:
        ids, mask = self._words(sentences)
        logits: Tensor = self.classify(self.network.features(self.table(ids), mask))
        return logits

    def _words(self, sentences: Sequence[Sentence]) -> tuple[Tensor, Tensor]:
        batch = self.tokens(sentences)
        if batch.media:
            kind = type(batch.media[0]).__name__.lower()
            raise DataError(f"knowledge: expected words alone, found a part of type {kind}; choose another system")
        return source_words(self.lm, batch, self.config.max_length)
