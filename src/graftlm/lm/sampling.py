"""What may be written next: changes of logits, and the draw from them. Pure functions.

Index letters: R rows, V vocabulary. Order of application, as everywhere in the field: repetition penalty, repeated
n-grams, fewest tokens, temperature, top-k, top-p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_NEVER = float("-inf")
_BLOCK = 64
_GOLDEN = 0.6180339887498949


def penalise_repetition(scores: Tensor, written: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Makes every id a row has written `penalty` times less likely (CTRL, arXiv:1909.05858 §4.1).

    Shapes:
        scores: (R, V) float; returns: (R, V), a new tensor
    """
    scores = scores.clone()
    for row, ids in enumerate(written):
        seen = torch.tensor(sorted(set(ids)), dtype=torch.long, device=scores.device)
        old = scores[row, seen]
        scores[row, seen] = torch.where(old < 0, old * penalty, old / penalty)
    return scores


def forbid_repeated_ngrams(scores: Tensor, written: Sequence[Sequence[int]], size: int) -> Tensor:
    """Forbids every id that would complete an n-gram of `size` ids the row has already written.

    Shapes:
        scores: (R, V) float; returns: (R, V), a new tensor
    """
    scores = scores.clone()
    for row, ids in enumerate(written):
        start = list(ids[len(ids) - size + 1 :]) if size > 1 else []
        for first in range(len(ids) - size + 1):
            if list(ids[first : first + size - 1]) == start:
                scores[row, ids[first + size - 1]] = _NEVER
    return scores


@dataclass(frozen=True, slots=True)
class TokenBias:
    """A change of one id's logit before anything else: ``abs(logit) * factor + bias``.

    Attributes:
        bias: added; -inf forbids the id
        factor: multiplied with, which makes an id with a negative logit less likely (FROMAGe's released code)
        absolute: of the absolute value (GILL's released code)
        outright: lowered besides, so that the id comes first only where it is likelier than all others together
    """

    token: int
    bias: float = 0.0
    factor: float = 1.0
    absolute: bool = False
    outright: bool = False


def bias_tokens(scores: Tensor, changes: Sequence[TokenBias]) -> Tensor:
    """Applies changes of single ids: (R, V), a new tensor."""
    scores = scores.clone()
    for change in changes:
        own = scores[:, change.token]
        own = own.abs() if change.absolute else own
        lead = _lead(scores, change.token) if change.outright else 0.0
        scores[:, change.token] = own * change.factor + change.bias - lead
    return scores


def _lead(scores: Tensor, token: int) -> Tensor:
    """How much more all other ids have together than the best of them, in logits: (R, V) to (R,), 0 or more."""
    others = forbid_id(scores, token)
    return others.logsumexp(dim=-1) - others.amax(dim=-1)


def forbid_id(scores: Tensor, token_id: int) -> Tensor:
    """The same scores with one id forbidden: (R, V)."""
    scores = scores.clone()
    scores[:, token_id] = _NEVER
    return scores


def keep_top_k(scores: Tensor, count: int) -> Tensor:
    """Forbids all but the `count` best ids of each row, and what ties with the last of them: (R, V)."""
    last = scores.topk(min(count, scores.shape[-1])).values[:, -1:]  # (R, 1)
    return scores.masked_fill(scores < last, _NEVER)


def keep_top_p(scores: Tensor, share: float) -> Tensor:
    """Keeps the fewest best ids whose probabilities sum to at least `share` (arXiv:1904.09751 §3.1): (R, V)."""
    ascending, order = scores.sort(dim=-1, descending=False)
    drop = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - share  # (R, V)
    drop[:, -1:] = False
    return scores.masked_fill(drop.scatter(1, order, drop), _NEVER)


def best(scores: Tensor) -> Tensor:
    """The best id of each row, the first of equals, as argmax: (R, V) to (R,) long.

    Blocks first: finding where a maximum stands takes ten times as long as finding it.
    """
    whole = scores.shape[1] // _BLOCK * _BLOCK
    if whole == 0:
        return scores.max(dim=-1).indices
    if whole < scores.shape[1]:  # a few ids behind the last block
        body, tail = best(scores[:, :whole]), scores[:, whole:].max(dim=-1)
        is_later = tail.values > scores.gather(1, body[:, None])[:, 0]
        return torch.where(is_later, tail.indices + whole, body)
    blocks = scores.reshape(len(scores), -1, _BLOCK)  # (R, V / block, block)
    block = blocks.amax(dim=-1).max(dim=-1, keepdim=True).indices  # (R, 1)
    inside = blocks.gather(1, block[..., None].expand(-1, -1, _BLOCK))[:, 0].max(dim=-1).indices  # (R,)
    return block[:, 0] * _BLOCK + inside


def draw(scores: Tensor, uniform: Tensor) -> Tensor:
    """One id per row from ``softmax(scores)``, by inversion.

    All rows may share one stream of numbers: each row's number is turned by a multiple of its own best id, which
    keeps it uniform, makes rows differ, and leaves a row's draw independent of the other rows.

    Shapes:
        scores: (R, V) float; uniform: (R,) in [0, 1); returns: (R,) long
    """
    descending, order = scores.sort(dim=-1, descending=True, stable=True)
    reached = descending.softmax(dim=-1).cumsum(dim=-1)  # (R, V)
    turned = (uniform.double() + _GOLDEN * order[:, 0].double()) % 1.0
    target = turned.to(reached.dtype) * reached[:, -1]
    place = torch.searchsorted(reached, target[:, None], right=True)  # (R, 1)
    last = (descending > _NEVER).sum(dim=-1, keepdim=True) - 1  # rounding must not reach a forbidden id
    return order.gather(1, torch.minimum(place, last))[:, 0]
