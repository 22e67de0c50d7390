"""A batch that is being continued: the prompt computed once, then one token per row and step."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from graftlm.errors import ShapeError
from graftlm.lm.base import LanguageModel, LMInputs, Memory


class Continuation:
    """Rows of one batch behind their cache.

    A new token reads the memory that the last position of its row's prompt may read: its memory mask is that
    position's row of the mask. What cross-attention makes of the memory is made once. The prefix goes in with the
    prompt and lives in the cache from then on.

    Attributes:
        logits: (R, V), for the next token of every row
        room: tokens that can be written before the cache or the LM's context is full
    """

    def __init__(self, lm: LanguageModel, inputs: LMInputs, max_tokens: int) -> None:
        if not bool(inputs.mask.any(dim=1).all()):
            raise ShapeError("a row of the batch has no position to continue; give every prompt a token or a picture")
        inputs = inputs.align_left()
        if inputs.memory is not None:
            inputs = replace(inputs, memory=inputs.memory.project(lm.blocks.values()))
        rows, length = inputs.mask.shape
        filled = length + (0 if inputs.prefix is None else inputs.prefix.mask.shape[1])
        self.room = max(1, min(max_tokens, lm.context_length - filled + 1))
        self._lm = lm
        at = torch.zeros_like(inputs.mask)
        at[:, -1] = True
        # The last token of an answer is never read back, so it needs no place.
        output = lm(inputs, cache=lm.new_cache(rows, filled + self.room - 1), at=at)
        self.logits: Tensor = output.logits  # (R, V)
        self._cache: Any = output.cache
        self._memory: Memory | None = None
        if inputs.memory is not None:
            self._memory = replace(inputs.memory, mask=inputs.memory.mask[:, -1:])  # (R, 1, M)

    def __len__(self) -> int:
        return len(self.logits)

    def select(self, rows: Tensor, *, drop: bool = True) -> None:
        """Keeps the given rows, in the given order; a row may be taken several times.

        `drop`: what was held so far belongs to nobody else.
        """
        self._cache = self._lm.select_cache(self._cache, rows, drop=drop)
        self.logits = self.logits[rows]
        if self._memory is not None:
            self._memory = self._memory.select(rows)

    def branch(self, rows: int) -> Continuation:
        """The first row taken `rows` times over a cache of its own; this one stays as it is."""
        branch = copy(self)
        branch.select(torch.zeros(rows, dtype=torch.long, device=self.logits.device), drop=False)
        return branch

    def step(self, ids: Tensor) -> None:
        """Writes one token per row, (R,) long, and computes the logits of the next."""
        embeds = self._lm.embed(ids[:, None])  # (R, 1, D)
        self.extend(embeds, torch.ones_like(ids, dtype=torch.bool)[:, None])

    def extend(self, embeds: Tensor, mask: Tensor, at: Tensor | None = None) -> None:
        """Writes several positions per row, padded on the right; `logits` become those of `at`, all by default.

        Shapes:
            embeds: (R, T, D); mask, at: (R, T) bool
        """
        memory = self._memory
        if memory is not None:
            memory = replace(memory, mask=memory.mask.expand(-1, mask.shape[1], -1))  # (R, T, M)
        output = self._lm(LMInputs(embeds, mask, memory=memory), cache=self._cache, at=mask if at is None else at)
        self._cache, self.logits = output.cache, output.logits
