"""Dialogues about photos: ``messages`` with content parts, or LLaVA's ``conversations``.

``messages`` are OpenAI-style; an image part without a source of its own takes the next of the row's ``images``.
In LLaVA's rows (Liu et al., "Visual Instruction Tuning", arXiv:2304.08485) ``<image>`` in the text is the place of
the row's ``image``; in a row without pictures it is text. All that the assistant says is to be learnt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from graftlm.data.ledger import Ledger
from graftlm.data.readers import base
from graftlm.data.rows import MediaFolder, Samples, image_of, media, shown
from graftlm.data.sample import Sample
from graftlm.data.sentence import Image, Media, Part, Sentence, Text
from graftlm.errors import BadSampleError, DataError

_MARK = "<image>"
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_WANTED = "a file of dialogues with 'messages' or 'conversations'"
_USED = ("messages", "conversations", "image", "images")


class Spec(base.Spec):
    """What to read."""

    images: str | None = Field(None, description="folder of the photos, if not the file's own or its 'images'")


@dataclass(frozen=True, slots=True)
class DialogueRow:
    """One dialogue, with pictures in their places."""

    key: str
    parts: tuple[Part, ...]
    metadata: Mapping[str, Any]

    def sample(self) -> Sample:
        """The dialogue; its reference is the first answer, the one a model is asked for in evaluation."""
        answers = [part.content for part in self.parts if isinstance(part, Text) and part.target]
        return Sample(Sentence(self.parts), self.key, tuple(answers[:1]), self.metadata)


def claims(path: str) -> bool:
    """Whether there is a file of dialogues."""
    return bool(_files(Path(path)))


def read(spec: Spec, ledger: Ledger) -> Samples[DialogueRow]:
    """The dialogues in the order of the file. Raises: DataError when the file is none or no row can be used."""
    path = Path(spec.path)
    file = base.one_file([path] if path.is_file() else _files(path), path, spec.split, _WANTED)
    folder = base.picture_folder(spec.images, [file.parent, file.parent / "images"])
    kept = base.keyed_rows(
        file, spec, ledger, lambda record, number: dialogue_row(record, folder, key=f"{file.stem}:{number}")
    )
    return Samples(kept, lambda row, _: row.sample(), [1] * len(kept))


def dialogue_row(record: Mapping[str, Any], folder: MediaFolder, *, key: str) -> DialogueRow:
    """A row with the columns of a dialogue. Raises: BadSampleError when it cannot be used."""
    images = _images(record, folder)
    waiting = iter(images)
    if record.get("messages") is not None:
        messages = [_message(message, waiting, folder) for message in _turns(record["messages"])]
    else:
        messages = _from_llava(_turns(base.cell(record, ("conversations",), "dialogue")), images, waiting)
    if next(waiting, None) is not None:
        raise BadSampleError("media-count", f"expected a place for each of {len(images)} pictures, found fewer")
    try:
        sentence = Sentence.from_messages(messages, train=True)
    except DataError as error:
        raise BadSampleError("wrong-type", str(error)) from None
    parts = tuple(_resolved(part, folder) for part in sentence)
    answers = [part.content for part in parts if isinstance(part, Text) and part.target]
    if not answers:
        raise BadSampleError("missing-target", "expected an answer of the assistant, found none")
    if not all(answer.strip() for answer in answers):
        raise BadSampleError("empty-caption", "expected words in each answer, found an empty one")
    return DialogueRow(str(record.get("id", key)), parts, base.extras(record, _USED))


def _turns(value: Any) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise BadSampleError("wrong-type", f"expected a list of turns, found {shown(value)}")
    return value


def _images(record: Mapping[str, Any], folder: MediaFolder) -> list[Media]:
    value = record.get("images") if record.get("images") is not None else record.get("image")
    if value is None:
        return []
    return [media(image_of(item, folder)) for item in (value if isinstance(value, list) else [value])]


def _message(message: Mapping[str, Any], waiting: Iterator[Media], folder: MediaFolder) -> dict[str, Any]:
    content = message.get("content", "")
    if not isinstance(content, str | list):
        raise BadSampleError("wrong-type", f"expected content to be words or parts, found {shown(content)}")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    return {"role": message.get("role"), "content": [_content(row, waiting, folder) for row in content]}


def _content(row: Any, waiting: Iterator[Media], folder: MediaFolder) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise BadSampleError("wrong-type", f"expected a content part to be an object, found {shown(row)}")
    if row.get("type") != "image":
        kept = ("type", "text", "image_url", "source", "base64")
        return {name: row[name] for name in kept if row.get(name) is not None}
    if row.get("base64"):
        return {"type": "image", "base64": row["base64"]}
    own = next((row[name] for name in ("source", "image", "path", "url") if row.get(name)), None)
    source = image_of(own, folder) if own is not None else next(waiting, None)
    if source is None:
        raise BadSampleError("media-count", "expected a picture for each image part, found more parts than pictures")
    return {"type": "image", "source": source}


def _from_llava(turns: list[Mapping[str, Any]], images: list[Media], waiting: Iterator[Media]) -> list[dict[str, Any]]:
    texts = [turn.get("value") for turn in turns]
    messages: list[dict[str, Any]] = []
    for turn, text in zip(turns, texts, strict=True):
        if not isinstance(text, str):
            raise BadSampleError("wrong-type", f"expected the value of a turn to be a string, found {shown(text)}")
        pieces = text.split(_MARK) if images else [text]
        content: list[dict[str, Any]] = []
        for number, piece in enumerate(pieces):
            if number:
                source = next(waiting, None)
                if source is None:
                    message = f"expected a picture for each {_MARK}, found only {len(images)}"
                    raise BadSampleError("media-count", message)
                content.append({"type": "image", "source": source})
            words = piece.strip() if len(pieces) > 1 else piece
            if words or len(pieces) == 1:
                content.append({"type": "text", "text": words})
        messages.append({"role": _ROLES.get(str(turn.get("from")), turn.get("from")), "content": content})
    if images and not any(_MARK in str(text) for text in texts):
        first = next((message for message in messages if message["role"] == "user"), messages[0])
        first["content"] = [*({"type": "image", "source": source} for source in waiting), *first["content"]]
    return messages


def _resolved(part: Part, folder: MediaFolder) -> Part:
    """Pictures that came as `image_url` are looked for here; the others were found already."""
    if isinstance(part, Image) and isinstance(part.source, str) and not Path(part.source).is_file():
        return replace(part, source=folder.find(part.source))
    return part


def _files(path: Path) -> list[Path]:
    return [file for file in base.files_in(path, (".jsonl", ".json"), ("",)) if _is_chat(file)]


def _is_chat(file: Path) -> bool:
    record = base.first_record(file)
    return isinstance(record.get("messages", record.get("conversations")), list)
