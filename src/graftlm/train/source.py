"""Where the next batch of sentences comes from, and how that place is remembered."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from graftlm.data.ledger import Ledger
from graftlm.data.media import black_image
from graftlm.data.sample import Sample
from graftlm.data.sampler import BucketSampler, SamplerState
from graftlm.data.sentence import Image, Part, Sentence, Video
from graftlm.data.stream import Stream
from graftlm.errors import CheckpointError, DataError, ShapeError
from graftlm.systems.base import System

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

TOO_LONG = "too-long"
"""The ledger's reason for a sentence whose prompt leaves no room for an answer."""


class Source(Protocol):
    """An endless supply of batches.

    Attributes:
        batches_per_epoch: batches in one pass, or None where nobody knows
        sentences: sentences in one pass, or None
        factors: of the losses of the batches that belong into one step, in turn; (1.0,) where there is one
    """

    batches_per_epoch: int | None
    sentences: int | None
    factors: tuple[float, ...]

    def next_batch(self) -> list[Sentence]:
        """The next batch over all processes."""

    def state(self) -> dict[str, Any]:
        """The place after the last batch, as JSON, with what the data looked like."""

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to a place. Raises: CheckpointError when the data has changed since."""


@dataclass(frozen=True, slots=True)
class Length:
    """How long a sentence is: `positions` in the language model, `targets` among them."""

    positions: int
    targets: int


def lengths_of(
    system: System, sentences: Sequence[Sentence], seen: Callable[[int], None] | None = None
) -> list[Length]:
    """Length of every sentence in the system's own layout; `seen` is told how many are done."""
    found: list[Length] = []
    for sentence in sentences:
        found.append(Length(*system.length(sentence)))
        if seen is not None and len(found) % 500 == 0:
            seen(len(found))
    return found


def fitting(
    system: System, samples: Sequence[Sample], ledger: Ledger, file: str, seen: Callable[[int], None] | None = None
) -> tuple[list[Sample], list[Length]]:
    """The samples that fit into the system's longest row, and their lengths; the others are in the ledger."""
    kept: list[Sample] = []
    lengths: list[Length] = []
    for number, sample in enumerate(samples, start=1):
        try:
            lengths += lengths_of(system, [sample.sentence])
            kept.append(sample)
        except ShapeError as error:
            ledger.add(TOO_LONG, str(error), file=file, row=sample.key)
        if seen is not None and number % 500 == 0:
            seen(number)
    return kept, lengths


class IndexedSource:
    """Samples that can be asked for by number, in the order of a `BucketSampler`.

    Attributes:
        samples: all of them, each of which fits into a row
    """

    def __init__(self, samples: Sequence[Sample], lengths: Sequence[Length], sampler: BucketSampler) -> None:
        self.samples = samples
        self._sampler = sampler
        self.factors: tuple[float, ...] = (1.0,)
        self.sentences: int | None = len(samples)
        self.batches_per_epoch: int | None = sampler.batches_per_epoch
        self._digest = _digest(samples, lengths)

    def next_batch(self) -> list[Sentence]:
        """The next batch over all processes."""
        return [self.samples[index].sentence for index in next(self._sampler)]

    def state(self) -> dict[str, Any]:
        """Sampler state and a digest of keys and lengths."""
        return {"sampler": self._sampler.state.to_json(), "data": self._digest}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to a place. Raises: CheckpointError when the data has changed since."""
        if state.get("data") != self._digest:
            raise CheckpointError(
                f"the training data has changed since the checkpoint (expected digest {str(state.get('data'))[:12]}, "
                f"found {self._digest[:12]}); put the old data back or start a new run folder"
            )
        self._sampler.state = SamplerState.from_json(state.get("sampler"))


class StreamSource:
    """Samples that can only be read in order: chunks are sorted by length, cut into batches and shuffled.

    A place is where the stream stood before the chunk, and how many of the chunk's batches are taken.
    """

    batches_per_epoch: int | None = None
    sentences: int | None = None
    factors: tuple[float, ...] = (1.0,)

    def __init__(
        self,
        system: System,
        stream: Stream[Any],
        batch_size: int,
        *,
        seed: int,
        chunk: int,
        ledger: Ledger | None = None,
    ) -> None:
        self._system = system
        self._ledger = ledger or Ledger()
        self._stream = stream
        self._batch_size = batch_size
        self._seed = seed
        self._chunk = chunk
        self._before: dict[str, Any] = stream.state_dict()
        self._batches: list[list[Sentence]] = []
        self._taken = 0

    def next_batch(self) -> list[Sentence]:
        """The next batch over all processes."""
        if self._taken == len(self._batches):
            self._read_chunk()
        self._taken += 1
        return self._batches[self._taken - 1]

    def state(self) -> dict[str, Any]:
        """The stream's place before the chunk and the batches taken of it."""
        return {"stream": self._before, "taken": self._taken}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to a place. Raises: CheckpointError, DataError when the stream is another one."""
        taken, before = state.get("taken"), state.get("stream")
        if not isinstance(taken, int) or not isinstance(before, dict):
            raise CheckpointError(f"state.json: expected the place of a stream, found {sorted(state)}; start a new run")
        self._stream.load_state_dict(before)
        self._batches, self._taken = [], 0
        if taken:
            self._read_chunk()
            self._taken = taken

    def _read_chunk(self) -> None:
        self._before = self._stream.state_dict()
        wanted = self._chunk * self._batch_size
        sentences: list[Sentence] = []
        lengths: list[Length] = []
        useful = self._stream.epoch
        while len(sentences) < wanted:  # a stream's iterator ends with its epoch
            samples = islice(iter(self._stream), wanted - len(sentences))
            asking = [sample for sample in samples if any(part.target for part in sample.sentence)]
            found, measured = fitting(self._system, asking, self._ledger, "data.train")
            sentences += [sample.sentence for sample in found]
            lengths += measured
            useful = self._stream.epoch if found else useful
            if self._stream.epoch > useful + 1:  # a whole epoch without any
                raise DataError("data.train: expected sentences with a target in the stream, found none; check it")
        order = sorted(range(wanted), key=lambda index: (lengths[index].positions, index))
        size = self._batch_size
        self._batches = [[sentences[index] for index in order[at : at + size]] for at in range(0, wanted, size)]
        random.Random(f"{self._seed}/{self._before}").shuffle(self._batches)
        self._taken = 0


class MixedSource:
    """Several datasets, of each of which a step takes a batch, times its factor (Flamingo §3.2, arXiv:2204.14198).

    Epochs are counted in passes over the first.
    """

    def __init__(self, sources: Sequence[Source], factors: Sequence[float]) -> None:
        self._sources = list(sources)
        self._turn = 0
        self.factors: tuple[float, ...] = tuple(factors)
        self.batches_per_epoch = sources[0].batches_per_epoch
        self.sentences = sources[0].sentences

    def next_batch(self) -> list[Sentence]:
        """The next batch, of the dataset whose turn it is."""
        batch = self._sources[self._turn].next_batch()
        self._turn = (self._turn + 1) % len(self._sources)
        return batch

    def state(self) -> dict[str, Any]:
        """The place in every dataset, and whose turn it is."""
        return {"sources": [source.state() for source in self._sources], "turn": self._turn}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to a place. Raises: CheckpointError when the data has changed since."""
        places, turn = state.get("sources"), state.get("turn")
        if not isinstance(places, list) or len(places) != len(self._sources) or not isinstance(turn, int):
            raise CheckpointError(
                f"state.json: expected places in {len(self._sources)} datasets, found {sorted(state)}; start a new run"
            )
        for source, place in zip(self._sources, places, strict=True):
            source.restore(place)
        self._turn = turn % len(self._sources)


def _digest(samples: Sequence[Sample], lengths: Sequence[Length]) -> str:
    digest = hashlib.sha256()
    for sample, length in zip(samples, lengths, strict=True):
        digest.update(f"{sample.key}\0{length.positions}\0{length.targets}\n".encode())
    return digest.hexdigest()


def with_targets(samples: Sequence[Sample], where: str) -> list[Sample]:
    """The samples that ask the model for something. Raises: DataError when there is none."""
    kept = [sample for sample in samples if any(part.target for part in sample.sentence)]
    if not kept:
        raise DataError(f"{where}: expected sentences with a target (a caption, an answer), found none; check the spec")
    return kept


def blind(sentence: Sentence) -> Sentence:
    """The sentence with all pictures and films black: what a model can do unseeing (Frozen §3.2, arXiv:2106.13884)."""
    return sentence.map(_black)


def _black(part: Part) -> Part:
    if not isinstance(part, Image | Video) or (isinstance(part, Image) and part.is_sought):
        return part
    return replace(part, source=_black_picture())


@lru_cache(maxsize=1)
def _black_picture() -> PILImage:
    return black_image()
