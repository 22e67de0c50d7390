"""The task of classification: accuracy, macro-F1 and log-loss, chance when blind, and no look at the right class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from graftlm.data.labelled import LabelledRow, Template, chosen
from graftlm.data.sample import Sample
from graftlm.data.sentence import Sentence
from graftlm.errors import DataError, GraftError, ShapeError, UsageError
from graftlm.evaluate.metrics.classes import macro_f1, majority
from graftlm.evaluate.run import evaluate
from graftlm.evaluate.task import Options
from graftlm.evaluate.tasks.classification import _ordered
from graftlm.lm.decode import Decoding

TEMPLATE = Template.model_validate(
    {"text": "{text} It was {mask}.", "words": {"bad": ["bad"], "good": ["good"]}, "name": "films"}
)


def samples(count: int = 12) -> list[Sample]:
    """Every third is good, and says so."""
    texts = [f"{'poor' if n % 3 else 'fine'} {n}" for n in range(count)]
    rows = [LabelledRow(str(n), {"text": text}, int(n % 3 == 0)) for n, text in enumerate(texts)]
    return [TEMPLATE.sample(row) for row in rows]


class Reader:
    """Knows what "fine" means; without either word it says the first class."""

    def __init__(self) -> None:
        self.asked: list[Sentence] = []
        self.how: list[tuple[str, int]] = []

    def respond(self, sentences: Sequence[Sentence], decoding: Decoding) -> list[Sentence]:
        raise AssertionError("nothing is written")

    def class_scores(
        self,
        sentences: Sequence[Sentence],
        words: Sequence[Sequence[str]],
        *,
        pooling: str = "first",
        references: Sequence[Sentence] = (),
    ) -> Tensor:
        assert [list(own) for own in words] == [[" bad"], [" good"]]
        self.asked += sentences
        self.how.append((pooling, len(references)))
        fine = torch.tensor(["fine" in sentence.text() for sentence in sentences])
        return torch.where(fine[:, None], torch.tensor([0.2, 0.8]), torch.tensor([0.9, 0.1])).log()


def test_scores_intervals_and_the_commonest_class() -> None:
    report = evaluate(Reader(), "classification", samples(), Options(controls=()))
    assert report.metrics["accuracy"] == report.metrics["macro-F1"] == 100
    assert report.metrics["majority class"] == pytest.approx(100 * 8 / 12)
    assert report.metrics["log-loss"] == pytest.approx(-(4 * math.log(0.8) + 8 * math.log(0.9)) / 12, abs=1e-5)
    assert report.intervals["accuracy"] == (100, 100)
    assert report.notes == ("majority class: bad, 66.7 %",)
    assert report.rows[0].prediction == report.rows[0].references[0] == "good"


def test_blind_and_shuffled_texts_are_worth_what_chance_is() -> None:
    report = evaluate(Reader(), "classification", samples(60))
    assert report.controls["blind"]["accuracy"] == pytest.approx(100 * 2 / 3)
    assert 30 < report.controls["shuffled"]["accuracy"] < 80
    blind = evaluate(reader := Reader(), "classification", samples(), Options(controls=("blind",)))
    assert [sentence.text() for sentence in reader.asked[-1:]] == [" It was bad."]
    assert blind.n == 12


def test_a_control_of_pictures_is_left_out_and_says_so() -> None:
    report = evaluate(Reader(), "classification", samples(), Options(controls=("text-only",)))
    assert report.controls == {}
    assert "text-only control left out: classification has blind, shuffled" in report.notes


def test_a_system_never_sees_the_right_class_and_equal_sentences_once() -> None:
    reader = Reader()
    twice = [*samples(6), *samples(6)]
    evaluate(reader, "classification", twice, Options(controls=(), batch_size=4))
    assert {chosen(sentence)[0] for sentence in reader.asked} == {0}
    assert len(reader.asked) == 6


def test_words_and_calibration_are_settings() -> None:
    reader = Reader()
    evaluate(reader, "classification", samples(), Options(controls=(), settings={"words": "mean", "calibrate": "yes"}))
    assert reader.how == [("mean", 3)]
    with pytest.raises(UsageError, match="expected first or mean or max, found 'last'"):
        evaluate(reader, "classification", samples(), Options(settings={"words": "last"}))


class Broken(Reader):
    """Gives what it is told to."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = scores

    def class_scores(self, sentences: Sequence[Sentence], words: Sequence[Sequence[str]], **how: object) -> Tensor:
        return self.scores.expand(len(sentences), -1)


def test_what_cannot_be_scored_is_told() -> None:
    with pytest.raises(ShapeError, match="is the system made for as many classes"):
        evaluate(Broken(torch.zeros(1, 3)), "classification", samples(), Options(controls=()))
    with pytest.raises(GraftError, match="expected finite scores"):
        evaluate(Broken(torch.tensor([[float("nan"), 0.0]])), "classification", samples(), Options(controls=()))
    with pytest.raises(DataError, match="found one without a class"):
        evaluate(Reader(), "classification", [Sample(Sentence.of("plain"), "k")], Options(controls=()))
    other = Template.model_validate({"text": "{text} {mask}", "words": {"a": ["x"], "b": ["y"]}})
    mixed = [*samples(), other.sample(LabelledRow("z", {"text": "t"}, 0))]
    with pytest.raises(DataError, match="expected rows of one template"):
        evaluate(Reader(), "classification", mixed, Options(controls=()))

    class Writing:
        def respond(self, sentences: Sequence[Sentence], decoding: Decoding) -> list[Sentence]:
            return list(sentences)

    with pytest.raises(UsageError, match="expected a system that scores classes"):
        evaluate(Writing(), "classification", samples(), Options(controls=()))


def test_macro_f1_equals_a_hand_computation() -> None:
    found, right = np.array([0, 0, 1, 1, 2, 0]), np.array([0, 1, 1, 1, 0, 0])
    # class 0: 2 of 3 found, 2 of 3 there; class 1: 2 of 2 found, 2 of 3 there; class 2: found once, never there
    wanted = 100 * (2 / 3 + 2 * 2 / 5 + 0) / 3
    assert macro_f1(found, right)[0] == pytest.approx(wanted)
    weights = np.array([[1.0] * 6, [1, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 0]])
    assert macro_f1(found, right, weights).tolist() == pytest.approx([wanted, 100, 100])
    assert majority(right) == (0, 50.0)


def test_texts_that_begin_alike_are_asked_together() -> None:
    passage, other = "a long passage " * 20, "another passage " * 10
    texts = [passage + "why?", other + "who?", "short", passage + "when was it?", other + "what?"]
    assert _ordered(texts, range(5)) == [2, 4, 1, 3, 0]
