"""A later stage of training: it begins with a graft, and may train a part of it alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from graftlm import grafts
from graftlm.config import Recipe
from graftlm.errors import CheckpointError, ConfigError, FrozenError
from graftlm.storage import step_folders
from graftlm.train.setup import build_system, complete_recipe, prepare
from graftlm.train.trainer import Trainer, train

RecipeMaker = Callable[..., Recipe]


@pytest.fixture
def first(make_recipe: RecipeMaker, tmp_path: Path) -> Path:
    return train(make_recipe(run={"graft_dtype": "float32"}), run_folder=tmp_path / "first", quiet=True).folder


def second(make_recipe: RecipeMaker, first: Path, **stage: object) -> Recipe:
    steps = {"lr": 1e-2, "batch_size": 4, "max_steps": 4, "eval_every": 0, "save_every": 2}
    return make_recipe(system={"start": str(first), **stage}, train=steps, run={"graft_dtype": "float32"})


def test_a_stage_begins_with_the_weights_of_the_one_before(make_recipe: RecipeMaker, first: Path) -> None:
    before = grafts.load(first).trainable_state()
    for start in (first, first / "graft"):
        begun = build_system(second(make_recipe, start)).trainable_state()
        assert all(torch.equal(begun[name], before[name]) for name in before)
    fresh = build_system(make_recipe()).trainable_state()
    assert not all(torch.equal(fresh[name], before[name]) for name in before)


def test_only_what_the_patterns_name_is_trained_and_the_graft_holds_all(
    make_recipe: RecipeMaker, first: Path, tmp_path: Path
) -> None:
    before = grafts.load(first).trainable_state()
    recipe = second(make_recipe, first, only=["*bias"])
    result = train(recipe, run_folder=tmp_path / "second", quiet=True)
    after = grafts.load(result.graft).trainable_state()
    assert set(after) == set(before)
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    assert changed == {name for name in before if name.endswith("bias")}
    assert result.trainable_parameters == sum(before[name].numel() for name in changed)
    training = grafts.read_description(result.graft)["training"]
    assert (training["steps"], training["start"]["steps"], training["only"]) == (4, 12, ["*bias"])
    assert "4 steps (0.0 minutes), after 12 steps" in (result.graft / "README.md").read_text()
    assert str(tmp_path) not in (result.graft / "graft.json").read_text()


def test_a_stage_that_is_stopped_goes_on(make_recipe: RecipeMaker, first: Path, tmp_path: Path) -> None:
    recipe = second(make_recipe, first, only=["*bias"])
    whole = train(recipe, run_folder=tmp_path / "whole", quiet=True)
    train(recipe, run_folder=tmp_path / "stopped", quiet=True)
    last = step_folders(tmp_path / "stopped" / "checkpoints")[-1]
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    again = train(recipe, run_folder=tmp_path / "stopped", resume=True, quiet=True)
    one, other = (grafts.load(result.graft).trainable_state() for result in (whole, again))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_a_stage_holds_is_guarded_as_what_is_frozen(make_recipe: RecipeMaker, first: Path, tmp_path: Path) -> None:
    recipe = second(make_recipe, first, only=["*bias"])
    with prepare(recipe, tmp_path / "second", resume=False, quiet=True) as run:
        trainer = Trainer(run.system, run.recipe, run.folder, run.source, run.validation, quiet=True)
        held = run.system.get_parameter(sorted(run.system.held)[0])
        run.system.after_step = lambda: held.data.add_(1.0)  # type: ignore[method-assign, assignment, return-value]
        with pytest.raises(FrozenError, match="has changed since the run began"):
            trainer.run()


@pytest.mark.parametrize(
    ("table", "error", "sentence"),
    [
        ({"start": "nowhere"}, CheckpointError, "expected a graft's folder"),
        ({"only": ["no.such.*"]}, ConfigError, "system.only: expected patterns of trained tensors"),
    ],
)
def test_a_stage_that_cannot_begin_is_refused(
    table: dict[str, object], error: type[Exception], sentence: str, make_recipe: RecipeMaker, first: Path
) -> None:
    with pytest.raises(error, match=sentence):
        build_system(second(make_recipe, first, **table))


def test_a_graft_of_another_system_or_shape_is_no_beginning(make_recipe: RecipeMaker, first: Path) -> None:
    toys = {"lm": "toy", "encoder": "toy", "precision": "float32", "start": str(first)}
    other = second(make_recipe, first).to_dict()
    other["system"] = {"name": "frozen", **toys}
    with pytest.raises(CheckpointError, match="expected a graft of 'frozen', found one of 'clipcap'"):
        build_system(complete_recipe(other))
    other["system"] = {"name": "clipcap", **toys, "num_tokens": 3}
    with pytest.raises(CheckpointError, match="expected shape"):
        build_system(complete_recipe(other))


def test_an_unfinished_run_is_no_beginning(make_recipe: RecipeMaker, first: Path) -> None:
    for file in (first / "graft").iterdir():
        file.unlink()
    with pytest.raises(CheckpointError, match="found a run that has exported none; finish it first"):
        build_system(second(make_recipe, first))
