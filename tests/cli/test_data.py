"""`graft data check` prints what it found and exits 1 when nothing can be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graftlm.cli.main import main
from graftlm.data.related import read_related
from tests.data.readers import files


def test_the_check_prints_counts_reasons_and_the_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = files.captioned(tmp_path)
    (folder / "images" / "b.jpg").write_bytes(b"no picture")
    bad, sheet = tmp_path / "bad.jsonl", tmp_path / "sheet.png"
    assert main(["data", "check", str(folder), "--sheet", str(sheet), "--bad-samples", str(bad)]) == 0
    out = capsys.readouterr().out
    for words in ("reader jsonl", "samples    5", "1 unreadable-image", "b.jpg", str(sheet), "median 3"):
        assert words in out
    assert sheet.is_file()
    assert json.loads(bad.read_text())["reason"] == "unreadable-image"


def test_json_is_one_object_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = files.captioned(tmp_path)
    sheet = str(tmp_path / "s.png")
    assert main(["data", "check", str(folder), "--split", "train", "--sheet", sheet, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["samples"], found["photos"], found["split"], found["sheet"]) == (3, 2, "train", sheet)


def test_nothing_usable_is_exit_code_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    assert main(["data", "check", str(tmp_path)]) == 1
    assert "no photo could be decoded" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "gone")]) == 1
    assert "check the path" in capsys.readouterr().err


def test_albums_are_shown_by_what_the_reader_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, sheet = files.captioned(tmp_path), tmp_path / "sheet.png"
    told = ["--reader", "albums", "--set", "photos=[2,2]", "--set", "of.tidy=true", "--sheet", str(sheet)]
    assert main(["data", "check", str(folder), *told]) == 0
    assert "photos per sample  2 to 2" in capsys.readouterr().out
    assert sheet.is_file()
    assert main(["data", "check", str(folder), "--reader", "albums", "--set", "photo=[2,2]"]) == 1
    assert "did you mean 'photos'" in capsys.readouterr().err


def test_related_photos_are_written_for_albums(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = files.captioned(tmp_path), tmp_path / "related.jsonl"
    (folder / "images" / "b.jpg").write_bytes((folder / "images" / "a.jpg").read_bytes())
    arguments = [str(folder), "--encoder", "toy", "--count", "2", "-o", str(out), "--quiet", "--json"]
    assert main(["data", "related", *arguments]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"file": str(out), "encoder": "toy", "photos": 4, "bad": 0, "neighbours": 2}
    nearest = read_related(out).nearest
    assert set(nearest) == {"a.jpg", "b.jpg", "c.jpg", "d.jpg"}
    assert set(nearest["a.jpg"]) == {"c.jpg", "d.jpg"}  # never its copy
    (folder / "images" / "d.jpg").write_bytes(b"no picture")
    assert main(["data", "related", *arguments]) == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["bad"] == 1
    assert "d.jpg" in told.err
    assert set(read_related(out).nearest) == {"a.jpg", "b.jpg", "c.jpg"}


def test_an_unknown_option_is_exit_code_two(tmp_path: Path) -> None:
    assert main(["data", "check", str(tmp_path), "--colour"]) == 2


def test_a_bad_photo_without_a_row_is_named_without_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = tmp_path / "zero.jpg"
    photo.write_bytes(b"")
    assert main(["data", "check", str(photo)]) == 1
    told = capsys.readouterr().err
    assert "row None" not in told
    assert f"first in {photo}: expected a photo, found an empty file" in told
