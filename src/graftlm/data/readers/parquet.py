"""Parquet files: an ``image`` column (bytes, {"bytes", "path"} or paths) and ``text`` or ``captions``.

Read with pyarrow, one row group at a time, so that neither a file nor its pictures have to fit into memory.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from graftlm.data.ledger import Ledger
from graftlm.data.readers import base
from graftlm.data.rows import MediaFolder, PhotoRow, Samples, image_of
from graftlm.data.sample import Sample
from graftlm.data.stream import Stream
from graftlm.errors import BadSampleError, DataError

_GROUPS_IN_MEMORY = 4


class Spec(base.CaptionSpec):
    """What to read."""

    images: str | None = Field(None, description="folder of the photos, where the column holds paths")
    image_column: str = Field("", description="column of the photos; empty: image or one of its usual names")
    text_column: str = Field("", description="column of the captions; empty: captions, caption, text ...")
    stream: bool = Field(False, description="give a stream instead of samples by number")
    shuffle: bool = Field(False, description="of a stream: another order in each epoch")
    seed: int = Field(0, description="of the stream's order")


class RowGroups:
    """The image columns of row groups, a few of them kept in memory; threads may share it."""

    def __init__(self, column: str) -> None:
        self.column = column
        self._kept: OrderedDict[tuple[str, int], list[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def cell(self, file: str, group: int, row: int) -> Any:
        """The cell of a row."""
        with self._lock:
            place = (file, group)
            if place not in self._kept:
                self._kept[place] = _group(file, group, [self.column])
                while len(self._kept) > _GROUPS_IN_MEMORY:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(place)
            return self._kept[place][row].get(self.column)


@dataclass(frozen=True, slots=True)
class Cell:
    """The picture of one row, fetched from its row group."""

    groups: RowGroups
    file: str
    group: int
    row: int

    def fetch(self) -> bytes:
        """The encoded picture. Raises: BadSampleError when the cell holds none."""
        value = image_of(self.groups.cell(self.file, self.group, self.row), MediaFolder([]))
        if not isinstance(value, bytes):
            raise BadSampleError("wrong-type", f"{self.file}: expected the bytes of a picture, found a path")
        return value


@dataclass(frozen=True, slots=True)
class GroupShard:
    """One row group of one file, which is one run of rows; `lazy` pictures stay in the file."""

    file: str
    group: int
    first: int
    image: str
    lazy: RowGroups | None = None

    @property
    def name(self) -> str:
        """File and row group."""
        return f"{self.file}[{self.group}]"

    def runs(self, start: int) -> Iterator[Sequence[tuple[int, Mapping[str, Any]]]]:
        """The rows of the group with their numbers in the file."""
        if start:
            return
        if self.lazy is None:
            yield list(enumerate(_group(self.file, self.group), start=self.first))
            return
        others = [name for name in _names(self.file) if name != self.image]
        rows = _group(self.file, self.group, others)
        cells = [Cell(self.lazy, self.file, self.group, row) for row in range(len(rows))]
        lazy_rows = [{**row, self.image: cell} for row, cell in zip(rows, cells, strict=True)]
        yield list(enumerate(lazy_rows, start=self.first))


def claims(path: str) -> bool:
    """Whether there are parquet files."""
    return bool(_files(Path(path)))


def read(spec: Spec, ledger: Ledger) -> Samples[PhotoRow] | Stream[Mapping[str, Any]]:
    """The rows of all files, in order. Raises: DataError when there is no file or no row can be used."""
    files = _files(Path(spec.path))
    files = [file for file in files if spec.split and base.names_split(file, spec.split)] or files
    if not files:
        raise DataError(f"{spec.path}: expected .parquet files, found none; check the path")
    names = _names(str(files[0]))
    image = base.column(spec.image_column, base.IMAGE_COLUMNS, names, "picture", files[0])
    text = base.column(spec.text_column, base.TEXT_COLUMNS, names, "caption", files[0])
    folder = base.picture_folder(spec.images, [files[0].parent, files[0].parent / "images"])
    splits = base.Splits(spec.split, files[0])

    def row_of(record: Mapping[str, Any], shard: str, number: int) -> PhotoRow:
        place = (ledger, Path(shard), number)
        return base.photo_row(record, folder, spec, place, image_columns=(image,), text_columns=(text,))

    if not spec.stream:
        shards = _shards(files, image, RowGroups(image))
        rows = base.gathered(shards, row_of, splits, spec, ledger)
        return base.photo_samples(rows, spec, ledger, Path(spec.path))

    def build(record: Mapping[str, Any], shard: str, number: int) -> Sequence[Sample]:
        return spec.style().samples(row_of(record, shard, number)) if splits.accepts(record) else ()

    return Stream(_shards(files, image, None), build, ledger, shuffle=spec.shuffle, seed=spec.seed, limit=spec.limit)


def _shards(files: Sequence[Path], image: str, lazy: RowGroups | None) -> list[GroupShard]:
    shards = []
    for file in files:
        metadata, schema = _open(str(file)).metadata, _open(str(file)).schema_arrow
        holds_paths = image in schema.names and str(schema.field(image).type) in ("string", "large_string")
        first = 1
        for group in range(metadata.num_row_groups):
            shards.append(GroupShard(str(file), group, first, image, None if holds_paths else lazy))
            first += metadata.row_group(group).num_rows
    return shards


def _files(path: Path) -> list[Path]:
    return base.files_in(path, (".parquet",), ("", "data"))


def _names(file: str) -> list[str]:
    return list(_open(file).schema_arrow.names)


def _group(file: str, group: int, columns: list[str] | None = None) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = _open(file).read_row_group(group, columns=columns).to_pylist()
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: row group {group} cannot be read ({error}); copy the file again") from None
    return rows


def _open(file: str) -> Any:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        return pyarrow.parquet.ParquetFile(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{file}: expected a parquet file, found something else ({error}); copy it again") from None
