"""The house rules, read off the source: every failure gives file, line and rule."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest

from tests.architecture import rules
from tests.architecture.source import ROOT, Source, sources, tracked_files

Rule = Callable[[Sequence[Source]], Iterator[str]]
TREE_RULES: list[Rule] = [
    rules.imports_follow_the_table,
    rules.systems_never_import_each_other,
    rules.nothing_imports_the_front_ends,
    rules.third_parties_stay_in_their_place,
    rules.classes_are_abstract_or_final,
    rules.forward_has_no_mode,
    rules.no_pickle,
    rules.no_bare_except,
    rules.everything_public_has_a_docstring,
]
BINARY = {".png", ".jpg", ".jpeg", ".gif", ".safetensors", ".ogg", ".wav", ".gz", ".tar", ".parquet"}


def problems(found: Iterable[str]) -> str:
    return "\n".join(sorted(set(found)))


@pytest.mark.parametrize("rule", TREE_RULES, ids=lambda rule: rule.__name__)
def test_the_source_keeps_the_rule(rule: Rule) -> None:
    assert problems(rule(sources())) == ""


def test_files_functions_and_signatures_are_small() -> None:
    exceptions = tomllib.loads((ROOT / "tests" / "size_exceptions.toml").read_text())
    assert problems(rules.sizes_are_kept(sources(), exceptions)) == ""


def test_what_is_imported_is_declared() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert problems(rules.third_parties_are_declared(sources(), pyproject)) == ""


def test_no_file_is_called_utils() -> None:
    assert problems(rules.names_have_a_home(str(p.relative_to(ROOT)) for p in tracked_files())) == ""


def test_no_tracked_file_names_a_machine_or_a_registry() -> None:
    own = {"tests/architecture/rules.py", "tests/test_architecture.py"}
    texts = {
        name: path.read_text(encoding="utf-8")
        for path in tracked_files()
        if (name := path.relative_to(ROOT).as_posix()) not in own and path.suffix not in BINARY
    }
    assert problems(rules.no_machine_is_named(texts)) == ""


def test_the_package_has_at_most_sixteen_public_names() -> None:
    import graftlm

    assert len(graftlm.__all__) <= 16
    for name in graftlm.__all__:
        assert getattr(graftlm, name) is not None


BROKEN = [
    ("data/x.py", "import torch", "third_parties_stay_in_their_place"),
    ("lm/x.py", "def f():\n    import transformers", "third_parties_stay_in_their_place"),
    ("nn/x.py", "import numpy", "third_parties_stay_in_their_place"),
    ("cli/x.py", "import rich", "third_parties_stay_in_their_place"),
    ("data/x.py", "from graftlm.lm.base import Tokenizer", "imports_follow_the_table"),
    ("data/x.py", "from graftlm import lm", "imports_follow_the_table"),
    ("train/x.py", "from graftlm.systems import clipcap", "imports_follow_the_table"),
    ("train/x.py", "from graftlm.backbones import home", "imports_follow_the_table"),
    ("nn/x.py", "from . import attention", "imports_follow_the_table"),
    ("new/x.py", "import os", "imports_follow_the_table"),
    ("cli/x.py", "from graftlm.systems.base import System", "imports_follow_the_table"),
    ("systems/x.py", "from graftlm.systems.clipcap import ClipCap", "systems_never_import_each_other"),
    ("doctor.py", "def f():\n    from graftlm.cli import main", "nothing_imports_the_front_ends"),
    ("nn/x.py", "class A(nn.Module): ...\nclass B(A): ...", "classes_are_abstract_or_final"),
    ("nn/x.py", "class A:\n    def forward(self, x, mode: str): ...", "forward_has_no_mode"),
    ("lm/x.py", "import pickle", "no_pickle"),
    ("lm/x.py", "import torch\ntorch.load('x')", "no_pickle"),
    ("lm/x.py", "try:\n    pass\nexcept:\n    pass", "no_bare_except"),
    ("lm/x.py", '"""A module."""\ndef f(): ...', "everything_public_has_a_docstring"),
    ("lm/x.py", '"""A module."""\nclass A:\n    """A."""\n    def f(self): ...', "everything_public_has_a_docstring"),
]


@pytest.mark.parametrize(("path", "text", "rule"), BROKEN)
def test_a_file_that_breaks_a_rule_is_found(path: str, text: str, rule: str) -> None:
    found = list(getattr(rules, rule)([Source(f"src/graftlm/{path}", text)]))
    assert len(found) == 1
    assert found[0].startswith(f"src/graftlm/{path}:")


FINE = [
    ("data/chat.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from graftlm.lm.base import Tokenizer"),
    ("systems/x.py", "from graftlm.systems.base import System\nfrom graftlm.connectors.mlp import MLP"),
    ("cli/x.py", "import typer\ndef f():\n    import torch\n    from graftlm.train.trainer import train"),
    ("errors.py", "class GraftError(Exception): ...\nclass A(GraftError): ...\nclass B(A): ..."),
    ("encoders/x.py", "class A(nn.Module, ABC): ...\nclass B(A): ..."),
]


@pytest.mark.parametrize(("path", "text"), FINE)
def test_a_file_that_keeps_the_rules_is_left_alone(path: str, text: str) -> None:
    file = Source(f"src/graftlm/{path}", text)
    import_rules = [rule for rule in TREE_RULES if rule is not rules.everything_public_has_a_docstring]
    assert problems(line for rule in import_rules for line in rule([file])) == ""


def test_sizes_count_code_and_not_words() -> None:
    words = Source("src/graftlm/x.py", '"""Doc.\n\nMore.\n"""\n# why\n\nx = 1\n')
    assert words.size() == 1
    long = Source("src/graftlm/x.py", "def f():\n" + "    x = 1\n" * 60)
    assert [rule for _, _, rule in rules.sizes([long])] == ["f has 61 lines of code, at most 60"]
    wide = Source("src/graftlm/x.py", "def f(self, a, b, c, d, e, f, g, h, *, i): ...")
    assert [rule for _, _, rule in rules.sizes([wide])] == ["f has 9 parameters, at most 8"]
    assert len(list(rules.sizes([Source("src/graftlm/x.py", "x = 1\n" * 401)]))) == 1


def test_an_exception_that_is_not_needed_is_reported() -> None:
    found = list(rules.sizes_are_kept([], {"src/graftlm/gone.py": "it was once long"}))
    gone = "'src/graftlm/gone.py' is within the limits or gone; remove its exception"
    assert found == [f"tests/size_exceptions.toml:1: {gone}"]


def test_machine_paths_and_registries_are_found_in_texts() -> None:
    lines = {"a": "see /work/shared", "b": "x /root/y", "c": "pip install --index-url x", "d": "frame/work/ ~/work/x"}
    assert sorted(line[0] for line in rules.no_machine_is_named(lines)) == ["a", "b", "c"]
