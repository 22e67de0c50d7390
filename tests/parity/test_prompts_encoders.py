"""Prompts and prefixes of encoders: against peft on BERT, and a prefix against attention written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from graftlm.lm.base import KVPrefix, LMInputs
from graftlm.lm.compose import prepend
from graftlm.lm.masked import MaskedLM
from tests.masked_models import VOCABULARY, mask_tokenizer, tiny_encoder

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
TOKENS, ROWS, LENGTH = 4, 3, 8
LENGTHS = (8, 5, 3)


@pytest.fixture(scope="module", params=["bert", "roberta", "bert_headless"])
def lm(request: pytest.FixtureRequest) -> MaskedLM:
    return MaskedLM.from_model(tiny_encoder(request.param), mask_tokenizer()).requires_grad_(False)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(5, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))


def mask() -> Tensor:
    return torch.arange(LENGTH) < torch.tensor(LENGTHS)[:, None]


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2)) * 0.5


def close(found: Tensor, wanted: Tensor) -> bool:
    return bool(torch.allclose(found, wanted, atol=1e-5, rtol=1e-4))


def with_prompt(lm: MaskedLM, ids: Tensor, used: Tensor, vectors: Tensor) -> LMInputs:
    soft = vectors.expand(len(ids), -1, -1)
    return prepend(LMInputs(lm.embed(ids), used), soft, torch.ones(soft.shape[:2], dtype=torch.bool))


def with_prefix(lm: MaskedLM, ids: Tensor, used: Tensor, tokens: Tensor) -> LMInputs:
    soft = tokens.expand(len(ids), -1, -1)
    prefix = KVPrefix.from_tokens(soft, torch.ones(soft.shape[:2], dtype=torch.bool), lm.prefix_geometry)
    return LMInputs(lm.embed(ids), used, prefix=prefix)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@torch.no_grad()
def test_padding_on_either_side_changes_nothing(lm: MaskedLM, ids: Tensor, kind: str) -> None:
    make = with_prompt if kind == "prompt" else with_prefix
    vectors = drawn(TOKENS, lm.dim if kind == "prompt" else lm.prefix_geometry.token_dim)
    inputs = make(lm, ids, mask(), vectors)
    skip = TOKENS if kind == "prompt" else 0
    right, left = lm(inputs).hidden, lm(inputs.align_left()).hidden
    for row, length in enumerate(LENGTHS):
        one = ids[row : row + 1, :length]
        alone = lm(make(lm, one, torch.ones_like(one, dtype=torch.bool), vectors)).hidden[0, skip:]
        assert close(right[row, skip : skip + length], alone)
        assert close(left[row, -length:], alone)


@torch.no_grad()
def test_a_prefix_that_is_masked_out_is_none(lm: MaskedLM, ids: Tensor) -> None:
    inputs = with_prefix(lm, ids, mask(), drawn(TOKENS, lm.prefix_geometry.token_dim))
    assert inputs.prefix is not None
    hidden = KVPrefix(inputs.prefix.keys, inputs.prefix.values, torch.zeros_like(inputs.prefix.mask))
    plain = lm(LMInputs(inputs.embeds, inputs.mask)).hidden[mask()]
    assert close(lm(LMInputs(inputs.embeds, inputs.mask, prefix=hidden)).hidden[mask()], plain)
    assert not close(lm(inputs).hidden[mask()], plain)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@torch.no_grad()
def test_prompts_of_bert_equal_pefts(ids: Tensor, kind: str) -> None:
    peft = pytest.importorskip("peft")
    lm = MaskedLM.from_model(tiny_encoder("bert_headless"), mask_tokenizer())
    make = peft.PromptTuningConfig if kind == "prompt" else peft.PrefixTuningConfig
    config = make(task_type="FEATURE_EXTRACTION", num_virtual_tokens=TOKENS)
    model: Any = peft.get_peft_model(tiny_encoder("bert_headless"), config).eval()
    vectors = drawn(TOKENS, lm.dim if kind == "prompt" else lm.prefix_geometry.token_dim)
    weight = model.prompt_encoder["default"].embedding.weight
    assert weight.shape == vectors.shape
    weight.data = vectors.clone()
    wanted = model(input_ids=ids, attention_mask=mask().long()).last_hidden_state[:, -LENGTH:]
    inputs = (with_prompt if kind == "prompt" else with_prefix)(lm, ids, mask(), vectors)
    assert close(lm(inputs).hidden[:, -LENGTH:][mask()], wanted[mask()])
    vectors[0, 0] += 2.0
    other = (with_prompt if kind == "prompt" else with_prefix)(lm, ids, mask(), vectors)
    assert not close(lm(other).hidden[:, -LENGTH:][mask()], wanted[mask()])


@torch.no_grad()
def test_a_prefix_equals_attention_written_out_by_hand(ids: Tensor) -> None:
    model = tiny_encoder("bert_headless", num_hidden_layers=1)
    lm = MaskedLM.from_model(model, mask_tokenizer())
    tokens = drawn(TOKENS, lm.prefix_geometry.token_dim)
    found = lm(with_prefix(lm, ids, mask(), tokens)).hidden
    wanted = by_hand(model, ids, mask(), tokens)
    assert close(found[mask()], wanted[mask()])
    assert not close(found[mask()], by_hand(model, ids, mask(), tokens.flip(0) * 1.1)[mask()])


def by_hand(model: Any, ids: Tensor, used: Tensor, tokens: Tensor) -> Tensor:
    """One BERT layer whose keys and values begin with the prefix; words' positions count on behind it."""
    table, layer = model.embeddings, model.encoder.layer[0]
    heads, width = model.config.num_attention_heads, model.config.hidden_size
    places = torch.arange(ids.shape[1]) + len(tokens)
    states = table.word_embeddings(ids) + table.position_embeddings(places) + table.token_type_embeddings.weight[0]
    states = table.LayerNorm(states)
    own = layer.attention.self
    given = tokens.view(len(tokens), 2, width)  # keys before values
    split = (ids.shape[0], -1, heads, width // heads)

    def joined(map_: Any, side: int) -> Tensor:
        before = given[:, side].expand(len(ids), -1, -1)
        return torch.cat([before, map_(states)], dim=1).view(split).transpose(1, 2)

    query = own.query(states).view(split).transpose(1, 2)
    scores = query @ joined(own.key, 0).mT / (width // heads) ** 0.5
    seen = torch.cat([torch.ones(len(ids), len(tokens), dtype=torch.bool), used], dim=1)
    shares = scores.masked_fill(~seen[:, None, None], float("-inf")).softmax(dim=-1)
    mixed = (shares @ joined(own.value, 1)).transpose(1, 2).flatten(2)
    states = layer.attention.output.LayerNorm(layer.attention.output.dense(mixed) + states)
    inner = layer.output.dense(F.gelu(layer.intermediate.dense(states)))
    result: Tensor = layer.output.LayerNorm(inner + states)
    return result
