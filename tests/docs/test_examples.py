"""Every script of examples/ runs, on toy parts, and stays short."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from graftlm.data.scenes import scene
from graftlm.train.setup import complete_recipe
from graftlm.train.trainer import train
from tests.architecture.source import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PHOTOS = ROOT / "examples" / "photos"


@pytest.fixture(scope="module")
def toy_graft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graft over toy parts that can write a few bytes."""
    recipe = complete_recipe(
        {
            "system": {"name": "clipcap", "lm": "toy", "encoder": "toy", "precision": "float32", "num_tokens": 2},
            "data": {"train": {"reader": "scenes", "limit": 8}},
            "train": {"batch_size": 4, "max_steps": 2, "eval_every": 0},
        }
    )
    return train(recipe, run_folder=tmp_path_factory.mktemp("run"), quiet=True).graft


def run(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    return capsys.readouterr().out


def test_every_example_is_under_test_and_at_most_sixty_lines() -> None:
    tested = Path(__file__).read_text(encoding="utf-8")
    assert len(EXAMPLES) >= 4
    for path in EXAMPLES:
        assert f'"{path.name}"' in tested
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


def test_photos_are_captioned(
    toy_graft: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = [str(PHOTOS / "cat.jpg"), str(PHOTOS / "rocket.jpg")]
    out = run("caption_photo.py", [*photos, "--graft", str(toy_graft)], monkeypatch, capsys)
    assert out.count("cat.jpg\t") == out.count("rocket.jpg\t") == 1


def test_a_graft_is_trained_on_a_folder_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = []
    for index in range(16):
        found = scene("position", 0, "train", index)
        found.draw().save(tmp_path / f"{index}.png")
        rows.append(json.dumps({"file_name": f"{index}.png", "text": found.caption}) + "\n")
    (tmp_path / "metadata.jsonl").write_text("".join(rows))
    arguments = [str(tmp_path), "--minutes", "0.01", "--lm", "toy", "--encoder", "toy", "--run", str(tmp_path / "run")]
    out = run("train_on_folder.py", arguments, monkeypatch, capsys)
    assert "parameters trained in" in out
    assert "0.png\t" in out
    assert "(you wrote: " in out


def test_few_shot_prompts_are_sums_of_sentences(
    toy_graft: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run("few_shot.py", ["--graft", str(toy_graft)], monkeypatch, capsys)
    assert all(f"{count} examples: " in out for count in range(3))


def test_frozen_parts_are_swapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--lm", "toy", "--encoder", "toy", "--steps", "3", "--scenes", "32", "--runs", str(tmp_path)]
    out = run("swap_parts.py", arguments, monkeypatch, capsys)
    assert out.startswith("toy+toy: ")
    assert "frozen parts unchanged" in out


def test_every_photo_has_its_credit() -> None:
    credits = (PHOTOS / "CREDITS.md").read_text(encoding="utf-8")
    photos = sorted(PHOTOS.glob("*.jpg"))
    assert len(photos) >= 4
    assert all(f"`{photo.name}`" in credits for photo in photos)
