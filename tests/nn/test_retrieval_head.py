"""Heads of the retrieval space equal a computation row by row."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from graftlm.nn.retrieval_head import QueryHead


def test_words_are_averaged_by_a_learnt_weight_and_padding_has_no_part() -> None:
    torch.manual_seed(0)
    head = QueryHead(6, 4, sources=2, word_sources=3).eval()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    states, words = torch.randn(2, 2, 6), torch.randn(2, 5, 3, 6)
    mask = torch.tensor([[True, True, False, False, False], [True, True, True, True, False]])
    found = head(states, words, mask)
    for row, count in ((0, 2), (1, 4)):
        own = torch.cat([F.layer_norm(state, (6,)) for state in states[row]])
        flat = [torch.cat([F.layer_norm(layer, (6,)) for layer in word]) for word in words[row, :count]]
        scores = torch.stack([head.weigh.weight[0] @ word for word in flat]).softmax(0)
        average = sum(score * word for score, word in zip(scores, flat, strict=True))
        wanted = head.project.weight @ own + head.project.bias + head.project_words.weight @ average
        torch.testing.assert_close(found[row], wanted)
    words[0, 1, 0, 0] += 1
    assert (head(states, words, mask)[0] - found[0]).abs().max() > 1e-3


def test_a_query_without_words_is_the_states_alone() -> None:
    torch.manual_seed(0)
    head = QueryHead(6, 4, word_sources=1).eval()
    states, words = torch.randn(1, 1, 6), torch.randn(1, 3, 1, 6)
    found = head(states, words, torch.zeros(1, 3, dtype=torch.bool))
    torch.testing.assert_close(found[0], head.project(F.layer_norm(states[0, 0], (6,))))
