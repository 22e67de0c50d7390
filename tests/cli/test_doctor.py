"""`graft doctor`: the environment, and a dry run of the toy pair."""

from __future__ import annotations

import json

import pytest

import graftlm
from graftlm.cli.main import main


def test_alone_it_shows_versions_places_and_extras(capsys: pytest.CaptureFixture[str], graftlm_home: object) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["graftlm"] == graftlm.__version__
    assert found["home"] == str(graftlm_home)
    assert found["packages"]["torch"]
    assert set(found["models"]) == {"smollm2-135m", "efficientnet-lite0", "minilm-l6"}


def test_the_extras_are_those_of_pyproject() -> None:
    import tomllib

    from graftlm.cli.doctor import EXTRAS
    from tests.architecture.source import ROOT

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {name: len(packages) for name, packages in EXTRAS.items()} == {
        name: len(packages) for name, packages in declared.items() if name != "dev"
    }


def test_a_missing_extra_comes_with_the_command_that_installs_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graftlm.cli.doctor._is_there", lambda module: False)
    assert main(["doctor"]) == 0
    assert "missing faiss; run: pip install 'graftlm[index]'" in capsys.readouterr().out


def test_a_toy_pair_is_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["doctor", "--lm", "toy", "--encoder", "toy", "--connector", "linear"]
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["system"] == "frozen"
    assert report["frozen_unchanged"] is True
    assert main(command) == 0
    assert "frozen parts        unchanged" in capsys.readouterr().out
