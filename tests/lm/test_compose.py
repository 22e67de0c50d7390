"""Soft tokens into their slots, and media items into memories and prefixes."""

from __future__ import annotations

import pytest
import torch

from graftlm.data.sentence import Image, Sentence, Text
from graftlm.data.tokenize import Layout, tokenize
from graftlm.errors import ShapeError
from graftlm.lm.compose import compose, gather_items, latest_media_mask, prefix_of_items
from graftlm.lm.toy import ToyLM

LM = ToyLM()


def batch_of(*sentences: Sentence, tokens: int = 2):  # type: ignore[no-untyped-def]
    return tokenize(sentences, LM.tokenizer, Layout(media_tokens=tokens, bos="none"))


def one(text: str) -> Sentence:
    return Sentence.of(Image("x.jpg"), Text(text))


def test_soft_tokens_fill_their_slots_in_reading_order() -> None:
    batch = batch_of(one("a") + one("b"), one("cd"))
    soft = torch.randn(3, 2, LM.dim)
    embeds = compose(LM, batch, soft).embeds
    assert torch.equal(embeds[0, 0:2], soft[0])
    assert torch.equal(embeds[0, 3:5], soft[1])
    assert torch.equal(embeds[1, 0:2], soft[2])
    assert torch.equal(embeds[0, 2], LM.embed(batch.ids)[0, 2])


def test_a_prefix_of_real_word_vectors_gives_the_logits_of_the_words() -> None:
    words = torch.tensor([[104, 105, 33]])
    batch = batch_of(Sentence.of(Image("x.jpg"), "abc"), tokens=3)
    soft = LM.embed(words)
    plain = tokenize([Sentence.of("hi!abc")], LM.tokenizer, Layout(bos="none"))
    assert torch.allclose(LM(compose(LM, batch, soft)).logits, LM(compose(LM, plain)).logits, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 2), (2, 3), (3, 2)])
def test_counts_that_do_not_fit_are_refused_with_both_numbers(shape: tuple[int, int]) -> None:
    with pytest.raises(ShapeError, match=f"expected 4 soft tokens .* found {shape[0] * shape[1]}"):
        compose(LM, batch_of(one("a"), one("b")), torch.randn(*shape, LM.dim))


def test_a_width_that_does_not_fit_is_refused_with_both_numbers() -> None:
    with pytest.raises(ShapeError, match=f"width 7 .* width {LM.dim}"):
        compose(LM, batch_of(one("a")), torch.randn(1, 2, 7))


def test_items_gather_in_the_rows_they_belong_to() -> None:
    tokens = torch.arange(6.0).view(3, 2, 1)
    joined, mask = gather_items(tokens, torch.tensor([0, 2, 2]), 3)
    assert joined[..., 0].tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [2, 3, 4, 5]]
    assert mask.tolist() == [[True, True, False, False], [False] * 4, [True] * 4]


def test_one_item_a_row_takes_the_short_way_to_the_same_prefix() -> None:
    geometry = LM.prefix_geometry
    soft = torch.randn(2, 3, geometry.token_dim)
    short = prefix_of_items(soft, torch.tensor([0, 1]), 2, geometry)
    tokens, mask = gather_items(soft, torch.tensor([0, 1]), 2)
    assert short is not None
    assert torch.equal(short.mask, mask)
    assert torch.equal(tokens, soft)


def test_a_token_reads_the_latest_picture_before_it() -> None:
    batch = batch_of(Sentence.of("a", Image("1.jpg"), "b", Image("2.jpg"), "c"), tokens=0)
    mask = latest_media_mask(batch, per_item=2, most_items=2)
    assert mask[0].int().tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1]]
