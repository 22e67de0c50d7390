"""Recipes: what is accepted, and the one sentence for what is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field

from graftlm.config import (
    DataTable,
    EvaluateTable,
    Recipe,
    RunTable,
    TrainTable,
    differing_keys,
    load_recipe,
    parse_recipe,
)
from graftlm.errors import ConfigError

GOOD = """
system: {name: clipcap}
data:
  train: {reader: scenes, limit: 8}
train:
  lr: 3e-4
  max_steps: 10
"""


class OwnFields(BaseModel):
    """Stands for a system's config."""

    model_config = ConfigDict(extra="forbid")
    num_tokens: int = Field(10, description="K")


def own_fields(name: str) -> type[BaseModel]:
    if name != "clipcap":
        raise ConfigError(f"unknown system '{name}'")
    return OwnFields


@pytest.fixture
def recipe_path(tmp_path: Path) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(GOOD)
    return path


def test_a_number_may_be_written_with_an_exponent_and_no_dot(recipe_path: Path) -> None:
    assert load_recipe(recipe_path).train.lr == 3e-4


def test_every_default_is_written_out_and_read_back(recipe_path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_path, system_fields=own_fields)
    assert recipe.system.options() == {"num_tokens": 10}
    for described in (False, True):
        again = tmp_path / "again.yaml"
        again.write_text(recipe.to_yaml(described=described))
        assert load_recipe(again, system_fields=own_fields).to_dict() == recipe.to_dict()
    assert set(recipe.to_dict()["train"]) == set(TrainTable.model_fields)


def test_overrides_reach_nested_tables_and_empty_ones(recipe_path: Path) -> None:
    recipe = load_recipe(recipe_path, ["train.batch_size=4", "data.val.reader=coco", "system.num_tokens=2"])
    assert recipe.train.batch_size == 4
    assert recipe.data.val == {"reader": "coco"}
    assert recipe.system.options() == {"num_tokens": 2}


@pytest.mark.parametrize("table", [DataTable, TrainTable, EvaluateTable, RunTable])
def test_a_table_has_at_most_fifteen_fields_and_describes_each(table: type[BaseModel]) -> None:
    assert len(table.model_fields) <= 15
    assert all(field.description for field in table.model_fields.values())


def test_there_are_five_tables() -> None:
    assert list(Recipe.model_fields) == ["system", "data", "train", "evaluate", "run"]


BAD_FILES = [
    (GOOD + "  learning_rate: 3\n", "unknown key 'train.learning_rate'; did you mean 'train.lr'?"),
    (GOOD + "  btach_size: 3\n", "unknown key 'train.btach_size'; did you mean 'train.batch_size'?"),
    (GOOD + "  patience: 3\n", "unknown key 'train.patience'; did you mean 'evaluate.patience'?"),
    (GOOD + "  zzz: 3\n", "unknown key 'train.zzz'; there are: lr, batch_size"),
    (GOOD + "trian: {}\n", "unknown key 'trian'; did you mean 'train'?"),
    (GOOD + "  batch_size: many\n", "train.batch_size: expected a whole number, found 'many'"),
    (GOOD + "  batch_size: 2.5\n", "train.batch_size: expected a whole number, found 2.5"),
    (GOOD + "  batch_size: 0\n", "train.batch_size: expected a number of at least 1, found 0"),
    (GOOD + "  beta2: 1.0\n", "train.beta2: expected a number below 1.0, found 1.0"),
    (GOOD + "  clip_norm: .inf\n", "train.clip_norm: expected a finite number, found inf"),
    (GOOD + "  lr: 1\n", "line 8: not valid YAML: key 'lr' given twice"),
    (
        GOOD + "run: {report_to: slack}\n",
        "run.report_to: expected 'none', 'tensorboard', 'wandb', 'trackio' or 'mlflow'",
    ),
    (GOOD + "data: {}\n", "key 'data' given twice"),
    (GOOD + "evaluate: 3\n", "evaluate: expected a table of keys and values, found 3"),
    (GOOD + "evaluate: {blind: maybe}\n", "evaluate.blind: expected true or false, found 'maybe'"),
    (GOOD.replace("max_steps: 10", "seed: 1"), "train: expected one of epochs, max_steps and max_minutes, found none"),
    (GOOD.replace("system: {name: clipcap}", ""), "'system' is missing; a recipe has the tables system, data"),
    (GOOD.replace("name: clipcap", ""), "'system.name' is missing; it is a system"),
    (GOOD.replace("clipcap", "clipcpa"), "system.name: unknown system 'clipcpa'"),
    (GOOD.replace("name: clipcap", "name: clipcap, num_token: 2"), "did you mean 'system.num_tokens'?"),
    (GOOD + "  lr: [1\n", "not valid YAML"),
    ("[" * 1500, "not valid YAML"),
    ("!!python/object/apply:os.system [ls]", "not valid YAML: could not determine a constructor"),
    ("just words", "expected the tables system, data, train, evaluate, run, found 'just words'"),
    ("", "expected the tables system, data, train, evaluate, run, found nothing"),
    ("{[1]: 2}", "not valid YAML"),
    (GOOD + "1: 2\n", "unknown key '1'"),
]


@pytest.mark.parametrize(("text", "sentence"), BAD_FILES)
def test_a_bad_recipe_is_answered_with_one_sentence_and_its_place(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, system_fields=own_fields)
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


BAD_OVERRIDES = [
    ("train.learning_rate=3", "--set: unknown key 'train.learning_rate'; did you mean 'train.lr'?"),
    ("train.lr", "--set train.lr: expected table.key=value"),
    ("train=3", "--set train=3: expected table.key=value"),
    ("train.lr.x=3", "--set train.lr.x=3: 'train.lr' is a value, not a table"),
    ("train.lr=[", "--set train.lr line 1: not valid YAML"),
    ("train.lr=", "--set: train.lr: expected a number, found nothing"),
]


@pytest.mark.parametrize(("override", "sentence"), BAD_OVERRIDES)
def test_a_bad_override_is_named_as_one(override: str, sentence: str, recipe_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe_path, [override])
    assert str(caught.value).startswith(sentence)


def test_a_file_that_is_no_text_or_absent_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_recipe(path)
    path.write_bytes(b"#" * 1_000_001)
    with pytest.raises(ConfigError, match="at most 1 MB"):
        load_recipe(path)


def test_plain_tables_make_a_recipe_too() -> None:
    tree = {"system": {"name": "clipcap"}, "data": {"train": {}}, "train": {"epochs": 1}, "run": None}
    assert parse_recipe(tree).run.workers == RunTable.model_validate({}).workers
    with pytest.raises(ConfigError, match=r"recipe: train\.epochs"):
        parse_recipe({**tree, "train": {"epochs": "two"}})


def test_differing_keys_are_dotted() -> None:
    assert differing_keys({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == ["a.c", "d"]


def test_reading_a_recipe_needs_no_torch(recipe_path: Path) -> None:
    read = f"import sys; from graftlm.config import load_recipe; load_recipe({str(recipe_path)!r})"
    code = f"{read}; assert 'torch' not in sys.modules"
    path = os.pathsep.join(sys.path)
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})
