"""The first batch in training gives every channel mean 0 and spread 1; nothing else does."""

from __future__ import annotations

import torch

from graftlm.nn.standardise import Standardise


def rows() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(64, 4) * torch.tensor([100.0, 1.0, 0.1, 0.0]) + torch.tensor([50.0, -1.0, 0.0, 2.0])


def test_the_first_batch_in_training_sets_mean_and_spread() -> None:
    layer = Standardise(4)
    found = layer(rows())
    torch.testing.assert_close(found.mean(dim=0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.std(dim=0, correction=0)[:3], torch.ones(3), atol=1e-4, rtol=0)
    assert torch.isfinite(found).all()
    assert layer.scale.max() <= 100


def test_later_batches_and_evaluation_change_nothing() -> None:
    layer = Standardise(4).eval()
    assert torch.equal(layer(rows()), rows())
    layer.train()(rows())
    before = [parameter.clone() for parameter in layer.parameters()]
    layer(rows() * 7 + 3)
    assert all(torch.equal(old, new) for old, new in zip(before, layer.parameters(), strict=True))


def test_what_was_loaded_is_kept() -> None:
    taught, other = Standardise(4), Standardise(4)
    taught(rows())
    other.load_state_dict(taught.state_dict())
    other.train()(rows() * 7 + 3)
    assert torch.equal(other.scale, taught.scale)


def test_one_row_tells_no_spread() -> None:
    layer = Standardise(4)
    assert torch.equal(layer(rows()[:1]), rows()[:1])
    torch.testing.assert_close(layer(rows()).mean(dim=0), torch.zeros(4), atol=1e-4, rtol=0)


def test_what_was_measured_has_a_gradient_of_zero() -> None:
    layer, states = Standardise(4), rows().requires_grad_()
    layer(states).square().sum().backward()
    assert states.grad is not None
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()
