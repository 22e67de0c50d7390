"""LoRA: Low-Rank Adaptation of Large Language Models (and full fine-tuning beside it).

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen. ICLR 2022. arXiv:2106.09685

What prompts are measured against: every weight of the language model is trained, or a low-rank update of every linear
map. The words and the way a class is read are those of the prompt methods, and there is no prompt.

Differences from the paper:
- LoRA updates every linear map of the decoder (through peft); the paper's GPT-2 runs update queries and values alone.
- ``training: full`` is the ordinary fine-tuning of the papers on prompts, with the same cloze.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field

from graftlm.data.sentence import Sentence
from graftlm.lm.base import LMInputs
from graftlm.lm.compose import compose
from graftlm.systems.base import Parts, PromptConfig, TextSystem, set_training


class FinetuningConfig(PromptConfig):
    """What is trained of the language model."""

    training: Literal["lora", "full"] = Field("lora", description="low-rank updates, or every weight (in float32)")
    lora_rank: int = Field(8, ge=1, le=1024, description="rank of an update (§7.2: 1 to 8 do as well as more)")


class Finetuning(TextSystem):
    """The words alone, over a language model that is trained."""

    name = "finetuning"
    Config = FinetuningConfig
    config: FinetuningConfig

    @classmethod
    def build(cls, config: FinetuningConfig, parts: Parts) -> Self:
        """Wires the parts. Raises: ConfigError for full training in another precision than float32."""
        system = cls(config, parts)
        training = "lora" if config.training == "lora" else "finetuned"
        set_training(system.lm, training, 0, "system.training", config.precision, config.lora_rank)
        return system

    def inputs(self, sentences: Sequence[Sentence]) -> LMInputs:
        """The words."""
        return compose(self.lm, self.read(sentences))
