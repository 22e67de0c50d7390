"""Queries, and what a training sentence teaches about finding."""

from __future__ import annotations

import pytest

from graftlm.data.retrieval import as_query, by_use, every_nth, in_pairs, query_and_picture
from graftlm.data.sentence import Image, Sentence, Text

PHOTO, OTHER = Image("a.jpg"), Image("b.jpg")
CAPTION = Sentence.of(PHOTO, Text("a dog", target=True))


def test_a_query_closes_with_a_sought_picture_and_asks_for_no_words() -> None:
    wanted = Sentence.of("a dog", PHOTO, "runs", Image.sought())
    assert as_query(Sentence.of("a dog", PHOTO, Text("runs", target=True))) == wanted
    assert as_query(wanted) == wanted
    assert as_query(Sentence.of("a dog", PHOTO, "runs", Image("c.jpg", target=True))) == wanted
    spoken = as_query(Sentence.of(Text("a dog?", role="user")))
    assert spoken.parts[-1] == Image.sought("assistant")


@pytest.mark.parametrize(
    ("sentence", "pair"),
    [
        (CAPTION, (Sentence.of(Text("a dog", target=True), Image.sought()), PHOTO)),
        (
            Sentence.of("like", OTHER, "but red", Image("a.jpg", target=True)),
            (Sentence.of("like", OTHER, "but red", Image.sought()), PHOTO),
        ),
        (Sentence.of(PHOTO, "What is it?", Text("a dog", target=True)), None),
        (Sentence.of(PHOTO, OTHER, Text("two dogs", target=True)), None),
        (Sentence.of("hello", Text("hi", target=True)), None),
        (Sentence.of(PHOTO), None),
    ],
)
def test_captions_and_target_pictures_make_pairs_and_nothing_else(
    sentence: Sentence, pair: tuple[Sentence, Image] | None
) -> None:
    assert query_and_picture(sentence) == pair


def test_a_batch_is_parted_by_its_use() -> None:
    find = Sentence.of("a cat", Image("c.jpg", target=True))
    talk = Sentence.of("hello", Text("hi", target=True))
    pairs, written, alone = by_use([CAPTION, find, talk])
    assert [picture for _, picture in pairs] == [PHOTO, Image("c.jpg")]
    assert written == [CAPTION]
    assert alone == [talk]


def test_neighbours_are_joined_and_an_odd_one_stays_alone() -> None:
    three = [Sentence.of(word) for word in "abc"]
    assert in_pairs(three) == [Sentence.of("a", "b"), Sentence.of("c")]
    assert in_pairs(three[:2]) == [Sentence.of("a", "b")]


def test_a_fraction_is_evenly_spread_and_never_nothing() -> None:
    ten = [Sentence.of(str(number)) for number in range(10)]
    assert every_nth(ten, 0.5) == ten[::2]
    assert every_nth(ten, 1.0) == ten
    assert every_nth(ten[:1], 0.01) == ten[:1]
    assert every_nth([], 0.5) == []
