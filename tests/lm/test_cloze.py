"""The position that decides a class, and the loss of targets, in a model that reads from left to right."""

from __future__ import annotations

import pytest
import torch

from graftlm.data.tokenize import IGNORED
from graftlm.errors import ShapeError
from graftlm.lm.base import LMInputs
from graftlm.lm.cloze import cloze_logits, cloze_places, target_loss
from graftlm.lm.toy import ToyLM


@pytest.fixture(scope="module")
def lm() -> ToyLM:
    return ToyLM()


def inputs(lm: ToyLM) -> LMInputs:
    """Three rows of 6, 9 and 7 positions; their words of 2, 1 and 3 tokens come last."""
    ids = torch.randint(0, 200, (3, 9), generator=torch.Generator().manual_seed(1))
    labels = torch.full((3, 9), IGNORED)
    mask = torch.arange(9) < torch.tensor([[6], [9], [7]])
    for row, (start, end) in enumerate(((4, 6), (8, 9), (4, 7))):
        labels[row, start:end] = ids[row, start:end]
    return LMInputs(lm.embed(ids), mask, labels)


def test_the_class_is_decided_before_its_first_token(lm: ToyLM) -> None:
    batch = inputs(lm)
    assert batch.labels is not None
    assert cloze_places(lm, batch.labels).nonzero().tolist() == [[0, 3], [1, 7], [2, 3]]
    whole = lm(batch).logits
    found = cloze_logits(lm, batch)
    assert torch.allclose(found, whole[torch.arange(3), torch.tensor([3, 7, 3])], atol=1e-5)


def test_what_follows_the_class_changes_nothing(lm: ToyLM) -> None:
    batch = inputs(lm)
    other = batch.embeds.clone()
    other[0, 4:] = other[1, :5]
    found = cloze_logits(lm, LMInputs(other, batch.mask, batch.labels))
    assert torch.allclose(found, cloze_logits(lm, batch), atol=1e-5)


def test_a_row_without_a_class_or_without_words_before_it_is_refused(lm: ToyLM) -> None:
    batch = inputs(lm)
    assert batch.labels is not None
    for labels in (torch.full_like(batch.labels, IGNORED), batch.labels.index_fill(1, torch.tensor([0]), 5)):
        with pytest.raises(ShapeError, match="expected one word of a class in every sentence"):
            cloze_logits(lm, LMInputs(batch.embeds, batch.mask, labels))
    with pytest.raises(ShapeError, match="inputs with labels"):
        cloze_logits(lm, LMInputs(batch.embeds, batch.mask))


def test_the_target_loss_is_the_mean_over_all_target_tokens(lm: ToyLM) -> None:
    batch = inputs(lm)
    assert batch.labels is not None
    logits = lm(batch).logits.log_softmax(-1)
    places = [(0, 4), (0, 5), (1, 8), (2, 4), (2, 5), (2, 6)]
    wanted = -sum(logits[row, at - 1, batch.labels[row, at]] for row, at in places) / len(places)
    assert target_loss(lm, batch).item() == pytest.approx(wanted.item(), abs=1e-5)


def test_a_causal_model_pools_the_last_position_in_use(lm: ToyLM) -> None:
    batch = inputs(lm)
    hidden = torch.arange(27.0).view(3, 9, 1)
    assert lm.pool(hidden, batch.mask)[:, 0].tolist() == [5, 17, 24]
    left = torch.tensor([[False, False, True, True]])
    assert lm.pool(torch.arange(4.0).view(1, 4, 1), left)[:, 0].tolist() == [3]
