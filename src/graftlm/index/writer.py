"""Changes of an index: one process at a time, a batch at a time, each batch whole or not there.

Vectors go to their file first and are flushed; the commit of the catalogue then makes them count. A process killed in
between leaves bytes that the next batch overwrites.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from filelock import FileLock, Timeout

from graftlm.data.gallery import Vectors
from graftlm.errors import DataError
from graftlm.index import approximate
from graftlm.index.catalogue import (
    FILE,
    Identity,
    Snapshot,
    broken,
    connect,
    read_facts,
    snapshot,
    transaction,
    write_facts,
)
from graftlm.index.exact import faiss_module
from graftlm.index.filters import below
from graftlm.index.vectors import VectorFile

LOCK = "lock"
_LOCK_TIMEOUT_S = 5.0
_COMPACT_SHARE = 0.25
_COMPACT_ROWS = 1_000
_AT_ONCE = 500
_COPIED = 65_536
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Photo:
    """A file as it is written down.

    Attributes:
        key: content hash; None for a file that cannot be read
        date: when it was taken, in seconds since 1970; metadata: a JSON object
        state: "ok", or the reason why it cannot be searched
    """

    path: str
    size: int
    mtime_ns: int
    key: bytes | None
    date: float
    metadata: str = "{}"
    state: str = "ok"


@dataclass(frozen=True, slots=True)
class Known:
    """What is already written down of a file."""

    size: int
    mtime_ns: int
    metadata: str
    state: str


class IndexWriter:
    """The one process that changes an index; use it in a `with` block.

    Args:
        folder: of the index, made where it is missing
        identity: whose vectors it holds
        rebuild: forget all photos and vectors first; the folders stay known

    Raises: DataError when another process is writing, when the index holds another graft's vectors (with the command
        that mends it) or when it is damaged.
    """

    def __init__(self, folder: Path, identity: Identity, *, rebuild: bool = False) -> None:
        self.folder = folder
        self._lock = _locked(folder)
        try:
            self._connection = connect(folder, create=True)
            with self._worded():
                self._set_up(identity, rebuild)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets the next writer in."""
        if hasattr(self, "_connection"):
            self._connection.close()
        self._lock.release()

    @property
    def rows(self) -> int:
        """Committed rows of the vector file, used or not."""
        return self._state.rows

    def roots(self) -> list[str]:
        """The folders that were added."""
        return [path for (path,) in self._connection.execute("SELECT path FROM roots ORDER BY path")]

    def add_root(self, root: Path) -> None:
        """Notes a folder, so that it can be looked through again."""
        with self._worded(), transaction(self._connection):
            self._connection.execute("INSERT OR IGNORE INTO roots VALUES (?)", (str(root),))

    def known(self, root: Path) -> dict[str, Known]:
        """What is written down of the files under a folder, by path."""
        question = "SELECT path, size, mtime_ns, metadata, state FROM photos WHERE path >= ? AND path < ?"
        with self._worded():
            return {path: Known(*rest) for path, *rest in self._connection.execute(question, below(root))}

    def unknown(self, keys: Iterable[bytes]) -> set[bytes]:
        """Of some contents those without a vector."""
        wanted = list(dict.fromkeys(keys))
        with self._worded():
            return set(wanted) - set(self._rows_of(wanted))

    def add(self, photos: Sequence[Photo], vectors: Mapping[bytes, Vectors]) -> None:
        """Writes photos down, new or changed, with the vectors of contents that had none: all or nothing.

        Raises: DataError when a vector is missing, of another width or not finite, and when the disk is full.
        """
        with self._worded():
            there = self._rows_of(list(vectors))
            new = [key for key in vectors if key not in there]
            first = self._state.rows
            if new:
                self._file.write(first, self._checked(new, vectors))
            with transaction(self._connection):
                self._connection.executemany(
                    "INSERT INTO contents VALUES (?, ?, 0)", [(first + place, key) for place, key in enumerate(new)]
                )
                self._put(photos)
                self._note(rows=first + len(new))
            self._refresh()

    def remove(self, paths: Iterable[str]) -> int:
        """Forgets files; returns how many were known."""
        removed = 0
        with self._worded(), transaction(self._connection):
            for chunk in _chunks(list(paths)):
                marks = ",".join("?" * len(chunk))
                rows = self._connection.execute(f"SELECT row FROM photos WHERE path IN ({marks})", chunk).fetchall()
                removed += self._connection.execute(f"DELETE FROM photos WHERE path IN ({marks})", chunk).rowcount
                self._count_uses(row for (row,) in rows if row is not None)
            self._note()
        self._refresh()
        return removed

    def remove_root(self, root: Path) -> int:
        """Forgets a folder and its photos; returns how many were known."""
        removed = self.remove(self.known(root))
        low, high = below(root)
        with self._worded(), transaction(self._connection):
            self._connection.execute(
                "DELETE FROM roots WHERE path = ? OR (path >= ? AND path < ?)", (str(root), low, high)
            )
        return removed

    def tidy(self) -> None:
        """Compacts the index when a quarter of its vectors is unused, and builds what a large one is searched with."""
        with self._worded():
            (unused,) = self._connection.execute("SELECT count(*) FROM contents WHERE used = 0").fetchone()
        if unused >= _COMPACT_ROWS and unused >= _COMPACT_SHARE * self.rows:
            self.compact()
        self.build_approximate()
        self._sweep()

    def compact(self) -> None:
        """Copies the vectors that are used into a new file; readers go on with the old one until the commit."""
        with self._worded():
            rows = [row for (row,) in self._connection.execute("SELECT row FROM contents WHERE used > 0 ORDER BY row")]
            old = self._file.read(self.rows)
            file = VectorFile.create(self.folder / self._next_name(), self._file.width)
            for start in range(0, len(rows), _COPIED):
                file.write(start, old[rows[start : start + _COPIED]])
            places = [(place, row) for place, row in enumerate(rows)]
            with transaction(self._connection):
                self._connection.execute("DELETE FROM contents WHERE used = 0")
                # New numbers are never above old ones, and go upwards: no two contents ever share one.
                moved = [(new, before) for new, before in places if new != before]
                self._connection.executemany("UPDATE contents SET row = ? WHERE row = ?", moved)
                self._connection.executemany("UPDATE photos SET row = ? WHERE row = ?", moved)
                self._note(rows=len(rows), vectors=file.path.name, approximate=None)
            self._refresh()
        self._sweep()

    def build_approximate(self, *, always: bool = False) -> None:
        """Builds the file of approximate search when the index is large and the file misses a tenth of it."""
        found = self._state.approximate
        covered = 0 if found is None else found.rows
        is_stale = self.rows >= approximate.FROM_ROWS and self.rows - covered > approximate.STALE_SHARE * self.rows
        if not (always or is_stale):
            return
        if faiss_module() is None:
            _LOG.warning(
                "%s: %d photos are searched exactly; for a quicker search: pip install 'graftlm[index]'",
                self.folder,
                self.rows,
            )
            return
        with self._worded():
            name = f"approximate-{self._state.changes + 1}.faiss"
            about = approximate.build(self.folder, name, self._file.read(self.rows))
            with transaction(self._connection):
                self._note(approximate=about)
            self._refresh()
        self._sweep()

    def _set_up(self, identity: Identity, rebuild: bool) -> None:
        facts = read_facts(self._connection)
        if rebuild or not facts:
            self._start(identity, changes=_whole(facts.get("changes")) + 1)
        self._refresh()
        check_identity(self.folder, self._state.identity, identity)
        self._sweep()

    def _start(self, identity: Identity, changes: int) -> None:
        """An index without photos; the roots stay."""
        name = f"vectors-{changes}.f16"
        VectorFile.create(self.folder / name, identity.width)
        with transaction(self._connection):
            for table in ("photos", "contents"):
                self._connection.execute(f"DELETE FROM {table}")
            write_facts(
                self._connection,
                graft=identity.graft,
                retrieval=identity.retrieval,
                encoder=identity.encoder,
                width=identity.width,
                vectors=name,
                rows=0,
                changes=changes,
                approximate=None,
                created_s=time.time(),
                changed_s=time.time(),
            )

    def _refresh(self) -> None:
        self._state: Snapshot = snapshot(self._connection, self.folder / FILE)
        self._file = VectorFile(self.folder / self._state.vectors, self._state.identity.width)

    def _put(self, photos: Sequence[Photo]) -> None:
        rows = self._rows_of([photo.key for photo in photos if photo.key is not None])
        missing = [photo.path for photo in photos if photo.key is not None and photo.key not in rows]
        if missing:
            raise DataError(f"{missing[0]}: expected a vector for its content, found none; add it again")
        before: list[int] = []
        for chunk in _chunks([photo.path for photo in photos]):
            question = f"SELECT row FROM photos WHERE row NOT NULL AND path IN ({','.join('?' * len(chunk))})"
            before += [row for (row,) in self._connection.execute(question, chunk)]
        values = [
            (p.path, p.size, p.mtime_ns, None if p.key is None else rows[p.key], p.date, p.metadata, p.state)
            for p in photos
        ]
        self._connection.executemany(
            "INSERT INTO photos (path, size, mtime_ns, row, date, metadata, state) VALUES (?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (path) DO UPDATE SET size = excluded.size, mtime_ns = excluded.mtime_ns, row = excluded.row, "
            "date = excluded.date, metadata = excluded.metadata, state = excluded.state",
            values,
        )
        self._count_uses([*before, *rows.values()])

    def _count_uses(self, rows: Iterable[int]) -> None:
        counted = "SELECT count(*) FROM photos WHERE photos.row = contents.row"
        self._connection.executemany(
            f"UPDATE contents SET used = ({counted}) WHERE row = ?", [(row,) for row in sorted(set(rows))]
        )

    def _rows_of(self, keys: Sequence[bytes]) -> dict[bytes, int]:
        rows: dict[bytes, int] = {}
        for chunk in _chunks(keys):
            question = f"SELECT key, row FROM contents WHERE key IN ({','.join('?' * len(chunk))})"
            rows.update(self._connection.execute(question, chunk))
        return rows

    def _checked(self, keys: Sequence[bytes], vectors: Mapping[bytes, Vectors]) -> Vectors:
        width = self._file.width
        rows = [np.asarray(vectors[key], dtype=np.float32) for key in keys]
        wrong = next((row.shape for row in rows if row.shape != (width,)), None)
        if wrong is not None:
            raise DataError(f"{self.folder}: expected vectors of width {width}, found shape {list(wrong)}")
        stacked = np.stack(rows)
        if not np.isfinite(stacked).all() or np.abs(stacked).max() > np.finfo(np.float16).max:
            raise DataError(f"{self.folder}: expected unit vectors, found NaN or infinity; the graft is damaged")
        return stacked

    def _note(self, **facts: Any) -> None:
        """Facts that change with a commit."""
        (changes,) = self._connection.execute("SELECT value FROM facts WHERE name = 'changes'").fetchone()
        write_facts(self._connection, **facts, changes=int(changes) + 1, changed_s=time.time())

    def _next_name(self) -> str:
        return f"vectors-{self._state.changes + 1}.f16"

    def _sweep(self) -> None:
        """Removes files that no commit names: what a killed process left, and what was replaced."""
        found = self._state.approximate
        kept = {self._state.vectors, found.file if found else ""}
        for pattern in ("vectors-*", "approximate-*"):
            for path in self.folder.glob(pattern):
                if path.name not in kept:
                    path.unlink(missing_ok=True)

    @contextmanager
    def _worded(self) -> Iterator[None]:
        """What the disk and SQLite raise, as sentences."""
        try:
            yield
        except sqlite3.Error as error:
            raise broken(self.folder / FILE, error) from None
        except OSError as error:
            raise DataError(
                f"{self.folder}: the index cannot be written ({error.strerror or error}); what was committed is whole, "
                "free some space and add the folder again"
            ) from None


def check_identity(folder: Path, found: Identity, expected: Identity) -> None:
    """Raises: DataError with the command that mends it when vectors are another graft's, or an older version's."""
    same = (found.retrieval, found.encoder, found.width) == (expected.retrieval, expected.encoder, expected.width)
    if not same:
        raise DataError(
            f"{folder}: its vectors were made by graft '{found.graft}' (fingerprint {found.retrieval[:12]}, encoder "
            f"{found.encoder[:12]}, width {found.width}), expected those of '{expected.graft}' "
            f"({expected.retrieval[:12]}, {expected.encoder[:12]}, {expected.width}); make them anew: "
            f"graft index add --rebuild --name {folder.name} --graft {expected.graft}"
        )


def _locked(folder: Path) -> FileLock:
    lock = FileLock(folder / LOCK, timeout=_LOCK_TIMEOUT_S)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise DataError(
            f"{folder}: another process is changing this index; wait until it is done, and try again"
        ) from None
    except OSError as error:
        raise DataError(
            f"{folder}: the index cannot be written ({error.strerror}); check its permissions or set GRAFTLM_HOME"
        ) from None
    return lock


def _whole(text: str | None) -> int:
    return int(text) if text is not None and text.isdigit() else 0


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE))
