"""What every system must do; a new file in systems/ is under test at once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from graftlm import backbones, grafts
from graftlm.data.sentence import Image, LabelWord, Sentence, Text
from graftlm.errors import CheckpointError, ConfigError, DataError, UsageError
from graftlm.lm.decode import Decoding, decode
from graftlm.systems.base import PartsConfig, System, SystemConfig, TextConfig, system_class, system_names
from tests.pictures import picture
from tests.threads import wrong_answers

GREEDY = Decoding(max_tokens=20)
CAPTIONS = ("a red dog", "two blue cats", "the green sea", "one old hat")
TOYS = {"lm": "toy", "encoder": "toy", "text_encoder": "toy-text", "precision": "float32"}
STEERING: dict[str, dict[str, Any]] = {
    "fromage": {"num_tokens": 4},
    "flamingo": {"every": 1, "num_latents": 8, "depth": 2, "heads": 4},
    "prompt_tuning": {"num_tokens": 32},
    "prefix_tuning": {"num_tokens": 16},
    "ppt": {"num_tokens": 32},
    "ipt": {"num_tokens": 8},
    "finetuning": {"training": "full"},
    "linear_probe": {"num_classes": 4},
    "knowledge": {"num_tokens": 4, "num_classes": 4},
}
"""What a system needs beside its defaults to steer a toy: one visual token is too few for random weights."""


def toy_config(name: str) -> PartsConfig:
    cls = system_class(name)
    toys = {field: value for field, value in TOYS.items() if field in cls.Config.model_fields}
    return cls.Config.model_validate({**toys, **STEERING.get(name, {})})


def build(name: str, seed: int = 0) -> System:
    torch.manual_seed(seed)
    config = toy_config(name)
    return system_class(name).build(config, backbones.load_parts(config))


TRAINED = [name for name in system_names() if any(True for _ in build(name).trainable())]
FREEZING = [name for name in TRAINED if not all(weight.requires_grad for weight in build(name).parameters())]
WRITING = [name for name in TRAINED if build(name).writes]
"""Systems that answer in words; the others find pictures, or tell classes apart."""
TELLING = [name for name in system_names() if build(name).has_lm and not build(name).writes]
SILENT = [name for name in system_names() if not build(name).has_lm]


def sentences(name: str = "frozen") -> list[Sentence]:
    """Four things to learn by heart: captions of pictures, or of numbers for systems that read words alone."""
    if not issubclass(system_class(name).Config, TextConfig) or issubclass(system_class(name).Config, SystemConfig):
        return [Sentence.of(Image(picture(index)), Text(text, target=True)) for index, text in enumerate(CAPTIONS)]
    words = tuple((caption,) for caption in CAPTIONS)
    targets = CAPTIONS if name in WRITING else [LabelWord(index, words) for index in range(len(words))]
    asked = ("first", "the second", "3rd", "4")
    return [Sentence.of(Text(f"{one}: "), Text(text, target=True)) for one, text in zip(asked, targets, strict=True)]


def loss_of(system: System, batch: list[Sentence]) -> torch.Tensor:
    return torch.stack(list(system.losses(batch).values())).sum()


def fit(system: System, batch: list[Sentence], steps: int, lr: float = 1e-2) -> None:
    """Trains until the loss is small, for at most `steps`."""
    system.learn(batch)
    system.train()
    optimiser = torch.optim.Adam([parameter for _, parameter in system.trainable()], lr=lr)
    for _ in range(steps):
        loss = loss_of(system, batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if loss.item() < 0.01:
            break
    system.eval()


@pytest.fixture(scope="module", params=WRITING)
def fitted(request: pytest.FixtureRequest) -> System:
    system = build(request.param)
    fit(system, sentences(request.param), steps=400)
    return system


@pytest.mark.parametrize("name", system_names())
def test_builds_from_its_toy_config_in_two_seconds(name: str) -> None:
    build(name)
    start = time.perf_counter()
    build(name)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("name", FREEZING)
def test_frozen_parts_keep_their_bytes_and_get_no_gradient(name: str) -> None:
    system = build(name)
    trained = {key for key, _ in system.trainable()}
    before = {key: value.clone() for key, value in system.state_dict().items() if key not in trained}
    assert before
    fit(system, sentences(name), steps=3)
    after = system.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    frozen = [parameter for key, parameter in system.named_parameters() if key not in trained]
    assert all(parameter.grad is None for parameter in frozen)


@pytest.mark.parametrize("name", TRAINED)
def test_every_trainable_parameter_gets_a_gradient(name: str) -> None:
    system = build(name)
    fit(system, sentences(name), steps=1)
    loss_of(system.train(), sentences(name)).backward()
    silent = [key for key, parameter in system.trainable() if parameter.grad is None or not parameter.grad.any()]
    assert silent == []


def test_overfits_four_sentences(fitted: System) -> None:
    answers = [answer.text() for answer in fitted.respond(sentences(fitted.name), GREEDY)]
    assert answers == list(CAPTIONS)


def test_a_padded_batch_answers_as_one_by_one(fitted: System) -> None:
    four = sentences(fitted.name)
    batch = [Sentence.of(*four[0], *four[1]), *four, Sentence.of("plain words, no picture")]
    together = [answer.text() for answer in fitted.respond(batch, GREEDY)]
    alone = [fitted.respond([sentence], GREEDY)[0].text() for sentence in batch]
    assert together == alone


def test_answers_do_not_depend_on_the_order_of_the_batch(fitted: System) -> None:
    forward = fitted.respond(sentences(fitted.name), GREEDY)
    backward = fitted.respond(sentences(fitted.name)[::-1], GREEDY)
    assert forward == backward[::-1]


def test_decodes_with_a_cache_as_without(fitted: System) -> None:
    inputs = fitted.inputs([sentence.prompt() for sentence in sentences(fitted.name)])
    for row, best in enumerate(decode(fitted.lm, inputs, GREEDY)):
        full = Sentence.of(sentences(fitted.name)[row].parts[0], Text(best[0].text, target=True))
        whole = fitted.inputs([full])
        logits = fitted.lm(whole).logits[0].float()
        labels = whole.labels
        assert labels is not None
        places = (labels[0] != -100).nonzero()[:, 0]
        assert logits[places - 1].argmax(-1).tolist() == labels[0, places].tolist()


def test_saves_loads_and_answers_the_same(fitted: System, tmp_path: Path) -> None:
    grafts.save(fitted, tmp_path / "graft")
    loaded = grafts.load(tmp_path / "graft")
    assert loaded.config == fitted.config
    assert loaded.respond(sentences(fitted.name), GREEDY) == fitted.respond(sentences(fitted.name), GREEDY)


def test_answers_survive_a_json_round_trip(fitted: System) -> None:
    again = [Sentence.from_json(sentence.to_json()) for sentence in sentences(fitted.name)]
    assert fitted.respond(again, GREEDY) == fitted.respond(sentences(fitted.name), GREEDY)


def test_two_threads_get_five_hundred_answers_of_one(fitted: System) -> None:
    four = sentences(fitted.name)
    expected = [fitted.respond([sentence], GREEDY) for sentence in four]
    assert wrong_answers(lambda index: fitted.respond([four[index]], GREEDY), expected, 250) == []


@pytest.mark.parametrize("name", system_names())
def test_its_config_round_trips_and_refuses_unknown_keys(name: str) -> None:
    cls = system_class(name)
    config = toy_config(name)
    assert cls.Config.model_validate(config.model_dump()) == config
    with pytest.raises(ValueError, match="no_such_key"):
        cls.Config.model_validate({"no_such_key": 1})
    own = list(cls.Config.model_fields)
    assert len(own) <= 15
    assert all(field.description for field in cls.Config.model_fields.values())


@pytest.mark.parametrize("name", system_names())
def test_refuses_a_kind_of_media_it_has_no_encoder_for(name: str) -> None:
    from graftlm.data.sentence import State

    with pytest.raises(DataError, match="state"):
        build(name).losses([Sentence.of(State((1.0, 2.0)), Text("x", target=True))])


@pytest.mark.parametrize("name", SILENT)
def test_a_system_without_a_language_model_refuses_to_write_in_one_sentence(name: str) -> None:
    system = build(name)
    with pytest.raises(UsageError, match=f"{name}: expected a system with a language model"):
        system.respond(sentences(name), GREEDY)
    assert not system.has_lm
    assert "lm" not in system.fingerprints()


@pytest.mark.parametrize("name", TELLING)
def test_a_system_that_tells_classes_apart_learns_them_and_writes_nothing(name: str, tmp_path: Path) -> None:
    system = build(name)
    fit(system, sentences(name), steps=200)
    words = tuple((caption,) for caption in CAPTIONS)
    scores = system.class_scores(sentences(name), words)
    assert scores.argmax(dim=1).tolist() == [0, 1, 2, 3]
    assert torch.allclose(scores.exp().sum(dim=1), torch.ones(4))
    grafts.save(system, tmp_path / "graft")
    assert torch.equal(grafts.load(tmp_path / "graft").class_scores(sentences(name), words), scores)
    with pytest.raises(UsageError, match="tells classes apart"):
        system.respond(sentences(name), GREEDY)


@pytest.mark.parametrize("name", system_names())
def test_a_graft_for_other_frozen_parts_is_refused(name: str, tmp_path: Path) -> None:
    import json

    system = build(name)
    grafts.save(system, tmp_path / "graft")
    path = tmp_path / "graft" / "graft.json"
    card = json.loads(path.read_text())
    role = sorted(card["frozen_parts"])[-1]
    card["frozen_parts"][role]["fingerprint"] = "0" * 64
    path.write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match=role):
        grafts.load(tmp_path / "graft")


@pytest.mark.parametrize("name", system_names())
def test_its_file_cites_the_paper_and_lists_deviations(name: str) -> None:
    import importlib

    text = importlib.import_module(f"graftlm.systems.{name}").__doc__ or ""
    assert "arXiv:" in text
    assert "Differences from the paper:" in text
    lines = Path(importlib.import_module(f"graftlm.systems.{name}").__file__ or "").read_text().splitlines()
    assert len(lines) <= 200


def test_an_unknown_system_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'clipcap'"):
        system_class("clipcapp")
