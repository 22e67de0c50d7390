"""Questions about photos: rows with ``image``, ``question`` and ``answer`` or ``answers``, and VQA v2's two files.

VQA v2 (Goyal et al., arXiv:1612.00837) keeps questions and annotations apart; the most common answer is learnt, all
ten are references. ``choices`` (Visual7W, Zhu et al., arXiv:1511.03416) are shuffled by seed and row, since the
answer often comes first in the file: metadata holds ``choices`` and ``answer_index``.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from graftlm.data.ledger import Ledger
from graftlm.data.readers import base
from graftlm.data.rows import MediaFolder, Samples, Stored, image_of, media, shown
from graftlm.data.sample import Sample
from graftlm.data.sentence import Image, Media, Sentence, Text
from graftlm.errors import BadSampleError, DataError

_WANTED = "a file of questions about photos"
_ANSWERS = ("multiple_choice_answer", "answer", "answers")
_USED = (*base.IMAGE_COLUMNS, *_ANSWERS, "choices")


class Spec(base.Spec):
    """What to read."""

    images: str | None = Field(None, description="folder of the photos, if not one of the usual places")
    annotations: str | None = Field(None, description="VQA v2: the annotations file, if not beside the questions")
    prompt: str = Field("Question: {question} Answer:", description="words before the answer, with {question} in them")
    seed: int = Field(0, description="for the order of choices")

    @field_validator("prompt")
    @classmethod
    def _holds_question(cls, prompt: str) -> str:
        if "{question}" not in prompt:
            raise ValueError("expected '{question}' in the prompt")
        return prompt


@dataclass(frozen=True, slots=True)
class QuestionRow:
    """One question about one photo; `answer` is learnt, `answers` are all that count as right."""

    key: str
    image: Media | Stored
    question: str
    answer: str
    answers: tuple[str, ...]
    metadata: Mapping[str, Any]

    def sample(self, prompt: str) -> Sample:
        """Photo, question in the words of the prompt, answer as target."""
        words = prompt.replace("{question}", self.question)
        sentence = Sentence.of(Image(media(self.image)), Text(words), Text(f" {self.answer}", target=True))
        return Sample(sentence, self.key, self.answers, self.metadata)


def claims(path: str) -> bool:
    """Whether there is a file of questions."""
    return bool(_files(Path(path)))


def read(spec: Spec, ledger: Ledger) -> Samples[QuestionRow]:
    """The questions in the order of the file. Raises: DataError when the file is none or no row can be used."""
    path = Path(spec.path)
    file = base.one_file([path] if path.is_file() else _files(path), path, spec.split, _WANTED)
    records, folder = _vqa_v2(spec, file, ledger) if _is_vqa_v2(file) else _plain(spec, file, ledger)
    splits = base.Splits(spec.split, file)
    rows: list[QuestionRow] = []
    seen: set[str] = set()
    for number, record in records:
        if splits.accepts(record):
            with ledger.row(file, number):
                row = question_row(record, folder, key=f"{file.stem}:{number}", seed=spec.seed)
                if row.key in seen:
                    raise BadSampleError("duplicate-id", f"expected each question id once, found {row.key} again")
                seen.add(row.key)
                rows.append(row)
    if not ledger.entries or rows or splits.found:
        splits.check()
    kept = base.usable(rows, spec, ledger, file)
    return Samples(kept, lambda row, _: row.sample(spec.prompt), [1] * len(kept))


def question_row(record: Mapping[str, Any], folder: MediaFolder, *, key: str, seed: int) -> QuestionRow:
    """A row with the columns of a question. Raises: BadSampleError when it cannot be used."""
    image = image_of(base.cell(record, base.IMAGE_COLUMNS, "picture"), folder)
    question = base.cell(record, ("question",), "question")
    if not isinstance(question, str):
        raise BadSampleError("wrong-type", f"expected the question to be a string, found {shown(question)}")
    if not question.strip():
        raise BadSampleError("empty-caption", "expected a question, found white space")
    answers = _answers(record)
    answer = record.get("multiple_choice_answer") or Counter(answers).most_common(1)[0][0]
    key = str(record.get("question_id", record.get("id", key)))
    metadata = {**base.extras(record, _USED), "question": question}
    if record.get("choices") is not None:
        metadata |= _shuffled(record["choices"], answer, f"{seed}:{key}")
    return QuestionRow(key, image, question.strip(), str(answer).strip(), answers, metadata)


def _answers(record: Mapping[str, Any]) -> tuple[str, ...]:
    value = base.cell(record, ("answers", "answer", "multiple_choice_answer"), "answer")
    values = value if isinstance(value, list) else [value]
    words: list[str] = []
    for item in values:
        word = item.get("answer") if isinstance(item, dict) else item
        if not isinstance(word, str):
            raise BadSampleError("wrong-type", f"expected answers to be strings, found {shown(value)}")
        words.append(word)
    kept = tuple(word for word in words if word.strip())
    if not kept:
        raise BadSampleError("empty-caption", "expected an answer, found white space")
    return kept


def _shuffled(choices: Any, answer: str, seed: str) -> dict[str, Any]:
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise BadSampleError("wrong-type", f"expected choices to be a list of strings, found {shown(choices)}")
    if answer not in choices:
        raise BadSampleError("answer-not-in-choices", f"expected the answer {answer!r} among {shown(choices)}")
    order = list(choices)
    random.Random(seed).shuffle(order)
    return {"choices": tuple(order), "answer_index": order.index(answer)}


def _plain(spec: Spec, file: Path, ledger: Ledger) -> tuple[Iterator[tuple[int, Mapping[str, Any]]], MediaFolder]:
    folder = base.picture_folder(spec.images, [file.parent, file.parent / "images"])
    return base.records(file, ledger), folder


def _vqa_v2(spec: Spec, file: Path, ledger: Ledger) -> tuple[Iterator[tuple[int, Mapping[str, Any]]], MediaFolder]:
    data = base.load_json(file)
    (questions,) = base.tables(data, ("questions",), file)
    subset = str(data.get("data_subtype") or "train2014")
    answers_file = Path(spec.annotations) if spec.annotations else _annotations_beside(file)
    (annotations,) = base.tables(base.load_json(answers_file), ("annotations",), answers_file)
    answers = {row.get("question_id"): row for row in annotations if isinstance(row, dict)}
    folder = base.picture_folder(spec.images, base.photo_places(file, [subset]))
    return _joined(questions, answers, subset, file, ledger), folder


def _joined(
    questions: list[Any], answers: Mapping[Any, Mapping[str, Any]], subset: str, file: Path, ledger: Ledger
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, question in enumerate(questions, start=1):
        if not isinstance(question, dict):
            with ledger.row(file, number):
                base.checked(question)
            continue
        image_id = question.get("image_id")
        name = f"COCO_{subset}_{image_id:012d}.jpg" if isinstance(image_id, int) else image_id
        found = answers.get(question.get("question_id"), {})
        yield number, {"image": name, "split": re.sub(r"\d+$", "", subset), **found, **question}


def _annotations_beside(file: Path) -> Path:
    name = file.name.replace("OpenEnded_", "").replace("MultipleChoice_", "").replace("questions", "annotations")
    beside = file.with_name(name)
    if name != file.name and beside.is_file():
        return beside
    raise DataError(f"{file}: expected the answers in {name}, found no such file; give its path as 'annotations'")


def _files(path: Path) -> list[Path]:
    return [file for file in base.files_in(path, (".jsonl", ".json")) if _is_plain(file) or _is_vqa_v2(file)]


def _is_plain(file: Path) -> bool:
    record = base.first_record(file)
    return "question" in record and any(column in record for column in base.IMAGE_COLUMNS)


def _is_vqa_v2(file: Path) -> bool:
    text = base.ends(file)
    is_table = file.suffix.lower() == ".json" and '"questions"' in text
    return is_table and '"question_id"' in text and '"image_id"' in text
