"""The encoder that every other test leans on."""

from __future__ import annotations

import pytest
import torch

from graftlm.data.sentence import Image, State
from graftlm.encoders.base import Features, weights_fingerprint
from graftlm.encoders.toy import ToyEncoder
from graftlm.errors import BadSampleError, DataError, ShapeError
from tests.pictures import picture


def test_its_features_have_the_promised_shapes() -> None:
    encoder = ToyEncoder()
    features = encoder.encode([Image(picture(seed)) for seed in range(3)])
    assert features.tokens.shape == (3, encoder.num_positions, encoder.dim)
    assert features.mask.shape == (3, encoder.num_positions)
    assert features.pooled.shape == (3, encoder.dim)
    assert not features.tokens.requires_grad


def test_it_is_the_same_everywhere_for_one_seed() -> None:
    media = [Image(picture(0))]
    torch.manual_seed(99)
    first, second, other = ToyEncoder(), ToyEncoder(), ToyEncoder(seed=1)
    assert torch.equal(first.encode(media).tokens, second.encode(media).tokens)
    assert first.fingerprint == second.fingerprint != other.fingerprint


def test_it_tells_pictures_apart() -> None:
    pooled = ToyEncoder().encode([Image(picture(seed)) for seed in range(8)]).pooled
    distances = torch.cdist(pooled, pooled) + torch.eye(8) * 9
    assert distances.min() > 0.3


def test_gradients_reach_its_weights_through_forward() -> None:
    encoder = ToyEncoder()
    encoder(encoder.preprocess([Image(picture(0))])).pooled.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in encoder.parameters())


def test_other_parts_and_unreadable_pictures_are_refused() -> None:
    with pytest.raises(DataError, match="reads parts of type image, found one of type state"):
        ToyEncoder().encode([State((1.0,))])
    with pytest.raises(BadSampleError):
        ToyEncoder().encode([Image("no such file.png")])


def test_features_stack_pads_to_the_longest() -> None:
    short = Features(torch.ones(1, 2, 3), torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 3))
    long = Features(torch.ones(2, 5, 3), torch.ones(2, 5, dtype=torch.bool), torch.ones(2, 3))
    both = Features.stack([short, long])
    assert both.tokens.shape == (3, 5, 3)
    assert both.mask.sum(1).tolist() == [2, 5, 5]
    wide = Features(torch.ones(1, 2, 4), torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 4))
    with pytest.raises(ShapeError, match=r"\[3, 4\]"):
        Features.stack([short, wide])


def test_the_fingerprint_sees_names_types_shapes_values_and_settings() -> None:
    weight = torch.arange(6.0)
    variants = [
        weights_fingerprint({"a": weight}, {}),
        weights_fingerprint({"b": weight}, {}),
        weights_fingerprint({"a": weight.bfloat16()}, {}),
        weights_fingerprint({"a": weight.view(2, 3)}, {}),
        weights_fingerprint({"a": weight + 1}, {}),
        weights_fingerprint({"a": weight}, {"size": 1}),
    ]
    assert len(set(variants)) == len(variants)
    assert weights_fingerprint({"a": weight, "b": weight}, {}) == weights_fingerprint({"b": weight, "a": weight}, {})
