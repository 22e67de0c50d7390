"""Ranking metrics: equal to a loop that counts by hand, monotone, and no friend of ties."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from graftlm.errors import ShapeError
from graftlm.evaluate.metrics.ranking import mean_reciprocal_rank, median_rank, ndcg, ranks, ranks_of, recall_at

QUERIES, CANDIDATES = 40, 23


def drawn(seed: int, *, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scores, with many ties or none, and relevance with at least one relevant candidate a query."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(QUERIES, CANDIDATES)).astype(np.float32)
    relevance = rng.choice([0.0, 0.0, 0.0, 0.2, 0.5, 1.0], size=(QUERIES, CANDIDATES))
    relevance[:, 0] = 1.0
    return (np.round(scores * 2) if ties else scores), relevance


def rank_by_hand(scores: Sequence[float], relevant: Sequence[bool]) -> int:
    """Walks down the candidates from the best; of equal ones the wrong come first."""
    order = sorted(range(len(scores)), key=lambda place: (-scores[place], relevant[place]))
    return next(number for number, place in enumerate(order, start=1) if relevant[place])


def gain_by_hand(scores: Sequence[float], relevance: Sequence[float]) -> float:
    """Two loops, as the definition says."""
    order = sorted(range(len(scores)), key=lambda place: (-scores[place], relevance[place]))
    best = sorted(relevance, reverse=True)
    k = sum(1 for value in relevance if value > 0)
    got = sum(relevance[order[place]] / math.log2(place + 2) for place in range(k))
    return got / sum(best[place] / math.log2(place + 2) for place in range(k))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_ranks_and_gains_are_those_of_a_loop(seed: int, ties: bool) -> None:
    scores, relevance = drawn(seed, ties=ties)
    expected = [rank_by_hand(list(row), list(marks > 0)) for row, marks in zip(scores, relevance, strict=True)]
    assert ranks(scores, relevance > 0).tolist() == expected
    gains = [gain_by_hand(list(row), list(marks)) for row, marks in zip(scores, relevance, strict=True)]
    assert np.abs(ndcg(scores, relevance) - gains).max() <= 1e-12


@pytest.mark.parametrize("ties", [False, True])
def test_one_right_candidate_is_the_same_as_a_row_of_marks(ties: bool) -> None:
    scores, _ = drawn(3, ties=ties)
    right = np.random.default_rng(0).integers(CANDIDATES, size=QUERIES)
    marks = np.arange(CANDIDATES) == right[:, None]
    assert ranks_of(scores, right).tolist() == ranks(scores, marks).tolist()


def test_the_parity_notices_one_changed_score() -> None:
    scores, relevance = drawn(0, ties=False)
    changed = scores.copy()
    changed[0, relevance[0].argmin()] = scores[0].max() + 1
    assert (ranks(changed, relevance > 0) != ranks(scores, relevance > 0)).sum() == 1
    assert (ndcg(changed, relevance) != ndcg(scores, relevance)).sum() == 1


def test_equal_scores_for_all_find_nothing() -> None:
    flat = np.zeros((QUERIES, CANDIDATES), np.float32)
    found = ranks_of(flat, np.arange(QUERIES) % CANDIDATES)
    assert set(found.tolist()) == {CANDIDATES}
    assert recall_at(found, CANDIDATES - 1) == 0


def test_ranks_do_not_depend_on_the_order_of_candidates_or_on_the_scale() -> None:
    scores, relevance = drawn(1, ties=True)
    order = np.random.default_rng(2).permutation(CANDIDATES)
    marks = relevance > 0
    assert ranks(scores[:, order], marks[:, order]).tolist() == ranks(scores, marks).tolist()
    assert ranks(scores * 7 - 3, marks).tolist() == ranks(scores, marks).tolist()
    assert ndcg(scores[:, order], relevance[:, order]) == pytest.approx(ndcg(scores, relevance), abs=1e-12)


def test_recall_grows_with_k_up_to_everything() -> None:
    scores, relevance = drawn(4, ties=True)
    found = ranks(scores, relevance == 1.0)
    recalls = [recall_at(found, k) for k in range(CANDIDATES + 1)]
    assert recalls == sorted(recalls)
    assert (recalls[0], recalls[-1]) == (0, 100)


def test_a_better_score_for_the_right_candidate_never_hurts() -> None:
    scores, relevance = drawn(5, ties=True)
    better = scores + (relevance == 1.0)
    assert (ranks(better, relevance == 1.0) <= ranks(scores, relevance == 1.0)).all()


def test_a_perfect_order_gains_everything_and_the_reverse_least() -> None:
    _, relevance = drawn(6, ties=False)
    assert ndcg(relevance, relevance) == pytest.approx(1.0)
    worst = ndcg(-relevance, relevance)
    assert (worst <= ndcg(drawn(6, ties=False)[0], relevance) + 1e-12).all()


def test_means_are_in_percent_and_the_median_is_the_middle() -> None:
    found = np.array([1, 2, 4, 10])
    assert mean_reciprocal_rank(found) == pytest.approx(100 * (1 + 0.5 + 0.25 + 0.1) / 4)
    assert median_rank(found) == 3
    assert recall_at(found, 4) == 75


def test_an_excluded_candidate_is_never_better() -> None:
    scores = np.array([[0.9, 0.5, -np.inf]], np.float32)
    assert ranks_of(scores, np.array([1])).tolist() == [2]
    scores[0, 0] = -np.inf
    assert ranks_of(scores, np.array([1])).tolist() == [1]


@pytest.mark.parametrize(
    ("scores", "marks", "words"),
    [
        (np.zeros((2, 3)), np.zeros((2, 2), bool), "one shape"),
        (np.zeros((2, 3)), np.zeros((2, 3), bool), "relevant candidate for every query"),
        (np.full((1, 2), np.nan), np.ones((1, 2), bool), "NaN"),
    ],
)
def test_what_cannot_be_ranked_is_refused(scores: np.ndarray, marks: np.ndarray, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        ranks(scores, marks)


def test_gains_need_relevance() -> None:
    with pytest.raises(ShapeError, match="relevance"):
        ndcg(np.zeros((1, 2)), np.zeros((1, 2)))
    with pytest.raises(ShapeError, match="relevance"):
        ndcg(np.zeros((1, 2)), np.array([[1.0, -1.0]]))
