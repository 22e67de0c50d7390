"""Percentile bootstrap over samples (Efron and Tibshirani 1993, §13.3), seeded."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from graftlm.evaluate.metrics.ngrams import Floats

Interval: TypeAlias = tuple[float, float]


def weights(count: int, *, seed: int = 0, resamples: int = 1000) -> Floats:
    """(resamples, count) how often each sample was drawn; every row sums to `count`."""
    rng = np.random.default_rng(seed)
    drawn = np.empty((resamples, count), dtype=np.float64)
    for row in drawn:
        row[:] = np.bincount(rng.integers(count, size=count), minlength=count)
    return drawn


def interval(values: Floats, level: float = 0.95) -> Interval:
    """The middle `level` of resampled scores."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(values: Floats, *, seed: int = 0, resamples: int = 1000) -> Interval:
    """Interval of the mean of per-sample scores."""
    return interval(weights(len(values), seed=seed, resamples=resamples) @ values / len(values))


def crossed_interval(values: Floats, *, seed: int = 0, resamples: int = 1000) -> Interval:
    """Interval of the mean of scores of the same samples in several trials: samples and trials are both drawn anew.

    With one trial it is `mean_interval`.
    Shapes:
        values: (trials, samples)
    """
    return interval(crossed_means(values, seed=seed, resamples=resamples))


def crossed_means(values: Floats, *, seed: int = 0, resamples: int = 1000) -> Floats:
    """Means of the same samples in several trials, samples and trials drawn anew: (trials, samples) to (resamples,)."""
    trials, samples = values.shape
    of_samples = weights(samples, seed=seed, resamples=resamples)  # (R, samples)
    of_trials = weights(trials, seed=seed + 1, resamples=resamples)  # (R, trials)
    means: Floats = ((of_trials @ values) * of_samples).sum(axis=1) / (trials * samples)
    return means
