"""Search finds what a plain sort of all products finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graftlm.data.gallery import Gallery
from graftlm.errors import DataError, ShapeError
from graftlm.index import ImageIndex, approximate, exact
from graftlm.index.exact import exact_search
from graftlm.index.filters import parse, parse_all
from graftlm.index.writer import IndexWriter
from tests.index.parts import IDENTITY, WIDTH, fill, keys, unit


def brute_force(stored: np.ndarray, query: np.ndarray, count: int, allowed: np.ndarray | None = None) -> list[int]:
    """The best rows by a sort in float64."""
    scores = stored.astype(np.float64) @ query.astype(np.float64)
    if allowed is not None:
        scores[~allowed] = -np.inf
    order = [int(row) for row in np.argsort(-scores, kind="stable") if scores[row] > -np.inf]
    return order[:count]


@pytest.fixture(params=["faiss", "numpy"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of searching exactly."""
    if request.param == "faiss":
        pytest.importorskip("faiss")
    else:
        monkeypatch.setattr(exact, "faiss_module", lambda: None)
    monkeypatch.setattr(exact, "_SMALL", 0)
    monkeypatch.setattr(exact, "_ROWS_PER_THREAD", 500)
    monkeypatch.setattr(exact, "num_threads", lambda: 3)
    monkeypatch.setattr(exact, "_BLOCK", 700)
    return str(request.param)


@pytest.mark.parametrize("rows", [1, 7, 8, 1_000, 3_001])
@pytest.mark.parametrize("share", [None, 0.0, 0.003, 0.5, 1.0])
@pytest.mark.parametrize("width", [1, 16, 100])
def test_exact_search_equals_brute_force(rows: int, share: float | None, width: int, engine: str) -> None:
    random = np.random.default_rng(rows)
    stored = random.standard_normal((rows, width)).astype(np.float16)
    allowed = None if share is None else random.random(rows) < share
    queries = unit(3, width, seed=1)
    for count in (1, 10, rows + 5):
        for query, (scores, found) in zip(queries, exact_search(stored, queries, count, allowed), strict=True):
            expected = brute_force(stored, query, count, allowed)
            assert found.tolist()[:10] == expected[:10]
            assert sorted(found.tolist()) == sorted(expected)  # far down, float32 and float64 may swap neighbours
            assert scores == pytest.approx(stored[expected].astype(np.float32) @ query, abs=1e-5)


def test_many_queries_are_answered_as_one_by_one(engine: str) -> None:
    stored, queries = unit(900).astype(np.float16), unit(100, seed=1)
    together = exact_search(stored, queries, 5)
    alone = [exact_search(stored, query[None], 5)[0] for query in queries]
    assert [rows.tolist() for _, rows in together] == [rows.tolist() for _, rows in alone]


def test_equal_vectors_are_given_in_the_order_of_rows(engine: str) -> None:
    stored = np.repeat(unit(1), 2_000, axis=0).astype(np.float16)
    ((_, rows),) = exact_search(stored, unit(1), 2_000)
    assert rows.tolist() == list(range(2_000))


def test_an_index_is_a_gallery_that_finds_every_photo_by_its_vector(tmp_path: Path) -> None:
    vectors = unit(50)
    names = fill(tmp_path / "i", vectors)
    with ImageIndex(tmp_path / "i") as index:
        assert isinstance(index, Gallery)
        assert len(index) == 50
        hits = index.search(vectors, 1)
        assert [row[0].key for row in hits] == [name.hex() for name in names]
        assert hits[3][0].image.source == "/photos/0000003.jpg"
        assert hits[3][0].score == pytest.approx(1.0, abs=2e-3)
        assert [len(row) for row in index.search(vectors[:2], 99)] == [50, 50]
        assert index.search(vectors[:1], 0) == [[]]


@pytest.mark.parametrize("excluded", [1, 5, 49, 300])
def test_what_is_excluded_is_never_given_and_the_next_best_is(tmp_path: Path, excluded: int) -> None:
    vectors, query = unit(400), unit(1, seed=5)
    names = fill(tmp_path / "i", vectors)
    stored = vectors.astype(np.float16)
    order = brute_force(stored, query[0], 400)
    with ImageIndex(tmp_path / "i") as index:
        gone = [names[row].hex() for row in order[:excluded]] + ["00" * 32]
        first, second = index.search(np.repeat(query, 2, axis=0), 10, [gone, []])
    assert [bytes.fromhex(hit.key) for hit in first] == [names[row] for row in order[excluded : excluded + 10]]
    assert [bytes.fromhex(hit.key) for hit in second] == [names[row] for row in order[:10]]


def test_filters_are_applied_before_the_search_and_not_after(tmp_path: Path) -> None:
    vectors, query = unit(400), unit(1, seed=5)
    fill(tmp_path / "i", vectors)
    with ImageIndex(tmp_path / "i") as index:
        (hits,) = index.search(query, 3, where=parse_all(["size>=390", "path!=*5.jpg"]))
        nothing = index.search(query, 3, where=parse("size>4000"))
    allowed = np.array([row >= 390 and row % 10 != 5 for row in range(400)])
    expected = brute_force(vectors.astype(np.float16), query[0], 3, allowed)
    assert [hit.image.source for hit in hits] == [f"/photos/{row:07d}.jpg" for row in expected]
    assert nothing == [[]]


def test_queries_of_another_width_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "i", unit(3))
    with ImageIndex(tmp_path / "i") as index:
        with pytest.raises(ShapeError, match=r"expected shape \[B, 16\], found \[1, 8\]"):
            index.search(unit(1, 8), 1)
        with pytest.raises(DataError, match="content hashes in hex, found 'zz'"):
            index.search(unit(1), 1, [["zz"]])


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray]:
    """An index that counts as large, in clusters, with approximate search."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(approximate, "FROM_ROWS", 5_000)
    centres = unit(100, seed=3)
    random = np.random.default_rng(4)
    vectors = centres[random.integers(0, 100, 8_000)] + 0.1 * random.standard_normal((8_000, WIDTH))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    fill(tmp_path / "i", vectors)
    with IndexWriter(tmp_path / "i", IDENTITY) as writer:
        writer.tidy()
    return tmp_path / "i", vectors


def test_a_large_index_is_searched_approximately_with_exact_scores(large: tuple[Path, np.ndarray]) -> None:
    folder, vectors = large
    queries = approximate.noisy_queries(vectors.astype(np.float16), 100, seed=9)
    with ImageIndex(folder) as index:
        about = index.info().approximate
        assert about is not None
        assert about[0] >= 0.99
        assert about[1] == 8_000
        quick, exactly = index.search(queries, 10), index.search(queries, 10, exactly=True)
    same = [len({hit.key for hit in a} & {hit.key for hit in b}) / 10 for a, b in zip(quick, exactly, strict=True)]
    assert np.mean(same) >= 0.97
    for ours, theirs in zip(quick, exactly, strict=True):
        scores = {hit.item: hit.score for hit in theirs}
        assert all(hit.score == pytest.approx(scores[hit.item], abs=1e-6) for hit in ours if hit.item in scores)


def test_photos_behind_the_approximate_file_are_found(large: tuple[Path, np.ndarray]) -> None:
    folder, _ = large
    late = unit(20, seed=77)
    names = fill(folder, late, start=8_000)
    with ImageIndex(folder) as index:
        assert index.info().approximate == (pytest.approx(1.0, abs=0.01), 8_000)
        hits = index.search(late, 1)
        (without,) = index.search(late[:1], 1, [[names[0].hex()]])
    assert [bytes.fromhex(row[0].key) for row in hits] == names
    assert without[0].key != names[0].hex()


def test_deleted_photos_are_not_found_approximately(large: tuple[Path, np.ndarray]) -> None:
    folder, vectors = large
    with IndexWriter(folder, IDENTITY) as writer:
        writer.remove([f"/photos/{row:07d}.jpg" for row in range(100)])
    with ImageIndex(folder) as index:
        found = {bytes.fromhex(hit.key) for row in index.search(vectors[:100], 10) for hit in row}
    assert not found & set(keys(100))


@pytest.mark.parametrize("damage", ["cut", "gone", "rubbish"])
def test_a_damaged_approximate_file_means_exact_search(
    large: tuple[Path, np.ndarray], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder, vectors = large
    (file,) = folder.glob("approximate-*")
    if damage == "gone":
        file.unlink()
    else:
        data = file.read_bytes()
        file.write_bytes(data[:100] if damage == "cut" else b"\xff" * len(data))
    with ImageIndex(folder) as index:
        hits = index.search(vectors[:20], 1)
    assert [bytes.fromhex(row[0].key) for row in hits] == keys(20)
    assert "searched exactly" in caplog.text
