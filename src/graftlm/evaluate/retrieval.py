"""What tasks about finding share: who can find, vectors computed once, recalls with intervals over photos."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from graftlm.data.sample import Sample
from graftlm.data.sentence import MediaPart, Sentence
from graftlm.errors import DataError, ShapeError, UsageError
from graftlm.evaluate.answers import part_key
from graftlm.evaluate.metrics.bootstrap import Interval, interval, weights
from graftlm.evaluate.metrics.ngrams import Floats
from graftlm.evaluate.metrics.ranking import Ranks, Scores, mean_reciprocal_rank, median_rank, recall_at
from graftlm.evaluate.task import Progress
from graftlm.systems.base import Responder, Retriever

DEPTHS = (1, 5, 10)
SHOWN = 5
"""Pictures that a row tells, best first."""

_AT_ONCE = 128
T = TypeVar("T")


def as_retriever(responder: Responder, task: str) -> Retriever:
    """The system as one that finds pictures. Raises: UsageError when it is none."""
    if isinstance(responder, Retriever):
        return responder
    name = getattr(responder, "name", type(responder).__name__)
    raise UsageError(
        f"{task}: expected a system that finds pictures (embed_media and embed_queries), found '{name}', which only "
        "answers; choose a graft of another system, for example fromage or dual_encoder"
    )


def picture_of(sample: Sample, task: str) -> MediaPart:
    """The one picture a sample shows. Raises: DataError when it shows none or several."""
    media = sample.sentence.prompt().media()
    if len(media) != 1:
        raise DataError(f"{task}: expected one picture in '{sample.key}', found {len(media)}; use captioned photos")
    return media[0]


class Embedded:
    """Vectors of items of which equal ones are computed once, so that equal items tie exactly.

    Attributes:
        vectors: (U, q) of the different items; place: (N,) the row of each item
    """

    def __init__(self, vectors: Scores, place: npt.NDArray[np.int64]) -> None:
        self.vectors = vectors
        self.place = place

    def __len__(self) -> int:
        return len(self.place)

    def scores(self, rows: slice, others: Embedded) -> Scores:
        """Dot products of the items of `rows` with all others: (rows, M)."""
        found: Scores = (self.vectors[self.place[rows]] @ others.vectors.T)[:, others.place]
        return found


def embed_pictures(retriever: Retriever, media: Sequence[MediaPart], moved: Callable[[int], None]) -> Embedded:
    """Vectors of pictures; `moved` is told how many more are done."""
    different, place = _different(media, part_key)
    found = Embedded(_vectors(retriever.embed_media, different, moved), place)
    moved(len(media) - len(different))
    return found


def embed_queries(retriever: Retriever, sentences: Sequence[Sentence], moved: Callable[[int], None]) -> Embedded:
    """Vectors of queries; `moved` is told how many more are done."""
    different, place = _different(sentences, lambda sentence: tuple((type(part), part_key(part)) for part in sentence))
    found = Embedded(_vectors(retriever.embed_queries, different, moved), place)
    moved(len(sentences) - len(different))
    return found


def counter(progress: Progress, total: int) -> Callable[[int], None]:
    """Tells `progress` how many of `total` items are done, each time some more are."""
    done = 0

    def moved(count: int) -> None:
        nonlocal done
        done += count
        progress("answers", min(done, total), total)

    return moved


def first(scores: Scores, count: int) -> npt.NDArray[np.int64]:
    """Places of the best `count` candidates of every query, best first: (Q, count)."""
    count = min(count, scores.shape[1])
    places = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(scores, places, axis=1), axis=1, kind="stable")
    found: npt.NDArray[np.int64] = np.take_along_axis(places, order, axis=1)
    return found


def summary(found: Ranks, name: str, suffix: str = "") -> dict[str, float]:
    """Recalls, mean reciprocal rank and median rank under the name of a direction ("t2i"), which may be empty."""
    values = {f"R@{k}": recall_at(found, k) for k in DEPTHS}
    values |= {"MRR": mean_reciprocal_rank(found), "median rank": median_rank(found)}
    return {f"{name} {metric}{suffix}".strip(): value for metric, value in values.items()}


def intervals(
    found: Ranks, owners: npt.NDArray[np.int64], name: str, suffix: str = "", *, seed: int, resamples: int
) -> dict[str, Interval]:
    """Intervals of a direction's recalls when whole photos (owners) are drawn anew, all their queries with them.

    Shapes:
        found, owners: (Q,)
    """
    count = int(owners.max()) + 1
    drawn = weights(count, seed=seed, resamples=resamples)  # (R, N)
    total = drawn @ np.bincount(owners, minlength=count)
    rates = {k: _rate(drawn, found <= k, owners, count) / total for k in DEPTHS}
    return {f"{name} R@{k}{suffix}".strip(): interval(values * 100) for k, values in rates.items()}


def _rate(drawn: Floats, hits: npt.NDArray[np.bool_], owners: npt.NDArray[np.int64], count: int) -> Floats:
    found: Floats = drawn @ np.bincount(owners, weights=hits.astype(np.float64), minlength=count)
    return found


def _vectors(embed: Callable[[list[T]], Tensor], items: list[T], moved: Callable[[int], None]) -> Scores:
    chunks = [items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE)]
    found = []
    for chunk in chunks:
        vectors = embed(chunk)
        if len(vectors) != len(chunk):
            raise ShapeError(f"retriever: expected {len(chunk)} vectors, one per item, found {len(vectors)}")
        found.append(vectors.float().cpu().numpy())
        moved(len(chunk))
    return np.concatenate(found)


def _different(items: Sequence[T], key_of: Callable[[T], Hashable]) -> tuple[list[T], npt.NDArray[np.int64]]:
    rows: dict[Hashable, int] = {}
    kept: list[T] = []
    place = np.empty(len(items), dtype=np.int64)
    for number, item in enumerate(items):
        key = key_of(item)
        if key not in rows:
            rows[key] = len(kept)
            kept.append(item)
        place[number] = rows[key]
    return kept, place
