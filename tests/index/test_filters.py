"""Conditions on photos."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from graftlm.errors import UsageError
from graftlm.index import ImageIndex
from graftlm.index.filters import Filter, parse, parse_all, under, without_paths
from graftlm.index.writer import IndexWriter, Photo
from tests.index.parts import IDENTITY, keys, unit

ROWS = [
    ("/p/holiday/sea.jpg", 100, "2023-06-10", {"author": "Ann", "stars": 5}),
    ("/p/holiday/a b/hill.jpg", 2_500_000, "2023-07-01", {"author": "Bob", "stars": 3.5}),
    ("/p/work/Desk.png", 900, "2022-12-31", {"stars": "5"}),
    ("/p/work/50%.png", 1_000, "2023-12-31", {"tags": ["x"], "author": 'A"n'}),
    ("/pp/other.jpg", 10, "2024-01-01", {}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filters") / "i"
    names = keys(len(ROWS))
    photos = [
        Photo(path, size, 0, key, datetime.fromisoformat(date).timestamp(), json.dumps(row))
        for key, (path, size, date, row) in zip(names, ROWS, strict=True)
    ]
    with IndexWriter(folder, IDENTITY) as writer:
        writer.add(photos, dict(zip(names, unit(len(ROWS)), strict=True)))
    return folder


def found(folder: Path, where: Filter) -> set[str]:
    """The names of the photos that fit."""
    with ImageIndex(folder) as index:
        return {Path(str(hit.image.source)).name for hit in index.search(unit(1), 99, where=where)[0]}


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (["path=*/holiday/*"], {"sea.jpg", "hill.jpg"}),
        (["path=holiday/sea.jpg"], {"sea.jpg"}),
        (["path!=*.jpg"], {"Desk.png", "50%.png"}),
        (["path~DESK"], {"Desk.png"}),
        (["path~0%"], {"50%.png"}),
        (["name=*.png"], {"Desk.png", "50%.png"}),
        (["folder=holiday"], {"sea.jpg", "hill.jpg"}),
        (["folder=/p/work/"], {"Desk.png", "50%.png"}),
        (["folder=a b"], {"hill.jpg"}),
        (["size>=1kB"], {"hill.jpg", "50%.png"}),
        (["size<2.5MB", "size > 100"], {"Desk.png", "50%.png"}),
        (["date=2023"], {"sea.jpg", "hill.jpg", "50%.png"}),
        (["date=2023-06"], {"sea.jpg"}),
        (["date=2023-12"], {"50%.png"}),
        (["date>2023"], {"other.jpg"}),
        (["date<=2023-06-10"], {"sea.jpg", "Desk.png"}),
        (["taken>=2023-06-10", "taken<2023-07"], {"sea.jpg"}),
        (["date!=2023"], {"Desk.png", "other.jpg"}),
        (["author=Ann"], {"sea.jpg"}),
        (["author=*n"], {"sea.jpg", "50%.png"}),
        (["author~BO"], {"hill.jpg"}),
        (["author!=Ann"], {"hill.jpg", "Desk.png", "50%.png", "other.jpg"}),
        (["stars=5"], {"sea.jpg", "Desk.png"}),
        (["stars>3"], {"sea.jpg", "hill.jpg"}),
        (["author=A'; DROP TABLE photos; --"], set()),
        (["author=Ann", "date=2022"], set()),
    ],
)
def test_a_condition_takes_what_fits(folder: Path, conditions: list[str], expected: set[str]) -> None:
    assert found(folder, parse_all(conditions)) == expected


def test_a_folder_is_not_the_one_whose_name_goes_on(folder: Path) -> None:
    assert "other.jpg" not in found(folder, under(Path("/p")))
    assert len(found(folder, under(Path("/p")))) == 4


def test_a_pattern_can_be_left_out(folder: Path) -> None:
    assert found(folder, without_paths("*/holiday/*")) == {"Desk.png", "50%.png", "other.jpg"}
    for wrong in ("\udcff", "*a" * 30_000):
        with pytest.raises(UsageError, match="up to 10,000 characters of UTF-8"):
            without_paths(wrong)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("holiday", "expected FIELD OPERATOR VALUE"),
        ("date=June", "expected a date as 2023, 2023-06"),
        ("date=2023-13", "expected a date"),
        ("date=9999", "expected a date"),
        ("size=big", "expected a size as 500kB"),
        ("size=5parsec", "expected a size"),
        ("size~5", "size is a number"),
        ("path>x", "path is compared with =, != or ~"),
        ("path=", "expected a pattern"),
        ("date~2023", "a date is compared with"),
        ("name=\udcff", "characters of UTF-8"),
    ],
)
def test_a_condition_that_cannot_be_understood_says_what_was_expected(words: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"filter '{words}': .*{message}"):
        parse(words)
