"""Frozen and ClipCap: every choice of their configs learns, and the traps of their fact sheet stay shut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from graftlm import backbones
from graftlm.data.sentence import Image, Sentence, Text
from graftlm.encoders.toy import ToyEncoder
from graftlm.errors import ConfigError
from graftlm.lm.base import LMInputs
from graftlm.lm.toy import ToyLM
from graftlm.losses import target_positions
from graftlm.systems.base import Parts, System, system_class
from graftlm.systems.clipcap import ClipCap, ClipCapConfig
from graftlm.systems.frozen import Frozen, FrozenConfig
from tests.pictures import picture

PAIRS = [(0, "a red dog"), (1, "two cats")]


def build(name: str, **fields: Any) -> System:
    torch.manual_seed(0)
    cls = system_class(name)
    config = cls.Config(**{"lm": "toy", "encoder": "toy", "precision": "float32", **fields})
    return cls.build(config, backbones.load_parts(config))


def sentences() -> list[Sentence]:
    return [Sentence.of(Image(picture(seed)), Text(text, target=True)) for seed, text in PAIRS]


def fall_of_loss(system: System, steps: int = 60, lr: float = 1e-2) -> tuple[float, float]:
    system.train()
    optimiser = torch.optim.Adam([parameter for _, parameter in system.trainable()], lr=lr)
    losses = []
    for _ in range(steps):
        loss = torch.stack(list(system.losses(sentences()).values())).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


@pytest.mark.parametrize("inject", ["embeds", "prefix"])
@pytest.mark.parametrize("mapper", ["mlp", "transformer", "grid"])
def test_every_mapper_learns_at_both_places(mapper: str, inject: str) -> None:
    system = build(
        "clipcap", mapper=mapper, inject=inject, num_tokens=4, num_layers=2, num_heads=2, grid_side=2, rank=16
    )
    first, last = fall_of_loss(system)
    assert last < 0.5 * first


GRID = {"mapper": "grid", "inject": "prefix", "grid_side": 1, "rank": 16}


def test_a_prefix_that_starts_from_words_is_what_the_model_keeps_of_those_words() -> None:
    system = build("clipcap", start_text="a bee", **GRID)
    torch.nn.init.zeros_(system.connector.expand.weight)
    torch.nn.init.zeros_(system.connector.expand.bias)
    tokenizer = system.lm.tokenizer
    start = [tokenizer.bos_id, *tokenizer.encode("a bee")][:2]
    caption = [tokenizer.bos_id, *tokenizer.encode("two cats"), tokenizer.eos_id]
    ids = torch.tensor([[*start, *caption]])
    wanted = system.lm(LMInputs(system.lm.embed(ids), torch.ones_like(ids, dtype=torch.bool))).logits[:, 2:]
    found = system.lm(system.inputs(sentences()[1:])).logits
    torch.testing.assert_close(found, wanted)
    other = build("clipcap", start_text="not a bee", **GRID)
    torch.nn.init.zeros_(other.connector.expand.weight)
    other.connector.start[1] += 1
    assert (other.lm(other.inputs(sentences()[1:])).logits - wanted).abs().max() > 1e-3


def test_the_words_a_prefix_starts_from_are_read_again_and_not_saved(tmp_path: Path) -> None:
    system = build("clipcap", start_text="a bee", **GRID)
    assert not [name for name in system.trainable_state() if "start" in name]
    fall_of_loss(system, steps=3)
    system.eval().save_pretrained(tmp_path / "graft")
    again = System.from_pretrained(tmp_path / "graft")
    prompts = [sentence.prompt() for sentence in sentences()]
    torch.testing.assert_close(again.lm(again.inputs(prompts)).logits, system.lm(system.inputs(prompts)).logits)


def test_words_to_start_from_are_refused_where_nothing_starts_from_words() -> None:
    with pytest.raises(ConfigError, match=r"system\.start_text: expected mapper grid and inject prefix"):
        build("clipcap", start_text="a bee", mapper="mlp")


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("frozen", {"lm_training": "finetuned"}),
        ("frozen", {"lm_training": "scratch"}),
        ("frozen", {"encoder_training": "finetuned"}),
        ("frozen", {"encoder_training": "scratch"}),
        ("clipcap", {"lm_training": "finetuned"}),
    ],
)
def test_a_trained_part_changes_and_a_frozen_one_does_not(name: str, fields: dict[str, str]) -> None:
    system = build(name, **fields)
    parts = {"lm_training": system.lm, "encoder_training": system.encoders["image"]}
    before = {key: [value.clone() for value in part.parameters()] for key, part in parts.items()}
    fall_of_loss(system, steps=2)
    for key, part in parts.items():
        changed = any(not torch.equal(old, new) for old, new in zip(before[key], part.parameters(), strict=True))
        assert changed == (key in fields)


def test_scratch_draws_other_weights_than_the_pretrained_ones() -> None:
    pretrained, scratch = build("frozen"), build("frozen", lm_training="scratch")
    same = [torch.equal(a, b) for a, b in zip(pretrained.lm.parameters(), scratch.lm.parameters(), strict=True)]
    assert not all(same)


@pytest.mark.parametrize("name", ["frozen", "clipcap"])
def test_fine_tuning_a_half_precision_lm_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"system\.lm_training.*float32"):
        build(name, lm_training="finetuned", precision="bfloat16")


def test_the_loss_ignores_the_places_of_pictures() -> None:
    system = build("frozen", num_tokens=3)
    inputs = system.inputs(sentences())
    assert inputs.labels is not None
    assert (inputs.labels[:, :4] == -100).all()
    assert target_positions(inputs.labels)[0].nonzero()[0, 0] == 3


def test_a_blind_answer_does_not_depend_on_the_picture() -> None:
    system = build("clipcap", inject="prefix", mapper="grid", grid_side=2, rank=16)
    fall_of_loss(system, steps=80)
    system.eval()
    seeing = {answer.text() for answer in system.respond(sentences())}
    black = picture(0).point(lambda _: 0)
    blind = {answer.text() for answer in system.respond([Sentence.of(Image(black)), Sentence.of(Image(black.copy()))])}
    assert len(seeing) == 2
    assert len(blind) == 1


def test_pictures_may_stand_anywhere_in_a_frozen_prompt() -> None:
    system = build("frozen", num_tokens=2)
    shot = Sentence.of(Image(picture(0)), " a dax. ", Image(picture(1)), " a blicket. ", Image(picture(2)), " a")
    inputs = system.inputs([shot])
    swapped = Sentence(tuple(reversed(shot.parts[:1])) + shot.parts[1:4] + (Image(picture(5)),) + shot.parts[5:])
    difference = (inputs.embeds - system.inputs([swapped]).embeds).abs().sum(-1)[0]
    assert (difference > 0).sum() == 2


def test_an_encoder_of_another_modality_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="reads image"):
        ClipCap.build(ClipCapConfig.model_validate({}), Parts(ToyLM(), {}))


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="7 heads"):
        build("clipcap", mapper="transformer", num_heads=7)


def test_running_statistics_of_a_trained_encoder_stay() -> None:
    encoder = ToyEncoder()
    norm = encoder.norm = torch.nn.BatchNorm2d(3)
    config = FrozenConfig.model_validate({"encoder_training": "finetuned", "precision": "float32"})
    system = Frozen.build(config, Parts(ToyLM(), {"image": encoder})).train()
    assert system.training
    assert not norm.training
