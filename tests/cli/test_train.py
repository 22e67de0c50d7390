"""`graft train`: what it prints, where, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graftlm.cli.main import main
from graftlm.train import trainer

RECIPE = """
system: {name: clipcap, lm: toy, encoder: toy, precision: float32, num_tokens: 2}
data:
  train: {reader: scenes, limit: 8}
  val: {reader: scenes, split: val, limit: 4}
train: {lr: 1e-2, batch_size: 2, max_steps: 3}
evaluate: {max_tokens: 2, num_samples: 1}
run: {threads: 2}
"""


@pytest.fixture
def recipe_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


def test_print_shows_every_default_with_its_meaning(recipe_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe_path), "--print", "--set", "train.lr=0.5"]) == 0
    shown = capsys.readouterr().out
    assert "lr: 0.5  # peak learning rate" in shown
    assert "clip_length: 10" in shown
    assert not Path("runs").exists()


def test_a_run_lands_in_a_folder_of_the_recipes_name(recipe_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe_path), "--quiet", "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1])
    assert (result["steps"], result["stopped_by"], result["frozen_unchanged"]) == (3, "steps", True)
    assert result["graft"] == "runs/tiny/graft"
    assert Path("runs/tiny/graft/graft.json").is_file()
    assert main(["train", str(recipe_path), "--quiet", "--resume"]) == 0
    assert "frozen parts unchanged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--set", "train.learning_rate=1"], 1, "--set: unknown key 'train.learning_rate'; did you mean 'train.lr'?"),
        (["--set", "train.lr"], 1, "--set train.lr: expected table.key=value"),
        (["--max-minutes", "0"], 1, "--set: train.max_minutes: expected a number above 0"),
        (["--resume"], 2, "expected a checkpoint to go on from, found none"),
        (["--set", "data.train.path=/nowhere", "--set", "data.train.reader=coco"], 1, "nowhere"),
        (["--set", "system.lm=tpy"], 1, "tpy"),
    ],
)
def test_a_mistake_is_answered_with_a_sentence_and_an_exit_code(
    arguments: list[str], code: int, sentence: str, recipe_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(recipe_path), "--quiet", *arguments]) == code
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


def test_an_interrupted_run_exits_130_with_one_line(
    recipe_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "train", interrupted)
    assert main(["train", str(recipe_path), "--quiet"]) == 130
    assert capsys.readouterr().err == "stopped; the same command goes on from the newest checkpoint in runs/tiny\n"
