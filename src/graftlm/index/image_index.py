"""The index as it is searched: the last committed state, whoever writes meanwhile."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from graftlm.data.gallery import Hit, Rows, Scores, Vectors, check_queries
from graftlm.data.sentence import Image
from graftlm.errors import DataError
from graftlm.index.approximate import Approximate
from graftlm.index.catalogue import FILE, Identity, Snapshot, broken, connect, snapshot
from graftlm.index.exact import Found, Mask, exact_search
from graftlm.index.filters import Filter
from graftlm.index.vectors import Stored, VectorFile
from graftlm.index.writer import check_identity

EVERYTHING = Filter()
_TRIES = 5
_MANY_EXCLUDED = 256
_ROWS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """What an index holds.

    Attributes:
        photos: files that can be found; contents: different ones; unreadable: files that cannot be used, by reason
        unused: vectors that no file uses any more; num_bytes: on the disk
        approximate: share of the best ten that approximate search finds, and how many vectors it covers; None if exact
    """

    name: str
    folder: Path
    identity: Identity
    roots: tuple[str, ...]
    photos: int
    contents: int
    unreadable: dict[str, int]
    unused: int
    num_bytes: int
    approximate: tuple[float, int] | None
    created_s: float
    changed_s: float


@dataclass(slots=True)
class _View:
    """What is open of one committed state."""

    state: Snapshot
    stored: Stored
    approximate: Approximate | None
    unused: Rows
    masks: dict[Filter, Mask]


class ImageIndex:
    """Photos of the user's folders with a vector each: a `Gallery`. Threads may share it; use it in a `with` block.

    Raises: DataError when the folder holds no index, a damaged one, or one of a newer version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._guard = threading.Lock()
        self._view: _View | None = None
        self._connection = connect(folder)
        try:
            with self._reading() as view:
                self.identity: Identity = view.state.identity
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files."""
        self._connection.close()
        self._view = None

    def __len__(self) -> int:
        """Photos that can be found."""
        with self._reading():
            return int(self._connection.execute("SELECT count(*) FROM photos WHERE state = 'ok'").fetchone()[0])

    def check(self, identity: Identity) -> None:
        """Raises: DataError, with the command that mends it, when the vectors are not this graft's."""
        check_identity(self.folder, self.identity, identity)

    def search(
        self,
        vectors: Vectors,
        count: int,
        exclude: Sequence[Collection[str]] | None = None,
        where: Filter = EVERYTHING,
        exactly: bool = False,
    ) -> list[list[Hit]]:
        """The best photos for every query, best first; files of equal content are one hit.

        Exact, but for large collections without a filter, which are searched approximately unless `exactly`.
        Shapes: vectors (B, q). Raises: ShapeError for queries of another width.
        """
        with self._reading() as view:
            queries = check_queries(vectors, view.state.identity.width, exclude)
            mask = self._mask(view, where)
            if exclude is None or not any(exclude):
                found = self._search_rows(view, queries, count, mask, is_exact=exactly or bool(where))
                return [self._hits(rows, where) for rows in found]
            answers = []
            for query, keys in zip(queries, exclude, strict=True):
                rows = self._rows_of(keys)
                answers.append(self._search_without(view, query, count, mask, rows, exactly or bool(where)))
            return [self._hits(found, where) for found in answers]

    def info(self) -> IndexInfo:
        """What the index holds."""
        with self._reading() as view:
            ask = self._connection.execute
            states = dict(ask("SELECT state, count(*) FROM photos GROUP BY state").fetchall())
            (contents,) = ask("SELECT count(*) FROM contents WHERE used > 0").fetchone()
            roots = tuple(path for (path,) in ask("SELECT path FROM roots ORDER BY path"))
            state = view.state
            about = state.approximate
        sizes = [path.stat().st_size for path in self.folder.iterdir() if path.is_file()]
        return IndexInfo(
            name=self.folder.name,
            folder=self.folder,
            identity=state.identity,
            roots=roots,
            photos=states.pop("ok", 0),
            contents=contents,
            unreadable=states,
            unused=state.rows - contents,
            num_bytes=sum(sizes),
            approximate=(about.recall, about.rows) if about else None,
            created_s=state.created_s,
            changed_s=state.changed_s,
        )

    def roots(self) -> list[str]:
        """The folders that were added."""
        with self._reading():
            return [path for (path,) in self._connection.execute("SELECT path FROM roots ORDER BY path")]

    def known_files(self) -> dict[str, tuple[int, int]]:
        """Size and change time (ns) of every file that is written down, by path."""
        with self._reading():
            rows = self._connection.execute("SELECT path, size, mtime_ns FROM photos")
            return {path: (size, mtime_ns) for path, size, mtime_ns in rows}

    def metadata(self, items: Sequence[int]) -> dict[int, tuple[float, str]]:
        """Date (s since 1970) and metadata (JSON) of hits, by their `item`."""
        found: dict[int, tuple[float, str]] = {}
        with self._reading():
            for start in range(0, len(items), _ROWS_AT_ONCE):
                chunk = list(items[start : start + _ROWS_AT_ONCE])
                question = f"SELECT id, date, metadata FROM photos WHERE id IN ({','.join('?' * len(chunk))})"
                found |= {item: (date, metadata) for item, date, metadata in self._connection.execute(question, chunk)}
        return found

    @contextmanager
    def _reading(self) -> Iterator[_View]:
        """One committed state, from the first question to the last."""
        with self._guard:
            try:
                view = self._begin()
                try:
                    yield view
                finally:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                raise broken(self.folder / FILE, error) from None

    def _begin(self) -> _View:
        for attempt in range(_TRIES):
            self._connection.execute("BEGIN")
            try:
                return self._current()
            except BaseException as error:
                self._connection.execute("ROLLBACK")
                # A writer that has just compacted the index removes the file that the older state names.
                if not isinstance(error, DataError) or attempt + 1 == _TRIES:
                    raise
                time.sleep(0.05 * attempt)
        raise AssertionError("the last attempt returns or raises")

    def _current(self) -> _View:
        (changes,) = self._connection.execute("SELECT value FROM facts WHERE name = 'changes'").fetchone() or (None,)
        before = self._view
        if before is not None and changes == str(before.state.changes):
            return before
        state = snapshot(self._connection, self.folder / FILE)
        stored = VectorFile(self.folder / state.vectors, state.identity.width).read(state.rows)
        opened = before.approximate if before else None
        if state.approximate is None:
            opened = None
        elif opened is None or opened.about != state.approximate:
            opened = Approximate.open(self.folder, state.approximate, state.identity.width)
        rows = self._connection.execute("SELECT row FROM contents WHERE used = 0").fetchall()
        self._view = _View(state, stored, opened, np.array(rows, np.int64).reshape(-1), {})
        return self._view

    def _mask(self, view: _View, where: Filter) -> Mask | None:
        """Rows that may be found; None for all of them."""
        if not where and not len(view.unused):
            return None
        if where not in view.masks:
            mask = np.zeros(view.state.rows, np.bool_) if where else np.ones(view.state.rows, np.bool_)
            if where:
                question = f"SELECT DISTINCT row FROM photos WHERE state = 'ok' AND ({where.sql})"
                rows = self._connection.execute(question, where.values).fetchall()
                mask[np.array(rows, np.int64).reshape(-1)] = True
            else:
                mask[view.unused] = False
            view.masks.clear()
            view.masks[where] = mask
        return view.masks[where]

    def _search_rows(
        self, view: _View, queries: Scores, count: int, mask: Mask | None, *, is_exact: bool
    ) -> list[Found]:
        count = max(0, min(count, view.state.rows))
        if is_exact or view.approximate is None:
            return exact_search(view.stored, queries, count, mask)
        found = view.approximate.search(view.stored, queries, count, mask)
        short = [place for place, (_, rows) in enumerate(found) if len(rows) < count]
        for place, answer in zip(short, exact_search(view.stored, queries[short], count, mask), strict=True):
            found[place] = answer
        return found

    def _search_without(
        self, view: _View, query: Scores, count: int, mask: Mask | None, rows: Rows, is_exact: bool
    ) -> Found:
        """One query without some rows: a few are left out afterwards, many are masked."""
        if len(rows) > _MANY_EXCLUDED:
            mask = np.ones(view.state.rows, np.bool_) if mask is None else mask.copy()
            mask[rows] = False
            return self._search_rows(view, query[None], count, mask, is_exact=is_exact)[0]
        ((scores, found),) = self._search_rows(view, query[None], count + len(rows), mask, is_exact=is_exact)
        kept = ~np.isin(found, rows)
        return scores[kept][:count], found[kept][:count]

    def _rows_of(self, keys: Collection[str]) -> Rows:
        found: list[int] = []
        for key in keys:
            try:
                raw = bytes.fromhex(key)
            except ValueError:
                raise DataError(f"exclude: expected content hashes in hex, found '{key[:80]}'") from None
            found += [row for (row,) in self._connection.execute("SELECT row FROM contents WHERE key = ?", (raw,))]
        return np.array(found, np.int64)

    def _hits(self, found: Found, where: Filter) -> list[Hit]:
        """Hits of rows; of files with equal content the first that fits."""
        scores, rows = found[0].tolist(), found[1].tolist()
        photos: dict[int, tuple[int, str, bytes]] = {}
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            chunk = rows[start : start + _ROWS_AT_ONCE]
            question = (
                "SELECT row, photos.id, path, key FROM photos JOIN contents USING (row) "
                f"WHERE row IN ({','.join('?' * len(chunk))}) AND state = 'ok' AND ({where.sql}) ORDER BY path DESC"
            )
            for row, *photo in self._connection.execute(question, (*chunk, *where.values)):
                photos[row] = (photo[0], photo[1], photo[2])
        return [
            Hit(photos[row][2].hex(), Image(photos[row][1]), score, photos[row][0])
            for score, row in zip(scores, rows, strict=True)
            if row in photos
        ]
