"""Sentences as ids: labels at the right places, slots for media, dialogues in the LM's template."""

from __future__ import annotations

import pytest
import torch

from graftlm.data.chat import Segment, segments
from graftlm.data.sentence import Image, Sentence, Text
from graftlm.data.tokenize import IGNORED, Layout, tokenize
from graftlm.errors import DataError, ShapeError
from graftlm.lm.toy import ByteTokenizer

TOKENIZER = ByteTokenizer()
BOS, EOS, PAD = TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.pad_id


def caption(text: str) -> Sentence:
    return Sentence.of(Image("a.jpg"), Text(text, target=True))


def test_only_the_target_and_the_closing_eos_are_labels() -> None:
    batch = tokenize([caption("ab")], TOKENIZER, Layout(media_tokens=2))
    assert batch.ids[0].tolist() == [BOS, PAD, PAD, 97, 98, EOS]
    assert batch.labels[0].tolist() == [IGNORED, IGNORED, IGNORED, 97, 98, EOS]
    assert batch.slots[0].tolist() == [-1, 0, 1, -1, -1, -1]
    assert batch.seen[0].tolist() == [0, 1, 1, 1, 1, 1]


def test_bos_may_follow_the_leading_media_or_be_left_out() -> None:
    after = tokenize([caption("a")], TOKENIZER, Layout(media_tokens=1, bos="after_media"))
    assert after.ids[0].tolist() == [PAD, BOS, 97, EOS]
    none = tokenize([caption("a")], TOKENIZER, Layout(media_tokens=1, bos="none"))
    assert none.ids[0].tolist() == [PAD, 97, EOS]


def test_rows_are_padded_on_the_right_and_slots_run_through_the_batch() -> None:
    batch = tokenize([caption("abc"), caption("a") + caption("b")], TOKENIZER, Layout(media_tokens=1, bos="none"))
    assert batch.mask.tolist() == [[True] * 5, [True] * 5]
    assert batch.slots.tolist() == [[0, -1, -1, -1, -1], [1, -1, 2, -1, -1]]
    assert batch.rows.tolist() == [0, 1, 1]
    shorter = tokenize([caption("abc"), caption("")], TOKENIZER, Layout(media_tokens=1, bos="none"))
    assert shorter.mask[1].tolist() == [True, True, False, False, False]
    assert shorter.labels[1].tolist() == [IGNORED, EOS, IGNORED, IGNORED, IGNORED]


def test_eos_follows_the_last_target_alone() -> None:
    batch = tokenize([caption("a") + caption("b")], TOKENIZER, Layout(bos="none"))
    assert batch.ids[0].tolist() == [97, 98, EOS]
    open_end = tokenize([caption("a") + Sentence.of("b")], TOKENIZER, Layout(bos="none"))
    assert open_end.ids[0].tolist() == [97, 98]


def test_text_that_spells_a_special_token_is_text() -> None:
    batch = tokenize([Sentence.of("<|end|> <image>")], TOKENIZER, Layout(bos="none"))
    assert EOS not in batch.ids[0].tolist()
    assert bytes(batch.ids[0].tolist()).decode() == "<|end|> <image>"


def test_a_dialogue_is_rendered_by_the_template_and_cut_at_its_parts() -> None:
    dialogue = Sentence.of(
        Text("hi <|end|>", role="user"), Image("a.jpg", role="user"), Text("yo", role="assistant", target=True)
    )
    pieces = segments(dialogue, TOKENIZER)
    assert pieces == [
        Segment("<|user|>\n", template=True),
        Segment("hi <|end|>"),
        Image("a.jpg", role="user"),
        Segment("<|end|>\n<|assistant|>\n", template=True),
        Segment("yo", target=True),
    ]
    batch = tokenize([dialogue], TOKENIZER, Layout(bos="none"))
    assert batch.ids[0].tolist().count(EOS) == 2
    assert batch.labels[0][batch.labels[0] != IGNORED].tolist() == [*b"yo", EOS]


def test_the_prompt_of_a_dialogue_asks_the_assistant_to_speak() -> None:
    prompt = Sentence.of(Text("hi", role="user"))
    assert segments(prompt, TOKENIZER)[-1] == Segment("<|end|>\n<|assistant|>\n", template=True)


def test_a_template_that_writes_bos_gets_no_second_one() -> None:
    class OwnBos(ByteTokenizer):
        def encode_template(self, text: str) -> list[int]:
            return [self.bos_id, *super().encode_template(text)] if text.startswith("<|user|>") else []

    prompt = Sentence.of(Text("hi", role="user"))
    assert tokenize([prompt], OwnBos(), Layout()).ids[0].tolist().count(BOS) == 1
    assert tokenize([prompt], TOKENIZER, Layout()).ids[0].tolist().count(BOS) == 1


def test_the_end_of_a_target_beyond_the_longest_row_is_cut_but_media_never() -> None:
    batch = tokenize([caption("abcdef")], TOKENIZER, Layout(media_tokens=2, max_length=5))
    assert batch.ids[0].tolist() == [BOS, PAD, PAD, 97, 98]
    assert batch.labels[0].tolist() == [IGNORED, IGNORED, IGNORED, 97, 98]
    with pytest.raises(ShapeError, match="media would be cut"):
        tokenize([Sentence.of("abcdef", Image("a.jpg"))], TOKENIZER, Layout(media_tokens=1, max_length=4))


ASKED = Text("a question")
TOO_LONG = {
    "a prompt to be answered": (Sentence.of(ASKED), "a prompt of 11 positions does not fit into 10;"),
    "a prompt that leaves no room": (
        Sentence.of(Text("a questio"), Text("yes", target=True)),
        "a prompt of 10 positions does not fit into 10 with an answer behind it;",
    ),
    "a question between two answers": (
        Sentence.of(Text("a"), Text("b", target=True), ASKED, Text("yes", target=True)),
        "a prompt of 13 positions does not fit into 10 with an answer behind it;",
    ),
    "words behind the answer": (Sentence.of(Text("a" * 5), Text("yes", target=True), ASKED), "does not fit into 10"),
}


@pytest.mark.parametrize("kind", TOO_LONG)
def test_a_prompt_is_never_cut(kind: str) -> None:
    sentence, words = TOO_LONG[kind]
    with pytest.raises(ShapeError) as caught:
        tokenize([sentence], TOKENIZER, Layout(max_length=10))
    assert words in str(caught.value)
    assert "larger max_length" in str(caught.value)


def test_a_prompt_that_just_fits_is_taken_whole() -> None:
    assert tokenize([Sentence.of(ASKED)], TOKENIZER, Layout(max_length=11)).ids.shape == (1, 11)
    with_answer = tokenize([Sentence.of(ASKED, Text("yes", target=True))], TOKENIZER, Layout(max_length=12))
    assert with_answer.labels[0].tolist()[-2:] == [IGNORED, ord("y")]


def test_an_lm_without_bos_starts_from_eos_where_no_soft_token_stands() -> None:
    class NoBos(ByteTokenizer):
        bos_id = None  # type: ignore[assignment]

    assert tokenize([caption("a")], NoBos(), Layout()).ids[0].tolist() == [EOS, 97, EOS]
    assert tokenize([caption("a")], NoBos(), Layout(media_tokens=1)).ids[0].tolist() == [PAD, 97, EOS]


def test_ids_are_long_tensors() -> None:
    assert tokenize([caption("a")], TOKENIZER, Layout()).ids.dtype == torch.long


RETRIEVING = Layout(media_tokens=2, bos="after_media", retrieval_ids=(300, 301))


def test_a_target_picture_is_the_retrieval_token_wherever_it_stands() -> None:
    shown, sought = Image("a.jpg"), Image.sought()
    batch = tokenize([Sentence.of(shown, "ab ", sought, "c", sought), Sentence.of("d", sought)], TOKENIZER, RETRIEVING)
    assert batch.ids[0].tolist() == [PAD, PAD, BOS, 97, 98, 300, 301, 99, 300, 301]
    assert batch.labels[0].tolist() == [IGNORED] * 5 + [300, IGNORED, IGNORED, 300, IGNORED]
    assert batch.retrieval.nonzero().tolist() == [[0, 5], [0, 6], [0, 8], [0, 9], [1, 2], [1, 3]]
    assert batch.closing(2).nonzero().tolist() == [[0, 8], [0, 9], [1, 2], [1, 3]]
    assert batch.media == (shown,)
    assert batch.ids[0].tolist().count(BOS) == 1


def test_a_target_picture_with_content_is_sought_too_and_not_shown() -> None:
    batch = tokenize([Sentence.of("ab", Image("a.jpg", target=True))], TOKENIZER, RETRIEVING)
    assert batch.ids[0].tolist() == [BOS, 97, 98, 300, 301]
    assert batch.media == ()


def test_text_is_cut_before_the_token_that_closes_a_row() -> None:
    layout = Layout(bos="start", max_length=5, retrieval_ids=(300,))
    batch = tokenize([Sentence.of("abcdefgh", Image.sought())], TOKENIZER, layout)
    assert batch.ids[0].tolist() == [BOS, 97, 98, 99, 300]
    assert batch.retrieval[0].tolist() == [False] * 4 + [True]


def test_a_sought_picture_is_refused_where_nothing_can_be_retrieved() -> None:
    with pytest.raises(DataError, match="cannot retrieve"):
        tokenize([Sentence.of("ab", Image.sought())], TOKENIZER, Layout())


def test_bos_stands_before_every_text_or_is_a_target_where_the_layout_says_so() -> None:
    story = Sentence.of("a", Image("a.jpg"), "b", Image.sought())
    each = Layout(media_tokens=1, bos="each_text", retrieval_ids=(300,))
    assert tokenize([story], TOKENIZER, each).ids[0].tolist() == [BOS, 97, PAD, BOS, 98, 300]
    labelled = Layout(media_tokens=1, bos="after_media", bos_target=True)
    assert tokenize([caption("a")], TOKENIZER, labelled).labels[0].tolist() == [IGNORED, BOS, 97, EOS]


def test_a_dialogue_that_ends_with_a_sought_picture_stays_open() -> None:
    dialogue = Sentence.of(Text("hi", role="user"), Image.sought("assistant"))
    assert segments(dialogue, TOKENIZER)[-1] == Image.sought("assistant")


MARK, END = 300, 301
CHUNKS = Layout(media_id=MARK, chunk_end_id=END)


def test_a_marker_stands_for_a_picture_and_a_token_closes_its_words() -> None:
    page = Sentence.of("a", Image("1.jpg"), "b", "c", Image("2.jpg"), Image("3.jpg"), Text("d", target=True))
    batch = tokenize([page], TOKENIZER, CHUNKS)
    assert batch.ids[0].tolist() == [BOS, 97, END, MARK, 98, 99, END, MARK, MARK, 100, END, EOS]
    assert batch.seen[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 3, 3, 3, 3]
    assert (batch.slots == -1).all()
    assert batch.labels[0].tolist() == [IGNORED] * 9 + [100, END, EOS]
    assert len(batch.media) == 3


def test_the_end_of_a_chunk_is_a_target_where_its_words_are() -> None:
    shots = caption("a") + Sentence.of(Image("b.jpg"), "b") + caption("c")
    batch = tokenize([shots], TOKENIZER, CHUNKS)
    assert batch.ids[0].tolist() == [BOS, MARK, 97, END, MARK, 98, END, MARK, 99, END, EOS]
    wanted = [IGNORED, IGNORED, 97, END, IGNORED, IGNORED, IGNORED, IGNORED, 99, END, EOS]
    assert batch.labels[0].tolist() == wanted


def test_a_prompt_stays_open_for_the_words_of_its_last_picture() -> None:
    prompt = Sentence.of(Image("a.jpg"), "a", Image("b.jpg"), "Output:")
    assert tokenize([prompt], TOKENIZER, CHUNKS).ids[0].tolist()[-7:] == [*b"Output:"]


def test_eos_may_close_chunks_itself_and_then_stands_once() -> None:
    layout = Layout(media_id=MARK, chunk_end_id=EOS, eos=False)
    assert tokenize([caption("a") + caption("b")], TOKENIZER, layout).ids[0].tolist() == [
        BOS, MARK, 97, EOS, MARK, 98, EOS,
    ]  # fmt: skip


def test_the_turns_of_a_dialogue_are_closed_by_the_template_alone() -> None:
    said = Sentence.of(Text("a", role="user"), Image("b.jpg", role="user"), Text("c", role="assistant", target=True))
    ids = tokenize([said], TOKENIZER, CHUNKS).ids[0].tolist()
    assert END not in ids
    assert ids.count(MARK) == 1
