"""What is told of a word's reading is what the blocks do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from graftlm import backbones
from graftlm.data.sentence import Image, Sentence, Text
from graftlm.encoders.toy import ToyEncoder
from graftlm.errors import DataError
from graftlm.lm.huggingface import HuggingFaceLM
from graftlm.nn.gated_cross_attention import GatedCrossAttention
from graftlm.systems.base import Parts
from graftlm.systems.flamingo import Flamingo, FlamingoConfig
from tests.language_models import tiny_model, tiny_tokenizer
from tests.pictures import picture

PAGE = Sentence.of("ab", Image(picture(0)), "cd", Image(picture(1)), "e")
SHORT = Sentence.of("x", Image(picture(2)), "y")


def build(family: str = "", **fields: Any) -> Flamingo:
    torch.manual_seed(0)
    toys = {"lm": "toy", "encoder": "toy", "precision": "float32", "heads": 2, "depth": 1, "num_latents": 3, "every": 1}
    config = FlamingoConfig.model_validate({**toys, **fields})
    parts = backbones.load_parts(config)
    if family:
        lm = HuggingFaceLM.from_model(tiny_model(family), tiny_tokenizer()).requires_grad_(False)
        parts = Parts(lm, {"image": ToyEncoder()})
    system = Flamingo.build(config, parts)
    with torch.no_grad():
        for key, parameter in system.trainable():
            if key.endswith("_gate"):
                parameter.fill_(0.8)
    return system.eval()


@pytest.mark.parametrize("family", ["", "gpt2", "llama", "gemma2"])
def test_the_shares_are_the_weights_the_blocks_computed(family: str) -> None:
    system = build(family)
    seen: list[Tensor] = []
    handles = []
    for block in system.lm.blocks.values():
        assert isinstance(block, GatedCrossAttention)
        note = block.attention

        def watch(module: Any, args: tuple[Tensor, ...]) -> None:
            seen.append(module.weights(*args).mean(1))  # (B, L, M)

        handles.append(note.register_forward_pre_hook(watch))
    with torch.no_grad():
        system.lm(system.inputs([PAGE, SHORT]))
    for handle in handles:
        handle.remove()
    found = system.reading([PAGE, SHORT])
    for row, reading in enumerate(found):
        length, items = reading.items.shape[1:]
        wanted = torch.stack([one[row, :length].unflatten(-1, (2, 3)).sum(-1)[:, :items] for one in seen])
        torch.testing.assert_close(reading.items, wanted, atol=1e-5, rtol=1e-4)


def test_each_word_reads_the_latest_picture_and_none_before_the_first() -> None:
    (reading,) = build().reading([PAGE])
    assert reading.layers == (0, 1)
    assert [word for word in reading.words if word] == ["a", "b", "c", "d", "e"]
    # BOS a b <EOC> <image> c d <EOC> <image> e
    latest = [[0, 0]] * 4 + [[1, 0]] * 4 + [[0, 1]] * 2
    torch.testing.assert_close(reading.items, torch.tensor(latest).float().expand(2, -1, -1))


def test_the_shares_of_a_pictures_positions_add_up_to_its_own() -> None:
    page, short = build(attends="all").reading([PAGE, SHORT])
    assert page.places.shape == (2, 10, 2, 4)
    torch.testing.assert_close(page.places.sum(-1), page.items)
    assert (page.items[:, -1] > 0.01).all()
    assert short.items.shape == (2, 5, 1)


def test_a_sentence_without_a_picture_is_refused() -> None:
    with pytest.raises(DataError, match="expected a sentence with a picture"):
        build().reading([Sentence.of("ab")])


def test_a_reading_tells_what_was_asked_for_and_how_long_a_frame_is() -> None:
    asked = Sentence.of(Image(picture(0)), "x", Text("yz", target=True))
    plain, reading = build().reading([PAGE, asked])
    assert not plain.targets.any()
    # BOS <EOC> <image> x y z <EOC> <EOS>
    assert [reading.words[place] for place in reading.targets.nonzero()[:, 0].tolist()] == ["y", "z", "", ""]
    assert len(reading.targets) == len(reading.words) == reading.items.shape[1]
    assert reading.frame_positions == reading.places.shape[-1] == 4
