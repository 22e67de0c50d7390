"""Neighbours of photos: nearest first, never itself, never its copy; the file is whole or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graftlm.data.related import Related, find_related, read_related, write_related
from graftlm.errors import DataError, ShapeError

KEYS = ["a", "b", "c", "d", "e"]
ANGLES = [0.0, 0.3, 0.5, 2.0, 0.0]
VECTORS = np.array([[np.cos(angle), np.sin(angle)] for angle in ANGLES]) * np.array([[1.0], [7.0], [2.0], [3.0], [1.0]])
CONTENTS = {key: f"{number:02x}".ljust(64, "0") for key, number in zip(KEYS, [1, 2, 3, 4, 1], strict=True)}


def test_the_nearest_come_first_whatever_the_length_of_their_vectors() -> None:
    found = find_related(KEYS, [f"{number:02x}".ljust(64, "0") for number in range(1, 6)], VECTORS, 3)
    assert found.nearest["b"] == ("c", "a", "e")
    assert found.nearest["d"] == ("c", "b", "a")


def test_neither_a_photo_nor_its_copy_is_its_own_neighbour() -> None:
    found = find_related(KEYS, list(CONTENTS.values()), VECTORS, 10)
    assert found.nearest["a"] == found.nearest["e"] == ("b", "c", "d")
    assert found.nearest["c"] == ("b", "a", "e", "d")


def test_every_block_of_rows_is_compared_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).normal(size=(23, 4))
    keys = [str(number) for number in range(23)]
    contents = [f"{number:02x}".ljust(64, "0") for number in range(1, 24)]
    whole = find_related(keys, contents, vectors, 5)
    monkeypatch.setattr("graftlm.data.related._ROWS_AT_ONCE", 4)
    assert find_related(keys, contents, vectors, 5) == whole
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    order = np.argsort(-(unit @ unit[7]))
    assert whole.nearest["7"] == tuple(str(place) for place in order[1:6])


def test_counts_that_differ_are_refused() -> None:
    with pytest.raises(ShapeError, match="5 keys, 4 content hashes and 5 vectors"):
        find_related(KEYS, list(CONTENTS.values())[:4], VECTORS, 3)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    found = find_related(KEYS, list(CONTENTS.values()), VECTORS, 2, encoder="toy")
    write_related(found, tmp_path / "deep" / "related.jsonl")
    assert read_related(tmp_path / "deep" / "related.jsonl") == found
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["related.jsonl"]


def test_only_neighbours_among_the_given_photos_are_told() -> None:
    related = Related({"a": ("b", "c"), "b": ("c", "a"), "c": ("b",)})
    assert related.of(["b", "a"]) == [("a",), ("b",)]
    with pytest.raises(DataError, match=r"x.jsonl: expected the photo z, found 3 others; .*graft data related"):
        related.of(["a", "z"], "x.jsonl")


@pytest.mark.parametrize("content", [None, "", "no json\n", '{"photo": "a", "related": []}\n', b"\xff\xfe"])
def test_a_file_that_is_none_or_cut_off_is_refused(tmp_path: Path, content: str | bytes | None) -> None:
    path = tmp_path / "related.jsonl"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match="graft data related"):
        read_related(path)
    write_related(Related({"a": ("a",), "b": ("a",)}), path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(DataError, match="found 1 photos of 2"):
        read_related(path)
