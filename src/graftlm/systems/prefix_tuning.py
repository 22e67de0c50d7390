"""Prefix-Tuning: Optimizing Continuous Prompts for Generation.

Li, Liang. ACL 2021. arXiv:2101.00190

Every layer of a frozen language model finds a few keys and values before the first word, and these are all that is
trained. They steer more than vectors among the words can, since no layer has to carry them on to the next.

Differences from the paper:
- The prefix is trained as it is (``mlp: false``), as P-tuning v2 does (arXiv:2110.07602), or through the paper's MLP.
- A prefix without the MLP begins as what the model itself keeps of words (§7.4), of random ones by default.
- Keys of rotary models are taken as they are, without a rotation; the layout of a position is peft's.
- Encoders (BERT, RoBERTa, MiniLM) take a prefix too, which begins as noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from pydantic import Field

from graftlm.connectors.soft_prompt import SoftPrompt
from graftlm.data.sentence import Sentence
from graftlm.lm.base import KVPrefix, LMInputs
from graftlm.lm.compose import compose
from graftlm.lm.prompt_start import InitName, prefix_start, prompt_start
from graftlm.nn.prompt_maps import PrefixMLP
from graftlm.systems.base import Parts, PromptConfig, TextSystem


class PrefixTuningConfig(PromptConfig):
    """The paper's choices, but for the MLP."""

    num_tokens: int = Field(10, ge=1, le=512, description="K, positions of the prefix (§7.2: 10 for table-to-text)")
    init: InitName = Field("vocabulary", description="noise, words drawn at random, or `init_text` (§7.4)")
    init_text: str = Field("", description="words the prefix begins as, repeated or cut to K")
    mlp: bool = Field(False, description="the prefix is written by an MLP (§4.3), which then starts from the words")
    hidden_dim: int = Field(512, ge=1, description="width of the MLP (§4.3: 512 for table-to-text)")


class PrefixTuning(TextSystem):
    """K trained keys and values in every layer."""

    name = "prefix_tuning"
    Config = PrefixTuningConfig
    config: PrefixTuningConfig

    def __init__(self, config: PrefixTuningConfig, parts: Parts, prefix: SoftPrompt) -> None:
        super().__init__(config, parts)
        self.prefix = prefix

    @classmethod
    def build(cls, config: PrefixTuningConfig, parts: Parts) -> Self:
        """Wires the parts. Raises: ConfigError for a start that does not fit; UnsupportedLMError."""
        lm, width = parts.lm, parts.lm.prefix_geometry.token_dim
        if config.mlp:
            start = prompt_start(lm, config.init, config.num_tokens, config.init_text)
            return cls(config, parts, SoftPrompt(start, width, PrefixMLP(lm.dim, config.hidden_dim, width)))
        start = prefix_start(lm, config.init, config.num_tokens, config.init_text)
        return cls(config, parts, SoftPrompt(start, width))

    @property
    def taken(self) -> tuple[int, int]:
        """K positions in every layer."""
        return 0, self.config.num_tokens

    def inputs(self, sentences: Sequence[Sentence]) -> LMInputs:
        """The words, with the prefix before them in every layer."""
        batch = self.read(sentences)
        prefix = KVPrefix.from_tokens(*self.prefix.expand(len(batch.ids)), self.lm.prefix_geometry)
        return compose(self.lm, batch, prefix=prefix)
