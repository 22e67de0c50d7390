"""Changes of single logits."""

from __future__ import annotations

import math

import pytest
import torch

from graftlm.lm.sampling import TokenBias, bias_tokens


@pytest.mark.parametrize("bias", [0.0, 1.5, -1.5])
def test_an_outright_id_comes_first_only_where_it_is_likelier_than_all_others_together(bias: float) -> None:
    scores = torch.randn(400, 9, generator=torch.Generator().manual_seed(0)) * 3
    changed = bias_tokens(scores, [TokenBias(4, bias, outright=True)])
    likelihood = scores.softmax(dim=-1)[:, 4]
    expected = likelihood * math.exp(bias) > 1 - likelihood
    assert torch.equal(changed.argmax(dim=-1) == 4, expected)
    assert 10 < int(expected.sum()) < 390
    plain = bias_tokens(scores, [TokenBias(4, bias)]).argmax(dim=-1) == 4
    assert int(plain.sum()) > int(expected.sum())
    others = torch.arange(9) != 4
    assert torch.equal(changed[:, others], scores[:, others])


def test_ids_that_were_forbidden_before_do_not_count_among_the_others() -> None:
    scores = torch.tensor([[1.0, 1.0, 1.0, 1.5]])
    forbidden = [TokenBias(0, -math.inf), TokenBias(1, -math.inf)]
    assert int(bias_tokens(scores, [TokenBias(3, outright=True)]).argmax()) != 3
    assert int(bias_tokens(scores, [*forbidden, TokenBias(3, outright=True)]).argmax()) == 3
