"""BLEU-1 to BLEU-4 (Papineni et al. 2002, §2.3) as coco-caption counts it: closest reference length, no smoothing."""

from __future__ import annotations

import numpy as np

from graftlm.evaluate.metrics.ngrams import MAX_N, Counted, Floats, Ints, look_up

_SMALL, _TINY = 1e-9, 1e-15  # coco-caption's guards: an order without a guess scores 0, not an error


def statistics(counted: Counted) -> Floats:
    """What BLEU needs of each prediction; a corpus is the sum over its predictions.

    Shapes:
        result: (P, 10): words, closest reference length, guessed 1..4-grams, correct 1..4-grams
    """
    lengths = counted.lengths[: counted.num_predictions]
    guessed = [np.maximum(lengths - n, 0) for n in range(MAX_N)]
    correct = [_correct(counted, n) for n in range(MAX_N)]
    return np.stack([lengths, _closest(counted), *guessed, *correct], axis=1).astype(np.float64)  # (P, 10)


def scores(statistics: Floats) -> Floats:
    """BLEU-1..4 in percent of summed statistics.

    Shapes:
        statistics: (..., 10); result: (..., 4)
    """
    length, reference = statistics[..., 0], statistics[..., 1]
    guessed, correct = statistics[..., 2:6], statistics[..., 6:10]
    precision = np.cumprod((correct + _TINY) / (guessed + _SMALL), axis=-1)
    mean = precision ** (1.0 / np.arange(1, MAX_N + 1))
    ratio = (length + _TINY) / (reference + _SMALL)
    brevity = np.where(ratio < 1, np.exp(1 - 1 / np.maximum(ratio, _TINY)), 1.0)
    return np.asarray(100.0 * mean * brevity[..., None], dtype=np.float64)


def _closest(counted: Counted) -> Ints:
    """(P,) the reference length nearest to the prediction's; of two as near, the shorter."""
    own = counted.lengths[counted.owner[counted.num_predictions :]]
    theirs = counted.lengths[counted.num_predictions :]
    rank = np.abs(own - theirs) * (int(counted.lengths.max()) + 1) + theirs
    starts = np.concatenate([[0], np.cumsum(counted.num_references)[:-1]])
    best = np.minimum.reduceat(rank, starts)
    return np.asarray(best % (int(counted.lengths.max()) + 1), dtype=np.int64)


def _correct(counted: Counted, n: int) -> Floats:
    """(P,) n-grams of each prediction that a reference holds, each counted at most as often as in one reference."""
    order = counted.orders[n]
    own, theirs = counted.split(order)
    width = max(order.num_grams, 1)
    keys, groups = np.unique(counted.owner[order.sentence[theirs]] * width + order.gram[theirs], return_inverse=True)
    most = np.zeros(len(keys), dtype=np.int64)
    np.maximum.at(most, groups, order.count[theirs])
    clipped = np.minimum(order.count[own], look_up(keys, most, order.sentence[own] * width + order.gram[own]))
    total = np.bincount(order.sentence[own], weights=clipped, minlength=counted.num_predictions)
    return np.asarray(total, dtype=np.float64)
