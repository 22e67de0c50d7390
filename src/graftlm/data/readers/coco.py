"""COCO captions json: ``images`` (id, file_name) and ``annotations`` (image_id, caption).

Photos are looked for beside the file, one folder up, in ``images`` and in the folder COCO names after the file
(``captions_val2014.json``: ``val2014``). Chen et al., "Microsoft COCO Captions", arXiv:1504.00325.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from graftlm.data.ledger import Ledger
from graftlm.data.readers import base
from graftlm.data.rows import MediaFolder, PhotoRow, Samples, captions_of, shown
from graftlm.errors import BadSampleError

_WANTED = "a json file with 'images' and captions as 'annotations'"


class Spec(base.CaptionSpec):
    """What to read."""

    images: str | None = Field(None, description="folder of the photos, if not one of the usual places")


def claims(path: str) -> bool:
    """Whether there is a COCO captions file."""
    return bool(_files(Path(path)))


def read(spec: Spec, ledger: Ledger) -> Samples[PhotoRow]:
    """The photos in the order of the file. Raises: DataError when the file is none or no row can be used."""
    path = Path(spec.path)
    file = base.one_file([path] if path.is_file() else _files(path), path, spec.split, _WANTED)
    data = base.load_json(file)
    images, annotations = base.tables(data, ("images", "annotations"), file)
    captions = _captions(annotations, spec, ledger, file)
    folder = base.picture_folder(spec.images, base.photo_places(file, _year(file)))
    splits = base.Splits(spec.split, file)
    rows: list[PhotoRow] = []
    seen: set[Any] = set()
    for number, record in enumerate(images):
        with ledger.row(file, f"images[{number}]"):
            if splits.accepts(base.checked(record)):
                rows.append(_row(record, captions, seen, folder))
    splits.check()
    for lost in captions.keys() - seen:
        ledger.add("unknown-image", f"expected the image {lost} of a caption among 'images'", file=file, row=str(lost))
    return base.photo_samples(rows, spec, ledger, file)


def _row(record: Mapping[str, Any], captions: Mapping[Any, list[str]], seen: set[Any], folder: MediaFolder) -> PhotoRow:
    image_id = base.cell(record, ("id",), "image id")
    if not isinstance(image_id, int | str):
        raise BadSampleError("wrong-type", f"expected the image id to be a number, found {shown(image_id)}")
    if image_id in seen:
        raise BadSampleError("duplicate-id", f"expected each image id once, found {image_id} again")
    seen.add(image_id)
    name = base.cell(record, ("file_name",), "picture")
    if not isinstance(name, str):
        raise BadSampleError("wrong-type", f"expected the file name to be a string, found {shown(name)}")
    if image_id not in captions:
        raise BadSampleError("empty-caption", f"expected captions of image {image_id}, found none")
    metadata = {"image_id": image_id, "file_name": name}
    return PhotoRow(str(image_id), folder.find(name), tuple(captions[image_id]), metadata)


def _captions(annotations: list[Any], spec: Spec, ledger: Ledger, file: Path) -> dict[Any, list[str]]:
    captions: dict[Any, list[str]] = {}
    seen: set[Any] = set()
    for number, record in enumerate(annotations):
        with ledger.row(file, f"annotations[{number}]"):
            base.checked(record)
            image_id = base.cell(record, ("image_id",), "image id")
            annotation_id = record.get("id", f"row {number}")
            if not isinstance(image_id, int | str) or not isinstance(annotation_id, int | str):
                raise BadSampleError("wrong-type", f"expected ids to be numbers, found {shown(image_id)}")
            if annotation_id in seen:
                raise BadSampleError("duplicate-id", f"expected each annotation id once, found {annotation_id} again")
            seen.add(annotation_id)
            caption = base.cell(record, ("caption",), "caption")
            captions.setdefault(image_id, []).extend(captions_of(caption, spec.max_chars, _never))
    return captions


def _never(error: BadSampleError) -> None:
    raise error


def _year(file: Path) -> list[str]:
    found = re.search(r"(train|val|test)\d{4}", file.name)
    return [found.group(0)] if found else []


def _files(path: Path) -> list[Path]:
    return [file for file in base.files_in(path, (".json",)) if _is_coco(file)]


def _is_coco(file: Path) -> bool:
    text = base.ends(file)  # in a large file the word "annotations" lies in neither end; ids of both kinds tell as much
    return '"images"' in text and '"image_id"' in text and '"caption"' in text and '"questions"' not in text
