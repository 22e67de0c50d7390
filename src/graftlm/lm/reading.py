"""What every word reads of the media beside it: the attention of cross-attention blocks, told and not kept by them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from graftlm.data.tokenize import IGNORED, TokenBatch
from graftlm.lm.base import LanguageModel, LMInputs
from graftlm.lm.compose import gather_items


@dataclass(frozen=True, slots=True)
class Reading:
    """What the L words of one sentence read of its n media items, in every block, mean over the heads.

    Shapes:
        words: L texts, empty for a special token; layers: the decoder layers that have a block before them
        items: (layers, L, n), sums to 1 over the items, or to 0 where a word may read nothing
        places: (layers, L, n, S), the same by position of the item: a 7 x 7 grid's cells row by row, and of a film
            one frame after the other, each `frame_positions` long
        targets: (L,) bool, which of the words the sentence asks for
    """

    words: tuple[str, ...]
    layers: tuple[int, ...]
    items: Tensor
    places: Tensor
    targets: Tensor
    frame_positions: int


@torch.no_grad()
def read_media(
    lm: LanguageModel, batch: TokenBatch, inputs: LMInputs, shares: Tensor, frame_positions: int
) -> list[Reading]:
    """The reading of every row.

    Shapes:
        inputs: the composed batch, with the memory of the N media items of `batch`, K vectors each
        shares: (N, K, S), how much of each position there is in each of those vectors
    """
    assert inputs.memory is not None
    layers = tuple(sorted(lm.blocks))
    states = dict(zip(layers, lm(inputs, layers=layers).layers, strict=True))
    if 0 in states:
        # The first layer's input is only to be had as the block has changed it, but for words that read no memory.
        states[0] = lm(replace(inputs, memory=None), layers=(0,)).layers[0]
    blocks: dict[int, Any] = dict(lm.blocks)
    weights = [blocks[layer].weights(states[layer], inputs.memory).mean(dim=1) for layer in layers]  # (B, L, n * K)
    by_vector = torch.stack(weights, dim=1)  # (B, layers, L, n * K)
    by_vector = by_vector.view(*by_vector.shape[:3], -1, shares.shape[1])  # (B, layers, L, n, K)
    joined, _ = gather_items(shares.to(by_vector.dtype), batch.rows, len(batch.ids))  # (B, n * K, S)
    places = torch.einsum("btlnk,bnks->btlns", by_vector, joined.view(len(joined), -1, *shares.shape[1:]))
    counts = torch.bincount(batch.rows, minlength=len(batch.ids)).tolist()
    found = []
    for row, count in enumerate(counts):
        length = int(batch.mask[row].sum())
        words = tuple(lm.tokenizer.decode([token]) for token in batch.ids[row, :length].tolist())
        own, cells = by_vector[row, :, :length, :count].sum(dim=-1), places[row, :, :length, :count]
        targets = (batch.labels[row, :length] != IGNORED).cpu()
        found.append(Reading(words, layers, own.cpu(), cells.cpu(), targets, frame_positions))
    return found
