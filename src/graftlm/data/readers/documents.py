"""Interleaved documents, one JSON object per line (or in one list): texts and pictures in reading order.

Three forms are read: parts under ``document``, ``parts`` or ``content`` in GraftLM's own wire format, the same with
plain ``{"text": ...}``, ``{"image": ...}`` and ``{"video": ...}`` objects, and OBELICS' parallel lists ``texts`` and
``images`` with nulls (Laurençon et al., arXiv:2306.16527). Every text is to be learnt, unless the parts carry a target
or a role of their own. A picture that cannot be used is left out of its document and written down.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from graftlm.data.documents import DocumentRow, Item, Limits, Shown, document_row, joined, whole_row
from graftlm.data.ledger import Ledger
from graftlm.data.readers import base
from graftlm.data.rows import MediaFolder, Samples, image_of, reporter, shown
from graftlm.data.sentence import Image, Role, Text, Video
from graftlm.errors import BadSampleError

_COLUMNS = ("document", "parts", "content")
_LISTS = ("texts", "images")
_SOURCES = ("source", "image", "video", "path", "bytes")
_ROLES = ("system", "user", "assistant")
_WANTED = "a file of documents with 'document' or 'texts' and 'images'"


class Spec(base.Spec):
    """What to read."""

    images: str | None = Field(None, description="folder of the pictures, if not the file's own or its 'images'")
    min_images: int = Field(1, ge=0, description="documents with fewer usable pictures are bad rows; 0: text alone too")
    max_images: int = Field(5, ge=1, description="most pictures in one sentence (Flamingo on M3W: 5); the rest follows")
    max_chars: int = Field(2000, ge=1, description="most characters of text in one sentence; the rest follows")
    between: str = Field("\n", description="what stands between texts without a picture between them")


def claims(path: str) -> bool:
    """Whether there is a file of documents."""
    return bool(_files(Path(path)))


def read(spec: Spec, ledger: Ledger) -> Samples[DocumentRow]:
    """The documents in the order of the file. Raises: DataError when the file is none or no row can be used."""
    path = Path(spec.path)
    file = base.one_file([path] if path.is_file() else _files(path), path, spec.split, _WANTED)
    folder = base.picture_folder(spec.images, [file.parent, file.parent / "images"])
    kept = base.keyed_rows(
        file, spec, ledger, lambda record, number: _row(record, folder, spec, (ledger, file, number))
    )
    return Samples(kept, DocumentRow.sample, (len(row.pieces) for row in kept))


def _row(record: Mapping[str, Any], folder: MediaFolder, spec: Spec, place: tuple[Ledger, Path, int]) -> DocumentRow:
    entries = _entries(record)
    items: list[Item] = []
    lost: list[BadSampleError] = []
    for number, entry in enumerate(entries):
        try:
            items.append(_item(entry, folder))
        except BadSampleError as error:
            if not _is_media(entry):
                raise
            lost.append(BadSampleError(error.reason, f"part {number}: {error}"))
    num_media = sum(isinstance(item, Shown) for item in items)
    has_own = any(item.target or item.role for item in items)
    if lost and (has_own or num_media < spec.min_images):
        raise lost[0]
    if num_media < spec.min_images:
        message = f"expected at least {spec.min_images} pictures in the document, found {num_media}"
        raise BadSampleError("media-count", message)
    key = str(record.get("id", f"{place[1].stem}:{place[2]}"))
    limits = Limits(spec.max_images, spec.max_chars)
    metadata = base.extras(record, (*_COLUMNS, *_LISTS))
    make = whole_row if has_own else document_row
    row = make(key, items if has_own else joined(items, spec.between), limits, metadata)
    for one in lost:
        reporter(*place)(one)
    return row


def _entries(record: Mapping[str, Any]) -> Sequence[Any]:
    """The parts of a row, whichever form it has. Raises: BadSampleError."""
    if all(record.get(name) is not None for name in _LISTS):
        return _from_lists(*(record[name] for name in _LISTS))
    entries = base.cell(record, _COLUMNS, "parts")
    if not isinstance(entries, list):
        raise BadSampleError("wrong-type", f"expected a list of parts, found {shown(entries)}")
    return [entry for entry in entries if entry is not None]


def _from_lists(texts: Any, images: Any) -> list[dict[str, Any]]:
    """Parallel lists as parts; where a place has both, the picture comes first."""
    if not isinstance(texts, list) or not isinstance(images, list):
        raise BadSampleError("wrong-type", f"expected lists of texts and images, found {shown([texts, images])}")
    if len(texts) != len(images):
        message = f"expected as many texts as images (null where there is none), found {len(texts)} and {len(images)}"
        raise BadSampleError("media-count", message)
    entries: list[dict[str, Any]] = []
    for text, image in zip(texts, images, strict=True):
        entries += [] if image is None else [{"image": image}]
        entries += [] if text is None else [{"text": text}]
    return entries


def _item(entry: Any, folder: MediaFolder) -> Item:
    """One part. Raises: BadSampleError when it cannot be used."""
    if isinstance(entry, str):
        return Text(entry)
    if not isinstance(entry, dict):
        raise BadSampleError("wrong-type", f"expected a part to be an object, found {shown(entry)}")
    target, role = bool(entry.get("target", False)), _role(entry)
    if _is_media(entry):
        return replace(_shown(entry, folder), target=target, role=role)
    text = entry.get("text")
    if not isinstance(text, str) or entry.get("type", "text") != "text":
        raise BadSampleError("wrong-type", f"expected a part with 'text', 'image' or 'video', found {shown(entry)}")
    return Text(text, target, role)


def _is_media(entry: Any) -> bool:
    return isinstance(entry, dict) and (entry.get("type") in ("image", "video") or "image" in entry or "video" in entry)


def _shown(entry: Mapping[str, Any], folder: MediaFolder) -> Shown:
    kind = Video if entry.get("type") == "video" or "video" in entry else Image
    if isinstance(entry.get("base64"), str):
        try:
            return Shown(base64.b64decode(entry["base64"], validate=True), kind)
        except ValueError:
            raise BadSampleError("wrong-type", "expected a picture in base64, found other characters") from None
    value = next((entry[name] for name in _SOURCES if entry.get(name) is not None), None)
    return Shown(image_of(value, folder), kind)


def _role(entry: Mapping[str, Any]) -> Role | None:
    role: Role | None = entry.get("role")
    if role is not None and role not in _ROLES:
        raise BadSampleError("wrong-type", f"expected a role to be one of {', '.join(_ROLES)}, found {shown(role)}")
    return role


def _files(path: Path) -> list[Path]:
    return [file for file in base.files_in(path, (".jsonl", ".json"), ("",)) if _is_document(file)]


def _is_document(file: Path) -> bool:
    record = base.first_record(file)
    has_lists = all(isinstance(record.get(name), list) for name in _LISTS)
    return has_lists or any(isinstance(record.get(name), list) for name in _COLUMNS)
