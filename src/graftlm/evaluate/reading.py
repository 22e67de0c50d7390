"""What the words of an answer read of the pictures beside them, for the samples that a page shows.

A word is what its tokens read, on the mean over blocks and heads, in the steps that wrote them: at the position before
each. It tells where the system looks, not what of it the word owes its choice to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from graftlm.data.sentence import MediaPart, Role, Sentence, Text
from graftlm.evaluate.task import Row
from graftlm.systems.base import Attentive

MOST = 6
"""Samples that are read again."""

_OTHER_POSITIONS = 5  # class and register tokens that may stand before the cells of a grid


@dataclass(frozen=True, slots=True)
class AnswerReading:
    """What the W words of one answer read of the n media of its prompt.

    Shapes:
        items: (W, n), the share of every medium; sums to 1, or to 0 where a word may read nothing
        grids: (W, n, F, side, side), the same by cell of every frame, a picture having one; frames that a medium lacks
            are 0; side 0 where the encoder's positions are no grid
    """

    key: str
    prompt: str
    words: tuple[str, ...]
    media: tuple[MediaPart, ...]
    items: Tensor
    grids: Tensor


def read_again(responder: object, rows: Sequence[Row], most: int = MOST) -> list[AnswerReading]:
    """The first `most` of these answers that were given to pictures, each passed through the system once more.

    Empty for a system that does not tell what it reads.
    """
    if not isinstance(responder, Attentive):
        return []
    told = [row for row in rows if row.prediction.strip() and row.asked.prompt().media()]
    return [_of_answer(responder, row) for row in told[:most]]


def word_numbers(answer: str, pieces: Sequence[str]) -> list[int]:
    """The number of the word of `answer` that each token stands in.

    A token that is not found, as half a character, goes with the one before it: tokenizers do not all keep spaces.
    """
    place, number, found = 0, 0, []
    for piece in pieces:
        at = answer.find(piece.strip(), place) if piece.strip() else -1
        if at >= 0:
            place = at + len(piece.strip())
            number = len(answer[: at + 1].split()) - 1
        found.append(number)
    return found


def _of_answer(responder: Attentive, row: Row) -> AnswerReading:
    prompt, target = row.asked.prompt(), row.asked.targets().text()
    lead = target[: len(target) - len(target.lstrip())] if target else " "
    (told,) = responder.reading([prompt + Sentence.of(Text(lead + row.prediction, target=True, role=_role(prompt)))])
    places = [place for place, word in enumerate(told.words) if bool(told.targets[place]) and word.strip()]
    numbers = word_numbers(row.prediction, [told.words[place] for place in places])
    words = row.prediction.split()
    steps = torch.tensor([max(0, place - 1) for place in places], dtype=torch.long)
    owners = torch.tensor(numbers, dtype=torch.long)
    items = _mean_by_word(told.items.float().mean(dim=0)[steps], owners, len(words))  # (W, n)
    by_place = _mean_by_word(told.places.float().mean(dim=0)[steps], owners, len(words))  # (W, n, S)
    return AnswerReading(
        row.key, prompt.text(), tuple(words), prompt.media(), items, as_grids(by_place, told.frame_positions)
    )


def as_grids(places: Tensor, frame_positions: int) -> Tensor:
    """Shares by position as those of a square grid in every frame, without the positions that stand before it.

    Shapes:
        places: (W, n, S); returns: (W, n, F, side, side), side 0 where the positions are no grid
    """
    side = isqrt(frame_positions)
    before = frame_positions - side * side
    padded = F.pad(places, (0, -places.shape[-1] % frame_positions))
    frames = padded.reshape(*places.shape[:-1], -1, frame_positions)  # (W, n, F, S of a frame)
    if before > _OTHER_POSITIONS:
        return frames.new_zeros(*frames.shape[:-1], 0, 0)
    return frames[..., before:].reshape(*frames.shape[:-1], side, side)


def _mean_by_word(values: Tensor, owners: Tensor, count: int) -> Tensor:
    """Means of the tokens' values (T, ...) that belong to each of `count` words: (count, ...)."""
    total = values.new_zeros(count, *values.shape[1:]).index_add(0, owners, values)
    tokens = torch.bincount(owners, minlength=count).clamp(min=1)
    return total / tokens.view(-1, *[1] * (values.dim() - 1))


def _role(prompt: Sentence) -> Role | None:
    """An answer in a dialogue is the assistant's turn."""
    return "assistant" if any(part.role is not None for part in prompt) else None
