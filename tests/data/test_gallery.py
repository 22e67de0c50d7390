"""Pictures found by a vector, in memory."""

from __future__ import annotations

import numpy as np
import pytest

from graftlm.data.gallery import Gallery, MemoryGallery, best
from graftlm.data.media import content_hash
from graftlm.data.sentence import Image
from graftlm.errors import ShapeError


def unit(rows: int, width: int = 8, seed: int = 0) -> np.ndarray:
    """Random unit vectors."""
    vectors = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def gallery(rows: int) -> MemoryGallery:
    """Pictures of a few bytes each."""
    return MemoryGallery([Image(bytes([number])) for number in range(rows)], unit(rows))


def test_a_picture_is_found_by_its_own_vector() -> None:
    pictures = gallery(20)
    hits = pictures.search(pictures.vectors, 3)
    assert [row[0].item for row in hits] == list(range(20))
    assert all(row[0].score == pytest.approx(1.0, abs=1e-6) for row in hits)
    assert hits[4][0].key == content_hash(Image(bytes([4])))
    assert isinstance(pictures, Gallery)


def test_hits_are_those_of_a_plain_sort() -> None:
    pictures, queries = gallery(50), unit(7, seed=1)
    for query, hits in zip(queries, pictures.search(queries, 10), strict=True):
        order = sorted(range(50), key=lambda row: -float(query @ pictures.vectors[row]))[:10]
        assert [hit.item for hit in hits] == order


def test_what_is_excluded_is_filtered_and_the_next_best_takes_its_place() -> None:
    pictures, queries = gallery(10), unit(2, seed=2)
    plain = pictures.search(queries, 10)
    exclude = [{plain[0][0].key, plain[0][3].key}, set()]
    hits = pictures.search(queries, 10, exclude)
    assert [hit.item for hit in hits[0]] == [hit.item for at, hit in enumerate(plain[0]) if at not in (0, 3)]
    assert hits[1] == plain[1]


def test_copies_of_one_content_are_excluded_together() -> None:
    twins = MemoryGallery([Image(b"a"), Image(b"a"), Image(b"b")], unit(3))
    (hits,) = twins.search(unit(1), 3, [[content_hash(b"a")]])
    assert [hit.item for hit in hits] == [2]


def test_more_than_there_is_gives_what_there_is() -> None:
    assert [len(row) for row in gallery(3).search(unit(2), 99)] == [3, 3]
    assert MemoryGallery([], np.empty((0, 8))).search(unit(2), 5) == [[], []]


def test_equal_scores_keep_the_order_of_places() -> None:
    values, places = best(np.array([1, 2, 2, 0, 2], np.float32), 2)
    assert (values.tolist(), places.tolist()) == ([2.0, 2.0], [1, 2])


@pytest.mark.parametrize("wrong", [unit(1, 7), unit(1)[0]])
def test_queries_of_another_width_are_refused_with_both_numbers(wrong: np.ndarray) -> None:
    with pytest.raises(ShapeError, match=r"expected shape \[B, 8\], found"):
        gallery(3).search(wrong, 1)


def test_counts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="gallery of 1 pictures"):
        MemoryGallery([Image(b"a")], unit(2))
    with pytest.raises(ShapeError, match="one collection for each of 2 queries, found 1"):
        gallery(3).search(unit(2), 1, [set()])
