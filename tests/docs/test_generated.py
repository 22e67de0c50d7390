"""Tables that come from files are as the files are."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from graftlm.cli.main import verbs
from graftlm.evaluate import claims
from graftlm.systems.base import system_names
from tests.architecture.source import ROOT


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_tables_are_fresh(generate: ModuleType) -> None:
    stale = [name for name in generate.FILES if generate.fill(text := (ROOT / name).read_text("utf-8")) != text]
    assert stale == [], "run: make docs"


def test_the_page_of_claims_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert claims.main(["--check"]) == 0, "run: make docs"


def test_every_system_and_verb_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert [name for name in system_names() if f"systems/{name}.py" not in readme] == []
    assert [verb for verb in verbs() if f"`graft {verb}`" not in readme] == []


def test_a_stale_table_is_made_anew_and_the_rest_is_kept(generate: ModuleType) -> None:
    text = "before\n<!-- systems:begin -->\nold\n<!-- systems:end -->\nafter\n"
    made = generate.fill(text)
    assert made.startswith("before\n")
    assert made.endswith("\nafter\n")
    assert "old" not in made
    assert "arXiv:2106.13884" in made
    assert generate.fill(made) == made


def test_a_marker_without_a_table_is_an_error(generate: ModuleType) -> None:
    with pytest.raises(KeyError, match="nothing"):
        generate.fill("<!-- nothing:begin --><!-- nothing:end -->")
