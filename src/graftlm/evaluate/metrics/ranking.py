"""Ranking metrics: where the right candidates stand among all, and what that is worth.

A tie counts against: a candidate that scores as high as the right one is counted as better, so that a system which
gives every candidate the same score finds nothing.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graftlm.errors import ShapeError
from graftlm.evaluate.metrics.ngrams import Floats

Scores: TypeAlias = npt.NDArray[np.floating[Any]]
Ranks: TypeAlias = npt.NDArray[np.int64]
Marks: TypeAlias = npt.NDArray[np.bool_]


def ranks(scores: Scores, relevant: Marks) -> Ranks:
    """Rank, from 1, of the best relevant candidate of every query: 1 + the others that score as high or higher.

    Shapes:
        scores: (Q, C), -inf for a candidate that may not be given; relevant: (Q, C) bool
        returns: (Q,)
    Raises: ShapeError when shapes differ, a query has no relevant candidate, or a score is not a number.
    """
    _check(scores, relevant)
    if not relevant.any(axis=1).all():
        row = int(np.flatnonzero(~relevant.any(axis=1))[0])
        raise ShapeError(f"ranks: expected a relevant candidate for every query, found none for query {row}")
    best = np.where(relevant, scores, -np.inf).max(axis=1, keepdims=True)  # (Q, 1)
    above: Ranks = ((scores >= best) & ~relevant).sum(axis=1)
    return above + 1


def ranks_of(scores: Scores, right: npt.NDArray[np.integer[Any]]) -> Ranks:
    """`ranks` where one candidate of each query is right: scores (Q, C) and right (Q,) to (Q,)."""
    if scores.ndim != 2 or right.shape != scores.shape[:1]:
        raise ShapeError(f"ranks_of: expected (Q, C) scores and (Q,) places, found {scores.shape} and {right.shape}")
    _check_numbers(scores)
    own = scores[np.arange(len(right)), right][:, None]  # (Q, 1)
    above: Ranks = (scores >= own).sum(axis=1)  # itself included
    return above


def recall_at(found: Ranks, k: int) -> float:
    """Part of the queries whose right candidate is among the first k, in percent."""
    return float((found <= k).mean() * 100)


def median_rank(found: Ranks) -> float:
    """The middle rank; the mean of both middle ones where the number of queries is even."""
    return float(np.median(found))


def mean_reciprocal_rank(found: Ranks) -> float:
    """Mean of 1 / rank, in percent."""
    return float((1.0 / found).mean() * 100)


def ndcg(scores: Scores, relevance: Floats) -> Floats:
    """VisDial's normalised discounted cumulative gain, cut at the number of relevant candidates (arXiv:1611.08669).

    The gain at place p (from 1) is relevance / log2(p + 1). Equal scores are put in the worst order.

    Shapes:
        scores: (Q, C); relevance: (Q, C) in [0, 1]; returns: (Q,) in [0, 1]
    Raises: ShapeError when shapes differ, relevance is negative, a query has none, or a score is not a number.
    """
    _check(scores, relevance)
    if not (relevance >= 0).all() or not (relevance > 0).any(axis=1).all():
        raise ShapeError("ndcg: expected relevance of at least 0, and above it for some candidate of every query")
    order = np.lexsort((relevance, -scores.astype(np.float64)), axis=1)  # best score first, least relevant first
    ideal = -np.sort(-relevance, axis=1)
    discount = 1 / np.log2(np.arange(relevance.shape[1]) + 2)  # (C,)
    inside = np.arange(relevance.shape[1]) < (relevance > 0).sum(axis=1, keepdims=True)  # (Q, C)
    gained = np.take_along_axis(relevance, order, axis=1) * discount * inside
    values: Floats = gained.sum(axis=1) / (ideal * discount * inside).sum(axis=1)
    return values


def _check(scores: Scores, marks: npt.NDArray[np.generic]) -> None:
    if scores.ndim != 2 or scores.shape != marks.shape:
        raise ShapeError(f"ranking: expected scores and marks of one shape, found {scores.shape} and {marks.shape}")
    _check_numbers(scores)


def _check_numbers(scores: Scores) -> None:
    if np.isnan(scores).any():
        raise ShapeError("ranking: expected a number as every score, found one that is none (NaN); check the weights")
