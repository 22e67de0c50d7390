"""ROUGE-L (Lin 2004, §3.1) with coco-caption's beta of 1.2: best precision and best recall over the references."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graftlm.evaluate.metrics.ngrams import Floats, check

BETA = 1.2


def scores(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Floats:
    """(P,) ROUGE-L of each tokenised prediction in percent; the corpus score is the mean."""
    check(predictions, references)
    pairs = zip(predictions, references, strict=True)
    return np.array([100.0 * _score(words, group) for words, group in pairs], dtype=np.float64)


def _score(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    words = words or ("",)  # an empty sentence counts as one empty word, as in coco-caption
    places: dict[str, int] = {}
    for place, word in enumerate(words):
        places[word] = places.get(word, 0) | 1 << place
    precision = recall = 0.0
    for reference in references:
        common = _common_subsequence(places, len(words), reference or ("",))
        precision = max(precision, common / len(words))
        recall = max(recall, common / (len(reference) or 1))
    if not precision:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common_subsequence(places: dict[str, int], length: int, other: Sequence[str]) -> int:
    """Length of the longest common subsequence, the dynamic program's row held in the bits of one integer.

    Hyyrö 2004, "Bit-parallel LCS-length computation revisited": a 0 bit marks a step of the row.
    """
    full = (1 << length) - 1
    row = full
    for word in other:
        hits = places.get(word)
        if hits:
            met = row & hits
            row = ((row + met) | (row - met)) & full
    return length - row.bit_count()
