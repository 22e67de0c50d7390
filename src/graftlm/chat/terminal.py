"""The dialogue line by line: typed at a terminal, piped as text, or piped as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from graftlm.chat.answerer import Answer
from graftlm.chat.commands import LeaveError, as_text, is_command, path_of, run
from graftlm.chat.inline import Protocol, escape_codes
from graftlm.chat.session import Session
from graftlm.data.sentence import Image, Text
from graftlm.errors import DataError, GraftError

Say = Callable[[str], None]
_KEYS = {"text": str, "images": list}


@dataclass(slots=True)
class Terminal:
    """A dialogue in lines of text.

    Attributes:
        write: puts text on stdout as it is; inline: how pictures are drawn, None: not at all
        failed: whether a line could not be followed
    """

    session: Session
    write: Say
    inline: Protocol | None = None
    failed: bool = False
    _begun: bool = False

    def follow(self, line: str) -> None:
        """One line: a command, or words for the graft. Raises: LeaveError; KeyboardInterrupt."""
        try:
            if is_command(line):
                self.write(printable(run(self.session, line)) + "\n")
            elif line.strip() or self.session.dialogue.waiting:
                self.say(as_text(line))
        except BrokenPipeError:  # nobody reads the answers any more
            raise
        except (GraftError, OSError) as error:
            self._end_line()
            self.failed = True
            self.session.tell(sentence_of(error))

    def say(self, text: str) -> None:
        """Words for the graft, and its answer as it comes."""
        self._begun = False
        try:
            answer = self.session.say(text, self._stream)
        except KeyboardInterrupt:
            self._end_line()
            raise
        if self._begun:
            self._end_line()
        else:
            self._print(answer)

    def _stream(self, piece: str) -> None:
        shown = printable(piece if self._begun else piece.lstrip())
        if shown:
            self._begun = True
            self.write(shown)

    def _end_line(self) -> None:
        if self._begun:
            self._begun = False
            self.write("\n")

    def _print(self, answer: Answer) -> None:
        scores = iter(answer.scores)
        lines = []
        for part in answer.sentence:
            if isinstance(part, Image):
                lines.append(f"{printable(path_of(part))}  (score {next(scores):.3f})")
                if self.inline is not None:
                    lines.append(escape_codes(part.source, self.inline))
            elif isinstance(part, Text) and part.content.strip():
                lines.append(printable(part.content.strip()))
        self.write("\n".join(lines) + "\n")


def converse(terminal: Terminal, read: Callable[[], str | None], *, is_typed: bool) -> bool:
    """Follows line after line until there is none; returns whether all could be. `read`: None at the end.

    Typed at a terminal, Ctrl-C stops an answer and the dialogue goes on; otherwise it ends everything.
    """
    while True:
        try:
            line = read()
            if line is None:
                return is_typed or not terminal.failed
            terminal.follow(line)
        except LeaveError:
            return is_typed or not terminal.failed
        except UnicodeDecodeError:
            terminal.failed = True
            terminal.session.tell("expected a line of UTF-8, found another encoding; type it again")
        except KeyboardInterrupt:
            if not is_typed:
                raise
            terminal.session.tell("stopped; Ctrl-D or /quit leaves")


def converse_json(session: Session, lines: Iterable[str], write: Say) -> bool:
    """One JSON object a line in, {"text": ..., "images": [...]}, and one out; returns whether all could be answered."""
    is_whole = True
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        before = session.dialogue
        try:
            row = _request(line, number)
            for path in row.get("images", []):
                session.show(path)
            answered = answer_row(session.say(row.get("text", "")))
        except (GraftError, OSError) as error:
            session.back_to(before)
            is_whole = False
            answered = {"error": sentence_of(error)}
        write(json.dumps(answered, ensure_ascii=False) + "\n")
    return is_whole


def answer_row(answer: Answer) -> dict[str, Any]:
    """An answer as plain values: its words, its pictures with scores, and the whole as Sentence JSON."""
    pictures = [part for part in answer.sentence if isinstance(part, Image)]
    words = [part.content.strip() for part in answer.sentence if isinstance(part, Text)]
    return {
        "text": " ".join(word for word in words if word),
        "images": [
            {"path": path_of(picture), "score": round(score, 6)}
            for picture, score in zip(pictures, answer.scores, strict=True)
        ],
        "sentence": answer.sentence.to_json(),
        "dropped_turns": answer.dropped,
    }


def sentence_of(error: Exception) -> str:
    """What went wrong, in one sentence."""
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or error}; check the path and its permissions"
    return str(error)


def printable(text: str) -> str:
    """Text without the characters that steer a terminal."""
    return "".join(character for character in text if character.isprintable() or character in "\n\t")


def _request(line: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError(f'line {number}: expected a JSON object as {{"text": "hello"}}, found no JSON') from None
    if not isinstance(row, dict) or not row.keys() <= _KEYS.keys():
        raise DataError(f'line {number}: expected a JSON object of "text" and "images", found {line.strip()[:80]}')
    for key, value in row.items():
        if not isinstance(value, _KEYS[key]) or not all(isinstance(path, str) for path in value):
            kind = "a string" if key == "text" else "a list of paths"
            raise DataError(f"line {number}: expected '{key}' to be {kind}, found {json.dumps(value)[:80]}")
    return row
