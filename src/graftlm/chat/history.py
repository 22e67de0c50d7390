"""A dialogue on the disk: one JSON object with its sentence, whose graft answered, and the settings.

Written under a temporary name, flushed and renamed: a process that is killed leaves the turns it had finished.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftlm.chat.settings import Settings
from graftlm.data.dialogue import Dialogue, check_dialogue
from graftlm.data.sentence import Image, Sentence
from graftlm.errors import DataError, GraftError
from graftlm.storage import read_json, replace_file

FORMAT = 1
_LARGEST = 256 << 20
_KINDS: dict[str, type] = {"graft": str, "fingerprint": str, "settings": dict, "sentence": list, "waiting": list}


@dataclass(frozen=True, slots=True)
class History:
    """What is kept.

    Attributes:
        graft: name or folder of the graft that answered; fingerprint: of its weights and frozen parts
        index: name of the image index its pictures came from; "" for none
    """

    graft: str
    fingerprint: str
    dialogue: Dialogue
    settings: Settings
    index: str = ""

    def write(self, path: Path) -> None:
        """Replaces the file. Raises: CheckpointError when the disk does not take it."""
        row = {
            "format": FORMAT,
            "graft": self.graft,
            "fingerprint": self.fingerprint,
            "settings": self.settings.to_json(),
            "index": self.index,
            "waiting": Sentence(self.dialogue.waiting).to_json(),
            "sentence": self.dialogue.sentence.to_json(),
        }
        replace_file(path, (json.dumps(row, indent=1) + "\n").encode())


def read_history(path: Path) -> History:
    """A dialogue that was written. Raises: CheckpointError, DataError when the file is none or is damaged."""
    if not path.is_file():
        raise DataError(f"{path}: expected the file of a dialogue, found no such file; check the path")
    if path.stat().st_size > _LARGEST:
        raise DataError(f"{path}: expected the file of a dialogue, found {path.stat().st_size:,} bytes; choose another")
    row = read_json(path)
    _check(row, path)
    where = str(path)
    waiting = check_dialogue(_sentence(row["waiting"], where), f"{where}, waiting")
    pictures = tuple(part for part in waiting if isinstance(part, Image))
    dialogue = Dialogue(check_dialogue(_sentence(row["sentence"], where), where), pictures)
    return History(
        graft=row["graft"],
        fingerprint=row["fingerprint"],
        dialogue=dialogue,
        settings=Settings.from_json(row["settings"], where),
        index=str(row.get("index") or ""),
    )


def check_replaceable(path: Path) -> None:
    """Raises: DataError when there is a file that is no dialogue and would be lost."""
    if not path.exists():
        return
    try:
        read_history(path)
    except GraftError:
        raise DataError(f"{path}: there is something else of that name, which is kept; choose another name") from None


def _check(row: Mapping[str, Any], path: Path) -> None:
    if "sentence" not in row:
        raise DataError(f"{path}: expected a dialogue of `graft chat`, found another JSON file; choose another")
    if row.get("format") != FORMAT:
        raise DataError(f"{path}: expected a dialogue of format {FORMAT}, found {row.get('format')}; update graftlm")
    for key, kind in _KINDS.items():
        if not isinstance(row.get(key), kind):
            raise DataError(f"{path}: expected '{key}' to be of type {kind.__name__}; the file is damaged")


def _sentence(rows: list[Any], where: str) -> Sentence:
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{where}: expected a sentence of JSON objects; the file is damaged")
    try:
        return Sentence.from_json(rows)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
