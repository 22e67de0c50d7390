"""The ledger of bad rows: what was left out, why and where, and when there is too much of it.

Reasons that readers use (a reader may add its own, kebab-case):

=====================  ======================================================================
missing-file           the picture a row names does not exist
remote-file            the picture is a web address; readers open local files only
missing-column         a row lacks its picture, caption, question or answer
wrong-type             a value is of another type than its column asks for
bad-json, bad-encoding a line is not JSON, or not UTF-8
empty-caption          a caption, question or answer of white space
caption-too-long       a caption beyond ``max_chars``
too-long               a prompt that leaves no room for an answer in the system's longest row
duplicate-id           an id, or a photo with the same caption, that an earlier row has
unknown-class          a row whose class is none of its template's
media-count            a dialogue with more or fewer pictures than places for them
missing-target         a dialogue without an answer to learn
answer-not-in-choices  a multiple-choice row whose answer is not among its choices
truncated-archive      a tar that ends inside a member
unreadable-image, truncated-image, bomb-image ...   found by ``data.media.load_image`` when a picture is decoded
=====================  ======================================================================
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from graftlm.errors import BadSampleError, ConfigError, DataError

_FRACTION_FROM_ROWS = 100
"""A fraction means nothing after three rows: before this many it is taken of this many."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """One line of the ledger; `row` is the line or row number (from 1) or the row's own id."""

    reason: str
    message: str
    file: str
    row: int | str | None = None

    @property
    def place(self) -> str:
        """The file, and the row where there is one."""
        return self.file if self.row is None else f"{self.file}, row {self.row}"


class Ledger:
    """Collects bad rows; threads may share it.

    Args:
        path: the file to append to (``bad_samples.jsonl``), or None to keep them in memory only. A row that the
            file already has, from a run that is resumed, is counted but not written again.
        budget: how many bad rows are borne: a whole number, a fraction of all rows (a float in [0, 1]), or None
            for any number.

    Raises: ConfigError for a negative budget or a fraction above 1; DataError when `path` cannot be written.
    """

    def __init__(self, path: str | Path | None = None, budget: int | float | None = None) -> None:
        if budget is not None and (budget < 0 or (isinstance(budget, float) and budget > 1)):
            raise ConfigError(f"budget of bad rows: expected a count or a fraction in [0, 1], found {budget}")
        self.path = None if path is None else Path(path)
        self.budget = budget
        self.rows = 0
        self.entries: list[BadRow] = []
        self._known: set[tuple[str, str, str]] = set()
        self._written: set[tuple[str, str, str]] = set()
        self._gap = ""
        if self.path is not None and self.path.is_file():
            text = self.path.read_text(encoding="utf-8", errors="replace")
            self._written = _read_written(text)
            self._gap = "" if not text or text.endswith("\n") else "\n"
        self._lock = threading.Lock()

    @property
    def reasons(self) -> dict[str, int]:
        """How many bad rows of each reason, the commonest first."""
        return dict(Counter(entry.reason for entry in self.entries).most_common())

    @contextmanager
    def row(self, file: str | Path, row: int | str | None) -> Iterator[None]:
        """Counts one row; a BadSampleError raised inside is written down and goes no further."""
        with self._lock:
            self.rows += 1
        try:
            yield
        except BadSampleError as error:
            self.add(error.reason, str(error), file=file, row=row)

    def add(self, reason: str, message: str, *, file: str | Path, row: int | str | None = None) -> None:
        """Writes one bad row down, once. Raises: DataError when the budget is spent."""
        entry = BadRow(reason, message, str(file), row)
        identity = _identity(asdict(entry))
        with self._lock:
            if identity in self._known:
                return
            self._known.add(identity)
            self.entries.append(entry)
            if self.path is not None and identity not in self._written:
                _append(self.path, self._gap + json.dumps(asdict(entry), ensure_ascii=False) + "\n")
                self._gap = ""
        if self._is_spent(max(self.rows, _FRACTION_FROM_ROWS)):
            raise self._overdrawn()

    def check(self) -> None:
        """The last look, when all rows were seen. Raises: DataError when the budget is spent."""
        if self._is_spent(max(self.rows, 1)):
            raise self._overdrawn()

    def summary(self) -> str:
        """The three commonest reasons with their counts: "12 missing-file, 3 empty-caption"."""
        return ", ".join(f"{count} {reason}" for reason, count in list(self.reasons.items())[:3])

    def _is_spent(self, rows: int) -> bool:
        if self.budget is None:
            return False
        allowed = self.budget * rows if isinstance(self.budget, float) else self.budget
        return len(self.entries) > allowed

    def _overdrawn(self) -> DataError:
        share = f"{self.budget:.2%} of the rows" if isinstance(self.budget, float) else f"{self.budget}"
        first = self.entries[0]
        place = str(self.path) if self.path else f"first in {first.file}, row {first.row}: {first.message}"
        return DataError(
            f"expected at most {share} bad rows, found {len(self.entries)} among {self.rows} ({self.summary()}); "
            f"see {place}; mend the data or raise the budget"
        )


def _read_written(text: str) -> set[tuple[str, str, str]]:
    found = set()
    for line in text.splitlines():
        try:
            found.add(_identity(json.loads(line)))
        except (ValueError, KeyError, TypeError):
            continue  # a line cut by a kill is written again
    return found


def _identity(entry: dict[str, object]) -> tuple[str, str, str]:
    return str(entry["reason"]), str(entry["file"]), f"{entry['row']}\n{entry['message']}"


def _append(path: Path, line: str) -> None:
    """One write of one whole line, so that processes appending at once do not mix theirs."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode("utf-8", errors="replace"))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DataError(f"{path}: cannot write the ledger ({error.strerror}); choose another folder") from None
