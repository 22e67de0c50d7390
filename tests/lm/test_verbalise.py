"""Scores of classes against computation by hand, and the words that cannot be told apart."""

from __future__ import annotations

import math

import pytest
import torch

from graftlm.errors import ConfigError
from graftlm.lm.toy import ByteTokenizer
from graftlm.lm.verbalise import Verbaliser

WORDS = ByteTokenizer()
LOGITS = torch.randn(5, 259, generator=torch.Generator().manual_seed(0)) * 3


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


@pytest.mark.parametrize("pooling", ["first", "mean", "max"])
def test_scores_equal_a_hand_computation(pooling: str) -> None:
    words = (("bad", "ugly"), ("good",))
    found = Verbaliser.of(WORDS, words, pooling).scores(LOGITS)  # type: ignore[arg-type]
    pools = {"first": lambda v: v[0], "mean": lambda v: sum(v) / len(v), "max": max}
    for row, logits in enumerate(LOGITS.tolist()):
        scores = [pools[pooling]([logits[byte] for byte in word.encode()]) for own in words for word in own]
        probs = softmax(scores)
        assert found[row, 0].item() == pytest.approx((math.log(probs[0]) + math.log(probs[1])) / 2, abs=1e-5)
        assert found[row, 1].item() == pytest.approx(math.log(probs[2]), abs=1e-5)


def test_a_prior_divides_the_words_probabilities() -> None:
    verbaliser = Verbaliser.of(WORDS, (("no",), ("yes",)))
    prior = torch.tensor([0.8, 0.2])
    found = verbaliser.scores(LOGITS, prior).exp()
    for row, logits in enumerate(LOGITS.tolist()):
        one, other = (p / q for p, q in zip(softmax([logits[ord("n")], logits[ord("y")]]), (0.8, 0.2), strict=True))
        assert found[row, 0].item() == pytest.approx(one / (one + other), abs=1e-5)
        assert found[row, 1].item() == pytest.approx(other / (one + other), abs=1e-5)
    even = verbaliser.scores(LOGITS, torch.tensor([0.5, 0.5]))
    assert torch.allclose(even, verbaliser.scores(LOGITS), atol=1e-6)


def test_what_says_nothing_is_calibrated_to_equal_classes() -> None:
    verbaliser = Verbaliser.of(WORDS, (("no",), ("yes",), ("may",)))
    found = verbaliser.scores(LOGITS[:1], verbaliser.word_probs(LOGITS[:1])[0])
    assert torch.allclose(found.exp(), torch.full((1, 3), 1 / 3), atol=1e-5)


def test_the_loss_is_cross_entropy_over_the_words_alone() -> None:
    labels = torch.tensor([0, 1, 0, 1, 1])
    found = Verbaliser.of(WORDS, (("no",), ("yes",))).loss(LOGITS, labels)
    two = LOGITS[:, [ord("n"), ord("y")]]
    assert found.item() == pytest.approx(torch.nn.functional.cross_entropy(two, labels).item(), abs=1e-6)


def test_one_changed_logit_changes_the_scores() -> None:
    verbaliser = Verbaliser.of(WORDS, (("no",), ("yes",)))
    changed = LOGITS.clone()
    changed[:, ord("y")] += 0.5
    assert not torch.allclose(verbaliser.scores(changed), verbaliser.scores(LOGITS), atol=1e-3)
    unrelated = LOGITS.clone()
    unrelated[:, ord("q")] += 5
    assert torch.equal(verbaliser.scores(unrelated), verbaliser.scores(LOGITS))


def test_words_of_two_classes_that_begin_alike_are_refused_unless_all_their_tokens_count() -> None:
    with pytest.raises(ConfigError, match="'pos' and 'pit' begin with the same token"):
        Verbaliser.of(WORDS, (("pos",), ("pit",)))
    assert Verbaliser.of(WORDS, (("pos",), ("pit",)), "mean").scores(LOGITS).shape == (5, 2)
    assert Verbaliser.of(WORDS, (("pos", "pit"), ("no",))).scores(LOGITS).shape == (5, 2)
    with pytest.raises(ConfigError, match="at least one token"):
        Verbaliser.of(WORDS, (("",), ("no",)))
