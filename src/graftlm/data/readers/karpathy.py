"""Karpathy's json of COCO, Flickr8k and Flickr30k: ``images`` with ``sentences[].raw``, ``filename`` and ``split``.

Karpathy and Fei-Fei, "Deep Visual-Semantic Alignments", arXiv:1412.2306. COCO's ``restval`` (30,504 photos) is
counted as train, as published results do (113,287 photos), unless ``restval: false``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from graftlm.data.ledger import Ledger
from graftlm.data.readers import base
from graftlm.data.rows import MediaFolder, PhotoRow, Samples, captions_of, reporter, shown
from graftlm.errors import BadSampleError

_WANTED = "a json file with 'images' that hold 'sentences'"
_KEPT = ("imgid", "cocoid", "sentids", "split")


class Spec(base.CaptionSpec):
    """What to read."""

    images: str | None = Field(None, description="folder of the photos, if not one of the usual places")
    restval: bool = Field(True, description="whether COCO's restval photos belong to train")


def claims(path: str) -> bool:
    """Whether there is a file of this format."""
    return bool(_files(Path(path)))


def read(spec: Spec, ledger: Ledger) -> Samples[PhotoRow]:
    """The photos in the order of the file. Raises: DataError when the file is none or no row can be used."""
    path = Path(spec.path)
    file = base.one_file([path] if path.is_file() else _files(path), path, spec.split, _WANTED)
    (images,) = base.tables(base.load_json(file), ("images",), file)
    folder = base.picture_folder(spec.images, base.photo_places(file, []))
    splits = base.Splits(spec.split, file)
    rows: list[PhotoRow] = []
    seen: set[str] = set()
    for number, record in enumerate(images):
        place = f"images[{number}]"
        with ledger.row(file, place):
            if splits.accepts(_with_restval(base.checked(record), spec)):
                row = _row(record, spec, folder, (ledger, file, place))
                if row.key in seen:
                    raise BadSampleError("duplicate-id", f"expected each photo once, found {row.key} again")
                seen.add(row.key)
                rows.append(row)
    splits.check()
    return base.photo_samples(rows, spec, ledger, file)


def _with_restval(record: Mapping[str, Any], spec: Spec) -> Mapping[str, Any]:
    joins = spec.restval and spec.split != "restval" and record.get("split") == "restval"
    return {**record, "split": "train"} if joins else record


def _row(record: Mapping[str, Any], spec: Spec, folder: MediaFolder, place: tuple[Ledger, Path, str]) -> PhotoRow:
    name = base.cell(record, ("filename",), "picture")
    sentences = base.cell(record, ("sentences",), "caption")
    if not isinstance(name, str) or not isinstance(sentences, list):
        raise BadSampleError("wrong-type", f"expected a file name and a list of sentences, found {shown(name)}")
    raw = [sentence.get("raw") if isinstance(sentence, dict) else sentence for sentence in sentences]
    captions = captions_of(raw, spec.max_chars, reporter(*place))
    metadata = {column: record[column] for column in _KEPT if column in record}
    return PhotoRow(name, _find(folder, record.get("filepath"), name), captions, metadata)


def _find(folder: MediaFolder, filepath: Any, name: str) -> str:
    if isinstance(filepath, str) and filepath:
        try:
            return folder.find(f"{filepath}/{name}")
        except BadSampleError:
            pass  # photos of all years are often put into one folder
    return folder.find(name)


def _files(path: Path) -> list[Path]:
    return [file for file in base.files_in(path, (".json",)) if _is_karpathy(file)]


def _is_karpathy(file: Path) -> bool:
    text = base.ends(file)
    return '"images"' in text and '"sentences"' in text and '"raw"' in text
