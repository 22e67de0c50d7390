"""A dialogue as it grows, turn by turn, and the words in which a system reads it (no torch).

Four ways to write turns down: ``chat`` keeps the roles, which become the language model's own chat template; ``qa`` is
FROMAGe's (arXiv:2301.13823), "Q: ...\\nA:" after the pictures; ``plain`` is all that was said as it stands, a line
each; ``caption`` is the latest pictures of the user and the last words, with which the caption begins, since a
captioner has never read a dialogue.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, get_args

from graftlm.data.sentence import Image, Part, Sentence, Text
from graftlm.errors import DataError, UsageError

Format: TypeAlias = Literal["chat", "qa", "plain", "caption"]
FORMATS: tuple[Format, ...] = get_args(Format)
STOP: dict[Format, tuple[str, ...]] = {"chat": (), "qa": ("\n",), "plain": ("\n",), "caption": ("\n",)}
"""Where an answer ends, beside the language model's EOS."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What has been said; every change is a new dialogue.

    Attributes:
        sentence: the turns of user and assistant; every part has its role and none is a target
        waiting: pictures that go with the user's next words
    """

    sentence: Sentence = field(default_factory=Sentence)
    waiting: tuple[Image, ...] = ()

    def show(self, picture: Image) -> Dialogue:
        """Adds a picture to the next turn."""
        return replace(self, waiting=(*self.waiting, replace(picture, target=False, role="user")))

    def ask(self, text: str) -> Dialogue:
        """The user's turn: the waiting pictures, then the words. Raises: UsageError when there is neither."""
        words = (Text(text.strip(), role="user"),) if text.strip() else ()
        if not words and not self.waiting:
            raise UsageError("expected words or a picture (/image PATH), found an empty turn")
        return Dialogue(Sentence((*self.sentence, *self.waiting, *words)))

    def answer(self, answer: Sentence) -> Dialogue:
        """The assistant's turn, its words without space around them."""
        parts = [replace(part, target=False, role="assistant") for part in map(_stripped, answer)]
        kept = [part for part in parts if not isinstance(part, Text) or part.content]
        return replace(self, sentence=Sentence((*self.sentence, *(kept or [Text("", role="assistant")]))))

    def undo(self) -> Dialogue:
        """Takes the last step back: a waiting picture, else the last turn, whose pictures wait again.

        Raises: UsageError when nothing has been said.
        """
        if self.waiting:
            return replace(self, waiting=self.waiting[:-1])
        if not len(self.sentence):
            raise UsageError("there is no turn to take back")
        *earlier, last = turns(self.sentence)
        pictures = tuple(part for part in last if isinstance(part, Image) and part.role == "user")
        return Dialogue(_joined(earlier), pictures)

    def pictures(self) -> list[Image]:
        """Every picture of the dialogue, whoever showed it."""
        return [part for part in (*self.sentence, *self.waiting) if isinstance(part, Image)]


def turns(sentence: Sentence) -> list[Sentence]:
    """The turns of a dialogue, oldest first: what the user said and the answer to it."""
    found: list[list[Part]] = []
    before = "assistant"
    for part in sentence:
        if not found or (part.role == "user" and before != "user"):
            found.append([])
        found[-1].append(part)
        before = part.role or "user"
    return [Sentence(tuple(parts)) for parts in found]


def latest(sentence: Sentence, dropped: int) -> Sentence:
    """The dialogue without its `dropped` oldest turns."""
    return _joined(turns(sentence)[dropped:])


def written(sentence: Sentence, form: Format, *, feed_back: bool = True) -> Sentence:
    """A dialogue that ends with the user's turn as a prompt. `feed_back`: with the pictures of earlier answers."""
    shown = Sentence(tuple(part for part in sentence if feed_back or not _is_answer_picture(part)))
    if form == "chat":
        return shown
    write = {"qa": _as_questions, "plain": _as_lines, "caption": _as_caption}[form]
    return Sentence(tuple(_merged(write(shown))))


def check_dialogue(sentence: Sentence, where: str) -> Sentence:
    """The sentence, if it is a dialogue. Raises: DataError."""
    for number, part in enumerate(sentence, start=1):
        if part.target or part.role not in ("user", "assistant") or not isinstance(part, Text | Image):
            raise DataError(
                f"{where}, part {number}: expected text or a picture of role user or assistant and no target, found "
                f"{type(part).__name__.lower()} of role {part.role}{', a target' if part.target else ''}"
            )
    return sentence


def _as_questions(sentence: Sentence) -> list[Part]:
    """Pictures, "Q: words", "A:" and the answer on one line."""
    parts: list[Part] = []
    for turn in turns(sentence):
        asked = [part for part in turn if part.role == "user"]
        words = " ".join(part.content for part in asked if isinstance(part, Text))
        parts += [_without_role(part) for part in asked if not isinstance(part, Text)]
        parts.append(Text(f"Q: {words}\nA:" if words else "A:"))
        answered = [part for part in turn if part.role != "user"]
        parts += [Text(f" {part.content}") if isinstance(part, Text) else _without_role(part) for part in answered]
        if answered:
            parts.append(Text("\n"))
    return parts


def _as_lines(sentence: Sentence) -> list[Part]:
    """Everything as it stands; a text that follows a text begins a line."""
    parts: list[Part] = []
    for part in sentence:
        if isinstance(part, Text) and not part.content:
            continue
        follows = bool(parts) and isinstance(parts[-1], Text) and isinstance(part, Text)
        parts.append(Text(("\n" if follows else "") + part.content) if isinstance(part, Text) else _without_role(part))
    return parts


def _as_caption(sentence: Sentence) -> list[Part]:
    """The pictures of the last turn that showed some, and the words of the last turn."""
    asked = [[part for part in turn if part.role == "user"] for turn in turns(sentence)]
    shown = [[part for part in parts if isinstance(part, Image)] for parts in asked]
    pictures = next((found for found in reversed(shown) if found), [])
    words = [part for part in asked[-1] if isinstance(part, Text)]
    return [*map(_without_role, pictures), *map(_without_role, words)]


def _without_role(part: Part) -> Part:
    return replace(part, role=None)


def _merged(parts: Iterable[Part]) -> list[Part]:
    """Neighbouring texts as one, so that they are cut into tokens together."""
    merged: list[Part] = []
    for part in parts:
        if merged and isinstance(part, Text) and isinstance(before := merged[-1], Text):
            merged[-1] = Text(before.content + part.content)
        else:
            merged.append(part)
    return merged


def _stripped(part: Part) -> Part:
    return replace(part, content=part.content.strip()) if isinstance(part, Text) else part


def _is_answer_picture(part: Part) -> bool:
    return isinstance(part, Image) and part.role == "assistant"


def _joined(sentences: Iterable[Sentence]) -> Sentence:
    return Sentence(tuple(part for sentence in sentences for part in sentence))
