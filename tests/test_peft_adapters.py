"""Prompts and prefixes go to peft and come back, and say the same on both sides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from graftlm.cli.main import main
from graftlm.data.sentence import Sentence, Text
from graftlm.errors import CheckpointError, UsageError
from graftlm.grafts.peft_adapters import export_peft, import_peft
from graftlm.systems.base import System, system_class
from tests.language_models import tiny_model, tiny_tokenizer

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model on disk, as a user has it."""
    place = tmp_path_factory.mktemp(request.param)
    tiny_model(request.param).save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return place


def build(name: str, folder: Path, **fields: Any) -> System:
    from graftlm import backbones

    torch.manual_seed(0)
    cls = system_class(name)
    given = {"lm": str(folder), "precision": "float32", "num_tokens": 5, "max_length": 64, **fields}
    config = cls.Config.model_validate(given)
    return cls.build(config, backbones.load_parts(config)).eval()


def plain(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


@torch.no_grad()
def ours(system: System) -> tuple[Tensor, Tensor]:
    """Ids of a row, BOS included, and the logits of its words."""
    sentences = [Sentence.of(Text("a few words"), Text(" more", target=True))]
    ids = system.tokens(sentences).ids
    return ids, system.lm(system.inputs(sentences)).logits[:, -ids.shape[1] :]


SYSTEMS: list[tuple[str, dict[str, Any]]] = [
    ("prompt_tuning", {}),
    ("prompt_tuning", {"reparametrise": "lstm", "hidden_dim": 8}),
    ("prompt_tuning", {"reparametrise": "mlp", "hidden_dim": 8}),
    ("ppt", {}),
    ("prefix_tuning", {}),
    ("prefix_tuning", {"mlp": True, "hidden_dim": 8}),
]


@pytest.mark.parametrize(("name", "fields"), SYSTEMS)
def test_peft_says_what_an_exported_graft_says(name: str, fields: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    system = build(name, folder, **fields)
    ids, wanted = ours(system)
    model = peft.PeftModel.from_pretrained(plain(folder), export_peft(system, tmp_path / "adapter")).eval()
    with torch.no_grad():
        found = model(input_ids=ids).logits[:, -ids.shape[1] :]
        bare = plain(folder)(input_ids=ids).logits
    assert torch.allclose(found, wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(bare, wanted, atol=1e-3)


@pytest.mark.parametrize("kind", ["prompt", "prefix", "p_tuning"])
def test_an_imported_adapter_says_what_peft_says(kind: str, folder: Path, tmp_path: Path) -> None:
    configs = {
        "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        "p_tuning": lambda: peft.PromptEncoderConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=8, encoder_reparameterization_type="MLP"
        ),
    }
    torch.manual_seed(3)
    model = peft.get_peft_model(plain(folder), configs[kind]()).eval()
    model.save_pretrained(tmp_path / "adapter")
    system = import_peft(tmp_path / "adapter", lm=str(folder), precision="float32")
    assert system.name == ("prefix_tuning" if kind == "prefix" else "prompt_tuning")
    ids, found = ours(system)
    with torch.no_grad():
        wanted = model(input_ids=ids).logits[:, -ids.shape[1] :]
    assert torch.allclose(found, wanted, atol=1e-5, rtol=1e-5)


def test_there_and_back_is_the_same_to_the_bit(folder: Path, tmp_path: Path) -> None:
    system: Any = build("prefix_tuning", folder)
    back: Any = import_peft(export_peft(system, tmp_path / "adapter"), precision="float32", lm=str(folder))
    assert torch.equal(back.prefix.tokens(), system.prefix.tokens())


def test_what_peft_cannot_hold_is_not_exported(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found ipt"):
        export_peft(build("ipt", folder), tmp_path)
    with pytest.raises(UsageError, match="pooled head"):
        export_peft(build("prompt_tuning", folder, head="pooled", num_classes=2), tmp_path)


def test_an_adapter_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    place = export_peft(build("prompt_tuning", folder), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="expected prompt_embeddings of shape"):
        import_peft(place, lm="toy", precision="float32")
    many = tmp_path / "many"
    many.mkdir()
    (many / "adapter_config.json").write_text((place / "adapter_config.json").read_text())
    save_file({"prompt_embeddings": torch.zeros(600, 32)}, many / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="expected 1 to 512 soft tokens, found 600"):
        import_peft(many, lm=str(folder))
    config = json.loads((place / "adapter_config.json").read_text())
    (place / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "LORA"}))
    with pytest.raises(CheckpointError, match="expected peft_type to be one of"):
        import_peft(place, lm=str(folder))


def test_the_command_line_does_both(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from graftlm import grafts

    grafts.save(build("prompt_tuning", folder), tmp_path / "graft")
    assert main(["export", "peft", str(tmp_path / "graft"), str(tmp_path / "adapter"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["system"] == "prompt_tuning"
    again = ["import", "peft", str(tmp_path / "adapter"), str(tmp_path / "back"), "--precision", "float32", "--json"]
    assert main([*again, "--lm", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 5 * 32
