"""`graft systems`, and the papers it reads."""

from __future__ import annotations

import json

import pytest

from graftlm.cli.main import main
from graftlm.errors import DataError
from graftlm.papers import papers, read_paper
from graftlm.systems.base import system_names


def test_every_system_has_its_paper_in_the_form_that_is_read() -> None:
    found = papers()
    assert [paper.name for paper in found] == system_names()
    for paper in found:
        assert paper.title
        assert paper.authors
        assert paper.differences


def test_the_list_names_every_system_with_its_arxiv_id(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["systems"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == system_names()
    assert all("arXiv:" in line for line in lines)


def test_the_json_list_holds_every_system(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["systems", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["systems"]] == system_names()


def test_one_system_is_shown_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["systems", "clipcap"]) == 0
    text = capsys.readouterr().out
    assert "arxiv.org/abs/2111.09734" in text
    assert "num_tokens" in text
    assert "Differences from the paper" in text


def test_an_unknown_system_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["systems", "clipkap"]) == 2
    assert "did you mean 'clipcap'?" in capsys.readouterr().err


def test_a_docstring_in_another_form_is_refused() -> None:
    with pytest.raises(DataError, match=r"systems/x\.py: expected a docstring of title"):
        read_paper("x", "A title.\n\nNobody. Nowhere.\n\nAn idea.")


def test_a_docstring_is_read_part_by_part() -> None:
    source = "A, B.\nICML 2020. arXiv:2001.00001"
    listed = "Differences from the paper:\n- one\n  more\n- two"
    paper = read_paper("x", f"A title.\n\n{source}\n\nAn\nidea.\n\n{listed}")
    assert (paper.title, paper.authors, paper.venue, paper.arxiv) == ("A title", "A, B", "ICML 2020", "2001.00001")
    assert paper.idea == "An idea."
    assert paper.differences == ("one more", "two")
