"""Captioned films, one JSON object per line (or in one list): ``video`` with ``text``, ``caption`` or ``captions``.

A film is a file (MP4, WebM, GIF ...) or the folder of its frames in name order; both lie beside the file or in its
``videos`` or ``frames`` folder. A ``split`` column is honoured; the captions of one film may come on several lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from graftlm.data.ledger import Ledger
from graftlm.data.readers import base
from graftlm.data.rows import MediaFolder, PhotoRow, PhotoRows, Samples, frame_files
from graftlm.data.sentence import Video
from graftlm.errors import DataError

_COLUMNS = ("video", "clip")
_FOLDERS = ("", "videos", "frames")
_WANTED = "a .jsonl file whose rows have 'video' and 'captions'"


class Spec(base.CaptionSpec):
    """What to read."""

    videos: str | None = Field(None, description="folder of the films, if not the file's own, 'videos' or 'frames'")


def claims(path: str) -> bool:
    """Whether there is a file of captioned films."""
    return bool(_files(Path(path)))


def read(spec: Spec, ledger: Ledger) -> Samples[PhotoRow]:
    """The films in the order of the file. Raises: DataError when none can be used."""
    path = Path(spec.path)
    file = base.one_file([path] if path.is_file() else _files(path), path, spec.split, _WANTED)
    folder = _folder(spec, file)
    rows = PhotoRows()
    splits = base.Splits(spec.split, file)
    for line, record in base.records(file, ledger):
        if splits.accepts(record):
            with ledger.row(file, line):
                rows.add(_row(record, folder, spec, (ledger, file, line)))
    if not ledger.entries or rows.rows or splits.found:
        splits.check()
    return base.photo_samples(rows.rows, spec, ledger, file)


def _row(record: Mapping[str, Any], folder: MediaFolder, spec: Spec, place: tuple[Ledger, Path, int | str]) -> PhotoRow:
    row = base.photo_row(record, folder, spec, place, image_columns=_COLUMNS)
    if isinstance(row.image, str) and Path(row.image).is_dir():
        frame_files(Path(row.image))
    return replace(row, kind=Video)


def _folder(spec: Spec, file: Path) -> MediaFolder:
    if spec.videos is None:
        return MediaFolder([file.parent / name for name in _FOLDERS], "film")
    if not Path(spec.videos).is_dir():
        raise DataError(f"{spec.videos}: expected the folder of the films, found no such folder; check 'videos'")
    return MediaFolder([Path(spec.videos)], "film")


def _files(path: Path) -> list[Path]:
    return [file for file in base.files_in(path, (".jsonl", ".json"), ("",)) if _is_captioned(file)]


def _is_captioned(file: Path) -> bool:
    record = base.first_record(file)
    has_film = isinstance(record.get("video", record.get("clip")), str)
    return has_film and any(column in record for column in base.TEXT_COLUMNS) and "question" not in record
