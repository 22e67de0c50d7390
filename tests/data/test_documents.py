"""Documents are cut at the borders of pictures, and a text keeps the end next to its picture."""

from __future__ import annotations

import pytest

from graftlm.data.documents import Item, Limits, Shown, cut, document_row, joined, whole_row
from graftlm.data.sentence import Image, Text, Video
from graftlm.errors import BadSampleError


def items(*found: str | int) -> list[Item]:
    """Words as texts, numbers as pictures."""
    return [Text(one) if isinstance(one, str) else Shown(f"{one}.jpg") for one in found]


def said(pieces: list[tuple[Item, ...]]) -> list[list[str | int]]:
    """The inverse of `items`."""
    return [
        [item.content if isinstance(item, Text) else int(str(item.source).partition(".")[0]) for item in piece]
        for piece in pieces
    ]


def test_a_document_within_the_limits_stays_whole() -> None:
    document = items("head", 1, "one", 2, 3, "two and three")
    assert said(cut(document, Limits(3, 100))) == [["head", 1, "one", 2, 3, "two and three"]]


def test_pieces_begin_with_a_picture_and_hold_as_many_chunks_as_fit() -> None:
    document = items("head", 1, "one", 2, "two", 3, "three", 4, "four", 5, "five")
    assert said(cut(document, Limits(2, 100))) == [["head", 1, "one", 2, "two"], [3, "three", 4, "four"], [5, "five"]]
    assert said(cut(document, Limits(5, 9))) == [["head", 1, "one"], [2, "two", 3, "three"], [4, "four", 5, "five"]]


def test_where_pictures_follow_their_text_pieces_end_with_a_picture() -> None:
    document = items("one", 1, "two", 2, 3, "three", 4, "tail")
    found = cut(document, Limits(2, 100, "after"))
    assert said(found) == [["one", 1], ["two", 2, 3], ["three", 4, "tail"]]


def test_a_run_of_pictures_stays_with_its_text_unless_it_is_longer_than_a_sentence() -> None:
    assert said(cut(items(1, "one", 2, 3, "two and three"), Limits(2, 100))) == [[1, "one"], [2, 3, "two and three"]]
    assert said(cut(items(1, 2, 3, "three"), Limits(2, 100))) == [[3, "three"]]


def test_text_that_is_too_long_keeps_the_words_next_to_the_picture() -> None:
    document = items("far away near by", 1, "first second third")
    assert said(cut(document, Limits(5, 18))) == [[1, "first second third"]]
    assert said(cut(document, Limits(5, 20))) == [["by", 1, "first second third"]]
    assert said(cut(document, Limits(5, 26))) == [["near by", 1, "first second third"]]
    assert said(cut(document, Limits(5, 12))) == [[1, "first second"]]
    assert said(cut(document, Limits(5, 11))) == [["by", 1, "first"]]
    assert said(cut(document, Limits(5, 12, "after"))) == [["away near by", 1]]
    assert said(cut(items(1, "letters"), Limits(5, 4))) == [[1, "lett"]]


@pytest.mark.parametrize("most", range(1, 40))
def test_no_piece_is_beyond_the_limits_and_each_begins_with_a_picture(most: int) -> None:
    document = items("a head", 1, "one word", 2, 3, "", 4, "of four pictures", 5, "x" * 45, 6, "end")
    pieces = cut(joined(document, " "), Limits(2, most))
    for piece in pieces:
        assert sum(isinstance(item, Shown) for item in piece) <= 2
        assert sum(len(item.content) for item in piece if isinstance(item, Text)) <= most
        assert isinstance(piece[0], Shown) or piece is pieces[0]
    assert said(pieces)[-1][-2:] == [6, "end"[:most]]


def test_neighbouring_texts_are_joined_and_empty_ones_left_out() -> None:
    assert said([tuple(joined(items(" one ", "", "two", 1, "  ", 2, "three"), "|"))]) == [["one|two", 1, 2, "three"]]


def test_every_text_of_a_document_is_a_target_and_pieces_are_numbered() -> None:
    row = document_row("doc", items(1, "one", 2, "two"), Limits(1, 100), {"url": "x"})
    assert [sample.key for sample in row.samples()] == ["doc#0", "doc#1"]
    first = row.sample(0)
    assert first.sentence.parts == (Image("1.jpg"), Text("one", target=True))
    assert (first.stem, first.metadata) == ("doc", {"url": "x"})
    (only,) = document_row("doc", [Shown("clip", Video), Text("a film")], Limits(), {}).samples()
    assert only.key == "doc"
    assert only.sentence.parts == (Video("clip"), Text("a film", target=True))


def test_a_document_without_text_is_bad() -> None:
    with pytest.raises(BadSampleError, match="found none") as caught:
        document_row("doc", items(1, 2), Limits(), {})
    assert caught.value.reason == "missing-target"


def test_a_document_with_targets_of_its_own_is_never_cut() -> None:
    asked: list[Item] = [Shown("1.jpg"), Text("What is it?"), Text("a dog", target=True)]
    assert whole_row("doc", asked, Limits(1, 100), {}).sample(0).sentence.targets().text() == "a dog"
    for limits in (Limits(1, 10), Limits(0, 100)):
        with pytest.raises(BadSampleError, match="at most") as caught:
            whole_row("doc", asked, limits, {})
        assert caught.value.reason == "too-long"
