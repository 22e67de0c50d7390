"""The catalogue of an index: SQLite in WAL mode, whose committed transaction is what everybody sees.

One row of `photos` a file, one row of `contents` a different content, whose number is its row in the vector file. Two
files of equal content share a vector; a content without a file keeps it until the index is compacted.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from graftlm.errors import DataError
from graftlm.index.approximate import ApproximateFile
from graftlm.index.vectors import MAX_WIDTH

FILE = "catalogue.sqlite"
FORMAT = 1
_APPLICATION = 0x47524146  # "GRAF"
_BUSY_MS = 60_000
_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE roots (path TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE contents (row INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, used INTEGER NOT NULL);
CREATE INDEX unused_contents ON contents (row) WHERE used = 0;
CREATE TABLE photos (
    id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    row INTEGER, date REAL NOT NULL, metadata TEXT NOT NULL, state TEXT NOT NULL
);
CREATE INDEX photos_by_row ON photos (row);
"""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose vectors an index holds.

    Attributes:
        graft: name or path, to load it again
        retrieval: fingerprint that changes when the graft's picture vectors would
        encoder: fingerprint of the encoder behind it
        width: q, numbers in a vector
    """

    graft: str
    retrieval: str
    encoder: str
    width: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one transaction sees.

    Attributes:
        vectors: name of the vector file; rows: its committed rows
        changes: a number that every commit raises; created_s, changed_s: seconds since 1970
    """

    identity: Identity
    vectors: str
    rows: int
    changes: int
    approximate: ApproximateFile | None
    created_s: float
    changed_s: float


def connect(folder: Path, *, create: bool = False) -> sqlite3.Connection:
    """A connection without implicit transactions. Raises: DataError when there is no index, or not one we can read."""
    path = folder / FILE
    if not create and not path.is_file():
        raise DataError(f"{folder}: expected an image index, found no {FILE}; make one with `graft index add FOLDER`")
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_BUSY_MS / 1000)
    except sqlite3.Error as error:
        raise broken(path, error) from None
    try:
        _prepare(connection, path, create)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.Error):
            raise broken(path, error) from None
        raise
    return connection


def broken(path: Path, error: sqlite3.Error) -> DataError:
    """What SQLite says, as a sentence for the user."""
    text = str(error)
    if "full" in text or "disk I/O" in text:
        return DataError(f"{path}: the index cannot be written ({text}); free some space and add the folder again")
    if "readonly" in text or "unable to open" in text:
        return DataError(f"{path}: the index cannot be opened ({text}); check its permissions")
    if "locked" in text:
        return DataError(f"{path}: another process has kept the index busy ({text}); try again when it is done")
    return DataError(
        f"{path}: expected the catalogue of an index, found a damaged or foreign file ({text}); "
        "remove it with `graft index remove` and add the folder again"
    )


def _prepare(connection: sqlite3.Connection, path: Path, create: bool) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if create and not tables and not application:
        connection.execute("PRAGMA journal_mode = WAL")
        with transaction(connection):
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {FORMAT}")
        version, application = FORMAT, _APPLICATION
    if not tables and not application and not create:
        raise _unfinished(path)
    if application != _APPLICATION:
        raise DataError(f"{path}: expected the catalogue of an index, found another database; choose another folder")
    if version != FORMAT:
        raise DataError(f"{path}: expected format {FORMAT}, found {version}; update graftlm or rebuild the index")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA trusted_schema = OFF")


@contextmanager
def transaction(connection: sqlite3.Connection, *, writes: bool = True) -> Iterator[None]:
    """All or nothing; a reading one sees one state from its first to its last question."""
    connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
    try:
        yield
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def read_facts(connection: sqlite3.Connection) -> dict[str, str]:
    """Everything that is known of the index as a whole; empty before it has been set up."""
    return dict(connection.execute("SELECT name, value FROM facts").fetchall())


def write_facts(connection: sqlite3.Connection, **facts: Any) -> None:
    """Sets facts to JSON values."""
    rows = [(name, json.dumps(asdict(v) if isinstance(v, ApproximateFile) else v)) for name, v in facts.items()]
    connection.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", rows)


def snapshot(connection: sqlite3.Connection, path: Path) -> Snapshot:
    """The facts, checked. Raises: DataError when they are incomplete or hostile."""
    try:
        facts = {name: json.loads(value) for name, value in read_facts(connection).items()}
        if not facts:
            raise _unfinished(path)
        identity = Identity(str(facts["graft"]), str(facts["retrieval"]), str(facts["encoder"]), int(facts["width"]))
        found = facts.get("approximate")
        state = Snapshot(
            identity,
            str(facts["vectors"]),
            int(facts["rows"]),
            int(facts["changes"]),
            ApproximateFile(**found) if found else None,
            float(facts["created_s"]),
            float(facts["changed_s"]),
        )
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        name = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else str(error)
        raise _incomplete(path, name) from None
    files = [state.vectors] + ([state.approximate.file] if state.approximate else [])
    if any(Path(name).name != name or name in ("", ".", "..") for name in files):
        raise _incomplete(path, "a file outside its folder")
    if state.rows < 0 or not 0 < identity.width <= MAX_WIDTH:
        raise _incomplete(path, f"{state.rows} vectors of width {identity.width}")
    return state


def _unfinished(path: Path) -> DataError:
    return DataError(f"{path}: this index was never finished; add the folder again with `graft index add FOLDER`")


def _incomplete(path: Path, what: str) -> DataError:
    return DataError(
        f"{path}: expected the facts of an index, found them incomplete ({what}); "
        "remove it with `graft index remove` and add the folder again"
    )
