"""The photos of a folder: where they are, what their file says, and what `metadata.jsonl` beside them says."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from graftlm.data.ledger import Ledger
from graftlm.errors import BadSampleError, DataError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
METADATA = "metadata.jsonl"
_DATE_TAKEN, _DATE, _EXIF = 0x9003, 0x0132, 0x8769
_NAMES = ("file_name", "image", "file")
_DATES = ("taken", "date")


@dataclass(frozen=True, slots=True)
class PhotoFile:
    """A file as the folder tells it; `metadata` is its row of metadata.jsonl as JSON."""

    path: str
    size: int
    mtime_ns: int
    metadata: str = "{}"


@dataclass(slots=True)
class Listing:
    """What a folder holds; `unlisted`: folders and files that could not be looked at, which does not mean deleted."""

    files: list[PhotoFile] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)


def list_photos(root: Path, ledger: Ledger) -> Listing:
    """Every picture under `root`, in the order of paths; hidden files and folders are left out.

    What cannot be listed or named goes to the ledger. Raises: DataError when `root` itself cannot be listed.
    """
    if not root.is_dir():
        raise DataError(
            f"{root}: expected a folder of photos, found no such folder; check the path, or that it is mounted"
        )
    listing = Listing()
    _list_into(listing, str(root), ledger)
    listing.files.sort(key=lambda photo: photo.path)
    return listing


def content_key(path: str) -> bytes:
    """SHA-256 of a file's bytes. Raises: BadSampleError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except FileNotFoundError:
        raise BadSampleError("missing-file", f"there is no file {path}; it was deleted while it was added") from None
    except OSError as error:
        raise BadSampleError("unreadable-image", f"{path} cannot be read ({error.strerror})") from None


def date_of(photo: PhotoFile) -> float:
    """When a photo was taken, in seconds since 1970: by its metadata, its EXIF, else when its file was changed."""
    row = json.loads(photo.metadata)
    for name in _DATES:
        try:
            return datetime.fromisoformat(str(row[name])).timestamp()
        except (KeyError, ValueError, OverflowError, OSError):
            continue
    taken = _exif_date(photo.path)
    return photo.mtime_ns / 1e9 if taken is None else taken


def _list_into(listing: Listing, root: str, ledger: Ledger) -> None:
    rows: dict[str, str] = {}
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        found = _entries(folder, root, listing, ledger)
        if any(entry.name == METADATA for entry in found):
            rows.update(_metadata(folder, ledger))
        inner = [entry.path for entry in found if entry.is_dir(follow_symlinks=False)]
        waiting.extend(reversed(inner))
        for entry in found:
            if entry.path not in inner and os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                _add(listing, entry, rows, ledger)


def _entries(folder: str, root: str, listing: Listing, ledger: Ledger) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        if folder == root:
            raise DataError(f"{root}: the folder cannot be listed ({error.strerror}); check its permissions") from None
        message = f"{folder}: the folder cannot be listed ({error.strerror}); what was known of it is kept"
        ledger.add("unreadable-folder", message, file=folder)
        listing.unlisted.append(folder)
        return []


def _add(listing: Listing, entry: os.DirEntry[str], rows: Mapping[str, str], ledger: Ledger) -> None:
    try:
        entry.path.encode("utf-8")
        if not entry.is_file():
            return
        status = entry.stat()
    except UnicodeEncodeError:
        shown = entry.path.encode("utf-8", "replace").decode()
        ledger.add("bad-name", f"{shown}: its name is not UTF-8; rename it", file=shown)
        return
    except OSError as error:
        ledger.add("unreadable-image", f"{entry.path} cannot be read ({error.strerror})", file=entry.path)
        listing.unlisted.append(entry.path)
        return
    listing.files.append(PhotoFile(entry.path, status.st_size, status.st_mtime_ns, rows.get(entry.path, "{}")))


def _metadata(folder: str, ledger: Ledger) -> dict[str, str]:
    """Rows of metadata.jsonl by the path of the photo, each as JSON without the name."""
    path = os.path.join(folder, METADATA)
    rows: dict[str, str] = {}
    for number, line in _lines(path, ledger):
        try:
            row = json.loads(line, parse_constant=_refuse)
        except (ValueError, RecursionError):
            ledger.add(
                "bad-json", f"{path}, line {number}: expected a JSON object; mend the line", file=path, row=number
            )
            continue
        name = next((row[key] for key in _NAMES if isinstance(row, dict) and key in row), None)
        if not isinstance(name, str):
            message = f"{path}, line {number}: expected an object with 'file_name'; add it"
            ledger.add("missing-column", message, file=path, row=number)
            continue
        rows[os.path.normpath(os.path.join(folder, name))] = _without_name(row)
    return rows


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _without_name(row: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in row.items() if key not in _NAMES}
    return json.dumps(kept, ensure_ascii=True, sort_keys=True)


def _lines(path: str, ledger: Ledger) -> Iterator[tuple[int, str]]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except OSError as error:
        ledger.add("unreadable-metadata", f"{path} cannot be read ({error.strerror})", file=path)


def _exif_date(path: str) -> float | None:
    from PIL import Image

    try:
        with warnings.catch_warnings(), Image.open(path) as picture:
            warnings.simplefilter("ignore")
            exif = picture.getexif()
            text = exif.get_ifd(_EXIF).get(_DATE_TAKEN) or exif.get(_DATE)
        return datetime.strptime(str(text).strip("\0 "), "%Y:%m:%d %H:%M:%S").timestamp() if text else None
    except Exception:  # noqa: BLE001  (whatever is wrong with a picture's EXIF, its date is then unknown)
        return None
