"""What every reader is made of: its strict spec, its file, its rows, its split."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from graftlm.data.ledger import Ledger
from graftlm.data.rows import (
    CaptionStyle,
    MediaFolder,
    PhotoRow,
    PhotoRows,
    Samples,
    captions_of,
    image_of,
    reporter,
    shown,
)
from graftlm.data.stream import Shard
from graftlm.errors import BadSampleError, DataError

IMAGE_COLUMNS = ("image", "file_name", "filename", "image_path", "img", "jpg", "png")
TEXT_COLUMNS = ("captions", "caption", "text", "sentences", "txt")
_ENDS_BYTES = 1 << 16
T = TypeVar("T")


class Spec(BaseModel):
    """What to read; each reader adds its own fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reader: str = Field("", description="name of the format; empty: guessed from the path")
    path: str = Field(description="file or folder")
    split: str | None = Field(None, description="train, val or test as the data names it; empty: all rows")
    limit: int | None = Field(None, ge=1, description="at most this many rows (photos, questions or dialogues)")
    per: Literal["caption", "media"] = Field(
        "caption",
        description="caption: one sample per caption (training); media: one per photo, with all references "
        "(evaluation); a question or a dialogue is one sample either way",
    )


class CaptionSpec(Spec):
    """What to read from captioned photos."""

    prompt: str = Field("", description="words between the photo and its caption")
    tidy: bool = Field(False, description="detokenise captions: 'entry way .' becomes 'entry way.'")
    max_chars: int = Field(2000, ge=1, description="longest caption in characters; longer ones are bad rows")

    def style(self) -> CaptionStyle:
        """How rows become samples."""
        return CaptionStyle(self.per == "caption", self.prompt, self.tidy, self.max_chars)


class Splits:
    """Keeps the rows of one split and remembers which there are.

    Rows without the column belong to the split that their file or its folder is named after.
    """

    def __init__(self, wanted: str | None, file: Path, column: str = "split") -> None:
        self.wanted = wanted
        self.file = file
        self.column = column
        self.found: dict[str, int] = {}
        self._is_named = wanted is not None and names_split(file, wanted)

    def accepts(self, record: Mapping[str, Any]) -> bool:
        """Whether the row belongs to the wanted split; any row does where none is wanted."""
        name = record.get(self.column)
        if not isinstance(name, str):
            return self.wanted is None or self._is_named
        self.found[name] = self.found.get(name, 0) + 1
        return self.wanted is None or same_split(self.wanted, name)

    def check(self) -> None:
        """Raises: DataError when the wanted split does not exist."""
        if self.wanted is None or any(same_split(self.wanted, name) for name in self.found):
            return
        if self._is_named and not self.found:
            return
        there = f"found {', '.join(sorted(self.found))}" if self.found else f"found no '{self.column}' in any row"
        raise DataError(f"{self.file}: expected rows of split '{self.wanted}', {there}; name another split or none")


def same_split(wanted: str, found: str) -> bool:
    """Whether two names mean the same split: val, valid, validation and dev do."""
    aliases = {"valid": "val", "validation": "val", "dev": "val", "training": "train", "testing": "test"}
    names = [aliases.get(name.strip().lower(), name.strip().lower()) for name in (wanted, found)]
    return names[0] == names[1]


def names_split(file: Path, split: str) -> bool:
    """Whether a file ("captions_val2014.json") or its folder ("train/metadata.jsonl") is named after the split."""
    words = [*re.split(r"[^a-z]+", file.name.lower()), file.parent.name]
    return any(same_split(split, word) for word in words)


def files_in(path: Path, suffixes: Sequence[str], folders: Sequence[str] = ("", "annotations")) -> list[Path]:
    """The path itself, or the files of a folder (and of its `folders`) with one of the suffixes, by name."""
    if path.is_file():
        return [path] if path.name.lower().endswith(tuple(suffixes)) else []
    found: list[Path] = []
    for folder in folders:
        if (path / folder).is_dir():
            found += sorted(file for file in (path / folder).iterdir() if file.name.lower().endswith(tuple(suffixes)))
    return [file for file in found if file.is_file()]


def one_file(files: Sequence[Path], path: Path, split: str | None, wanted: str) -> Path:
    """The one file to read; where there are several, the one whose name holds the split.

    Raises: DataError when there is none, or more than one.
    """
    if not path.exists():
        raise DataError(f"{path}: expected {wanted}, found no such file or folder; check the path")
    if len(files) > 1 and split is not None:
        files = [file for file in files if names_split(file, split)] or files
    if len(files) == 1:
        return files[0]
    if not files:
        raise DataError(f"{path}: expected {wanted}, found none; check the path or name another reader")
    names = ", ".join(file.name for file in files[:4])
    raise DataError(f"{path}: expected one file ({wanted}), found {len(files)} ({names}); give the path of one of them")


def picture_folder(images: str | None, roots: Sequence[Path]) -> MediaFolder:
    """Where pictures lie: in the folder of the spec, else in the likely ones. Raises: DataError when it is none."""
    if images is None:
        return MediaFolder(roots)
    if not Path(images).is_dir():
        raise DataError(f"{images}: expected the folder of the pictures, found no such folder; check 'images'")
    return MediaFolder([Path(images)])


def photo_places(file: Path, folders: Sequence[str]) -> list[Path]:
    """Where people keep the photos of an annotation file: beside it, one folder up, in `images` or in `folders`."""
    names = ["", "images", *folders, *(f"images/{folder}" for folder in folders)]
    return [parent / name for parent in (file.parent, file.parent.parent) for name in names]


def ends(file: Path) -> str:
    """The first and the last 64 KiB of a file as text, for guessing its format."""
    try:
        with open(file, "rb") as handle:
            head = handle.read(_ENDS_BYTES)
            handle.seek(max(0, file.stat().st_size - _ENDS_BYTES))
            tail = handle.read(_ENDS_BYTES)
    except OSError:
        return ""
    return head.decode("utf-8", errors="replace") + "\n" + tail.decode("utf-8", errors="replace")


def first_record(file: Path) -> Mapping[str, Any]:
    """The first row of a .jsonl file or a .json list, for guessing its format; empty where it is none."""
    text = ends(file).lstrip("\ufeff").lstrip().removeprefix("[").lstrip()
    try:
        record, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def load_json(file: Path) -> Any:
    """A whole JSON file. Raises: DataError when it is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: expected JSON, found something else ({error}); write the file again") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check the path and its rights") from None


def tables(data: Any, names: Sequence[str], file: Path) -> list[list[Any]]:
    """The lists a JSON file holds under these names. Raises: DataError when one is missing."""
    found = []
    for name in names:
        value = data.get(name) if isinstance(data, dict) else None
        if not isinstance(value, list):
            raise DataError(f"{file}: expected a list '{name}', found {shown(value)}; is it another format?")
        found.append(value)
    return found


def checked(record: Any) -> Mapping[str, Any]:
    """The row itself. Raises: BadSampleError when it is no JSON object."""
    if not isinstance(record, dict):
        raise BadSampleError("wrong-type", f"expected a JSON object, found {shown(record)}")
    return record


def parse_object(line: str) -> Mapping[str, Any]:
    """One line of a .jsonl file. Raises: BadSampleError when it is no JSON object."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadSampleError("bad-json", f"expected a JSON object, found something else ({error})") from None
    return checked(record)


def text_lines(file: Path, ledger: Ledger) -> Iterator[tuple[int, str]]:
    """Lines with their numbers (from 1), without empty ones; lines that are not UTF-8 go to the ledger."""
    try:
        with open(file, "rb") as handle:
            for number, raw in enumerate(handle, start=1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    with ledger.row(file, number):
                        message = f"expected UTF-8, found other bytes ({error.reason})"
                        raise BadSampleError("bad-encoding", message) from None
                    continue
                if line.strip():
                    yield number, line
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check the path and its rights") from None


def json_lines(file: Path, ledger: Ledger) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The objects of a .jsonl file with their line numbers; other lines go to the ledger."""
    for number, line in text_lines(file, ledger):
        record: Mapping[str, Any] | None = None
        try:
            record = parse_object(line)
        except BadSampleError as error:
            with ledger.row(file, number):
                raise error
        if record is not None:
            yield number, record


def records(file: Path, ledger: Ledger) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The objects of a .jsonl file, or of a .json file that holds a list, with their numbers from 1.

    Raises: DataError when a .json file holds no list.
    """
    if file.suffix.lower() != ".json":
        yield from json_lines(file, ledger)
        return
    rows = load_json(file)
    if not isinstance(rows, list):
        raise DataError(f"{file}: expected a list of rows, found {shown(rows)}; is it another format?")
    for number, row in enumerate(rows, start=1):
        if isinstance(row, dict):
            yield number, row
        else:
            with ledger.row(file, number):
                checked(row)


def cell(record: Mapping[str, Any], columns: Sequence[str], what: str) -> Any:
    """The first of the columns that the row has. Raises: BadSampleError when it has none."""
    for column in columns:
        if record.get(column) is not None:
            return record[column]
    there = ", ".join(map(str, record)) or "none"
    raise BadSampleError("missing-column", f"expected a column for the {what} ({', '.join(columns)}), found {there}")


def extras(record: Mapping[str, Any], used: Sequence[str]) -> dict[str, Any]:
    """The small other columns of a row, kept as metadata: numbers, strings and truth values."""
    kept = (str, int, float, bool)
    return {name: value for name, value in record.items() if name not in used and isinstance(value, kept)}


def photo_row(
    record: Mapping[str, Any],
    folder: MediaFolder,
    spec: CaptionSpec,
    place: tuple[Ledger, Path, int | str],
    *,
    image_columns: Sequence[str] = IMAGE_COLUMNS,
    text_columns: Sequence[str] = TEXT_COLUMNS,
) -> PhotoRow:
    """A row with the columns of a captioned photo. Raises: BadSampleError when it cannot be used."""
    image = cell(record, image_columns, "picture")
    found = image_of(image, folder)
    captions = captions_of(cell(record, text_columns, "caption"), spec.max_chars, reporter(*place))
    own = next((record[column] for column in ("id", "key") if isinstance(record.get(column), str | int)), None)
    key = image if isinstance(image, str) else str(own) if own is not None else f"{place[1].name}:{place[2]}"
    return PhotoRow(key, found, captions, extras(record, (*image_columns, *text_columns)))


def photo_samples(rows: Sequence[PhotoRow], spec: CaptionSpec, ledger: Ledger, file: Path) -> Samples[PhotoRow]:
    """Rows as a dataset. Raises: DataError when none is usable or the budget of bad rows is spent."""
    style = spec.style()
    kept = usable(rows, spec, ledger, file)
    return Samples(kept, style.sample, (style.count(row) for row in kept))


def gathered(
    shards: Sequence[Shard[T]],
    row_of: Callable[[T, str, int], PhotoRow],
    splits: Splits,
    spec: CaptionSpec,
    ledger: Ledger,
) -> list[PhotoRow]:
    """The rows of shards whose records are mappings, read once in order, no more than the limit needs."""
    found = PhotoRows()
    for shard in shards:
        for run in shard.runs(0):
            for number, record in run:
                if spec.limit is not None and len(found.rows) >= spec.limit:
                    return found.rows
                if not isinstance(record, Mapping) or splits.accepts(record):
                    with ledger.row(shard.name, number):
                        found.add(row_of(record, shard.name, number))
    if found.rows or splits.found or not ledger.entries:
        splits.check()
    return found.rows


def column(name: str, usual: Sequence[str], there: Sequence[str], what: str, place: Path | str) -> str:
    """The column of a table: the named one, else the first usual one. Raises: DataError when it is not there."""
    if name in there:
        return name
    found = next((column for column in usual if column in there), None)
    if found is None or name:
        wanted = f"the column '{name}'" if name else f"a column for the {what} ({', '.join(usual)})"
        key = "image_column" if usual is IMAGE_COLUMNS else "text_column"
        raise DataError(f"{place}: expected {wanted}, found {', '.join(there)}; name it with '{key}'")
    return found


class Keyed(Protocol):
    """A row with a name of its own."""

    @property
    def key(self) -> str:
        """Unique in its file."""


K = TypeVar("K", bound=Keyed)


def keyed_rows(file: Path, spec: Spec, ledger: Ledger, build: Callable[[Mapping[str, Any], int], K]) -> Sequence[K]:
    """What `build` makes of the objects of a split and their numbers; a key that comes again is a bad row.

    Raises: DataError when the file is none, has no such split or no row can be used.
    """
    splits = Splits(spec.split, file)
    rows: list[K] = []
    seen: set[str] = set()
    for number, record in records(file, ledger):
        if splits.accepts(record):
            with ledger.row(file, number):
                row = build(record, number)
                if row.key in seen:
                    raise BadSampleError("duplicate-id", f"expected each id once, found {row.key} again")
                seen.add(row.key)
                rows.append(row)
    if not ledger.entries or rows or splits.found:
        splits.check()
    return usable(rows, spec, ledger, file)


def usable(rows: Sequence[T], spec: Spec, ledger: Ledger, file: Path) -> Sequence[T]:
    """The rows within the limit. Raises: DataError when there is none or the budget of bad rows is spent."""
    ledger.check()
    if rows:
        return rows[: spec.limit]
    if not ledger.entries:
        raise DataError(f"{file}: expected rows, found none; check the path, the split and the reader")
    first = ledger.entries[0]
    raise DataError(
        f"{file}: expected usable rows, found none ({ledger.summary()}; first in {first.place}: {first.message})"
    )
