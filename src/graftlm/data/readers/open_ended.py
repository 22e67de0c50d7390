"""Open-Ended miniImageNet and the like (Frozen, arXiv:2106.13884): json lists of episodes of fast concept binding.

A record holds ``image_1``, ``caption_1`` ... in the prompt's order, ``question``, ``question_image`` and ``answer``.
Words and order are taken from the file; names are what the captions say a picture is ("This is a dax.": dax).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from graftlm.data.binding import Episode
from graftlm.data.ledger import Ledger
from graftlm.data.readers import base
from graftlm.data.rows import MediaFolder, Samples, Stored, image_of, media, shown
from graftlm.data.sample import Sample
from graftlm.data.sentence import Media
from graftlm.errors import BadSampleError

_WANTED = "a json file of episodes ('image_1', 'caption_1' ... 'question', 'question_image', 'answer')"
_NUMBERED = re.compile(r"image_(\d+)")
_NAME = re.compile(r"\bis\s+(?:an?\s+)?(.+?)\s*\.?\s*$")


class Spec(base.Spec):
    """What to read."""

    images: str | None = Field(None, description="folder of the pictures, if not beside the file or in 'images'")


@dataclass(frozen=True, slots=True)
class EpisodeRow:
    """One episode of the file."""

    key: str
    examples: tuple[tuple[Media | Stored, str], ...]
    names: tuple[str, ...]
    question: str
    image: Media | Stored
    answer: str

    def sample(self) -> Sample:
        """The episode as a prompt with its answer as target."""
        examples = tuple((media(image), words) for image, words in self.examples)
        return Episode(self.names, examples, self.question, ((media(self.image), self.answer),)).sample(self.key)


def claims(path: str) -> bool:
    """Whether there is a file of episodes."""
    return bool(_files(Path(path)))


def read(spec: Spec, ledger: Ledger) -> Samples[EpisodeRow]:
    """The episodes in the order of the file. Raises: DataError when the file is none or no episode can be used."""
    path = Path(spec.path)
    file = base.one_file([path] if path.is_file() else _files(path), path, spec.split, _WANTED)
    folder = base.picture_folder(spec.images, base.photo_places(file, []))
    splits = base.Splits(spec.split, file)
    rows: list[EpisodeRow] = []
    for number, record in base.records(file, ledger):
        if splits.accepts(record):
            with ledger.row(file, number):
                rows.append(_row(record, folder, f"{file.stem}:{number}"))
    if rows or not ledger.entries:
        splits.check()
    kept = base.usable(rows, spec, ledger, file)
    return Samples(kept, lambda row, _: row.sample(), [1] * len(kept))


def _row(record: Mapping[str, Any], folder: MediaFolder, key: str) -> EpisodeRow:
    """An episode. Raises: BadSampleError when the record is none."""
    numbers = sorted(int(match[1]) for column in record if (match := _NUMBERED.fullmatch(column)))
    if not numbers:
        raise BadSampleError("missing-column", f"expected image_1, caption_1 ..., found {', '.join(record) or 'none'}")
    examples = tuple(
        (image_of(record[f"image_{number}"], folder), _words(record, f"caption_{number}")) for number in numbers
    )
    answer = _words(record, "answer").removesuffix(".").strip()
    names = tuple(dict.fromkeys(_name(words) for _, words in examples))
    if answer not in names:
        raise BadSampleError(
            "answer-not-in-choices", f"expected the answer among the names told ({', '.join(names)}), found {answer!r}"
        )
    image = image_of(base.cell(record, ("question_image",), "picture asked about"), folder)
    return EpisodeRow(key, examples, names, _words(record, "question"), image, answer)


def _words(record: Mapping[str, Any], column: str) -> str:
    value = base.cell(record, (column,), column)
    if not isinstance(value, str) or not value.strip():
        raise BadSampleError("wrong-type", f"expected words in {column}, found {shown(value)}")
    return value.strip()


def _name(words: str) -> str:
    found = _NAME.search(words)
    if found is None:
        raise BadSampleError("wrong-type", f"expected a caption as 'This is a dax.', found {shown(words)}")
    return found[1]


def _files(path: Path) -> list[Path]:
    return [file for file in base.files_in(path, (".json",)) if _is_episodes(file)]


def _is_episodes(file: Path) -> bool:
    record = base.first_record(file)
    return "question_image" in record and any(_NUMBERED.fullmatch(str(column)) for column in record)
