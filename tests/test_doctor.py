"""The dry run: pairs that work, what it reports, and pairs that are refused with the reason."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from graftlm.doctor import choose_system, dry_run, dry_run_parts
from graftlm.encoders.toy import ToyEncoder
from graftlm.errors import BackboneError, UsageError
from graftlm.lm.base import LanguageModel, LMInputs
from graftlm.lm.huggingface import HuggingFaceLM
from graftlm.systems.base import Parts, system_class
from tests.language_models import tiny_model, tiny_tokenizer

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "pairs.py"


def pairs() -> Any:
    spec = importlib.util.spec_from_file_location("pairs", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_family_of_language_models_works_with_every_family_of_encoders() -> None:
    benchmark = pairs()
    found = list(benchmark.matrix())
    assert not [f"{encoder} -> {lm}: {report}" for lm, encoder, report in found if not benchmark.is_passed(report)]
    assert len({lm for lm, _, _ in found}) >= 7
    assert len({encoder for _, encoder, _ in found}) >= 7


@pytest.mark.parametrize("name", ["frozen", "clipcap"])
def test_the_toy_pair_is_reported_in_full(name: str) -> None:
    report = dry_run(lm="toy", encoder="toy", system=name)
    assert report.parameters["lm"]["trained"] == 0
    assert report.parameters["connector"]["frozen"] == 0
    assert report.graft_bytes == 4 * report.parameters["connector"]["trained"]
    assert report.losses[2] < report.losses[0]
    assert report.frozen_unchanged
    assert report.memory_bytes > report.graft_bytes
    assert json.loads(json.dumps(report.to_json()))["system"] == name
    assert f"{report.parameters['connector']['trained']:,}" in str(report)


def test_a_connector_chooses_the_system_that_has_it() -> None:
    assert choose_system("", "") == ("clipcap", {})
    assert choose_system("transformer", "") == ("clipcap", {"mapper": "transformer"})
    assert choose_system("linear", "")[0] == "frozen"
    with pytest.raises(UsageError, match="connector 'bridge'"):
        choose_system("bridge", "")
    with pytest.raises(UsageError, match="system 'frozen'"):
        choose_system("transformer", "frozen")


def test_an_encoder_that_reads_no_pictures_is_refused() -> None:
    encoder = ToyEncoder()
    encoder.modality = "text"
    cls = system_class("frozen")
    with pytest.raises(BackboneError, match="reads text, expected image"):
        dry_run_parts(Parts(tiny_lm(), {"text": encoder}), cls, cls.Config(lm="tiny", encoder="toy"))


def tiny_lm() -> HuggingFaceLM:
    return HuggingFaceLM.from_model(tiny_model("llama"), tiny_tokenizer())


def test_a_language_model_that_cuts_the_gradient_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, own = tiny_lm(), HuggingFaceLM.forward

    def detached(self: HuggingFaceLM, inputs: LMInputs, **options: Any) -> Any:
        inner = LMInputs(inputs.embeds.detach(), inputs.mask, inputs.labels)
        output = own(self, inner, **options)
        output.logits.requires_grad_()
        return output

    monkeypatch.setattr(HuggingFaceLM, "forward", detached)
    monkeypatch.setattr(HuggingFaceLM, "target_loss", LanguageModel.target_loss)
    cls = system_class("frozen")
    with pytest.raises(BackboneError, match="no gradient"):
        dry_run_parts(Parts(lm, {"image": ToyEncoder()}), cls, cls.Config(lm="tiny", encoder="toy"))


def test_a_pair_whose_shapes_do_not_meet_is_a_sentence() -> None:
    encoder = ToyEncoder()
    encoder.dim = 17
    cls = system_class("frozen")
    with pytest.raises(BackboneError, match="cannot be trained") as caught:
        dry_run_parts(Parts(tiny_lm(), {"image": encoder}), cls, cls.Config(lm="tiny", encoder="toy"))
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    lm = tiny_lm()
    with torch.no_grad():
        lm.model.model.norm.weight.fill_(float("nan"))
    cls = system_class("frozen")
    with pytest.raises(BackboneError, match="not finite"):
        dry_run_parts(Parts(lm, {"image": ToyEncoder()}), cls, cls.Config(lm="tiny", encoder="toy"))
