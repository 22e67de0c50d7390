"""A data set is looked over: every count, every bad photo, and a sheet of pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from graftlm.data.check import check, photos_of
from graftlm.data.contact_sheet import Tile, _arranged
from graftlm.data.ledger import Ledger
from graftlm.data.readers import read_all
from tests.data.readers import files
from tests.pictures import picture


def encoded(image: Pillow.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size without holding so many pixels."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def exif_rotated() -> bytes:
    exif = Pillow.Exif()
    exif[0x0112] = 6
    return encoded(picture(1).resize((40, 20)), "JPEG", exif=exif)


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty-file"),
    "text": (lambda: b"<html>not found</html>", "unreadable-image"),
    "half a jpeg": (lambda: files.jpeg(1)[:300], "truncated-image"),
    "half a png": (lambda: encoded(picture(2, 256), "PNG")[:150], "truncated-image"),
    "a bomb": (lambda: png_header(60_000, 60_000), "bomb-image"),
    "a jpeg of noise": (lambda: files.jpeg(1)[:20] + b"\0" * 500, "unreadable-image"),
}
GOOD: dict[str, Callable[[], bytes]] = {
    "cmyk": lambda: encoded(picture(1).convert("CMYK"), "JPEG"),
    "palette": lambda: encoded(picture(2).convert("P"), "PNG"),
    "16 bit": lambda: encoded(Pillow.fromarray((np.arange(1024) * 60).astype("uint16").reshape(32, 32)), "PNG"),
    "exif": exif_rotated,
    "alpha": lambda: encoded(picture(3).convert("RGBA"), "PNG"),
    "grey": lambda: encoded(picture(4).convert("L"), "JPEG"),
    "webp": lambda: encoded(picture(5), "WEBP"),
}


def one_photo(folder: Path, data: bytes) -> Path:
    files.photos(folder, ["good.jpg"])
    (folder / "odd.jpg").write_bytes(data)
    rows = [{"image": name, "captions": ["a b c", "d"]} for name in ("good.jpg", "odd.jpg")]
    return files.jsonl(folder / "captions.jsonl", rows)


@pytest.mark.parametrize("case", BAD)
def test_a_photo_that_cannot_be_decoded_is_found(tmp_path: Path, case: str) -> None:
    make, reason = BAD[case]
    file = one_photo(tmp_path, make())
    ledger = Ledger(tmp_path / "bad.jsonl")
    report = check({"path": str(file)}, sheet=tmp_path / "sheet.png", ledger=ledger)
    assert report.reasons == {reason: 1}
    assert (report.photos, report.unreadable, report.is_usable) == (1, 1, True)
    assert report.errors[0].row == "odd.jpg"
    assert "odd.jpg" in report.errors[0].message
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("case", GOOD)
def test_a_photo_of_an_unusual_kind_is_fine(tmp_path: Path, case: str) -> None:
    file = one_photo(tmp_path, GOOD[case]())
    report = check({"path": str(file)}, sheet=tmp_path / "sheet.png")
    assert report.reasons == {}
    assert report.photos == 2


def test_counts_lengths_splits_and_equal_photos_are_reported(tmp_path: Path) -> None:
    folder = files.captioned(tmp_path)
    (folder / "images" / "d.jpg").write_bytes((folder / "images" / "a.jpg").read_bytes())
    report = check({"path": str(folder)}, sheet=tmp_path / "sheet.png")
    assert (report.reader, report.rows, report.samples, report.photos) == ("jsonl", 4, 5, 4)
    assert report.splits == {"train": 2, "val": 1, "test": 1}
    assert (report.per_photo.least, report.per_photo.greatest, report.per_photo.mean) == (1, 2, 1.25)
    assert (report.words.least, report.words.greatest, report.words.median) == (3, 5, 3)
    assert (report.equal, report.leaks) == (1, 1)
    assert report.duplicates == [["train/a.jpg", "test/d.jpg"]]
    assert json.loads(json.dumps(report.to_json()))["samples"] == 5


def test_the_sheet_shows_as_many_photos_as_asked_and_the_same_ones_each_time(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(20)]
    files.photos(tmp_path / "images", names)
    rows = [{"image": name, "text": "a rather long caption " * 20} for name in names]
    files.jsonl(tmp_path / "captions.jsonl", rows)
    sheets = []
    for _ in range(2):
        report = check({"path": str(tmp_path / "captions.jsonl")}, pictures=6, sheet=tmp_path / "deep" / "sheet.png")
        assert report.sheet == str(tmp_path / "deep" / "sheet.png")
        sheets.append(Path(report.sheet).read_bytes())
    assert sheets[0] == sheets[1]
    with Pillow.open(io.BytesIO(sheets[0])) as sheet:
        assert sheet.size[0] > sheet.size[1] > 300
        colours = sheet.convert("RGB").getcolors(1 << 20)
        assert colours is not None
        assert len(colours) > 50
    assert list((tmp_path / "deep").iterdir()) == [tmp_path / "deep" / "sheet.png"]


def test_a_stream_is_looked_over_as_well(tmp_path: Path) -> None:
    files.tar(tmp_path / "a.tar", {"1.jpg": files.jpeg(1), "1.txt": "one", "2.jpg": b"bad", "2.txt": "two"})
    report = check({"path": str(tmp_path), "stream": True, "reader": "webdataset"}, sheet=tmp_path / "sheet.png")
    assert (report.samples, report.photos, report.unreadable) == (2, 1, 1)


def document_rows(folder: Path) -> Path:
    """Two documents that share a photo; the second has a broken one."""
    files.photos(folder / "images", ["a.jpg", "b.jpg", "c.jpg"])
    (folder / "images" / "bad.jpg").write_bytes(b"no picture")
    rows = [
        {"id": "d1", "parts": ["head", {"image": "a.jpg"}, "one", {"image": "b.jpg"}, "two words"]},
        {"id": "d2", "parts": [{"image": "b.jpg"}, "x", {"image": "c.jpg"}, "y", {"image": "bad.jpg"}, "z"]},
    ]
    return files.jsonl(folder / "documents.jsonl", rows)


def test_every_photo_of_a_document_is_looked_at_once(tmp_path: Path) -> None:
    ledger = Ledger()
    report = check({"path": str(document_rows(tmp_path))}, sheet=tmp_path / "sheet.png", ledger=ledger)
    assert (report.samples, report.photos, report.unreadable) == (2, 3, 1)
    assert (report.per_sample.least, report.per_sample.greatest) == (2, 3)
    assert (report.per_photo.least, report.per_photo.greatest) == (1, 2)
    assert [(entry.reason, entry.row) for entry in ledger.entries] == [("unreadable-image", "d2[2]")]


def test_a_document_is_shown_in_order_with_the_words_up_to_the_next_photo(tmp_path: Path) -> None:
    first, second = read_all({"path": str(document_rows(tmp_path))})
    assert [(Path(photo.name).name, photo.words) for photo in photos_of(first)] == [
        ("a.jpg", ("", "head one")),
        ("b.jpg", ("", "two words")),
    ]
    assert [photo.words[1] for photo in photos_of(second)] == ["x", "y", "z"]
    shown: list[list[str]] = []

    def draw(groups: Sequence[Sequence[Tile]], title: str, path: Path) -> Path:
        shown.extend([tile.wanted for tile in group] for group in groups)
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("graftlm.data.check.draw", draw)
        check({"path": str(tmp_path / "documents.jsonl")}, sheet=tmp_path / "sheet.png")
        assert shown == [["head one", "two words"], ["x", "y"]]  # what cannot be decoded is not shown
        shown.clear()
        check({"path": str(tmp_path / "documents.jsonl")}, pictures=3, sheet=tmp_path / "sheet.png")
        assert len(shown) == 1  # a document is shown whole or not at all


def test_films_are_looked_at_and_shown_by_their_frames(tmp_path: Path) -> None:
    files.photos(tmp_path / "good", ["0.jpg", "1.jpg", "2.jpg"])
    files.photos(tmp_path / "broken", ["0.jpg", "1.jpg"])
    (tmp_path / "broken" / "1.jpg").write_bytes(b"no picture")
    rows = [{"video": name, "caption": "a film"} for name in ("good", "broken")]
    report = check({"path": str(files.jsonl(tmp_path / "films.jsonl", rows))}, sheet=tmp_path / "sheet.png")
    assert (report.reader, report.photos, report.unreadable) == ("videos", 1, 1)
    assert report.reasons == {"unreadable-frame": 1}
    assert report.sheet is not None


@pytest.mark.parametrize("sizes", [[1] * 5, [1] * 48, [4, 4, 4], [2, 3, 1, 3], [8, 8], [12, 1, 2], [3], [5, 5], [20]])
def test_photos_of_a_sheet_never_share_a_place_and_those_of_a_document_stand_together(sizes: list[int]) -> None:
    places, columns, rows = _arranged(sizes)
    assert len(set(places)) == len(places) == sum(sizes)
    assert all(column < columns <= 8 and row < rows for column, row in places)
    assert {row for _, row in places} == set(range(rows))
    first = 0
    for size in sizes:
        group = places[first : first + size]
        assert group == [(group[0][0] + n, group[0][1]) for n in range(size)] or size > columns
        assert group == sorted(group, key=lambda place: place[::-1])
        first += size


def test_nothing_usable_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    report = check({"path": str(tmp_path)}, sheet=tmp_path / "sheet.png")
    assert not report.is_usable
    assert report.sheet is None
    assert report.without_target == 1
