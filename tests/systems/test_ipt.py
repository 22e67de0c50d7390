"""Instance-wise prompts: every strategy at both places, every combination; presets; what is kept and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from graftlm import backbones, grafts
from graftlm.connectors.instance_prompt import InstancePrompt
from graftlm.data.sentence import LabelWord, Sentence, Text
from graftlm.encoders.base import Features
from graftlm.errors import ConfigError
from graftlm.lm.masked import MaskedLM
from graftlm.nn.text_encoders import text_encoder
from graftlm.systems.base import Parts, System, system_class
from graftlm.systems.ipt import IPT, IPTConfig
from graftlm.systems.prefix_tuning import PrefixTuning, PrefixTuningConfig
from tests.masked_models import mask_tokenizer, tiny_encoder

WORDS = (("no",), ("yes",), ("maybe",))
TEXTS = ("rain is dry.", "rain is wet.", "rain may come.")
BASE: dict[str, Any] = {"lm": "toy", "precision": "float32", "num_tokens": 6, "max_length": 100}


def build(**fields: Any) -> IPT:
    torch.manual_seed(0)
    config = IPTConfig.model_validate({**BASE, **fields})
    return IPT.build(config, backbones.load_parts(config))


def over_bert(**fields: Any) -> IPT:
    torch.manual_seed(0)
    config = IPTConfig.model_validate({**BASE, "head": "pooled", "num_classes": 3, **fields})
    return IPT.build(config, Parts(MaskedLM.from_model(tiny_encoder("bert"), mask_tokenizer())))


def tasks(texts: tuple[str, ...] = TEXTS) -> list[Sentence]:
    return [
        Sentence.of(Text(text), Text(" So: "), Text(LabelWord(index % 3, WORDS), target=True))
        for index, text in enumerate(texts)
    ]


def fit(system: System, steps: int = 100, lr: float = 2e-2) -> None:
    system.learn(tasks())
    system.train()
    optimiser = torch.optim.Adam([parameter for _, parameter in system.trainable()], lr=lr)
    for _ in range(steps):
        loss = torch.stack(list(system.losses(tasks()).values())).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    system.eval()


def knowledge(folder: Path, **fields: Any) -> Path:
    torch.manual_seed(1)
    cls = system_class("knowledge")
    given = {"lm": "toy", "precision": "float32", "num_tokens": 6, "num_classes": 3, **fields}
    config = cls.Config.model_validate(given)
    system = cls.build(config, backbones.load_parts(config))
    fit(system, steps=60)
    return grafts.save(system, folder / "knowledge")


@pytest.mark.parametrize("combine", ["replace", "add", "concat"])
@pytest.mark.parametrize("inject", ["input", "prefix"])
@pytest.mark.parametrize("strategy", ["random", "lstm", "cnn", "mlp"])
def test_every_strategy_learns_at_both_places_in_every_combination(strategy: str, inject: str, combine: str) -> None:
    fields = {"strategy": "encoder", "network": strategy} if strategy != "random" else {}
    system = build(inject=inject, combine=combine, **fields)
    fit(system)
    scores = system.class_scores(tasks(), WORDS)
    assert scores.argmax(dim=1).tolist() == [0, 1, 2]
    alone = torch.cat([system.class_scores([one], WORDS) for one in tasks()])
    assert torch.allclose(scores, alone, atol=1e-4)  # padding changes nothing


@pytest.mark.parametrize("inject", ["input", "prefix"])
def test_encoders_take_instance_prompts_too(inject: str) -> None:
    system = over_bert(inject=inject, combine="add", table="zeros")
    fit(system)
    assert system.class_scores(tasks(), WORDS).argmax(dim=1).tolist() == [0, 1, 2]


def test_only_the_words_of_the_data_get_rows_and_counts_are_told_apart() -> None:
    system = build(table="words")
    system.learn(tasks())
    letters = {byte for text in TEXTS for byte in text[:6].encode()}
    assert set(system.table.ids.tolist()) == letters
    counts = system.parameter_counts()
    assert counts == {"stored": 259 * 96, "touched": len(letters) * 96}


def test_the_rate_of_utilisation_says_how_many_words_are_read() -> None:
    for rate, count in ((0.01, 1), (0.03, 3), (0.2, 6)):
        system = build(utilisation=rate)
        batch = system.read(tasks(("abcdefghij",)))
        assert system._sources(batch)[0].shape[1] == count
    network = build(strategy="encoder", utilisation=0.1)
    assert network._sources(network.read(tasks(("abcdefghijklmnop",))))[0].shape[1] == 10


def test_the_j_th_prompt_is_the_row_of_the_j_th_word() -> None:
    system = build(num_tokens=3, table="uniform")
    system.learn(tasks())
    soft, mask = system._prompt(system.read(tasks(("ri",))))
    assert torch.equal(soft[0, :2], system.table(torch.tensor(list(b"ri"))))
    assert mask[0].tolist() == [True, True, True]  # the template's words are words too
    lone = system._prompt(system.read([Sentence.of(Text("r"), Text(" yes", target=True))]))
    assert lone[1][0].tolist() == [True, False, False]
    assert not lone[0][0, 1:].any()


def test_a_table_of_zeros_that_is_added_begins_as_the_prompt_of_the_task() -> None:
    """What is learnt beside the task's prompt begins at nothing, for words that are known and for others."""
    system = build(inject="input", combine="add", table="zeros")
    system.learn(tasks())
    soft, mask = system._prompt(system.read(tasks(("entirely new words",))))
    assert system.task is not None
    assert torch.equal(soft[0], system.task.tokens())
    assert bool(mask.all())


def test_an_instance_prefix_of_scale_zero_is_prefix_tuning() -> None:
    system = build(inject="prefix", preset=("first_layer",), table="zeros")
    system.learn(tasks())
    config = PrefixTuningConfig.model_validate({"lm": "toy", "precision": "float32", "num_tokens": 6})
    plain = PrefixTuning.build(config, Parts(system.lm))
    assert system.task is not None
    plain.prefix.vectors.data.copy_(system.task.vectors)
    with torch.no_grad():
        assert torch.equal(system.lm(system.inputs(tasks())).logits, system.lm(plain.inputs(tasks())).logits)
        system.table.rows.fill_(3.0)
        assert not torch.equal(system.lm(system.inputs(tasks())).logits, system.lm(plain.inputs(tasks())).logits)


def test_the_released_prefix_adds_a_twentieth_to_the_first_layer_alone() -> None:
    system = build(inject="prefix", preset=("first_layer",), table="uniform")
    system.learn(tasks())
    batch = system.read(tasks())
    soft, _ = system._prompt(batch)
    assert system.task is not None
    added = soft - system.task.tokens()
    width = system.lm.prefix_geometry.token_dim // system.lm.prefix_geometry.num_layers
    rows = system.table(system._sources(batch)[0])
    assert torch.allclose(added[:, :, :width], 0.05 * rows, atol=1e-5)
    assert torch.equal(soft[:, :, width:], system.task.tokens()[:, width:].expand(3, -1, -1))


def test_released_prompts_come_from_padding_and_the_first_token_too() -> None:
    paper, released = (over_bert(num_tokens=40, utilisation=0.9, preset=preset) for preset in ("paper", ("pads",)))
    one = tasks(("ab",))
    used = paper._prompt(paper.read(one))[1]
    assert not bool(used.all())
    assert bool(released._prompt(released.read(one))[1].all())
    ids = released._sources(released.read(one))[0][0]
    assert ids[0] == released.lm.tokenizer.bos_id
    assert ids[-1] == released.lm.tokenizer.pad_id


def test_the_released_head_reads_position_0_and_is_never_trained() -> None:
    system = over_bert(preset="released", num_tokens=12)
    assert system.head is not None
    assert not any(weight.requires_grad for weight in system.head.parameters())
    fit(system, steps=150)
    assert system.class_scores(tasks(), WORDS).argmax(dim=1).tolist() == [0, 1, 2]
    with torch.no_grad():
        hidden = system.lm(system.inputs(tasks())).hidden[:, 0]
        wanted = (hidden @ system.head.classify.weight.T + system.head.classify.bias).log_softmax(dim=-1)
    assert torch.allclose(system.class_scores(tasks(), WORDS), wanted, atol=1e-5)


def test_released_choices_that_cannot_run_are_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigError, match="reads position 0 of an encoder"):
        build(preset="released")
    with pytest.raises(ConfigError, match="LSTM takes the batch for the time"):
        over_bert(preset="released", strategy="encoder", network="lstm")
    with pytest.raises(ConfigError, match="first_layer"):
        build(inject="prefix", preset=("first_layer",), strategy="encoder")
    with pytest.raises(ConfigError, match="alone begins with a graft of `knowledge`, found '' for strategy pretrained"):
        build(strategy="pretrained")
    with pytest.raises(ConfigError, match="found 'some/graft' for strategy random"):
        build(pretrained="some/graft")
    with pytest.raises(ConfigError, match="found a stream"):
        build().learn([])


def test_the_released_code_cuts_long_texts_at_their_start() -> None:
    assert build().layout.shorten == "end"
    assert build(preset=("cut_start",)).layout.shorten == "start"


def test_pretrained_rows_are_taken_kept_and_saved(tmp_path: Path) -> None:
    graft = knowledge(tmp_path)
    tensors = grafts.tensors_of(graft)
    system = build(strategy="pretrained", pretrained=str(graft))
    system.learn(tasks(("zzz",)))
    held = system.table(tensors["table.ids"])
    assert torch.equal(held, tensors["table.rows"])
    assert ord("z") in system.table.ids.tolist()
    fit(system, steps=20)
    scores = system.class_scores(tasks(), WORDS)
    grafts.save(system, tmp_path / "ipt")
    for file in graft.iterdir():
        file.unlink()  # what it began with is no longer there
    loaded = grafts.load(tmp_path / "ipt")
    assert torch.equal(loaded.class_scores(tasks(), WORDS), scores)


def test_rows_that_training_does_not_reach_are_stored_and_not_touched(tmp_path: Path) -> None:
    system = build(strategy="pretrained", pretrained=str(knowledge(tmp_path)))
    system.learn(tasks(("zzz",)))
    letters = {*b"zzz So"}
    assert len(system.table.ids) > len(letters)
    assert system.parameter_counts() == {"stored": 259 * 96, "touched": len(letters) * 96}


@pytest.mark.parametrize("trains", [True, False])
def test_the_table_learns_in_pretraining_unless_it_is_to_do_as_released(tmp_path: Path, trains: bool) -> None:
    tensors = grafts.tensors_of(knowledge(tmp_path, trains_table=trains))
    fresh = build().table(tensors["table.ids"])
    assert torch.equal(fresh, tensors["table.rows"]) is not trains


@pytest.mark.parametrize("network", ["lstm", "cnn", "mlp"])
def test_a_pretrained_network_is_taken_with_its_frozen_table(tmp_path: Path, network: str) -> None:
    graft = knowledge(tmp_path, network=network)
    tensors = grafts.tensors_of(graft)
    system = build(strategy="encoder", network=network, pretrained=str(graft))
    system.learn(tasks())
    assert torch.equal(system.table(tensors["table.ids"]), tensors["table.rows"])
    assert not system.table.rows.requires_grad
    own = system.connector.network
    assert own is not None
    name = {"lstm": "lstm.weight_ih_l0", "cnn": "convolutions.0.weight", "mlp": "project.weight"}[network]
    assert torch.equal(dict(own.named_parameters())[name], tensors[f"network.{name}"])
    scores = system.eval().class_scores(tasks(), WORDS)
    grafts.save(system, tmp_path / "ipt")
    assert torch.equal(grafts.load(tmp_path / "ipt").class_scores(tasks(), WORDS), scores)


def test_a_table_of_another_width_is_refused(tmp_path: Path) -> None:
    graft = knowledge(tmp_path)
    system = build(strategy="pretrained", pretrained=str(graft), inject="prefix", preset=("first_layer",))
    with pytest.raises(ConfigError, match="expected a table of width 192"):
        system.learn(tasks())


@pytest.mark.parametrize("name", ["lstm", "cnn", "mlp"])
def test_the_connector_writes_prompts_from_pictures_as_from_words(name: Any) -> None:
    torch.manual_seed(0)
    cells = torch.randn(2, 9, 16)
    seen = Features(cells, torch.ones(2, 9, dtype=torch.bool), cells.mean(1))
    connector = InstancePrompt(16, 24, 5, text_encoder(name, 16, 5)).eval()
    assert connector(seen).shape == (2, 5, 24)
    assert bool(connector.used(seen).all())
    assert not torch.allclose(connector(seen)[0], connector(seen)[1])


def test_a_stage_goes_on_with_the_rows_of_the_one_before_and_gives_new_words_theirs(tmp_path: Path) -> None:
    source = knowledge(tmp_path)
    first = build(strategy="pretrained", pretrained=str(source))
    fit(first, steps=3)
    grafts.save(first, tmp_path / "first")
    second = build(strategy="pretrained", pretrained=str(source))
    grafts.copy_from(tmp_path / "first", second)
    second.learn([*tasks(), *tasks(("hail!",))])
    known = second.table(first.table.ids)
    assert torch.equal(known, first.table(first.table.ids))  # and not those of `pretrained`
    assert len(second.table.ids) > len(first.table.ids)
