"""From the row of a file to samples: where its picture lies, which of its captions can be used.

A row is light (names, words, places in a file); sentences are built when a sample is asked for, and no picture
is opened here.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from graftlm.data.ledger import Ledger
from graftlm.data.sample import NumberedSamples, Sample
from graftlm.data.sentence import Image, Media, Part, Sentence, Text, Video
from graftlm.errors import BadSampleError

_REMOTE = re.compile(r"[a-z0-9+]+://", re.IGNORECASE)
_BEFORE_PUNCTUATION = re.compile(r"\s+([.,;:!?%)\]]|n't\b|'(?:s|re|ve|ll|d|m)\b)")
_AFTER_BRACKET = re.compile(r"([(\[])\s+")
_NUMBERS = re.compile(r"(\d+)")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jp2")
R = TypeVar("R")


@runtime_checkable
class Stored(Protocol):
    """Bytes that stay in their file until a sample needs them."""

    def fetch(self) -> bytes:
        """The bytes. Raises: BadSampleError when the file no longer holds them."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A run of bytes inside a file, such as a member of a tar."""

    file: str
    offset: int
    size: int

    def fetch(self) -> bytes:
        """The bytes. Raises: BadSampleError when the file is shorter than the slice."""
        try:
            with open(self.file, "rb") as handle:
                handle.seek(self.offset)
                data = handle.read(self.size)
        except OSError as error:
            raise BadSampleError("missing-file", f"{self.file}: cannot be read any more ({error.strerror})") from None
        if len(data) < self.size:
            raise BadSampleError(
                "truncated-archive",
                f"{self.file}: expected {self.size} bytes at {self.offset}, found {len(data)}; copy the file again",
            )
        return data


@dataclass(frozen=True, slots=True)
class PhotoRow:
    """One photo, or a film where `kind` says so, with its captions, which may be none."""

    key: str
    image: Media | Stored
    captions: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    kind: type[Image] | type[Video] = Image


@dataclass(frozen=True, slots=True)
class CaptionStyle:
    """How a row becomes samples.

    Attributes:
        per_caption: one sample for each caption (training), or one for each photo (evaluation)
        prompt: words between the photo and the caption, which a space parts from it
        tidy: whether the caption to learn is detokenised ("entry way ." becomes "entry way."); references stay raw
        max_chars: longer captions are bad rows
    """

    per_caption: bool = True
    prompt: str = ""
    tidy: bool = False
    max_chars: int = 2000

    def count(self, row: PhotoRow) -> int:
        """How many samples the row gives."""
        return max(1, len(row.captions)) if self.per_caption else 1

    def sample(self, row: PhotoRow, index: int) -> Sample:
        """Sample `index` of the row: photo, prompt, caption as target (no target where there is no caption)."""
        parts: list[Part] = [row.kind(media(row.image))]
        if self.prompt:
            parts.append(Text(self.prompt))
        if row.captions:
            caption = row.captions[index].strip()
            lead = " " if self.prompt and not self.prompt[-1].isspace() else ""
            parts.append(Text(lead + (tidied(caption) if self.tidy else caption), target=True))
        key = f"{row.key}#{index}" if self.per_caption else row.key
        return Sample(Sentence(tuple(parts)), key, row.captions, row.metadata)

    def samples(self, row: PhotoRow) -> list[Sample]:
        """All samples of the row."""
        return [self.sample(row, index) for index in range(self.count(row))]


class Samples(NumberedSamples, Generic[R]):
    """Rows as a sequence of samples, each built when it is asked for."""

    def __init__(self, rows: Sequence[R], build: Callable[[R, int], Sample], counts: Iterable[int]) -> None:
        self.rows = rows
        self._build = build
        self._ends = list(accumulate(counts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def make(self, number: int) -> Sample:
        """Of the row that holds the number."""
        row = bisect_right(self._ends, number)
        return self._build(self.rows[row], number - (self._ends[row - 1] if row else 0))


class MediaFolder:
    """Finds the pictures rows name, with one directory listing per folder instead of one look per picture.

    Args:
        roots: the folders to look in, the likeliest first
        kind: what an error calls what is looked for
    """

    def __init__(self, roots: Sequence[Path], kind: str = "picture") -> None:
        self.roots = roots
        self.kind = kind
        self._listings: dict[str, frozenset[str]] = {}

    def find(self, name: str) -> str:
        """The path of a picture. Raises: BadSampleError for a web address or when no root holds it."""
        if _REMOTE.match(name):
            raise BadSampleError("remote-file", f"expected a local file, found the address {name}; download it first")
        for root in self.roots:
            path = os.path.join(root, name.rstrip("/"))
            folder, base = os.path.split(path)
            if base in self._listing(folder):
                return path
        places = ", ".join(str(root) for root in self.roots[:3])
        raise BadSampleError("missing-file", f"expected the {self.kind} {name}, found no such file in {places}")

    def _listing(self, folder: str) -> frozenset[str]:
        if folder not in self._listings:
            try:
                self._listings[folder] = frozenset(os.listdir(folder or "."))
            except (OSError, ValueError):
                self._listings[folder] = frozenset()
        return self._listings[folder]


class PhotoRows:
    """Gathers rows; the captions of one photo that come in several rows are joined."""

    def __init__(self) -> None:
        self.rows: list[PhotoRow] = []
        self._places: dict[str, int] = {}

    def add(self, row: PhotoRow) -> None:
        """Takes one row. Raises: BadSampleError when an earlier row says the same of the same photo."""
        place = self._places.setdefault(row.key, len(self.rows))
        if place == len(self.rows):
            self.rows.append(row)
            return
        known = self.rows[place].captions
        new = tuple(caption for caption in row.captions if caption not in known)
        if not new:
            message = f"expected each photo once, found {row.key} again with the same captions"
            raise BadSampleError("duplicate-id", message)
        self.rows[place] = replace(self.rows[place], captions=known + new)


def media(image: Media | Stored) -> Media:
    """The picture itself, fetched from its place in a larger file where it lies in one."""
    return image.fetch() if isinstance(image, Stored) else image


def image_of(value: Any, folder: MediaFolder) -> Media | Stored:
    """The picture of a cell: a path, encoded bytes, their place, or {"bytes", "path"} as `datasets` stores them.

    Raises: BadSampleError for anything else, or when the file is not there.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path") or value.get("source")
    if isinstance(value, bytes | Stored):
        return value
    if isinstance(value, str) and value.strip():
        return folder.find(value)
    if value is None or value == "":
        raise BadSampleError("missing-column", "expected a picture, found an empty cell")
    raise BadSampleError("wrong-type", f"expected the picture to be a path or bytes, found {shown(value)}")


def captions_of(value: Any, max_chars: int, report: Callable[[BadSampleError], None]) -> tuple[str, ...]:
    """The usable captions of a cell that holds one string or a list of them; the others are reported.

    Raises: BadSampleError when none is usable (and then reports nothing).
    """
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple):
        raise BadSampleError("wrong-type", f"expected the caption to be a string or a list, found {shown(value)}")
    good: list[str] = []
    bad: list[BadSampleError] = []
    for number, caption in enumerate(values):
        if not isinstance(caption, str):
            bad.append(BadSampleError("wrong-type", f"caption {number}: expected a string, found {shown(caption)}"))
        elif not caption.strip():
            bad.append(BadSampleError("empty-caption", f"caption {number}: expected words, found none"))
        elif len(caption) > max_chars:
            message = f"caption {number}: expected at most {max_chars} characters, found {len(caption)}"
            bad.append(BadSampleError("caption-too-long", message))
        else:
            good.append(caption)
    if not good:
        raise bad[0] if bad else BadSampleError("empty-caption", "expected captions, found an empty list")
    for error in bad:
        report(error)
    return tuple(good)


def reporter(ledger: Ledger, file: str | Path, row: int | str | None) -> Callable[[BadSampleError], None]:
    """Writes errors of parts of one row into the ledger, where the row itself is kept."""
    return lambda error: ledger.add(error.reason, str(error), file=file, row=row)


def tidied(caption: str) -> str:
    """A tokenised caption as people write it: no space before punctuation, single spaces."""
    text = _AFTER_BRACKET.sub(r"\1", _BEFORE_PUNCTUATION.sub(r"\1", caption))
    return " ".join(text.split())


def shown(value: Any) -> str:
    """A value as an error message shows it, short."""
    text = repr(value)
    kind = type(value).__name__
    return f"{kind} {text}" if len(text) <= 60 else f"{kind} {text[:57]}..."


def frame_files(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of their names, numbers by their value: 2.jpg before 10.jpg.

    Raises: BadSampleError when there is none.
    """
    found = [
        entry for entry in folder.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith(".")
    ]
    if not found:
        raise BadSampleError("empty-video", f"expected pictures as frames in the folder {folder}, found none")
    return sorted(found, key=lambda entry: _in_order(entry.name))


def _in_order(name: str) -> tuple[tuple[int, int, str], ...]:
    pieces = _NUMBERS.split(name)
    return tuple((0, int(piece), piece) if piece.isdecimal() else (1, 0, piece) for piece in pieces)
