"""One clean world per test run: its own GRAFTLM_HOME, no network, one thread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("GRAFTLM_DEBUG", None)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def graftlm_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty $GRAFTLM_HOME for the whole run, so that converted models and features are shared between tests."""
    home = tmp_path_factory.mktemp("graftlm_home")
    before = os.environ.get("GRAFTLM_HOME")
    os.environ["GRAFTLM_HOME"] = str(home)
    yield home
    os.environ.pop("GRAFTLM_HOME")
    if before is not None:
        os.environ["GRAFTLM_HOME"] = before


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """One thread of torch, whatever a recipe of the test before has set: sums must not depend on the machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; the test skips where it does not exist."""
    if not SHARED_DATA.is_dir():
        pytest.skip("real data: there is no ../shared/data on this machine")
    return SHARED_DATA
