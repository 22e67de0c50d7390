"""Where indexes lie: $GRAFTLM_HOME/indexes/<name>, and which of them is whose folder's."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from graftlm.errors import DataError, UsageError
from graftlm.index.catalogue import FILE
from graftlm.index.image_index import ImageIndex
from graftlm.index.writer import LOCK

_NAME = re.compile(r"[\w][\w .-]*")
_OWN_FILES = ("vectors-*", "approximate-*", f"{FILE}*", "bad_samples.jsonl", LOCK)


def default_folder() -> Path:
    """The folder of all indexes: $GRAFTLM_HOME/indexes, else ~/.cache/graftlm/indexes."""
    given = os.environ.get("GRAFTLM_HOME")
    return (Path(given).expanduser() if given else Path.home() / ".cache" / "graftlm") / "indexes"


def folder_of(name: str) -> Path:
    """The folder of an index by name. Raises: UsageError for a name that is none."""
    if not _NAME.fullmatch(name) or len(name) > 100:
        raise UsageError(f"name of an index: expected letters, digits, spaces, . _ -, found '{name}'")
    return default_folder() / name


def names() -> list[str]:
    """The indexes there are."""
    return sorted(path.parent.name for path in default_folder().glob(f"*/{FILE}"))


def name_for(root: Path) -> str:
    """The index that holds a folder of photos, else a new name after the folder."""
    known = holding(root)
    if known is not None:
        return known
    base = re.sub(r"[^\w.-]+", "-", root.absolute().name).strip("-.") or "photos"
    taken = set(names())
    numbered = (base if number == 1 else f"{base}-{number}" for number in range(1, len(taken) + 2))
    return next(name for name in numbered if name not in taken)


def folder_meant(words: str) -> Path | None:
    """The folder of photos that is meant, or None for the name of an index: a folder of the same name, which the index
    does not hold, comes first.

    Raises: DataError when it is neither, or a folder whose name cannot be written down.
    """
    place = Path(words).expanduser().resolve()
    is_name = words in names()
    if is_name and not (place.is_dir() and holding(place) != words):
        return None
    if not place.is_dir():
        there = ", ".join(names()) or "none yet"
        raise DataError(f"{words}: expected a folder of photos or the name of an index ({there}), found neither")
    return check_name(place)


def check_name(folder: Path) -> Path:
    """The folder. Raises: DataError when its name is not UTF-8, which the catalogue cannot write down."""
    try:
        str(folder).encode("utf-8")
    except UnicodeEncodeError:
        shown = str(folder).encode("utf-8", "replace").decode()
        raise DataError(f"{shown}: expected a folder whose name is UTF-8, found other bytes; rename it") from None
    return folder


def holding(root: Path) -> str | None:
    """The index to which a folder, or one above it, was added; None where there is none."""
    place = root.absolute()
    for name in names():
        try:
            with ImageIndex(default_folder() / name) as index:
                roots = {Path(root) for root in index.info().roots}
        except DataError:
            continue  # a damaged index holds no folder
        if roots & {place, *place.parents}:
            return name
    return None


def remove(name: str) -> None:
    """Removes an index; the photos stay. Raises: DataError when there is none of that name."""
    folder = folder_of(name)
    if not folder.is_dir():
        raise DataError(f"there is no index '{name}' (there are: {', '.join(names()) or 'none yet'})")
    for pattern in _OWN_FILES:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        shutil.rmtree(folder)
