"""Rows that are too long lose what their template lets go of, and nothing else; masks stand in the right place."""

from __future__ import annotations

import pytest

from graftlm.data.labelled import Template
from graftlm.data.sentence import LabelWord, Sentence, Text
from graftlm.data.shortening import kept_lengths
from graftlm.data.tokenize import IGNORED, Layout, tokenize_row
from graftlm.errors import DataError, ShapeError
from graftlm.lm.toy import ByteTokenizer

WORDS = ByteTokenizer()
MASK = 255  # a byte that no UTF-8 text holds stands for a mask


def sentence(text: str, label: int = 0, **values: str) -> Sentence:
    template = Template.model_validate(
        {"text": text, "words": {"x": ["no"], "y": ["certainly"]}, "shorten": [name for name in values if name != "q"]}
    )
    return template.sentence(values, label)


def said(found: Sentence, layout: Layout) -> str:
    return WORDS.decode(tokenize_row(found, WORDS, layout).ids)


@pytest.mark.parametrize(
    ("lengths", "excess", "kept"),
    [
        ([10], 3, [7]),
        ([10, 4], 3, [7, 4]),
        ([10, 9], 7, [6, 6]),
        ([10, 9], 8, [6, 5]),
        ([3, 3], 99, [0, 0]),
        ([5, 0, 5], 4, [3, 0, 3]),
        ([], 4, []),
    ],
)
def test_the_longest_part_loses_first_and_no_more_than_needed(lengths: list[int], excess: int, kept: list[int]) -> None:
    assert kept_lengths(lengths, excess) == kept


def test_a_row_that_fits_is_left_as_it_is() -> None:
    found = sentence("{p} Q: {q}? A: {mask}", p="passage", q="why")
    assert said(found, Layout()) == "passage Q: why? A: no"


def test_only_the_slots_that_may_lose_tokens_do() -> None:
    found = sentence("{p} Q: {q}? A: {mask}", p="abcdefghij" * 5, q="why" * 9)
    row = tokenize_row(found, WORDS, Layout(max_length=60))
    text = WORDS.decode(row.ids)
    assert len(row.ids) == 60 - len("certainly") + len("no")
    assert text.endswith(f" Q: {'why' * 9}? A: no")
    assert text.startswith("abc")
    from_start = said(found, Layout(max_length=60, shorten="start"))
    assert from_start.endswith(f" Q: {'why' * 9}? A: no")
    assert from_start.split(" Q:")[0].endswith("hij")
    assert not from_start.startswith("abc")


def test_what_is_cut_does_not_tell_which_word_is_right() -> None:
    long = {"p": "p" * 80, "q": "why"}
    both = [sentence("{p} Q: {q}? A: {mask}", label, **long) for label in (0, 1)]
    rows = [tokenize_row(one, WORDS, Layout(max_length=50)) for one in both]
    prompts = [[one for one, label in zip(row.ids, row.labels, strict=True) if label == IGNORED] for row in rows]
    assert prompts[0] == prompts[1]
    assert len(rows[1].ids) == 50


def test_a_sentence_that_is_too_long_all_the_same_is_refused() -> None:
    found = sentence("{p} Q: {q}? A: {mask}", p="pppp", q="why" * 20)
    with pytest.raises(ShapeError, match="list more slots under 'shorten'"):
        tokenize_row(found, WORDS, Layout(max_length=40))


def test_the_word_of_a_class_is_the_whole_target_and_nothing_follows_it_from_left_to_right() -> None:
    row = tokenize_row(sentence("{p} was {mask}. Yes.", p="it"), WORDS, Layout(eos=True))
    assert WORDS.decode(row.ids) == "it was no"
    assert [label for label in row.labels if label != IGNORED] == list(b" no")
    plain = tokenize_row(Sentence.of("it was", Text(" no", target=True)), WORDS, Layout(eos=True))
    assert plain.ids == [*row.ids, WORDS.eos_id]


def test_a_slot_after_the_mask_is_refused_where_it_cannot_be_read() -> None:
    found = sentence("A {mask} thing: {p}", p="it")
    with pytest.raises(DataError, match="choose another template or a masked language model"):
        tokenize_row(found, WORDS, Layout())
    shown = Sentence(found.context().parts) + sentence("{p} was {mask}", p="it")
    assert said(shown, Layout()) == "A no thing: itit was no"


@pytest.mark.parametrize("label", [0, 1])
def test_a_model_that_looks_both_ways_sees_one_mask_whatever_the_word(label: int) -> None:
    row = tokenize_row(sentence("A {mask} thing: {p}", label, p="it"), WORDS, Layout(mask_id=MASK))
    assert row.ids == [WORDS.bos_id, *b"A", MASK, *b" thing: it", WORDS.eos_id]
    place = row.ids.index(MASK)
    assert row.labels[place] == ord(" ")  # the first token of " no" and of " certainly"
    assert [label for label in row.labels if label != IGNORED] == [ord(" ")]


def test_other_targets_of_such_a_model_are_masked_token_by_token() -> None:
    row = tokenize_row(Sentence.of("it", Text("no", target=True)), WORDS, Layout(mask_id=MASK, bos="none"))
    assert row.ids == [*b"it", MASK, MASK, WORDS.eos_id]
    assert row.labels == [IGNORED, IGNORED, *b"no", IGNORED]


def test_a_masked_row_that_is_too_long_keeps_its_last_token() -> None:
    row = tokenize_row(sentence("A {mask} thing: {p}", p="p" * 50), WORDS, Layout(mask_id=MASK, max_length=24))
    assert len(row.ids) == 24
    assert row.ids[-1] == WORDS.eos_id
    assert MASK in row.ids


def test_in_a_worked_example_a_class_is_only_a_word() -> None:
    example = sentence("{p} was {mask}.", 1, p="it").context()
    found = example + sentence(" {p} was {mask}", 0, p="he")
    assert said(found, Layout()) == "it was certainly. he was no"
    assert isinstance(found.targets().parts[0].content, LabelWord)  # type: ignore[union-attr]
