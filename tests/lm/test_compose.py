"""Soft tokens into their slots, and media items into memories and prefixes."""

from __future__ import annotations

import pytest
import torch

from graftlm.data.sentence import Image, Sentence, Text
from graftlm.data.tokenize import Layout, TokenBatch, tokenize
from graftlm.errors import ShapeError
from graftlm.lm.compose import compose, following_items, gather_items, memory_of_items, prefix_of_items
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


def page() -> TokenBatch:
    """A row of two pictures with words around them, and one of words alone."""
    return batch_of(Sentence.of("a", Image("1.jpg"), "b", Image("2.jpg"), "c"), Sentence.of("xy"), tokens=0)


def test_a_token_reads_the_latest_picture_before_it() -> None:
    tokens = torch.arange(8.0).view(2, 2, 2)
    batch = page()
    memory = memory_of_items(tokens, batch.rows, batch.seen)
    assert memory.mask[0].int().tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1]]
    assert memory.states[0].tolist() == tokens.flatten(0, 1).tolist()
    assert not memory.mask[1].any()


def test_or_every_picture_before_it_and_none_after() -> None:
    batch = page()
    memory = memory_of_items(torch.randn(2, 2, 2), batch.rows, batch.seen, earlier_too=True)
    assert memory.mask[0].int().tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert not memory.mask[1].any()


def test_words_of_chosen_rows_go_with_the_picture_after_them_and_the_last_with_none() -> None:
    batch = page()
    assert following_items(batch, torch.tensor([True, True])).tolist() == [[1, 2, 0], [0, 0, 0]]
    assert torch.equal(following_items(batch, torch.tensor([False, True])), batch.seen)


def test_rows_without_any_picture_have_a_memory_of_nothing() -> None:
    batch = batch_of(Sentence.of("xy"), tokens=0)
    memory = memory_of_items(torch.zeros(0, 3, 5), batch.rows, batch.seen)
    assert memory.states.shape == (1, 0, 5)
    assert memory.mask.shape == (1, 2, 0)
