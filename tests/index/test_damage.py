"""Kills, full disks, other processes, and files that are no index."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from graftlm.errors import DataError
from graftlm.index import ImageIndex, writer
from graftlm.index.catalogue import FILE
from graftlm.index.vectors import VectorFile
from graftlm.index.writer import IndexWriter, Photo
from tests.architecture.source import ROOT
from tests.index.parts import IDENTITY, fill, keys, unit

ADD_FOREVER = """
import sys
import numpy as np
sys.path[:0] = [{root!r}, {source!r}]
from pathlib import Path
from graftlm.index.writer import IndexWriter, Photo
from tests.index.parts import IDENTITY, keys, unit
folder, total = Path(sys.argv[1]), int(sys.argv[2])
vectors, names = unit(total), keys(total)
with IndexWriter(folder, IDENTITY) as writer:
    for start in range(0, total, 8):
        batch = names[start:start + 8]
        new = writer.unknown(batch)
        photos = [Photo(f"/p/{{start + n:05d}}.jpg", 1, 1, key, 0.0) for n, key in enumerate(batch)]
        writer.add(photos, {{key: vectors[start + n] for n, key in enumerate(batch) if key in new}})
        print(start + len(batch), flush=True)
"""


def start_adding(index: Path, total: int) -> subprocess.Popen[str]:
    """A process that adds known vectors, eight a commit, and says how many are in."""
    code = ADD_FOREVER.format(root=str(ROOT), source=str(ROOT / "src"))
    return subprocess.Popen([sys.executable, "-c", code, str(index), str(total)], stdout=subprocess.PIPE, text=True)


def check_whole(index: Path, at_least: int) -> int:
    """Every item is there once, with its own vector; returns how many."""
    with ImageIndex(index) as opened:
        hits = opened.search(unit(1_200)[:1], 10_000)[0]
        count = len(opened)
        assert count == len(hits) == len({hit.key for hit in hits})
        assert count >= at_least
        if count:
            assert [row[0].key for row in opened.search(unit(1_200)[:count], 1)] == [k.hex() for k in keys(count)]
    return count


def test_a_writer_killed_at_any_moment_loses_and_doubles_nothing(tmp_path: Path) -> None:
    folder, total, done = tmp_path / "i", 1_200, 0
    moments = random.Random(0)
    for _ in range(4):
        process = start_adding(folder, total)
        assert process.stdout is not None
        told = 0
        for line in process.stdout:
            told = int(line)
            if told > done:
                break
        time.sleep(moments.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        process.stdout.close()
        process.wait()
        done = check_whole(folder, max([told, *map(int, rest[:-1])]))
    assert done > 0
    process = start_adding(folder, total)
    assert process.stdout is not None
    assert process.stdout.read().split()[-1] == str(total)
    process.stdout.close()
    assert process.wait() == 0
    assert check_whole(folder, total) == total
    assert VectorFile(next(folder.glob("vectors-*")), 16).rows() == total


def test_two_readers_see_only_whole_states_while_one_writes(tmp_path: Path) -> None:
    folder, total = tmp_path / "i", 640
    fill(folder, unit(total)[:8])
    with ImageIndex(folder) as one, ImageIndex(folder) as two:
        process = start_adding(folder, total)
        assert process.stdout is not None
        seen: list[int] = []
        while process.poll() is None:
            for reader in (one, two):
                hits = reader.search(unit(1), total)[0]
                assert len(hits) % 8 == 0
                assert len({hit.item for hit in hits}) == len(hits)
                seen.append(len(hits))
        process.stdout.close()
        assert len(two.search(unit(1), total)[0]) == total
    assert seen == sorted(seen)
    assert len(set(seen)) > 2


def test_a_second_writer_is_told_to_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_LOCK_TIMEOUT_S", 0.1)
    with IndexWriter(tmp_path / "i", IDENTITY):
        with pytest.raises(DataError, match="another process is changing this index; wait"):
            IndexWriter(tmp_path / "i", IDENTITY)
        with ImageIndex(tmp_path / "i") as reader:
            assert reader.search(unit(1), 3) == [[]]
    IndexWriter(tmp_path / "i", IDENTITY).close()


def test_readers_in_threads_share_an_index(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    vectors = unit(500)
    names = fill(tmp_path / "i", vectors)
    with ImageIndex(tmp_path / "i") as index, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: index.search(vectors[row : row + 1], 1)[0][0].key, range(500)))
    assert found == [name.hex() for name in names]


def _fill_up(folder: Path, limit: int) -> None:
    """Adds until the file system refuses; ends with 0 when that was told in a sentence."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        for start in range(0, 100_000, 500):
            fill(folder, unit(500, seed=start), start)
    except DataError as error:
        sys.exit(0 if "free some space" in str(error) else 3)
    sys.exit(4)


@pytest.mark.parametrize("limit", [4_000, 30_000, 60_000, 250_000, 600_000])
def test_a_full_disk_is_told_and_what_was_committed_stays(tmp_path: Path, limit: int) -> None:
    process = multiprocessing.get_context("fork").Process(target=_fill_up, args=(tmp_path / "i", limit))
    process.start()
    process.join()
    assert process.exitcode == 0
    count = 0
    if limit > 100_000:
        with ImageIndex(tmp_path / "i") as index:
            count = len(index)
            assert count % 500 == 0
            assert len(index.search(unit(1), 100_000)[0]) == count > 0
    fill(tmp_path / "i", unit(500, seed=1), 200_000)  # with space again it goes on
    with ImageIndex(tmp_path / "i") as index:
        assert len(index) == count + 500


def test_a_failed_commit_leaves_the_index_as_it_was(tmp_path: Path) -> None:
    fill(tmp_path / "i", unit(10))
    with IndexWriter(tmp_path / "i", IDENTITY) as opened:
        orphan = Photo("/p/x.jpg", 1, 1, hashlib.sha256(b"x").digest(), 0.0)
        with pytest.raises(DataError, match=r"/p/x.jpg: expected a vector for its content, found none"):
            opened.add([orphan], {b"y" * 32: unit(1)[0]})
        opened.add([Photo("/p/y.jpg", 1, 1, b"z" * 32, 0.0)], {b"z" * 32: unit(1, seed=8)[0]})
    with ImageIndex(tmp_path / "i") as index:
        assert len(index) == 11
        assert index.search(unit(1, seed=8), 1)[0][0].image.source == "/p/y.jpg"


def no_index(folder: Path) -> None:
    (folder / FILE).unlink()


def no_database(folder: Path) -> None:
    (folder / FILE).write_bytes(b"this is no database at all, but it is long enough to be looked at " * 40)


def other_database(folder: Path) -> None:
    (folder / FILE).unlink()
    connection = sqlite3.connect(folder / FILE)
    connection.execute("CREATE TABLE photos (x)")
    connection.commit()
    connection.close()


def _ask(folder: Path, *statements: str) -> None:
    connection = sqlite3.connect(folder / FILE)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def newer_format(folder: Path) -> None:
    _ask(folder, "PRAGMA user_version = 99")


def _vectors(folder: Path) -> Path:
    return next(folder.glob("vectors-*"))


def cut_vectors(folder: Path) -> None:
    os.truncate(_vectors(folder), 64 + 5 * 32 + 7)


def no_vectors(folder: Path) -> None:
    _vectors(folder).unlink()


def other_file(folder: Path) -> None:
    _vectors(folder).write_bytes(b"\0" * 10_000)


def _header(folder: Path, version: int, width: int, crc: int | None = None) -> None:
    body = struct.pack("<8sIII", b"GRAFTVEC", version, width, 2)
    data = _vectors(folder).read_bytes()
    header = (body + struct.pack("<I", zlib.crc32(body) if crc is None else crc)).ljust(64, b"\0")
    _vectors(folder).write_bytes(header + data[64:])


def newer_vectors(folder: Path) -> None:
    _header(folder, 2, 16)


def wider_vectors(folder: Path) -> None:
    _header(folder, 1, 2**31)


def damaged_header(folder: Path) -> None:
    _header(folder, 1, 16, crc=1)


def hostile_file_name(folder: Path) -> None:
    _ask(folder, "UPDATE facts SET value = '\"../../etc/passwd\"' WHERE name = 'vectors'")


def hostile_rows(folder: Path) -> None:
    _ask(folder, "UPDATE facts SET value = '99999999999999' WHERE name = 'rows'")


def negative_rows(folder: Path) -> None:
    _ask(folder, "UPDATE facts SET value = '-1' WHERE name = 'rows'")


def hostile_width(folder: Path) -> None:
    _ask(folder, "UPDATE facts SET value = '123456789' WHERE name = 'width'")


def hostile_approximate(folder: Path) -> None:
    _ask(folder, "UPDATE facts SET value = '{\"file\": 3}' WHERE name = 'approximate'")


def empty_file(folder: Path) -> None:
    for path in folder.glob(f"{FILE}*"):
        path.unlink()
    (folder / FILE).touch()


def one_fact(folder: Path) -> None:
    _ask(folder, "DELETE FROM facts WHERE name = 'vectors'")


def no_facts(folder: Path) -> None:
    _ask(folder, "DELETE FROM facts")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_index, "expected an image index, found no catalogue.sqlite; make one with `graft index add"),
        (no_database, "expected the catalogue of an index, found a damaged or foreign file"),
        (other_database, "expected the catalogue of an index, found another database"),
        (newer_format, "expected format 1, found 99; update graftlm"),
        (cut_vectors, "expected 20 vectors, found 5"),
        (no_vectors, "the vectors of the index cannot be read"),
        (other_file, "expected vectors of an index, found something else"),
        (newer_vectors, "expected format 1 or older, found 2; update graftlm"),
        (wider_vectors, "expected vectors of width 16, found 2147483648"),
        (damaged_header, "its header is damaged"),
        (hostile_file_name, "a file outside its folder"),
        (hostile_rows, "expected 99999999999999 vectors, found 20"),
        (negative_rows, "-1 vectors of width 16"),
        (hostile_width, "vectors of width 123456789"),
        (hostile_approximate, "found them incomplete"),
        (no_facts, "this index was never finished; add the folder again"),
        (empty_file, "this index was never finished"),
        (one_fact, "found them incomplete ('vectors' is missing)"),
    ],
)
def test_a_file_that_is_no_index_is_refused_in_a_sentence(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    fill(tmp_path / "i", unit(20))
    damage(tmp_path / "i")
    with pytest.raises(DataError) as caught:
        ImageIndex(tmp_path / "i")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [cut_vectors, no_vectors, other_file, damaged_header, hostile_rows])
def test_damaged_vectors_are_mended_by_a_rebuild(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    fill(tmp_path / "i", unit(20))
    damage(tmp_path / "i")
    IndexWriter(tmp_path / "i", IDENTITY, rebuild=True).close()
    fill(tmp_path / "i", unit(20))
    check_whole(tmp_path / "i", 20)


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    fill(tmp_path / "i", unit(5))
    for name in ("vectors-99.f16", "approximate-7.faiss.tmp"):
        (tmp_path / "i" / name).write_bytes(b"x")
    IndexWriter(tmp_path / "i", IDENTITY).close()
    assert len(list((tmp_path / "i").glob("*-*"))) - len(list((tmp_path / "i").glob(f"{FILE}-*"))) == 1


def test_a_folder_that_may_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="the index cannot be written"):
        IndexWriter(tmp_path / "file" / "i", IDENTITY)


def test_a_vector_file_reads_what_was_written_and_overwrites_what_was_not_committed(tmp_path: Path) -> None:
    file = VectorFile.create(tmp_path / "v", 16)
    first, second = unit(5), unit(3, seed=1)
    file.write(0, first)
    file.write(2, second)
    assert file.rows() == 5
    assert np.array_equal(file.read(5)[2:], second.astype(np.float16))
    assert np.array_equal(file.read(5)[:2], first[:2].astype(np.float16))
