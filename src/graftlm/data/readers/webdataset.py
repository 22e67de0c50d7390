"""Webdataset tars: ``0001.jpg`` with ``0001.txt`` or ``0001.json`` beside it, one photo per base name.

The path is a tar, a folder of tars or a pattern ("shards/train-{0000..0063}.tar", "shards/*.tar"). Only the headers
and the words are read beforehand; a picture is read from its place in the tar when its sample is asked for.
"""

from __future__ import annotations

import glob
import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from graftlm.data.ledger import Ledger
from graftlm.data.readers import base
from graftlm.data.rows import IMAGE_SUFFIXES, CaptionStyle, PhotoRow, Samples, Slice, captions_of, reporter
from graftlm.data.sample import Sample
from graftlm.data.stream import Stream
from graftlm.errors import BadSampleError, DataError

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_TEXT_SUFFIXES = ("txt", "caption", "text")
_MAX_TEXT_BYTES = 1 << 20


class Spec(base.CaptionSpec):
    """What to read."""

    stream: bool = Field(False, description="give a stream instead of samples by number")
    shuffle: bool = Field(False, description="of a stream: another order in each epoch")
    seed: int = Field(0, description="of the stream's order")


@dataclass(frozen=True, slots=True)
class Member:
    """All files of one base name: their places by suffix."""

    key: str
    files: Mapping[str, Slice]
    is_repeated: bool = False


@dataclass(frozen=True, slots=True)
class TarShard:
    """One tar; a single run of members, without their bytes."""

    name: str
    ledger: Ledger

    def runs(self, start: int) -> Iterator[Sequence[tuple[int, Member]]]:
        """The tar's members in their order."""
        if start == 0:
            yield list(enumerate(members(self.name, self.ledger), start=1))


def claims(path: str) -> bool:
    """Whether there are tars."""
    return bool(_tars(path))


def read(spec: Spec, ledger: Ledger) -> Samples[PhotoRow] | Stream[Member]:
    """The photos of all tars, in order. Raises: DataError when there is no tar or no row can be used."""
    tars = _tars(spec.path)
    if spec.split is not None:
        tars = [tar for tar in tars if base.names_split(Path(tar), spec.split)]
    if not tars:
        which = f" of the split '{spec.split}'" if spec.split else ""
        raise DataError(f"{spec.path}: expected .tar files{which}, found none; unpack a .tar.gz first")
    style = spec.style()
    shards = [TarShard(tar, ledger) for tar in tars]

    def row_of(member: Member, shard: str, row: int) -> PhotoRow:
        return photo(member, style, (ledger, shard, row))

    if not spec.stream:
        rows = base.gathered(shards, row_of, base.Splits(None, Path(tars[0])), spec, ledger)
        return base.photo_samples(rows, spec, ledger, Path(spec.path))

    def build(member: Member, shard: str, row: int) -> Sequence[Sample]:
        return style.samples(row_of(member, shard, row))

    return Stream(shards, build, ledger, shuffle=spec.shuffle, seed=spec.seed, limit=spec.limit)


def members(tar: str, ledger: Ledger) -> list[Member]:
    """The base names of a tar in order, from its headers. Raises: DataError when it is no tar."""
    groups: dict[str, dict[str, Slice]] = {}
    repeated: dict[str, None] = {}
    size = Path(tar).stat().st_size if Path(tar).is_file() else 0
    last = ""
    for info in _headers(tar, size, ledger):
        key, suffix = split_name(info.name)
        if not info.isfile() or not suffix or Path(key).name.startswith("."):
            continue
        if info.offset_data + info.size > size:
            message = f"expected {info.size} bytes of {info.name}, found the end of the tar; copy it again"
            ledger.add("truncated-archive", message, file=tar, row=key)
            groups.pop(key, None)
            continue
        files = groups.setdefault(key, {})
        if suffix in files or (files and key != last):
            repeated[key] = None
        else:
            files[suffix] = Slice(tar, info.offset_data, info.size)
        last = key
    good = [Member(key, files) for key, files in groups.items()]
    return [*good, *(Member(key, {}, is_repeated=True) for key in repeated)]


def photo(member: Member, style: CaptionStyle, place: tuple[Ledger, str, int]) -> PhotoRow:
    """A member as a row. Raises: BadSampleError when it cannot be used."""
    if member.is_repeated:
        raise BadSampleError("duplicate-id", f"expected each base name once in a tar, found {member.key} again")
    image = next((part for suffix, part in member.files.items() if f".{suffix}" in IMAGE_SUFFIXES), None)
    if image is None:
        found = ", ".join(member.files)
        raise BadSampleError("missing-column", f"expected a picture named {member.key}, found only {found}")
    metadata = _json_of(member)
    text = next((member.files[suffix] for suffix in _TEXT_SUFFIXES if suffix in member.files), None)
    value = _words(text) if text is not None else base.cell(metadata, base.TEXT_COLUMNS, "caption")
    captions = captions_of(value, style.max_chars, reporter(*place))
    return PhotoRow(member.key, image, captions, base.extras(metadata, base.TEXT_COLUMNS))


def _headers(tar: str, size: int, ledger: Ledger) -> Iterator[tarfile.TarInfo]:
    last: tarfile.TarInfo | None = None
    try:
        with tarfile.open(tar, mode="r:") as archive:
            for info in archive:
                last = info
                yield info
    except (tarfile.TarError, OSError, EOFError) as error:
        if last is None:
            raise DataError(f"{tar}: expected a tar, found something else ({error}); unpack it") from None
        if last.offset_data + last.size <= size:  # else its member was written down already
            ledger.add("truncated-archive", f"expected more members, found the end of the tar ({error})", file=tar)


def split_name(name: str) -> tuple[str, str]:
    """A member's base name, with its folder, and its suffix in lower case: ("x/0001", "jpg")."""
    folder, slash, base_name = name.rpartition("/")
    stem, _, suffix = base_name.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def _words(part: Slice) -> str:
    if part.size > _MAX_TEXT_BYTES:
        raise BadSampleError("caption-too-long", f"expected a text of at most 1 MiB, found {part.size} bytes")
    try:
        return part.fetch().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadSampleError("bad-encoding", f"expected UTF-8, found other bytes ({error.reason})") from None


def _json_of(member: Member) -> Mapping[str, Any]:
    if "json" not in member.files:
        return {}
    try:
        record = json.loads(_words(member.files["json"]))
    except (ValueError, RecursionError) as error:
        raise BadSampleError(
            "bad-json", f"expected JSON in {member.key}.json, found something else ({error})"
        ) from None
    return base.checked(record)


def _tars(path: str) -> list[str]:
    if Path(path).exists():
        return [str(file) for file in base.files_in(Path(path), (".tar",), ("",))]
    return sorted(tar for pattern in expanded(path) for tar in glob.glob(pattern) if tar.endswith(".tar"))


def expanded(path: str) -> list[str]:
    """A pattern with {000..063} as the patterns it stands for."""
    found = _BRACES.search(path)
    if found is None:
        return [path]
    low, high = found.groups()
    numbers = [str(number).zfill(len(low)) for number in range(int(low), int(high) + 1)]
    return [name for number in numbers for name in expanded(path[: found.start()] + number + path[found.end() :])]
