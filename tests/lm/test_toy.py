"""The toy language model keeps the whole contract that real ones keep."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from graftlm.errors import ShapeError, UnsupportedLMError
from graftlm.lm.base import KVPrefix, LMInputs, Memory
from graftlm.lm.toy import ByteTokenizer, ToyLM
from graftlm.losses import causal_lm, shifted_targets, target_positions

TEXTS = ("a red star", "blue", "two big dogs")


@pytest.fixture(scope="module")
def lm() -> ToyLM:
    return ToyLM().requires_grad_(False)


def batch(lm: ToyLM) -> LMInputs:
    rows = [lm.tokenizer.encode(text) for text in TEXTS]
    length = max(map(len, rows))
    ids = torch.tensor([row + [lm.tokenizer.pad_id] * (length - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in rows])
    return LMInputs(lm.embed(ids), mask)


def prefix_for(lm: ToyLM, rows: int, places: int = 3) -> KVPrefix:
    tokens = torch.randn(rows, places, lm.prefix_geometry.token_dim, generator=torch.Generator().manual_seed(0))
    return KVPrefix.from_tokens(tokens, torch.ones(rows, places, dtype=torch.bool), lm.prefix_geometry)


def close(found: Tensor, wanted: Tensor) -> bool:
    return bool(torch.allclose(found, wanted, atol=1e-4, rtol=1e-4))


def test_it_is_built_in_a_fifth_of_a_second_and_always_the_same() -> None:
    start = time.process_time()
    first = ToyLM()
    assert time.process_time() - start < 0.2
    assert first.fingerprint == ToyLM().fingerprint
    assert first.fingerprint != ToyLM(seed=1).fingerprint


def test_bytes_go_out_and_come_back() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode("Größe 日本 <|end|>")) == "Größe 日本 <|end|>"
    assert tokenizer.decode([256, 104, 105, 257, 258]) == "hi"


def test_only_template_text_holds_special_tokens() -> None:
    tokenizer = ByteTokenizer()
    rendered = tokenizer.render_chat([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    assert rendered == "<|user|>\nhi<|end|>\n<|assistant|>\n"
    assert tokenizer.eos_id in tokenizer.encode_template(rendered)
    assert tokenizer.eos_id not in tokenizer.encode(rendered)


def test_padding_on_either_side_changes_nothing(lm: ToyLM) -> None:
    right = batch(lm)
    left = right.align_left()
    for row, text in enumerate(TEXTS):
        size = len(text)
        alone = lm(LMInputs(right.embeds[row : row + 1, :size], right.mask[row : row + 1, :size])).logits[0]
        assert close(lm(right).logits[row, :size], alone)
        assert close(lm(left).logits[row, -size:], alone)


@torch.no_grad()
@pytest.mark.parametrize("with_prefix", [False, True])
def test_the_cache_gives_what_the_whole_row_gives(lm: ToyLM, with_prefix: bool) -> None:
    aligned = batch(lm).align_left()
    prefix = prefix_for(lm, 3) if with_prefix else None
    whole = lm(LMInputs(aligned.embeds, aligned.mask, prefix=prefix)).logits[:, -1]
    cache = lm.new_cache(3, aligned.mask.shape[1] + 3)
    lm(LMInputs(aligned.embeds[:, :-2], aligned.mask[:, :-2], prefix=prefix), cache=cache)
    chosen = lm.select_cache(cache, torch.tensor([2, 0]))
    for step in (-2, -1):
        end = None if step == -1 else step + 1
        given = LMInputs(aligned.embeds[[2, 0], step:end], aligned.mask[[2, 0], step:end])
        output = lm(given, cache=chosen)
        chosen = output.cache
    assert close(output.logits[:, -1], whole[[2, 0]])


def test_a_prefix_changes_the_answer(lm: ToyLM) -> None:
    inputs = batch(lm)
    with_prefix = LMInputs(inputs.embeds, inputs.mask, prefix=prefix_for(lm, 3))
    assert not close(lm(with_prefix).logits, lm(inputs).logits)


def test_memory_is_read_by_the_attached_block_alone(lm: ToyLM) -> None:
    class Add(nn.Module):
        def forward(self, hidden: Tensor, memory: Memory) -> Tensor:
            return hidden + memory.states.mean(1, keepdim=True)

    inputs = batch(lm)
    states = torch.randn(3, 2, lm.dim)
    given = LMInputs(inputs.embeds, inputs.mask, memory=Memory(states, torch.ones(*inputs.mask.shape, 2) > 0))
    with pytest.raises(ShapeError, match="attach"):
        lm(given)
    lm.attach_cross_attention({1: Add()})
    assert not close(lm(given).logits, lm(inputs).logits)
    assert not any("Add" in type(module).__name__ for module in lm.modules())
    lm.attach_cross_attention({})


def test_what_does_not_fit_is_refused_with_both_numbers(lm: ToyLM) -> None:
    inputs = batch(lm)
    with pytest.raises(ShapeError, match=r"width 5 .* width 96"):
        lm(LMInputs(inputs.embeds[..., :5], inputs.mask))
    with pytest.raises(ShapeError, match="mask of shape"):
        lm(LMInputs(inputs.embeds, inputs.mask[:, 1:]))
    with pytest.raises(ShapeError, match="2000 positions"):
        lm(LMInputs(torch.zeros(1, 2000, lm.dim), torch.ones(1, 2000, dtype=torch.bool)))
    with pytest.raises(ShapeError, match="prefix keys of shape"):
        lm(LMInputs(inputs.embeds, inputs.mask, prefix=prefix_for(lm, 2)))
    with pytest.raises(ShapeError, match="new_cache"):
        lm(inputs, cache=lm.new_cache(3, 2))
    with pytest.raises(UnsupportedLMError, match="layer 9"):
        lm.attach_cross_attention({9: nn.Identity()})
    with pytest.raises(UnsupportedLMError, match="LoRA"):
        lm.add_lora(4)


@pytest.mark.parametrize("places", ["embeds", "prefix"])
def test_four_soft_tokens_teach_the_frozen_toy_three_sentences(lm: ToyLM, places: str) -> None:
    torch.manual_seed(0)
    inputs, count = batch(lm), 4
    ids = torch.tensor([[*lm.tokenizer.encode(text), *[-100] * (12 - len(text))] for text in TEXTS])
    width = lm.dim if places == "embeds" else lm.prefix_geometry.token_dim
    soft = nn.Parameter(torch.randn(3, count, width))
    optimiser = torch.optim.Adam([soft], lr=0.05)
    seen = torch.ones(3, count, dtype=torch.bool)
    ignored = torch.full((3, count), -100)
    for _ in range(80):
        if places == "embeds":
            embeds = torch.cat([soft, inputs.embeds], 1)
            given = LMInputs(embeds, torch.cat([seen, inputs.mask], 1), torch.cat([ignored, ids], 1))
        else:
            prefix = KVPrefix.from_tokens(soft, seen, lm.prefix_geometry)
            given = LMInputs(inputs.embeds, inputs.mask, ids, prefix=prefix)
        assert given.labels is not None
        loss = causal_lm(lm(given, at=target_positions(given.labels)).logits, shifted_targets(given.labels))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.3
