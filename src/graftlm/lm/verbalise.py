"""Scores of classes from those of their words (verbalisers, arXiv:2001.07676 §3; as in OpenPrompt, arXiv:2111.01998).

A word of several tokens counts by its first, or by the mean or the largest of their logits at the same position. The
softmax goes over the words of all classes alone; a class has the mean log-probability of its words. With a prior the
probabilities are divided by it first (contextual calibration, arXiv:2102.09690 §5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from graftlm.errors import ConfigError
from graftlm.lm.base import Tokenizer

Pooling: TypeAlias = Literal["first", "mean", "max"]


@dataclass(frozen=True, slots=True)
class Verbaliser:
    """The words of C classes as ids.

    Shapes:
        ids: (W, T) long, the tokens of all words, class by class; used: (W, T) bool
        owners: (W,) long, the class of each word
    """

    ids: Tensor
    used: Tensor
    owners: Tensor
    classes: int
    pooling: Pooling = "first"

    @classmethod
    def of(cls, tokenizer: Tokenizer, words: Sequence[Sequence[str]], pooling: Pooling = "first") -> Verbaliser:
        """Of every class's words, as they stand in the sentence.

        Raises: ConfigError when a word has no token, or two classes would be told apart by the same tokens.
        """
        rows = [(label, word, tokenizer.encode(word)) for label, own in enumerate(words) for word in own]
        for _, word, ids in rows:
            if not ids:
                raise ConfigError(f"label words: expected at least one token in '{word}', found none; use another word")
        _check_apart(rows, pooling)
        length = 1 if pooling == "first" else max(len(ids) for _, _, ids in rows)
        padded = [(ids[:length] + [0] * length)[:length] for _, _, ids in rows]
        used = [[place < len(ids) for place in range(length)] for _, _, ids in rows]
        owners = torch.tensor([label for label, _, _ in rows])
        return cls(torch.tensor(padded), torch.tensor(used), owners, len(words), pooling)

    def word_probs(self, logits: Tensor) -> Tensor:
        """Probabilities of all words among themselves: logits (B, V) at the mask to (B, W)."""
        return self._pooled(logits).softmax(dim=-1)

    def scores(self, logits: Tensor, prior: Tensor | None = None) -> Tensor:
        """Log-probabilities of the classes.

        Shapes:
            logits: (B, V) at the mask; prior: (W,), the words' probabilities where nothing is said; returns: (B, C)
        """
        log_probs = self._pooled(logits).log_softmax(dim=-1)  # (B, W)
        if prior is not None:
            log_probs = (log_probs - prior.to(log_probs).clamp(min=1e-12).log()).log_softmax(dim=-1)
        share = F.one_hot(self.owners.to(log_probs.device), self.classes).to(log_probs)  # (W, C)
        return log_probs @ (share / share.sum(dim=0))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of classes over their words alone: logits (B, V), labels (B,) long."""
        return F.cross_entropy(self.scores(logits), labels)

    def _pooled(self, logits: Tensor) -> Tensor:
        """One logit a word: (B, W) float32."""
        found = logits.float()[:, self.ids.to(logits.device)]  # (B, W, T)
        used = self.used.to(logits.device)
        if self.pooling == "mean":
            return (found * used).sum(dim=-1) / used.sum(dim=-1)
        return found.masked_fill(~used, float("-inf")).amax(dim=-1)


def _check_apart(rows: Sequence[tuple[int, str, list[int]]], pooling: Pooling) -> None:
    """Raises: ConfigError when words of two classes are the same to the model."""
    seen: dict[tuple[int, ...], tuple[int, str]] = {}
    for label, word, ids in rows:
        key = tuple(ids[:1] if pooling == "first" else ids)
        other, earlier = seen.setdefault(key, (label, word))
        if other != label:
            advice = "score them by the mean of their tokens (words: mean), or use other words"
            both = f"'{earlier.strip()}' and '{word.strip()}'"
            raise ConfigError(f"label words {both} begin with the same token; {advice}")
