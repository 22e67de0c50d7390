"""MMC4's documents: ``text_list`` and ``image_info``, the sentence that each picture belongs to and how well it fits.

Zhu et al., "Multimodal C4", arXiv:2304.06939. The path is a .jsonl file, a .tar whose members hold one document each,
or a folder or pattern of them. A picture is ``image_base64`` in its row, a file beside the .jsonl (or in ``images``),
or a member of the same tar named ``image_name``. A sentence gets one picture at most. For tars, name the reader.
"""

from __future__ import annotations

import base64
import glob
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import Field

from graftlm.data.documents import DocumentRow, Item, Limits, Shown, Side, document_row, joined
from graftlm.data.ledger import Ledger
from graftlm.data.readers import base, webdataset
from graftlm.data.rows import MediaFolder, Samples, Slice, Stored, reporter, shown
from graftlm.data.sample import Sample
from graftlm.data.sentence import Text
from graftlm.data.stream import Stream
from graftlm.errors import BadSampleError, DataError, MissingExtraError

_USED = ("text_list", "image_info", "similarity_matrix")


class Spec(base.Spec):
    """What to read; the defaults are OpenFlamingo's where it has any."""

    images: str | None = Field(None, description="folder of the pictures, if not the file's own or its 'images'")
    min_similarity: float = Field(0.24, description="pictures that fit their sentence less (CLIP cosine) are left out")
    assign: Literal["matched", "one_to_one"] = Field(
        "matched",
        description="matched: the row's matched_text_index; one_to_one: the best assignment of the pictures that are "
        "there by the row's similarity_matrix (needs scipy)",
    )
    side: Side = Field("before", description="whether a picture stands before or after its sentence")
    min_bytes: int = Field(0, ge=0, description="smaller picture files are left out (OpenFlamingo: 10000)")
    max_images: int = Field(5, ge=1, description="most pictures in one sentence (Flamingo on M3W: 5); the rest follows")
    max_chars: int = Field(2000, ge=1, description="most characters of text in one sentence; the rest follows")
    stream: bool = Field(False, description="give a stream instead of samples by number")
    shuffle: bool = Field(False, description="of a stream: another order in each epoch")
    seed: int = Field(0, description="of the stream's order")


@dataclass(frozen=True, slots=True)
class Inlined:
    """A picture in base64 inside a row, decoded when it is asked for."""

    row: Slice
    number: int

    def fetch(self) -> bytes:
        """The bytes. Raises: BadSampleError when the row no longer holds them."""
        try:
            return base64.b64decode(json.loads(self.row.fetch())["image_info"][self.number]["image_base64"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise BadSampleError("missing-file", f"{self.row.file}: picture {self.number} is gone ({error})") from None


Find: TypeAlias = "Callable[[str], str | Stored]"
"""The picture of a name. Raises BadSampleError where there is none."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One document in its file, and where its pictures are looked for."""

    name: str
    json: Slice
    find: Find


@dataclass(frozen=True, slots=True)
class FileShard:
    """One file; a single run of documents, without their words."""

    name: str
    folder: MediaFolder
    ledger: Ledger

    def runs(self, start: int) -> Iterator[Sequence[tuple[int, Entry]]]:
        """The documents in their order, numbered from 1 (lines of a .jsonl file)."""
        if start == 0:
            yield list(self._tar() if self.name.endswith(".tar") else self._lines())

    def _lines(self) -> Iterator[tuple[int, Entry]]:
        offset = 0
        try:
            with open(self.name, "rb") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        place = Slice(self.name, offset, len(line))
                        yield number, Entry(f"{Path(self.name).stem}:{number}", place, self.folder.find)
                    offset += len(line)
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read ({error.strerror}); check the path and its rights") from None

    def _tar(self) -> Iterator[tuple[int, Entry]]:
        members = webdataset.members(self.name, self.ledger)
        pictures: dict[str, Slice] = {}
        for member in members:
            for suffix, place in member.files.items():
                pictures[f"{member.key}.{suffix}"] = place
                pictures.setdefault(f"{Path(member.key).name}.{suffix}", place)

        def find(name: str) -> Slice:
            key, suffix = webdataset.split_name(name)
            if f"{key}.{suffix}" not in pictures:
                raise BadSampleError("missing-file", f"expected the picture {name} in the tar, found no such member")
            return pictures[f"{key}.{suffix}"]

        stem = Path(self.name).stem
        for member in members:
            if member.is_repeated:
                message = f"expected each base name once in a tar, found {member.key} again"
                self.ledger.add("duplicate-id", message, file=self.name, row=member.key)
        rows = [member for member in members if "json" in member.files]
        for number, member in enumerate(rows, start=1):
            yield number, Entry(f"{stem}:{member.key}", member.files["json"], find)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A picture that is there, with its number in the row and the sentence the row gives it to."""

    number: int
    source: str | Stored
    sentence: int
    similarity: float


@dataclass(slots=True)
class Pictures:
    """The pictures of one row: those that can be used, and what is wrong with the others."""

    good: list[Candidate] = field(default_factory=list)
    bad: list[BadSampleError] = field(default_factory=list)


def claims(path: str) -> bool:
    """Whether there is a .jsonl file of such documents; tars belong to webdataset unless the reader is named."""
    return any(_is_mmc4(file) for file in base.files_in(Path(path), (".jsonl",), ("",)))


def read(spec: Spec, ledger: Ledger) -> Samples[DocumentRow] | Stream[Entry]:
    """The documents of all files, in order. Raises: DataError when there is no file or no row can be used."""
    files = _files(spec.path)
    if spec.split is not None:
        files = [file for file in files if base.names_split(Path(file), spec.split)]
    if not files:
        which = f" of the split '{spec.split}'" if spec.split else ""
        raise DataError(f"{spec.path}: expected .jsonl or .tar files of MMC4{which}, found none; check the path")
    shards = [FileShard(file, _folder(spec, file), ledger) for file in files]

    def row_of(entry: Entry, shard: str, number: int) -> DocumentRow:
        return _row(entry, spec, (ledger, Path(shard), number))

    def build(entry: Entry, shard: str, number: int) -> Sequence[Sample]:
        return row_of(entry, shard, number).samples()

    if spec.stream:
        return Stream(shards, build, ledger, shuffle=spec.shuffle, seed=spec.seed, limit=spec.limit)
    rows: list[DocumentRow] = []
    for shard in shards:
        for number, entry in next(iter(shard.runs(0))):
            if spec.limit is None or len(rows) < spec.limit:
                with ledger.row(shard.name, number):
                    rows.append(row_of(entry, shard.name, number))
    kept = base.usable(rows, spec, ledger, Path(spec.path))
    return Samples(kept, DocumentRow.sample, (len(row.pieces) for row in kept))


def one_to_one(similarity: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """Pairs (picture, sentence) whose similarities have the greatest sum, each picture and sentence once at most.

    Raises: MissingExtraError without scipy.
    """
    try:
        from scipy.optimize import linear_sum_assignment  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise MissingExtraError("scipy", "documents", "assign: one_to_one of the reader mmc4") from None
    pictures, sentences = linear_sum_assignment(similarity, maximize=True)
    return [(int(picture), int(sentence)) for picture, sentence in zip(pictures, sentences, strict=True)]


def _row(entry: Entry, spec: Spec, place: tuple[Ledger, Path, int]) -> DocumentRow:
    record = _record(entry)
    sentences = base.cell(record, ("text_list",), "sentences")
    if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
        raise BadSampleError("wrong-type", f"expected text_list to be a list of strings, found {shown(sentences)}")
    info = base.cell(record, ("image_info",), "pictures")
    if not isinstance(info, list):
        raise BadSampleError("wrong-type", f"expected image_info to be a list, found {shown(info)}")
    pictures = _pictures(info, entry, spec)
    if spec.assign == "one_to_one":
        chosen = _assigned(record.get("similarity_matrix"), pictures.good, (len(info), len(sentences)))
    else:
        chosen = _matched(pictures.good, len(sentences))
    fitting = {one.sentence: one for one in chosen if one.similarity >= spec.min_similarity}
    if not fitting:
        if pictures.bad and not pictures.good:
            raise pictures.bad[0]
        best = max((one.similarity for one in chosen), default=None)
        found = "no picture" if best is None else f"{best:g} at best"
        message = f"expected a picture of similarity {spec.min_similarity:g} or more, found {found}"
        raise BadSampleError("media-count", message)
    items = _items(sentences, fitting, spec.side)
    metadata = base.extras(record, _USED)
    row = document_row(entry.name, items, Limits(spec.max_images, spec.max_chars, spec.side), metadata)
    for error in pictures.bad:
        reporter(*place)(error)
    return row


def _record(entry: Entry) -> Mapping[str, Any]:
    try:
        return base.parse_object(entry.json.fetch().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadSampleError("bad-encoding", f"expected UTF-8, found other bytes ({error.reason})") from None


def _pictures(info: Sequence[Any], entry: Entry, spec: Spec) -> Pictures:
    found = Pictures()
    for number, row in enumerate(info):
        try:
            candidate = _candidate(number, base.checked(row), entry)
            if not spec.min_bytes or _num_bytes(candidate, row) >= spec.min_bytes:
                found.good.append(candidate)
        except BadSampleError as error:
            found.bad.append(BadSampleError(error.reason, f"image_info[{number}]: {error}"))
    return found


def _candidate(number: int, row: Mapping[str, Any], entry: Entry) -> Candidate:
    sentence, similarity = row.get("matched_text_index", -1), row.get("matched_sim", 0.0)
    if not isinstance(sentence, int) or not isinstance(similarity, int | float):
        message = f"expected a whole number and a similarity, found {shown([sentence, similarity])}"
        raise BadSampleError("wrong-type", message)
    if isinstance(row.get("image_base64"), str):
        return Candidate(number, Inlined(entry.json, number), sentence, float(similarity))
    name = base.cell(row, ("image_name",), "picture")
    if not isinstance(name, str) or not name:
        raise BadSampleError("wrong-type", f"expected image_name to be a string, found {shown(name)}")
    return Candidate(number, entry.find(name), sentence, float(similarity))


def _num_bytes(candidate: Candidate, row: Mapping[str, Any]) -> int:
    source = candidate.source
    if isinstance(source, Inlined):
        return len(row["image_base64"]) * 3 // 4
    return source.size if isinstance(source, Slice) else os.stat(str(source)).st_size


def _matched(pictures: Sequence[Candidate], num_sentences: int) -> list[Candidate]:
    """The best picture of each sentence that the row gives one to. Raises: BadSampleError."""
    wrong = next((one.sentence for one in pictures if not 0 <= one.sentence < num_sentences), None)
    if wrong is not None:
        message = f"expected matched_text_index to name one of {num_sentences} sentences, found {wrong}"
        raise BadSampleError("wrong-type", message)
    best: dict[int, Candidate] = {}
    for one in pictures:
        if one.sentence not in best or one.similarity > best[one.sentence].similarity:
            best[one.sentence] = one
    return list(best.values())


def _assigned(matrix: Any, pictures: Sequence[Candidate], shape: tuple[int, int]) -> list[Candidate]:
    """Pictures and sentences paired anew by the whole matrix. Raises: BadSampleError, MissingExtraError."""
    rows = matrix if isinstance(matrix, list) else []
    is_whole = len(rows) == shape[0] and all(isinstance(row, list) and len(row) == shape[1] for row in rows)
    if not is_whole or not all(isinstance(value, int | float) and isfinite(value) for row in rows for value in row):
        message = f"expected a similarity_matrix of {shape[0]} x {shape[1]} numbers, found {shown(matrix)}"
        raise BadSampleError("wrong-type", message)
    values = [[float(value) for value in rows[one.number]] for one in pictures]
    pairs = one_to_one(values) if values else []
    return [
        Candidate(pictures[place].number, pictures[place].source, sentence, values[place][sentence])
        for place, sentence in pairs
    ]


def _items(sentences: Sequence[str], pictures: Mapping[int, Candidate], side: Side) -> list[Item]:
    items: list[Item] = []
    for number, sentence in enumerate(sentences):
        picture = [Shown(pictures[number].source)] if number in pictures else []
        items += [*picture, Text(sentence)] if side == "before" else [Text(sentence), *picture]
    return joined(items, " ")


def _folder(spec: Spec, file: str) -> MediaFolder:
    return base.picture_folder(spec.images, [Path(file).parent, Path(file).parent / "images"])


def _files(path: str) -> list[str]:
    if Path(path).exists():
        return [str(file) for file in base.files_in(Path(path), (".jsonl", ".tar"), ("",))]
    found = [name for pattern in webdataset.expanded(path) for name in glob.glob(pattern)]
    return sorted(name for name in found if name.endswith((".jsonl", ".tar")))


def _is_mmc4(file: Path) -> bool:
    return '"text_list"' in base.ends(file)  # a row with pictures inside is longer than what is looked at
