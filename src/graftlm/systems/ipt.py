"""Instance-wise Prompt Tuning for Pretrained Language Models.

Jiang, Yang, Lin, Zhao, Yang, Zhou, Yang, Yang, Cui. arXiv 2022. arXiv:2206.01958

A prompt that is written for each input, out of its own words, beside or in place of one for the task: by a table with a
vector for every token, by the same table pre-trained to tell kinds of text apart, or by a small network over it.

Differences from the paper:
- Only rows of tokens that prompts of the training data read are moved; others stay as drawn, for all seeds alike.
- In a prefix every layer gets the instance's part, by one linear map of the table's vectors that begins near zero.
- ``combine``, ``table: words`` (the model's own vectors) and ``table: zeros`` (unseen tokens add nothing) are ours.
- ``preset: released`` does as the released code: *pads* (the first positions, [CLS] and padding included, each one a
  prompt), *first_layer* (of a prefix, times 0.05), *drawn_head* (position 0 through a linear map that is never trained,
  no cloze), *networks* (one filter a width, dropout that never ends; its LSTM cannot run), *cut_start* (long texts lose
  their beginning). Its table was never optimised in pre-training: see ``knowledge``. Not followed: the pooler before
  its head, RoBERTa's positions that do not count a prefix, the best epoch chosen on the reported rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from graftlm.connectors.instance_prompt import InstancePrompt
from graftlm.connectors.soft_prompt import SoftPrompt
from graftlm.data.sentence import Sentence
from graftlm.data.tokenize import Layout, TokenBatch
from graftlm.encoders.base import Features
from graftlm.errors import ConfigError
from graftlm.lm.base import KVPrefix, LanguageModel, LMInputs
from graftlm.lm.compose import compose, prepend
from graftlm.lm.prompt_start import InitName, prefix_start, prompt_start
from graftlm.lm.readout import pooled_head
from graftlm.lm.sources import source_positions, source_words
from graftlm.lm.word_table import begin_from, keep_words
from graftlm.nn.text_encoders import NetworkName, text_encoder
from graftlm.nn.token_table import StartName, TokenTable, table_start
from graftlm.systems.base import Parts, PromptConfig, TextSystem, trained_tensors

Divergence = Literal["pads", "first_layer", "drawn_head", "networks", "cut_start"]
_FIRST_LAYER_SCALE = 0.05


class IPTConfig(PromptConfig):
    """The paper's choices, and ours beside them."""

    preset: Literal["paper", "released"] | tuple[Divergence, ...] = Field(
        "paper", description="released: every difference of the released code, or some of them by name"
    )
    inject: Literal["input", "prefix"] = Field("input", description="before the words, or in every layer")
    strategy: Literal["random", "pretrained", "encoder"] = Field("random", description="who writes the prompt (§3)")
    network: NetworkName = Field("mlp", description="of the strategy encoder (§3.3)")
    num_tokens: int = Field(100, ge=1, le=512, description="K, of the instance's prompt and of the task's (§4.5: 100)")
    combine: Literal["default", "replace", "add", "concat"] = Field(
        "default", description="with the task's prompt; default: replace at the input, add in a prefix"
    )
    table: StartName = Field("uniform", description="what rows begin as: U(-.5, .5), the model's vectors, zeros")
    pretrained: str = Field("", description="graft of `knowledge`: its rows, and its network where that fits")
    utilisation: float = Field(0.26, gt=0, le=1, description="part of max_length that a prompt is written from (§4.4)")

    def does(self, divergence: Divergence) -> bool:
        """Whether it does as the released code."""
        return self.preset == "released" or (self.preset != "paper" and divergence in self.preset)

    @property
    def combines(self) -> str:
        """How, with the default resolved."""
        return {"input": "replace", "prefix": "add"}[self.inject] if self.combine == "default" else self.combine

    @property
    def first_layer_only(self) -> bool:
        """Whether the instance's part of a prefix goes to the first layer alone."""
        return self.inject == "prefix" and self.does("first_layer")


class IPT(TextSystem):
    """The words' rows of the table, or what a network makes of them, as a prompt of the row."""

    name = "ipt"
    Config = IPTConfig
    config: IPTConfig

    def __init__(
        self, config: IPTConfig, parts: Parts, table: TokenTable, connector: InstancePrompt, task: SoftPrompt | None
    ) -> None:
        head = pooled_head(parts.lm, config.head, config.num_classes, first=config.does("drawn_head"))
        super().__init__(config, parts, head)
        self.table = table.requires_grad_(config.strategy != "encoder")
        self.connector = connector
        self.task = task

    @classmethod
    def build(cls, config: IPTConfig, parts: Parts) -> Self:
        """Wires the parts. Raises: ConfigError for choices that cannot go together."""
        lm = parts.lm
        _check(config, lm)
        out_dim, width = _widths(config, lm)
        network = None
        if config.strategy == "encoder":
            network = text_encoder(config.network, width, config.num_tokens, released=config.does("networks"))
        table = TokenTable(lm.vocab_size, width, table_start(config.table, lm.vocab_size, width, lm.embed))
        connector = InstancePrompt(width, width if config.first_layer_only else out_dim, config.num_tokens, network)
        if config.combines == "replace":
            return cls(config, parts, table, connector, None)
        init: InitName = "vocabulary" if lm.is_causal or config.inject == "input" else "random"
        start = (prompt_start if config.inject == "input" else prefix_start)(lm, init, config.num_tokens)
        return cls(config, parts, table, connector, SoftPrompt(start, out_dim))

    @property
    def taken(self) -> tuple[int, int]:
        """K among the words or in every layer; 2K with a prompt of the task beside the instance's."""
        size = self.config.num_tokens * (2 if self.config.combines == "concat" else 1)
        return (size, 0) if self.config.inject == "input" else (0, size)

    @property
    def layout(self) -> Layout:
        """As of every text system, but for where the released code cuts."""
        return replace(super().layout, shorten="start" if self.config.does("cut_start") else "end")

    def learn(self, sentences: Iterable[Sentence]) -> None:
        """Takes what is pre-trained, and gives the words that prompts are written from rows. Raises: ConfigError."""
        if self.config.pretrained and not self.begun:
            tensors = trained_tensors(self.config.pretrained)
            begin_from(tensors, self.table, self.connector.network, self.config.pretrained)
        if self.config.strategy != "encoder":
            keep_words(self.table, sentences, lambda some: self._sources(self.read(some)))

    def make_room(self, tensors: Mapping[str, Tensor]) -> None:
        """The table has as many rows as the tensors say."""
        self.table.resize(tensors.get("table.rows"))

    def trainable_state(self) -> dict[str, Tensor]:
        """Trained parameters, and the table's rows with the tokens they belong to."""
        return {**super().trainable_state(), **self.table.state("table.")}

    def parameter_counts(self) -> dict[str, int]:
        """`stored`: with the table of the whole vocabulary; `touched`: with the rows that training can reach."""
        others = sum(parameter.numel() for _, parameter in self.trainable() if parameter is not self.table.rows)
        return {"stored": others + self.table.stored, "touched": others + self.table.touched}

    def inputs(self, sentences: Sequence[Sentence]) -> LMInputs:
        """The words, with the prompt of each row before them or in every layer."""
        batch = self.read(sentences)
        soft, mask = self._prompt(batch)
        if self.config.inject == "input":
            return prepend(compose(self.lm, batch), soft, mask)
        return compose(self.lm, batch, prefix=KVPrefix.from_tokens(soft, mask, self.lm.prefix_geometry))

    def _prompt(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Soft tokens and their mask: (B, K or 2K, out_dim) and (B, K or 2K)."""
        ids, mask = self._sources(batch)
        vectors = self.table(ids)  # (B, S, W)
        features = Features(vectors, mask, vectors.mean(dim=1))
        own, used = self.connector(features), self.connector.used(features)
        if self.config.first_layer_only:
            own = F.pad(own * _FIRST_LAYER_SCALE, (0, self.lm.prefix_geometry.token_dim - own.shape[-1]))
        if self.task is None:
            return own, used
        task, all_used = self.task.expand(len(ids))
        if self.config.combines == "add":
            return task + own, all_used
        return torch.cat([task, own], dim=1), torch.cat([all_used, used], dim=1)

    def _sources(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        count = max(1, round(self.config.utilisation * self.config.max_length))
        count = count if self.connector.network is not None else min(count, self.config.num_tokens)
        choose = source_positions if self.config.does("pads") else source_words
        return choose(self.lm, batch, count)


def _widths(config: IPTConfig, lm: LanguageModel) -> tuple[int, int]:
    """Of a soft token, and of a row of the table."""
    if config.inject == "input":
        return lm.dim, lm.dim
    geometry = lm.prefix_geometry
    return geometry.token_dim, geometry.token_dim // geometry.num_layers if config.first_layer_only else lm.dim


def _check(config: IPTConfig, lm: LanguageModel) -> None:
    writes = config.strategy == "encoder"
    if not writes and bool(config.pretrained) != (config.strategy == "pretrained"):
        what = f"found '{config.pretrained}' for strategy {config.strategy}"
        raise ConfigError(f"system.pretrained: strategy pretrained alone begins with a graft of `knowledge`, {what}")
    if config.does("drawn_head") and (lm.is_causal or config.head != "pooled"):
        raise ConfigError(
            "system.preset: the released head reads position 0 of an encoder, found a causal LM or a cloze; "
            "use a BERT or RoBERTa with head: pooled, or name the other differences one by one"
        )
    if config.does("networks") and writes and config.network == "lstm":
        raise ConfigError("system.network: the released LSTM takes the batch for the time; use cnn or mlp")
    if config.first_layer_only and (writes or config.table == "words"):
        raise ConfigError(
            "system.preset: first_layer takes rows that are keys and values, found a network or words; leave it out"
        )
