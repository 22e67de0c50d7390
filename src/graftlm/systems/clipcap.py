"""ClipCap: CLIP Prefix for Image Captioning.

Mokady, Hertz, Bermano. arXiv 2021. arXiv:2111.09734

A small mapper turns an image's vector into a prefix of a language model, which then writes the caption. The mapper is
an MLP (with a fine-tuned language model) or a transformer (with a frozen one).

Differences from the paper:
- BOS stands between the prefix and the caption, since most of today's LMs were trained to start with it.
- Captions end with the LM's EOS, not with a full stop; padding is masked, never an id (the released code ignores "!").
- ``mapper: grid`` and ``inject: prefix`` are ours: a coarse grid of the picture beside its pooled vector, written into
  the keys and values of every layer (prefix tuning, arXiv:2101.00190) in place of the word vectors. It learns
  several times faster per caption and leaves no soft tokens in the sequence.
- ``lm_training: lora`` (arXiv:2106.09685, through peft) stands between the paper's frozen and fine-tuned LM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field

from graftlm.connectors.base import Connector
from graftlm.connectors.grid import GridMap
from graftlm.connectors.mapper import TransformerMapper
from graftlm.connectors.mlp import MLP
from graftlm.data.sentence import Sentence
from graftlm.data.tokenize import Layout
from graftlm.errors import ConfigError
from graftlm.lm.base import LMInputs
from graftlm.lm.compose import compose_items, text_as_prefix
from graftlm.systems.base import Parts, System, SystemConfig, set_training


class ClipCapConfig(SystemConfig):
    """The paper's choices, and ours beside them."""

    mapper: Literal["mlp", "transformer", "grid"] = Field("mlp", description="§3.2; grid is ours")
    inject: Literal["embeds", "prefix"] = Field("embeds", description="word vectors, or keys and values of every layer")
    num_tokens: int = Field(10, ge=1, le=64, description="K of mlp and transformer (§4: 10)")
    clip_length: int = Field(10, ge=1, le=64, description="vectors the picture becomes before the transformer")
    num_layers: int = Field(8, ge=1, description="layers of the transformer mapper (§4: 8)")
    num_heads: int = Field(8, ge=1, description="heads of the transformer mapper (§4: 8)")
    grid_side: int = Field(3, ge=1, le=14, description="cells per edge of the grid mapper; K = 1 + grid_side²")
    rank: int = Field(256, ge=1, description="bottleneck of the grid mapper")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the grid mapper, fraction")
    start_text: str = Field("", description="words the grid's prefix of every layer starts from; empty: noise")
    lm_training: Literal["frozen", "finetuned", "lora"] = Field("frozen", description="§3.3: frozen or fine-tuned")
    lora_rank: int = Field(8, ge=1, description="rank of the LoRA update of all attention and MLP maps")


class ClipCap(System):
    """Picture features -> mapper -> a prefix of the language model."""

    name = "clipcap"
    Config = ClipCapConfig
    config: ClipCapConfig

    def __init__(self, config: ClipCapConfig, parts: Parts, connector: Connector) -> None:
        super().__init__(config, parts)
        self.connector = connector

    @classmethod
    def build(cls, config: ClipCapConfig, parts: Parts) -> Self:
        """Wires the parts. Raises: ConfigError when a fine-tuned LM is not in float32."""
        if config.start_text and (config.mapper, config.inject) != ("grid", "prefix"):
            raise ConfigError(
                "system.start_text: expected mapper grid and inject prefix, which start from words, found "
                f"{config.mapper} and {config.inject}; leave it empty"
            )
        in_dim = parts.encoder("image").dim
        out_dim = parts.lm.dim if config.inject == "embeds" else parts.lm.prefix_geometry.token_dim
        connector: Connector
        if config.mapper == "mlp":
            connector = MLP(in_dim, out_dim, config.num_tokens)
        elif config.mapper == "transformer":
            connector = TransformerMapper(
                in_dim,
                out_dim,
                config.num_tokens,
                clip_length=config.clip_length,
                num_layers=config.num_layers,
                num_heads=config.num_heads,
            )
        else:
            start = text_as_prefix(parts.lm, config.start_text, 1 + config.grid_side**2) if config.start_text else None
            connector = GridMap(
                in_dim,
                out_dim,
                side=config.grid_side,
                rank=config.rank,
                dropout=config.dropout,
                start=start,
            )
        system = cls(config, parts, connector)
        set_training(system.lm, config.lm_training, 0, "system.lm_training", config.precision, config.lora_rank)
        return system

    @property
    def layout(self) -> Layout:
        """Soft tokens stand before BOS and the caption; a per-layer prefix takes no position."""
        tokens = self.connector.num_tokens if self.config.inject == "embeds" else 0
        return Layout(media_tokens=tokens, bos="after_media")

    def inputs(self, sentences: Sequence[Sentence]) -> LMInputs:
        """The mapped picture as word vectors in their slots, or as a prefix of every layer."""
        batch = self.tokens(sentences)
        soft = self.connector(self.perceive(batch.media)) if batch.media else None  # (N, K, D or token_dim)
        return compose_items(self.lm, batch, soft, as_prefix=self.config.inject == "prefix")
