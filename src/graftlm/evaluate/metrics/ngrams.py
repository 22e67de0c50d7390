"""Counts of 1- to 4-grams of many sentences at once, as sorted arrays: what BLEU and CIDEr share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from graftlm.errors import DataError

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]

MAX_N = 4


@dataclass(frozen=True, slots=True)
class Grams:
    """The n-grams of one order, one entry per (sentence, n-gram), sorted by sentence, then n-gram.

    Shapes:
        sentence: (E,) number of the sentence
        gram: (E,) number of the n-gram, below `num_grams`
        count: (E,) how often the sentence holds it
    """

    sentence: Ints
    gram: Ints
    count: Ints
    num_grams: int


@dataclass(frozen=True, slots=True)
class Counted:
    """P predictions and R references in one numbering: predictions are sentences 0..P-1, references P..P+R-1.

    Shapes:
        lengths: (P + R,) words of each sentence
        owner: (P + R,) number of the prediction a sentence belongs to
        num_references: (P,)
    """

    orders: tuple[Grams, ...]
    lengths: Ints
    owner: Ints
    num_references: Ints

    @property
    def num_predictions(self) -> int:
        """P."""
        return len(self.num_references)

    def split(self, order: Grams) -> tuple[slice, slice]:
        """Entries of the predictions and of the references of one order."""
        border = int(np.searchsorted(order.sentence, self.num_predictions))
        return slice(0, border), slice(border, None)


def count(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Counted:
    """Counts the n-grams of tokenised predictions and of the references of each.

    Raises: DataError when the lists differ in length or a prediction has no reference.
    """
    check(predictions, references)
    sentences = [*predictions, *(words for group in references for words in group)]
    num_references = np.array([len(group) for group in references], dtype=np.int64)
    rows = np.arange(len(predictions), dtype=np.int64)
    owner = np.concatenate([rows, np.repeat(rows, num_references)])
    lengths = np.array([len(words) for words in sentences], dtype=np.int64)
    vocabulary: dict[str, int] = {}
    flat = [vocabulary.setdefault(word, len(vocabulary)) for words in sentences for word in words]
    orders = _orders(np.array(flat, dtype=np.int64), lengths, max(len(vocabulary), 1))
    return Counted(orders, lengths, owner, num_references)


def check(predictions: Sequence[Any], references: Sequence[Sequence[Any]]) -> None:
    """Raises: DataError when the lists differ in length, are empty, or a prediction has no reference."""
    if len(predictions) != len(references):
        raise DataError(
            f"caption metrics: expected as many lists of references as predictions, found {len(references)} for "
            f"{len(predictions)}; give one list per prediction"
        )
    if not predictions:
        raise DataError("caption metrics: expected at least one prediction, found none; check the split and --limit")
    for number, group in enumerate(references):
        if not group:
            raise DataError(f"caption metrics: prediction {number} has no reference; leave the row out or caption it")


def _orders(words: Ints, lengths: Ints, num_words: int) -> tuple[Grams, ...]:
    sentence = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)  # (W,)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(words))  # (W,) words from here to the end
    place = np.arange(len(words), dtype=np.int64)
    gram, num_grams = words, num_words
    orders = []
    for n in range(1, MAX_N + 1):
        if n > 1:
            keep = left[place] >= n
            place = place[keep]
            gram, num_grams = _renumber(gram[keep] * num_words + words[place + n - 1])
        orders.append(_count_entries(sentence[place], gram, num_grams))
    return tuple(orders)


def _renumber(keys: Ints) -> tuple[Ints, int]:
    unique, inverse = np.unique(keys, return_inverse=True)
    return inverse.astype(np.int64), len(unique)


def _count_entries(sentence: Ints, gram: Ints, num_grams: int) -> Grams:
    keys, counts = np.unique(sentence * max(num_grams, 1) + gram, return_counts=True)
    return Grams(keys // max(num_grams, 1), keys % max(num_grams, 1), counts.astype(np.int64), num_grams)


def look_up(keys: Ints, values: NDArray[Any], wanted: Ints) -> NDArray[Any]:
    """The values at sorted `keys` for each wanted key, 0 where it is missing."""
    if not len(keys):
        return np.zeros(len(wanted), dtype=values.dtype)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
