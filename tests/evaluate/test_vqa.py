"""VQA accuracy: the table of the official code, its normalisation step by step, and its slips."""

from __future__ import annotations

import pytest

from graftlm.evaluate.metrics.vqa import accuracy, cut, normalise


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_accuracy_of_ten_annotators_is_0_3_6_9_1(agreeing: int, expected: float) -> None:
    references = ["cat"] * agreeing + [f"other {number}" for number in range(10 - agreeing)]
    assert accuracy("cat", references) == pytest.approx(expected, abs=1e-12)
    assert accuracy("The cat.", references[::-1]) == pytest.approx(expected, abs=1e-12)


def test_equal_answers_of_different_annotators_are_not_one_annotator() -> None:
    """Comparing answers and not annotators gives unanimous answers 0 (trap 39 of the fact sheet)."""
    assert accuracy("yes", ["yes"] * 10) == 1


def test_few_references_are_alternatives() -> None:
    assert accuracy("Day time", ["Day time."]) == 1
    assert accuracy("a dog", ["cat", "the dog"]) == 1
    assert accuracy("night", ["Day time."]) == 0
    assert accuracy("dog", ["dog", "cat", "cow", "pig"]) == pytest.approx((0 + 3 * (1 / 3)) / 4)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("a.b", "ab"),
        ("3.5", "3.5"),
        ("1.x", "1x"),
        ("  Red\n", "red"),
        ("two\tdogs", "2 dogs"),
        ("None", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("The cat and a dog", "cat and dog"),
        ("an apple", "apple"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),
        ("Oclock", "o'clock"),
        ("somebody'd", "somebodyd"),
        ("let's", "let's"),
        ("ow's'at", "'ow's'at"),
        ("y'alld've", "y'all'd've"),
        ("twas", "'twas"),
        ("im", "im"),
        ("id've", "id've"),
        ("yes, sir", "yes sir"),
        ("red,blue", "red blue"),
        ("1,000", "1000"),
        ("1,000 red/blue", "1000 redblue"),
        ("black/white", "black white"),
        ("black /white", "black white"),
        ("black/ white/grey", "black whitegrey"),
        ("what?", "what"),
        ("t-shirt", "t shirt"),
        ("don't", "don't"),
        ("$5", "$5"),
        ("a", ""),
    ],
)
def test_answers_are_normalised_as_the_official_code_does(typed: str, expected: str) -> None:
    assert normalise(typed) == expected


def test_only_32_periods_are_removed() -> None:
    assert normalise("." * 40) == "." * 8


def test_what_follows_the_short_answer_is_cut() -> None:
    assert cut(" a dog, I think") == "a dog"
    assert cut("a dog Question: what") == "a dog"
    assert cut("blue Short answer:red") == "blue"
    assert cut("red Answer: x Question") == "red"
    assert cut("1,000") == "1,000"
