"""Accuracy and macro-F1 of classes, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from graftlm.evaluate.metrics.bootstrap import Interval, interval, mean_interval, weights
from graftlm.evaluate.metrics.ngrams import Floats

Labels = npt.NDArray[np.int64]


def macro_f1(found: Labels, right: Labels, counts: Floats | None = None) -> Floats:
    """The mean F1 over the classes that there are or that were found, in percent.

    Shapes:
        found, right: (n,) classes; counts: (R, n) how often each row counts, once without; returns: (R,)
    """
    counts = np.ones((1, len(right))) if counts is None else counts
    classes = np.union1d(found, right)
    is_found = (found[:, None] == classes).astype(np.float64)  # (n, C)
    is_right = (right[:, None] == classes).astype(np.float64)
    hits, total = counts @ (is_found * is_right), counts @ (is_found + is_right)  # (R, C)
    scores = np.divide(2 * hits, total, out=np.zeros_like(hits), where=total > 0)
    there = total > 0  # a resample may lack a class
    mean: Floats = 100 * (scores * there).sum(axis=1) / there.sum(axis=1)
    return mean


def majority(right: Labels) -> tuple[int, float]:
    """The commonest class, the first of equals, and its share in percent: what saying it always would score."""
    classes, counts = np.unique(right, return_counts=True)
    return int(classes[counts.argmax()]), float(100 * counts.max() / len(right))


def scored(
    found: Sequence[int], right: Sequence[int], *, seed: int, resamples: int
) -> tuple[dict[str, float], Mapping[str, Interval]]:
    """Accuracy, macro-F1 and the majority class's accuracy, in percent, and the intervals of the first two."""
    guesses, labels = np.array(found, dtype=np.int64), np.array(right, dtype=np.int64)
    hits = 100.0 * (guesses == labels)
    drawn = weights(len(labels), seed=seed, resamples=resamples)
    metrics = {
        "accuracy": float(hits.mean()),
        "macro-F1": float(macro_f1(guesses, labels)[0]),
        "majority class": majority(labels)[1],
    }
    intervals = {
        "accuracy": mean_interval(hits, seed=seed, resamples=resamples),
        "macro-F1": interval(macro_f1(guesses, labels, drawn)),
    }
    return metrics, intervals
