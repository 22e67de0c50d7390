"""Multimodal Few-Shot Learning with Frozen Language Models.

Tsimpoukelli, Menick, Cabi, Eslami, Vinyals, Hill. NeurIPS 2021. arXiv:2106.13884

A vision encoder is trained to write a picture as a few word vectors, through a language model that never changes.
The language model then reads pictures anywhere in its prompt, which allows few-shot prompting.

Differences from the paper:
- The encoder is a pretrained one and stays frozen by default, so that its features are computed once;
  ``encoder_training: scratch`` is the paper's own setting.
- AdamW with warm-up and cosine stands for Adam at a constant rate; a recipe can set either.
- The LM is a rotary one (SmolLM2) in place of relative positions: both let a picture stand anywhere.
- "train-blind" is a property of the data (``data.blind: true``), not of the system.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field

from graftlm.connectors.linear import Linear
from graftlm.data.sentence import Sentence
from graftlm.data.tokenize import Layout
from graftlm.lm.base import LMInputs
from graftlm.lm.compose import compose
from graftlm.systems.base import Parts, System, SystemConfig, set_training


class FrozenConfig(SystemConfig):
    """The paper's choices."""

    num_tokens: int = Field(2, ge=1, le=64, description="K, soft tokens per picture (§3.1: 2 is best of 1, 2, 4)")
    lm_training: Literal["frozen", "finetuned", "scratch"] = Field(
        "frozen", description="what happens to the language model (§4.1: frozen is best)"
    )
    encoder_training: Literal["frozen", "finetuned", "scratch"] = Field(
        "frozen", description="what happens to the encoder (the paper: scratch)"
    )
    max_length: int = Field(512, ge=8, description="longest row in positions")
    init_seed: int = Field(0, ge=0, le=2**62, description="seed of weights drawn anew by 'scratch'")


class Frozen(System):
    """Pooled picture vector -> one linear map -> K soft tokens among the words."""

    name = "frozen"
    Config = FrozenConfig
    config: FrozenConfig

    def __init__(self, config: FrozenConfig, parts: Parts, connector: Linear) -> None:
        super().__init__(config, parts)
        self.connector = connector

    @classmethod
    def build(cls, config: FrozenConfig, parts: Parts) -> Self:
        """Wires the parts. Raises: ConfigError when a trained LM is not in float32."""
        encoder = parts.encoder("image")
        system = cls(config, parts, Linear(encoder.dim, parts.lm.dim, config.num_tokens))
        set_training(system.lm, config.lm_training, config.init_seed, "system.lm_training", config.precision)
        set_training(encoder, config.encoder_training, config.init_seed, "system.encoder_training", "float32")
        return system

    @property
    def layout(self) -> Layout:
        """Pictures take K positions; the caption ends with EOS, as the paper's scoring needs."""
        return Layout(media_tokens=self.config.num_tokens, bos="start", max_length=self.config.max_length)

    def inputs(self, sentences: Sequence[Sentence]) -> LMInputs:
        """Soft tokens in their slots."""
        batch = self.tokens(sentences)
        soft = self.connector(self.perceive(batch.media)) if batch.media else None  # (N, K, D)
        return compose(self.lm, batch, soft)
