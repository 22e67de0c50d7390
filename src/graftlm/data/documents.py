"""Interleaved documents: texts and pictures in reading order, cut at the borders of pictures where they are too long.

A *chunk* is a run of pictures with the text that belongs to it (Flamingo §2.3, arXiv:2204.14198); a document within the
limits is one sentence, a longer one several, each of whole chunks. Every text is a target, unless the document says
itself what is to be written. A row is light: pictures inside archives are fetched when a sample is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from graftlm.data.rows import Stored, media
from graftlm.data.sample import Sample
from graftlm.data.sentence import Image, Media, Part, Role, Sentence, Text, Video
from graftlm.errors import BadSampleError

Side: TypeAlias = Literal["before", "after"]
"""Where a picture stands: before or after the text that belongs to it."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture or a film in its place, not fetched yet."""

    source: Media | Stored
    kind: type[Image] | type[Video] = Image
    target: bool = False
    role: Role | None = None

    def part(self) -> Image | Video:
        """The part itself. Raises: BadSampleError when its archive no longer holds it."""
        return self.kind(media(self.source), self.target, self.role)


Item: TypeAlias = Text | Shown


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a document makes one sentence.

    Attributes:
        most_media: pictures and films
        most_chars: characters of text
        side: where pictures stand in this document
    """

    most_media: int = 5
    most_chars: int = 2000
    side: Side = "before"


@dataclass(frozen=True, slots=True)
class DocumentRow:
    """One document as the sentences it is cut into."""

    key: str
    pieces: tuple[tuple[Item, ...], ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def sample(self, index: int) -> Sample:
        """Sentence `index` of the document. Raises: BadSampleError when a picture can no longer be fetched."""
        parts: tuple[Part, ...] = tuple(item if isinstance(item, Text) else item.part() for item in self.pieces[index])
        key = f"{self.key}#{index}" if len(self.pieces) > 1 else self.key
        return Sample(Sentence(parts), key, metadata=self.metadata)

    def samples(self) -> list[Sample]:
        """All sentences of the document."""
        return [self.sample(index) for index in range(len(self.pieces))]


def document_row(key: str, items: Sequence[Item], limits: Limits, metadata: Mapping[str, Any]) -> DocumentRow:
    """A document of which every text is to be written.

    Raises: BadSampleError when it has no text.
    """
    pieces = cut([_as_target(item) for item in items], limits)
    if not pieces:
        raise BadSampleError("missing-target", "expected a document with text to learn, found none")
    return DocumentRow(key, tuple(pieces), metadata)


def whole_row(key: str, items: Sequence[Item], limits: Limits, metadata: Mapping[str, Any]) -> DocumentRow:
    """A document that says itself what is to be written: a prompt and its answer are never taken apart.

    Raises: BadSampleError when it is beyond the limits or asks for nothing.
    """
    num_media, num_chars = _size(items)
    if num_media > limits.most_media or num_chars > limits.most_chars:
        raise BadSampleError(
            "too-long",
            f"expected at most {limits.most_media} pictures and {limits.most_chars} characters in a document with "
            f"targets of its own, found {num_media} and {num_chars}",
        )
    if not any(item.target for item in items):
        raise BadSampleError("missing-target", "expected a target in a document with roles, found none")
    return DocumentRow(key, (tuple(items),), metadata)


def joined(items: Sequence[Item], between: str) -> list[Item]:
    """Neighbouring texts as one, with `between` in the middle and no white space around; empty ones are left out."""
    found: list[Item] = []
    for item in items:
        if isinstance(item, Shown):
            found.append(item)
            continue
        text = replace(item, content=item.content.strip())
        before = found[-1] if found else None
        if not text.content:
            continue
        if isinstance(before, Text):
            found[-1] = replace(before, content=f"{before.content}{between}{text.content}")
        else:
            found.append(text)
    return found


def cut(items: Sequence[Item], limits: Limits) -> list[tuple[Item, ...]]:
    """The document in pieces of whole chunks, as many chunks in each as the limits allow.

    The text of a chunk that is longer by itself keeps the part next to its pictures and loses the rest; a run of more
    pictures than allowed is taken apart. Pieces without text are left out.
    """
    pieces: list[list[Item]] = []
    for chunk in _chunks(items, limits):
        whole = _trimmed(chunk, limits)
        num_media, num_chars = _size([*pieces[-1], *whole]) if pieces else (0, 0)
        if pieces and num_media <= limits.most_media and num_chars <= limits.most_chars:
            pieces[-1] += whole
        else:
            pieces.append(whole)
    return [tuple(piece) for piece in pieces if any(isinstance(item, Text) for item in piece)]


def _chunks(items: Sequence[Item], limits: Limits) -> Iterator[list[Item]]:
    """Runs of pictures with their text; text before the first chunk, or after the last one, goes with it."""
    chunks: list[list[Item]] = [[]]
    for before, item in zip([None, *items], items, strict=False):
        opens = isinstance(item, Shown) if limits.side == "before" else isinstance(before, Shown)
        continues = isinstance(item, Shown) and isinstance(before, Shown)
        is_full = sum(isinstance(one, Shown) for one in chunks[-1]) >= limits.most_media
        has_media = any(isinstance(one, Shown) for one in chunks[-1])
        if opens and has_media and (not continues or is_full):
            chunks.append([])
        chunks[-1].append(item)
    if len(chunks) > 1 and not any(isinstance(item, Shown) for item in chunks[-1]):
        tail = chunks.pop()
        chunks[-1] += tail
    yield from (chunk for chunk in chunks if chunk)


def _trimmed(chunk: Sequence[Item], limits: Limits) -> list[Item]:
    """The chunk within the limit of characters: text behind its pictures loses its end, text before them its start."""
    shown = [place for place, item in enumerate(chunk) if isinstance(item, Shown)]
    first = shown[0] if shown else -1
    room = limits.most_chars
    kept: dict[int, Item] = {place: chunk[place] for place in shown}
    texts = [(place, item) for place, item in enumerate(chunk) if isinstance(item, Text)]
    for place, item in sorted(texts, key=lambda entry: (entry[0] < first) is (limits.side == "before")):
        shorten = _ending if place < first else _beginning
        content = shorten(item.content, room, limits.most_chars)
        room -= len(content)
        if content:
            kept[place] = replace(item, content=content)
    return [kept[place] for place in sorted(kept)]


def _beginning(text: str, room: int, most: int) -> str:
    """As many whole words from the start as there is room for; a word that is longer than `most` is taken apart."""
    if len(text) <= room:
        return text
    kept = text[:room]
    if kept[-1:].isspace() or text[room].isspace():
        return kept.rstrip()
    words = kept.rsplit(None, 1)
    if len(words) > 1:
        return words[0]
    return kept if len(text.split(None, 1)[0]) > most else ""


def _ending(text: str, room: int, most: int) -> str:
    """As many whole words from the end as there is room for."""
    return _beginning(text[::-1], room, most)[::-1]


def _size(items: Sequence[Item]) -> tuple[int, int]:
    """Pictures and characters."""
    texts = [len(item.content) for item in items if isinstance(item, Text)]
    return len(items) - len(texts), sum(texts)


def _as_target(item: Item) -> Item:
    return replace(item, target=True) if isinstance(item, Text) else item
