"""The hand-written pass of a frozen Llama gives transformers' own losses and gradients, and leaves the modules be."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graftlm.data.tokenize import TokenBatch
from graftlm.errors import UnsupportedLMError
from graftlm.lm import llama_gradient
from graftlm.lm.base import KVPrefix, LMInputs, Memory
from graftlm.lm.cloze import cloze_places, target_loss
from graftlm.lm.compose import compose, prepend
from graftlm.lm.extended import ExtendedLM
from graftlm.lm.huggingface import HuggingFaceLM
from graftlm.losses import causal_lm
from graftlm.nn.attention import Geometry
from graftlm.nn.gated_cross_attention import GatedCrossAttention
from tests.parity.test_decode_parity import VOCAB, tokenizer

transformers = pytest.importorskip("transformers")
WIDTH = 64
LENGTHS = (3, 9, 1, 6)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def llama(*, bias: bool = False, kv_heads: int = 2) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=kv_heads, max_position_embeddings=64, eos_token_id=2, pad_token_id=1, attention_bias=bias,
        mlp_bias=bias, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.1 if parameter.dim() > 1 else 1.0))
    return model.eval().requires_grad_(False)


def leaves(dtype: torch.dtype = torch.float32, prefix: int = 2) -> list[Tensor]:
    """Embeddings and prefix tokens that want a gradient."""
    generator = torch.Generator().manual_seed(1)
    embeds = torch.randn(len(LENGTHS), max(LENGTHS), WIDTH, generator=generator)
    tokens = torch.randn(len(LENGTHS), prefix, 3 * 2 * 2 * 16, generator=generator)
    return [tensor.to(dtype).requires_grad_(True) for tensor in (embeds, tokens)]


def masks(lengths: tuple[int, ...], left: bool) -> tuple[Tensor, Tensor]:
    """The mask, and where logits are wanted: every place but the first that is no padding."""
    place = torch.arange(max(LENGTHS))
    size = torch.tensor(lengths)[:, None]
    mask = place >= max(LENGTHS) - size if left else place < size
    return mask, mask & (place > 1)


def plain(model: Any, embeds: Tensor, mask: Tensor, tokens: Tensor | None) -> Tensor:
    """Transformers' own logits, the prefix as a cache."""
    cache, full = None, mask
    if tokens is not None:
        cache = transformers.DynamicCache()
        split = tokens.view(*tokens.shape[:2], 3, 2, 2, 16)
        for layer in range(3):
            cache.update(split[:, :, layer, 0].transpose(1, 2), split[:, :, layer, 1].transpose(1, 2), layer)
        full = torch.cat([torch.ones(tokens.shape[:2], dtype=torch.bool), mask], dim=1)
    positions = (full.long().cumsum(dim=1) - 1).clamp(min=0)[:, full.shape[1] - mask.shape[1] :]
    found = model(
        inputs_embeds=embeds, attention_mask=full.long(), position_ids=positions, past_key_values=cache, use_cache=False
    )
    logits: Tensor = found.logits
    return logits


def quick(lm: HuggingFaceLM, embeds: Tensor, mask: Tensor, tokens: Tensor | None, at: Tensor | None) -> Tensor:
    """Our logits; fails where the quick pass is not taken."""
    prefix = None
    if tokens is not None:
        prefix = KVPrefix.from_tokens(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), lm.prefix_geometry)
    inputs = LMInputs(embeds, mask, prefix=prefix)
    assert lm._quick_weights(inputs) is not None
    return lm(inputs, at=at).logits


def difference(found: Tensor | None, wanted: Tensor | None) -> float:
    assert found is not None
    assert wanted is not None
    found, wanted = found.detach().float(), wanted.detach().float()
    return float((found - wanted).norm() / wanted.norm())


def compared(dtype: torch.dtype, *, bias: bool, with_prefix: bool, lengths: tuple[int, ...], left: bool) -> list[float]:
    """Relative differences of loss and gradients."""
    model = llama(bias=bias).to(dtype)
    lm = HuggingFaceLM.from_model(copy.deepcopy(model), tokenizer(), "tiny").requires_grad_(False)
    (mask, at), sides = masks(lengths, left), []
    targets = torch.arange(int(at.sum())) % VOCAB
    for is_quick in (True, False):
        embeds, tokens = leaves(dtype)
        given = tokens if with_prefix else None
        logits = quick(lm, embeds, mask, given, at) if is_quick else plain(model, embeds, mask, given)[at]
        loss = causal_lm(logits, targets)
        loss.backward()
        sides.append([loss.detach(), embeds.grad, *([tokens.grad] if with_prefix else [])])
    return [difference(found, wanted) for found, wanted in zip(*sides, strict=True)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("with_prefix", [False, True])
@pytest.mark.parametrize(("lengths", "left"), [(LENGTHS, False), (LENGTHS, True), ((9, 9, 9, 9), False)])
def test_loss_and_gradients_are_those_of_the_modules(
    bias: bool, with_prefix: bool, lengths: tuple[int, ...], left: bool
) -> None:
    errors = compared(torch.float32, bias=bias, with_prefix=with_prefix, lengths=lengths, left=left)
    assert max(errors) < 1e-5, errors


def test_bfloat16_gradients_are_as_near_to_the_exact_ones_as_those_of_the_modules() -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no bfloat16 kernels")
    model, (mask, at) = llama().to(torch.bfloat16), masks(LENGTHS, False)
    lm = HuggingFaceLM.from_model(copy.deepcopy(model), tokenizer(), "tiny").requires_grad_(False)
    exact = copy.deepcopy(model).float()
    targets, found = torch.arange(int(at.sum())) % VOCAB, {}
    for name, dtype in (("exact", torch.float32), ("plain", torch.bfloat16), ("quick", torch.bfloat16)):
        embeds, tokens = (leaf.detach().to(dtype).requires_grad_(True) for leaf in leaves(torch.bfloat16))
        logits = (
            quick(lm, embeds, mask, tokens, at)
            if name == "quick"
            else plain(exact if name == "exact" else model, embeds, mask, tokens)[at]
        )
        causal_lm(logits, targets).backward()
        found[name] = torch.cat([embeds.grad[mask].flatten(), tokens.grad.flatten()]).float()
    errors = {name: difference(found[name], found["exact"]) for name in ("plain", "quick")}
    assert errors["quick"] < 1.1 * errors["plain"] < 0.1, errors


@pytest.mark.parametrize("rows", [2, 1000])
@pytest.mark.parametrize("tokens", [0, 2])
@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_a_loss_without_all_logits_is_that_of_the_logits(
    rows: int, tokens: int, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = HuggingFaceLM.from_model(llama(), tokenizer(), "tiny").requires_grad_(False)
    lm = ExtendedLM(base, tokens, own_outputs=True) if tokens else base
    (mask, at), sides = masks(LENGTHS, False), []
    targets = torch.arange(int(at.sum())).flip(0) % (VOCAB + tokens)
    targets[1] = VOCAB + tokens - 1
    monkeypatch.setattr(llama_gradient, "_ROWS", rows)
    for in_chunks in (True, False):
        embeds, soft = leaves()
        prefix = KVPrefix.from_tokens(soft, torch.ones(soft.shape[:2], dtype=torch.bool), lm.prefix_geometry)
        inputs = LMInputs(embeds, mask, prefix=prefix)
        loss = lm.target_loss(inputs, at, targets) if in_chunks else causal_lm(lm(inputs, at=at).logits, targets)
        (loss * factor).backward()
        own = [parameter for parameter in lm.parameters() if parameter.grad is not None]
        sides.append([loss.detach(), embeds.grad, soft.grad, *(parameter.grad.clone() for parameter in own)])
        lm.zero_grad()
    assert len(sides[0]) == (3 if not tokens else 3 + 2 * tokens + 2)  # vectors and levels, and two without effect
    for found, wanted in zip(*sides, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        assert difference(lm.target_loss(inputs, at, targets), sides[0][0]) < 1e-6
        assert float(lm.target_loss(inputs, at & False, targets[:0])) == 0


def test_a_loss_holds_no_more_logits_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = HuggingFaceLM.from_model(llama(), tokenizer(), "tiny").requires_grad_(False)
    (mask, at), seen = masks(LENGTHS, False), []
    monkeypatch.setattr(llama_gradient, "_ROWS", 3)
    whole = llama_gradient.summed_cross_entropy
    monkeypatch.setattr(
        llama_gradient, "summed_cross_entropy", lambda *given: seen.append(len(given[0])) or whole(*given)
    )
    lm.target_loss(LMInputs(leaves()[0], mask), at, torch.zeros(int(at.sum()), dtype=torch.long)).backward()
    assert sum(seen) == int(at.sum()) > max(seen) == 3


def test_a_changed_weight_changes_the_gradient() -> None:
    model, (mask, at) = llama(), masks(LENGTHS, False)
    lm = HuggingFaceLM.from_model(model, tokenizer(), "tiny").requires_grad_(False)
    grads = []
    for _ in range(2):
        embeds, _ = leaves()
        quick(lm, embeds, mask, None, at).logsumexp(dim=-1).sum().backward()
        grads.append(embeds.grad)
        lm.model.model.layers[1].mlp.gate_proj.weight[0].mul_(2)
    assert difference(grads[1], grads[0]) > 1e-3


def test_a_prefix_alone_gets_its_gradient_when_the_embeddings_want_none() -> None:
    lm = HuggingFaceLM.from_model(llama(), tokenizer(), "tiny").requires_grad_(False)
    (mask, at), found = masks(LENGTHS, False), []
    for wants in (True, False):
        embeds, tokens = leaves()
        quick(lm, embeds.detach().requires_grad_(wants), mask, tokens, at).logsumexp(dim=-1).sum().backward()
        found.append(tokens.grad)
    assert difference(found[1], found[0]) < 1e-6


def test_all_logits_and_the_hidden_states_come_out_as_from_the_modules() -> None:
    model, (mask, _) = llama(), masks(LENGTHS, False)
    lm = HuggingFaceLM.from_model(copy.deepcopy(model), tokenizer(), "tiny").requires_grad_(False)
    embeds, tokens = (leaf.detach() for leaf in leaves())
    found, wanted = quick(lm, embeds, mask, tokens, None), plain(model, embeds, mask, tokens)
    assert difference(found[mask], wanted[mask]) < 1e-5
    output = lm(LMInputs(embeds, mask))
    states = model.model(inputs_embeds=embeds, attention_mask=mask.long()).last_hidden_state
    assert difference(output.hidden[mask], states[mask]) < 1e-5
    assert float(output.hidden[~mask].abs().sum()) == 0.0


@pytest.mark.parametrize("layers", [(1,), (0, 2), (2, -1), (3, 1, 1), (-4,)])
def test_inner_layers_and_their_gradients_are_those_of_the_modules(layers: tuple[int, ...]) -> None:
    model, (mask, at) = llama(), masks(LENGTHS, False)
    lm, sides = HuggingFaceLM.from_model(copy.deepcopy(model), tokenizer(), "tiny").requires_grad_(False), []
    prefixed = torch.ones(len(LENGTHS), 2, dtype=torch.bool)
    for is_quick in (True, False):
        embeds, tokens = leaves()
        inputs = LMInputs(embeds, mask, prefix=KVPrefix.from_tokens(tokens, prefixed, lm.prefix_geometry))
        assert lm._quick_weights(inputs) is not None
        if not is_quick:
            lm.model.model.layers[0].register_forward_hook(lambda *_: None)
            assert lm._quick_weights(inputs) is None
        output = lm(inputs, at=at & False, layers=layers)
        states = torch.stack([layer[mask] for layer in output.layers])
        assert torch.equal(output.hidden, output.layers[layers.index(max(layers, key=lambda layer: layer % 4))])
        weights = torch.linspace(-1, 1, states.numel()).view(states.shape)
        (states * weights).sum().backward()
        zero = torch.zeros_like(tokens)
        sides.append([states.detach(), embeds.grad, zero if tokens.grad is None else tokens.grad])
    errors = [float((found - wanted).norm() / (wanted.norm() + 1e-6)) for found, wanted in zip(*sides, strict=True)]
    assert max(errors) < 1e-5, errors


def test_what_is_above_the_deepest_wanted_layer_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, (mask, at) = HuggingFaceLM.from_model(llama(), tokenizer(), "tiny").requires_grad_(False), masks(LENGTHS, False)
    applied: list[Any] = []
    whole = llama_gradient._layer
    monkeypatch.setattr(llama_gradient, "_layer", lambda *given: applied.append(given) or whole(*given))
    inputs = LMInputs(leaves()[0].detach(), mask)
    for chosen, layers, count in ((at & False, (1,), 1), (at & False, (0, 2), 2), (at, (1,), 3), (at & False, (), 3)):
        applied.clear()
        lm(inputs, at=chosen, layers=layers)
        assert len(applied) == count


def test_the_pass_may_run_backward_twice_and_leaves_the_weights_as_they_were() -> None:
    lm, (mask, at) = HuggingFaceLM.from_model(llama(), tokenizer(), "tiny").requires_grad_(False), masks(LENGTHS, False)
    before = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
    embeds, tokens = leaves()
    loss = quick(lm, embeds, mask, tokens, at).logsumexp(dim=-1).sum()
    loss.backward(retain_graph=True)
    once = tokens.grad.clone()
    loss.backward()
    assert torch.equal(tokens.grad, 2 * once)
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.state_dict().items())


def test_a_second_derivative_is_refused_not_wrong() -> None:
    lm, (mask, at) = HuggingFaceLM.from_model(llama(), tokenizer(), "tiny").requires_grad_(False), masks(LENGTHS, False)
    embeds, _ = leaves()
    loss = quick(lm, embeds, mask, None, at).logsumexp(dim=-1).sum()
    with pytest.raises(UnsupportedLMError, match="second derivative"):
        torch.autograd.grad(loss, embeds, create_graph=True)


def test_the_loss_refuses_a_second_derivative_too() -> None:
    logits = torch.randn(3, 5, requires_grad=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(causal_lm(logits, torch.arange(3)), logits, create_graph=True)


def test_autocast_takes_the_plain_pass() -> None:
    lm, (mask, at) = HuggingFaceLM.from_model(llama(), tokenizer(), "tiny").requires_grad_(False), masks(LENGTHS, False)
    embeds, _ = leaves()
    with torch.autocast("cpu", torch.bfloat16):
        logits = lm(LMInputs(embeds, mask), at=at).logits
    assert logits.dtype == torch.bfloat16
    logits.float().sum().backward()
    assert embeds.grad is not None


def test_training_a_weight_a_hook_or_a_long_text_takes_the_plain_pass() -> None:
    lm, (mask, _) = HuggingFaceLM.from_model(llama(), tokenizer(), "tiny").requires_grad_(False), masks(LENGTHS, False)
    inputs = LMInputs(leaves()[0].detach(), mask)
    assert lm._quick_weights(inputs) is not None
    handle = lm.model.model.layers[0].register_forward_hook(lambda *_: None)
    assert lm._quick_weights(inputs) is None
    handle.remove()
    weight = lm.model.model.layers[1].mlp.up_proj.weight.requires_grad_(True)
    assert lm._quick_weights(inputs) is None
    lm(inputs).logits.sum().backward()
    assert weight.grad is not None
    weight.requires_grad_(False)
    long, many = torch.ones(1, 300, dtype=torch.bool), torch.ones(80, 250, dtype=torch.bool)
    assert not llama_gradient.is_short(LMInputs(torch.zeros(1, 300, WIDTH), long))
    assert not llama_gradient.is_short(LMInputs(torch.zeros(80, 250, WIDTH), many))
    assert llama_gradient.is_short(LMInputs(torch.zeros(8, 250, WIDTH), many[:8]))


@pytest.mark.parametrize("with_prefix", [False, True])
def test_shares_that_are_made_anew_for_the_backward_pass_change_no_bit(
    with_prefix: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, (mask, at) = HuggingFaceLM.from_model(llama(), tokenizer(), "tiny").requires_grad_(False), masks(LENGTHS, False)
    sides = []
    for kept in (llama_gradient.KEPT_SCORES, 0):
        monkeypatch.setattr(llama_gradient, "KEPT_SCORES", kept)
        embeds, tokens = leaves()
        quick(lm, embeds, mask, tokens if with_prefix else None, at).pow(2).sum().backward()
        sides.append([embeds.grad, *([tokens.grad] if with_prefix else [])])
    assert all(torch.equal(kept, made) for kept, made in zip(*sides, strict=True))


IDS = torch.tensor([[5, 6, 7, 8, 0], [5, 6, 7, 0, 0], [9, 6, 7, 8, 4], [5, 6, 9, 8, 4], [9, 6, 7, 8, 4]])
LABELS = torch.tensor([[-100] * 3 + [8, -100], [-100] * 2 + [7, -100, -100], *[[-100] * 4 + [4]] * 3])


def opened(lm: HuggingFaceLM, prompt: Tensor, as_prefix: bool) -> LMInputs:
    """Rows of which some begin alike, behind a prompt that is the same for all."""
    mask = torch.ones_like(IDS, dtype=torch.bool)
    mask[0, 4:] = mask[1, 3:] = False
    slots = torch.full_like(IDS, -1)
    none = torch.zeros(0, dtype=torch.long)
    batch = TokenBatch(IDS, LABELS, mask, slots, mask.long(), none, torch.zeros_like(mask), ())
    soft, used = prompt.expand(len(IDS), -1, -1), torch.ones(len(IDS), len(prompt), dtype=torch.bool)
    if as_prefix:
        return compose(lm, batch, prefix=KVPrefix.from_tokens(soft, used, lm.prefix_geometry))
    return prepend(compose(lm, batch), soft, used)


@pytest.mark.parametrize("as_prefix", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_rows_begin_with_in_common_is_computed_once_and_changes_nothing(
    dtype: torch.dtype, as_prefix: bool
) -> None:
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no bfloat16 kernels")
    lm = HuggingFaceLM.from_model(llama().to(dtype), tokenizer(), "tiny").requires_grad_(False)
    width, sides, counts = (lm.prefix_geometry.token_dim if as_prefix else WIDTH), [], []
    for shares in (True, False):
        prompt = torch.randn(3, width, generator=torch.Generator().manual_seed(6)).requires_grad_()
        inputs = opened(lm, prompt, as_prefix)
        inputs = inputs if shares else replace(inputs, owners=None)
        weights = lm._quick_weights(inputs)
        assert weights is not None
        counts.append(len(llama_gradient._places(weights, inputs).cos))
        loss = target_loss(lm, inputs)
        loss.backward()
        assert inputs.labels is not None
        at = cloze_places(lm, inputs.labels)
        cut, cut_at = inputs.up_to(at)
        hidden = lm(inputs).hidden
        sides.append([loss.detach(), prompt.grad, lm(cut, at=cut_at).logits, lm(inputs).logits[inputs.mask], hidden])
    before = 0 if as_prefix else 3
    assert counts == [before + 12, 5 * before + 22]  # words: 4 + 0 + 5 + 3 + 0 of 4 + 3 + 5 + 5 + 5
    errors = [difference(found, wanted) for found, wanted in zip(*sides, strict=True)]
    assert max(errors) < (1e-5 if dtype == torch.float32 else 2e-2), errors


def test_rows_of_another_prompt_each_share_nothing() -> None:
    lm = HuggingFaceLM.from_model(llama(), tokenizer(), "tiny").requires_grad_(False)
    shared = opened(lm, torch.zeros(3, WIDTH), False)
    assert shared.owners is not None
    assert shared.owners[:, :3].eq(0).all()
    words = LMInputs(shared.embeds[:, 3:], shared.mask[:, 3:], owners=shared.owners[:, 3:])
    own = torch.randn(5, 3, WIDTH)
    assert prepend(words, own, torch.ones(5, 3, dtype=torch.bool)).owners is None
    wrong = replace(prepend(words, own, torch.ones(5, 3, dtype=torch.bool)), owners=shared.owners)
    right = replace(wrong, owners=None)
    assert difference(lm(wrong).hidden, lm(right).hidden) > 0.1  # so that the test above can fail


def blocks_over(lm: HuggingFaceLM) -> nn.ModuleDict:
    """Open blocks before the first and the last layer."""
    torch.manual_seed(2)
    geometry = Geometry(heads=2, head_dim=8, dense_dim=24)
    made = nn.ModuleDict({str(layer): GatedCrossAttention(WIDTH, 12, geometry) for layer in (0, 2)})
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    lm.attach_cross_attention({int(layer): block for layer, block in made.items()})
    return made


@pytest.mark.parametrize("wants", [True, False])
@pytest.mark.parametrize("with_prefix", [False, True])
def test_blocks_between_the_layers_learn_as_behind_hooks(with_prefix: bool, wants: bool) -> None:
    lm, (mask, at) = HuggingFaceLM.from_model(llama(), tokenizer(), "tiny").requires_grad_(False), masks(LENGTHS, False)
    made, sides = blocks_over(lm), []
    readable = torch.rand(*mask.shape, 5, generator=torch.Generator().manual_seed(3)) > 0.5
    for is_quick in (True, False):
        embeds, tokens = leaves()
        embeds.requires_grad_(wants)
        states = torch.randn(len(LENGTHS), 5, 12, generator=torch.Generator().manual_seed(4)).requires_grad_()
        prefix = None
        if with_prefix:
            prefix = KVPrefix.from_tokens(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), lm.prefix_geometry)
        inputs = LMInputs(embeds, mask, memory=Memory(states, readable), prefix=prefix)
        handle = lm.model.model.register_forward_hook(lambda *_: None) if not is_quick else None
        assert (lm._quick_weights(inputs) is not None) == is_quick
        made.zero_grad()
        loss = causal_lm(lm(inputs, at=at).logits, torch.arange(int(at.sum())) % VOCAB)
        loss.backward()
        if handle is not None:
            handle.remove()
        asked = [states, *made.parameters(), *([embeds] if wants else []), *([tokens] if with_prefix else [])]
        sides.append([loss.detach(), *(tensor.grad.clone() for tensor in asked)])
    errors = [difference(found, wanted) for found, wanted in zip(*sides, strict=True)]
    assert max(errors) < 1e-5, errors


@torch.no_grad()
def test_blocks_that_nothing_is_given_to_read_are_passed_by() -> None:
    lm, (mask, _) = HuggingFaceLM.from_model(llama(), tokenizer(), "tiny").requires_grad_(False), masks(LENGTHS, False)
    inputs = LMInputs(leaves()[0].detach(), mask)
    plain = lm(inputs).logits
    blocks_over(lm)
    assert torch.equal(lm(inputs).logits, plain)
    read = replace(inputs, memory=Memory(torch.ones(4, 1, 12), torch.ones(*mask.shape, 1, dtype=torch.bool)))
    assert difference(lm(read).logits[mask], plain[mask]) > 1e-2
