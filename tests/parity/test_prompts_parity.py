"""Prompts and prefixes against peft: the same numbers go in, and the same come out, with padding on either side."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from graftlm.connectors.soft_prompt import SoftPrompt
from graftlm.lm.base import KVPrefix, LMInputs
from graftlm.lm.compose import prepend
from graftlm.lm.huggingface import HuggingFaceLM
from graftlm.nn.prompt_maps import PrefixMLP, PromptLSTM, PromptMLP
from tests.language_models import VOCABULARY, tiny_model, tiny_tokenizer

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

TOKENS, ROWS, LENGTH = 5, 3, 9
LENGTHS = (9, 6, 3)


@pytest.fixture(scope="module", params=["gpt2", "llama", "gpt_neox", "qwen2"])
def lm(request: pytest.FixtureRequest) -> HuggingFaceLM:
    return HuggingFaceLM.from_model(tiny_model(request.param), tiny_tokenizer()).requires_grad_(False)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(3, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))


def mask() -> Tensor:
    return torch.arange(LENGTH) < torch.tensor(LENGTHS)[:, None]


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2)) * 0.5


def theirs(lm: HuggingFaceLM, kind: str, tokens: Tensor) -> Any:
    """peft's model over an untouched copy, with the given vectors."""
    family = lm.model.config.model_type
    make = peft.PromptTuningConfig if kind == "prompt" else peft.PrefixTuningConfig
    model = peft.get_peft_model(tiny_model(family), make(task_type="CAUSAL_LM", num_virtual_tokens=len(tokens)))
    weight = model.prompt_encoder["default"].embedding.weight
    assert weight.shape == tokens.shape
    weight.data = tokens.clone()
    return model.eval()


def close(found: Tensor, wanted: Tensor) -> bool:
    return bool(torch.allclose(found, wanted, atol=1e-5, rtol=1e-5))


def prompted(lm: HuggingFaceLM, ids: Tensor, vectors: Tensor) -> LMInputs:
    words = LMInputs(lm.embed(ids), mask())
    return prepend(words, *SoftPrompt(vectors, lm.dim).expand(ROWS))


def prefixed(lm: HuggingFaceLM, ids: Tensor, vectors: Tensor) -> LMInputs:
    prefix = KVPrefix.from_tokens(*SoftPrompt(vectors, vectors.shape[1]).expand(ROWS), lm.prefix_geometry)
    return LMInputs(lm.embed(ids), mask(), prefix=prefix)


@torch.no_grad()
def check_rows(lm: HuggingFaceLM, model: Any, ids: Tensor, inputs: LMInputs, skip: int) -> None:
    """Ours in a batch, padded on either side, equal peft's row by row; `skip`: prompt positions among the logits."""
    right, left = lm(inputs).logits, lm(inputs.align_left()).logits
    for row, length in enumerate(LENGTHS):
        wanted = model(input_ids=ids[row : row + 1, :length]).logits[0]
        wanted = wanted[-length:]  # peft keeps the positions of a prompt
        assert close(right[row, skip : skip + length], wanted)
        assert close(left[row, -length:], wanted)


def test_prompt_tuning_equals_peft(lm: HuggingFaceLM, ids: Tensor) -> None:
    vectors = drawn(TOKENS, lm.dim)
    check_rows(lm, theirs(lm, "prompt", vectors), ids, prompted(lm, ids, vectors), TOKENS)


def test_prompt_tuning_gives_the_model_the_very_numbers_that_peft_does(lm: HuggingFaceLM, ids: Tensor) -> None:
    vectors = drawn(TOKENS, lm.dim)
    model = theirs(lm, "prompt", vectors)
    seen: list[Tensor] = []
    model.base_model.register_forward_pre_hook(
        lambda _, args, given: seen.append(given["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask().long())
    assert torch.equal(seen[0], prompted(lm, ids, vectors).embeds)


def test_one_changed_number_of_a_prompt_shows(lm: HuggingFaceLM, ids: Tensor) -> None:
    vectors = drawn(TOKENS, lm.dim)
    model = theirs(lm, "prompt", vectors)
    vectors[0, 0] += 0.5
    with pytest.raises(AssertionError):
        check_rows(lm, model, ids, prompted(lm, ids, vectors), TOKENS)


def test_prefix_tuning_equals_peft(lm: HuggingFaceLM, ids: Tensor) -> None:
    vectors = drawn(TOKENS, lm.prefix_geometry.token_dim)
    check_rows(lm, theirs(lm, "prefix", vectors), ids, prefixed(lm, ids, vectors), 0)


def test_the_layout_of_a_prefix_is_pefts_to_the_bit(lm: HuggingFaceLM, ids: Tensor) -> None:
    vectors = drawn(TOKENS, lm.prefix_geometry.token_dim)
    cache = theirs(lm, "prefix", vectors).get_prompt(batch_size=ROWS)
    prefix = prefixed(lm, ids, vectors).prefix
    assert prefix is not None
    for layer in range(lm.num_layers):
        assert torch.equal(cache.layers[layer].keys, prefix.keys[layer])
        assert torch.equal(cache.layers[layer].values, prefix.values[layer])


def test_a_prefix_with_keys_and_values_exchanged_is_another(lm: HuggingFaceLM, ids: Tensor) -> None:
    vectors = drawn(TOKENS, lm.prefix_geometry.token_dim)
    model = theirs(lm, "prefix", vectors)
    inputs = prefixed(lm, ids, vectors)
    assert inputs.prefix is not None
    swapped = KVPrefix(inputs.prefix.values, inputs.prefix.keys, inputs.prefix.mask)
    with pytest.raises(AssertionError):
        check_rows(lm, model, ids, LMInputs(inputs.embeds, inputs.mask, prefix=swapped), 0)


@pytest.mark.parametrize("kind", ["LSTM", "MLP"])
def test_the_encoder_of_p_tuning_equals_peft(kind: str) -> None:
    config = peft.PromptEncoderConfig(
        num_virtual_tokens=TOKENS,
        token_dim=12,
        num_transformer_submodules=1,
        encoder_hidden_size=7,
        encoder_reparameterization_type=kind,
    )
    torch.manual_seed(0)
    encoder = peft.PromptEncoder(config).eval()
    own = PromptLSTM(12, 7) if kind == "LSTM" else PromptMLP(12, 7)
    weights = {name: value for name, value in encoder.state_dict().items() if not name.startswith("embedding")}
    own.load_state_dict(weights)
    prompt = SoftPrompt(encoder.embedding.weight, 12, own)
    with torch.no_grad():
        wanted = encoder(torch.arange(TOKENS)[None])[0]
        assert torch.equal(prompt.tokens(), wanted)
        next(own.parameters()).view(-1)[0] += 1.0
        assert not torch.equal(prompt.tokens(), wanted)


def test_the_network_of_prefix_tuning_equals_peft() -> None:
    config = peft.PrefixTuningConfig(
        num_virtual_tokens=TOKENS,
        token_dim=12,
        num_layers=3,
        num_attention_heads=2,
        num_transformer_submodules=1,
        encoder_hidden_size=7,
        prefix_projection=True,
    )
    torch.manual_seed(0)
    encoder = peft.PrefixEncoder(config).eval()
    own = PrefixMLP(12, 7, 2 * 3 * 12)
    own.load_state_dict({name: value for name, value in encoder.state_dict().items() if name.startswith("transform")})
    prompt = SoftPrompt(encoder.embedding.weight, 2 * 3 * 12, own)
    with torch.no_grad():
        wanted = encoder(torch.arange(TOKENS)[None])[0]
        assert torch.equal(prompt.tokens(), wanted)
        next(own.parameters()).view(-1)[0] += 1.0
        assert not torch.equal(prompt.tokens(), wanted)
