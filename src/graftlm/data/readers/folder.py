"""A folder of photos: with ``metadata.jsonl`` or ``metadata.csv`` (Hugging Face's imagefolder), or photos alone.

The metadata's ``file_name`` is relative to its own folder; ``text``, ``caption`` or ``captions`` hold the words. A
folder of photos alone gives samples without a target: photos to be captioned.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from graftlm.data.ledger import Ledger
from graftlm.data.readers import base
from graftlm.data.rows import IMAGE_SUFFIXES, MediaFolder, PhotoRow, PhotoRows, Samples
from graftlm.errors import BadSampleError, DataError

_NAMES = ("metadata.jsonl", "metadata.csv")
_OTHER_DATA = (".jsonl", ".json", ".csv", ".tsv", ".tar", ".parquet", ".arrow")


class Spec(base.CaptionSpec):
    """What to read."""


def claims(path: str) -> bool:
    """Whether there is metadata, or photos and no other data, or a photo."""
    place = Path(path)
    if place.is_file():
        return place.name in _NAMES or place.suffix.lower() in IMAGE_SUFFIXES
    has_photos = bool(base.files_in(place, IMAGE_SUFFIXES, ("",)))
    return bool(_metadata(place)) or (has_photos and not base.files_in(place, _OTHER_DATA, ("",)))


def read(spec: Spec, ledger: Ledger) -> Samples[PhotoRow]:
    """The rows of the metadata, else every photo. Raises: DataError when none can be used."""
    path = Path(spec.path)
    files = _metadata(path)
    if not files:
        return _photos_alone(spec, path, ledger)
    file = base.one_file(files, path, spec.split, "metadata.jsonl or metadata.csv")
    folder = MediaFolder([file.parent])
    rows = PhotoRows()
    splits = base.Splits(spec.split, file)
    records = base.json_lines(file, ledger) if file.suffix == ".jsonl" else _csv_rows(file, ledger)
    for line, record in records:
        if splits.accepts(record):
            with ledger.row(file, line):
                rows.add(base.photo_row(record, folder, spec, (ledger, file, line)))
    if not ledger.entries or rows.rows or splits.found:
        splits.check()
    return base.photo_samples(rows.rows, spec, ledger, file)


def _metadata(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.name in _NAMES else []
    folders = [path, *sorted(folder for folder in path.iterdir() if folder.is_dir())] if path.is_dir() else []
    return [folder / name for folder in folders for name in _NAMES if (folder / name).is_file()]


def _csv_rows(file: Path, ledger: Ledger) -> Iterator[tuple[int, Mapping[str, Any]]]:
    text = "\n".join(line for _, line in base.text_lines(file, ledger))
    reader = csv.DictReader(io.StringIO(text))
    try:
        for record in reader:
            yield reader.line_num, {name: value for name, value in record.items() if name is not None}
    except csv.Error as error:
        raise DataError(f"{file}: expected CSV, found something else at line {reader.line_num} ({error})") from None


def _photos_alone(spec: Spec, path: Path, ledger: Ledger) -> Samples[PhotoRow]:
    if not path.exists():
        raise DataError(f"{path}: expected a folder of photos, found no such folder; check the path")
    root = path if path.is_dir() else path.parent
    if spec.split is not None:
        root = root / spec.split
        if not root.is_dir():
            raise DataError(f"{path}: expected a subfolder '{spec.split}', found none; leave out the split")
    files = sorted(root.rglob("*")) if path.is_dir() else [path]
    rows = []
    for file in files:
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file():
            with ledger.row(file, None):
                if file.stat().st_size == 0:
                    raise BadSampleError("unreadable-image", "expected a photo, found an empty file")
                rows.append(PhotoRow(file.relative_to(root).as_posix(), str(file), ()))
    return base.photo_samples(rows, spec, ledger, path)
