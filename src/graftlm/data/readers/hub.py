"""Any captioned data set that the `datasets` library can load: a hub id, or a folder that it wrote.

Without a split, a hub id's ``train`` is read. With ``stream: true`` nothing is downloaded beforehand: rows come in
runs of 512, in an order drawn from the seed, and a stream resumes after any sample by reading its run again.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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

_ID = re.compile(r"[\w.-]+/[\w.-]+")
_RUN = 512


class Spec(base.CaptionSpec):
    """What to read."""

    name: str | None = Field(None, description="configuration of the data set, where it has several")
    revision: str | None = Field(None, description="commit or tag, for a run that can be repeated")
    image_column: str = Field("", description="column of the photos; empty: image or one of its usual names")
    text_column: str = Field("", description="column of the captions; empty: captions, caption, text ...")
    stream: bool = Field(False, description="give a stream instead of samples by number")
    shuffle: bool = Field(False, description="of a stream: another order in each epoch")
    seed: int = Field(0, description="of the stream's order")


@dataclass(frozen=True, slots=True)
class Cell:
    """The picture of one row of a table on disk."""

    table: Any
    column: str
    row: int

    def fetch(self) -> bytes:
        """The encoded picture. Raises: BadSampleError when the cell holds none."""
        return _bytes_of(self.table[self.row][self.column])


@dataclass(frozen=True, slots=True)
class TableShard:
    """A shard of rows that `open` gives anew, in runs of 512."""

    name: str
    open: Callable[[int], Iterator[Mapping[str, Any]]]

    def runs(self, start: int) -> Iterator[Sequence[tuple[int, Mapping[str, Any]]]]:
        """Runs of rows with their numbers in the shard."""
        rows = enumerate(self.open(start * _RUN), start=start * _RUN + 1)
        while run := list(itertools.islice(rows, _RUN)):
            yield run


def claims(path: str) -> bool:
    """Whether it looks like a hub id, or is a folder that `datasets` wrote."""
    place = Path(path)
    if place.exists():
        return (place / "dataset_info.json").is_file() or (place / "dataset_dict.json").is_file()
    return bool(_ID.fullmatch(path)) and not place.parent.exists()


def read(spec: Spec, ledger: Ledger) -> Samples[PhotoRow] | Stream[Mapping[str, Any]]:
    """The rows of the split. Raises: DataError when it cannot be loaded or no row can be used."""
    data = _load(spec)
    names = list(data.column_names or next(iter(data), {}))
    image = base.column(spec.image_column, base.IMAGE_COLUMNS, names, "picture", spec.path)
    text = base.column(spec.text_column, base.TEXT_COLUMNS, names, "caption", spec.path)
    data = _undecoded(data, image)
    folder = MediaFolder([Path(spec.path)])

    def row_of(record: Mapping[str, Any], shard: str, number: int) -> PhotoRow:
        place = (ledger, Path(shard), number)
        return base.photo_row(record, folder, spec, place, image_columns=(image,), text_columns=(text,))

    if not spec.stream:
        shard = TableShard(spec.path, lambda start: _lazy_rows(data, image, start))
        rows = base.gathered([shard], row_of, base.Splits(None, Path(spec.path)), spec, ledger)
        return base.photo_samples(rows, spec, ledger, Path(spec.path))

    def build(record: Mapping[str, Any], shard: str, number: int) -> Sequence[Sample]:
        return spec.style().samples(row_of(record, shard, number))

    return Stream(_shards(data, spec.path), build, ledger, shuffle=spec.shuffle, seed=spec.seed, limit=spec.limit)


def _load(spec: Spec) -> Any:
    import datasets  # type: ignore[import-untyped]
    from datasets.exceptions import DatasetsError  # type: ignore[import-untyped]

    path = Path(spec.path)
    try:
        if path.exists():
            table = _split_of(datasets.load_from_disk(str(path)), spec)
            return table.to_iterable_dataset(num_shards=max(1, min(16, len(table) // _RUN))) if spec.stream else table
        options = {"name": spec.name, "revision": spec.revision, "streaming": spec.stream}
        return datasets.load_dataset(spec.path, split=spec.split or "train", **options)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, DatasetsError) as error:
        found = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise DataError(
            f"{spec.path}: expected a folder or a data set that `datasets` can load ({found}); check the path or the id"
        ) from None


def _split_of(found: Any, spec: Spec) -> Any:
    splits = dict(found) if hasattr(found, "keys") else {str(found.split): found}
    for name, table in splits.items():
        if (spec.split is None and len(splits) == 1) or base.same_split(str(spec.split), str(name)):
            return table
    wanted = f"the split '{spec.split}'" if spec.split else "a split to be named"
    raise DataError(f"{spec.path}: expected {wanted}, found {', '.join(map(str, splits))}; set 'split'")


def _undecoded(data: Any, image: str) -> Any:
    """Pictures as bytes: decoding is `data.media`'s, with its limits."""
    import datasets

    feature = (data.features or {}).get(image)
    return data.cast_column(image, datasets.Image(decode=False)) if isinstance(feature, datasets.Image) else data


def _lazy_rows(table: Any, image: str, start: int) -> Iterator[Mapping[str, Any]]:
    words = table.remove_columns([image])
    for number in range(start, len(table)):
        yield {**words[number], image: Cell(table, image, number)}


def _shards(data: Any, path: str) -> list[TableShard]:
    count = data.num_shards
    return [TableShard(f"{path}[{index}]", _opener(data, count, index)) for index in range(count)]


def _opener(data: Any, count: int, index: int) -> Callable[[int], Iterator[Mapping[str, Any]]]:
    return lambda start: iter(data.shard(num_shards=count, index=index).skip(start))


def _bytes_of(value: Any) -> bytes:
    path = value.get("path") if isinstance(value, Mapping) else value
    if isinstance(path, str) and not (isinstance(value, Mapping) and value.get("bytes")):
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise BadSampleError("missing-file", f"{path}: cannot be read ({error.strerror})") from None
    found = image_of(value, MediaFolder([]))
    if isinstance(found, bytes):
        return found
    raise BadSampleError("wrong-type", "expected the bytes of a picture, found something else")
