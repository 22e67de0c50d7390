"""What starts quickly stays quick: torch is loaded by those who need it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from graftlm.cli.main import verbs
from tests.architecture.source import ROOT

HEAVY = ("torch", "transformers", "datasets", "accelerate", "numpy", "PIL", "pydantic")
HELP_S = 0.5
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src")}


def loaded_after(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after `code`."""
    script = f"import sys\n{code}\nprint(' '.join(m for m in {HEAVY!r} if m in sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_importing_graftlm_loads_no_heavy_package() -> None:
    assert loaded_after("import graftlm; dir(graftlm); graftlm.__version__") == set()


def test_sentences_and_errors_load_no_heavy_package() -> None:
    assert loaded_after("from graftlm import GraftError, Image, Sentence, Text; Sentence.of(Text('x'))") == set()


def test_a_heavy_package_would_be_noticed() -> None:
    assert loaded_after("import numpy") == {"numpy"}


@pytest.mark.parametrize("verb", [None, *verbs()])
def test_help_loads_no_heavy_package(verb: str | None) -> None:
    arguments = [verb, "--help"] if verb else ["--help"]
    assert loaded_after(f"from graftlm.cli.main import main; assert main({arguments!r}) == 0") <= {"pydantic"}


def test_help_takes_less_than_half_a_second_of_processor_time() -> None:
    times = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-m", "graftlm", "--help"], env=ENVIRONMENT, capture_output=True, check=True)
        after = os.times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(times) < HELP_S
