"""Sentences as ids: labels at the right places, slots for media, dialogues in the LM's template."""

from __future__ import annotations

import pytest
import torch

from graftlm.data.chat import Segment, segments
from graftlm.data.sentence import Image, Sentence, Text
from graftlm.data.tokenize import IGNORED, Layout, tokenize
from graftlm.errors import ShapeError
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


def test_text_beyond_the_longest_row_is_cut_but_media_never() -> None:
    assert tokenize([Sentence.of("abcdef")], TOKENIZER, Layout(max_length=4)).ids.shape == (1, 4)
    with pytest.raises(ShapeError, match="media would be cut"):
        tokenize([Sentence.of("abcdef", Image("a.jpg"))], TOKENIZER, Layout(media_tokens=1, max_length=4))


def test_an_lm_without_bos_starts_from_eos_where_no_soft_token_stands() -> None:
    class NoBos(ByteTokenizer):
        bos_id = None  # type: ignore[assignment]

    assert tokenize([caption("a")], NoBos(), Layout()).ids[0].tolist() == [EOS, 97, EOS]
    assert tokenize([caption("a")], NoBos(), Layout(media_tokens=1)).ids[0].tolist() == [PAD, 97, EOS]


def test_ids_are_long_tensors() -> None:
    assert tokenize([caption("a")], TOKENIZER, Layout()).ids.dtype == torch.long
