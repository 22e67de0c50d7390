"""Captioned photos, one JSON object per line (or in one list): ``image`` with ``text``, ``caption`` or ``captions``.

Photos lie beside the file or in its ``images`` folder. A ``split`` column is honoured; the captions of one photo
may come on one line or on several.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from graftlm.data.ledger import Ledger
from graftlm.data.readers import base
from graftlm.data.rows import PhotoRow, PhotoRows, Samples

_WANTED = "a .jsonl file whose rows have 'image' and 'captions'"


class Spec(base.CaptionSpec):
    """What to read."""

    images: str | None = Field(None, description="folder of the photos, if not the file's own or its 'images'")


def claims(path: str) -> bool:
    """Whether there is a captioned .jsonl file or list."""
    return bool(_files(Path(path)))


def read(spec: Spec, ledger: Ledger) -> Samples[PhotoRow]:
    """The rows of the file. Raises: DataError when none can be used."""
    path = Path(spec.path)
    file = base.one_file([path] if path.is_file() else _files(path), path, spec.split, _WANTED)
    folder = base.picture_folder(spec.images, [file.parent, file.parent / "images"])
    rows = PhotoRows()
    splits = base.Splits(spec.split, file)
    for line, record in base.records(file, ledger):
        if splits.accepts(record):
            with ledger.row(file, line):
                rows.add(base.photo_row(record, folder, spec, (ledger, file, line)))
    if not ledger.entries or rows.rows or splits.found:
        splits.check()
    return base.photo_samples(rows.rows, spec, ledger, file)


def _files(path: Path) -> list[Path]:
    return [file for file in base.files_in(path, (".jsonl", ".json"), ("",)) if _is_captioned(file)]


def _is_captioned(file: Path) -> bool:
    record = base.first_record(file)
    has_image = any(column in record for column in base.IMAGE_COLUMNS)
    has_text = any(column in record for column in base.TEXT_COLUMNS)
    return has_image and has_text and "question" not in record and not file.name.startswith("metadata.")
