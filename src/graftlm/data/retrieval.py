"""What a sentence asks for, and what it is found by: queries, and pairs of a query and its picture for training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from graftlm.data.rows import tidied
from graftlm.data.sentence import Image, Part, Sentence, Text


def as_query(sentence: Sentence) -> Sentence:
    """The sentence as a query: nothing to be written, and a sought picture at its end."""
    parts = tuple(_as_context(part) for part in sentence)
    if parts and isinstance(parts[-1], Image) and parts[-1].target:
        parts = parts[:-1]
    has_roles = any(part.role is not None for part in parts)
    return Sentence((*parts, Image.sought("assistant" if has_roles else None)))


def query_of(captions: Sequence[str]) -> Sentence:
    """Captions as one query, each a part of its own; that a picture is sought after the last goes without saying.

    Tokenised captions ("entry way .") are written as people write them.
    """
    words = [tidied(text) for text in captions]
    return Sentence(tuple(Text(f" {text}" if number else text) for number, text in enumerate(words)))


def query_and_picture(sentence: Sentence) -> tuple[Sentence, Image] | None:
    """The query of a training sentence and the picture it is to find; None where there is no such pair.

    What stands before a target picture is its query. A captioned picture is found by its caption, whose words are
    targets of the language model then.
    """
    for index, part in enumerate(sentence):
        if isinstance(part, Image) and part.target and not part.is_sought:
            return Sentence((*sentence.parts[:index], Image.sought(part.role))), replace(part, target=False)
    words = [part for part in sentence if isinstance(part, Text) and (part.content.strip() or part.target)]
    pictures = [part for part in sentence if isinstance(part, Image) and not part.is_sought]
    if len(pictures) != 1 or not words or not all(part.target for part in words):
        return None
    caption = tuple(Text(part.content, target=True) for part in words)
    return Sentence((*caption, Image.sought())), pictures[0]


def by_use(sentences: Sequence[Sentence]) -> tuple[list[tuple[Sentence, Image]], list[Sentence], list[Sentence]]:
    """What training does with a batch: pairs of query and picture, the sentences of pairs whose words are written too,
    and the sentences that make no pair.
    """
    found = [(sentence, query_and_picture(sentence)) for sentence in sentences]
    written = [sentence for sentence, pair in found if pair is not None and _has_words_to_write(sentence)]
    alone = [sentence for sentence, pair in found if pair is None]
    return [pair for _, pair in found if pair is not None], written, alone


def _has_words_to_write(sentence: Sentence) -> bool:
    """Whether a text is a target."""
    return any(isinstance(part, Text) and part.target for part in sentence)


def _as_context(part: Part) -> Part:
    return replace(part, target=False) if isinstance(part, Text) else part


def in_pairs(sentences: Sequence[Sentence]) -> list[Sentence]:
    """Neighbours joined, so that a language model learns to read several pictures; the last of an odd number alone."""
    joined = [left + right for left, right in zip(sentences[::2], sentences[1::2], strict=False)]
    return joined if len(sentences) % 2 == 0 else [*joined, sentences[-1]]


def every_nth(sentences: Sequence[Sentence], fraction: float) -> list[Sentence]:
    """A fraction of them, evenly spread; at least one of any."""
    count = math.ceil(len(sentences) * fraction)
    return [sentences[index * len(sentences) // count] for index in range(count)]
