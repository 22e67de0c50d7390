"""Understanding Intermediate Layers Using Linear Classifier Probes.

Alain, Bengio. ICLR Workshop 2017. arXiv:1610.01644

A linear map is trained on what a frozen language model makes of a text, and on nothing else. It tells what the model
knows of a task already: a prompt method that does worse has learnt nothing.

Differences from the paper:
- It probes one vector, of the last layer: the last position of a causal model, the pooled one of an encoder.
- The vectors are normalised; what the model makes of a text is computed once and kept as long as the system lives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from graftlm.data.sentence import Sentence
from graftlm.lm.base import LMInputs
from graftlm.lm.compose import compose
from graftlm.lm.readout import PooledHead, asked, pooled_loss
from graftlm.systems.base import Parts, PromptConfig, TextSystem

_MOST_KEPT = 20_000


class LinearProbeConfig(PromptConfig):
    """A pooled head, and nothing else."""

    head: Literal["pooled"] = Field("pooled", description="pooled: a linear head is all there is")
    num_classes: int = Field(2, ge=2, description="classes of the head")


class LinearProbe(TextSystem):
    """The words -> frozen language model -> one vector -> Linear."""

    name = "linear_probe"
    Config = LinearProbeConfig
    config: LinearProbeConfig

    def __init__(self, config: LinearProbeConfig, parts: Parts, head: PooledHead) -> None:
        super().__init__(config, parts, head)
        self._kept: dict[Sentence, Tensor] = {}

    @classmethod
    def build(cls, config: LinearProbeConfig, parts: Parts) -> Self:
        """Wires the parts."""
        return cls(config, parts, PooledHead(parts.lm.dim, config.num_classes))

    @property
    def probe(self) -> PooledHead:
        """The head, which is always there."""
        assert self.head is not None
        return self.head

    def inputs(self, sentences: Sequence[Sentence]) -> LMInputs:
        """The words."""
        return compose(self.lm, self.read(sentences))

    def losses(self, sentences: Sequence[Sentence]) -> dict[str, Tensor]:
        """Cross-entropy of the class."""
        return {"label": pooled_loss(self.probe(self.vectors(sentences)), sentences)}

    @torch.no_grad()
    def class_scores(self, sentences: Sequence[Sentence], words: Sequence[Sequence[str]], **how: Any) -> Tensor:
        """Log-probabilities of the classes, (B, C); there are no words to calibrate."""
        scores: Tensor = self.probe(self.vectors(sentences))
        return scores.log_softmax(dim=-1)

    @torch.no_grad()
    def vectors(self, sentences: Sequence[Sentence]) -> Tensor:
        """What the frozen model makes of sentences, (B, D) float32; computed once for each."""
        shown = asked(self.lm, sentences)
        new = [sentence for sentence in dict.fromkeys(shown) if sentence not in self._kept]
        found = dict(zip(new, self.probe.pool(self.lm, self.inputs(new), 0), strict=True)) if new else {}
        if len(self._kept) + len(found) <= _MOST_KEPT:
            self._kept.update(found)
        return torch.stack([found[one] if one in found else self._kept[one] for one in shown])
