"""Pictures that can be found by a vector: what the index, the dialogue and the evaluation agree on (no torch)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from graftlm.data.sentence import Image
from graftlm.errors import ShapeError

Vectors: TypeAlias = "npt.NDArray[np.floating[Any]]"
"""Rows of q numbers, unit length, so that a dot product is a cosine."""

Scores: TypeAlias = "npt.NDArray[np.float32]"
Rows: TypeAlias = "npt.NDArray[np.int64]"


@dataclass(frozen=True, slots=True)
class Hit:
    """A picture that was found.

    Attributes:
        key: content hash (hex) of the picture, as `data.media.content_hash` gives it
        image: the picture itself
        score: dot product with the query, in [-1, 1]
        item: the gallery's own number of the picture
    """

    key: str
    image: Image
    score: float
    item: int


@runtime_checkable
class Gallery(Protocol):
    """Pictures with a vector each."""

    def search(self, vectors: Vectors, count: int, exclude: Sequence[Collection[str]] | None = None) -> list[list[Hit]]:
        """The best pictures for every query, best first; fewer than `count` where there are no more.

        `exclude`: for every query the content hashes (hex) that it must not get; filtered, never penalised.
        Shapes: vectors (B, q).
        """


class MemoryGallery:
    """Pictures in memory, searched exactly: for tests and evaluation.

    Args:
        images: the pictures
        vectors: (N, q) unit vectors, one a picture
        keys: their content hashes (hex); computed without

    Raises: ShapeError when the counts differ; BadSampleError for a picture whose content cannot be read.
    """

    def __init__(self, images: Sequence[Image], vectors: Vectors, keys: Sequence[str] | None = None) -> None:
        self.images = tuple(images)
        self.vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        if self.vectors.ndim != 2 or len(self.images) != len(self.vectors):
            found = list(self.vectors.shape)
            raise ShapeError(f"a gallery of {len(self.images)} pictures: expected as many vectors, found shape {found}")
        self.keys = tuple(keys) if keys is not None else _content_hashes(self.images)
        if len(self.keys) != len(self.images):
            raise ShapeError(f"a gallery of {len(self.images)} pictures: found {len(self.keys)} content hashes")
        self._rows: dict[str, list[int]] = {}
        for row, key in enumerate(self.keys):
            self._rows.setdefault(key, []).append(row)

    def __len__(self) -> int:
        return len(self.images)

    def search(self, vectors: Vectors, count: int, exclude: Sequence[Collection[str]] | None = None) -> list[list[Hit]]:
        """The best pictures for every query, exactly. Raises: ShapeError for queries of another width."""
        queries = check_queries(vectors, self.vectors.shape[1], exclude)
        scores = queries @ self.vectors.T  # (B, N)
        for row, keys in enumerate(exclude or ()):
            for key in keys:
                scores[row, self._rows.get(key, [])] = -np.inf
        return [self._hits(row, count) for row in scores]

    def _hits(self, scores: Scores, count: int) -> list[Hit]:
        values, rows = best(scores, count)
        return [
            Hit(self.keys[row], self.images[row], float(value), int(row))
            for value, row in zip(values, rows, strict=True)
            if value > -np.inf
        ]


def check_queries(vectors: Vectors, width: int, exclude: Sequence[Collection[str]] | None) -> Scores:
    """Queries as float32 (B, q). Raises: ShapeError when width or number of exclusions does not fit."""
    queries = np.ascontiguousarray(vectors, dtype=np.float32)
    if queries.ndim != 2 or queries.shape[1] != width:
        raise ShapeError(f"queries: expected shape [B, {width}], found {list(queries.shape)}")
    if exclude is not None and len(exclude) != len(queries):
        raise ShapeError(f"exclude: expected one collection for each of {len(queries)} queries, found {len(exclude)}")
    return queries


def best(scores: Scores, count: int) -> tuple[Scores, Rows]:
    """The largest `count` scores, largest first, and their places; equal scores in the order of places.

    Shapes: scores (N,).
    """
    count = min(max(count, 0), len(scores))
    if count == 0:
        return np.empty(0, np.float32), np.empty(0, np.int64)
    floor = np.partition(scores, len(scores) - count)[len(scores) - count]
    places = np.flatnonzero(scores >= floor)
    places = places[np.argsort(-scores[places], kind="stable")][:count]
    return scores[places], places.astype(np.int64)


def _content_hashes(images: Sequence[Image]) -> tuple[str, ...]:
    from graftlm.data.media import content_hash

    return tuple(content_hash(image) for image in images)
