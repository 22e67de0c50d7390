"""Dialogues: every step can be taken back, and turns are written down as a system reads them."""

from __future__ import annotations

import random

import pytest

from graftlm.data.dialogue import Dialogue, check_dialogue, latest, turns, written
from graftlm.data.sentence import Image, Sentence, Text
from graftlm.errors import DataError, UsageError

WORDS = ("hello", "what is this?", "Q: a\nA:", "[RET]", "  spaces  ", "<image>")


def step(dialogue: Dialogue, draw: random.Random) -> Dialogue:
    """A picture is shown, or a turn is had."""
    if draw.random() < 0.4:
        return dialogue.show(Image(f"{draw.randrange(5)}.png"))
    words = draw.choice(WORDS) if draw.random() < 0.8 or not dialogue.waiting else ""
    answers = [[Text(" an answer ")], [Image("found.png")], [Text("a"), Image("b.png"), Text("c")], [Text("")], []]
    return dialogue.ask(words).answer(Sentence(tuple(draw.choice(answers))))


@pytest.mark.parametrize("seed", range(50))
def test_undo_takes_back_every_step_to_the_beginning(seed: int) -> None:
    draw = random.Random(seed)
    states = [Dialogue()]
    for _ in range(12):
        states.append(step(states[-1], draw))
    for before, after in zip(reversed(states[:-1]), reversed(states[1:]), strict=True):
        assert after.undo() == before
    with pytest.raises(UsageError, match="no turn to take back"):
        states[0].undo()


@pytest.mark.parametrize("seed", range(20))
def test_turns_joined_are_the_dialogue_and_only_the_oldest_are_dropped(seed: int) -> None:
    draw = random.Random(seed)
    dialogue = Dialogue()
    for _ in range(10):
        dialogue = step(dialogue, draw)
    found = turns(dialogue.sentence)
    assert latest(dialogue.sentence, 0) == dialogue.sentence
    assert turns(latest(dialogue.sentence, 2)) == found[2:]
    assert all(turn.parts[0].role == "user" and turn.parts[-1].role == "assistant" for turn in found)


def test_an_empty_turn_is_refused_unless_a_picture_waits() -> None:
    with pytest.raises(UsageError, match="empty turn"):
        Dialogue().ask("  ")
    assert Dialogue().show(Image("a.png")).ask(" ").sentence == Sentence((Image("a.png", role="user"),))


def example() -> Sentence:
    """Two turns, the second of which is still to be answered."""
    first = Dialogue().show(Image("a.png")).ask("Who?").answer(Sentence((Text(" a dog "), Image("b.png"))))
    return first.ask("Where?").sentence


def test_chat_keeps_the_roles() -> None:
    assert written(example(), "chat") == example()


def test_questions_and_answers_are_written_as_fromage_reads_them() -> None:
    parts = (Image("a.png"), Text("Q: Who?\nA: a dog"), Image("b.png"), Text("\nQ: Where?\nA:"))
    assert written(example(), "qa") == Sentence(parts)


def test_plain_text_stands_as_it_is_with_a_line_for_each_text_after_a_text() -> None:
    assert written(example(), "plain") == Sentence(
        (Image("a.png"), Text("Who?\na dog"), Image("b.png"), Text("Where?"))
    )
    alone = Dialogue().show(Image("a.png")).ask("").answer(Sentence((Text(""),))).ask("a").sentence
    assert written(alone, "plain") == Sentence((Image("a.png"), Text("a")))


def test_a_caption_begins_with_the_last_words_after_the_latest_pictures_of_the_user() -> None:
    assert written(example(), "caption") == Sentence((Image("a.png"), Text("Where?")))
    assert written(Dialogue().ask("Where?").sentence, "caption") == Sentence((Text("Where?"),))
    two = Dialogue(example()).answer(Sentence((Text("here"),))).show(Image("c.png")).show(Image("d.png")).ask("")
    assert written(two.sentence, "caption") == Sentence((Image("c.png"), Image("d.png")))


@pytest.mark.parametrize("form", ["chat", "qa", "plain"])
def test_without_feeding_back_the_pictures_of_answers_are_left_out(form: str) -> None:
    prompt = written(example(), form, feed_back=False)  # type: ignore[arg-type]
    assert [part.source for part in prompt.media() if isinstance(part, Image)] == ["a.png"]


@pytest.mark.parametrize(
    "part", [Text("x"), Text("x", role="system"), Text("x", role="user", target=True), Image.sought("assistant")]
)
def test_a_sentence_that_is_no_dialogue_is_refused(part: Text | Image) -> None:
    with pytest.raises(DataError, match=r"here, part 2: expected text or a picture"):
        check_dialogue(Sentence((Text("hi", role="user"), part)), "here")
