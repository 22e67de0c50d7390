"""Photos that look alike: the neighbours of each by a frozen encoder's pooled features, kept in a small file.

RICES (Yang et al., arXiv:2109.05014; Flamingo, arXiv:2204.14198) chooses examples so. The vectors come from outside,
since data know no encoder: `graft data related` computes and writes them. The file is JSONL: a line that says what it
is, then a line for each photo with its key and the numbers of its neighbours among these lines (from 0), nearest first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graftlm.data.gallery import Scores, Vectors, best
from graftlm.errors import DataError, ShapeError

_FORMAT = "graftlm-related"
_ROWS_AT_ONCE = 256
_HINT = "write it again with `graft data related`"


@dataclass(frozen=True, slots=True)
class Related:
    """The neighbours of photos.

    Attributes:
        nearest: keys of the photos that look most like a photo, by its own key, nearest first
        encoder: what the photos were compared by
    """

    nearest: Mapping[str, tuple[str, ...]]
    encoder: str = ""

    def of(self, keys: Sequence[str], where: str = "the neighbours") -> list[tuple[str, ...]]:
        """The neighbours of these photos that are among them. Raises: DataError for a photo that is not known."""
        wanted = set(keys)
        for key in keys:
            if key not in self.nearest:
                raise DataError(
                    f"{where}: expected the photo {key}, found {len(self.nearest)} others; {_HINT} for these data"
                )
        return [tuple(other for other in self.nearest[key] if other in wanted) for key in keys]


def find_related(
    keys: Sequence[str], contents: Sequence[str], vectors: Vectors, count: int, *, encoder: str = ""
) -> Related:
    """The `count` nearest photos of each by cosine, without itself and without photos of equal content.

    Shapes: vectors (N, d), of any length.
    Raises: ShapeError when the counts differ.
    """
    if not len(keys) == len(contents) == len(vectors):
        found = f"{len(keys)} keys, {len(contents)} content hashes and {len(vectors)} vectors"
        raise ShapeError(f"related photos: expected as many of each, found {found}")
    unit = np.asarray(vectors, dtype=np.float32)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)  # (N, d)
    names = np.asarray([int(content[:15], 16) for content in contents], dtype=np.int64)  # (N,)
    nearest = {}
    for row, scores in enumerate(_similarities(unit)):
        scores[names == names[row]] = -np.inf
        values, places = best(scores, count)
        nearest[keys[row]] = tuple(keys[place] for place in places[values > -np.inf])
    return Related(nearest, encoder)


def write_related(related: Related, path: Path) -> None:
    """Writes the file, whole or not at all. Raises: DataError when it cannot be written."""
    head = {"format": _FORMAT, "encoder": related.encoder, "photos": len(related.nearest)}
    numbers = {key: number for number, key in enumerate(related.nearest)}
    rows = [{"photo": key, "related": [numbers[other] for other in others]} for key, others in related.nearest.items()]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in (head, *rows))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".part")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); choose another path") from None


def read_related(path: str | Path) -> Related:
    """Reads such a file. Raises: DataError when it is none or not whole."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected neighbours of photos, found no such file ({error}); {_HINT}") from None
    head, *rows = [_parsed(line) for line in lines] or [{}]
    good = [row for row in rows if isinstance(row.get("photo"), str) and _is_numbers(row.get("related"), len(rows))]
    if head.get("format") != _FORMAT or len(good) != head.get("photos") or len(good) != len(rows):
        found = f"{len(good)} photos of {head.get('photos')}" if head.get("format") == _FORMAT else "something else"
        raise DataError(f"{path}: expected a whole file of neighbours, found {found}; {_HINT}")
    nearest = {row["photo"]: tuple(rows[number]["photo"] for number in row["related"]) for row in rows}
    return Related(nearest, str(head.get("encoder", "")))


def _similarities(unit: Scores) -> Iterator[Scores]:
    """The row of cosines of each vector with all."""
    for start in range(0, len(unit), _ROWS_AT_ONCE):
        yield from unit[start : start + _ROWS_AT_ONCE] @ unit.T


def _is_numbers(value: Any, count: int) -> bool:
    return isinstance(value, list) and all(isinstance(number, int) and 0 <= number < count for number in value)


def _parsed(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}
