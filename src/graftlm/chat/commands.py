"""The commands between turns: `/image photo.jpg`, `/set bias 1.5`. Each returns what is printed."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from graftlm.chat.session import Session
from graftlm.data.sentence import Image, Part, Sentence, Text
from graftlm.errors import UsageError, unknown

SIGN = "/"


class LeaveError(Exception):
    """The user wants to leave."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command: what follows it, what it does, in words and in deed."""

    usage: str
    help: str
    run: Callable[[Session, str], str]


def is_command(line: str) -> bool:
    """Whether a line is a command; one that begins with two signs is text."""
    return line.lstrip().startswith(SIGN) and not line.lstrip().startswith(SIGN * 2)


def as_text(line: str) -> str:
    """What a line that is no command says."""
    text = line.strip()
    return text[1:] if text.startswith(SIGN * 2) else text


def run(session: Session, line: str) -> str:
    """Does what a command says. Raises: UsageError for an unknown one; GraftError; LeaveError."""
    name, _, rest = line.strip().removeprefix(SIGN).partition(" ")
    if name.lower() not in COMMANDS:
        raise UsageError(unknown("command", SIGN + name, [SIGN + known for known in COMMANDS]))
    return COMMANDS[name.lower()].run(session, rest.strip())


def transcript(sentence: Sentence) -> list[str]:
    """A dialogue as lines, each with who said it."""
    return [f"{'you' if part.role == 'user' else 'graft'}: {_shown(part)}" for part in sentence]


def path_of(picture: Image) -> str:
    """What a picture is called where it is shown."""
    return picture.source if isinstance(picture.source, str) else "(a picture that is no file)"


def _image(session: Session, rest: str) -> str:
    if not rest:
        raise UsageError("/image: expected the path of a picture, found none")
    pictures = [session.show(path) for path in _paths(rest)]
    return "\n".join(f"with your next words: {path_of(picture)}" for picture in pictures)


def _index(session: Session, rest: str) -> str:
    if not rest:
        return session.opened.note if session.opened else "no index is open; /index FOLDER opens one"
    (name,) = _paths(rest, one=True)
    return session.index(name).note


def _history(session: Session, rest: str) -> str:
    waiting = Sentence(session.dialogue.waiting)
    return "\n".join([*transcript(session.dialogue.sentence), *transcript(waiting)]) or "nothing has been said yet"


def _save(session: Session, rest: str) -> str:
    path = _file(rest, "/save")
    session.save(path)
    return f"saved: {path}"


def _load(session: Session, rest: str) -> str:
    session.load(_file(rest, "/load"))
    return _history(session, "")


def _undo(session: Session, rest: str) -> str:
    session.undo()
    return "taken back"


def _reset(session: Session, rest: str) -> str:
    session.reset()
    return "a new dialogue"


def _set(session: Session, rest: str) -> str:
    name, _, value = rest.replace("=", " ", 1).partition(" ")
    if not name:
        return "\n".join(session.settings.lines())
    if not value.strip():
        raise UsageError(f"/set: expected a name and a value as in '/set bias 1.5', found '{rest}'")
    session.set(name, value)
    return next(line for line in session.settings.lines() if line.startswith(f"{name} "))


def _help(session: Session, rest: str) -> str:
    width = max(len(f"{name} {command.usage}") for name, command in COMMANDS.items()) + 1
    lines = [f"{f'{SIGN}{name} {command.usage}':<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "Anything else is said to the graft; what begins with // is said with one /."])


def _quit(session: Session, rest: str) -> str:
    raise LeaveError


COMMANDS: dict[str, Command] = {
    "image": Command("PATH", "add a picture to your next words; several are allowed", _image),
    "index": Command(
        "FOLDER|NAME", "let answers show photos of a folder, which is indexed where it is not yet", _index
    ),
    "history": Command("", "show what has been said", _history),
    "save": Command("FILE", "write the dialogue", _save),
    "load": Command("FILE", "go on with a dialogue", _load),
    "undo": Command("", "take the last turn, or a picture that waits, back", _undo),
    "reset": Command("", "begin anew; settings and index stay", _reset),
    "set": Command("NAME VALUE", "change a setting; alone: show them all", _set),
    "help": Command("", "show this", _help),
    "quit": Command("", "leave (also Ctrl-D)", _quit),
}


def _shown(part: Part) -> str:
    if isinstance(part, Text):
        return part.content
    return f"[{path_of(part)}]" if isinstance(part, Image) else f"[{type(part).__name__.lower()}]"


def _file(rest: str, command: str) -> Path:
    if not rest:
        raise UsageError(f"{command}: expected the path of a file, found none")
    (name,) = _paths(rest, one=True)
    return Path(name)


def _paths(rest: str, *, one: bool = False) -> list[str]:
    """Paths as they are typed or dropped on a terminal: bare with spaces, in quotes, or with backslashes."""
    bare = os.path.expanduser(rest)
    if os.path.exists(bare):
        return [bare]
    try:
        words = [os.path.expanduser(word) for word in shlex.split(rest)]
    except ValueError:  # a quote that is not closed is part of the name
        return [bare]
    are_several = not one and any(map(os.path.exists, words))
    return words if len(words) == 1 or are_several else [bare]
