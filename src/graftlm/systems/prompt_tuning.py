"""The Power of Scale for Parameter-Efficient Prompt Tuning.

Lester, Al-Rfou, Constant. EMNLP 2021. arXiv:2104.08691

A few vectors before the words are all that is trained; the language model, which never changes, reads them as words of
a language of its own. One model then serves any number of tasks, each a prompt of some thousand numbers.

Differences from the paper:
- AdamW at a rate of the recipe stands for Adafactor at 0.3; the recipe sets a length too (the paper: 100).
- The label word is scored among all words (``loss: vocabulary``, the paper's) or among label words alone.
- Starting from class labels is ``init: text`` with the labels in ``init_text``.
- ``reparametrise`` is P-tuning's (arXiv:2103.10385): the prompt goes through an LSTM or an MLP, in the form of peft.
- Encoders (BERT, RoBERTa, MiniLM) are read with the prompt before [CLS]; those without a cloze by a linear head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field

from graftlm.connectors.soft_prompt import PromptMap, SoftPrompt
from graftlm.data.sentence import Sentence
from graftlm.lm.base import LMInputs
from graftlm.lm.compose import compose, prepend
from graftlm.lm.prompt_start import InitName, prompt_start
from graftlm.nn.prompt_maps import PromptLSTM, PromptMLP
from graftlm.systems.base import Parts, PromptConfig, TextSystem


class PromptTuningConfig(PromptConfig):
    """The paper's choices."""

    num_tokens: int = Field(100, ge=1, le=512, description="K, soft tokens (§3.2: 100; 20 is nearly as good)")
    init: InitName = Field("vocabulary", description="noise U(-.5, .5), words drawn at random, or `init_text` (§3.2)")
    init_text: str = Field("", description="words the prompt begins as, repeated or cut to K")
    reparametrise: Literal["none", "lstm", "mlp"] = Field("none", description="P-tuning's network behind the prompt")
    hidden_dim: int = Field(128, ge=1, description="width of that network")


class PromptTuning(TextSystem):
    """K trained vectors, then the words."""

    name = "prompt_tuning"
    Config = PromptTuningConfig
    config: PromptTuningConfig

    def __init__(self, config: PromptTuningConfig, parts: Parts, prompt: SoftPrompt) -> None:
        super().__init__(config, parts)
        self.prompt = prompt

    @classmethod
    def build(cls, config: PromptTuningConfig, parts: Parts) -> Self:
        """Wires the parts. Raises: ConfigError when an option misses what it needs."""
        dim = parts.lm.dim
        through: PromptMap | None = None
        if config.reparametrise != "none":
            width = config.hidden_dim
            through = PromptLSTM(dim, width) if config.reparametrise == "lstm" else PromptMLP(dim, width)
        start = prompt_start(parts.lm, config.init, config.num_tokens, config.init_text)
        return cls(config, parts, SoftPrompt(start, dim, through))

    @property
    def taken(self) -> tuple[int, int]:
        """K positions among the words."""
        return self.config.num_tokens, 0

    def inputs(self, sentences: Sequence[Sentence]) -> LMInputs:
        """The prompt before the words."""
        return prepend(compose(self.lm, self.read(sentences)), *self.prompt.expand(len(sentences)))
