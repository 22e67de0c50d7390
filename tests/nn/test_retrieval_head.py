"""Heads of the retrieval space equal a computation row by row."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from graftlm.nn.retrieval_head import PictureHead, QueryHead


def test_words_are_averaged_by_a_learnt_weight_row_by_row_whatever_their_order() -> None:
    torch.manual_seed(0)
    head = QueryHead(6, 4, sources=2, word_sources=3).eval()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    states, words, owners = torch.randn(2, 2, 6), torch.randn(6, 3, 6), torch.tensor([1, 0, 1, 1, 0, 1])
    found = head(states, words, owners)
    for row in (0, 1):
        own = torch.cat([F.layer_norm(state, (6,)) for state in states[row]])
        flat = [torch.cat([F.layer_norm(layer, (6,)) for layer in word]) for word in words[owners == row]]
        scores = torch.stack([head.weigh.weight[0] @ word for word in flat]).softmax(0)
        average = sum(score * word for score, word in zip(scores, flat, strict=True))
        own = (own - head.even.shift) * head.even.scale
        average = (average - head.even_words.shift) * head.even_words.scale
        wanted = head.project.weight @ own + head.project.bias + head.project_words.weight @ average
        torch.testing.assert_close(found[row], wanted)
    words[4, 0, 0] += 1
    changed = (head(states, words, owners) - found).abs().amax(dim=1)
    assert changed[0] > 1e-3
    assert changed[1] == 0


def test_a_query_without_words_is_the_states_alone() -> None:
    torch.manual_seed(0)
    head = QueryHead(6, 4, word_sources=1).eval()
    states = torch.randn(1, 1, 6)
    found = head(states, torch.zeros(0, 1, 6), torch.zeros(0, dtype=torch.long))
    torch.testing.assert_close(found[0], head.project(F.layer_norm(states[0, 0], (6,))))


def test_all_positions_of_a_picture_lose_the_same_channels() -> None:
    torch.manual_seed(0)
    head = PictureHead(6, 4, hidden=8, dropout=0.5).train()
    seen: list[torch.Tensor] = []
    head.reduce.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    head(torch.randn(3, 6), torch.randn(3, 5, 6), torch.ones(3, 5, dtype=torch.bool))
    dropped = seen[1] == 0  # (3, 5, 6)
    assert dropped.any()
    assert not dropped.all()
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert not torch.equal(dropped[0], dropped[1])
