"""Plain text that sets itself tasks, for pre-training prompts (PPT, arXiv:2109.04332).

``{reader: self_supervised, path: books.txt, format: pair, limit: 20000}``: a .txt with an empty line between documents,
or a .jsonl with a column of text. The format *single* needs how a text sounds, in a column `stars` (0 to 4, or another
name): ratings, or the labels of a classifier.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from graftlm.data.ledger import Ledger
from graftlm.data.readers import base
from graftlm.data.rows import Samples
from graftlm.data.sample import Sample
from graftlm.data.self_supervised import STAR_WORDS, FormatName, as_choice, choice, pair, sentences_of, single
from graftlm.data.sentence import Sentence, Text
from graftlm.errors import BadSampleError, ConfigError, DataError

_WANTED = "a .txt of documents or a .jsonl with a column of text"


class Spec(base.Spec):
    """What to read; `limit`: how many tasks are made of it."""

    format: FormatName = Field("pair", description="pair, choice or single (PPT §3.2)")
    unified: bool = Field(False, description="as a choice among lettered options, whatever the format")
    hybrid: bool = Field(False, description="with a hard prompt around the words")
    column: str = Field("text", description="column of a .jsonl that holds the text; passage.text: inside")
    stars: str = Field("stars", description="column with 0 to 4, for single")
    seed: int = Field(0, ge=0, description="another seed makes other tasks of the same text")


def claims(path: str) -> bool:
    """Never: any text could be read so."""
    return False


def read(spec: Spec, ledger: Ledger) -> Samples[int]:
    """The tasks; each depends on the seed and its number alone. Raises: DataError for text that allows none."""
    place = Path(spec.path)
    file = base.one_file(base.files_in(place, (".txt", ".jsonl")), place, spec.split, _WANTED)
    rows = _rows(file, spec, ledger)
    ledger.check()
    if spec.format == "single":
        rated = [(text, stars) for text, stars in rows if stars is not None]
        count = min(spec.limit or len(rated), len(rated))
        made = [single(*row, hybrid=spec.hybrid) for row in rated[:count]]
        return Samples(range(count), lambda at, _: _sample(made[at], at, spec), [1] * count)
    documents = [found for text, _ in rows if (found := sentences_of(text))]
    make = pair if spec.format == "pair" else choice
    make(documents, random.Random(0))  # text that is too short is told now
    count = spec.limit or sum(map(len, documents))

    def build(number: int, _: int) -> Sample:
        return _sample(make(documents, random.Random(f"{spec.seed}/{number}"), hybrid=spec.hybrid), number, spec)

    return Samples(range(count), build, [1] * count)


def _sample(sentence: Sentence, number: int, spec: Spec) -> Sample:
    sentence = as_choice(sentence) if spec.unified and spec.format != "choice" else sentence
    target = sentence.targets().parts[0]
    assert isinstance(target, Text)
    return Sample(sentence, f"{spec.format}/{number}", (target.content.strip(),))


def _rows(file: Path, spec: Spec, ledger: Ledger) -> list[tuple[str, int | None]]:
    """Texts, and their stars where they are asked for."""
    if file.suffix == ".txt":
        if spec.format == "single":
            raise ConfigError(f"{file}: format single needs a .jsonl with the column '{spec.stars}', found a .txt")
        return [(text, None) for text in _documents(file, ledger)]
    found: list[tuple[str, int | None]] = []
    for line, record in base.json_lines(file, ledger):
        with ledger.row(file, line):
            text = _cell(record, spec.column)
            stars = base.cell(record, [spec.stars], "stars") if spec.format == "single" else None
            if not isinstance(text, str) or not text.strip():
                raise BadSampleError("wrong-type", f"expected words in '{spec.column}', found {text!r}")
            if stars is not None and (not isinstance(stars, int) or not 0 <= stars < len(STAR_WORDS)):
                raise BadSampleError("wrong-type", f"expected '{spec.stars}' to be 0 to 4, found {stars!r}")
            found.append((" ".join(text.split()), stars))
    if not found:
        raise DataError(f"{file}: expected rows with text, found none; {ledger.summary()}")
    return found


def _cell(record: Mapping[str, Any], column: str) -> Any:
    """A column by name; "passage.text" is the text of a passage. Raises: BadSampleError when it is missing."""
    found: Any = record
    for name in column.split("."):
        found = base.cell(found if isinstance(found, dict) else {}, [name], "text")
    return found


def _documents(file: Path, ledger: Ledger) -> list[str]:
    """The parts of a text file between empty lines."""
    found: list[list[str]] = [[]]
    last = 0
    for number, line in base.text_lines(file, ledger):
        if number > last + 1:
            found.append([])
        found[-1].append(line)
        last = number
    return [" ".join(lines) for lines in found if lines]
