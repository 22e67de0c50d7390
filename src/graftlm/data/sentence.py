"""What is said: a multimodal sentence (PaLM-E §3, arXiv:2303.03378), the one data type of every task.

A `Sentence` is an immutable sequence of parts. A part with ``target=True`` is to be produced by the model:
a `Text` target is written, an `Image` target is retrieved. This module knows no tensors and no files.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from graftlm.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image as PILImage

Role: TypeAlias = Literal["system", "user", "assistant"]
Media: TypeAlias = "str | Path | bytes | PILImage | npt.NDArray[np.uint8]"
"""A path, the encoded bytes of a file, a decoded Pillow picture, or RGB pixels in [0, 255].

Shapes: pixels are (H, W, 3), those of a film (F, H, W, 3).
"""

_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Text:
    """Words. ``target=True``: the model has to write them."""

    content: str
    target: bool = False
    role: Role | None = None


class Sought(bytes):
    """The source of a picture that is still to be found: it has no content."""

    __slots__ = ()


class Filled(str):
    """Words that a template was filled with. `shortens`: it may lose tokens where a row would be too long."""

    shortens: bool

    def __new__(cls, content: str, shortens: bool = False) -> Self:
        """The words with their mark."""
        made = super().__new__(cls, content)
        made.shortens = shortens
        return made

    def __getnewargs__(self) -> tuple[str, bool]:  # type: ignore[override]
        return str(self), self.shortens


class LabelWord(str):
    """The word of a class, as a classification task has it written.

    Attributes:
        label: the class; words: every class's words as they would stand in its place, leading space included
    """

    label: int
    words: tuple[tuple[str, ...], ...]

    def __new__(cls, label: int, words: Sequence[Sequence[str]]) -> Self:
        """The first word of class `label`. Raises: IndexError when there is no such class."""
        if not 0 <= label < len(words):
            raise IndexError(label)
        made = super().__new__(cls, words[label][0])
        made.label, made.words = label, tuple(tuple(each) for each in words)
        return made

    def __getnewargs__(self) -> tuple[int, tuple[tuple[str, ...], ...]]:  # type: ignore[override]
        return self.label, self.words


@dataclass(frozen=True, slots=True)
class Image:
    """A picture. ``target=True``: the model has to retrieve it."""

    source: Media
    target: bool = False
    role: Role | None = None

    @classmethod
    def sought(cls, role: Role | None = None) -> Image:
        """The picture that a query asks for: ``Sentence((Text("a dog"), Image.sought()))``."""
        return cls(Sought(), target=True, role=role)

    @property
    def is_sought(self) -> bool:
        """Whether it is still to be found."""
        return isinstance(self.source, Sought)


@dataclass(frozen=True, slots=True)
class Audio:
    """A sound, mono, any sample rate."""

    source: Media
    target: bool = False
    role: Role | None = None


@dataclass(frozen=True, slots=True)
class Video:
    """A film: a file, or the folder of its frames in name order."""

    source: Media
    target: bool = False
    role: Role | None = None


@dataclass(frozen=True, slots=True)
class State:
    """A robot's or a sensor's state vector (PaLM-E §4)."""

    values: tuple[float, ...]
    target: bool = False
    role: Role | None = None


Part: TypeAlias = Text | Image | Audio | Video | State
MediaPart: TypeAlias = Image | Audio | Video | State
_KINDS: dict[str, type[Part]] = {"text": Text, "image": Image, "audio": Audio, "video": Video, "state": State}
_OWN_KEYS = {"text": ("text", "filled", "label", "words"), "state": ("values",)}


@dataclass(frozen=True, slots=True)
class Sentence:
    """An immutable sequence of parts; few-shot prompting is addition."""

    parts: tuple[Part, ...] = ()

    @classmethod
    def of(cls, *parts: Part | str) -> Sentence:
        """A sentence from parts; a plain string stands for a `Text`."""
        return cls(tuple(Text(part) if isinstance(part, str) else part for part in parts))

    def __add__(self, other: Sentence) -> Sentence:
        return Sentence(self.parts + other.parts)

    def __iter__(self) -> Iterator[Part]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def prompt(self) -> Sentence:
        """Everything before the first target."""
        for index, part in enumerate(self.parts):
            if part.target:
                return Sentence(self.parts[:index])
        return self

    def targets(self) -> Sentence:
        """The target parts alone, in order."""
        return Sentence(tuple(part for part in self.parts if part.target))

    def context(self) -> Sentence:
        """The same parts with no target among them: a worked example of a few-shot prompt."""
        return Sentence(tuple(replace(part, target=False) for part in self.parts))

    def media(self) -> tuple[MediaPart, ...]:
        """The parts that are not text, in order, without pictures that are still to be found."""
        return tuple(part for part in self.parts if not isinstance(part, Text) and not _is_sought(part))

    def text(self) -> str:
        """The words alone, joined as they stand."""
        return "".join(part.content for part in self.parts if isinstance(part, Text))

    def map(self, change: Callable[[Part], Part]) -> Sentence:
        """The sentence with every part passed through `change`."""
        return Sentence(tuple(change(part) for part in self.parts))

    def to_json(self) -> list[dict[str, Any]]:
        """The wire format: one mapping per part; pictures that are not paths are inlined as base64."""
        return [_part_to_json(part) for part in self.parts]

    @classmethod
    def from_json(cls, rows: Iterable[Mapping[str, Any]]) -> Sentence:
        """The inverse of `to_json`. Raises: DataError on an unknown type, key or role."""
        return cls(tuple(_part_from_json(row) for row in rows))

    def to_messages(self) -> list[dict[str, Any]]:
        """OpenAI-style messages: neighbours of one role share a message; no role counts as user."""
        messages: list[dict[str, Any]] = []
        for part in self.parts:
            role = part.role or ("assistant" if part.target else "user")
            content = {key: value for key, value in _part_to_json(part).items() if key != "role"}
            if messages and messages[-1]["role"] == role:
                messages[-1]["content"].append(content)
            else:
                messages.append({"role": role, "content": [content]})
        return messages

    @classmethod
    def from_messages(cls, messages: Sequence[Mapping[str, Any]], *, train: bool = False) -> Sentence:
        """Reads OpenAI-style messages; with `train`, every assistant text becomes a target.

        Raises: DataError on an unknown role or content part.
        """
        parts: list[Part] = []
        for number, message in enumerate(messages):
            role = message.get("role")
            if role not in _ROLES:
                raise DataError(f"message {number}: expected role to be one of {', '.join(_ROLES)}, found {role!r}")
            content = message.get("content", "")
            rows = [{"type": "text", "text": content}] if isinstance(content, str) else content
            for row in rows:
                part = _part_from_json({**_openai_part(row, number), "role": role})
                is_target = train and role == "assistant" and isinstance(part, Text)
                parts.append(replace(part, target=True) if is_target else part)
        return cls(tuple(parts))


def _is_sought(part: Part) -> bool:
    return isinstance(part, Image) and part.is_sought


def _openai_part(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    if row.get("type") != "image_url":
        return dict(row)
    url = row.get("image_url")
    url = url.get("url") if isinstance(url, Mapping) else url
    if not isinstance(url, str):
        raise DataError(f"message {number}: expected image_url to hold a url, found {url!r}")
    return {"type": "image", "source": _from_data_url(url)}


def _from_data_url(url: str) -> str | bytes:
    if not url.startswith("data:"):
        return url
    head, _, body = url.partition(",")
    if not head.endswith(";base64"):
        raise DataError("expected a data: url in base64 (data:image/png;base64,...), found another encoding")
    try:
        return base64.b64decode(body, validate=True)
    except ValueError:
        raise DataError("expected base64 after the comma of a data: url, found other characters") from None


def _part_to_json(part: Part) -> dict[str, Any]:
    kind = next(name for name, cls in _KINDS.items() if isinstance(part, cls))
    row: dict[str, Any] = {"type": kind}
    if isinstance(part, Text):
        row["text"] = str(part.content)
        row |= _marks_to_json(part.content)
    elif isinstance(part, State):
        row["values"] = list(part.values)
    elif not _is_sought(part):
        row.update(_source_to_json(part.source))
    if part.target:
        row["target"] = True
    if part.role:
        row["role"] = part.role
    return row


def _marks_to_json(content: str) -> dict[str, Any]:
    """What a template knows of its words, beside the words."""
    if isinstance(content, Filled):
        return {"filled": "shortens" if content.shortens else "whole"}
    if isinstance(content, LabelWord):
        return {"label": content.label, "words": [list(words) for words in content.words]}
    return {}


def _marked(text: str, row: Mapping[str, Any]) -> str:
    """Words with the marks of `_marks_to_json`. Raises: DataError for marks that do not fit."""
    if "filled" in row:
        return Filled(text, row["filled"] == "shortens")
    if "label" not in row and "words" not in row:
        return text
    try:
        found = LabelWord(row["label"], row["words"])
    except (KeyError, TypeError, IndexError):
        raise DataError(
            "a part of type text: expected 'label' to be the number of a class and 'words' the words of every class, "
            f"found {row.get('label')!r} and {row.get('words')!r}"
        ) from None
    if found != text:
        raise DataError(f"a part of type text: expected the first word of its class, {str(found)!r}, found {text!r}")
    return found


def _source_to_json(source: Media) -> dict[str, str]:
    if isinstance(source, bytes):
        return {"base64": base64.b64encode(source).decode("ascii")}
    if isinstance(source, str | Path):
        return {"source": str(source)}
    import io

    buffer = io.BytesIO()
    _as_pillow(source).save(buffer, format="PNG")
    return {"base64": base64.b64encode(buffer.getvalue()).decode("ascii")}


def _as_pillow(source: Any) -> PILImage:
    from PIL import Image as Pictures

    if isinstance(source, Pictures.Image):
        return source
    try:
        return Pictures.fromarray(source)
    except (AttributeError, TypeError, ValueError):
        raise DataError(f"a picture: expected pixels or a Pillow picture, found {type(source).__name__}") from None


def _part_from_json(row: Mapping[str, Any]) -> Part:
    kind = row.get("type")
    if kind not in _KINDS:
        raise DataError(f"a part's type: expected one of {', '.join(_KINDS)}, found {kind!r}")
    role = row.get("role")
    if role is not None and role not in _ROLES:
        raise DataError(f"a part's role: expected one of {', '.join(_ROLES)}, found {role!r}")
    allowed = {"type", "target", "role", *_OWN_KEYS.get(kind, ("source", "base64"))}
    unknown = sorted(set(row) - allowed)
    if unknown:
        raise DataError(f"a part of type {kind}: unknown key {unknown[0]!r}; allowed: {', '.join(sorted(allowed))}")
    value = _value_from_json(kind, row)
    return _KINDS[kind](value, target=bool(row.get("target", False)), role=role)


def _value_from_json(kind: str, row: Mapping[str, Any]) -> Any:
    if kind == "text":
        value = row.get("text")
        if not isinstance(value, str):
            raise DataError(f"a part of type text: expected 'text' to be a string, found {value!r}")
        return _marked(value, row)
    if kind == "state":
        try:
            return tuple(float(number) for number in row["values"])
        except (KeyError, TypeError, ValueError):
            raise DataError(
                f"a part of type state: expected 'values' to be numbers, found {row.get('values')!r}"
            ) from None
    if kind == "image" and row.get("target") and "base64" not in row and "source" not in row:
        return Sought()
    if "base64" in row:
        return _from_data_url("data:;base64," + str(row["base64"]))
    source = row.get("source")
    if isinstance(source, str | bytes):
        return source
    raise DataError(f"a part of type {kind}: expected 'source' (a path) or 'base64', found neither")
