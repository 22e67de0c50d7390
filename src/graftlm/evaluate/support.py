"""Worked examples for a few-shot prompt: which samples of a support set a query is shown, and in what order.

Fixed, random, or nearest to the query (RICES, Yang et al., arXiv:2109.05014; Flamingo §3.2.2, arXiv:2204.14198). Under
every selection the query's own photo is never shown, whatever its name, and no photo is shown twice; the examples of a
shorter prompt are among those of a longer one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import TypeAlias

import numpy as np

from graftlm.data.media import content_hash
from graftlm.data.sample import Sample
from graftlm.data.sentence import MediaPart
from graftlm.errors import DataError, ShapeError, UsageError
from graftlm.evaluate.metrics.ranking import Scores
from graftlm.evaluate.task import Pooling


class Support:
    """Samples that worked examples are drawn from.

    Args:
        samples: those without a written answer are left out
        size: at most this many of them, drawn by `seed`; 0: all (Flamingo §A.1: 2048)
        pooled: tells which pictures are alike, for `rices`

    Raises: DataError when no sample has a picture and a written answer.
    """

    def __init__(
        self, samples: Sequence[Sample], *, size: int = 0, seed: int = 0, pooled: Pooling | None = None
    ) -> None:
        usable = [sample for sample in samples if _media(sample) and sample.sentence.targets().text().strip()]
        if not usable:
            raise DataError(
                "few-shot: expected worked examples (pictures with a caption or an answer) in the support split, found "
                "none; name another with --support"
            )
        if size and size < len(usable):
            places = random.Random(f"graftlm pool {seed}").sample(range(len(usable)), size)
            usable = [usable[place] for place in sorted(places)]
        self.samples = usable
        self.seed = seed
        self._pooled = pooled
        self._hashes: dict[int, str] = {}

    def fixed(self, query: Sample, count: int) -> list[Sample]:
        """The same examples for every query, drawn once by the seed; one that shows the query's photo is replaced."""
        return self._first(query, count, self._order)

    def random(self, query: Sample, count: int) -> list[Sample]:
        """Examples drawn for each query by the seed and its key."""
        return self._first(query, count, _drawn(len(self.samples), f"graftlm shots {self.seed} {query.key}"))

    def rices(self, query: Sample, count: int) -> list[Sample]:
        """The nearest by cosine of pooled features, the nearest last; of equally near ones the earlier is nearer.

        Raises: UsageError without an encoder.
        """
        scores = self._vectors @ self._unit([_media(query)[0]])[0]  # (P,)
        return self._first(query, count, np.argsort(-scores, kind="stable").tolist())[::-1]

    @cached_property
    def _order(self) -> list[int]:
        return list(_drawn(len(self.samples), f"graftlm shots {self.seed}"))

    @cached_property
    def _vectors(self) -> Scores:
        """Unit vectors of the photos: (P, Dv)."""
        return self._unit([_media(sample)[0] for sample in self.samples])

    def _unit(self, media: Sequence[MediaPart]) -> Scores:
        if self._pooled is None:
            raise UsageError("rices: expected an encoder that tells which pictures are alike, found none; name one")
        found = self._pooled(media).float().cpu().numpy()  # (N, Dv)
        if len(found) != len(media):
            raise ShapeError(f"rices: expected {len(media)} vectors, one per picture, found {len(found)}")
        norms = np.linalg.norm(found, axis=1, keepdims=True)
        unit: Scores = found / np.maximum(norms, np.finfo(found.dtype).tiny)
        return unit

    def _first(self, query: Sample, count: int, places: Iterable[int]) -> list[Sample]:
        """The first `count` of these places whose photos differ from the query's and from each other."""
        seen = {content_hash(part) for part in _media(query)}
        kept: list[Sample] = []
        for place in places:
            if len(kept) == count:
                break
            sample, digest = self.samples[place], self._hash(place)
            if digest not in seen and sample.stem != query.stem:
                seen.add(digest)
                kept.append(sample)
        if len(kept) < count:
            raise DataError(
                f"few-shot: expected {count} worked examples with different photos for '{query.key}', found "
                f"{len(kept)} in a support set of {len(self.samples)}; ask for fewer shots or name another --support"
            )
        return kept

    def _hash(self, place: int) -> str:
        if place not in self._hashes:
            self._hashes[place] = content_hash(_media(self.samples[place])[0])
        return self._hashes[place]


Selection: TypeAlias = Callable[[Support, Sample, int], list[Sample]]
"""Worked examples for a query, in the order of the prompt."""

SELECTIONS: dict[str, Selection] = {"random": Support.random, "fixed": Support.fixed, "rices": Support.rices}


def _media(sample: Sample) -> tuple[MediaPart, ...]:
    return sample.sentence.prompt().media()


def _drawn(count: int, seed: str) -> Iterator[int]:
    """All numbers below `count` in an order drawn by the seed, each drawn when it is asked for (Fisher and Yates)."""
    rng = random.Random(seed)
    moved: dict[int, int] = {}
    for first in range(count):
        other = rng.randrange(first, count)
        yield moved.get(other, other)
        moved[other] = moved.get(first, first)
