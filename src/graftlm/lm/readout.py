"""How a text system reads a class off a language model: by its label word, or by a linear head over one vector.

The first is a cloze (OpenPrompt, arXiv:2111.01998): the label word is what the model is to write. The second is what
models without an output matrix need, and what IPT's released code does (arXiv:2206.01958).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftlm.data.labelled import chosen
from graftlm.data.sentence import Sentence
from graftlm.errors import ConfigError
from graftlm.lm.base import LanguageModel, LMInputs
from graftlm.lm.cloze import cloze_logits
from graftlm.lm.verbalise import Verbaliser

LossName = Literal["vocabulary", "verbaliser"]
HeadName = Literal["cloze", "pooled"]


class PooledHead(nn.Module):
    """One vector of a row -> layer norm -> Linear -> classes.

    `first`: the vector is the first position, which is the first prompt token where there is a prompt, in place of what
    the language model pools of the words; the map is then left as it was drawn (both as in IPT's released code).
    """

    def __init__(self, dim: int, num_classes: int, *, first: bool = False) -> None:
        super().__init__()
        self.first = first
        self.norm = nn.Identity() if first else nn.LayerNorm(dim, elementwise_affine=False)
        self.classify = nn.Linear(dim, num_classes)
        if first:
            generator = torch.Generator().manual_seed(0)  # it is in no checkpoint, and must be the same when loaded
            with torch.no_grad():
                self.classify.weight.normal_(std=dim**-0.5, generator=generator)
                self.classify.bias.zero_()
            self.classify.requires_grad_(False)

    def pool(self, lm: LanguageModel, inputs: LMInputs, num_prompt: int) -> Tensor:
        """The vector (B, D) float32; the first `num_prompt` positions are a prompt's and no words."""
        hidden = lm(inputs, at=torch.zeros_like(inputs.mask), layers=(-1,)).layers[0]  # (B, L, D)
        words = slice(num_prompt, None)
        return (hidden[:, 0] if self.first else lm.pool(hidden[:, words], inputs.mask[:, words])).float()

    def forward(self, pooled: Tensor) -> Tensor:
        """Logits (B, classes) of vectors (B, D)."""
        logits: Tensor = self.classify(self.norm(pooled))
        return logits


def pooled_head(lm: LanguageModel, head: HeadName, num_classes: int, *, first: bool = False) -> PooledHead | None:
    """The head that a config asks for; None for a cloze.

    Raises: ConfigError for a cloze of a model without an output matrix, or a head without its number of classes.
    """
    if head == "cloze":
        if not lm.has_head:
            raise ConfigError(
                "system.head: expected pooled for a language model without an output matrix, found cloze; "
                "set head: pooled and num_classes"
            )
        return None
    if num_classes < 2:
        raise ConfigError(f"system.num_classes: a pooled head needs two or more, found {num_classes}; set it")
    return PooledHead(lm.dim, num_classes, first=first)


def asked(lm: LanguageModel, sentences: Sequence[Sentence]) -> list[Sentence]:
    """What a pooled head is shown: never the label word, which a causal model would find at the end."""
    return [sentence.prompt() for sentence in sentences] if lm.is_causal else list(sentences)


def class_labels(sentences: Sequence[Sentence], device: torch.device) -> Tensor:
    """The class of every sentence: (B,) long. Raises: DataError where a sentence names none."""
    return torch.tensor([chosen(sentence)[0] for sentence in sentences], device=device)


def pooled_loss(logits: Tensor, sentences: Sequence[Sentence]) -> Tensor:
    """Mean cross-entropy of the classes. Raises: ConfigError when a class has no logit."""
    labels = class_labels(sentences, logits.device)
    if int(labels.max()) >= logits.shape[1]:
        raise ConfigError(
            f"system.num_classes: expected more than {int(labels.max())}, found {logits.shape[1]}; set it to the "
            "number of the template's classes"
        )
    return F.cross_entropy(logits, labels)


def verbaliser_loss(lm: LanguageModel, inputs: LMInputs, sentences: Sequence[Sentence]) -> Tensor:
    """Cross-entropy over the label words alone, softmax over those of all classes (OpenPrompt §3.3)."""
    _, words = chosen(sentences[0])
    verbaliser = Verbaliser.of(lm.tokenizer, words)
    return verbaliser.loss(cloze_logits(lm, inputs), class_labels(sentences, inputs.mask.device))
