"""Flamingo: what stands where, who reads which picture, how an answer ends, and what a log shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graftlm import backbones
from graftlm.data.sentence import Image, Sentence, Text, Video
from graftlm.encoders.toy import ToyEncoder
from graftlm.errors import ConfigError
from graftlm.lm.base import Memory
from graftlm.lm.continuation import Continuation
from graftlm.lm.decode import Decoding
from graftlm.lm.toy import ToyLM
from graftlm.nn.gated_cross_attention import GatedCrossAttention
from graftlm.systems.base import Parts
from graftlm.systems.flamingo import Flamingo, FlamingoConfig
from graftlm.train.log import read_metrics
from graftlm.train.setup import complete_recipe
from graftlm.train.trainer import train
from tests.pictures import picture

SMALL = {"lm": "toy", "encoder": "toy", "precision": "float32", "num_latents": 3, "depth": 1, "heads": 4, "every": 1}
WORDS = ("a red dog", "two blue cats", "the green sea")


def build(lm: ToyLM | None = None, *, gate_value: float = 0.8, **fields: Any) -> Flamingo:
    torch.manual_seed(0)
    config = FlamingoConfig.model_validate({**SMALL, **fields})
    parts = backbones.load_parts(config)
    system = Flamingo.build(config, Parts(lm or parts.lm, parts.encoders))
    with torch.no_grad():
        for key, parameter in system.trainable():
            if key.endswith("_gate"):
                parameter.fill_(gate_value)
    return system.eval()


def document(*seeds: int) -> Sentence:
    return Sentence(
        tuple(
            part
            for seed, words in zip(seeds, WORDS, strict=True)
            for part in (Image(picture(seed)), Text(words, target=True))
        )
    )


def logits_of(system: Flamingo, sentence: Sentence) -> Tensor:
    with torch.no_grad():
        return system.lm(system.inputs([sentence])).logits[0]


def chunk_of(system: Flamingo, number: int) -> Tensor:
    """Where the words of picture `number` (from 1) stand in `document`: (L,) bool."""
    return system.tokens([document(0, 1, 2)]).seen[0] == number


def deaf(lm: ToyLM) -> ToyLM:
    """A language model whose positions do not hear each other: its own attention writes nothing."""
    for layer in lm.layers:
        nn.init.zeros_(layer.out.weight)
    return lm.requires_grad_(False)


@pytest.mark.parametrize("attends", ["latest", "all"])
@pytest.mark.parametrize("changed", [0, 1, 2])
def test_another_picture_changes_no_logit_before_it(attends: str, changed: int) -> None:
    system = build(attends=attends)
    seeds = [0, 1, 2]
    before = logits_of(system, document(*seeds))
    seeds[changed] = 9
    moved = (logits_of(system, document(*seeds)) - before).abs().amax(-1)
    reads = system.tokens([document(0, 1, 2)]).seen[0] > changed
    assert not moved[~reads].any()
    assert (moved[reads] > 1e-4).all()


def test_in_one_block_another_picture_changes_its_own_chunk_alone() -> None:
    for attends, reached in (("latest", (2,)), ("all", (2, 3))):
        system = build(deaf(ToyLM()), every=2, attends=attends)
        assert list(system.lm.blocks) == [0]
        moved = (logits_of(system, document(0, 9, 2)) - logits_of(system, document(0, 1, 2))).abs().amax(-1)
        own = torch.stack([chunk_of(system, number) for number in reached]).any(0)
        assert not moved[~own].any()
        assert (moved[own] > 1e-4).all()


def test_what_a_block_gives_to_a_layer_changes_in_the_own_chunk_alone() -> None:
    system = build(every=2)
    (block,) = system.lm.blocks.values()
    one, two = (system.inputs([document(0, seed, 2)]) for seed in (1, 9))
    moved = (block(one.embeds, two.memory) - block(one.embeds, one.memory)).abs().amax(-1)[0]
    assert torch.equal(moved > 1e-5, chunk_of(system, 2))


def test_every_target_text_of_a_document_is_learnt_with_its_end() -> None:
    system = build()
    image, end = system.lm.extra_ids
    batch = system.tokens([document(0, 1, 2)])
    labels = batch.labels[0][batch.labels[0] >= 0].tolist()
    ends = [token for words in WORDS for token in (*words.encode(), end)]
    assert labels == [*ends, system.lm.tokenizer.eos_id]
    assert (batch.ids == image).sum() == 3


def test_without_a_token_of_its_own_a_chunk_ends_with_eos() -> None:
    system = build(chunk_end=False)
    assert len(system.lm.extra_ids) == 1
    batch = system.tokens([document(0, 1, 2)])
    assert (batch.ids == system.lm.tokenizer.eos_id).sum() == 3
    assert system.decoding(Decoding()).end_ids == ()


def test_an_answer_ends_with_its_chunk_and_never_shows_a_marker() -> None:
    system = build()
    image, end = system.lm.extra_ids
    prompt = [document(0, 1, 2).prompt()]
    free = system.respond(prompt, Decoding(max_tokens=12))[0].text()
    with torch.no_grad():
        found = system.lm(system.inputs(prompt))
        system.lm.tokens.output_vectors[image - system.lm.base.vocab_size].copy_(found.hidden[0, -1] * 100)
    assert system.respond(prompt, Decoding(max_tokens=12))[0].text() == free
    with torch.no_grad():
        system.lm.tokens.output_vectors[end - system.lm.base.vocab_size].copy_(found.hidden[0, -1] * 100)
    assert system.respond(prompt, Decoding(max_tokens=12))[0].text() == ""


def test_words_go_with_the_next_picture_in_training_alone_and_as_often_as_asked() -> None:
    batch = [document(0, 1, 2)] * 2
    plain = build(placement_probability=0.0).train().losses(batch)["caption"]
    always, half = build(placement_probability=1.0), build(placement_probability=0.5)
    torch.testing.assert_close(always.eval().losses(batch)["caption"], plain)
    moved = always.train().losses(batch)["caption"]
    assert (moved - plain).abs() > 1e-4
    torch.manual_seed(0)
    found = {round(half.train().losses(batch[:1])["caption"].item(), 5) for _ in range(20)}
    assert found == {round(plain.item(), 5), round(moved.item(), 5)}


def test_a_single_picture_keeps_its_words_whatever_the_probability() -> None:
    pairs = [Sentence.of(Image(picture(seed)), Text("a dog", target=True)) for seed in (0, 1)]
    plain = build(placement_probability=0.0).train().losses(pairs)["caption"]
    torch.testing.assert_close(build(placement_probability=1.0).train().losses(pairs)["caption"], plain)


def test_blocks_make_their_keys_and_values_once_an_answer() -> None:
    system = build()
    calls: list[int] = []
    for layer, block in system.lm.blocks.items():
        assert isinstance(block, GatedCrossAttention)
        block.attention.to_keys.register_forward_hook(lambda *_, layer=layer: calls.append(layer))
    system.respond([document(0, 1, 2).prompt()], Decoding(max_tokens=9, min_tokens=9))
    assert sorted(calls) == [0, 1]


def test_words_are_decoded_one_by_one_as_in_one_pass() -> None:
    system = build()
    whole = system.inputs([document(0, 1, 2), document(3, 4, 5)])
    assert whole.memory is not None
    start = int((system.tokens([document(0, 1, 2)]).seen[0] == 3).nonzero()[0, 0]) + 1
    head = replace(whole, embeds=whole.embeds[:, :start], mask=whole.mask[:, :start], labels=None)
    head = replace(head, memory=Memory(whole.memory.states, whole.memory.mask[:, :start]))
    with torch.no_grad():
        wanted = system.lm(whole).logits
        running = Continuation(system.lm, head, 40)
        torch.testing.assert_close(running.logits, wanted[:, start - 1], atol=1e-5, rtol=1e-4)
        for place in range(start, whole.mask.shape[1]):
            running.extend(whole.embeds[:, place : place + 1], whole.mask[:, place : place + 1])
            torch.testing.assert_close(running.logits, wanted[:, place], atol=1e-5, rtol=1e-4)


def test_the_same_picture_is_resampled_once_a_batch() -> None:
    system, seen = build(), []
    system.connector.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    shot, other = Image(picture(0)), Image(picture(1))
    system.inputs([Sentence.of(shot, "a", shot, "b", other), Sentence.of(other, "c")])
    assert seen == [2]


def test_films_and_pictures_stand_in_one_sentence(tmp_path: Path) -> None:
    torch.manual_seed(0)
    films = {"forth": [1, 2, 3], "back": [3, 2, 1]}
    for name, frames in films.items():
        (tmp_path / name).mkdir()
        for place, seed in enumerate(frames):
            picture(seed).save(tmp_path / name / f"{place}.png")
    parts = Parts(ToyLM().requires_grad_(False), {"image": ToyEncoder()})
    system = Flamingo.build(FlamingoConfig.model_validate(SMALL), parts).eval()
    with torch.no_grad():
        for block in system.lm.blocks.values():
            block.attention_gate.fill_(0.8)
    sentences = [Sentence.of(Image(picture(0)), "a", Video(str(tmp_path / name)), "b") for name in films]
    found = [logits_of(system, sentence) for sentence in sentences]
    moved = (found[0] - found[1]).abs().amax(-1)  # the same frames in another order
    assert torch.equal(moved > 1e-5, system.tokens(sentences[:1]).seen[0] == 2)


@pytest.mark.parametrize(
    ("fields", "layers"),
    [
        ({"every": 1}, [0, 1, 2, 3, 4]),
        ({"every": 2}, [0, 2, 4]),
        ({"every": 2, "variant": "open_flamingo"}, [1, 3]),
        ({"every": 3, "variant": "open_flamingo"}, [2]),
        ({"every": 3, "offset": 1}, [1, 4]),
        ({"every": 2, "variant": "open_flamingo", "offset": 0}, [0, 2, 4]),
        ({"every": 4, "variant": "idefics"}, [0, 4]),
    ],
)
def test_blocks_stand_before_every_nth_layer_from_the_offset_on(fields: dict[str, Any], layers: list[int]) -> None:
    assert list(build(ToyLM(num_layers=5).requires_grad_(False), **fields).lm.blocks) == layers


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"every": 9, "offset": 5}, r"system\.every: .* one of the 2 layers .* before layer 5"),
        ({"heads": 7}, r"system\.heads: 7 heads do not divide a width of 16"),
        ({"heads": 16, "width": 24}, r"16 heads do not divide a width of 24"),
    ],
)
def test_a_choice_that_does_not_fit_is_refused_in_a_sentence(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**fields)


def test_one_width_narrows_everything_inside_the_graft() -> None:
    system = build(width=8, variant="open_flamingo")
    block = system.lm.blocks[0]
    assert isinstance(block, GatedCrossAttention)
    assert block.dense.up.weight.shape == (8, system.lm.dim)
    assert block.attention.to_keys.weight.shape == (8, 8)
    assert system.connector.resampler.latents.shape == (3, 8)
    assert system.connector.resampler.layers[0].dense.up.weight.shape == (32, 8)


@pytest.mark.parametrize("gate", ["scalar", "vector", "open"])
def test_a_fresh_graft_says_what_the_language_model_said_whichever_way_it_begins(gate: str) -> None:
    torch.manual_seed(0)
    config = FlamingoConfig.model_validate({**SMALL, "gate": gate})
    system = Flamingo.build(config, backbones.load_parts(config)).eval()
    inputs = system.inputs([document(0, 1, 2)])
    with torch.no_grad():
        assert torch.equal(system.lm(inputs).logits, system.lm(replace(inputs, memory=None)).logits)
    start = 0.7616 if gate == "open" else 0.0
    assert list(system.figures().values()) == pytest.approx([start] * 2 * len(system.lm.blocks), abs=1e-4)


def test_only_the_graft_is_saved_and_gates_are_vectors_that_do_not_decay() -> None:
    names = dict(build().trainable())
    roots = {name.partition(".")[0] for name in names}
    assert roots == {"connector", "blocks", "lm"}
    assert all(name.startswith("lm.tokens.") for name in names if name.startswith("lm."))
    assert all(parameter.dim() == 1 for name, parameter in names.items() if name.endswith("_gate"))


def test_how_far_the_gates_are_open_is_in_the_log_of_a_run(tmp_path: Path) -> None:
    scenes = {"reader": "scenes", "split": "train", "limit": 8}
    recipe = complete_recipe(
        {
            "system": {"name": "flamingo", **SMALL, "every": 2},
            "data": {"train": scenes},
            "train": {"lr": 1e-2, "batch_size": 4, "max_steps": 4},
            "run": {"log_every": 1, "threads": 1},
        }
    )
    train(recipe, run_folder=tmp_path, quiet=True)
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if row["event"] == "train"]
    opened = [row["gate_attention_00"] for row in rows]
    assert 0 < opened[0] < opened[-1] < 1
    assert all("gate_dense_00" in row and "gate_attention_01" not in row for row in rows)
