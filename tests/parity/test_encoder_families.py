"""Vision networks of transformers, tiny and random: tokens, pooled vector and pictures equal the plain calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from graftlm.data.sentence import Image
from graftlm.encoders.huggingface import HuggingFaceEncoder
from graftlm.errors import BackboneError
from tests.pictures import picture

SIDE = 32
LAYERS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
PATCHES = {**LAYERS, "image_size": SIDE, "patch_size": 8}
SQUARE = {"size": {"height": SIDE, "width": SIDE}}
CUT = {"size": {"shortest_edge": SIDE + 4}, "crop_size": {"height": SIDE, "width": SIDE}}

Family = tuple[Callable[[], Any], Callable[[], Any], int, int]
FAMILIES: dict[str, Family] = {
    # model, image processor, grid positions, class and register tokens before them
    "clip": (lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**PATCHES)), lambda: CLIPImageProcessorPil(**CUT), 16, 1),
    "siglip": (
        lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**PATCHES)),
        lambda: SiglipImageProcessorPil(**SQUARE),
        16,
        0,
    ),
    "dinov2": (lambda: hf.Dinov2Model(hf.Dinov2Config(**PATCHES)), lambda: BitImageProcessorPil(**CUT), 16, 1),
    "dinov2-registers": (
        lambda: hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**PATCHES, num_register_tokens=4)),
        lambda: BitImageProcessorPil(**CUT),
        16,
        5,
    ),
    "vit": (lambda: hf.ViTModel(hf.ViTConfig(**PATCHES)), lambda: ViTImageProcessorPil(**SQUARE), 16, 1),
    "resnet": (
        lambda: hf.ResNetModel(hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
        lambda: ConvNextImageProcessorPil(size={"shortest_edge": SIDE}),
        16,
        0,
    ),
    "convnext": (
        lambda: hf.ConvNextModel(hf.ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1])),
        lambda: ConvNextImageProcessorPil(size={"shortest_edge": SIDE}),
        16,
        0,
    ),
    "swin": (
        lambda: hf.SwinModel(
            hf.SwinConfig(image_size=SIDE, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
        ),
        lambda: ViTImageProcessorPil(**SQUARE),
        16,
        0,
    ),
    "regnet": (
        lambda: hf.RegNetModel(
            hf.RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=4, layer_type="y")
        ),
        lambda: ConvNextImageProcessorPil(size={"shortest_edge": SIDE}),
        16,
        0,
    ),
    "bit": (
        lambda: hf.BitModel(
            hf.BitConfig(
                embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_groups=4, layer_type="preactivation"
            )
        ),
        lambda: BitImageProcessorPil(**CUT),
        16,
        0,
    ),
}


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> tuple[Any, Any, int, int]:
    make_model, make_processor, grid, prefix = FAMILIES[request.param]
    torch.manual_seed(0)
    model = make_model().eval()
    randomise(model)
    return model, make_processor(), grid, prefix


def randomise(model: torch.nn.Module) -> None:
    """Every parameter away from zero and one: fresh configs start so near zero that any two outputs agree."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.data += 0.1 * torch.rand(buffer.shape, generator=generator)


def plain_call(model: Any, pixels: torch.Tensor, prefix: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Grid and pooled vector by the network's own interface alone."""
    with torch.no_grad():
        output = model(pixel_values=pixels)
    states = output.last_hidden_state
    if states.ndim == 4:
        rows, width = states.shape[:2]
        grid = torch.stack([states[row].reshape(width, -1).T for row in range(rows)])
    else:
        grid = states[:, prefix:]
    return grid, output.pooler_output.reshape(len(grid), -1)


def test_tokens_and_pooled_vector_equal_the_plain_call(family: tuple[Any, Any, int, int]) -> None:
    model, processor, grid, prefix = family
    encoder = HuggingFaceEncoder.from_model(model, processor)
    pictures = [picture(seed, size) for seed, size in ((0, 40), (1, 32), (2, 64))]
    features = encoder.encode([Image(item) for item in pictures])
    tokens, pooled = plain_call(model, processor(images=pictures, return_tensors="pt")["pixel_values"], prefix)
    assert features.tokens.shape == (3, grid, encoder.dim)
    assert encoder.num_positions == grid
    torch.testing.assert_close(features.tokens, tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.pooled, pooled, atol=1e-5, rtol=1e-5)
    assert bool(features.mask.all())
    assert not features.tokens.requires_grad


def test_a_changed_weight_changes_the_features_and_the_fingerprint(family: tuple[Any, Any, int, int]) -> None:
    model, processor, _, _ = family
    encoder = HuggingFaceEncoder.from_model(model, processor)
    media = [Image(picture(0))]
    before, known = encoder.encode(media), encoder.fingerprint
    first = next(parameter for parameter in model.parameters() if parameter.ndim == 4)
    first.data[0] = 5 * torch.randn(first[0].shape, generator=torch.Generator().manual_seed(2))
    assert not torch.allclose(before.tokens, encoder.encode(media).tokens, atol=1e-3)
    assert HuggingFaceEncoder.from_model(model, processor).fingerprint != known


def test_pictures_equal_those_of_the_image_processor(family: tuple[Any, Any, int, int]) -> None:
    model, processor, _, _ = family
    encoder = HuggingFaceEncoder.from_model(model, processor)
    wide = picture(3, 64).resize((90, 50))
    expected = processor(images=wide, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(encoder.preprocess([Image(wide)]), expected, atol=0, rtol=0)


def test_a_saved_model_loads_to_the_same_features(family: tuple[Any, Any, int, int], tmp_path: Path) -> None:
    model, processor, _, _ = family
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    media = [Image(picture(0)), Image(picture(1))]
    loaded, direct = HuggingFaceEncoder.load(tmp_path), HuggingFaceEncoder.from_model(model, processor)
    torch.testing.assert_close(loaded.encode(media).tokens, direct.encode(media).tokens, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(loaded.encode(media).pooled, direct.encode(media).pooled, atol=1e-6, rtol=1e-6)
    assert loaded.fingerprint == direct.fingerprint


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_of_a_checkpoint_with_two_models_the_vision_model_is_read(kind: str, tmp_path: Path) -> None:
    text = {**LAYERS, "vocab_size": 50, "max_position_embeddings": 8}
    torch.manual_seed(0)
    if kind == "clip":
        both: Any = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=PATCHES, projection_dim=8)).eval()
        processor: Any = CLIPImageProcessorPil(**CUT)
    else:
        both = hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=PATCHES)).eval()
        processor = SiglipImageProcessorPil(**SQUARE)
    randomise(both)
    both.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    media = [Image(picture(0))]
    pixels = processor(images=picture(0), return_tensors="pt")["pixel_values"]
    tokens, pooled = plain_call(both.vision_model, pixels, 1 if kind == "clip" else 0)
    for encoder in (HuggingFaceEncoder.load(tmp_path), HuggingFaceEncoder.from_model(both, processor)):
        features = encoder.encode(media)
        torch.testing.assert_close(features.tokens, tokens, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(features.pooled, pooled, atol=1e-5, rtol=1e-5)
        assert not any("text" in name for name, _ in encoder.named_parameters())


def test_class_token_and_penultimate_layer_can_be_asked_for() -> None:
    torch.manual_seed(0)
    model = hf.CLIPVisionModel(hf.CLIPVisionConfig(**PATCHES)).eval()
    randomise(model)
    encoder = HuggingFaceEncoder.from_model(model, SIDE, class_token=True, layer=-2)
    media = [Image(picture(0))]
    with torch.no_grad():
        output = model(pixel_values=encoder.preprocess(media), output_hidden_states=True)
    assert encoder.num_positions == 17
    torch.testing.assert_close(encoder.encode(media).tokens, output.hidden_states[-2], atol=1e-5, rtol=1e-5)


def test_a_pooler_that_the_checkpoint_lacks_is_not_made_up(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = hf.ViTModel(hf.ViTConfig(**PATCHES), add_pooling_layer=False).eval()
    randomise(model)
    model.save_pretrained(tmp_path)
    ViTImageProcessorPil(**SQUARE).save_pretrained(tmp_path)
    encoder = HuggingFaceEncoder.load(tmp_path)
    media = [Image(picture(0))]
    with torch.no_grad():
        states = model(pixel_values=encoder.preprocess(media)).last_hidden_state
    torch.testing.assert_close(encoder.encode(media).pooled, states[:, 0], atol=1e-5, rtol=1e-5)
    assert encoder.fingerprint == HuggingFaceEncoder.load(tmp_path).fingerprint


def test_gradients_reach_the_weights_through_forward() -> None:
    torch.manual_seed(0)
    model = hf.ResNetModel(hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]))
    encoder = HuggingFaceEncoder.from_model(model, SIDE)
    encoder(encoder.preprocess([Image(picture(0))])).tokens.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_language_model_is_refused_in_one_sentence() -> None:
    bert = hf.BertModel(hf.BertConfig(**LAYERS, vocab_size=20))
    with pytest.raises(BackboneError, match=r"BertModel: expected a vision model .* found one that reads input_ids"):
        HuggingFaceEncoder.from_model(bert)


def test_an_unknown_folder_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="expected a hub id or folder of a vision model") as caught:
        HuggingFaceEncoder.load(tmp_path / "nothing")
    assert "\n" not in str(caught.value)


def test_a_folder_without_an_image_processor_is_refused(tmp_path: Path) -> None:
    hf.ViTModel(hf.ViTConfig(**PATCHES)).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="image processor"):
        HuggingFaceEncoder.load(tmp_path)


def test_a_checkpoint_with_missing_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    hf.ViTModel(hf.ViTConfig(**PATCHES)).save_pretrained(tmp_path)
    ViTImageProcessorPil(**SQUARE).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop(next(name for name in sorted(weights) if "layer" in name))
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match="1 weights are missing"):
        HuggingFaceEncoder.load(tmp_path)


def test_an_image_processor_without_one_size_is_refused() -> None:
    model = hf.ResNetModel(hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]))
    uneven = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, do_center_crop=False)
    with pytest.raises(BackboneError, match=r"makes \(1, 3, H, W\) of every picture"):
        HuggingFaceEncoder.from_model(model, uneven)
