"""Retrieval: photos are found by their captions, and captions by their photos (arXiv:1412.2306, §4.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from graftlm.data.retrieval import query_of
from graftlm.data.sample import Sample
from graftlm.data.sentence import Sentence
from graftlm.errors import DataError
from graftlm.evaluate.metrics.bootstrap import Interval
from graftlm.evaluate.metrics.ranking import Ranks, ranks, ranks_of
from graftlm.evaluate.retrieval import (
    DEPTHS,
    SHOWN,
    Embedded,
    as_retriever,
    counter,
    embed_pictures,
    embed_queries,
    first,
    intervals,
    picture_of,
    summary,
)
from graftlm.evaluate.task import Options, Outcome, Progress, Row, Task
from graftlm.systems.base import Responder, Retriever

_CHUNK = 512
Places: TypeAlias = npt.NDArray[np.int64]


class Retrieval(Task):
    """Recall at 1, 5 and 10 among all photos (t2i) or all captions (i2t) of the data; ties count against.

    t2i: every caption is a query, and the mean is over captions. "t2i R@1 (5 captions)": all captions of a photo are
    one query (arXiv:2301.13823, §4). i2t: any caption of the photo counts as right. Intervals are over photos.
    """

    name: ClassVar[str] = "retrieval"
    headline: ClassVar[str] = "t2i MRR"
    controls: ClassVar[tuple[str, ...]] = ("blind", "shuffled")

    def __init__(self) -> None:
        self._known: dict[tuple[int, tuple[Sentence, ...]], Embedded] = {}  # a control changes pictures alone

    def run(self, responder: Responder, samples: Sequence[Sample], options: Options, progress: Progress) -> Outcome:
        """Raises: UsageError for a system that finds no pictures; DataError for a photo without captions."""
        retriever = as_retriever(responder, self.name)
        media = [picture_of(sample, self.name) for sample in samples]
        captions = [_captions(sample) for sample in samples]
        owners = np.repeat(np.arange(len(samples)), [len(texts) for texts in captions])
        own = np.arange(len(samples))
        singles = [query_of([text]) for texts in captions for text in texts]
        wholes = [query_of(texts) for texts in captions] if len(singles) > len(samples) else []
        moved = counter(progress, len(media) + len(singles) + len(wholes))
        pictures = embed_pictures(retriever, media, moved)
        texts = self._embed(retriever, singles, moved)
        t2i, shown = _find_pictures(texts, pictures, owners)
        found = {("t2i", ""): (t2i, owners), ("i2t", ""): (_find_captions(pictures, texts, owners), own)}
        if wholes:
            joined, _ = _find_pictures(self._embed(retriever, wholes, moved), pictures, own)
            found["t2i", f" ({_number(captions)} captions)"] = joined, own
        metrics: dict[str, float] = {}
        ends: dict[str, Interval] = {}
        for (name, suffix), (ranked, photos) in found.items():
            metrics |= summary(ranked, name, suffix)
            ends |= intervals(ranked, photos, name, suffix, seed=options.seed, resamples=options.resamples)
        return Outcome(_rows(samples, captions, t2i, shown), metrics, ends)

    def _embed(self, retriever: Retriever, queries: Sequence[Sentence], moved: Callable[[int], None]) -> Embedded:
        """Vectors of queries, computed once for the task and its controls."""
        key = (id(retriever), tuple(queries))
        if key in self._known:
            moved(len(queries))
        else:
            self._known[key] = embed_queries(retriever, queries, moved)
        return self._known[key]


def _captions(sample: Sample) -> list[str]:
    captions = [text for text in sample.references if text.strip()]
    if not captions:
        raise DataError(f"retrieval: expected at least one caption for '{sample.key}', found none")
    return captions


def _number(captions: Sequence[Sequence[str]]) -> str:
    """How many captions a photo has, where all have as many."""
    counts = {len(texts) for texts in captions}
    return str(counts.pop()) if len(counts) == 1 else "all"


def _find_pictures(queries: Embedded, pictures: Embedded, right: Places) -> tuple[Ranks, Places]:
    """Rank of the right picture of every query, and the places of the first pictures found."""
    found, shown = [], []
    for start in range(0, len(queries), _CHUNK):
        rows = slice(start, start + _CHUNK)
        scores = queries.scores(rows, pictures)  # (rows, N)
        found.append(ranks_of(scores, right[rows]))
        shown.append(first(scores, SHOWN))
    return np.concatenate(found), np.concatenate(shown)


def _find_captions(pictures: Embedded, captions: Embedded, owners: Places) -> Ranks:
    """Rank of the best caption of every picture among all captions."""
    found = []
    for start in range(0, len(pictures), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(pictures)))
        found.append(ranks(pictures.scores(slice(start, start + _CHUNK), captions), rows[:, None] == owners))
    return np.concatenate(found)


def _rows(
    samples: Sequence[Sample], captions: Sequence[Sequence[str]], ranked: Ranks, shown: Places
) -> tuple[Row, ...]:
    """One row a caption that was a query."""
    rows: list[Row] = []
    for sample, texts in zip(samples, captions, strict=True):
        for number, text in enumerate(texts):
            rank, places = int(ranked[len(rows)]), shown[len(rows)]
            found = tuple(samples[place].key for place in places)
            scores = {**{f"t2i R@{k}": 100.0 * (rank <= k) for k in DEPTHS}, "t2i MRR": 100 / rank, "rank": float(rank)}
            rows.append(Row(f"{sample.key}#{number}", found[0], (sample.key,), scores, text, found, sample.key))
    return tuple(rows)
