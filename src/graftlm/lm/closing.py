"""Hidden states of tokens that close a prompt, such as FROMAGe's [RET] (§3, arXiv:2301.13823).

What stands before a closing token does not depend on it. Where nothing before it is trained, the words are read
without gradient, on the fast path, and only the closing tokens are computed with one; losses and gradients equal those
of one full pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graftlm.data.tokenize import TokenBatch
from graftlm.errors import ShapeError, UnsupportedLMError
from graftlm.lm.base import LMInputs, LMOutput
from graftlm.lm.extended import ExtendedLM
from graftlm.losses import IGNORED, causal_lm, shifted_targets, split_causal_lm, target_positions


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
        words: (B, W, m, D), m layers, without gradient; mask: (B, W) bool, True at words, not at pictures and padding
        loss: scalar, cross-entropy of the rows' targets
    """

    states: Tensor
    words: Tensor
    mask: Tensor
    loss: Tensor


def read_closing(
    lm: ExtendedLM, batch: TokenBatch, inputs: LMInputs, count: int, layers: Layers, *, scored: float = 1.0
) -> Closing:
    """The states of the `count` tokens that close every row, and the rows' cross-entropy.

    `inputs`: the composed batch. Pictures in it get a gradient; words alone are read without. `scored`: fraction of the
    rows, evenly spread, whose targets count: the output matrix takes as long as a third of the layers.
    Raises: ShapeError when a row does not close so; UnsupportedLMError when a layer is of another width than the last.
    """
    closes = batch.closing(count)  # (B, L)
    if not bool((closes.sum(dim=1) == count).all()):
        raise ShapeError(f"expected every row to close with {count} retrieval tokens, found {closes.sum(1).tolist()}")
    assert inputs.labels is not None
    labels = _some_rows(inputs.labels, scored)
    mask = batch.mask & (batch.slots < 0) & ~batch.retrieval
    if batch.media or inputs.memory is not None:
        output = lm(inputs, at=target_positions(labels), layers=(*layers.closing, *layers.words))
        closing, words = output.layers[: len(layers.closing)], output.layers[len(layers.closing) :]
        states = _side_by_side([layer[closes] for layer in closing], lm)  # (B * r, n, D)
        loss = causal_lm(output.logits, shifted_targets(labels))
        return Closing(states.view(len(closes), -1, lm.dim), _side_by_side(words, lm, closes.shape), mask, loss)
    at = target_positions(labels)[:, :-count]
    before, after = _in_two_steps(lm, inputs, closes, at, layers)
    states = _side_by_side(after.layers, lm)  # (B, r, n, D)
    loss = split_causal_lm(before.logits, lm.extra_logits(before.hidden[at]), shifted_targets(labels))
    words = _side_by_side(before.layers, lm, at.shape)
    return Closing(states.flatten(1, 2), words, mask[:, : at.shape[1]], loss)


def _in_two_steps(
    lm: ExtendedLM, inputs: LMInputs, closes: Tensor, at: Tensor, layers: Layers
) -> tuple[LMOutput, LMOutput]:
    """The frozen words' pass without gradient, with logits at `at`, and the closing tokens' own pass."""
    rows, length = closes.shape
    words = at.shape[1]
    count = length - words
    mask = (inputs.mask & ~closes)[:, :words]
    cache = lm.new_cache(rows, length + (0 if inputs.prefix is None else inputs.prefix.mask.shape[1]))
    with torch.no_grad():
        prompt = LMInputs(inputs.embeds[:, :words], mask, prefix=inputs.prefix)
        before = lm.base(prompt, cache=cache, at=at, layers=layers.words)
    embeds = inputs.embeds[closes].view(rows, count, lm.dim)
    every = torch.ones(rows, count, dtype=torch.bool, device=closes.device)
    return before, lm.base(LMInputs(embeds, every), cache=before.cache, at=~every, layers=layers.closing)


def _some_rows(labels: Tensor, fraction: float) -> Tensor:
    """The labels (B, L) of a fraction of the rows, evenly spread; at least one row's."""
    rows = len(labels)
    count = math.ceil(rows * fraction)
    kept = torch.zeros(rows, dtype=torch.bool, device=labels.device)
    kept[[number * rows // count for number in range(count)]] = True
    return labels.masked_fill(~kept[:, None], IGNORED)


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
