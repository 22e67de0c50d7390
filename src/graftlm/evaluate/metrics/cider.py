"""CIDEr-D (Vedantam et al. 2015, §5 and §8, arXiv:1411.5726), document frequencies from the references themselves.

As in coco-caption, lengths for the Gaussian penalty are counted in bigrams, and the value of "1.0" there is 100 here.
"""

from __future__ import annotations

import numpy as np

from graftlm.evaluate.metrics.ngrams import MAX_N, Counted, Floats, look_up

SIGMA = 6.0
_SCALE = 10.0  # the paper's factor of CIDEr-D


def scores(counted: Counted) -> Floats:
    """(P,) CIDEr-D of each prediction in percent; the corpus score is the mean.

    Needs the whole corpus: with one photo every n-gram is in every document and all scores are 0.
    """
    bigrams = np.maximum(counted.lengths - 1, 0)
    first = counted.num_predictions
    owner = counted.owner[first:]
    delta = (bigrams[owner] - bigrams[first:]).astype(np.float64)  # (R,)
    similarity = sum(_similarity(counted, n) for n in range(MAX_N)) * np.exp(-(delta**2) / (2 * SIGMA**2)) / MAX_N
    total = np.bincount(owner, weights=similarity, minlength=first)
    return np.asarray(100.0 * _SCALE * total / counted.num_references, dtype=np.float64)


def _similarity(counted: Counted, n: int) -> Floats:
    """(R,) clipped cosine of each reference with its prediction, over tf-idf vectors of one order."""
    order = counted.orders[n]
    own, theirs = counted.split(order)
    first, width = counted.num_predictions, max(order.num_grams, 1)
    weight = order.count * _idf(counted, n)[order.gram]
    norm = np.sqrt(np.bincount(order.sentence, weights=weight**2, minlength=len(counted.lengths)))
    reference = order.sentence[theirs]
    wanted = counted.owner[reference] * width + order.gram[theirs]
    mine = look_up(order.sentence[own] * width + order.gram[own], weight[own], wanted)
    products = np.minimum(mine, weight[theirs]) * weight[theirs]
    dots = np.bincount(reference - first, weights=products, minlength=len(counted.lengths) - first)
    norms = norm[counted.owner[first:]] * norm[first:]
    found = np.zeros(len(dots), dtype=np.float64)
    np.divide(dots, norms, out=found, where=norms != 0)
    return found


def _idf(counted: Counted, n: int) -> Floats:
    order = counted.orders[n]
    theirs = counted.split(order)[1]
    width = max(order.num_grams, 1)
    keys = np.sort(counted.owner[order.sentence[theirs]] * width + order.gram[theirs])
    documents = keys[np.diff(keys, prepend=-1) != 0] % width
    frequency = np.bincount(documents, minlength=width).astype(np.float64)
    return np.asarray(np.log(float(counted.num_predictions)) - np.log(np.maximum(1.0, frequency)), dtype=np.float64)
