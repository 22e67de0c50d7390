"""Flamingo over every language model family: closed it is the frozen model bit by bit, open it decodes as it reads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from graftlm.data.sentence import Image, Sentence
from graftlm.encoders.toy import ToyEncoder
from graftlm.lm.base import LMInputs
from graftlm.lm.continuation import Continuation
from graftlm.lm.huggingface import HuggingFaceLM
from graftlm.nn.flamingo_variants import VARIANTS
from graftlm.systems.base import Parts
from graftlm.systems.flamingo import Flamingo, FlamingoConfig
from tests.language_models import FAMILIES, tiny_model, tiny_tokenizer
from tests.pictures import picture

PAGES = (
    Sentence.of("ab", Image(picture(0)), "cde", Image(picture(1)), "fgh"),
    Sentence.of(Image(picture(2)), "i"),
    Sentence.of("no picture"),
)


@pytest.fixture(scope="module", params=list(FAMILIES))
def lm(request: pytest.FixtureRequest) -> HuggingFaceLM:
    return HuggingFaceLM.from_model(tiny_model(request.param), tiny_tokenizer()).requires_grad_(False)


def system_over(lm: HuggingFaceLM, variant: str, gate: float) -> Flamingo:
    torch.manual_seed(0)
    fields = {"variant": variant, "every": 1, "num_latents": 3, "depth": 1, "heads": 4, "precision": "float32"}
    system = Flamingo.build(FlamingoConfig.model_validate(fields), Parts(lm, {"image": ToyEncoder()})).eval()
    with torch.no_grad():
        for name, parameter in system.trainable():
            if name.endswith("_gate"):
                parameter.fill_(gate)
    return system


@pytest.mark.parametrize("variant", list(VARIANTS))
@torch.no_grad()
def test_with_closed_gates_every_logit_is_the_frozen_models_to_the_bit(lm: HuggingFaceLM, variant: str) -> None:
    closed = system_over(lm, variant, 0.0)
    assert len(closed.lm.blocks) == lm.num_layers
    inputs = closed.inputs(PAGES)
    plain = lm(LMInputs(inputs.embeds, inputs.mask)).logits
    assert torch.equal(lm(inputs).logits, plain)
    opened = system_over(lm, variant, 0.5)
    changed = lm(replace(inputs, memory=opened.inputs(PAGES).memory)).logits
    moved = (changed - plain).abs().amax(-1)
    assert (moved[inputs.mask] > 1e-4).all()


@torch.no_grad()
def test_words_decoded_one_by_one_have_the_logits_of_one_pass(lm: HuggingFaceLM) -> None:
    system = system_over(lm, "paper", 0.5)
    page = PAGES[0]
    whole = system.inputs([page])
    wanted = system.lm(whole).logits
    start = int((system.tokens([page]).seen[0] == 2).nonzero()[0, 0]) + 1
    head, _ = whole.up_to(torch.arange(whole.mask.shape[1])[None] == start - 1)
    running = Continuation(system.lm, head, 20)
    torch.testing.assert_close(running.logits, wanted[:, start - 1], atol=1e-5, rtol=1e-5)
    for place in range(start, whole.mask.shape[1]):
        running.extend(whole.embeds[:, place : place + 1], whole.mask[:, place : place + 1])
        torch.testing.assert_close(running.logits, wanted[:, place], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padded_rows_read_their_own_pictures(lm: HuggingFaceLM) -> None:
    system = system_over(lm, "paper", 0.5)
    together = system.inputs(PAGES)
    logits = system.lm(together).logits
    for row, page in enumerate(PAGES):
        alone = system.lm(system.inputs([page])).logits[0]
        torch.testing.assert_close(logits[row][together.mask[row]], alone, atol=2e-5, rtol=1e-5)
