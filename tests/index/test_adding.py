"""A folder into an index, and again when it has changed."""

from __future__ import annotations

import json
import os
import shutil
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from graftlm.data.ledger import Ledger
from graftlm.data.media import content_hash
from graftlm.errors import DataError
from graftlm.index import ImageIndex, writer
from graftlm.index.adding import add_folder, count_changes
from graftlm.index.catalogue import Identity
from graftlm.index.files import content_key
from graftlm.index.filters import parse
from graftlm.index.writer import IndexWriter
from tests.index.parts import IDENTITY, WIDTH, Eyes, add, photos, unit
from tests.pictures import picture


def paths(index: Path) -> set[str]:
    """Every photo that is found."""
    with ImageIndex(index) as opened:
        return {Path(str(hit.image.source)).name for hit in opened.search(unit(1), 10_000)[0]}


def settle(folder: Path) -> None:
    """Makes files look as if they had not changed for a while."""
    for path in folder.rglob("*"):
        os.utime(path, (1_600_000_000, 1_600_000_000))


def test_every_photo_below_a_folder_is_found_by_what_it_shows(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 3)
    photos(root / "inner" / "deep", 2, start=10)
    (root / "notes.txt").write_text("no photo")
    photos(root / ".hidden", 1, start=20)
    eyes = Eyes()
    result = add(tmp_path / "i", root, eyes)
    assert (result.new, result.encoded, result.bad) == (5, 5, {})
    with ImageIndex(tmp_path / "i") as index:
        from graftlm.data.sentence import Image

        query = eyes([Image(str(root / "inner" / "deep" / "011.png"))])
        (hits,) = index.search(query, 2)
        assert hits[0].image.source == str(root / "inner" / "deep" / "011.png")
        assert hits[0].key == content_hash(hits[0].image)
        assert index.roots() == [str(root)]


def test_what_is_as_before_is_not_looked_at_again(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 5)
    settle(root)
    add(tmp_path / "i", root)
    eyes = Eyes()
    result = add(tmp_path / "i", root, eyes)
    assert (result.unchanged, result.new, result.changed, eyes.seen) == (5, 0, 0, 0)


def test_new_changed_and_deleted_files_are_followed(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 6)
    settle(root)
    add(tmp_path / "i", root)
    photos(root, 2, start=6)
    picture(99).save(root / "001.png")
    (root / "002.png").unlink()
    eyes = Eyes()
    result = add(tmp_path / "i", root, eyes)
    assert (result.new, result.changed, result.removed, result.unchanged, eyes.seen) == (2, 1, 1, 4, 3)
    assert paths(tmp_path / "i") == {f"{number:03d}.png" for number in range(8)} - {"002.png"}
    with ImageIndex(tmp_path / "i") as index:
        (hits,) = index.search(eyes([*map(_image, [root / "001.png"])]), 1)
        assert hits[0].image.source == str(root / "001.png")
        assert hits[0].score == pytest.approx(1.0, abs=2e-3)


def _image(path: Path):  # type: ignore[no-untyped-def]
    from graftlm.data.sentence import Image

    return Image(str(path))


def test_a_change_within_one_tick_of_the_clock_is_noticed(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 1)
    add(tmp_path / "i", root)
    before = (root / "000.png").stat()
    data = bytearray((root / "000.png").read_bytes())
    picture(5).save(root / "000.png")
    changed = (root / "000.png").read_bytes()
    (root / "000.png").write_bytes(changed[: len(data)].ljust(len(data), b"\0"))
    os.utime(root / "000.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert add(tmp_path / "i", root).changed == 1


def test_a_moved_photo_keeps_its_vector(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 3)
    add(tmp_path / "i", root)
    (root / "000.png").rename(root / "moved.png")
    eyes = Eyes()
    result = add(tmp_path / "i", root, eyes)
    assert (eyes.seen, result.removed, result.duplicates >= 1) == (0, 1, True)
    assert paths(tmp_path / "i") == {"moved.png", "001.png", "002.png"}


def test_a_deleted_photo_that_comes_back_keeps_its_vector(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 3)
    add(tmp_path / "i", root)
    (root / "000.png").rename(tmp_path / "away.png")
    add(tmp_path / "i", root)
    assert paths(tmp_path / "i") == {"001.png", "002.png"}
    (tmp_path / "away.png").rename(root / "000.png")
    eyes = Eyes()
    add(tmp_path / "i", root, eyes)
    assert eyes.seen == 0
    assert paths(tmp_path / "i") == {"000.png", "001.png", "002.png"}


def test_copies_are_encoded_once_and_found_once(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 2)
    shutil.copy(root / "000.png", root / "copy.png")
    eyes = Eyes()
    result = add(tmp_path / "i", root, eyes)
    assert (eyes.seen, result.duplicates) == (2, 1)
    assert paths(tmp_path / "i") == {"000.png", "001.png"}
    (root / "000.png").unlink()
    add(tmp_path / "i", root, eyes)
    assert eyes.seen == 2
    assert paths(tmp_path / "i") == {"copy.png", "001.png"}


def test_of_copies_the_one_that_fits_the_filter_is_given(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 1)
    shutil.copy(root / "000.png", root / "zzz.png")
    add(tmp_path / "i", root)
    with ImageIndex(tmp_path / "i") as index:
        (hits,) = index.search(unit(1), 5, where=parse("name=z*"))
    assert [Path(str(hit.image.source)).name for hit in hits] == ["zzz.png"]


def test_bad_photos_go_to_the_ledger_and_the_rest_is_found(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 3)
    (root / "bad.png").write_text("no picture")
    (root / "empty.jpg").write_bytes(b"")
    whole = (root / "000.png").read_bytes()
    (root / "cut.png").write_bytes(whole[: len(whole) // 2])
    settle(root)
    ledger = Ledger(tmp_path / "bad.jsonl")
    with IndexWriter(tmp_path / "i", IDENTITY) as opened:
        result = add_folder(opened, root, Eyes(), ledger)
    assert {Path(path).name for path in result.bad} == {"bad.png", "empty.jpg", "cut.png"}
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 3
    assert paths(tmp_path / "i") == {"000.png", "001.png", "002.png"}
    again = add(tmp_path / "i", root)
    assert (again.unchanged, again.bad) == (6, {})
    with ImageIndex(tmp_path / "i") as index:
        assert sum(index.info().unreadable.values()) == 3
    picture(50).save(root / "bad.png")
    assert add(tmp_path / "i", root).changed == 1
    assert "bad.png" in paths(tmp_path / "i")


def test_a_folder_that_cannot_be_listed_keeps_its_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = photos(tmp_path / "photos", 1)
    photos(root / "locked", 2, start=5)
    add(tmp_path / "i", root)
    real = os.scandir

    def scandir(path: str):  # type: ignore[no-untyped-def]
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    ledger = Ledger()
    with IndexWriter(tmp_path / "i", IDENTITY) as opened:
        result = add_folder(opened, root, Eyes(), ledger)
    assert result.removed == 0
    assert ledger.reasons == {"unreadable-folder": 1}
    assert len(paths(tmp_path / "i")) == 3


def test_a_folder_that_is_gone_is_an_error_and_forgets_nothing(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 2)
    add(tmp_path / "i", root)
    root.rename(tmp_path / "unmounted")
    with pytest.raises(DataError, match="expected a folder of photos, found no such folder"):
        add(tmp_path / "i", root)
    assert len(paths(tmp_path / "i")) == 2


def test_a_name_that_is_not_utf8_is_named_and_left_out(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 1)
    shutil.copy(os.fsencode(root / "000.png"), os.fsencode(root) + b"/\xff.png")
    ledger = Ledger()
    with IndexWriter(tmp_path / "i", IDENTITY) as opened:
        add_folder(opened, root, Eyes(), ledger)
    assert ledger.reasons == {"bad-name": 1}


def test_metadata_beside_the_photos_can_be_filtered_and_followed(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 3)
    photos(root / "inner", 1, start=9)
    rows = [
        {"file_name": "000.png", "author": "Ann"},
        {"file_name": "inner/009.png", "author": "Bob", "date": "2020-02-02"},
    ]
    text = "\n".join(map(json.dumps, rows)) + '\nnot json\n{"author": "nobody"}\n{"file_name": "002.png", "x": NaN}\n'
    (root / "metadata.jsonl").write_text(text)
    settle(root)
    ledger = Ledger()
    with IndexWriter(tmp_path / "i", IDENTITY) as opened:
        add_folder(opened, root, Eyes(), ledger)
    assert ledger.reasons == {"bad-json": 2, "missing-column": 1}

    def found(condition: str) -> set[str]:
        with ImageIndex(tmp_path / "i") as index:
            return {Path(str(hit.image.source)).name for hit in index.search(unit(1), 9, where=parse(condition))[0]}

    assert found("author=Ann") == {"000.png"}
    assert found("date=2020") == {"009.png", *(f"00{n}.png" for n in range(3))}  # by the clock of the files
    assert found("date=2020-02") == {"009.png"}
    (root / "metadata.jsonl").write_text(json.dumps({"file_name": "001.png", "author": "Ann"}))
    eyes = Eyes()
    result = add(tmp_path / "i", root, eyes)
    assert (result.changed, eyes.seen) == (3, 0)
    assert found("author=Ann") == {"001.png"}


def test_the_date_is_when_the_photo_was_taken(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    exif = Pillow.Exif()
    exif.get_ifd(0x8769)[0x9003] = "2019:05:04 03:02:01"
    picture(0).save(root / "taken.jpg", exif=exif)
    picture(1).save(root / "broken.jpg", exif=b"Exif\0\0rubbish")
    settle(root)
    add(tmp_path / "i", root)
    with ImageIndex(tmp_path / "i") as index:
        hits = {Path(str(hit.image.source)).name: hit.item for hit in index.search(unit(1), 9)[0]}
        details = index.metadata(list(hits.values()))
    assert details[hits["taken.jpg"]][0] == datetime(2019, 5, 4, 3, 2, 1).timestamp()
    assert details[hits["broken.jpg"]][0] == 1_600_000_000


def test_two_folders_share_an_index_and_a_folder_within_is_not_doubled(tmp_path: Path) -> None:
    one, two = photos(tmp_path / "one", 2), photos(tmp_path / "two", 2, start=5)
    photos(one / "inner", 2, start=8)
    for root in (one, two, one / "inner"):
        add(tmp_path / "i", root)
    assert len(paths(tmp_path / "i")) == 6
    with IndexWriter(tmp_path / "i", IDENTITY) as opened:
        assert opened.remove_root(one) == 4
        assert opened.roots() == [str(two)]
    assert paths(tmp_path / "i") == {"005.png", "006.png"}


def test_vectors_of_another_graft_are_refused_with_the_command_that_mends_it(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 2)
    add(tmp_path / "i", root)
    other = Identity("other", "c" * 64, "b" * 64, 8)
    with pytest.raises(DataError, match="graft index add --rebuild --name i --graft other"):
        IndexWriter(tmp_path / "i", other)
    with ImageIndex(tmp_path / "i") as index, pytest.raises(DataError, match="made by graft 'toy-graft'"):
        index.check(other)
    with IndexWriter(tmp_path / "i", other, rebuild=True) as opened:
        assert opened.roots() == [str(root)]
        add_folder(opened, root, lambda images: unit(len(images), 8), Ledger())
    with ImageIndex(tmp_path / "i") as index:
        index.check(other)
        assert len(index.search(unit(1, 8), 9)[0]) == 2


def test_compaction_gives_the_space_back_and_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_COMPACT_ROWS", 4)
    root = photos(tmp_path / "photos", 20)
    shutil.copy(root / "019.png", root / "copy.png")
    eyes = Eyes()
    add(tmp_path / "i", root, eyes)
    with ImageIndex(tmp_path / "i") as reader:
        for number in (0, 1, 2, 7, 8, 9, 15):
            (root / f"{number:03d}.png").unlink()
        (before,) = reader.search(unit(1), 99)
        add(tmp_path / "i", root, eyes)
        (after,) = reader.search(unit(1), 99)
        info = reader.info()
        whole = reader.search(eyes([_image(root / "018.png")]), 1)[0][0]
    gone = {f"{number:03d}.png" for number in (0, 1, 2, 7, 8, 9, 15)}
    kept = [(hit.key, hit.score) for hit in before if Path(str(hit.image.source)).name not in gone]
    assert [(hit.key, hit.score) for hit in after] == kept
    assert (info.unused, info.contents, len(list((tmp_path / "i").glob("vectors-*")))) == (0, 13, 1)
    assert next((tmp_path / "i").glob("vectors-*")).stat().st_size == 64 + 13 * WIDTH * 2
    assert whole.image.source == str(root / "018.png")


def test_progress_counts_up_to_what_is_new(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with IndexWriter(tmp_path / "i", IDENTITY) as opened:
        add_folder(opened, photos(tmp_path / "p", 40), Eyes(), Ledger(), lambda *numbers: told.append(numbers))
    assert told == [(0, 40), (32, 40), (40, 40)]


def test_changes_since_are_counted(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 4)
    settle(root)
    add(tmp_path / "i", root)
    with ImageIndex(tmp_path / "i") as index:
        assert count_changes(index.known_files(), root) == 0
        photos(root, 1, start=9)
        (root / "000.png").unlink()
        picture(77).save(root / "001.png")
        assert count_changes(index.known_files(), root) == 3


def test_a_graft_that_gives_rubbish_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 2)
    for wrong, message in [
        (lambda images: np.full((len(images), WIDTH), np.nan), "found NaN or infinity"),
        (lambda images: unit(len(images), 3), "expected vectors of width 16"),
    ]:
        with pytest.raises(DataError, match=message), IndexWriter(tmp_path / "i", IDENTITY) as opened:
            add_folder(opened, root, wrong, Ledger())
    assert paths(tmp_path / "i") == set()


def test_a_content_key_is_the_content_hash_of_media(tmp_path: Path) -> None:
    photos(tmp_path, 1)
    assert content_key(str(tmp_path / "000.png")).hex() == content_hash(_image(tmp_path / "000.png"))
