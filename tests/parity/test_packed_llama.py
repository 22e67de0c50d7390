"""Packed Llama weights give, bit by bit, what the modules of transformers give, and are let go when they do not fit."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graftlm.lm.base import KVPrefix, LMInputs, Memory
from graftlm.lm.decode import Decoding, decode
from graftlm.lm.frozen_llama import FrozenLlama, is_packable
from graftlm.lm.huggingface import HuggingFaceLM
from graftlm.nn.attention import Geometry
from graftlm.nn.gated_cross_attention import GatedCrossAttention
from tests.parity.test_decode_parity import VOCAB, tokenizer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bfloat16 kernels"
)
WIDTH = 64


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def llama(seed: int = 0, *, bias: bool = False) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, eos_token_id=2, pad_token_id=1, attention_bias=bias,
        mlp_bias=bias, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.2 if parameter.dim() > 1 else 1.0))
    return model.to(torch.bfloat16).eval().requires_grad_(False)


def wrapped(model: Any) -> HuggingFaceLM:
    return HuggingFaceLM.from_model(model, tokenizer(), "tiny").requires_grad_(False)


def prompts(lengths: tuple[int, ...] = (3, 9, 1, 6)) -> LMInputs:
    embeds = torch.randn(len(lengths), max(lengths), WIDTH, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return LMInputs(embeds.to(torch.bfloat16), mask).align_left()


def theirs(model: Any, inputs: LMInputs, cache: Any, past: Tensor) -> Tensor:
    """transformers' logits of the last position."""
    mask = torch.cat([past, inputs.mask], dim=1).long()
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, past.shape[1] :]
    found = model(
        inputs_embeds=inputs.embeds, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    )
    logits: Tensor = found.logits[:, -1]
    return logits


@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_a_ragged_prompt_and_every_step_after_it_are_equal_bit_by_bit(bias: bool) -> None:
    model = llama(bias=bias)
    lm, inputs, kept = wrapped(copy.deepcopy(model)), prompts(), transformers.DynamicCache()
    cache, past = lm.new_cache(4, 20), torch.zeros(4, 0, dtype=torch.bool)
    assert cache.packed is not None
    for _ in range(6):
        at = torch.zeros_like(inputs.mask)
        at[:, -1] = True
        wanted, found = theirs(model, inputs, kept, past), lm(inputs, cache=cache, at=at).logits
        assert torch.equal(found, wanted)
        past = torch.cat([past, inputs.mask], dim=1)
        ids = wanted.argmax(dim=-1, keepdim=True)
        inputs = LMInputs(lm.embed(ids), torch.ones_like(ids, dtype=torch.bool))


def test_bfloat16_answers_of_a_batch_are_those_of_generate() -> None:
    for seed in range(4):
        model = llama(seed)
        lm, inputs = wrapped(copy.deepcopy(model)), prompts()
        wanted = model.generate(
            inputs_embeds=inputs.embeds, attention_mask=inputs.mask.long(), max_new_tokens=12, do_sample=False
        ).tolist()
        ours = [list(row[0].ids) for row in decode(lm, inputs, Decoding(max_tokens=12))]
        assert ours == [row[: len(ids)] for row, ids in zip(wanted, ours, strict=True)]


@pytest.mark.parametrize("layers", [(1,), (0, 2), (2, -1)])
@torch.no_grad()
def test_inner_layers_are_the_modules_own_whether_the_pass_ends_early_or_not(layers: tuple[int, ...]) -> None:
    lm, inputs = wrapped(llama()), prompts()
    step = LMInputs(inputs.embeds[:, -1:], inputs.mask[:, -1:])
    found = {}
    for way in ("early", "whole", "plain"):
        if way == "plain":
            lm.model.model.layers[0].register_forward_hook(lambda *_: None)
        cache = lm.new_cache(4, 20)
        assert (cache.packed is not None) == (way != "plain")
        none = None if way == "whole" else torch.zeros_like(inputs.mask)
        first = lm(inputs, cache=cache, at=none, layers=layers)
        after = lm(step, cache=cache, at=none if none is None else none[:, -1:], layers=layers)
        assert way == "whole" or first.logits.shape == (0, VOCAB)
        found[way] = torch.cat([states[inputs.mask] for states in first.layers] + [one[:, 0] for one in after.layers])
    assert torch.equal(found["early"], found["whole"])
    difference = (found["early"].float() - found["plain"].float()).norm() / found["plain"].float().norm()
    assert difference < 0.01, difference


@torch.no_grad()
def test_a_single_step_may_leave_rows_out() -> None:
    lm, first, found = wrapped(llama()), prompts((5, 5, 5)), []
    embeds = torch.randn(3, 1, WIDTH, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    step = LMInputs(embeds, torch.tensor([[True], [False], [True]]))
    for is_packed in (True, False):
        cache = lm.new_cache(3, 8)
        cache.packed = cache.packed if is_packed else None
        lm(first, cache=cache)
        lm(step, cache=cache)
        found.append(lm(LMInputs(embeds, torch.ones(3, 1, dtype=torch.bool)), cache=cache).logits)
    error = (found[0] - found[1]).norm() / found[1].norm()
    assert float(error) < 0.03


@torch.no_grad()
def test_a_prefix_and_all_logits_come_out_as_on_the_plain_path() -> None:
    lm, inputs = wrapped(llama()), prompts()
    geometry = lm.prefix_geometry
    tokens = torch.randn(4, 2, geometry.token_dim).to(torch.bfloat16)
    prefix = KVPrefix.from_tokens(tokens, torch.ones(4, 2, dtype=torch.bool), geometry)
    inputs = LMInputs(inputs.embeds, inputs.mask, prefix=prefix)
    plain = lm(inputs)
    packed = lm(inputs, cache=lm.new_cache(4, 20))
    error = (packed.logits - plain.logits)[inputs.mask].norm() / plain.logits[inputs.mask].norm()
    assert float(error) < 0.03  # the plain path has an attention of its own, rounded elsewhere
    assert float(packed.hidden[~inputs.mask].abs().sum()) == 0.0


@torch.no_grad()
def test_blocks_read_a_memory_as_behind_hooks() -> None:
    lm, inputs, found = wrapped(llama()), prompts(), {}
    block = GatedCrossAttention(WIDTH, 12, Geometry(heads=2, head_dim=8, dense_dim=24))
    lm.attach_cross_attention({1: block})
    memory = Memory(torch.randn(4, 5, 12), torch.rand(*inputs.mask.shape, 5) > 0.5)
    embeds = torch.randn(4, 1, WIDTH).to(torch.bfloat16)
    step = LMInputs(embeds, torch.ones(4, 1, dtype=torch.bool), memory=Memory(memory.states, memory.mask[:, -1:]))
    for name, is_packed, gate in (("packed", True, 2.0), ("hooked", False, 2.0), ("closed", True, 0.0)):
        torch.nn.init.constant_(block.attention_gate, gate)
        torch.nn.init.constant_(block.dense_gate, gate)
        cache = lm.new_cache(4, 20)
        assert cache.packed is not None
        cache.packed = cache.packed if is_packed else None
        lm(replace(inputs, memory=memory), cache=cache)
        found[name] = lm(step, cache=cache).logits
    cache = lm.new_cache(4, 20)
    lm(inputs, cache=cache)
    plain = lm(replace(step, memory=None), cache=cache).logits
    assert torch.equal(found["closed"], plain)
    assert float((found["packed"] - found["hooked"]).norm() / found["hooked"].norm()) < 0.03
    assert float((found["packed"] - plain).norm() / plain.norm()) > 0.1


def test_a_weight_that_changes_a_hook_or_training_ends_the_use_of_packed_weights() -> None:
    lm = wrapped(llama())
    first = lm._frozen_weights()
    assert lm.new_cache(1, 4).packed is not None
    assert first is lm._frozen_weights() is not None
    weight = lm.model.model.layers[1].mlp.up_proj.weight
    weight.mul_(2)
    again = lm._frozen_weights()
    assert again is not None
    assert again is not first
    handle = lm.model.model.layers[0].register_forward_hook(lambda *_: None)
    assert lm.new_cache(1, 4).packed is None
    handle.remove()
    weight.requires_grad_(True)
    assert lm.new_cache(1, 4).packed is None


def test_a_changed_weight_changes_the_answer() -> None:
    model, inputs = llama(), prompts()
    lm = wrapped(copy.deepcopy(model))
    before = [row[0].log_prob for row in decode(lm, inputs, Decoding(max_tokens=3))]
    lm.model.model.layers[2].self_attn.v_proj.weight.mul_(1.5)
    after = [row[0].log_prob for row in decode(lm, inputs, Decoding(max_tokens=3))]
    assert before != after
    assert after == [row[0].log_prob for row in decode(wrapped(lm.model), inputs, Decoding(max_tokens=3))]


def test_only_a_frozen_bfloat16_llama_of_plain_parts_is_packed() -> None:
    model = llama()
    head = model.get_output_embeddings()
    assert is_packable(model.model, head)
    assert not is_packable(llama().float().model, head)
    assert not is_packable(nn.Linear(2, 2).to(torch.bfloat16).requires_grad_(False), head)
    model.model.layers[0].mlp.act_fn = nn.GELU()
    assert not is_packable(model.model, head)


def test_a_copy_does_not_share_packed_weights() -> None:
    weights = wrapped(llama())._frozen_weights()
    assert isinstance(weights, FrozenLlama)
    assert copy.deepcopy({"weights": weights}) == {"weights": None}
    assert pickle.loads(pickle.dumps({"weights": weights})) == {"weights": None}  # noqa: S301
