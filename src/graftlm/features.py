"""The content-addressed cache of what encoders see: one for training, evaluation, retrieval and serving.

A content is known by its hash and an encoder by its fingerprint, so a vector is never stale: another encoder, another
preprocessing or another picture has another key. Where the vectors lie: `feature_store`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from graftlm.data.media import content_hash
from graftlm.data.sentence import Part
from graftlm.encoders.base import Encoder, Features
from graftlm.errors import BackboneError, BadSampleError, CheckpointError
from graftlm.feature_store import CacheStats, FeatureStore, clear_folder, stats_of, stored_dtype

AnswerT = TypeVar("AnswerT")

FORMAT = 1
_ROWS_AT_ONCE = 32
_LOG = logging.getLogger(__name__)
FoundT = TypeVar("FoundT", Features, Tensor)


@dataclass(frozen=True, slots=True)
class BuildStats:
    """What `CachedEncoder.build` did.

    Attributes:
        num_media: items given; num_different: contents among them; num_cached: of these, already there
        num_computed: encoded now, in `seconds`; bad: position in the given sequence and its error
        seconds_per_item: time to encode one item, of this build or of earlier ones; 0 where unknown
    """

    num_media: int
    num_different: int
    num_cached: int
    num_computed: int
    seconds: float
    seconds_per_item: float
    modality: str = "image"
    bad: Mapping[int, BadSampleError] = field(default_factory=dict)

    @property
    def saved_seconds(self) -> float:
        """Encoding time that every further pass over the given media does not take."""
        return (self.num_media - len(self.bad)) * self.seconds_per_item

    def message(self) -> str:
        """One sentence for the user: "6000 of 6000 photos from the cache: saves about 4 min an epoch"."""
        noun = "photos" if self.modality == "image" else f"{self.modality}s"
        text = f"{self.num_cached} of {self.num_different} {noun} from the cache"
        if self.num_computed:
            text += f", {self.num_computed} encoded in {_duration(self.seconds)}"
        if self.saved_seconds >= 1:
            text += f": saves about {_duration(self.saved_seconds)} an epoch"
        return text + (f" ({len(self.bad)} cannot be read)" if self.bad else "")


class CachedEncoder(Encoder):
    """An encoder that looks in the cache first; every answer has the cache's precision, found or computed.

    An encoder in training, or one whose weights have changed since it was wrapped, is asked directly: what it sees
    is never cached. Threads may share it.

    Args:
        encoder: the encoder to wrap, frozen here
        folder: where the folders of all encoders are; $GRAFTLM_HOME/features without
        dtype: of the stored vectors; None: float16, and float32 from the first vector on that does not fit into it

    Raises: CheckpointError when the encoder's folder holds vectors of another kind.
    """

    def __init__(self, encoder: Encoder, folder: Path | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        inner: Encoder = encoder.encoder if isinstance(encoder, CachedEncoder) else encoder
        self.encoder: Encoder = inner.requires_grad_(False)
        self.dim = inner.dim
        self.num_positions = inner.num_positions
        self.fingerprint = inner.fingerprint
        self.modality = inner.modality
        place = (folder or default_folder()) / inner.fingerprint
        self._may_widen = dtype is None
        self._widening = threading.Lock()
        dtype = dtype or stored_dtype(place) or torch.float16
        self.store = FeatureStore(place, self._meta(dtype), dtype)
        self._weights_version = self._count_changes()
        self._warned = False

    @property
    def frame_positions(self) -> int:
        """As the encoder's own."""
        return self.encoder.frame_positions

    def preprocess(self, media: Sequence[Part]) -> Tensor:
        """As the encoder's own."""
        return self.encoder.preprocess(media)

    def forward(self, inputs: Tensor) -> Features:
        """As the encoder's own."""
        features: Features = self.encoder(inputs)
        return features

    def encode(self, media: Sequence[Part]) -> Features:
        """Features of N media items, on the CPU; equal contents are looked up once.

        Raises: BadSampleError for media that cannot be read; CheckpointError when the cache is damaged.
        """
        if not self.is_frozen():
            return self.encoder.encode(media)

        def answer() -> Features:
            found = self._find(media, self.store.read)
            return self._rounded(self.encoder.encode(media)) if found is None else found

        return self._with_room(answer)

    def pool(self, media: Sequence[Part]) -> Tensor:
        """The pooled vectors of N media items, on the CPU, without reading their other vectors.

        Raises: as `encode`.
        """
        if not self.is_frozen():
            return self.encoder.pool(media)

        def answer() -> Tensor:
            found = self._find(media, self.store.read_pooled)
            return self._rounded(self.encoder.encode(media)).pooled if found is None else found

        return self._with_room(answer)

    def build(
        self,
        media: Sequence[Part],
        *,
        batch_size: int = _ROWS_AT_ONCE,
        workers: int | None = None,
        on_bad: Callable[[int, BadSampleError], None] | None = None,
        quiet: bool = False,
    ) -> BuildStats:
        """Encodes what the cache lacks, with pictures decoded in `workers` threads, and tells on stderr what it saves.

        Media that cannot be read are told to `on_bad` by their position and listed in the result, and the rest goes
        on. Killed at any point and called again with the same media, it ends with the same bytes.
        Raises: CheckpointError when the cache cannot be written or is damaged; BackboneError for NaN.
        """
        with ThreadPoolExecutor(workers or min(4, os.cpu_count() or 1)) as pool:
            try:
                stats = self._with_room(lambda: _Build(self, media, on_bad, batch_size).run(pool, quiet=quiet))
            except OSError as error:
                pool.shutdown(cancel_futures=True)
                raise CheckpointError(
                    f"{self.store.folder}: features cannot be written ({error.strerror or error}); free some space or "
                    "set GRAFTLM_HOME to another folder"
                ) from None
        if media and not quiet:
            Console(stderr=True, highlight=False).print(stats.message())
        return stats

    def stats(self) -> CacheStats:
        """What the cache holds for this encoder."""
        self.store.refresh()
        return stats_of(self.store.folder)

    def clear(self) -> None:
        """Removes the features of this encoder."""
        self.store.clear()

    def is_frozen(self) -> bool:
        """Whether the encoder is what it was when it was wrapped, and is not trained."""
        trains = any(parameter.requires_grad for parameter in self.encoder.parameters())
        return not trains and self._count_changes() == self._weights_version

    def encode_inputs(self, inputs: Tensor) -> Features:
        """Features of preprocessed media in the cache's precision, on the CPU, without gradient."""
        with torch.no_grad():
            parameter = next(self.encoder.parameters(), None)
            return self._rounded(self.encoder(inputs if parameter is None else inputs.to(parameter.device)))

    def _find(self, media: Sequence[Part], read: Callable[[list[bytes]], FoundT]) -> FoundT | None:
        """What the cache holds of media, once it holds all of them; None where the cache cannot be used."""
        keys = [bytes.fromhex(content_hash(part)) for part in media]
        rows = {key: row for row, key in enumerate(dict.fromkeys(keys))}
        try:
            self._fill(dict(zip(keys, media, strict=True)))
            found = read(list(rows))
        except KeyError:  # another process cleared the cache a moment ago
            return None
        except OSError as error:
            self._warn_once(error)
            return None
        return found if len(rows) == len(keys) else found[torch.tensor([rows[key] for key in keys])]

    def _fill(self, media: Mapping[bytes, Part]) -> None:
        if all(key in self.store for key in media):
            return
        store = self.store
        store.refresh()
        missing = [key for key in media if key not in store]
        for start in range(0, len(missing), _ROWS_AT_ONCE):
            chunk = missing[start : start + _ROWS_AT_ONCE]
            store.append(chunk, self._rounded(self.encoder.encode([media[key] for key in chunk])))

    def _rounded(self, features: Features) -> Features:
        """Features in the cache's precision. Raises: _TooLargeError, BackboneError for NaN and infinity."""
        found = features.to("cpu", self.store.dtype)
        if _is_finite(found):
            return found
        name = f"encoder {self.fingerprint[:12]} ({type(self.encoder).__name__})"
        if not _is_finite(features):
            raise BackboneError(f"{name}: expected finite features, found NaN or infinity; use another encoder")
        largest = max(float(part.abs().max()) for part in (features.tokens, features.pooled))
        raise _TooLargeError(
            f"{name}: a feature of {largest:.3g} does not fit into {self.store.dtype}; "
            "choose another encoder, or give CachedEncoder the dtype torch.float32"
        )

    def _with_room(self, work: Callable[[], AnswerT]) -> AnswerT:
        """Does `work`; where a vector does not fit into float16, it is done again in a store of float32."""
        store = self.store
        try:
            return work()
        except CheckpointError as error:
            if self.store is store:  # else another thread has widened it below this one
                if not (self._may_widen and isinstance(error, _TooLargeError)):
                    raise
                self._widen(store, error)
            return work()

    def _widen(self, store: FeatureStore, error: Exception) -> None:
        with self._widening:
            if self.store is not store:
                return  # another thread has done so
            if stored_dtype(store.folder) != torch.float32:
                clear_folder(store.folder, self._meta(torch.float32))
            self.store = FeatureStore(store.folder, self._meta(torch.float32), torch.float32)
        reason = str(error).partition(";")[0]
        _LOG.warning("%s: its features are kept in torch.float32, in twice the space", reason)

    def _meta(self, dtype: torch.dtype) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "dtype": str(dtype).removeprefix("torch."),
            "dim": self.dim,
            "num_positions": self.num_positions,
            "modality": self.modality,
        }

    def _count_changes(self) -> int:
        # What was loaded in inference mode has no count.
        return sum(0 if weight.is_inference() else weight._version for weight in self.encoder.parameters())

    def _warn_once(self, error: OSError) -> None:
        if not self._warned:
            _LOG.warning(
                "%s: features cannot be kept (%s); going on without", self.store.folder, error.strerror or error
            )
        self._warned = True


class _TooLargeError(CheckpointError):
    """A feature beyond the range of the cache's precision."""


class _Build:
    """One run of `CachedEncoder.build`."""

    def __init__(
        self,
        owner: CachedEncoder,
        media: Sequence[Part],
        on_bad: Callable[[int, BadSampleError], None] | None,
        batch_size: int,
    ) -> None:
        self.owner = owner
        self.media = media
        self.on_bad = on_bad
        self.batch_size = batch_size
        self.bad: dict[int, BadSampleError] = {}
        self.places: dict[bytes, list[int]] = {}

    def run(self, pool: ThreadPoolExecutor, *, quiet: bool) -> BuildStats:
        """Hashes, decodes ahead in threads, encodes and stores in order."""
        store = self.owner.store
        if not self.owner.is_frozen():
            return BuildStats(len(self.media), 0, 0, 0, 0.0, 0.0, self.owner.modality)
        self._hash(pool)
        store.refresh()
        different = list(self.places)
        # Batches are cut before what is known is left out: a build that goes on makes the same ones.
        batches = [different[at : at + self.batch_size] for at in range(0, len(different), self.batch_size)]
        todo = [missing for batch in batches if (missing := [key for key in batch if key not in store])]
        count = sum(map(len, todo))
        started, computed = time.perf_counter(), 0
        with _bar(quiet or not count) as bar:
            task = bar.add_task(f"features of {self.owner.modality}s", total=count)
            for keys, inputs, errors in _ahead(pool, self._prepare, todo, depth=pool._max_workers):
                self._report(errors)
                if inputs is not None:
                    store.append(keys, self.owner.encode_inputs(inputs))
                computed += len(keys)
                bar.advance(task, len(keys) + len(errors))
        seconds = time.perf_counter() - started
        if computed:
            store.add_time(computed, seconds)
        speed, cached = store.seconds_per_item(), len(different) - count
        modality = self.owner.modality
        return BuildStats(len(self.media), len(different), cached, computed, seconds, speed, modality, self.bad)

    def _hash(self, pool: ThreadPoolExecutor) -> None:
        for index, found in enumerate(pool.map(_hash_or_error, self.media)):
            if isinstance(found, bytes):
                self.places.setdefault(found, []).append(index)
            else:
                self._tell(index, found)

    def _prepare(self, keys: list[bytes]) -> tuple[list[bytes], Tensor | None, dict[bytes, BadSampleError]]:
        """Inputs of the contents that can be read, and the errors of the others."""
        errors: dict[bytes, BadSampleError] = {}
        try:
            return keys, self._inputs(keys), errors
        except BadSampleError:
            for key in keys:
                try:
                    self._inputs([key])
                except BadSampleError as error:
                    errors[key] = error
        good = [key for key in keys if key not in errors]
        return good, self._inputs(good) if good else None, errors

    def _inputs(self, keys: Sequence[bytes]) -> Tensor:
        return self.owner.preprocess([self.media[self.places[key][0]] for key in keys])

    def _report(self, errors: Mapping[bytes, BadSampleError]) -> None:
        for key, error in errors.items():
            for index in self.places[key]:
                self._tell(index, error)

    def _tell(self, index: int, error: BadSampleError) -> None:
        self.bad[index] = error
        if self.on_bad is not None:
            self.on_bad(index, error)


def default_folder() -> Path:
    """Where the features of all encoders are kept: $GRAFTLM_HOME/features."""
    from graftlm.backbones import home

    return home() / "features"


def list_caches(folder: Path | None = None) -> list[CacheStats]:
    """What is in the cache, one entry an encoder."""
    metas = sorted((folder or default_folder()).glob("*/meta.json"))
    return [stats_of(meta.parent) for meta in metas]


def clear_caches(folder: Path | None = None, fingerprint: str = "") -> list[CacheStats]:
    """Removes the features of every encoder, or of those whose fingerprint begins as given; returns what they held."""
    removed = [cache for cache in list_caches(folder) if cache.fingerprint.startswith(fingerprint)]
    for cache in removed:
        clear_folder(cache.folder)
    return removed


def _is_finite(features: Features) -> bool:
    return bool(features.tokens.isfinite().all()) and bool(features.pooled.isfinite().all())


def _hash_or_error(part: Part) -> bytes | BadSampleError:
    try:
        return bytes.fromhex(content_hash(part))
    except BadSampleError as error:
        return error


def _ahead(pool: ThreadPoolExecutor, work: Callable[[Any], Any], items: Iterable[Any], *, depth: int) -> Iterator[Any]:
    """Results of `work` in order, at most `depth` of them computed ahead."""
    source = iter(items)
    waiting: deque[Future[Any]] = deque(pool.submit(work, item) for item in islice(source, depth))
    while waiting:
        result = waiting.popleft().result()
        waiting.extend(pool.submit(work, item) for item in islice(source, 1))
        yield result


def _bar(is_hidden: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=is_hidden)


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
