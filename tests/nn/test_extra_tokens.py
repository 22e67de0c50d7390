"""New tokens have vectors of their own, whose gradients are those of rows in one large matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graftlm.nn.extra_tokens import ExtraTokens


def rows(seed: int, count: int = 20, dim: int = 6) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) + 0.3


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_equal_those_of_one_large_matrix(tied: bool) -> None:
    inputs, outputs = rows(0), rows(1)
    tokens = ExtraTokens(inputs, None if tied else outputs, 2)
    own = torch.stack(list(tokens.input_vectors)).detach()
    wide_in = torch.cat([inputs, own]).requires_grad_()
    if tied:
        wide_out = wide_in
    else:
        assert tokens.output_vectors is not None
        wide_out = torch.cat([outputs, torch.stack(list(tokens.output_vectors)).detach()]).requires_grad_()
    mix, target = rows(2, 4, 4), torch.tensor([21, 3, 20, 7])
    plain = mix @ wide_in[torch.tensor([5, 20, 21, 20])]
    torch.nn.functional.cross_entropy(plain @ wide_out.T, target).backward()
    embedded = torch.cat([inputs[[5]], tokens.embed(torch.tensor([0, 1, 0]))])
    hidden = mix @ embedded
    frozen = inputs if tied else outputs
    logits = torch.cat([hidden @ frozen.T, tokens.logits(hidden)], dim=1)
    torch.nn.functional.cross_entropy(logits, target).backward()
    found = torch.stack([vector.grad for vector in tokens.input_vectors if vector.grad is not None])
    assert wide_in.grad is not None
    torch.testing.assert_close(found, wide_in.grad[20:], atol=1e-6, rtol=1e-5)
    if tokens.output_vectors is not None:
        assert wide_out.grad is not None
        there = torch.stack([vector.grad for vector in tokens.output_vectors if vector.grad is not None])
        torch.testing.assert_close(there, wide_out.grad[20:], atol=1e-6, rtol=1e-5)


def test_the_mean_norm_comes_back_and_a_free_one_stays() -> None:
    mean = float(rows(0).norm(dim=1).mean())
    kept = ExtraTokens(rows(0), rows(1), 1)
    free = ExtraTokens(rows(0), rows(1), 1, norm="free")
    for tokens in (kept, free):
        with torch.no_grad():
            tokens.input_vectors[0].mul_(3)
        tokens.renormalise()
    assert kept.input_vectors[0].norm().item() == pytest.approx(mean, rel=1e-5)
    assert kept.output_vectors is not None
    assert kept.output_vectors[0].norm().item() == pytest.approx(float(rows(1).norm(dim=1).mean()), rel=1e-5)
    assert free.input_vectors[0].norm().item() != pytest.approx(mean, rel=1e-2)


def test_several_tokens_begin_apart_and_are_single_vectors() -> None:
    tokens = ExtraTokens(rows(0), None, 3)
    assert tokens.is_tied
    assert len(tokens) == 3
    assert all(vector.dim() == 1 for vector in tokens.input_vectors)  # which no weight decay touches
    assert (tokens.input_vectors[0] - tokens.input_vectors[1]).norm() > 1e-2
    assert torch.allclose(tokens.embed(torch.tensor([2]))[0], tokens.input_vectors[2])


def test_standardised_outputs_learn_from_the_quiet_channels_too() -> None:
    loud = torch.tensor([300.0, 1, 1, 1, 1, 0.1])
    states = rows(3, 64) * loud
    wanted = torch.where(states[:, 5] > 0.03, 5.0, -5.0)  # only the quietest channel tells
    right = {}
    for standardised in (False, True):
        torch.manual_seed(0)
        tokens = ExtraTokens(rows(0), rows(1), 1, norm="free", standardised=standardised)
        optimiser = torch.optim.Adam(tokens.parameters(), lr=0.02)
        for _ in range(200):
            optimiser.zero_grad()
            torch.nn.functional.soft_margin_loss(tokens.logits(states)[:, 0], wanted.sign()).backward()
            optimiser.step()
        right[standardised] = ((tokens.logits(states)[:, 0] > 0) == (wanted > 0)).float().mean().item()
    assert right[True] > 0.95 > right[False]


def test_the_norm_policy_leaves_standardised_outputs_alone() -> None:
    tokens = ExtraTokens(rows(0), rows(1), 1, standardised=True)
    with torch.no_grad():
        tokens.output_vectors[0].mul_(3)  # type: ignore[index]
    before = tokens.output_vectors[0].clone()  # type: ignore[index]
    tokens.renormalise()
    assert torch.equal(before, tokens.output_vectors[0])  # type: ignore[index]
