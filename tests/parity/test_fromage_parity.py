"""FROMAGe's losses, gradients and decoding against a plain computation over one large embedding matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from graftlm.data.sentence import Image, Sentence, Text
from graftlm.encoders.toy import ToyEncoder
from graftlm.lm.closing import Layers, read_closing
from graftlm.lm.huggingface import HuggingFaceLM
from graftlm.systems.base import Parts
from graftlm.systems.fromage import FROMAGe, FROMAGeConfig
from tests.language_models import tiny_model, tiny_tokenizer
from tests.pictures import picture

WORDS = ["a red dog", "two cats", "a red dog runs", "sea"]
PHOTOS = [0, 1, 0, 2]
TIED, UNTIED = "llama", "gpt_neox"


def build(family: str, **fields: Any) -> FROMAGe:
    config = FROMAGeConfig(precision="float32", shared_dim=8, num_tokens=2, concat_probability=0, **fields)
    torch.manual_seed(1)
    lm = HuggingFaceLM.from_model(tiny_model(family), tiny_tokenizer())
    system = FROMAGe.build(config, Parts(lm, {"image": ToyEncoder()})).train()
    with torch.no_grad():
        for _, parameter in system.trainable():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return system


def sentences() -> list[Sentence]:
    pairs = zip(PHOTOS, WORDS, strict=True)
    return [Sentence.of(Image(picture(photo)), Text(words, target=True)) for photo, words in pairs]


class Plain:
    """One matrix with a row for every token, no cache, no mask (one row at a time), no shared code."""

    def __init__(self, system: FROMAGe, family: str) -> None:
        self.model = tiny_model(family)
        self.system = system
        tokens = system.lm.tokens
        own_in = torch.stack(list(tokens.input_vectors)).detach()
        self.inputs = torch.cat([self.model.get_input_embeddings().weight.detach(), own_in]).requires_grad_()
        self.outputs = self.inputs
        if tokens.output_vectors is not None:
            own_out = torch.stack(list(tokens.output_vectors)).detach()
            self.outputs = torch.cat([self.model.get_output_embeddings().weight.detach(), own_out]).requires_grad_()
        self.weights = {name: value.detach().clone().requires_grad_() for name, value in system.trainable()}
        self.first = system.lm.extra_ids[0]

    def states(self, embeds: Tensor) -> Sequence[Tensor]:
        found = self.model.base_model(inputs_embeds=embeds[None], output_hidden_states=True, use_cache=False)
        return [state[0] for state in found.hidden_states]

    def logits(self, states: Tensor) -> Tensor:
        if self.system.config.ret_tokens == 1:
            return states @ self.outputs.T
        even = (states - self.weights["lm.tokens.even.shift"]) * self.weights["lm.tokens.even.scale"]
        levels = torch.stack([self.weights[f"lm.tokens.levels.{n}"] for n in range(self.system.config.ret_tokens)])
        own = even @ self.outputs[self.first :].T + 8 * levels
        return torch.cat([states @ self.outputs[: self.first].T, own], dim=1)

    def ids(self, words: str) -> Tensor:
        return torch.tensor(tiny_tokenizer()(words, add_special_tokens=False)["input_ids"])

    def caption(self) -> Tensor:
        losses = []
        for photo, words in zip(PHOTOS, WORDS, strict=True):
            pooled = ToyEncoder().encode([Image(picture(photo))]).pooled[0]
            soft = self.weights["connector.projection.weight"] @ pooled + self.weights["connector.projection.bias"]
            ids = torch.cat([torch.tensor([1]), self.ids(words), torch.tensor([2])])
            embeds = torch.cat([soft.view(2, -1), self.inputs[ids]])
            logits = self.logits(self.states(embeds)[-1])
            losses.append(F.cross_entropy(logits[2:-1], ids[1:], reduction="none"))
        return torch.cat(losses).mean()

    def retrieval(self) -> dict[str, Tensor]:
        layers, r = self.system.config.text_layers, self.system.config.ret_tokens
        queries, words_losses = [], []
        for words in WORDS:
            ids = torch.cat([torch.tensor([1]), self.ids(words), torch.arange(self.first, self.first + r)])
            states = self.states(self.inputs[ids])
            logits = self.logits(states[-1])
            words_losses.append(
                F.cross_entropy(logits[:-r][: len(ids) - r], ids[1 : len(ids) - r + 1], reduction="none")
            )
            read = torch.cat([states[layer][place] for place in range(-r, 0) for layer in layers])
            queries.append(self.weights["text_head.project.weight"] @ read + self.weights["text_head.project.bias"])
        pooled = ToyEncoder().encode([Image(picture(photo)) for photo in PHOTOS]).pooled
        seen = pooled @ self.weights["image_head.project.weight"].T + self.weights["image_head.project.bias"]
        text, seen = F.normalize(torch.stack(queries), dim=1), F.normalize(seen, dim=1)
        scores = text @ seen.T * self.weights["log_scale"].exp()
        t2i, i2t = [], []
        for own in range(4):
            others = [other for other in range(4) if other == own or PHOTOS[other] != PHOTOS[own]]
            t2i.append(scores[own, others].logsumexp(0) - scores[own, own])
            i2t.append(scores[others, own].logsumexp(0) - scores[own, own])
        return {
            "text": torch.cat(words_losses).mean(),
            "text_to_image": torch.stack(t2i).mean(),
            "image_to_text": torch.stack(i2t).mean(),
        }

    def gradients(self) -> dict[str, Tensor]:
        found = {name: value.grad for name, value in self.weights.items() if value.grad is not None}
        assert self.inputs.grad is not None
        assert self.outputs.grad is not None
        for number in range(self.system.config.ret_tokens):
            found[f"lm.tokens.input_vectors.{number}"] = self.inputs.grad[self.first + number]
            if self.outputs is not self.inputs:
                found[f"lm.tokens.output_vectors.{number}"] = self.outputs.grad[self.first + number]
        return found


CASES = [
    (TIED, {}),
    (UNTIED, {}),
    (TIED, {"ret_tokens": 2, "text_layers": (1, -1)}),
    (UNTIED, {"ret_tokens": 2, "compat": ("free_norm",)}),
]


@pytest.mark.parametrize(("family", "fields"), CASES)
def test_losses_and_gradients_equal_the_plain_computation(family: str, fields: dict[str, Any]) -> None:
    system = build(family, **fields)
    assert system.lm.tokens.is_tied == (family == TIED and "ret_tokens" not in fields)
    plain = Plain(system, family)
    wanted = {"caption": plain.caption(), **plain.retrieval()}
    found = system.losses(sentences())
    for name, loss in wanted.items():
        torch.testing.assert_close(found[name], loss, atol=1e-5, rtol=1e-5, msg=name)
    torch.stack(list(wanted.values())).sum().backward()
    torch.stack(list(found.values())).sum().backward()
    gradients = plain.gradients()
    for name, parameter in system.trainable():
        assert parameter.grad is not None
        if ".even." in name:  # statistics
            assert not parameter.grad.any()
            continue
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    "name", ["lm.tokens.input_vectors.0", "text_head.project.weight", "connector.projection.weight"]
)
def test_a_changed_weight_changes_the_losses(name: str) -> None:
    system = build(TIED)
    before = torch.stack(list(system.losses(sentences()).values()))
    with torch.no_grad():
        dict(system.trainable())[name].mul_(1.05)
    after = torch.stack(list(system.losses(sentences()).values()))
    assert (after - before).abs().max() > 1e-4


@pytest.mark.parametrize("family", [TIED, UNTIED])
def test_a_query_read_in_two_steps_equals_one_full_pass(family: str) -> None:
    system = build(family, ret_tokens=2)
    batch = system.tokens([Sentence.of(Text(words, target=True), Image.sought()) for words in WORDS])
    steps = read_closing(system.lm, batch, system._read(batch), 2, Layers((-1, 1), (1, -1)))
    output = system.lm(system._read(batch), layers=(-1, 1))
    whole = torch.stack([layer[batch.retrieval] for layer in output.layers], dim=1).view(4, 4, -1)
    torch.testing.assert_close(steps.states, whole, atol=1e-5, rtol=1e-5)
    words = batch.mask & ~batch.retrieval
    inner = torch.stack([output.layers[1], output.hidden], dim=2)
    torch.testing.assert_close(steps.words, inner[words], atol=1e-5, rtol=1e-5)
    assert torch.equal(steps.owners, words.nonzero()[:, 0])
    assert (steps.states[:, 0] - steps.states[:, 2]).abs().max() > 1e-2


def test_a_fraction_of_the_rows_is_scored_as_these_rows_alone() -> None:
    system = build(TIED)
    queries = [Sentence.of(Text(words, target=True), Image.sought()) for words in WORDS]
    batch, own = system.tokens(queries), system.tokens(queries[::2])
    half = read_closing(system.lm, batch, system._read(batch), 1, Layers(), scored=0.5)
    alone = read_closing(system.lm, own, system._read(own), 1, Layers())
    torch.testing.assert_close(half.loss, alone.loss, atol=1e-5, rtol=1e-5)
    assert half.states.shape == (4, 1, system.lm.dim)


@pytest.mark.parametrize("family", [TIED, UNTIED])
@pytest.mark.parametrize("scored", [0.0, 0.25, 0.5])
def test_rows_that_are_not_scored_go_no_higher_than_what_is_read_and_read_the_same(family: str, scored: float) -> None:
    system = build(family, ret_tokens=2)
    batch = system.tokens([Sentence.of(Text(words, target=True), Image.sought()) for words in WORDS])
    layers = Layers((1,), (0, 1))
    some = read_closing(system.lm, batch, system._read(batch), 2, layers, scored=scored)
    every = read_closing(system.lm, batch, system._read(batch), 2, layers)
    torch.testing.assert_close(some.states, every.states, atol=1e-5, rtol=1e-5)
    order = some.owners.argsort(stable=True)
    torch.testing.assert_close(some.words[order], every.words, atol=1e-5, rtol=1e-5)
    assert torch.equal(some.owners[order], every.owners)
    assert (float(some.loss.detach()) == 0) == (scored == 0)


@pytest.mark.parametrize("family", [TIED, UNTIED])
def test_greedy_decoding_with_a_bias_equals_a_loop_over_full_passes(family: str) -> None:
    from graftlm.lm.decode import Decoding, TokenBias, decode

    system = build(family).eval()
    plain = Plain(system, family)
    for bias in (0.0, 2.0, 6.0):
        prompts = [Sentence.of(Image(picture(seed)), "a") for seed in range(6)]
        found = decode(
            system.lm, system.inputs(prompts), Decoding(max_tokens=8, biases=(TokenBias(plain.first, bias),))
        )
        for prompt, (best, *_) in zip(prompts, found, strict=True):
            embeds, written = system.inputs([prompt]).embeds[0], []
            with torch.no_grad():
                while len(written) < 8 and 2 not in written:
                    logits = plain.states(torch.cat([embeds, plain.inputs[written]]))[-1][-1] @ plain.outputs.T
                    logits[plain.first] += bias
                    written.append(int(logits.argmax()))
            assert list(best.ids) == written
