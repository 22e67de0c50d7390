"""PPT: Pre-trained Prompt Tuning for Few-shot Learning.

Gu, Han, Liu, Huang. ACL 2022. arXiv:2109.04332

A prompt learnt from a few examples hardly leaves where it began. So it begins as one that was trained on tasks which
plain text sets itself, of the form of the task to come: pairs of sentences, multiple choice, single texts.

Differences from the paper:
- Pre-training is this system over the reader ``self_supervised``; its graft is then named in ``pretrained``.
- The paper's model is T5, which fills a mask anywhere; in a causal language model the label word comes last.
- *Hybrid* prompts are a template with words of its own (``hybrid: true`` of the reader, any template downstream).
- The single-text format takes its five labels from a column of the data; the paper has a classifier label plain text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self

from pydantic import Field
from torch import Tensor

from graftlm.connectors.soft_prompt import SoftPrompt
from graftlm.data.self_supervised import as_choice, letters
from graftlm.data.sentence import Sentence
from graftlm.errors import ConfigError
from graftlm.lm.base import LMInputs
from graftlm.lm.compose import compose, prepend
from graftlm.lm.prompt_start import prompt_start
from graftlm.systems.base import Parts, PromptConfig, TextSystem, trained_tensors

_VECTORS = "prompt.vectors"


class PPTConfig(PromptConfig):
    """The paper's choices."""

    num_tokens: int = Field(100, ge=1, le=512, description="K, soft tokens (§4.1: 100)")
    pretrained: str = Field("", description="graft of a pre-trained prompt to begin as; empty: words drawn at random")
    variant: Literal["separate", "unified"] = Field(
        "separate", description="unified: a task is put as a choice among lettered options (§3.2.4)"
    )


class PPT(TextSystem):
    """Prompt tuning from a prompt that knows the form of the task."""

    name = "ppt"
    Config = PPTConfig
    config: PPTConfig

    def __init__(self, config: PPTConfig, parts: Parts, prompt: SoftPrompt) -> None:
        super().__init__(config, parts)
        self.prompt = prompt

    @classmethod
    def build(cls, config: PPTConfig, parts: Parts) -> Self:
        """Wires the parts."""
        start = prompt_start(parts.lm, "vocabulary", config.num_tokens)
        return cls(config, parts, SoftPrompt(start, parts.lm.dim))

    @property
    def taken(self) -> tuple[int, int]:
        """K positions among the words."""
        return self.config.num_tokens, 0

    def learn(self, sentences: Iterable[Sentence]) -> None:
        """Takes the pre-trained prompt. Raises: ConfigError when it does not fit; CheckpointError."""
        if self.begun or not self.config.pretrained:
            return
        vectors = trained_tensors(self.config.pretrained).get(_VECTORS)
        if vectors is None or vectors.shape != self.prompt.vectors.shape:
            found = "none" if vectors is None else f"one of shape {list(vectors.shape)}"
            raise ConfigError(
                f"system.pretrained: {self.config.pretrained}: expected a prompt of shape "
                f"{list(self.prompt.vectors.shape)}, found {found}; use the num_tokens and lm it was trained with"
            )
        self.prompt.vectors.data.copy_(vectors)

    def length(self, sentence: Sentence) -> tuple[int, int]:
        """Positions of a sentence as the variant asks for it, and targets among them."""
        (put,) = self._put([sentence])
        return super().length(put)

    def inputs(self, sentences: Sequence[Sentence]) -> LMInputs:
        """The prompt before the words."""
        return prepend(compose(self.lm, self.read(sentences)), *self.prompt.expand(len(sentences)))

    def losses(self, sentences: Sequence[Sentence]) -> dict[str, Tensor]:
        """Cross-entropy of the class, as the variant asks for it."""
        return super().losses(self._put(sentences))

    def class_scores(self, sentences: Sequence[Sentence], words: Sequence[Sequence[str]], **how: Any) -> Tensor:
        """Log-probabilities of the classes; in the unified variant of their letters."""
        own = letters(len(words)) if self.config.variant == "unified" else words
        how["references"] = self._put(how.get("references", ()))
        return super().class_scores(self._put(sentences), own, **how)

    def _put(self, sentences: Sequence[Sentence]) -> Sequence[Sentence]:
        return [as_choice(sentence) for sentence in sentences] if self.config.variant == "unified" else sentences
