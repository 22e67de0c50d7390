"""The task of binding: right names, chance when blind, and episodes from wherever they come."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from graftlm.data.readers import read
from graftlm.data.sample import Sample
from graftlm.data.sentence import Image, Sentence, Text
from graftlm.errors import UsageError
from graftlm.evaluate.run import evaluate
from graftlm.evaluate.task import Options, find_task
from graftlm.lm.decode import Decoding
from tests.data.readers import files

NAMES = "accuracy (names)"


class Seeing:
    """Knows the answer to every set of pictures; with others it says what it was told last."""

    def __init__(self, samples: Sequence[Sample], ending: str = ".") -> None:
        self.names: dict[object, str] = {}
        self.asked: list[str] = []
        self.ending = ending
        for sample in samples:
            self.names[_pictures(sample.sentence.prompt())] = sample.references[0]

    def name_of(self, sentence: Sentence) -> str:
        told = [part.content for part in sentence if isinstance(part, Text) and part.content.startswith("This is a ")]
        last = told[-1].removeprefix("This is a ").strip(".\n")
        return self.names.get(_pictures(sentence), last)

    def respond(self, sentences: Sequence[Sentence], decoding: Decoding) -> list[Sentence]:
        assert decoding.stop == ("\n", ".")
        self.asked += [sentence.text() for sentence in sentences]
        return [Sentence.of(f" {self.name_of(sentence)}{self.ending}") for sentence in sentences]


def _pictures(sentence: Sentence) -> object:
    sources = [part.source for part in sentence.media()]  # type: ignore[union-attr]
    black = not isinstance(sources[-1], str | bytes)
    return None if black else (sources[-1], frozenset(sources))


class Scoring(Seeing):
    """Gives the name a low sum that is a high mean."""

    def log_likelihoods(
        self, prompt: Sentence, candidates: Sequence[str], *, released: bool = False
    ) -> tuple[Tensor, Tensor]:
        right = f" {self.name_of(prompt.prompt())}"
        assert right in candidates
        sums = torch.tensor([-6.0 if text == right else -4.0 for text in candidates])
        return sums, torch.tensor([6 if text == right else 2 for text in candidates])


def scenes(**settings: str) -> tuple[list[Sample], Options]:
    options = Options(settings=settings, graft="g")
    return find_task("binding").choose((), options), options


def test_without_data_there_are_200_balanced_episodes_and_blind_is_chance_exactly() -> None:
    samples, options = scenes()
    report = evaluate(Scoring(samples), "binding", (), options)
    assert (report.n, report.headline, report.task) == (200, NAMES, "binding")
    assert report.metrics == {"accuracy": 100, "named": 100, NAMES: 100}
    assert set(report.controls) == {"blind", "shuffled"}
    assert report.controls["blind"] == {"accuracy": 50, "named": 100, NAMES: 50}
    assert report.controls["shuffled"][NAMES] == 50
    assert report.intervals[NAMES] == (100, 100)
    assert "chance among the names: 50.0 %" in report.notes
    assert report.rows[0].prompt.startswith("Answer with dax or blicket.\nThis is a ")


def test_another_score_compares_sums() -> None:
    samples, options = scenes(score="sum")
    assert evaluate(Scoring(samples), "binding", samples[:20], options).metrics[NAMES] == 0


def test_the_settings_reach_the_prompts() -> None:
    samples, options = scenes(ways="3", shots="2", repeats="1", induction="no", concept="colour")
    seeing = Seeing(samples)
    report = evaluate(seeing, "binding", samples[:6], Options(settings=options.settings, controls=()))
    for text in seeing.asked:
        assert text.count("This is a ") == 12  # 3 ways, 2 shots, told twice
        assert not text.startswith("Answer with")
    assert report.notes == ("chance among the names: 33.3 %", f"{NAMES} left out: the system scores no words")
    assert report.headline == "accuracy"
    real, _ = scenes(names="real", concept="shape")
    assert set(real[0].metadata["names"]) <= {"circle", "square", "triangle", "star", "cross"}
    assert scenes(split="test")[0][0].key != samples[0].key


def test_only_the_name_and_nothing_else_is_right() -> None:
    samples, _ = scenes()
    for ending, expected in ((".", 100), ("", 100), (" indeed", 0)):
        found = evaluate(Seeing(samples, ending), "binding", samples[:4], Options(controls=()))
        assert found.metrics == {"accuracy": expected, "named": expected}


def test_a_limit_is_of_episodes() -> None:
    samples, _ = scenes()
    assert evaluate(Seeing(samples), "binding", (), Options(limit=7, controls=())).n == 7


def test_the_papers_file_is_asked_as_it_is_and_its_ways_are_its_own(tmp_path: Path) -> None:
    samples = read({"path": str(files.open_ended(tmp_path))})
    scoring = Scoring(samples)  # type: ignore[arg-type]
    report = evaluate(scoring, "binding", samples, Options(controls=("blind",), settings={"ways": "2"}))  # type: ignore[arg-type]
    assert report.n == 3
    assert scoring.asked[-1].startswith("Answer with ")
    assert report.metrics["named"] == 100
    for settings in ({"ways": "5"}, {"shots": "3"}):
        with pytest.raises(UsageError, match="the file's episodes have"):
            evaluate(scoring, "binding", samples, Options(settings=settings))  # type: ignore[arg-type]


def test_captioned_photos_make_episodes_over_what_they_show() -> None:
    captioned = [
        Sample(Sentence.of(Image(f"{n}.jpg")), f"{n}.jpg", (f"a {'dog' if n % 2 else 'horse'} runs",) * 5)
        for n in range(12)
    ]
    samples = find_task("binding").choose(captioned, Options(limit=8))
    report = evaluate(Scoring(samples), "binding", samples, Options(limit=8))
    assert report.metrics[NAMES] == 100
    assert report.controls["blind"][NAMES] == 50


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ways": "6"}, "'ways': expected a whole number from 2 to 5, found '6'"),
        ({"shots": "1,2"}, "'shots': expected a whole number from 1 to 16"),
        ({"induction": "maybe"}, "expected yes or no, found 'maybe'"),
    ],
)
def test_wrong_settings_say_what_is_expected(settings: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError) as error:
        evaluate(Seeing([]), "binding", (), Options(settings=settings))
    assert words in str(error.value)
