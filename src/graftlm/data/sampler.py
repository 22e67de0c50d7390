"""Which sentences make the next batch: bucketed by length, and a function of (seed, epoch, position) alone.

Resuming needs no replay and no stored order: any process with the same state makes the same batches.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from graftlm.errors import CheckpointError, DataError


@dataclass(frozen=True, slots=True)
class SamplerState:
    """A place in the order. `position`: batches of this epoch already taken."""

    seed: int = 0
    epoch: int = 0
    position: int = 0

    def to_json(self) -> dict[str, int]:
        """Plain numbers for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Any) -> SamplerState:
        """The inverse of `to_json`. Raises: CheckpointError."""
        names = set(cls.__dataclass_fields__)
        if not isinstance(row, dict) or set(row) != names or not all(isinstance(row[name], int) for name in names):
            raise CheckpointError(f"sampler state: expected whole numbers {sorted(names)}, found {row!r}")
        return cls(**row)


class BucketSampler:
    """An endless order of batches in which neighbours in length sit together.

    Every epoch shuffles all indices, cuts them into chunks of `chunk` batches, sorts each chunk by length,
    cuts it into batches and shuffles the chunk's batches. So padding is small, every sentence comes once per
    epoch, and the order stays random.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, *, seed: int = 0, chunk: int = 64, drop_last: bool = True
    ) -> None:
        if not lengths:
            raise DataError("expected at least one training sentence, found none; check the table data.train")
        self._lengths = lengths
        self._batch_size = batch_size
        self._chunk = chunk
        self._drop_last = drop_last and len(lengths) >= batch_size
        self._order: tuple[int, list[list[int]]] | None = None
        self.state = SamplerState(seed=seed)

    @property
    def batches_per_epoch(self) -> int:
        """Batches in one pass over the data."""
        whole, rest = divmod(len(self._lengths), self._batch_size)
        return whole + (1 if rest and not self._drop_last else 0)

    def __iter__(self) -> Iterator[list[int]]:
        return self

    def __next__(self) -> list[int]:
        """Indices of the next batch; `state` moves past it."""
        state = self.state
        batch = self._epoch(state.epoch)[state.position]
        if state.position + 1 < self.batches_per_epoch:
            self.state = SamplerState(state.seed, state.epoch, state.position + 1)
        else:
            self.state = SamplerState(state.seed, state.epoch + 1, 0)
        return batch

    def _epoch(self, epoch: int) -> list[list[int]]:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self._shuffled(epoch))
        return self._order[1]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        order = random.Random(f"{self.state.seed}/{epoch}")
        indices = list(range(len(self._lengths)))
        order.shuffle(indices)
        size = self._batch_size
        whole = len(indices) // size * size
        rest = indices[whole:]
        batches: list[list[int]] = []
        for start in range(0, whole, self._chunk * size):
            chunk = indices[start : min(whole, start + self._chunk * size)]
            if self._chunk > 1:
                chunk.sort(key=lambda index: (self._lengths[index], index))
            cut = [chunk[first : first + size] for first in range(0, len(chunk), size)]
            order.shuffle(cut)
            batches.extend(cut)
        if rest and not self._drop_last:
            batches.append(rest)
        return batches
