"""BLEU, ROUGE-L and CIDEr against values worked out by hand, and what must hold for any captions."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from graftlm.errors import DataError
from graftlm.evaluate.metrics import bootstrap, captions

WORDS = ["a", "man", "dog", "red", "ball", "on", "the", "grass", "runs", "jumps", "with", "two", "blue", "car"]


def drawn(count: int, seed: int = 0) -> tuple[list[str], list[list[str]]]:
    rng = random.Random(seed)

    def sentence() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(5, 12)))

    return [sentence() for _ in range(count)], [[sentence() for _ in range(rng.randint(1, 5))] for _ in range(count)]


def test_bleu_is_as_by_hand() -> None:
    found = captions.score(["the cat sat"], [["the cat sat down", "a cat"]]).corpus
    # two references are one word away; the shorter is the closest, so there is no brevity penalty
    assert found["BLEU-1"] == pytest.approx(100)
    found = captions.score(["the the cat"], [["the cat sat on it"]]).corpus
    penalty = math.exp(1 - 5 / 3)
    assert found["BLEU-1"] == pytest.approx(100 * penalty * 2 / 3)
    assert found["BLEU-2"] == pytest.approx(100 * penalty * math.sqrt(2 / 3 * 1 / 2))
    assert found["BLEU-3"] == pytest.approx(0, abs=0.01)


def test_bleu_of_a_corpus_sums_counts_and_is_no_mean() -> None:
    found = captions.score(["a b c d", "a"], [["a b c d"], ["z"]])
    assert found.corpus["BLEU-1"] == pytest.approx(100 * 4 / 5)
    assert found.samples["BLEU-1"].mean() == pytest.approx(50)


def test_rouge_is_as_by_hand() -> None:
    found = captions.score(["a b c d"], [["a c d e f"]]).corpus["ROUGE-L"]
    precision, recall = 3 / 4, 3 / 5
    assert found == pytest.approx(100 * 2.44 * precision * recall / (recall + 1.44 * precision))


def test_rouge_takes_the_best_precision_and_the_best_recall_of_different_references() -> None:
    found = captions.score(["a b c d"], [["a b x x x x x x", "a"]]).corpus["ROUGE-L"]
    precision, recall = 2 / 4, 1 / 1
    assert found == pytest.approx(100 * 2.44 * precision * recall / (recall + 1.44 * precision))


def test_cider_is_as_by_hand() -> None:
    # 1- and 2-grams agree wholly, 3- and 4-grams do not exist: 10 * (1 + 1 + 0 + 0) / 4
    assert captions.score(["a b", "c d"], [["a b"], ["c d"]]).corpus["CIDEr"] == pytest.approx(500)
    # unigrams alone: cosine 1/2, penalty of one bigram's difference exp(-1/72); photo 2 agrees in nothing
    found = captions.score(["a", "z"], [["a b"], ["c d"]]).samples["CIDEr"]
    assert found[0] == pytest.approx(1000 * (1 / math.sqrt(2)) * math.exp(-1 / 72) / 4)
    assert found[1] == 0


def test_a_word_of_every_photo_is_worth_nothing_to_cider() -> None:
    assert captions.score(["the", "the"], [["the"], ["the"]]).corpus["CIDEr"] == 0


def test_a_perfect_caption_has_bleu_and_rouge_of_100() -> None:
    _, references = drawn(30)
    found = captions.score([group[0] for group in references], references).corpus
    assert [found[name] for name in (*captions.BLEU_NAMES, "ROUGE-L")] == pytest.approx([100] * 5)


def test_a_single_wrong_word_is_noticed_by_every_metric() -> None:
    _, references = drawn(30)
    perfect = captions.score([group[0] for group in references], references)
    wrong = captions.score(["wrong " + references[0][0], *(group[0] for group in references[1:])], references)
    for name, value in perfect.corpus.items():
        assert wrong.corpus[name] < value
        assert wrong.samples[name][0] < perfect.samples[name][0]
        assert wrong.samples[name][1:] == pytest.approx(perfect.samples[name][1:])


def test_the_order_of_photos_and_of_references_does_not_matter() -> None:
    predictions, references = drawn(40, seed=1)
    before = captions.score(predictions, references)
    order = random.Random(2).sample(range(40), 40)
    after = captions.score([predictions[i] for i in order], [references[i][::-1] for i in order])
    assert after.corpus == pytest.approx(before.corpus)
    for name, values in before.samples.items():
        assert after.samples[name] == pytest.approx(values[order])


def test_scores_stay_between_their_ends() -> None:
    found = captions.score(*drawn(60, seed=3))
    for name, values in found.samples.items():
        assert values.min() >= 0
        assert values.max() <= (1000 if name == "CIDEr" else 100)


@pytest.mark.parametrize("said", ["", ".", " "])
def test_an_empty_caption_scores_nothing_and_breaks_nothing(said: str) -> None:
    found = captions.score([said, "a dog"], [["a man"], ["a dog"]])
    assert [values[0] for values in found.samples.values()] == pytest.approx([0] * 6, abs=1e-3)
    assert found.corpus["BLEU-1"] > 0


def test_unequal_lists_and_missing_references_are_named() -> None:
    with pytest.raises(DataError, match="found 1 for 2"):
        captions.score(["a", "b"], [["a"]])
    with pytest.raises(DataError, match="prediction 1 has no reference"):
        captions.score(["a", "b"], [["a"], []])
    with pytest.raises(DataError, match="found none"):
        captions.score([], [])


def test_intervals_hold_the_score_and_repeat_with_their_seed() -> None:
    found = captions.score(*drawn(200, seed=4))
    intervals = found.intervals(seed=7, resamples=300)
    assert set(intervals) == set(found.corpus)
    for name, (low, high) in intervals.items():
        assert low <= found.corpus[name] <= high
    assert intervals == found.intervals(seed=7, resamples=300)
    assert intervals != found.intervals(seed=8, resamples=300)


def test_the_interval_of_a_mean_is_that_of_theory() -> None:
    values = np.random.default_rng(0).normal(50, 10, 400)
    low, high = bootstrap.mean_interval(values, resamples=2000)
    half = 1.96 * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.15)
    assert high == pytest.approx(values.mean() + half, abs=0.15)
