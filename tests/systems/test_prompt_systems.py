"""Prompt, prefix, PPT and the baselines: every choice learns, starts where it says and is read right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from graftlm import backbones, grafts
from graftlm.data.self_supervised import as_choice
from graftlm.data.sentence import Filled, LabelWord, Sentence, Text
from graftlm.errors import ConfigError, ShapeError
from graftlm.lm.compose import ids_as_prefix
from graftlm.lm.masked import MaskedLM
from graftlm.lm.toy import ToyLM
from graftlm.systems.base import Parts, System, TextSystem, system_class
from graftlm.systems.manual_prompt import ManualPrompt
from tests.masked_models import mask_tokenizer, tiny_encoder

WORDS = (("no",), ("yes",), ("maybe",))
TEXTS = ("rain is dry.", "rain is wet.", "rain may come.")


def build(name: str, **fields: Any) -> TextSystem:
    torch.manual_seed(0)
    cls = system_class(name)
    config = cls.Config.model_validate({"lm": "toy", "precision": "float32", **fields})
    found = cls.build(config, backbones.load_parts(config))
    assert isinstance(found, TextSystem)
    return found


def over_encoder(name: str, family: str, **fields: Any) -> TextSystem:
    torch.manual_seed(0)
    cls = system_class(name)
    lm = MaskedLM.from_model(tiny_encoder(family), mask_tokenizer())
    config = cls.Config.model_validate({"lm": "toy", "precision": "float32", "max_length": 100, **fields})
    found = cls.build(config, Parts(lm))
    assert isinstance(found, TextSystem)
    return found


def tasks() -> list[Sentence]:
    return [
        Sentence.of(Text(Filled(text, True)), Text(" So: "), Text(LabelWord(index, WORDS), target=True))
        for index, text in enumerate(TEXTS)
    ]


def fit(system: System, batch: list[Sentence], steps: int = 80, lr: float = 2e-2) -> tuple[float, float]:
    system.learn(batch)
    system.train()
    optimiser = torch.optim.Adam([parameter for _, parameter in system.trainable()], lr=lr)
    losses = []
    for _ in range(steps):
        loss = torch.stack(list(system.losses(batch).values())).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    system.eval()
    return losses[0], losses[-1]


CHOICES: list[tuple[str, dict[str, Any]]] = [
    ("prompt_tuning", {"num_tokens": 8, "init": "random"}),
    ("prompt_tuning", {"num_tokens": 8, "init": "vocabulary"}),
    ("prompt_tuning", {"num_tokens": 8, "init": "text", "init_text": "is it so"}),
    ("prompt_tuning", {"num_tokens": 8, "reparametrise": "lstm", "hidden_dim": 16}),
    ("prompt_tuning", {"num_tokens": 8, "reparametrise": "mlp", "hidden_dim": 16}),
    ("prompt_tuning", {"num_tokens": 8, "loss": "verbaliser"}),
    ("prompt_tuning", {"num_tokens": 8, "head": "pooled", "num_classes": 3}),
    ("prefix_tuning", {"num_tokens": 4}),
    ("prefix_tuning", {"num_tokens": 4, "init": "random"}),
    ("prefix_tuning", {"num_tokens": 4, "init": "text", "init_text": "is it so"}),
    ("prefix_tuning", {"num_tokens": 4, "mlp": True, "hidden_dim": 16}),
    ("ppt", {"num_tokens": 8}),
    ("ppt", {"num_tokens": 8, "variant": "unified", "head": "pooled", "num_classes": 3}),
    ("finetuning", {"training": "full", "loss": "verbaliser"}),
    ("finetuning", {"training": "full", "head": "pooled", "num_classes": 3}),
]


@pytest.mark.parametrize(("name", "fields"), CHOICES)
def test_every_choice_learns_three_classes(name: str, fields: dict[str, Any]) -> None:
    system = build(name, **fields)
    lr = 1e-3 if name == "finetuning" else 2e-2
    first, last = fit(system, tasks(), steps=100, lr=lr)
    assert last < 0.7 * first
    scores = system.class_scores(tasks(), WORDS)
    assert scores.argmax(dim=1).tolist() == [0, 1, 2]
    assert torch.allclose(scores.exp().sum(dim=1), torch.ones(3), atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "bert_headless"])
@pytest.mark.parametrize("name", ["prompt_tuning", "prefix_tuning", "finetuning", "linear_probe"])
def test_encoders_learn_too_by_cloze_or_by_head(name: str, family: str) -> None:
    fields: dict[str, Any] = {}
    if name in ("prompt_tuning", "prefix_tuning"):
        fields["num_tokens"] = 32 if family == "roberta" else 6
    if name == "prefix_tuning":
        fields["init"] = "random"
    if family == "bert_headless" or name == "linear_probe":
        fields |= {"head": "pooled", "num_classes": 3}
    if name == "finetuning":
        fields["training"] = "full"
    system = over_encoder(name, family, **fields)
    assert system.class_scores(tasks(), WORDS).argmax(dim=1).tolist() != [0, 1, 2]
    first, last = fit(system, tasks(), steps=150, lr=1e-3 if name == "finetuning" else 2e-2)
    # RoBERTa's frozen random head ends in a norm: no state whatever brings one of 300 tokens far above the others.
    assert last < (0.9 if family == "roberta" and "num_tokens" in fields else 0.5) * first
    scores = system.class_scores(tasks(), WORDS)
    assert scores.argmax(dim=1).tolist() == [0, 1, 2]
    assert torch.allclose(scores.exp().sum(dim=1), torch.ones(3), atol=1e-5)
    assert not system.writes


@pytest.mark.parametrize("training", ["full", "lora"])
@pytest.mark.parametrize("family", ["bert", "bert_headless"])
def test_every_weight_of_an_encoder_that_is_trained_gets_a_gradient(family: str, training: str) -> None:
    """One that gets none has no state in the optimiser, and its checkpoint could not be gone on with."""
    if training == "lora":
        pytest.importorskip("peft")
    fields = {"head": "pooled", "num_classes": 3} if family == "bert_headless" else {}
    system = over_encoder("finetuning", family, training=training, **fields)
    system.losses(tasks())["label"].backward()
    assert [name for name, weight in system.trainable() if weight.grad is None] == []


def test_a_model_without_output_matrix_needs_a_head() -> None:
    with pytest.raises(ConfigError, match="expected pooled for a language model without an output matrix"):
        over_encoder("prompt_tuning", "bert_headless", num_tokens=6)
    with pytest.raises(ConfigError, match="num_classes"):
        over_encoder("prompt_tuning", "bert_headless", num_tokens=6, head="pooled")


def test_a_head_with_too_few_classes_is_refused() -> None:
    system = build("prompt_tuning", num_tokens=4, head="pooled", num_classes=2)
    with pytest.raises(ConfigError, match="num_classes: expected more than 2"):
        system.losses(tasks())


def test_a_head_never_sees_the_label() -> None:
    system = build("linear_probe", num_classes=3)
    other = [Sentence((*one.parts[:-1], Text(LabelWord(0, WORDS), target=True))) for one in tasks()]
    assert torch.equal(system.class_scores(tasks(), WORDS), system.class_scores(other, WORDS))


def test_a_prompt_starts_from_the_words_it_is_given() -> None:
    system: Any = build("prompt_tuning", num_tokens=7, init="text", init_text="abc")
    ids = torch.tensor([list(b"abcabca")])
    assert torch.equal(system.prompt.tokens(), system.lm.embed(ids)[0])


def test_a_prefix_starts_from_what_the_model_keeps_of_the_words() -> None:
    system: Any = build("prefix_tuning", num_tokens=3, init="text", init_text="abc")
    assert torch.equal(system.prefix.tokens(), ids_as_prefix(system.lm, torch.tensor(list(b"abc"))))


def test_a_prefix_that_starts_from_the_words_of_a_prompt_does_what_they_do() -> None:
    """Before training, the words as a prefix of every layer are the words."""
    system: Any = build("prefix_tuning", num_tokens=3, init="text", init_text="abc")
    plain: Any = build("finetuning", training="full")
    one = Sentence.of(Text("xyz"), Text(" yes", target=True))
    inputs = plain.inputs([one])
    words = plain.lm.embed(torch.tensor([list(b"abc")]))
    joined = type(inputs)(torch.cat([words, inputs.embeds], 1), torch.ones(1, 3 + inputs.embeds.shape[1]).bool())
    found = system.lm(system.inputs([one])).logits
    assert torch.allclose(found, plain.lm(joined).logits[:, 3:], atol=1e-4)


@pytest.mark.parametrize("name", ["prompt_tuning", "prefix_tuning"])
def test_a_text_without_its_choice_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="init_text"):
        build(name, num_tokens=3, init_text="abc")
    with pytest.raises(ConfigError, match="init_text"):
        build(name, num_tokens=3, init="text")


def test_the_prompt_is_taken_off_the_longest_row() -> None:
    system = build("prompt_tuning", num_tokens=20, max_length=60)
    long = Sentence.of(Text(Filled("x" * 200, True)), Text(" So: "), Text(LabelWord(0, WORDS), target=True))
    assert system.inputs([long]).embeds.shape[1] <= 60
    with pytest.raises(ShapeError):
        system.inputs([Sentence.of(Text("y" * 200), Text(LabelWord(0, WORDS), target=True))])
    with pytest.raises(ConfigError, match="behind a prompt of 20"):
        build("prompt_tuning", num_tokens=20, max_length=24).inputs([long])


def test_ppt_begins_as_the_prompt_it_is_given(tmp_path: Path) -> None:
    first: Any = build("ppt", num_tokens=5)
    fit(first, tasks(), steps=3)
    grafts.save(first, tmp_path / "prompt")
    second: Any = build("ppt", num_tokens=5, pretrained=str(tmp_path / "prompt"))
    assert not torch.equal(second.prompt.tokens(), first.prompt.tokens())
    second.learn(tasks())
    assert torch.equal(second.prompt.tokens(), first.prompt.tokens())
    other = build("ppt", num_tokens=6, pretrained=str(tmp_path / "prompt"))
    with pytest.raises(ConfigError, match="expected a prompt of shape"):
        other.learn(tasks())


def test_the_graft_of_a_prompt_does_not_need_what_it_began_with(tmp_path: Path) -> None:
    system = build("ppt", num_tokens=5, pretrained=str(tmp_path / "gone"))
    grafts.save(system, tmp_path / "graft")
    loaded = grafts.load(tmp_path / "graft")
    assert torch.equal(loaded.class_scores(tasks(), WORDS), system.eval().class_scores(tasks(), WORDS))


def test_lora_trains_little_of_a_real_family() -> None:
    pytest.importorskip("peft")
    from graftlm.lm.huggingface import HuggingFaceLM
    from tests.language_models import tiny_model, tiny_tokenizer

    lm = HuggingFaceLM.from_model(tiny_model("llama"), tiny_tokenizer())
    cls = system_class("finetuning")
    system = cls.build(cls.Config.model_validate({"lm": "toy", "precision": "float32", "lora_rank": 2}), Parts(lm))
    first, last = fit(system, tasks(), steps=40, lr=1e-2)
    assert last < 0.7 * first
    assert all("lora_" in name for name, _ in system.trainable())


def test_worked_examples_are_drawn_with_the_classes_in_turn() -> None:
    system = build("manual_prompt", examples=3)
    assert isinstance(system, ManualPrompt)
    many = tasks() * 4
    system.learn(many)
    assert sorted(example.text() for example in system.examples) == sorted(one.text() for one in tasks())
    assert not any(part.target for example in system.examples for part in example)
    again = build("manual_prompt", examples=3)
    again.learn(many)
    assert again.config == system.config


def test_worked_examples_of_a_stream_are_refused_and_without_any_no_sentence_is_made() -> None:
    with pytest.raises(ConfigError, match=r"system\.examples: expected training sentences by number, found a stream"):
        build("manual_prompt", examples=2).learn([])
    build("manual_prompt").learn(pytest.fail("a sentence was made") for _ in range(3))
    build("prompt_tuning", num_tokens=2).learn(pytest.fail("a sentence was made") for _ in range(3))


def test_a_probe_has_no_cloze() -> None:
    with pytest.raises(ValueError, match="Input should be 'pooled'"):
        build("linear_probe", head="cloze")


def test_worked_examples_stand_before_the_question_and_survive_saving(tmp_path: Path) -> None:
    system = build("manual_prompt", examples=2, separator="\n")
    plain = build("manual_prompt")
    system.learn(tasks())
    scores = system.eval().class_scores(tasks(), WORDS)
    shown = [example.text() for example in system.examples]  # type: ignore[attr-defined]
    by_hand = [Sentence.of(f"{shown[0]}\n{shown[1]}\n", *one) for one in tasks()]
    assert torch.allclose(scores, plain.eval().class_scores(by_hand, WORDS), atol=1e-4)
    assert not torch.allclose(scores, plain.class_scores(tasks(), WORDS), atol=1e-4)
    grafts.save(system, tmp_path / "graft")
    assert json.loads((tmp_path / "graft" / "graft.json").read_text())["tensors"] == {}
    assert torch.equal(grafts.load(tmp_path / "graft").class_scores(tasks(), WORDS), scores)


def test_examples_that_do_not_fit_are_left_out_the_first_ones_first() -> None:
    system = build("manual_prompt", examples=3, max_length=60)
    system.learn(tasks())
    size = system.inputs(tasks()).embeds.shape[1]
    assert 20 < size <= 60
    assert ToyLM().context_length > 60


def test_a_choice_is_as_long_as_it_is_asked() -> None:
    unified, separate = (build("ppt", num_tokens=4, variant=variant) for variant in ("unified", "separate"))
    sentence = tasks()[0]
    asked = as_choice(sentence)
    assert unified.length(sentence) == separate.length(asked)
    assert unified.length(sentence)[0] > separate.length(sentence)[0]
