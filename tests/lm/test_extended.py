"""A frozen language model with more tokens is the same model where they do not occur."""

from __future__ import annotations

import pytest
import torch

from graftlm.errors import ConfigError, ShapeError, UnsupportedLMError
from graftlm.lm.base import LanguageModel, LMInputs
from graftlm.lm.decode import Decoding, TokenBias, decode
from graftlm.lm.extended import ExtendedLM
from graftlm.lm.huggingface import HuggingFaceLM
from graftlm.lm.toy import ToyLM
from tests.language_models import tiny_model, tiny_tokenizer

FAMILIES = ["toy", "llama", "gpt_neox", "opt", "gemma", "gemma2"]


def base_of(family: str) -> LanguageModel:
    if family == "toy":
        return ToyLM()
    return HuggingFaceLM.from_model(tiny_model(family), tiny_tokenizer())


@pytest.fixture(params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> ExtendedLM:
    torch.manual_seed(0)
    return ExtendedLM(base_of(request.param).requires_grad_(False), 2)


def ids_of(lm: ExtendedLM) -> torch.Tensor:
    first = lm.extra_ids[0]
    return torch.tensor([[5, 6, first, 7, first + 1], [8, first + 1, 9, 4, 3]])


def inputs_of(lm: ExtendedLM, ids: torch.Tensor) -> LMInputs:
    return LMInputs(lm.embed(ids), torch.ones_like(ids, dtype=torch.bool))


@torch.no_grad()
def test_old_tokens_are_as_before_and_new_ones_stand_behind_them(lm: ExtendedLM) -> None:
    ids = ids_of(lm)
    old = ids.clamp(max=9)
    assert torch.equal(lm.embed(old), lm.base.embed(old))
    inputs = inputs_of(lm, ids)
    wide, narrow = lm(inputs), lm.base(inputs)
    assert wide.logits.shape[-1] == lm.vocab_size == lm.base.vocab_size + 2
    assert torch.equal(wide.logits[..., :-2], narrow.logits)
    assert torch.equal(lm.unembed(narrow.hidden), wide.logits)
    at = torch.zeros_like(ids, dtype=torch.bool)
    at[0, 3] = at[1, 1] = True
    torch.testing.assert_close(lm(inputs, at=at).logits, wide.logits[at])


@torch.no_grad()
def test_a_copied_row_is_embedded_and_scored_as_the_row_it_copies(lm: ExtendedLM) -> None:
    inputs, outputs = lm.base.token_rows()
    with torch.no_grad():
        lm.tokens.input_vectors[0].copy_(inputs[7])
        if lm.tokens.output_vectors is not None:
            lm.tokens.output_vectors[0].copy_(outputs[7])
    first = torch.tensor([[lm.extra_ids[0]]])
    torch.testing.assert_close(lm.embed(first), lm.base.embed(torch.tensor([[7]])), atol=1e-5, rtol=1e-5)
    logits = lm(inputs_of(lm, ids_of(lm))).logits
    torch.testing.assert_close(logits[..., -2], logits[..., 7], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_cache_and_inner_layers_give_what_one_pass_gives(lm: ExtendedLM) -> None:
    ids = ids_of(lm)
    inputs = inputs_of(lm, ids)
    whole = lm(inputs, layers=(0, 1, -1))
    assert torch.equal(whole.layers[2], whole.hidden)
    cache = lm.new_cache(2, 5)
    before = lm(LMInputs(inputs.embeds[:, :3], inputs.mask[:, :3]), cache=cache)
    after = lm(LMInputs(inputs.embeds[:, 3:], inputs.mask[:, 3:]), cache=before.cache, layers=(1, -1))
    torch.testing.assert_close(after.logits, whole.logits[:, 3:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after.layers[0], whole.layers[1][:, 3:], atol=1e-4, rtol=1e-4)
    with pytest.raises(ShapeError, match="layer 9"):
        lm(inputs, layers=(9,))


def test_a_bias_makes_a_new_token_come_and_forbids_it(lm: ExtendedLM) -> None:
    inputs = inputs_of(lm, ids_of(lm)[:, :2])
    first = lm.extra_ids[0]
    forced = decode(lm, inputs, Decoding(max_tokens=4, biases=(TokenBias(first, 1e4),), end_ids=(first,)))
    assert [row[0].ids for row in forced] == [(first,), (first,)]
    assert [row[0].text for row in forced] == ["", ""]
    never = Decoding(max_tokens=6, biases=tuple(TokenBias(one, float("-inf")) for one in lm.extra_ids))
    plain = decode(lm.base, inputs, Decoding(max_tokens=6))
    assert [row[0].ids for row in decode(lm, inputs, never)] == [row[0].ids for row in plain]
    assert [row[0].text for row in decode(lm, inputs, never)] == [row[0].text for row in plain]
    beams = Decoding(max_tokens=4, num_beams=2, biases=(TokenBias(first, 1e4),), end_ids=(first,))
    assert [row[0].ids for row in decode(lm, inputs, beams)] == [(first,), (first,)]


@torch.no_grad()
def test_a_factor_moves_a_negative_logit_away_and_its_absolute_value_brings_it_near() -> None:
    lm = ExtendedLM(ToyLM(), 1)
    ids = torch.tensor([[5, 6]])
    logits = lm(inputs_of(lm, ids)).logits[0, -1]
    lm.tokens.output_vectors[0].mul_(-1 if logits[-1] > 0 else 1)  # type: ignore[index]
    first = lm.extra_ids[0]

    def written(bias: TokenBias) -> int:
        return decode(lm, inputs_of(lm, ids), Decoding(max_tokens=1, biases=(bias,)))[0][0].ids[0]

    assert written(TokenBias(first, factor=1e4)) != first
    assert written(TokenBias(first, factor=1e4, absolute=True)) == first
    with pytest.raises(ConfigError, match="beam search"):
        Decoding(num_beams=2, biases=(TokenBias(first, factor=2.0),))


def test_training_mode_leaves_the_frozen_model_in_evaluation(lm: ExtendedLM) -> None:
    assert lm.train() is lm
    assert lm.training
    assert not any(module.training for module in lm.base.modules())


def test_a_model_that_hides_its_word_vectors_is_refused() -> None:
    class Hiding(ToyLM):
        token_rows = LanguageModel.token_rows

    with pytest.raises(UnsupportedLMError, match="Hiding"):
        ExtendedLM(Hiding(), 1)
