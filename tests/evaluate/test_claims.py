"""docs/claims.md says what results/claims says, and no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from graftlm.errors import DataError
from graftlm.evaluate.claims import FOLDER, PAGE, load, main, render
from tests.architecture.source import ROOT

CLAIM: dict[str, Any] = {
    "id": "more-tokens",
    "paper": "Mokady et al., ClipCap §4, arXiv:2111.09734",
    "claim": "A longer prefix | captions better.",
    "ours": {
        "10 tokens": {
            "n": 1000,
            "metrics": {"CIDEr": 41.26},
            "intervals": {"CIDEr": [39.1, 43.4]},
            "controls": {"blind": {"CIDEr": 3.04}},
        },
        "1 token": {"n": 1000, "metrics": {"CIDEr": 30.0}},
    },
    "command": "graft evaluate runs/x captioning --data DIR --split test",
    "verdict": "holds here",
    "note": "Eleven points.",
}


def write(folder: Path, **changes: Any) -> Path:
    target = folder / FOLDER / "more-tokens.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({**CLAIM, **changes}), encoding="utf-8")
    return target.parent


def test_the_page_of_this_repository_is_fresh() -> None:
    assert (ROOT / PAGE).read_text("utf-8") == render(load(ROOT / FOLDER)), "run: make docs"


def test_a_claim_becomes_a_line_and_a_section(tmp_path: Path) -> None:
    text = render(load(write(tmp_path)))
    assert "| [more-tokens](#more-tokens) |" in text
    assert "A longer prefix \\| captions better. | holds here |" in text
    assert "| 10 tokens | 1000 | CIDEr | 41.3 [39.1, 43.4] | 3.0 |" in text
    assert "| 1 token | 1000 | CIDEr | 30.0 |  |" in text
    assert "graft evaluate runs/x" in text


def test_the_page_is_written_and_a_stale_one_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    assert main(["--check", "--root", str(tmp_path)]) == 1
    assert main(["--root", str(tmp_path)]) == 0
    assert main(["--check", "--root", str(tmp_path)]) == 0
    write(tmp_path, verdict="does not hold here")
    assert main(["--check", "--root", str(tmp_path)]) == 1
    assert "make docs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"verdict": "proved"}, "verdict"),
        ({"date": "today"}, "date"),
        ({"ours": {}}, "ours"),
        ({"ours": {"x": {"n": 0, "metrics": {}}}}, "ours.x.n"),
        ({"id": "other"}, "expected id 'more-tokens'"),
    ],
)
def test_a_file_that_is_no_claim_is_named_with_its_fault(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    folder = write(tmp_path, **changes)
    with pytest.raises(DataError, match=r"more-tokens\.json") as raised:
        load(folder)
    assert words in str(raised.value)
