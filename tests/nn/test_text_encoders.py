"""The encoders of IPT read any length and any batch, and padding on either side changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from graftlm.nn.text_encoders import MeanMLP, NetworkName, TextCNN, text_encoder

DIM, TOKENS = 6, 3
NAMES: tuple[NetworkName, ...] = ("lstm", "cnn", "mlp")


def vectors(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, length, DIM, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lengths", [(7, 4, 1), (1, 2), (12,)])
@torch.no_grad()
def test_a_padded_batch_equals_one_by_one(name: NetworkName, lengths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    encoder = text_encoder(name, DIM, TOKENS).eval()
    most = max(lengths) + 2
    seen = vectors(len(lengths), most)
    mask = torch.arange(most) < torch.tensor(lengths)[:, None]
    right = encoder(seen, mask)
    left = encoder(seen.flip(1), mask.flip(1)) if name == "mlp" else None  # a mean has no order
    assert right.shape == (len(lengths), TOKENS, DIM)
    for row, length in enumerate(lengths):
        alone = encoder(seen[row : row + 1, :length], torch.ones(1, length, dtype=torch.bool))[0]
        assert torch.allclose(right[row], alone, atol=1e-6)
        if left is not None:
            assert torch.allclose(left[row], alone, atol=1e-6)
        moved = F.pad(seen[row : row + 1, :length], (0, 0, 3, 0), value=9.0)
        places = F.pad(torch.ones(1, length, dtype=torch.bool), (3, 0), value=False)
        assert torch.allclose(encoder(moved, places)[0], alone, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_what_it_writes_depends_on_the_words(name: NetworkName) -> None:
    torch.manual_seed(0)
    encoder = text_encoder(name, DIM, TOKENS).eval()
    mask = torch.ones(1, 8, dtype=torch.bool)
    assert not torch.allclose(encoder(vectors(1, 8), mask), encoder(vectors(1, 8, seed=1), mask))


@pytest.mark.parametrize("name", ["lstm", "cnn"])
def test_recurrent_and_convolutional_ones_read_the_order(name: NetworkName) -> None:
    torch.manual_seed(0)
    encoder = text_encoder(name, DIM, TOKENS).eval()
    seen, mask = vectors(1, 8), torch.ones(1, 8, dtype=torch.bool)
    assert not torch.allclose(encoder(seen, mask), encoder(seen.flip(1), mask))


@torch.no_grad()
def test_the_convolution_is_the_largest_product_over_the_text() -> None:
    torch.manual_seed(0)
    encoder = TextCNN(DIM, TOKENS, filters=1)
    seen = vectors(1, 9)
    found = encoder.features(seen, torch.ones(1, 9, dtype=torch.bool))[0]
    for number, convolution in enumerate(encoder.convolutions):
        weight, bias = convolution.weight[0], convolution.bias[0]  # (D, width), ()
        width = weight.shape[1]
        products = [(seen[0, at : at + width].T * weight).sum() + bias for at in range(9 - width + 1)]
        assert torch.allclose(found[number], torch.stack(products).max().relu(), atol=1e-5)


def test_the_released_networks_are_as_narrow_and_as_noisy_as_published() -> None:
    torch.manual_seed(0)
    narrow = text_encoder("cnn", 1024, 100, released=True)
    assert narrow.feature_dim == 3
    count = sum(weight.numel() for weight in narrow.parameters())
    assert count == 421_891  # the published 421,943 less its head of 13 classes over three numbers, 52
    noisy = text_encoder("mlp", DIM, TOKENS, released=True).eval()
    steady = text_encoder("mlp", DIM, TOKENS).eval()
    seen, mask = vectors(1, 5), torch.ones(1, 5, dtype=torch.bool)
    assert not torch.equal(noisy(seen, mask), noisy(seen, mask))
    assert torch.equal(steady(seen, mask), steady(seen, mask))
    assert isinstance(noisy, MeanMLP)
