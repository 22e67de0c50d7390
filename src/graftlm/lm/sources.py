"""Which words of a row a prompt is written from: never the label, and as many as the utilisation rate says.

IPT §4.4 (arXiv:2206.01958): the sequence utilisation rate is the part of the longest row that the generator may read.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from graftlm.data.tokenize import IGNORED, TokenBatch
from graftlm.lm.base import LanguageModel


def source_words(lm: LanguageModel, batch: TokenBatch, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` words of every row, without special tokens and all that is a target or stands after one.

    In a model that looks both ways, words after the mask count too.
    Shapes:
        returns: ids (B, S) long and mask (B, S) bool, S <= count, at the left
    """
    usable = batch.mask & _told(lm, batch)
    for special in (lm.tokenizer.bos_id, lm.tokenizer.eos_id, lm.tokenizer.pad_id, lm.mask_id):
        if special is not None:
            usable = usable & (batch.ids != special)
    order = torch.argsort((~usable).to(torch.int8), dim=1, stable=True)[:, :count]  # (B, S)
    return batch.ids.gather(1, order), usable.gather(1, order)


def source_positions(lm: LanguageModel, batch: TokenBatch, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` positions of every row whatever stands there, padding included, as IPT's released code has it.

    A label is padding too: the released code never has one among its ids. Shapes: as `source_words`, S = count
    """
    pad = lm.tokenizer.pad_id
    ids = torch.where(batch.mask & _told(lm, batch), batch.ids, batch.ids.new_tensor(pad))
    ids = F.pad(ids, (0, max(0, count - ids.shape[1])), value=pad)[:, :count]
    return ids, torch.ones_like(ids, dtype=torch.bool)


def _told(lm: LanguageModel, batch: TokenBatch) -> Tensor:
    """(B, L) bool: no target, and none before it in a model that reads from left to right."""
    is_target = batch.labels != IGNORED
    return is_target.cumsum(dim=1) == 0 if lm.is_causal else ~is_target
