"""The frame around the verbs: found by file, loaded when called, errors in words."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import graftlm
from graftlm.cli import main as cli
from graftlm.cli.main import main, verbs
from graftlm.errors import DataError, UsageError

VERB = "systems"


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Makes the verb `systems` raise."""

    def failing() -> None:
        raise error

    monkeypatch.setattr(importlib.import_module(f"graftlm.cli.{VERB}"), VERB, failing)


def test_verbs_are_the_files_of_the_folder() -> None:
    folder = Path(cli.__file__).parent
    files = {path.stem.replace("_", "-") for path in folder.glob("*.py")} - {"main", "--init--"}
    assert set(verbs()) == files


@pytest.mark.parametrize("verb", verbs())
def test_a_verb_has_a_line_of_help_and_something_to_call(verb: str) -> None:
    module = importlib.import_module(f"graftlm.cli.{verb.replace('-', '_')}")
    assert verbs()[verb]
    assert hasattr(module, "app") or callable(getattr(module, verb.replace("-", "_")))


@pytest.mark.parametrize("verb", verbs())
def test_the_help_of_a_verb_is_printed(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert f"graft {verb}" in capsys.readouterr().out


def test_no_arguments_print_the_help_with_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    words = capsys.readouterr().out.split()
    assert set(verbs()) <= set(words)


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"graftlm {graftlm.__version__}\n"


def test_an_unknown_verb_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["captoin", "x.jpg"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("unknown verb 'captoin'; did you mean 'caption'? (there are: ask, ")


def test_an_unknown_option_is_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([VERB, "--josn"]) == 2
    assert "--json" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), [(DataError("the sentence"), 1), (UsageError("the sentence"), 2)])
def test_an_error_of_ours_is_its_sentence_and_its_exit_code(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(monkeypatch, error)
    assert main([VERB]) == code
    assert capsys.readouterr().err == "the sentence\n"


def test_an_error_of_the_machine_names_the_path(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(monkeypatch, PermissionError(13, "Permission denied", "out/graft.json"))
    assert main([VERB]) == 1
    assert capsys.readouterr().err.startswith("out/graft.json: Permission denied; ")


def test_any_other_error_is_called_a_bug_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(monkeypatch, ZeroDivisionError("line one\nline two"))
    assert main([VERB]) == 1
    sentence = capsys.readouterr().err
    assert sentence.startswith(
        "this is a bug in GraftLM (ZeroDivisionError: line one line two); rerun with GRAFTLM_DEBUG=1"
    )
    assert sentence.count("\n") == 1


def test_with_debug_the_traceback_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, ZeroDivisionError())
    monkeypatch.setenv("GRAFTLM_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main([VERB])


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(monkeypatch, KeyboardInterrupt())
    assert main([VERB]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_reader_that_goes_away_leaves_no_traceback() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = f"{sys.executable} -m graftlm {VERB} --json | true"
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
