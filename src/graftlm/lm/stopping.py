"""Where an answer ends: stop strings in text that grows token by token."""

from __future__ import annotations

from collections.abc import Sequence

_SENTENCE_ENDS = (".", "!", "?")
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer decodes half a character to."""


def find_end(text: str, stop: Sequence[str], *, searched: int = 0) -> int | None:
    """Where `text` is to be cut, or None: before the first stop string, but after a sentence's closing mark.

    `searched`: a stop string counts only when it ends beyond this many characters.
    """
    found: list[tuple[int, int]] = []
    for string in stop:
        start = text.find(string, max(0, searched - len(string) + 1))
        if start >= 0:
            found.append((start, start + len(string) if string in _SENTENCE_ENDS else start))
    return min(found)[1] if found else None


def settled(text: str, stop: Sequence[str]) -> int:
    """How many characters of a growing text can no longer change or fall to a stop string."""
    text = text.rstrip(UNFINISHED)
    held = [size for string in stop for size in range(1, len(string)) if text.endswith(string[:size])]
    return len(text) - max(held, default=0)
