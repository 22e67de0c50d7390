"""Prompts that begin alike are answered behind one opening, and the answers are those to whole prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from graftlm.data.sample import Sample
from graftlm.data.sentence import Image, Sentence, Text
from graftlm.evaluate.answers import WORTH_OPENING, Alike, answer_all, begin_alike
from graftlm.evaluate.metrics import java
from graftlm.evaluate.run import evaluate
from graftlm.evaluate.task import Options
from graftlm.lm.decode import Decoding
from graftlm.systems.base import System
from tests.evaluate.toys import toy
from tests.pictures import picture

SYSTEMS: dict[str, dict[str, Any]] = {
    "flamingo": {},
    "flamingo, all pictures": {"attends": "all"},
    "frozen": {},
    "fromage": {},
    "clipcap": {},
    "clipcap, prefix": {"inject": "prefix"},
}
LONG = "x" * WORTH_OPENING


class Plain:
    """The same system, which is only asked whole prompts."""

    def __init__(self, system: System) -> None:
        self.system = system

    def respond(self, sentences: Sequence[Sentence], decoding: Decoding) -> list[Sentence]:
        """What the system says."""
        return self.system.respond(sentences, decoding)


class Echo:
    """Says the words of the prompt, and remembers what was opened and how many were asked behind it."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.behind: list[int] = []
        self.whole: list[int] = []

    def respond(self, sentences: Sequence[Sentence], decoding: Decoding) -> list[Sentence]:
        """Words as they stand."""
        self.whole.append(len(sentences))
        return [Sentence.of(sentence.text()) for sentence in sentences]

    def opening(self, sentence: Sentence) -> Any:
        """The words themselves."""
        self.opened.append(sentence.text())
        return sentence

    def respond_after(
        self, opening: Any, sentences: Sequence[Sentence], decoding: Decoding | None = None
    ) -> list[Sentence]:
        """The words of both."""
        self.behind.append(len(sentences))
        return [Sentence.of(opening.text() + sentence.text()) for sentence in sentences]


def asked(responder: Any, sentences: Sequence[Sentence], batch_size: int = 4, **search: Any) -> list[str]:
    return answer_all(
        responder,
        sentences,
        Decoding(**search),
        batch_size=batch_size,
        stage="answers",
        progress=lambda stage, done, total: None,
    )


def words(*rows: str) -> list[Sentence]:
    """One text a letter: "abc" is three parts."""
    return [Sentence.of(*row) for row in rows]


def captioned(numbers: Sequence[int]) -> list[Sample]:
    return [
        Sample(Sentence.of(Image(picture(n)), Text(f"photo {n} .", target=True)), f"{n}.jpg", (f"photo {n} .", "a b"))
        for n in numbers
    ]


def openings_of(system: System, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the openings that are read from now on, in parts."""
    read: list[int] = []
    before = system.opening

    def opening(sentence: Sentence) -> Any:
        read.append(len(sentence))
        return before(sentence)

    monkeypatch.setattr(system, "opening", opening)
    return read


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("name", list(SYSTEMS))
def test_fixed_examples_are_read_once_and_give_the_answers_of_whole_prompts(
    name: str, beam: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = toy(name.partition(",")[0], **SYSTEMS[name])
    options = Options(
        support=captioned(range(20, 30)),
        settings={"shots": "0,2,4", "select": "fixed"},
        batch_size=4,
        beam=beam,
        controls=(),
    )
    wanted = evaluate(Plain(system), "fewshot", captioned(range(5)), options)
    read = openings_of(system, monkeypatch)
    found = evaluate(system, "fewshot", captioned(range(5)), options)
    assert sorted(read) == [4, 6, 12]  # two examples in words alone, two and four with their pictures
    assert [row.prediction for row in found.rows] == [row.prediction for row in wanted.rows]
    assert found.metrics == wanted.metrics
    assert len({row.prediction for row in found.rows}) > 1


def test_examples_that_differ_by_question_open_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    system = toy("flamingo")
    read = openings_of(system, monkeypatch)
    settings = {"shots": "2", "select": "random"}
    options = Options(support=captioned(range(20, 40)), settings=settings, batch_size=4, controls=())
    evaluate(system, "fewshot", captioned(range(5)), options)
    assert read == []


def test_captions_asked_for_in_the_same_words_are_read_behind_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "missing", lambda: "is switched off")
    lead = Sentence.of("A photo and the short words that tell of it: ")
    samples = [Sample(lead + one.sentence, one.key, one.references) for one in captioned(range(5))]
    system = toy("flamingo")
    wanted = evaluate(Plain(system), "captioning", samples, Options(controls=()))
    read = openings_of(system, monkeypatch)
    found = evaluate(system, "captioning", samples, Options(controls=()))
    assert read == [1]
    assert [row.prediction for row in found.rows] == [row.prediction for row in wanted.rows]
    assert len({row.prediction for row in found.rows}) > 1


def test_prompts_are_grouped_by_how_they_begin_and_large_groups_are_divided() -> None:
    short, long = ["ab1", "ab2", "ab3"], ["abcd1", "abcd2", "abcd3"]
    prompts = words(*short, *long)
    assert begin_alike(prompts, range(6), 3) == [Alike((0, 1, 2), 2), Alike((3, 4, 5), 4)]
    assert begin_alike(prompts, range(6), 4) == [Alike((0, 1, 2, 3, 4, 5), 2)]
    assert begin_alike(prompts, [5, 1, 3, 0, 4, 2], 3) == [Alike((5, 3, 4), 4), Alike((1, 0, 2), 2)]


def test_a_few_prompts_that_begin_otherwise_are_not_asked_apart() -> None:
    prompts = words("ab1", "ab2", "ab3", "xy")
    assert begin_alike(prompts, range(4), 2) == [Alike((0, 1, 2, 3), 0)]
    assert begin_alike(prompts, range(4), 1) == [Alike((0, 1, 2), 2), Alike((3,), 1)]


def test_the_last_part_of_a_prompt_is_never_shared() -> None:
    assert begin_alike(words("ab", "ab", "abc"), range(3), 2) == [Alike((0, 1, 2), 1)]
    assert begin_alike(words("a", "a"), range(2), 2) == [Alike((0, 1), 0)]
    assert begin_alike([], [], 2) == []


def test_answers_behind_openings_come_in_the_order_asked() -> None:
    prompts = [Sentence.of(start * WORTH_OPENING, f"{n}") for n in range(6) for start in "ab"]
    echo = Echo()
    assert asked(echo, prompts) == [prompt.text() for prompt in prompts]
    assert sorted(echo.opened) == ["a" * WORTH_OPENING, "b" * WORTH_OPENING]
    assert echo.behind == [4, 2, 4, 2]
    assert echo.whole == []


def test_little_that_is_shared_is_not_worth_an_opening() -> None:
    for start, opened in ((LONG, 1), (LONG[1:], 0)):
        echo = Echo()
        asked(echo, [Sentence.of(start, f"{n}") for n in range(5)])
        assert len(echo.opened) == opened


def test_a_single_prompt_and_a_dialogue_are_asked_whole() -> None:
    echo = Echo()
    asked(echo, [Sentence.of(LONG, "1")] * 5)
    turns = [Sentence((Text(LONG, role="system"), Text(f"{n}", role="user"))) for n in range(5)]
    assert asked(echo, turns) == [turn.text() for turn in turns]
    assert (echo.opened, echo.whole) == ([], [1, 4, 1])


def test_sampled_answers_to_equal_prompts_are_read_behind_one_opening_too() -> None:
    echo = Echo()
    assert len(asked(echo, [Sentence.of(LONG, "1")] * 5, temperature=1.0)) == 5
    assert (len(echo.opened), echo.behind) == (1, [4, 1])
