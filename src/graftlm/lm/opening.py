"""The beginning that many prompts share, computed once: the worked examples of a few-shot prompt, say.

A prompt is still laid out whole, so that positions, chunk ends and the numbers of its media count on from the
beginning; what the language model made of the shared positions then stands in their place, as keys and values. It is
the state of no module: threads may share an opening.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from graftlm.data.sentence import Sentence
from graftlm.errors import ShapeError
from graftlm.lm.base import KVPrefix, LanguageModel, LMInputs, Memory

_CLOSE = 1e-2
"""Relative distance below which two input vectors are one: rounding differs between batches of different size."""


@dataclass(frozen=True, slots=True)
class Opening:
    """One prompt, and what the language model keeps of it.

    Attributes:
        sentence: what the prompts begin with
        inputs: it as one row
        kept: keys and values of its P positions, (num_layers, 1, num_kv_heads, P, head_dim)
    """

    sentence: Sentence
    inputs: LMInputs
    kept: KVPrefix

    @staticmethod
    @torch.no_grad()
    def of(lm: LanguageModel, inputs: LMInputs, sentence: Sentence) -> Opening:
        """Reads one row. Raises: ShapeError when it is not one row without padding."""
        if len(inputs) != 1 or not bool(inputs.mask.all()):
            raise ShapeError(f"an opening: expected one row without padding, found {len(inputs)} rows")
        last = torch.zeros_like(inputs.mask)
        last[:, -1] = True
        before = 0 if inputs.prefix is None else inputs.prefix.mask.shape[1]
        cache = lm.new_cache(1, before + inputs.mask.shape[1])
        return Opening(sentence, inputs, lm.read_cache(lm(inputs, cache=cache, at=last).cache))

    def skip(self, inputs: LMInputs) -> LMInputs:
        """The same rows, which all begin with `sentence`, with keys and values in place of the positions they share.

        A row keeps one position at least. Where the pictures of a row stand before all words as a per-layer prefix, no
        two rows share any, and they stay as they are. A language model whose sliding window is shorter than a prompt
        counts the padding of shorter rows in it, as with any prefix: give it rows of one length.
        Shapes:
            inputs: padded on the right
        """
        if inputs.prefix is not None:
            return inputs
        shared = min(self._num_shared(inputs), int(inputs.mask.sum(dim=1).min()) - 1)
        if shared <= 0:
            return inputs
        rows = len(inputs)
        prefix = KVPrefix(
            self.kept.keys[..., :shared, :].expand(-1, rows, -1, -1, -1),
            self.kept.values[..., :shared, :].expand(-1, rows, -1, -1, -1),
            self.kept.mask[:, :shared].expand(rows, -1),
        )
        memory = None if inputs.memory is None else _still_read(inputs.memory, shared)
        labels = None if inputs.labels is None else inputs.labels[:, shared:]
        return LMInputs(inputs.embeds[:, shared:], inputs.mask[:, shared:], labels, memory, prefix)

    def _num_shared(self, inputs: LMInputs) -> int:
        """Positions from the first on that hold in every row what they hold here."""
        length = min(inputs.mask.shape[1], self.inputs.mask.shape[1])
        own, given = (each.embeds[:, :length].float() for each in (self.inputs, inputs))  # (1, P, D), (B, P, D)
        alike = (given - own).norm(dim=-1) <= _CLOSE * own.norm(dim=-1)  # (B, P)
        return int((alike & inputs.mask[:, :length]).all(dim=0).long().cumprod(dim=0).sum())


def _still_read(memory: Memory, start: int) -> Memory:
    """The memory of the positions from `start` on, without what none of them may read."""
    mask = memory.mask[:, start:]
    columns: Tensor = mask.any(dim=1).any(dim=0)  # (M,)
    return replace(memory, states=memory.states[:, columns], mask=mask[..., columns], projected={})
