"""Vectors on the disk by content hash: written once, memory-mapped, whole after any kill.

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
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from graftlm.encoders.base import Features
from graftlm.errors import CheckpointError

SHARD_BYTES = 1 << 30
_ENTRY = struct.Struct("<32sIIQIB7xI")  # hash, shard, positions, offset, crc of the record, ends a batch, crc of this
_ALIGNMENT = 64
_LET_GO: int | None = getattr(mmap, "MADV_DONTNEED", None)
_LOCK_TIMEOUT_S = 120
_LOCK = "lock"
_LOG = logging.getLogger(__name__)
_Bytes: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"


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
        self._known_as: tuple[int, int] | None = None
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
                identity = self._identity()
                if identity != self._known_as:
                    self._forget()
                    self._check_meta()
                size = os.stat(self._index_path).st_size
                if size < self._index_bytes:
                    self._forget()
                self._known_as = identity
                if size > self._index_bytes:
                    self._read_index()
            except OSError:  # nothing there, or another process is clearing it
                self._forget()

    def read(self, keys: Sequence[bytes]) -> Features:
        """Vectors of stored contents.

        Raises: CheckpointError when a record is damaged; KeyError when it is absent or another process has cleared it.
        """
        records = self._records(keys)
        length = max((place.positions for place, _ in records), default=1)
        tokens = torch.zeros(len(keys), length, self.dim, dtype=self.dtype)
        pooled = torch.empty(len(keys), self.dim, dtype=self.dtype)
        mask = torch.zeros(len(keys), length, dtype=torch.bool)
        into = (_bytes_of(tokens.flatten(1)), _bytes_of(pooled), _bytes_of(mask))
        for row, (place, record) in enumerate(records):
            ends = self._ends(place.positions)
            into[0][row, : ends[0]] = record[: ends[0]]
            into[1][row] = record[ends[0] : ends[1]]
            into[2][row, : place.positions] = record[ends[1] : ends[2]]
        self._shards.let_go()
        return Features(tokens, mask, pooled)

    def read_pooled(self, keys: Sequence[bytes]) -> Tensor:
        """Pooled vectors alone, (N, Dv). Raises: as `read`."""
        pooled = torch.empty(len(keys), self.dim, dtype=self.dtype)
        into = _bytes_of(pooled)
        for row, (place, record) in enumerate(self._records(keys)):
            start, end = self._ends(place.positions)[:2]
            into[row] = record[start:end]
        self._shards.let_go()
        return pooled

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
        """Removes every vector."""
        with self._lock:
            clear_folder(self.folder)
            self._forget()

    def digest(self) -> str:
        """SHA-256 (hex) of what the store holds, in its order: equal for equal vectors of equal contents."""
        rows = (key + struct.pack("<II", place.positions, place.crc) for key, place in self._places.items())
        return sha256(b"".join(rows)).hexdigest()

    def add_time(self, items: int, seconds: float) -> None:
        """Notes how long encoding took."""
        with self._lock, _locked(self.folder):
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

    def _forget(self) -> None:
        self._places: dict[bytes, _Place] = {}
        self._shards = _Shards(self.folder)
        self._index_bytes = 0
        self._known_as = None
        self._tail = (0, 0)  # shard and byte where the next record goes
        self._damaged = False

    def _identity(self) -> tuple[int, int]:
        """Differs when the folder was cleared or mended by another process; file numbers alone are used again."""
        status = os.stat(self.folder / "meta.json")
        return status.st_ino, status.st_mtime_ns

    def _check_meta(self) -> None:
        found = _read_json(self.folder / "meta.json")
        if not found:
            self._identity()  # raises where the file is gone
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
        if lost and self._identity() == self._known_as:
            self._damaged = True
            _LOG.warning("%s: %d features were cut off the end of a file and are encoded again", self.folder, lost)

    def _accept(self, entries: Iterable[tuple[bytes, _Place]], sizes: dict[int, int]) -> int:
        """Takes entries in; returns how many have no data behind them."""
        lost = 0
        for key, place in entries:
            end = place.offset + self._ends(place.positions)[3]
            if place.shard not in sizes:
                sizes[place.shard] = _size(self._shards.path(place.shard))
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

    def _records(self, keys: Sequence[bytes]) -> list[tuple[_Place, _Bytes]]:
        """Places and records of contents, all of one state of the folder."""
        with self._lock:
            places = [self._places[key] for key in keys]
            shards, known_as = self._shards, self._known_as
        try:
            return [(place, shards.record(place, self._ends(place.positions)[3])) for place in places]
        except CheckpointError:
            if self._is_still(known_as):
                raise
            raise KeyError("cleared") from None

    def _is_still(self, known_as: tuple[int, int] | None) -> bool:
        try:
            return self._identity() == known_as
        except OSError:
            return False

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
            _write_at(self._shards.path(number), starts[number], b"".join(body))
        self._tail = (shard, end)
        return entries

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """The lock, with the folder set up, everything read that others wrote and the index mended."""
        with _locked(self.folder):
            self.refresh()
            if self._damaged:
                block = _pack_entries(self._places)
                temporary = self.folder / "index.tmp"
                _write_at(temporary, 0, block)
                temporary.replace(self._index_path)
                self._index_bytes = len(block)
            if self._known_as is None:
                for left in self.folder.glob("*.bin"):  # removed, not cut: a reader may have it mapped
                    left.unlink()
            if self._damaged or self._known_as is None:
                _write_json(self.folder / "meta.json", self.meta)
                self._known_as, self._damaged = self._identity(), False
            yield


class _Shards:
    """The mapped files of one state of a folder: what was mapped before a clear stays readable."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._maps: dict[int, mmap.mmap] = {}
        self._checked: set[_Place] = set()

    def path(self, shard: int) -> Path:
        """The file of a number."""
        return self._folder / f"shard-{shard:05d}.bin"

    def record(self, place: _Place, size: int) -> _Bytes:
        """The bytes of a record, checked once. Raises: CheckpointError when they are not those that were written."""
        mapped = self._maps.get(place.shard)
        if mapped is None or len(mapped) < place.offset + size:
            mapped = self._map(place, size)
        record = np.frombuffer(mapped, np.uint8, size, place.offset)
        if place not in self._checked:
            if zlib.crc32(record.data) != place.crc:
                raise self._broken(place)
            self._checked.add(place)
        return record

    def let_go(self) -> None:
        """Takes what has been read off this process's account; the system keeps it at hand as long as it has room."""
        if _LET_GO is not None:
            for mapped in list(self._maps.values()):
                mapped.madvise(_LET_GO)

    def _map(self, place: _Place, size: int) -> mmap.mmap:
        try:
            with open(self.path(place.shard), "rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):
            raise self._broken(place) from None
        if len(mapped) < place.offset + size:
            raise self._broken(place)
        self._maps[place.shard] = mapped
        return mapped

    def _broken(self, place: _Place) -> CheckpointError:
        return CheckpointError(
            f"{self.path(place.shard)}: the features at byte {place.offset} are not those that were written; "
            "run `graft cache clear`"
        )


def clear_folder(folder: Path, meta: Mapping[str, Any] | None = None) -> None:
    """Removes what a folder of the cache holds, and puts other `meta` there, if given.

    The lock file stays for processes that wait on it. meta.json goes first: without it a folder holds nothing.
    """
    with _locked(folder):
        (folder / "meta.json").unlink(missing_ok=True)
        for path in folder.iterdir():
            if path.name != _LOCK:
                path.unlink()
        if meta is not None:
            _write_json(folder / "meta.json", meta)


def stats_of(folder: Path) -> CacheStats:
    """What a folder of the cache holds."""
    meta, speed = _read_json(folder / "meta.json"), _read_json(folder / "speed.json")
    index = folder / "index.bin"
    items = _size(index) // _ENTRY.size
    size = sum(_size(path) for path in folder.glob("*.bin"))
    seconds = float(speed["seconds"]) / speed["items"] if speed.get("items") else 0.0
    return CacheStats(
        folder, str(meta.get("fingerprint", folder.name)), str(meta.get("modality", "")), items, size, seconds
    )


def stored_dtype(folder: Path) -> torch.dtype | None:
    """The precision of what a folder of the cache holds; None where it holds nothing."""
    name = _read_json(folder / "meta.json").get("dtype")
    return {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}.get(str(name))


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


def _size(path: Path) -> int:
    """Bytes of a file; 0 where it is gone."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _bytes_of(tensor: Tensor) -> _Bytes:
    """The memory of a contiguous tensor."""
    array: _Bytes = tensor.view(torch.uint8).numpy()
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


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / _LOCK, timeout=_LOCK_TIMEOUT_S):
            yield
    except Timeout:
        raise CheckpointError(
            f"{folder}: another process has held its lock for {_LOCK_TIMEOUT_S} s; end it and try again"
        ) from None
