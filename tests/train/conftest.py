"""Small runs over the toys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from graftlm.config import Recipe
from graftlm.train.setup import complete_recipe

RecipeMaker = Callable[..., Recipe]


@pytest.fixture
def make_recipe() -> RecipeMaker:
    """A recipe of 12 steps over the toys; keyword arguments are whole tables that are merged in."""

    def make(**tables: dict[str, Any]) -> Recipe:
        tree: dict[str, dict[str, Any]] = {
            "system": {"name": "clipcap", "lm": "toy", "encoder": "toy", "precision": "float32", "num_tokens": 2},
            "data": {
                "train": {"reader": "scenes", "split": "train", "limit": 40},
                "val": {"reader": "scenes", "split": "val", "limit": 8},
                "bucket_batches": 2,
            },
            "train": {"lr": 1e-2, "batch_size": 4, "max_steps": 12, "eval_every": 4, "save_every": 2},
            "evaluate": {"sample_every": 6, "num_samples": 2, "max_tokens": 4},
            "run": {"log_every": 1, "threads": 1},
        }
        for name, table in tables.items():
            tree[name] = {**tree[name], **table}
        return complete_recipe(tree)

    return make
