"""Prompts that begin alike: the beginning computed once, the answers those of the whole prompts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from graftlm import backbones
from graftlm.data.sentence import Image, Sentence, Text
from graftlm.encoders.toy import ToyEncoder
from graftlm.errors import ShapeError, UsageError
from graftlm.lm.base import LMInputs
from graftlm.lm.decode import Decoding
from graftlm.lm.huggingface import HuggingFaceLM
from graftlm.lm.opening import Opening
from graftlm.lm.toy import ToyLM
from graftlm.systems.base import Parts, System, system_class
from tests.language_models import FAMILIES, tiny_model, tiny_tokenizer
from tests.pictures import picture
from tests.threads import wrong_answers

SYSTEMS: dict[str, dict[str, Any]] = {
    "flamingo": {"num_latents": 3, "depth": 1, "heads": 4, "every": 1},
    "flamingo, all pictures": {"num_latents": 3, "depth": 1, "heads": 4, "every": 1, "attends": "all"},
    "frozen": {},
    "fromage": {"num_tokens": 2},
    "clipcap": {"num_tokens": 2},
    "clipcap, prefix": {"num_tokens": 2, "inject": "prefix"},
}
SHOTS = [Image(picture(seed)) for seed in range(3)]
GREEDY = Decoding(max_tokens=10)


def build(name: str, parts: Parts | None = None) -> System:
    torch.manual_seed(0)
    cls = system_class(name.partition(",")[0])
    config = cls.Config.model_validate({"lm": "toy", "encoder": "toy", "precision": "float32", **SYSTEMS[name]})
    system = cls.build(config, parts or backbones.load_parts(config))
    with torch.no_grad():
        for key, parameter in system.trainable():
            if key.endswith("_gate"):
                parameter.fill_(0.8)
    return system.eval()


def shots() -> Sentence:
    return Sentence(tuple(part for shot in SHOTS for part in (shot, Text(" seen: a thing."))))


def queries() -> list[Sentence]:
    asked = [Sentence.of(Image(picture(seed)), " seen: ", Text("no", target=True)) for seed in (5, 6)]
    return [*asked, Sentence.of(" and now"), Sentence.of(Image(picture(7)), " what is", Image(picture(8)), " it?")]


@pytest.mark.parametrize("name", list(SYSTEMS))
@torch.no_grad()
def test_rows_behind_an_opening_have_the_logits_of_whole_rows(name: str) -> None:
    system = build(name)
    opening = system.opening(shots())
    whole = system.inputs([shots() + query.prompt() for query in queries()])
    rest = opening.skip(whole)
    start = whole.mask.shape[1] - rest.mask.shape[1]
    assert start == (0 if "prefix" in name else opening.inputs.mask.shape[1])
    wanted = system.lm(whole).logits[:, start:][rest.mask]
    torch.testing.assert_close(system.lm(rest).logits[rest.mask], wanted, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        broken = replace(opening, kept=replace(opening.kept, values=opening.kept.values * 1.5))
    if start:
        assert not torch.allclose(system.lm(broken.skip(whole)).logits[rest.mask], wanted, atol=1e-2)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", list(SYSTEMS))
def test_every_system_answers_behind_an_opening_as_to_whole_prompts(name: str, beams: int) -> None:
    system = build(name)
    decoding = Decoding(max_tokens=10, num_beams=beams)
    wanted = system.respond([shots() + query for query in queries()], decoding)
    assert system.respond_after(system.opening(shots()), queries(), decoding) == wanted
    assert len({answer.text() for answer in wanted}) > 1


@pytest.mark.parametrize("family", list(FAMILIES))
@torch.no_grad()
def test_every_family_continues_an_opening_with_new_pictures(family: str) -> None:
    lm = HuggingFaceLM.from_model(tiny_model(family), tiny_tokenizer()).requires_grad_(False)
    system = build("flamingo", Parts(lm, {"image": ToyEncoder()}))
    opening = system.opening(shots())
    whole = system.inputs([shots() + query.prompt() for query in queries()])
    rest = opening.skip(whole)
    start = opening.inputs.mask.shape[1]
    wanted = system.lm(whole).logits[:, start:][rest.mask]
    torch.testing.assert_close(system.lm(rest).logits[rest.mask], wanted, atol=2e-5, rtol=1e-4)
    # A sliding window counts places, and padding behind an opening is such: there, rows are asked one by one.
    windowed = family in ("mistral", "gemma2")
    for batch in [[query] for query in queries()] if windowed else [queries()]:
        whole = system.respond([shots() + query for query in batch], GREEDY)
        assert system.respond_after(opening, batch, GREEDY) == whole


def test_likelihoods_behind_an_opening_are_those_of_whole_prompts() -> None:
    system, query = build("flamingo"), queries()[0]
    words = ("dax", "a blicket")
    wanted, counts = system.log_likelihoods(shots() + query, words)
    found, again = system.log_likelihoods(query, words, opening=system.opening(shots()))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert counts.tolist() == again.tolist()


def test_only_the_memory_that_is_still_read_goes_on() -> None:
    # The last example's picture is read by the token that closes its words, which comes with the query's picture.
    for name, items in (("flamingo", 2), ("flamingo, all pictures", 4)):
        system = build(name)
        rest = system.opening(shots()).skip(system.inputs([shots() + queries()[0].prompt()]))
        assert rest.memory is not None
        assert rest.memory.states.shape[1] == items * 3


def test_one_opening_serves_many_batches_and_threads() -> None:
    system = build("flamingo")
    opening = system.opening(shots())
    expected = [system.respond_after(opening, [query], GREEDY) for query in queries()]
    assert wrong_answers(lambda index: system.respond_after(opening, [queries()[index]], GREEDY), expected, 40) == []


def test_a_row_that_begins_otherwise_shares_only_what_it_has_in_common() -> None:
    lm = ToyLM()
    ids = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 9, 4, 5]])
    inputs = LMInputs(lm.embed(ids), torch.ones_like(ids, dtype=torch.bool))
    opening = Opening.of(lm, LMInputs(inputs.embeds[:1, :4], inputs.mask[:1, :4]), Sentence())
    rest = opening.skip(inputs)
    assert rest.mask.shape == (2, 3)
    torch.testing.assert_close(lm(rest).logits, lm(inputs).logits[:, 2:], atol=1e-5, rtol=1e-5)
    short = opening.skip(LMInputs(inputs.embeds[:1, :3], inputs.mask[:1, :3]))
    assert short.mask.shape == (1, 1)  # one position is left to be continued


def test_an_opening_is_one_row() -> None:
    lm = ToyLM()
    ids = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(ShapeError, match="expected one row without padding, found 2"):
        Opening.of(lm, LMInputs(lm.embed(ids), ids > 0), Sentence())


def test_a_system_without_a_language_model_opens_nothing() -> None:
    cls = system_class("dual_encoder")
    config = cls.Config.model_validate({"encoder": "toy", "text_encoder": "toy-text"})
    with pytest.raises(UsageError, match="expected a system with a language model"):
        cls.build(config, backbones.load_parts(config)).opening(Sentence.of("a"))
