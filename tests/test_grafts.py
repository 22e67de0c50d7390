"""Grafts: saved whole, loaded only where they belong, refused when broken or hostile."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from graftlm.data.scenes import Scenes
from graftlm.errors import CheckpointError, ConfigError, GraftError
from graftlm.grafts import load, ready_made, save
from graftlm.grafts.card import most_restrictive
from graftlm.lm.decode import Decoding
from graftlm.storage import sha256, tensor_bytes
from graftlm.systems.base import System
from graftlm.train.setup import build_system, complete_recipe
from graftlm.train.trainer import train

TREE: dict[str, Any] = {
    "system": {"name": "clipcap", "lm": "toy", "encoder": "toy", "precision": "float32", "num_tokens": 2},
    "data": {"train": {"reader": "scenes", "limit": 8}, "val": {"reader": "scenes", "split": "val", "limit": 4}},
    "train": {"max_steps": 2, "batch_size": 2},
    "evaluate": {"max_tokens": 4, "num_samples": 1},
    "run": {"threads": 1},
}
PROMPTS = [sample.sentence.prompt() for sample in Scenes("val", 3)]


@pytest.fixture
def system() -> System:
    return build_system(complete_recipe(TREE)).eval()


def answers(system: System) -> list[str]:
    return [answer.text() for answer in system.respond(PROMPTS, Decoding(max_tokens=6))]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0.0), ("float16", 1e-3), ("bfloat16", 1e-2)])
def test_a_loaded_graft_is_the_saved_one(dtype: str, tolerance: float, system: System, tmp_path: Path) -> None:
    save(system, tmp_path / "g", dtype=dtype)
    loaded = load(tmp_path / "g")
    assert not loaded.training
    own = system.trainable_state()
    for name, tensor in loaded.trainable_state().items():
        assert tensor.dtype == torch.float32
        assert torch.allclose(tensor, own[name], atol=tolerance, rtol=tolerance)
    if dtype == "float32":
        assert answers(loaded) == answers(system)


def test_half_precision_halves_the_file(system: System, tmp_path: Path) -> None:
    sizes = {
        dtype: (save(system, tmp_path / dtype, dtype=dtype) / "graft.safetensors").stat().st_size
        for dtype in ("float32", "float16")
    }
    assert sizes["float16"] < 0.6 * sizes["float32"]


def test_saving_leaves_other_files_of_the_folder_alone(system: System, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    system.save_pretrained(tmp_path)
    system.save_pretrained(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["README.md", "graft.json", "graft.safetensors", "notes.txt"]
    assert answers(type(system).from_pretrained(tmp_path)) == answers(system)


def test_the_card_opens_with_what_a_hub_reads(system: System, tmp_path: Path) -> None:
    training = {"steps": 5, "seconds": 60, "loss": 2.5, "blind_loss": 3.0, "datasets": ["flickr8k"]}
    save(system, tmp_path / "g", training=training, card={"metrics": ["cider"]})
    _, header, body = (tmp_path / "g" / "README.md").read_text().split("---\n", 2)
    keys = yaml.safe_load(header)
    assert keys["library_name"] == "graftlm"
    assert keys["base_model_relation"] == "adapter"
    assert keys["base_model"] == ["toy"]
    assert (keys["datasets"], keys["metrics"], keys["license"]) == (["flickr8k"], ["cider"], "mit")
    assert "2.500 nats, 3.000 with black pictures" in body
    assert str(tmp_path) not in body


def test_the_strictest_licence_binds_and_an_unknown_one_is_the_strictest() -> None:
    assert most_restrictive(["mit", "apache-2.0"]) == "apache-2.0"
    assert most_restrictive(["mit", "llama3"]) == "other"


def test_a_run_is_loaded_by_its_folder_finished_or_not(tmp_path: Path) -> None:
    train(complete_recipe(TREE), run_folder=tmp_path, quiet=True)
    finished = answers(load(tmp_path))
    for path in (tmp_path / "graft").iterdir():
        path.unlink()
    assert len(answers(load(tmp_path))) == len(finished)


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "graft.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


def put(folder: Path, data: bytes, *, honest: bool) -> None:
    """Other tensors; `honest`: graft.json knows of them."""
    (folder / "graft.safetensors").write_bytes(data)
    if honest:
        edit(folder, lambda description: description.update(sha256=sha256(folder / "graft.safetensors")))


def tensors_but(folder: Path, **changes: torch.Tensor) -> bytes:
    from graftlm.storage import read_tensors

    return tensor_bytes({**read_tensors(folder / "graft.safetensors"), **changes})


def pickled(folder: Path) -> None:
    (folder / "graft.json").unlink()
    torch.save({"w": torch.ones(1)}, folder / "pytorch_model.bin")


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no description": (lambda f: (f / "graft.json").unlink(), "expected graft.json or a run's checkpoints"),
    "a pickle instead": (pickled, "found a pickle"),
    "no tensors": (lambda f: (f / "graft.safetensors").unlink(), "cannot be read"),
    "cut tensors": (
        lambda f: put(f, (f / "graft.safetensors").read_bytes()[:-3], honest=True),
        "not a whole safetensors",
    ),
    "other tensors": (
        lambda f: put(f, tensors_but(f, **{"connector.projection.bias": torch.ones(64)}), honest=False),
        "not those",
    ),
    "NaN": (
        lambda f: put(f, tensors_but(f, **{"connector.projection.bias": torch.full((64,), torch.nan)}), honest=True),
        "NaN",
    ),
    "a tensor too many": (lambda f: put(f, tensors_but(f, evil=torch.ones(1)), honest=True), "unknown 'evil'"),
    "another shape": (
        lambda f: put(f, tensors_but(f, **{"connector.projection.bias": torch.ones(3)}), honest=True),
        "found [3]",
    ),
    "broken JSON": (lambda f: (f / "graft.json").write_text("{"), "not valid JSON"),
    "a format of the future": (lambda f: edit(f, lambda d: d.update(format=99)), "expected format 1, found 99"),
    "a key of another type": (lambda f: edit(f, lambda d: d.update(frozen_parts=[])), "expected 'frozen_parts'"),
    "an unknown system": (lambda f: edit(f, lambda d: d.update(system="clipcop")), "did you mean 'clipcap'"),
    "an unknown config key": (lambda f: edit(f, lambda d: d["config"].update(evil=1)), "unknown to this graftlm"),
    "another width": (lambda f: edit(f, lambda d: d["config"].update(num_tokens=3)), "expected shape"),
    "another language model": (
        lambda f: edit(f, lambda d: d["frozen_parts"]["lm"].update(fingerprint="0" * 64)),
        "frozen part 'lm' (toy): expected 0000000000000000",
    ),
    "a config of 10^12 soft tokens": (
        lambda f: edit(f, lambda d: d["config"].update(rank=10**12, mapper="grid")),
        "asks for",
    ),
    "a config of a million layers": (
        lambda f: edit(f, lambda d: d["config"].update(num_layers=10**6, mapper="transformer")),
        "is broken or hostile",
    ),
    "a config of more heads than numbers": (
        lambda f: edit(f, lambda d: d["config"].update(num_heads=10**30, mapper="transformer")),
        "do not divide the width",
    ),
    "a config beyond any size": (
        lambda f: edit(f, lambda d: d["config"].update(rank=10**30, mapper="grid")),
        "cannot be built",
    ),
    "a description of 20 MB": (
        lambda f: edit(f, lambda d: d.update(training={"x": "y" * 20_000_000})),
        "expected a few kB",
    ),
    "no word of the encoder": (lambda f: edit(f, lambda d: d["frozen_parts"].pop("encoders.image")), "encoders.image"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_graft_is_refused_in_one_sentence(kind: str, system: System, tmp_path: Path) -> None:
    folder = save(system, tmp_path / "g")
    load(folder)
    damage, sentence = BROKEN[kind]
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hostile_config_takes_no_memory(system: System, tmp_path: Path) -> None:
    folder = save(system, tmp_path / "g")
    edit(folder, lambda description: description["config"].update(rank=2**28, mapper="grid"))  # 130 GB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=r"asks for .* numbers or more, its tensors hold"):
        load(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("no-such-graft", "expected a graft's folder, a run, a hub id"),
        ("nobody/no-such-graft", "cannot be fetched from the hub"),
        ("weights.bin", "found a pickle"),
    ],
)
def test_a_name_that_leads_nowhere_is_answered_in_words(source: str, sentence: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(source)
    assert sentence in str(caught.value)


def test_values_that_do_not_fit_into_half_precision_are_refused(system: System, tmp_path: Path) -> None:
    with torch.no_grad():
        next(iter(system.trainable()))[1].fill_(1e6)
    with pytest.raises(CheckpointError, match="do not fit into float16"):
        save(system, tmp_path / "g", dtype="float16")
    with pytest.raises(GraftError, match="found 'int3'"):
        save(system, tmp_path / "g", dtype="int3")


def test_ready_made_grafts_are_whole_and_small() -> None:
    for name, folder in ready_made().items():
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 6_000_000, name
        assert (folder / "README.md").read_text().startswith("---\nlibrary_name: graftlm")


def test_a_config_error_stays_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        complete_recipe({**TREE, "system": {"name": "nothing"}})


def test_an_empty_name_is_no_graft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="found an empty one"):
        load("")
