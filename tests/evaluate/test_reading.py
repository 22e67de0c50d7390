"""What a page tells of an answer's words is what the system read when it wrote them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from graftlm.data.sentence import Image, Sentence, Text, Video
from graftlm.evaluate.reading import AnswerReading, as_grids, read_again, word_numbers
from graftlm.evaluate.reading_picture import frame_of_peak, reading_section, veil
from graftlm.evaluate.task import Row
from graftlm.systems.flamingo import Flamingo
from tests.evaluate.toys import toy
from tests.pictures import picture

ASKED = Sentence.of(Image(picture(0)), "seen: a dog.\n", Image(picture(1)), "seen:", Text(" a cat", target=True))


def row(answer: str = "red cat", asked: Sentence = ASKED, key: str = "k") -> Row:
    return Row(key, answer, (), {}, asked=asked)


def flamingo(**fields: Any) -> Flamingo:
    system = toy("flamingo", **fields)
    assert isinstance(system, Flamingo)
    return system


def told(system: Flamingo, *rows: Row) -> AnswerReading:
    (found,) = read_again(system, rows or [row()])
    return found


def test_a_word_is_the_mean_of_its_tokens_in_the_steps_that_wrote_them() -> None:
    system = flamingo(attends="all")
    found = told(system)
    (whole,) = system.reading([ASKED.prompt() + Sentence.of(Text(" red cat", target=True))])
    start = int(whole.targets.nonzero()[0, 0])  # the space before "red"; every byte is written by the one before
    steps = ([start, start + 1, start + 2], [start + 4, start + 5, start + 6])
    assert found.words == ("red", "cat")
    for place, own in enumerate(steps):
        torch.testing.assert_close(found.items[place], whole.items.mean(0)[own].mean(0))
        cells = whole.places.mean(0)[own].mean(0)  # (n, S)
        torch.testing.assert_close(found.grids[place].flatten(1), cells)
    assert found.grids.shape == (2, 2, 1, 2, 2)
    assert ((found.items > 0.05) & (found.items < 0.95)).all()


def test_the_latest_picture_is_all_that_is_read_by_default() -> None:
    found = told(flamingo())
    torch.testing.assert_close(found.items, torch.tensor([[0.0, 1.0]] * 2))
    assert found.media == ASKED.media()


def test_answers_without_words_or_pictures_are_passed_over_and_no_more_are_read_than_asked_for() -> None:
    system = flamingo()
    rows = [row("", key="a"), row(asked=Sentence.of("what?"), key="b"), *(row(key=key) for key in "cdef")]
    assert [one.key for one in read_again(system, rows, most=3)] == ["c", "d", "e"]
    assert read_again(system, [Row("old", "words", (), {})]) == []


def test_a_system_that_does_not_tell_is_not_asked() -> None:
    assert read_again(toy("clipcap"), [row()]) == []


def test_the_frames_of_a_film_are_told_apart(tmp_path: Path) -> None:
    for place, seed in enumerate((3, 4, 5)):
        picture(seed).save(tmp_path / f"{place}.png")
    asked = Sentence.of(Image(picture(0)), "then", Video(tmp_path), "seen:")
    found = told(flamingo(), row(asked=asked))
    assert found.grids.shape == (2, 2, 3, 2, 2)
    assert (found.grids[:, 1].sum((-1, -2)) > 0.01).all()
    assert "film 2, frame" in reading_section([found])


@pytest.mark.parametrize(
    ("answer", "pieces", "numbers"),
    [
        ("a skateboard runs", ["a", " skate", "board", " runs"], [0, 1, 1, 2]),
        ("a skateboard runs", ["a", "skate", "board", "runs"], [0, 1, 1, 2]),
        ("a caf\u00e9 here", ["a", " caf", "\ufffd", "\ufffd", " here"], [0, 1, 1, 1, 2]),
        ("a a b", ["a", "a", "b"], [0, 1, 2]),
    ],
)
def test_tokens_find_their_word_whether_or_not_they_keep_spaces(
    answer: str, pieces: list[str], numbers: list[int]
) -> None:
    assert word_numbers(answer, pieces) == numbers


def test_a_grid_leaves_out_what_stands_before_its_cells() -> None:
    places = torch.arange(10.0).view(1, 1, 10)  # two frames of a class token and 2 x 2 cells
    assert as_grids(places, 5).tolist() == [[[[[1, 2], [3, 4]], [[6, 7], [8, 9]]]]]
    assert as_grids(places[..., :4], 4).shape == (1, 1, 1, 2, 2)
    assert as_grids(torch.ones(1, 1, 56), 56).shape == (1, 1, 1, 0, 0)  # 7 x 8


def test_a_veil_darkens_what_was_read_less() -> None:
    found = veil(torch.tensor([[0.4, 0.2], [0.0, 0.2]]))
    half = '<path fill-opacity="0.36" d="M1 0h1v1H1zM1 1h1v1H1z"/>'
    whole = '<path fill-opacity="0.72" d="M0 1h1v1H0z"/>'
    assert found == half + whole
    assert veil(torch.full((7, 7), 0.02)) == ""
    assert veil(torch.tensor([[0.0, 0.0], [0.0, 1.0]])).count("<path") == 1


def test_the_cell_that_was_read_most_is_framed_unless_all_were_read_alike() -> None:
    peak = "<rect class='peak' x='0' y='1' width='1' height='1'/>"
    assert frame_of_peak(torch.tensor([[0.1, 0.2], [0.6, 0.1]])) == peak
    assert frame_of_peak(torch.full((7, 7), 0.02)) == ""
    assert frame_of_peak(torch.zeros(0, 0)) == ""


def test_shares_are_drawn_only_where_more_than_one_picture_is_read() -> None:
    assert "class='shares'" not in reading_section([told(flamingo())])
    assert "class='shares'" in reading_section([told(flamingo(attends="all"))])


def test_every_word_is_drawn_over_a_picture_that_the_page_holds_once() -> None:
    html = reading_section([told(flamingo(attends="all"), row("a <b> cat's", key=f"<{n}>")) for n in range(2)])
    held = re.findall(r'<image id="([^"]+)"', html)
    assert sorted(held) == ["seen-0-0-0", "seen-0-1-0", "seen-1-0-0", "seen-1-1-0"]
    used = re.findall(r"<use href='#([^']+)'", html)
    assert set(used) <= set(held)
    assert len(used) == 2 * (2 + 3)  # the pictures of each prompt, and a picture a word
    assert html.count("<figcaption>a</figcaption>") == 2
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert html.count("data:image/jpeg;base64,") == 4
    assert html.count("class='shares'") == 6
    assert reading_section([]) == ""


def test_a_single_picture_needs_no_shares() -> None:
    html = reading_section([told(flamingo(), row(asked=Sentence.of(Image(picture(0)), "seen:")))])
    assert "class='heat'" in html
    assert "class='shares'" not in html
    assert html.count("<use") == 2


def test_what_cannot_be_drawn_is_told_in_words(tmp_path: Path) -> None:
    found = told(flamingo())
    nothing = AnswerReading("k", "", found.words, found.media, found.items * 0, found.grids * 0)
    assert reading_section([nothing]).count("reads nothing") == 2
    gone = (Image(str(tmp_path / "gone.jpg")), found.media[1])
    html = reading_section([AnswerReading("k", "", found.words, gone, found.items, found.grids[..., :0, :0])])
    assert "picture 2 100%" in html
    assert "class='veil'" not in html
