"""Hidden states of tokens that close a prompt, such as FROMAGe's [RET] (§3, arXiv:2301.13823).

What stands before a closing token does not depend on it. Where nothing before it is trained, the words are read
without gradient, on the fast path, and only the closing tokens are computed with one; losses and gradients equal those
of one full pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from graftlm.data.tokenize import TokenBatch
from graftlm.errors import ShapeError, UnsupportedLMError
from graftlm.lm.base import LMInputs
from graftlm.lm.extended import ExtendedLM
from graftlm.losses import IGNORED, causal_lm, shifted_targets, split_causal_lm, target_positions

FEW_SCORED = 1 / 16
"""Part of the rows that is enough where their targets train the output vectors of the closing tokens alone."""


@dataclass(frozen=True, slots=True)
class Layers:
    """Hidden layers that are read of the closing tokens, and of the words before them; numbers as in `forward`."""

    closing: Sequence[int] = (-1,)
    words: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Closing:
    """What the closing tokens of B rows hold, and the words before them.

    Shapes:
        states: (B, r * n, D), r tokens and n layers
        words: (W, m, D), m layers of all rows' words, without gradient; owners: (W,) long, the row of each
        loss: scalar, cross-entropy of the rows' targets
    """

    states: Tensor
    words: Tensor
    owners: Tensor
    loss: Tensor


def read_closing(
    lm: ExtendedLM, batch: TokenBatch, inputs: LMInputs, count: int, layers: Layers, *, scored: float = 1.0
) -> Closing:
    """The states of the `count` tokens that close every row, and the rows' cross-entropy.

    `inputs`: the composed batch. Pictures in it get a gradient; words alone are read without. `scored`: fraction of the
    rows, evenly spread, whose targets count: the output matrix takes as long as a third of the layers, and the other
    rows go no higher than the layers that are read.
    Raises: ShapeError when a row does not close so; UnsupportedLMError when a layer is of another width than the last.
    """
    closes = batch.closing(count)  # (B, L)
    if not bool((closes.sum(dim=1) == count).all()):
        raise ShapeError(f"expected every row to close with {count} retrieval tokens, found {closes.sum(1).tolist()}")
    assert inputs.labels is not None
    chosen = _some_rows(len(closes), scored).to(closes.device)
    inputs = replace(inputs, labels=inputs.labels.masked_fill(~chosen[:, None], IGNORED))
    if batch.media or inputs.memory is not None or not _takes_prefix(lm):
        return _in_one_pass(lm, inputs, closes, layers, batch.mask & (batch.slots < 0) & ~batch.retrieval)
    groups = [rows for rows in (chosen.nonzero()[:, 0], *_alike(~chosen, batch.mask.sum(dim=1))) if len(rows)]
    parts = [_in_two_passes(lm, inputs.select(rows), closes[rows], layers) for rows in groups]
    states = torch.cat([part.states for part in parts])[torch.cat(groups).argsort()]
    owners = torch.cat([rows[part.owners] for rows, part in zip(groups, parts, strict=True)])
    return Closing(states, torch.cat([part.words for part in parts]), owners, parts[0].loss)


def _takes_prefix(lm: ExtendedLM) -> bool:
    try:
        return lm.prefix_geometry.num_layers > 0
    except UnsupportedLMError:
        return False


def _in_one_pass(lm: ExtendedLM, inputs: LMInputs, closes: Tensor, layers: Layers, mask: Tensor) -> Closing:
    assert inputs.labels is not None
    output = lm(inputs, at=target_positions(inputs.labels), layers=(*layers.closing, *layers.words))
    closing, words = output.layers[: len(layers.closing)], output.layers[len(layers.closing) :]
    states = _side_by_side([layer[closes] for layer in closing], lm)  # (B * r, n, D)
    loss = causal_lm(output.logits, shifted_targets(inputs.labels))
    found = _side_by_side([layer[mask] for layer in words], lm, (int(mask.sum()),))
    return Closing(states.view(len(closes), -1, lm.dim), found, mask.nonzero()[:, 0], loss)


def _in_two_passes(lm: ExtendedLM, inputs: LMInputs, closes: Tensor, layers: Layers) -> Closing:
    """The frozen words without gradient, then the closing tokens behind what the model holds of them."""
    assert inputs.labels is not None
    count = int(closes[0].sum())
    rows, words = len(closes), int(inputs.mask.sum(dim=1).max()) - count
    at = target_positions(inputs.labels)[:, :words]
    past = 0 if inputs.prefix is None else inputs.prefix.mask.shape[1]
    mask = (inputs.mask & ~closes)[:, :words]
    before_closing = LMInputs(inputs.embeds[:, :words], mask, prefix=inputs.prefix)
    deepest = (*layers.words, *layers.closing)
    with torch.no_grad():
        before = lm.base(before_closing, cache=lm.new_cache(rows, past + words), at=at, layers=deepest)
        held = lm.base.read_cache(before.cache)
    every = torch.ones(rows, count, dtype=torch.bool, device=closes.device)
    own = LMInputs(inputs.embeds[closes].view(rows, count, lm.dim), every, prefix=held)
    after = lm.base(own, at=~every, layers=layers.closing)
    states = _side_by_side(after.layers, lm)  # (B, r, n, D)
    loss = split_causal_lm(before.logits, lm.extra_logits(before.hidden[at]), shifted_targets(inputs.labels))
    found = _side_by_side([layer[mask] for layer in before.layers[: len(layers.words)]], lm, (int(mask.sum()),))
    return Closing(states.flatten(1, 2), found, mask.nonzero()[:, 0], loss)


def _alike(chosen: Tensor, lengths: Tensor) -> list[Tensor]:
    """The chosen rows in groups of like length, so that a few long rows do not pad all others."""
    rows = chosen.nonzero()[:, 0]
    if not len(rows):
        return []
    rows = rows[lengths[rows].argsort(stable=True)]
    is_long = lengths[rows] > 1.5 * lengths[rows[len(rows) // 2]]
    return [rows[~is_long], rows[is_long]]


def _some_rows(rows: int, fraction: float) -> Tensor:
    """A fraction of so many rows, evenly spread: (rows,) bool; at least one where the fraction is above 0."""
    count = math.ceil(rows * fraction)
    kept = torch.zeros(rows, dtype=torch.bool)
    kept[[number * rows // count for number in range(count)]] = True
    return kept


def _side_by_side(layers: Sequence[Tensor], lm: ExtendedLM, shape: Sequence[int] = ()) -> Tensor:
    """Layers as one tensor (..., n, D); `shape`: the dots where there may be none of them.

    Raises: UnsupportedLMError where one is of another width (OPT-350m's).
    """
    if not layers:
        return torch.zeros(*shape, 0, lm.dim)
    if any(layer.shape[-1] != lm.dim for layer in layers):
        widths = [layer.shape[-1] for layer in layers]
        raise UnsupportedLMError(
            f"hidden states of widths {widths} do not fit one head; set system.text_layers and word_layers to [-1]"
        )
    return torch.stack(list(layers), dim=-2)
