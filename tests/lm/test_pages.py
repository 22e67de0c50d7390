"""Giving pages back changes no value, and touches nothing that no file holds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from graftlm.lm.pages import give_back

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux knows how")
COUNT = 1 << 16


def test_values_read_from_a_file_and_values_written_over_them_stay_what_they_are(tmp_path: Path) -> None:
    save_file({"weight": torch.arange(COUNT, dtype=torch.float32)}, tmp_path / "one.safetensors")
    weight = torch.from_file(str(tmp_path / "one.safetensors"), shared=False, size=COUNT, dtype=torch.float32)
    weight[COUNT // 2 :] = 7.0
    before = weight.clone()
    assert give_back([weight]) > 0
    assert torch.equal(weight, before)
    loaded = load_file(tmp_path / "one.safetensors")["weight"]
    give_back([loaded])
    assert torch.equal(loaded, torch.arange(COUNT, dtype=torch.float32))


def test_memory_that_mirrors_no_file_is_left_alone() -> None:
    tensor = torch.ones(COUNT)
    assert give_back([tensor, torch.ones(3)]) == 0
    assert float(tensor.sum()) == COUNT
