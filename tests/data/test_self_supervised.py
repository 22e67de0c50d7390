"""Tasks that text sets itself: labels are right, classes even, a choice has one right option."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from graftlm.data.labelled import chosen
from graftlm.data.readers import read_all
from graftlm.data.self_supervised import as_choice, choice, letters, pair, sentences_of, single
from graftlm.data.sentence import Filled, LabelWord, Sentence, Text
from graftlm.data.tokenize import Layout, tokenize_row
from graftlm.errors import ConfigError, DataError, ShapeError
from graftlm.lm.toy import ByteTokenizer

DOCUMENTS = [[f"Document {number} has its sentence {place}." for place in range(6)] for number in range(5)]


def found_in(sentence: Sentence) -> list[tuple[int, int]]:
    """(document, place) of every sentence shown, in order."""
    said = [part.content.strip() for part in sentence if isinstance(part, Text)]
    return [
        (number, document.index(text)) for text in said for number, document in enumerate(DOCUMENTS) if text in document
    ]


@pytest.mark.parametrize("hybrid", [False, True])
def test_a_pair_is_labelled_by_where_its_sentences_stand(hybrid: bool) -> None:
    counts: Counter[int] = Counter()
    for seed in range(300):
        sentence = pair(DOCUMENTS, random.Random(seed), hybrid=hybrid)
        (first, place), (second, other) = found_in(sentence)
        label, words = chosen(sentence)
        assert label == (0 if first != second else 2 if other == place + 1 else 1)
        assert words == ((" no",), (" maybe",), (" yes",))
        assert first != second or other != place
        counts[label] += 1
    assert min(counts.values()) > 70


@pytest.mark.parametrize("hybrid", [False, True])
def test_a_choice_has_six_options_of_which_one_comes_next(hybrid: bool) -> None:
    places: Counter[int] = Counter()
    for seed in range(300):
        sentence = choice(DOCUMENTS, random.Random(seed), hybrid=hybrid)
        (document, place), *options = found_in(sentence)
        label, words = chosen(sentence)
        assert len(options) == 6
        assert [at for at, option in enumerate(options) if option == (document, place + 1)] == [label]
        assert words == letters(6)
        places[label] += 1
    assert set(places) == set(range(6))


def test_a_task_becomes_a_choice_among_its_words_once() -> None:
    sentence = Sentence.of("It rains.", Text(LabelWord(1, ((" no",), (" yes",))), target=True))
    turned = as_choice(sentence)
    assert turned.prompt().text() == "It rains. ? A. no B. yes The answer is"
    assert chosen(turned) == (1, ((" A",), (" B",)))
    assert as_choice(turned) == turned
    assert as_choice(Sentence.of("no task")) == Sentence.of("no task")


def test_the_options_of_a_task_are_never_cut() -> None:
    """They are the label: a row that is too long loses words of its text, and is refused where that is not enough."""
    words, asked = ByteTokenizer(), " ? A. no B. yes The answer is"
    task = as_choice(Sentence.of(Text(Filled("r" * 50, True)), Text(LabelWord(1, ((" no",), (" yes",))), target=True)))
    room = 1 + len(asked) + 2  # BOS, the question, a letter and its space
    row = tokenize_row(task, words, Layout(max_length=room))
    assert words.decode(row.ids) == asked + " B"
    with pytest.raises(ShapeError, match="list more slots under 'shorten'"):
        tokenize_row(task, words, Layout(max_length=room - 1))


def test_a_single_text_says_how_it_sounds() -> None:
    assert single("I liked it.", 4).text() == "I liked it. It was great"


def test_sentences_are_cut_where_they_end() -> None:
    text = 'He said "Go home now, please." Then he left the old house. Tiny. And nobody ever saw him again!'
    assert sentences_of(text) == [
        'He said "Go home now, please.',
        "Then he left the old house.",
        "And nobody ever saw him again!",
    ]


def test_text_that_is_too_short_is_refused() -> None:
    with pytest.raises(DataError, match="two documents or more"):
        pair(DOCUMENTS[:1], random.Random(0))
    with pytest.raises(DataError, match="three sentences or more"):
        pair([["One sentence alone."], ["Another one alone."]], random.Random(0))


@pytest.mark.parametrize("format_", ["pair", "choice"])
def test_the_reader_makes_the_same_tasks_every_time(tmp_path: Path, format_: str) -> None:
    file = tmp_path / "books.txt"
    file.write_text("\n\n".join(" ".join(document) for document in DOCUMENTS), encoding="utf-8")
    spec = {"reader": "self_supervised", "path": str(file), "format": format_, "limit": 12}
    first, again = (list(read_all(spec)) for _ in range(2))
    assert len(first) == 12
    assert [one.sentence for one in first] == [one.sentence for one in again]
    assert len({one.key for one in first}) == 12
    other = read_all({**spec, "seed": 1})
    assert [one.sentence for one in other] != [one.sentence for one in first]
    unified = read_all({**spec, "unified": True})
    assert all(chosen(one.sentence)[1][0] == (" A",) for one in unified)


def test_the_reader_takes_stars_from_a_column(tmp_path: Path) -> None:
    file = tmp_path / "reviews.jsonl"
    rows = [{"text": f"Review number {stars}.", "stars": stars} for stars in (0, 4, 9)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    samples = read_all({"reader": "self_supervised", "path": str(file), "format": "single"})
    assert [chosen(sample.sentence)[0] for sample in samples] == [0, 4]
    (tmp_path / "books.txt").write_text("Some words.", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"needs a \.jsonl"):
        read_all({"reader": "self_supervised", "path": str(tmp_path / "books.txt"), "format": "single"})
