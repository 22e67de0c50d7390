"""Every language model family through the one call, against the family's own forward."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graftlm.errors import UnsupportedLMError
from graftlm.lm.base import KVPrefix, LMInputs, Memory
from graftlm.lm.huggingface import HuggingFaceLM
from tests.language_models import FAMILIES, VOCABULARY, tiny_model, tiny_tokenizer

ROWS, LENGTH = 3, 11
LENGTHS = (11, 7, 4)


@pytest.fixture(scope="module", params=list(FAMILIES))
def lm(request: pytest.FixtureRequest) -> HuggingFaceLM:
    return HuggingFaceLM.from_model(tiny_model(request.param), tiny_tokenizer()).requires_grad_(False)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(3, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))


def right_mask() -> Tensor:
    return torch.arange(LENGTH) < torch.tensor(LENGTHS)[:, None]


def close(found: Tensor, wanted: Tensor) -> bool:
    return bool(torch.allclose(found, wanted, atol=1e-5, rtol=1e-5))


def random_prefix(lm: HuggingFaceLM, places: int, rows: int = ROWS) -> KVPrefix:
    geometry = lm.prefix_geometry
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(rows, places, geometry.token_dim, generator=generator)
    return KVPrefix.from_tokens(tokens, torch.ones(rows, places, dtype=torch.bool), geometry)


class GatedBlock(nn.Module):
    """A block whose output is its input while the gate is zero."""

    def __init__(self, dim: int, gate: float) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.tensor(gate))
        self.map = nn.Linear(8, dim)

    def forward(self, hidden: Tensor, memory: Memory) -> Tensor:
        weights = memory.mask.float() / memory.mask.sum(-1, keepdim=True).clamp(min=1)  # (B, L, M)
        return hidden + self.gate.tanh() * self.map(weights @ memory.states)


def hidden_dim(lm: HuggingFaceLM) -> int:
    return int(lm.model.config.hidden_size)


def test_logits_equal_the_models_own(lm: HuggingFaceLM, ids: Tensor) -> None:
    reference = tiny_model(lm.model.config.model_type)  # with transformers' own attention
    wanted = reference(input_ids=ids).logits
    output = lm(LMInputs(lm.embed(ids), torch.ones_like(ids, dtype=torch.bool)))
    assert close(output.logits, wanted)
    assert close(lm.unembed(output.hidden), wanted)


def test_one_changed_weight_changes_the_logits(lm: HuggingFaceLM, ids: Tensor) -> None:
    inputs = LMInputs(lm.embed(ids), torch.ones_like(ids, dtype=torch.bool))
    before = lm(inputs).logits
    weight = next(p for name, p in lm.named_parameters() if "layers.1" in name or ".h.1." in name)
    kept = weight.detach().clone()
    weight.view(-1)[0] += 0.5
    changed = lm(inputs).logits
    weight.copy_(kept)
    assert not close(changed, before)
    assert close(lm(inputs).logits, before)


def test_chosen_positions_have_the_logits_they_have_among_all(lm: HuggingFaceLM, ids: Tensor) -> None:
    inputs = LMInputs(lm.embed(ids), right_mask())
    at = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    at[0, 3] = at[0, 10] = at[2, 1] = True
    assert close(lm(inputs, at=at).logits, lm(inputs).logits[at])


def test_padding_on_the_left_and_on_the_right_agree_with_none(lm: HuggingFaceLM, ids: Tensor) -> None:
    right = LMInputs(lm.embed(ids), right_mask())
    left = right.align_left()
    for row, length in enumerate(LENGTHS):
        alone = lm(LMInputs(lm.embed(ids[row : row + 1, :length]), torch.ones(1, length, dtype=torch.bool)))
        assert close(lm(right).logits[row, :length], alone.logits[0])
        assert close(lm(left).logits[row, LENGTH - length :], alone.logits[0])


def in_steps(lm: HuggingFaceLM, inputs: LMInputs, split: int) -> Tensor:
    """Logits of the last position, by feeding `split` positions and then one at a time."""
    places = inputs.mask.shape[1] + (0 if inputs.prefix is None else inputs.prefix.mask.shape[1])
    cache = lm.new_cache(len(inputs), places)
    memory = inputs.memory
    steps = [(0, split), *((at, at + 1) for at in range(split, inputs.mask.shape[1]))]
    for start, end in steps:
        part = None if memory is None else Memory(memory.states, memory.mask[:, start:end])
        prefix = inputs.prefix if start == 0 else None
        output = lm(LMInputs(inputs.embeds[:, start:end], inputs.mask[:, start:end], None, part, prefix), cache=cache)
        cache = output.cache
    return output.logits[:, -1]


@torch.no_grad()
def test_the_cache_gives_what_the_whole_row_gives(lm: HuggingFaceLM, ids: Tensor) -> None:
    inputs = LMInputs(lm.embed(ids), right_mask()).align_left()
    assert close(in_steps(lm, inputs, 5), lm(inputs).logits[:, -1])


@torch.no_grad()
def test_the_cache_continues_a_prefix(lm: HuggingFaceLM, ids: Tensor) -> None:
    embeds = LMInputs(lm.embed(ids), right_mask()).align_left()
    inputs = LMInputs(embeds.embeds, embeds.mask, prefix=random_prefix(lm, 4))
    assert close(in_steps(lm, inputs, 5), lm(inputs).logits[:, -1])
    assert not close(lm(inputs).logits[:, -1], lm(embeds).logits[:, -1])


@torch.no_grad()
def test_selected_rows_of_a_cache_answer_as_they_did(lm: HuggingFaceLM, ids: Tensor) -> None:
    inputs = LMInputs(lm.embed(ids), right_mask()).align_left()
    cache = lm.new_cache(ROWS, LENGTH)
    head = LMInputs(inputs.embeds[:, :-1], inputs.mask[:, :-1])
    lm(head, cache=cache)
    rows = torch.tensor([2, 0, 2, 1])
    chosen = lm.select_cache(cache, rows)
    tail = LMInputs(inputs.embeds[rows, -1:], inputs.mask[rows, -1:])
    wanted = lm(inputs).logits[rows, -1]
    assert close(lm(tail, cache=chosen).logits[:, -1], wanted)
    assert close(lm(LMInputs(inputs.embeds[:, -1:], inputs.mask[:, -1:]), cache=cache).logits[2, -1], wanted[0])


@torch.no_grad()
def test_rows_of_a_dropped_cache_move_within_its_memory_and_a_copy_taken_before_stays(
    lm: HuggingFaceLM, ids: Tensor
) -> None:
    inputs = LMInputs(lm.embed(ids), right_mask()).align_left()
    wanted = lm(inputs).logits[:, -1]

    def last(rows: list[int]) -> LMInputs:
        return LMInputs(inputs.embeds[rows, -1:], inputs.mask[rows, -1:])

    def read() -> Any:
        cache = lm.new_cache(ROWS, LENGTH)
        lm(LMInputs(inputs.embeds[:, :-1], inputs.mask[:, :-1]), cache=cache)
        return cache

    first = read()
    place = first.layer(0).data_ptr()
    moved = lm.select_cache(lm.select_cache(first, torch.tensor([2, 1]), drop=True), torch.tensor([1, 1]), drop=True)
    assert close(lm(last([1, 1]), cache=moved).logits[:, -1], wanted[[1, 1]])
    assert moved.layer(0).data_ptr() == place
    second = read()
    copied = lm.select_cache(second, torch.tensor([0, 2]))
    dropped = lm.select_cache(second, torch.tensor([2]), drop=True)
    assert close(lm(last([2]), cache=dropped).logits[:, -1], wanted[[2]])
    assert close(lm(last([0, 2]), cache=copied).logits[:, -1], wanted[[0, 2]])


def test_a_prefix_of_the_models_own_keys_equals_the_words_it_was_made_of(lm: HuggingFaceLM, ids: Tensor) -> None:
    """Keys and values that text leaves in the cache, given back as a prefix, are that text."""
    size = 4
    with torch.no_grad():
        cache = lm.new_cache(ROWS, size)
        lm(LMInputs(lm.embed(ids[:, :size]), torch.ones(ROWS, size, dtype=torch.bool)), cache=cache)
    stacked = cache.held()  # (layers, 2, B, H, P, d)
    prefix = KVPrefix(stacked[:, 0], stacked[:, 1], torch.ones(ROWS, size, dtype=torch.bool))
    rest = LMInputs(lm.embed(ids[:, size:]), torch.ones(ROWS, LENGTH - size, dtype=torch.bool), prefix=prefix)
    whole = lm(LMInputs(lm.embed(ids), torch.ones_like(ids, dtype=torch.bool))).logits[:, size:]
    assert close(lm(rest).logits, whole)


def test_masked_places_of_a_prefix_are_as_if_they_were_not_there(lm: HuggingFaceLM, ids: Tensor) -> None:
    if "sliding" in str(getattr(lm.model.config, "layer_types", "")) or lm.model.config.model_type == "mistral":
        pytest.skip("a sliding window counts places, so a hole in a prefix shortens it")
    prefix = random_prefix(lm, 3)
    holes = torch.tensor([[True, False, True]]).expand(ROWS, 3)
    inputs = LMInputs(lm.embed(ids), right_mask())
    masked = LMInputs(inputs.embeds, inputs.mask, prefix=KVPrefix(prefix.keys, prefix.values, holes))
    short = KVPrefix(prefix.keys[..., [0, 2], :], prefix.values[..., [0, 2], :], holes[:, :2] | True)
    wanted = lm(LMInputs(inputs.embeds, inputs.mask, prefix=short)).logits
    assert close(lm(masked).logits[inputs.mask], wanted[inputs.mask])


def test_memory_with_a_closed_gate_changes_no_bit(lm: HuggingFaceLM, ids: Tensor) -> None:
    inputs = LMInputs(lm.embed(ids), right_mask())
    memory = Memory(torch.randn(ROWS, 5, 8), torch.ones(ROWS, LENGTH, 5, dtype=torch.bool))
    plain, names = lm(inputs).logits, set(lm.state_dict())
    closed, opened = GatedBlock(hidden_dim(lm), 0.0), GatedBlock(hidden_dim(lm), 1.0)
    lm.attach_cross_attention({1: closed})
    assert torch.equal(lm(LMInputs(inputs.embeds, inputs.mask, memory=memory)).logits, plain)
    lm.attach_cross_attention({1: opened})
    assert not close(lm(LMInputs(inputs.embeds, inputs.mask, memory=memory)).logits, plain)
    assert torch.equal(lm(inputs).logits, plain)
    assert set(lm.state_dict()) == names
    lm.attach_cross_attention({})


@torch.no_grad()
def test_memory_is_read_with_a_cache_as_without(lm: HuggingFaceLM, ids: Tensor) -> None:
    aligned = LMInputs(lm.embed(ids), right_mask()).align_left()
    memory = Memory(torch.randn(ROWS, 5, 8), torch.rand(ROWS, LENGTH, 5) > 0.5)
    lm.attach_cross_attention({0: GatedBlock(hidden_dim(lm), 0.7), 2: GatedBlock(hidden_dim(lm), 0.7)})
    inputs = LMInputs(aligned.embeds, aligned.mask, memory=memory)
    assert close(in_steps(lm, inputs, 5), lm(inputs).logits[:, -1])
    lm.attach_cross_attention({})


def test_gradients_reach_embeddings_prefix_and_memory(lm: HuggingFaceLM, ids: Tensor) -> None:
    embeds = lm.embed(ids).detach().requires_grad_()
    prefix = random_prefix(lm, 4)
    keys, values = prefix.keys.requires_grad_(), prefix.values.requires_grad_()
    states = torch.randn(ROWS, 5, 8, requires_grad=True)
    block = GatedBlock(hidden_dim(lm), 0.5)
    lm.attach_cross_attention({1: block})
    memory = Memory(states, torch.ones(ROWS, LENGTH, 5, dtype=torch.bool))
    given = LMInputs(embeds, right_mask(), memory=memory, prefix=KVPrefix(keys, values, prefix.mask))
    lm(given).logits[right_mask()].square().mean().backward()
    lm.attach_cross_attention({})
    for tensor in (embeds, keys, values, states, *block.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0
    for layer in range(lm.prefix_geometry.num_layers):
        assert keys.grad is not None
        assert keys.grad[layer].abs().sum() > 0
    assert all(parameter.grad is None for parameter in lm.parameters())


def test_checkpointing_gives_the_same_gradients_with_memory(lm: HuggingFaceLM, ids: Tensor) -> None:
    block = GatedBlock(hidden_dim(lm), 0.5)
    lm.attach_cross_attention({1: block})
    memory = Memory(torch.randn(ROWS, 5, 8), torch.ones(ROWS, LENGTH, 5, dtype=torch.bool))
    found = []
    for checkpointing in (False, True):
        lm.model.train()  # the tiny models have no dropout
        if checkpointing:
            switch = "activation_checkpointing_enable"  # its name since transformers 5.20
            getattr(lm.model, switch if hasattr(lm.model, switch) else "gradient_checkpointing_enable")()
        embeds = lm.embed(ids).detach().requires_grad_()
        block.zero_grad()
        lm(LMInputs(embeds, right_mask(), memory=memory)).logits[right_mask()].square().mean().backward()
        found.append([embeds.grad, *(parameter.grad.clone() for parameter in block.parameters())])
    refused = LMInputs(lm.embed(ids), right_mask(), prefix=random_prefix(lm, 2))
    if lm._quick_weights(refused) is None:  # a quicker pass has no checkpoints in which a prefix could get lost
        with pytest.raises(UnsupportedLMError, match="checkpointing"):
            lm(refused)
    switch = "activation_checkpointing_disable"
    getattr(lm.model, switch if hasattr(lm.model, switch) else "gradient_checkpointing_disable")()
    lm.model.eval()
    lm(refused)
    lm.attach_cross_attention({})
    assert all(close(one, two) for one, two in zip(*found, strict=True))


def test_two_threads_with_different_memories_never_mix_them_up(lm: HuggingFaceLM, ids: Tensor) -> None:
    lm.attach_cross_attention({1: GatedBlock(hidden_dim(lm), 0.8).requires_grad_(False)})
    inputs = LMInputs(lm.embed(ids), right_mask())
    full = torch.ones(ROWS, LENGTH, 5, dtype=torch.bool)
    memories = [Memory(torch.randn(ROWS, 5, 8), full) for _ in range(2)]
    given = [LMInputs(inputs.embeds, inputs.mask, memory=memory) for memory in memories]
    wanted = [lm(one).logits for one in given]
    wrong: list[int] = []

    def ask(which: int) -> None:
        wrong.extend(which for _ in range(20) if not close(lm(given[which]).logits, wanted[which]))

    threads = [threading.Thread(target=ask, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lm.attach_cross_attention({})
    assert not wrong
    assert not close(wanted[0], wanted[1])


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of peft, about transformers
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "qwen2", "mistral"])
def test_a_prefix_equals_prefix_tuning_of_peft(family: str, ids: Tensor) -> None:
    peft = pytest.importorskip("peft")
    places = 5
    lm = HuggingFaceLM.from_model(tiny_model(family), tiny_tokenizer())
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=places)
    tuned: Any = peft.get_peft_model(tiny_model(family), config).eval()
    weight = tuned.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        weight.copy_(torch.randn_like(weight))
    tokens = weight[None].expand(ROWS, -1, -1)  # (B, P, token_dim)
    prefix = KVPrefix.from_tokens(tokens, torch.ones(ROWS, places, dtype=torch.bool), lm.prefix_geometry)
    mask = right_mask()
    wanted = tuned(input_ids=ids, attention_mask=mask.long()).logits
    found = lm(LMInputs(lm.embed(ids), mask, prefix=prefix)).logits
    assert close(found[mask], wanted[mask])
