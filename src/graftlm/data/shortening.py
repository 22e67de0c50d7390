"""Which tokens of a row that is too long are left out: those of slots that a template lets shorten, and no others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from graftlm.data.chat import Segment
from graftlm.data.sentence import Filled, LabelWord, MediaPart

if TYPE_CHECKING:
    from graftlm.lm.base import Tokenizer

End = Literal["end", "start"]


def shortens(part: Segment | MediaPart) -> bool:
    """Whether the part may lose tokens."""
    return isinstance(part, Segment) and isinstance(part.text, Filled) and part.text.shortens


def kept_lengths(lengths: Sequence[int], excess: int) -> list[int]:
    """What is left of parts of these lengths when `excess` tokens go: the longest lose first, down to one level."""
    left, level = sum(lengths), max(lengths, default=0)
    target = max(0, left - excess)
    while level and sum(min(length, level) for length in lengths) > target:
        level -= 1
    kept = [min(length, level) for length in lengths]
    for place, length in enumerate(lengths):  # the level is whole: what it takes too much is given back in order
        if sum(kept) < target and length > kept[place]:
            kept[place] += 1
    return kept


def shortened(ids: list[int], kept: int, end: End) -> list[int]:
    """The first `kept` ids where they are cut at their end, the last where at their start."""
    return ids[:kept] if end == "end" else ids[len(ids) - kept :]


def longest_word(word: LabelWord, tokenizer: Tokenizer) -> int:
    """Tokens of the longest word that could stand in this one's place: the room must not tell which is right."""
    return max(len(tokenizer.encode(one)) for words in word.words for one in words)
