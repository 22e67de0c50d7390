"""The content-addressed cache of what encoders see: one for training, evaluation, retrieval and serving.

::

    features/<encoder fingerprint>/
        meta.json            what the vectors are: fingerprint, dtype, width; another one is refused
        shard-00000.bin ...  memory-mapped records: tokens (n, Dv), pooled (Dv), mask (n), padded to 64 bytes
        index.bin            64 bytes a record: content hash, place, two check sums
        speed.json           seconds that encoding took, for the message of what the cache saves

A record counts once its index entry, and that of the last record of its batch, is on the disk; the data get there
first. A process killed at any point therefore leaves whole batches, and building again does the rest in the same
batches, so the end is the same to the bit. Several processes may read while one writes.
"""

from __future__ import annotations

import json
import logging
import math
import mmap
import os
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from graftlm.data.media import content_hash
from graftlm.data.sentence import MediaPart
from graftlm.encoders.base import Encoder, Features
from graftlm.errors import BadSampleError, CheckpointError

FORMAT = 1
SHARD_BYTES = 1 << 30
_ENTRY = struct.Struct("<32sIIQIB7xI")  # hash, shard, positions, offset, crc of the record, ends a batch, crc of this
_ALIGNMENT = 64
_LOCK_TIMEOUT_S = 120
_ROWS_AT_ONCE = 32
_LOG = logging.getLogger(__name__)


class _Place(NamedTuple):
    shard: int
    positions: int
    offset: int
    crc: int


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What one folder of the cache holds; `seconds_per_item` is 0 where nothing was timed."""

    folder: Path
    fingerprint: str
    modality: str
    num_items: int
    num_bytes: int
    seconds_per_item: float


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


class FeatureStore:
    """Vectors of one encoder on the disk, by content hash; threads may share it.

    Raises: CheckpointError when the folder holds vectors of another encoder, type or width, or is damaged.
    """

    def __init__(self, folder: Path, meta: Mapping[str, Any], dtype: torch.dtype) -> None:
        self.folder = folder
        self.meta = dict(meta)
        self.dtype = dtype
        self.dim = int(meta["dim"])
        self._lock = threading.RLock()
        self._forget()
        self.refresh()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def refresh(self) -> None:
        """Takes in what other processes have written since."""
        with self._lock:
            try:
                size = os.stat(self._index_path).st_size
                identity = self._identity()
            except FileNotFoundError:
                self._forget()
                return
            if identity != self._known_as or size < self._index_bytes:
                self._forget()
                self._check_meta()
                self._known_as = identity
            if size > self._index_bytes:
                self._read_index()

    def read(self, keys: Sequence[bytes]) -> Features:
        """Vectors of stored contents. Raises: CheckpointError when a record is damaged; KeyError when it is absent."""
        places = [self._places[key] for key in keys]
        length = max((place.positions for place in places), default=1)
        tokens = torch.zeros(len(keys), length, self.dim, dtype=self.dtype)
        pooled = torch.empty(len(keys), self.dim, dtype=self.dtype)
        mask = torch.zeros(len(keys), length, dtype=torch.bool)
        into = (_bytes_of(tokens).reshape(len(keys), -1), _bytes_of(pooled), _bytes_of(mask))
        for row, place in enumerate(places):
            record = self._record(place)
            ends = self._ends(place.positions)
            into[0][row, : ends[0]] = record[: ends[0]]
            into[1][row] = record[ends[0] : ends[1]]
            into[2][row, : place.positions] = record[ends[1] : ends[2]]
        return Features(tokens, mask, pooled)

    def append(self, keys: Sequence[bytes], features: Features) -> None:
        """Adds vectors as one batch, all or none; contents already there are left. Raises: OSError, CheckpointError."""
        with self._lock, self._writing():
            new = {key: row for row, key in enumerate(keys) if key not in self._places}
            if not new:
                return
            records = {key: self._encode(features, row) for key, row in new.items()}
            entries = self._write_records(records)
            block = _pack_entries(entries)
            _write_at(self._index_path, self._index_bytes, block)
            self._index_bytes += len(block)
            self._places.update(entries)

    def clear(self) -> None:
        """Removes every vector; the lock file stays for processes that wait on it."""
        with self._lock, self._locked():
            for path in self.folder.iterdir():
                if path.name != "lock":
                    path.unlink()
            self._forget()

    def digest(self) -> str:
        """SHA-256 (hex) of what the store holds, in its order: equal for equal vectors of equal contents."""
        rows = (key + struct.pack("<II", place.positions, place.crc) for key, place in self._places.items())
        return sha256(b"".join(rows)).hexdigest()

    def add_time(self, items: int, seconds: float) -> None:
        """Notes how long encoding took."""
        with self._lock, self._locked():
            before = _read_json(self.folder / "speed.json")
            total = {"items": before.get("items", 0) + items, "seconds": before.get("seconds", 0.0) + seconds}
            _write_json(self.folder / "speed.json", total)

    def seconds_per_item(self) -> float:
        """Measured time to encode one item; 0 where nothing was timed."""
        total = _read_json(self.folder / "speed.json")
        return float(total["seconds"]) / total["items"] if total.get("items") else 0.0

    @property
    def _index_path(self) -> Path:
        return self.folder / "index.bin"

    def _shard_path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.bin"

    def _forget(self) -> None:
        self._places: dict[bytes, _Place] = {}
        self._maps: dict[int, mmap.mmap] = {}
        self._checked: set[_Place] = set()
        self._index_bytes = 0
        self._known_as: tuple[int, int] | None = None
        self._tail = (0, 0)  # shard and byte where the next record goes
        self._damaged = False

    def _identity(self) -> tuple[int, int]:
        """Differs when the folder was cleared or mended by another process; file numbers alone are used again."""
        status = os.stat(self.folder / "meta.json")
        return status.st_ino, status.st_mtime_ns

    def _check_meta(self) -> None:
        found = _read_json(self.folder / "meta.json")
        for name, expected in self.meta.items():
            if found.get(name) != expected:
                raise CheckpointError(
                    f"{self.folder}: expected features of {name} {expected!r}, found {found.get(name)!r}; run "
                    "`graft cache clear` or choose another folder"
                )

    def _read_index(self) -> None:
        with open(self._index_path, "rb") as file:
            file.seek(self._index_bytes)
            block = file.read()
        waiting: list[tuple[bytes, _Place]] = []
        sizes: dict[int, int] = {}
        lost = 0
        whole = len(block) // _ENTRY.size * _ENTRY.size
        for at in range(0, whole, _ENTRY.size):
            key, shard, positions, offset, crc, closes, own = _ENTRY.unpack_from(block, at)
            if own != zlib.crc32(block[at : at + _ENTRY.size - 4]):
                break
            waiting.append((key, _Place(shard, positions, offset, crc)))
            if closes:
                lost += self._accept(waiting, sizes)
                self._index_bytes += len(waiting) * _ENTRY.size
                waiting = []
        if lost:
            self._damaged = True
            _LOG.warning("%s: %d features were cut off the end of a file and are encoded again", self.folder, lost)

    def _accept(self, entries: Iterable[tuple[bytes, _Place]], sizes: dict[int, int]) -> int:
        """Takes entries in; returns how many have no data behind them."""
        lost = 0
        for key, place in entries:
            end = place.offset + self._ends(place.positions)[3]
            if place.shard not in sizes:
                path = self._shard_path(place.shard)
                sizes[place.shard] = path.stat().st_size if path.exists() else 0
            if end > sizes[place.shard]:
                lost += 1
                continue
            self._places[key] = place
            self._tail = max(self._tail, (place.shard, end))
        return lost

    def _ends(self, positions: int) -> tuple[int, int, int, int]:
        """Where in a record its tokens, pooled vector, mask and padding end."""
        width = self.dim * self.dtype.itemsize
        tokens, pooled = positions * width, (positions + 1) * width
        mask = pooled + positions
        return tokens, pooled, mask, math.ceil(mask / _ALIGNMENT) * _ALIGNMENT

    def _record(self, place: _Place) -> np.ndarray[Any, np.dtype[np.uint8]]:
        size = self._ends(place.positions)[3]
        mapped = self._maps.get(place.shard)
        if mapped is None or len(mapped) < place.offset + size:
            mapped = self._map(place, size)
        record = np.frombuffer(mapped, np.uint8, size, place.offset)
        if place not in self._checked:
            if zlib.crc32(record) != place.crc:
                raise self._broken(place)
            self._checked.add(place)
        return record

    def _map(self, place: _Place, size: int) -> mmap.mmap:
        try:
            with open(self._shard_path(place.shard), "rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):
            raise self._broken(place) from None
        if len(mapped) < place.offset + size:
            raise self._broken(place)
        self._maps[place.shard] = mapped
        return mapped

    def _broken(self, place: _Place) -> CheckpointError:
        return CheckpointError(
            f"{self._shard_path(place.shard)}: the features at byte {place.offset} are not those that were written; "
            "run `graft cache clear`"
        )

    def _encode(self, features: Features, row: int) -> tuple[int, bytes]:
        """The number of positions of one item, and its record."""
        mask = features.mask[row]
        used = mask.nonzero()
        positions = int(used[-1]) + 1 if len(used) else 1
        parts = (features.tokens[row, :positions].to(self.dtype), features.pooled[row].to(self.dtype), mask[:positions])
        body = b"".join(_bytes_of(part.contiguous()).tobytes() for part in parts)
        return positions, body.ljust(self._ends(positions)[3], b"\0")

    def _write_records(self, records: Mapping[bytes, tuple[int, bytes]]) -> dict[bytes, _Place]:
        entries: dict[bytes, _Place] = {}
        shard, end = self._tail
        bodies: dict[int, list[bytes]] = {}
        starts = {shard: end}
        for key, (positions, record) in records.items():
            if end and end + len(record) > SHARD_BYTES:
                shard, end = shard + 1, 0
                starts[shard] = 0
            entries[key] = _Place(shard, positions, end, zlib.crc32(record))
            bodies.setdefault(shard, []).append(record)
            end += len(record)
        for number, body in bodies.items():
            _write_at(self._shard_path(number), starts[number], b"".join(body))
        self._tail = (shard, end)
        return entries

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """The lock, with the folder set up, everything read that others wrote and the index mended."""
        with self._locked():
            self.refresh()
            if self._damaged:
                block = _pack_entries(self._places)
                temporary = self.folder / "index.tmp"
                _write_at(temporary, 0, block)
                temporary.replace(self._index_path)
                self._index_bytes = len(block)
            if self._damaged or self._known_as is None:
                _write_json(self.folder / "meta.json", self.meta)
                self._known_as, self._damaged = self._identity(), False
            yield

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / "lock", timeout=_LOCK_TIMEOUT_S):
                yield
        except Timeout:
            raise CheckpointError(
                f"{self.folder}: another process has held its lock for {_LOCK_TIMEOUT_S} s; end it and try again"
            ) from None


class CachedEncoder(Encoder):
    """An encoder that looks in the cache first; every answer has the cache's precision, found or computed.

    An encoder in training, or one whose weights have changed since it was wrapped, is asked directly: what it sees
    is never cached. Threads may share it.

    Args:
        encoder: the encoder to wrap, frozen here
        folder: where the folders of all encoders are; $GRAFTLM_HOME/features without
        dtype: of the stored vectors

    Raises: CheckpointError when the encoder's folder holds vectors of another kind.
    """

    def __init__(self, encoder: Encoder, folder: Path | None = None, dtype: torch.dtype = torch.float16) -> None:
        super().__init__()
        inner = encoder.encoder if isinstance(encoder, CachedEncoder) else encoder
        self.encoder = inner.requires_grad_(False)
        self.dim = inner.dim
        self.num_positions = inner.num_positions
        self.fingerprint = inner.fingerprint
        self.modality = inner.modality
        meta = {
            "format": FORMAT,
            "fingerprint": inner.fingerprint,
            "dtype": str(dtype).removeprefix("torch."),
            "dim": inner.dim,
            "num_positions": inner.num_positions,
            "modality": inner.modality,
        }
        self.store = FeatureStore((folder or default_folder()) / inner.fingerprint, meta, dtype)
        self._weights_version = self._count_changes()
        self._warned = False

    def preprocess(self, media: Sequence[MediaPart]) -> Tensor:
        """As the encoder's own."""
        return self.encoder.preprocess(media)

    def forward(self, inputs: Tensor) -> Features:
        """As the encoder's own."""
        features: Features = self.encoder(inputs)
        return features

    def encode(self, media: Sequence[MediaPart]) -> Features:
        """Features of N media items, on the CPU; equal contents are looked up once.

        Raises: BadSampleError for media that cannot be read; CheckpointError when the cache is damaged.
        """
        if not self.is_frozen():
            return self.encoder.encode(media)
        keys = [bytes.fromhex(content_hash(part)) for part in media]
        rows = {key: row for row, key in enumerate(dict.fromkeys(keys))}
        try:
            self._fill(dict(zip(keys, media, strict=True)))
            found = self.store.read(list(rows))
        except KeyError:  # another process cleared the cache a moment ago
            return self._rounded(self.encoder.encode(media))
        except OSError as error:
            self._warn_once(error)
            return self._rounded(self.encoder.encode(media))
        return found if len(rows) == len(keys) else found[torch.tensor([rows[key] for key in keys])]

    def build(
        self,
        media: Sequence[MediaPart],
        *,
        batch_size: int = _ROWS_AT_ONCE,
        workers: int | None = None,
        on_bad: Callable[[int, BadSampleError], None] | None = None,
        quiet: bool = False,
    ) -> BuildStats:
        """Encodes what the cache lacks, with pictures decoded in `workers` threads, and tells on stderr what it saves.

        Media that cannot be read are told to `on_bad` by their position and listed in the result, and the rest goes
        on. Killed at any point and called again with the same media, it ends with the same bytes.
        Raises: CheckpointError when the cache cannot be written or is damaged.
        """
        run = _Build(self, media, on_bad, batch_size)
        with ThreadPoolExecutor(workers or min(4, os.cpu_count() or 1)) as pool:
            try:
                stats = run.run(pool, quiet=quiet)
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
        return _stats(self.store.folder)

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

    def _fill(self, media: Mapping[bytes, MediaPart]) -> None:
        if all(key in self.store for key in media):
            return
        self.store.refresh()
        missing = [key for key in media if key not in self.store]
        for start in range(0, len(missing), _ROWS_AT_ONCE):
            chunk = missing[start : start + _ROWS_AT_ONCE]
            self.store.append(chunk, self._rounded(self.encoder.encode([media[key] for key in chunk])))

    def _rounded(self, features: Features) -> Features:
        return features.to("cpu", self.store.dtype)

    def _count_changes(self) -> int:
        return sum(parameter._version for parameter in self.encoder.parameters())

    def _warn_once(self, error: OSError) -> None:
        if not self._warned:
            _LOG.warning(
                "%s: features cannot be kept (%s); going on without", self.store.folder, error.strerror or error
            )
        self._warned = True


class _Build:
    """One run of `CachedEncoder.build`."""

    def __init__(
        self,
        owner: CachedEncoder,
        media: Sequence[MediaPart],
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
    return [_stats(meta.parent) for meta in metas]


def clear_caches(folder: Path | None = None, fingerprint: str = "") -> list[CacheStats]:
    """Removes the features of every encoder, or of those whose fingerprint begins as given; returns what was removed."""
    removed = [cache for cache in list_caches(folder) if cache.fingerprint.startswith(fingerprint)]
    for cache in removed:
        with FileLock(cache.folder / "lock", timeout=_LOCK_TIMEOUT_S):
            for path in cache.folder.iterdir():
                if path.name != "lock":
                    path.unlink()
    return removed


def _stats(folder: Path) -> CacheStats:
    meta, speed = _read_json(folder / "meta.json"), _read_json(folder / "speed.json")
    index = folder / "index.bin"
    items = index.stat().st_size // _ENTRY.size if index.exists() else 0
    size = sum(path.stat().st_size for path in folder.glob("*.bin"))
    seconds = float(speed["seconds"]) / speed["items"] if speed.get("items") else 0.0
    return CacheStats(
        folder, str(meta.get("fingerprint", folder.name)), str(meta.get("modality", "")), items, size, seconds
    )


def _hash_or_error(part: MediaPart) -> bytes | BadSampleError:
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


def _pack_entries(entries: Mapping[bytes, _Place]) -> bytes:
    """Index entries as one batch: only the last one closes it."""
    packed = []
    for number, (key, place) in enumerate(entries.items(), start=1):
        fields = (key, place.shard, place.positions, place.offset, place.crc, number == len(entries))
        body = _ENTRY.pack(*fields, 0)[:-4]
        packed.append(body + struct.pack("<I", zlib.crc32(body)))
    return b"".join(packed)


def _write_at(path: Path, offset: int, data: bytes) -> None:
    """Writes data at an offset as the new end of the file, and waits until it is on the disk."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    with os.fdopen(descriptor, "r+b") as file:
        file.truncate(offset)
        file.seek(offset)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _bytes_of(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The memory of a contiguous tensor."""
    array: np.ndarray[Any, np.dtype[np.uint8]] = tensor.view(torch.uint8).numpy()
    return array


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    _write_at(temporary, 0, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())
    temporary.replace(path)


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
