"""VisDial v1.0: dialogues of ten questions about a photo, each with a hundred candidate answers.

Das et al., "Visual Dialog", arXiv:1611.08669. Photos lie as ``VisualDialog_val2018_000000000001.jpg`` (or COCO's names)
beside the file, in ``images`` or in the folder of their set. Dense annotations (relevance of every candidate in one
round of a dialogue) are taken from the file ``*dense_annotations*.json`` beside it. A sentence is the photo and the
dialogue as "Q: ...? A: ...", every answer a target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from graftlm.data.ledger import Ledger
from graftlm.data.readers import base
from graftlm.data.rows import MediaFolder, Samples, shown
from graftlm.data.sample import Sample
from graftlm.data.sentence import Image, Part, Sentence, Text
from graftlm.errors import BadSampleError, DataError

_WANTED = "a json file of VisDial v1.0 ('data' with 'dialogs', 'questions' and 'answers')"
_SETS = ("val2018", "test2018")


class Spec(base.Spec):
    """What to read."""

    images: str | None = Field(None, description="folder of the photos, if not one of the usual places")
    dense: str | None = Field(None, description="file of dense annotations, if not the one beside the dialogues")


@dataclass(frozen=True, slots=True)
class Round:
    """One question with its candidates; `relevance`: of every candidate, where people have judged this round."""

    question: str
    answer: str
    options: tuple[str, ...]
    right: int
    relevance: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class DialogueRow:
    """One dialogue; `dense`: its judged round as (round_id as in the file, relevance)."""

    key: str
    image: str
    caption: str
    rounds: tuple[Round, ...]
    dense: tuple[int, tuple[float, ...]] | None

    def sample(self) -> Sample:
        """Photo, questions, answers as targets."""
        parts: list[Part] = [Image(self.image)]
        for number, one in enumerate(self.rounds):
            parts += [Text(f"{chr(10) if number else ''}Q: {one.question}\nA:"), Text(f" {one.answer}", target=True)]
        metadata = {"rounds": self.rounds, "dense": self.dense, "caption": self.caption}
        return Sample(Sentence(tuple(parts)), self.key, (self.rounds[0].answer,), metadata)


def claims(path: str) -> bool:
    """Whether there is a file of dialogues."""
    return bool(_files(Path(path)))


def read(spec: Spec, ledger: Ledger) -> Samples[DialogueRow]:
    """The dialogues in the order of the file. Raises: DataError when the file is none or no row can be used."""
    path = Path(spec.path)
    file = base.one_file([path] if path.is_file() else _files(path), path, spec.split, _WANTED)
    content = base.load_json(file)
    data = content.get("data") if isinstance(content, dict) else None
    questions, answers, dialogues = base.tables(data, ("questions", "answers", "dialogs"), file)
    dense = _dense(file, spec)
    folder = base.picture_folder(spec.images, base.photo_places(file, [f"VisualDialog_{name}" for name in _SETS]))
    rows: list[DialogueRow] = []
    seen: set[str] = set()
    for number, record in enumerate(dialogues):
        with ledger.row(file, f"dialogs[{number}]"):
            row = _row(base.checked(record), questions, answers, folder, dense)
            if row.key in seen:
                raise BadSampleError("duplicate-id", f"expected each image_id once, found {row.key} again")
            seen.add(row.key)
            rows.append(row)
    kept = base.usable(rows, spec, ledger, file)
    return Samples(kept, lambda row, _: row.sample(), [1] * len(kept))


def _row(
    record: Mapping[str, Any],
    questions: Sequence[Any],
    answers: Sequence[Any],
    folder: MediaFolder,
    dense: Mapping[int, tuple[int, tuple[float, ...]]],
) -> DialogueRow:
    image_id = base.cell(record, ("image_id",), "image id")
    turns = base.cell(record, ("dialog",), "dialogue")
    if not isinstance(image_id, int) or not isinstance(turns, list) or not turns:
        raise BadSampleError("wrong-type", f"expected an image id and rounds, found {shown([image_id, turns])}")
    judged = dense.get(image_id)
    rounds = []
    for number, turn in enumerate(turns, start=1):
        relevance = judged[1] if judged is not None and judged[0] == number else None
        rounds.append(_round(base.checked(turn), questions, answers, relevance))
    return DialogueRow(str(image_id), _photo(image_id, folder), str(record.get("caption", "")), tuple(rounds), judged)


def _round(
    turn: Mapping[str, Any], questions: Sequence[Any], answers: Sequence[Any], relevance: tuple[float, ...] | None
) -> Round:
    places = base.cell(turn, ("answer_options",), "candidates")
    right = base.cell(turn, ("gt_index",), "place of the right candidate")
    if not isinstance(places, list) or not isinstance(right, int) or not 0 <= right < len(places):
        raise BadSampleError("wrong-type", f"expected candidates and the place of one of them, found {shown(right)}")
    options = tuple(_words(answers, place) for place in places)
    if relevance is not None and len(relevance) != len(options):
        raise BadSampleError("wrong-count", f"expected relevance of {len(options)} candidates, found {len(relevance)}")
    question = _words(questions, base.cell(turn, ("question",), "question")).rstrip("?").rstrip()
    answer = _words(answers, turn["answer"]) if "answer" in turn else options[right]
    return Round(f"{question}?", answer, options, right, relevance)


def _words(table: Sequence[Any], place: Any) -> str:
    if not isinstance(place, int) or not 0 <= place < len(table) or not isinstance(table[place], str):
        raise BadSampleError("wrong-type", f"expected the place of a text among {len(table)}, found {shown(place)}")
    if not table[place].strip():
        raise BadSampleError("empty-caption", f"expected words at place {place}, found white space")
    return str(table[place]).strip()


def _photo(image_id: int, folder: MediaFolder) -> str:
    names = [f"VisualDialog_{name}_{image_id:012d}.jpg" for name in _SETS]
    names += [f"COCO_{name}_{image_id:012d}.jpg" for name in ("train2014", "val2014")]
    for name in names[:-1]:
        try:
            return folder.find(name)
        except BadSampleError:
            continue
    return folder.find(names[-1])


def _dense(file: Path, spec: Spec) -> dict[int, tuple[int, tuple[float, ...]]]:
    """Round (from 1) and relevance of every candidate by image. Raises: DataError when the file is none of these."""
    if spec.dense is None:
        beside = sorted(file.parent.glob("*dense_annotations*.json"))
        if not beside:
            return {}
        place = beside[0]
    else:
        place = Path(spec.dense)
    rows = base.load_json(place)
    found: dict[int, tuple[int, tuple[float, ...]]] = {}
    for number, row in enumerate(rows if isinstance(rows, list) else [None]):
        relevance = row.get("gt_relevance", row.get("relevance")) if isinstance(row, dict) else None
        if (
            not isinstance(relevance, list)
            or not all(isinstance(value, int | float) for value in relevance)
            or not all(isinstance(row.get(name), int) for name in ("image_id", "round_id"))
        ):
            raise DataError(f"{place} row {number}: expected image_id, round_id and gt_relevance, found {shown(row)}")
        found[row["image_id"]] = row["round_id"], tuple(float(value) for value in relevance)
    if found and min(number for number, _ in found.values()) < 1:
        raise DataError(f"{place}: expected round_id to count from 1, found 0; is it another version of the file?")
    return found


def _files(path: Path) -> list[Path]:
    return [file for file in base.files_in(path, (".json",)) if _is_visdial(file)]


def _is_visdial(file: Path) -> bool:
    text = base.ends(file)  # in a large file the dialogues may lie in neither end
    is_named = "visdial" in file.name.lower()
    return "dense" not in file.name and (is_named or '"dialogs"' in text or '"answer_options"' in text)
