"""Conceptual Captions' tsv: ``caption<TAB>image`` on each line, with photos that were downloaded already.

Sharma et al., "Conceptual Captions" (ACL 2018). A web address in place of a file goes to the ledger.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from graftlm.data.ledger import Ledger
from graftlm.data.readers import base
from graftlm.data.rows import IMAGE_SUFFIXES, PhotoRow, PhotoRows, Samples, captions_of, reporter
from graftlm.errors import BadSampleError


class Spec(base.CaptionSpec):
    """What to read."""

    images: str | None = Field(None, description="folder of the photos, if not the file's own or its 'images'")


def claims(path: str) -> bool:
    """Whether there is a .tsv file of two columns."""
    return any(_has_two_columns(file) for file in base.files_in(Path(path), (".tsv",), ("",)))


def read(spec: Spec, ledger: Ledger) -> Samples[PhotoRow]:
    """The rows of the file. Raises: DataError when none can be used."""
    path = Path(spec.path)
    file = base.one_file(base.files_in(path, (".tsv", ".txt"), ("",)), path, spec.split, "a .tsv file")
    folder = base.picture_folder(spec.images, [file.parent, file.parent / "images"])
    rows = PhotoRows()
    splits = base.Splits(spec.split, file)
    for number, line in base.text_lines(file, ledger):
        if splits.accepts({}):
            with ledger.row(file, number):
                columns = line.split("\t")
                if len(columns) != 2:
                    message = f"expected two columns, caption and picture, found {len(columns)}"
                    raise BadSampleError("missing-column", message)
                captions = captions_of(columns[0], spec.max_chars, reporter(ledger, file, number))
                rows.add(PhotoRow(columns[1].strip(), folder.find(columns[1].strip()), captions))
    splits.check()
    return base.photo_samples(rows.rows, spec, ledger, file)


def _has_two_columns(file: Path) -> bool:
    lines = [line for line in base.ends(file).splitlines()[:5] if line.strip()]
    pictures = [line.split("\t")[1].strip().lower() for line in lines if line.count("\t") == 1]
    return any(picture.endswith(IMAGE_SUFFIXES) or "://" in picture for picture in pictures)
