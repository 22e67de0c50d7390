"""A stream of samples that can stop after any of them and go on exactly there.

A shuffle buffer loses samples when a stream is resumed, so there is none: the order of shards, and of rows inside a
run of rows, is a permutation drawn from seed, epoch and place, and the state is the place in that order.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, Protocol, TypeVar

from graftlm.data.ledger import Ledger
from graftlm.data.sample import Sample
from graftlm.errors import DataError

R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")


class Shard(Protocol[R_co]):
    """A piece of the data that can be read again, run by run, in a fixed order."""

    @property
    def name(self) -> str:
        """Its name in the ledger and in the fingerprint of the stream."""

    def runs(self, start: int) -> Iterator[Sequence[tuple[int, R_co]]]:
        """Runs of rows with their numbers, from run number `start` on; a run fits into memory."""


@dataclass(slots=True)
class Place:
    """Where a stream stands: the next sample is number `sample` of row `row` of run `run` of the shard in turn."""

    epoch: int = 0
    shard: int = 0
    run: int = 0
    row: int = 0
    sample: int = 0
    rows: int = 0


class Stream(Generic[R]):
    """Samples of shards, epoch after epoch: one `iter` gives the rest of the epoch that the stream stands in.

    Args:
        shards: in their own order
        build: a row, its shard's name and number, as samples; raises BadSampleError
        ledger: where bad rows go
        shuffle: another order in each epoch; else the shards' own
        seed: of the orders
        limit: at most this many rows an epoch

    Raises: DataError when there is no shard, and in the end of an epoch without any usable row.
    """

    def __init__(
        self,
        shards: Sequence[Shard[R]],
        build: Callable[[R, str, int], Sequence[Sample]],
        ledger: Ledger,
        *,
        shuffle: bool = False,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        if not shards:
            raise DataError("a stream of samples: expected at least one shard, found none; check the path")
        self.shards = shards
        self.ledger = ledger
        self._build = build
        self._shuffle = shuffle
        self._seed = seed
        self._limit = limit
        self._place = Place()
        names = "\n".join([*(shard.name for shard in shards), str(shuffle), str(seed)])
        self.fingerprint = hashlib.sha256(names.encode("utf-8", errors="replace")).hexdigest()[:16]

    @property
    def epoch(self) -> int:
        """The number of the epoch the stream stands in."""
        return self._place.epoch

    def state_dict(self) -> dict[str, Any]:
        """The place after the last sample given, as JSON."""
        return {**asdict(self._place), "fingerprint": self.fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to a place. Raises: DataError when the state belongs to other shards, seed or shuffling."""
        if state.get("fingerprint") != self.fingerprint:
            raise DataError(
                f"a stream's state: expected one of the stream {self.fingerprint}, found {state.get('fingerprint')}; "
                "the shards, the seed or 'shuffle' have changed since: start again"
            )
        try:
            self._place = Place(**{name: int(value) for name, value in state.items() if name != "fingerprint"})
        except (TypeError, ValueError):
            raise DataError(f"a stream's state: expected whole numbers, found {dict(state)}; start again") from None

    def __iter__(self) -> Iterator[Sample]:
        order = self._order(len(self.shards), "shards")
        while self._place.shard < len(order) and not self._is_full():
            yield from self._shard(order[self._place.shard])
            self._place = Place(self._place.epoch, self._place.shard + 1, rows=self._place.rows)
        self.ledger.check()
        if not self._place.rows:
            bad = self.ledger.summary() or "no row of the split"
            raise DataError(f"{self.shards[0].name}: expected usable rows in the stream, found none ({bad})")
        self._place = Place(self._place.epoch + 1)

    def _shard(self, number: int) -> Iterator[Sample]:
        shard = self.shards[number]
        for run in shard.runs(self._place.run):
            order = self._order(len(run), f"{number}:{self._place.run}")
            while self._place.row < len(order) and not self._is_full():
                row, value = run[order[self._place.row]]
                samples = self._samples(shard.name, row, value)
                while self._place.sample < len(samples):
                    self._place.sample += 1
                    yield samples[self._place.sample - 1]
                self._place.row, self._place.sample = self._place.row + 1, 0
                self._place.rows += bool(samples)
            if self._is_full():
                return
            self._place.run, self._place.row = self._place.run + 1, 0

    def _samples(self, shard: str, row: int, value: R) -> Sequence[Sample]:
        with self.ledger.row(shard, row):
            return self._build(value, shard, row)
        return ()

    def _order(self, count: int, place: str) -> list[int]:
        order = list(range(count))
        if self._shuffle:
            random.Random(f"{self._seed}:{self._place.epoch}:{place}").shuffle(order)
        return order

    def _is_full(self) -> bool:
        return self._limit is not None and self._place.rows >= self._limit
