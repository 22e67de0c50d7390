"""Which words a prompt is written from: never the label, never padding, and as many as are asked for."""

from __future__ import annotations

import torch

from graftlm.data.sentence import LabelWord, Sentence, Text
from graftlm.data.tokenize import Layout, TokenBatch, tokenize
from graftlm.lm.masked import MaskedLM
from graftlm.lm.sources import source_positions, source_words
from graftlm.lm.toy import ToyLM
from tests.masked_models import mask_tokenizer, tiny_encoder

WORDS = ((" no",), (" yes",))


def sentence(text: str, after: str = "") -> Sentence:
    parts = [Text(text), Text(LabelWord(1, WORDS), target=True)]
    return Sentence((*parts, Text(after)) if after else tuple(parts))


def causal(*texts: str) -> tuple[ToyLM, TokenBatch]:
    lm = ToyLM()
    return lm, tokenize([sentence(text) for text in texts], lm.tokenizer, Layout())


def test_the_words_stand_at_the_left_and_the_label_is_not_among_them() -> None:
    lm, batch = causal("abcd", "xy")
    ids, mask = source_words(lm, batch, 3)
    assert [lm.tokenizer.decode(row[used].tolist()) for row, used in zip(ids, mask, strict=True)] == ["abc", "xy"]
    assert mask.tolist() == [[True] * 3, [True, True, False]]


def test_more_than_there_are_is_all_there_are() -> None:
    lm, batch = causal("abcd")
    ids, mask = source_words(lm, batch, 99)
    assert lm.tokenizer.decode(ids[mask].tolist()) == "abcd"


def test_a_prompt_without_its_label_gives_the_same_words() -> None:
    lm, batch = causal("abcd")
    alone = tokenize([sentence("abcd").prompt()], lm.tokenizer, Layout())
    for choose in (source_words, source_positions):
        one, other = (choose(lm, each, 7) for each in (batch, alone))
        size = min(one[0].shape[1], other[0].shape[1])
        assert torch.equal(one[0][:, :size][one[1][:, :size]], other[0][:, :size][other[1][:, :size]])


def test_the_released_code_takes_the_first_positions_and_padding_for_words() -> None:
    lm, batch = causal("abcd", "x")
    ids, mask = source_positions(lm, batch, 9)
    assert bool(mask.all())
    assert ids[0].tolist() == [256, *b"abcd", *[258] * 4]
    assert ids[1].tolist() == [256, *b"x", *[258] * 7]


def test_an_encoder_reads_words_after_the_mask_too_but_not_the_mask() -> None:
    lm = MaskedLM.from_model(tiny_encoder("bert"), mask_tokenizer())
    layout = Layout(mask_id=lm.mask_id)
    batch = tokenize([sentence("ab", after="cd")], lm.tokenizer, layout)
    ids, mask = source_words(lm, batch, 9)
    assert lm.tokenizer.decode(ids[mask].tolist()) == "abcd"
