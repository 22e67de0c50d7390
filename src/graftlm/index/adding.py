"""A folder into an index: what is new, changed or gone since the last time, a committed batch at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from graftlm.data.gallery import Vectors
from graftlm.data.ledger import Ledger
from graftlm.data.sentence import Image
from graftlm.errors import BadSampleError, ShapeError
from graftlm.index.files import Listing, PhotoFile, content_key, date_of, list_photos
from graftlm.index.writer import IndexWriter, Known, Photo

Embed = Callable[[Sequence[Image]], Vectors]
"""Pictures to (N, q) unit vectors; raises BadSampleError for one that cannot be read."""

BATCH = 32
_HASHED_AT_ONCE = 4
_RACY_NS = 2_000_000_000
_UNKNOWN_TIME = -1


@dataclass(slots=True)
class AddResult:
    """What `add_folder` did.

    Attributes:
        new, changed, unchanged, removed: files; duplicates: new or changed ones whose content had a vector already
        encoded: contents that were given a vector; bad: files that cannot be used, with the sentence why
        seconds: in all
    """

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    duplicates: int = 0
    encoded: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def add_folder(
    writer: IndexWriter,
    root: Path,
    embed: Embed,
    ledger: Ledger,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> AddResult:
    """Brings the index up to date with a folder; stopped at any point and called again, it goes on.

    `progress` is told how many of the new and changed files are done. A file that cannot be read goes to the ledger and
    is tried again when it changes. Raises: DataError when the folder cannot be listed or the index not be written.
    """
    started = time.perf_counter()
    root = Path(root).absolute()
    listing = list_photos(root, ledger)
    writer.add_root(root)
    known = writer.known(root)
    result = AddResult()
    todo = [file for file in listing.files if _is_different(file, known.get(file.path), result)]
    progress(0, len(todo))
    with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
        for start in range(0, len(todo), BATCH):
            _add_batch(writer, todo[start : start + BATCH], known, embed, ledger, result, pool)
            progress(min(start + BATCH, len(todo)), len(todo))
    result.removed = writer.remove(_gone(listing, known))
    writer.tidy()
    result.seconds = time.perf_counter() - started
    return result


def count_changes(known: dict[str, tuple[int, int]], root: Path) -> int:
    """How many photos under a folder are new, changed or gone since they were added."""
    files = {file.path: (file.size, file.mtime_ns) for file in list_photos(Path(root).absolute(), Ledger()).files}
    start = f"{Path(root).absolute()}/"
    before = {path: what for path, what in known.items() if path.startswith(start)}
    different = sum(
        1 for path, (size, time_ns) in files.items() if before.get(path) not in ((size, time_ns), (size, _UNKNOWN_TIME))
    )
    return different + len(before.keys() - files.keys())


def _is_different(file: PhotoFile, known: Known | None, result: AddResult) -> bool:
    if known is None:
        result.new += 1
    elif (file.size, file.mtime_ns, file.metadata) != (known.size, known.mtime_ns, known.metadata):
        result.changed += 1
    else:
        result.unchanged += 1
        return False
    return True


def _gone(listing: Listing, known: dict[str, Known]) -> Iterator[str]:
    there = {*(file.path for file in listing.files), *listing.unlisted}
    hidden = tuple(f"{folder}/" for folder in listing.unlisted)
    return (path for path in known if path not in there and not (hidden and path.startswith(hidden)))


def _add_batch(
    writer: IndexWriter,
    files: Sequence[PhotoFile],
    known: dict[str, Known],
    embed: Embed,
    ledger: Ledger,
    result: AddResult,
    pool: ThreadPoolExecutor,
) -> None:
    errors: dict[str, BadSampleError] = {}
    keys: dict[str, bytes] = {}
    for file, found in zip(files, pool.map(_key_or_error, files), strict=True):
        if isinstance(found, bytes):
            keys[file.path] = found
        else:
            errors[file.path] = found
    unknown = writer.unknown(keys.values())
    first: dict[bytes, str] = {}
    for path, key in keys.items():
        if key in unknown:
            first.setdefault(key, path)
    vectors, bad = _embedded(embed, first)
    errors |= {path: bad[key] for path, key in keys.items() if key in bad}
    writer.add([_photo(file, keys, errors) for file in files], vectors)
    result.encoded += len(vectors)
    result.duplicates += sum(path not in errors for path in keys) - len(vectors)
    for path, error in errors.items():
        result.bad[path] = str(error)
        ledger.add(error.reason, str(error), file=path)


def _embedded(embed: Embed, paths: dict[bytes, str]) -> tuple[dict[bytes, Vectors], dict[bytes, BadSampleError]]:
    """Vectors of contents, and the errors of those that are no pictures."""
    if not paths:
        return {}, {}
    try:
        return _paired(embed, paths), {}
    except BadSampleError as error:
        if len(paths) == 1:
            return {}, {next(iter(paths)): error}
    vectors: dict[bytes, Vectors] = {}
    bad: dict[bytes, BadSampleError] = {}
    for key, path in paths.items():
        one, errors = _embedded(embed, {key: path})
        vectors |= one
        bad |= errors
    return vectors, bad


def _paired(embed: Embed, paths: dict[bytes, str]) -> dict[bytes, Vectors]:
    vectors = embed([Image(path) for path in paths.values()])
    if len(vectors) != len(paths):
        raise ShapeError(f"the graft: expected {len(paths)} vectors, one a photo, found {len(vectors)}")
    return dict(zip(paths, vectors, strict=True))


def _photo(file: PhotoFile, keys: dict[str, bytes], errors: dict[str, BadSampleError]) -> Photo:
    # A file changed a moment ago can change again within one tick of its time stamp: its time is not relied on.
    is_fresh = time.time_ns() - file.mtime_ns < _RACY_NS
    mtime_ns = _UNKNOWN_TIME if is_fresh else file.mtime_ns
    if file.path in errors:
        return Photo(file.path, file.size, mtime_ns, None, 0.0, file.metadata, errors[file.path].reason)
    return Photo(file.path, file.size, mtime_ns, keys[file.path], date_of(file), file.metadata)


def _key_or_error(file: PhotoFile) -> bytes | BadSampleError:
    try:
        return content_key(file.path)
    except BadSampleError as error:
        return error
