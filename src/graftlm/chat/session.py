"""One dialogue with a loaded graft: what is said, what is set, where it is kept. It prints nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from graftlm.chat.answerer import Answer, Answerer
from graftlm.chat.history import History, check_replaceable, read_history
from graftlm.chat.settings import Settings
from graftlm.data.dialogue import Dialogue
from graftlm.data.gallery import Gallery
from graftlm.data.media import load_image
from graftlm.data.sentence import Image, Sentence, Text
from graftlm.errors import DataError, GraftError, UsageError


@dataclass(frozen=True, slots=True)
class Opened:
    """A gallery that answers take pictures from; `name`: what opens it again; `close` lets go of it."""

    gallery: Gallery
    name: str
    note: str
    close: Callable[[], None] = lambda: None


@dataclass(slots=True)
class Session:
    """A dialogue that goes on.

    Attributes:
        graft: its name; fingerprint: its hash
        open_index: opens the index of a folder or a name, building it where there is none
        tell: is told what the user should know besides the answers
        path: where the dialogue is kept after every change; None: nowhere
        takes_any: whether a history of another graft is taken
    """

    answerer: Answerer
    graft: str
    open_index: Callable[[str], Opened]
    tell: Callable[[str], None]
    settings: Settings
    path: Path | None = None
    takes_any: bool = False
    dialogue: Dialogue = field(default_factory=Dialogue)
    opened: Opened | None = None
    fingerprint: str = ""
    _told: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.fingerprint = self.fingerprint or self.answerer.fingerprint()

    def say(self, text: str, on_text: Callable[[str], None] | None = None) -> Answer:
        """The user's turn and the answer to it. `on_text` is told text as it is written, where that can be.

        Stopped by KeyboardInterrupt, the words told so far are the answer; before any, the turn has not been said.
        """
        asked = self.dialogue.ask(text.encode("utf-8", "replace").decode())
        pieces: list[str] = []

        def told(piece: str) -> None:
            pieces.append(piece)
            if on_text is not None:
                on_text(piece)

        gallery = self.opened.gallery if self.opened else None
        try:
            answer = self.answerer.answer(asked.sentence, self.settings, gallery, told if on_text else None)
        except KeyboardInterrupt:
            if "".join(pieces).strip():
                self._keep(asked.answer(Sentence((Text("".join(pieces), role="assistant"),))))
            raise
        self._keep(asked.answer(answer.sentence))
        self._note(answer)
        return answer

    def show(self, path: str) -> Image:
        """Adds a picture to the next turn. Raises: BadSampleError when it cannot be read."""
        place = os.path.abspath(os.path.expanduser(path))
        load_image(place)
        picture = Image(place, role="user")
        self._keep(self.dialogue.show(picture))
        return picture

    def undo(self) -> None:
        """Takes the last step back. Raises: UsageError when there is none."""
        self._keep(self.dialogue.undo())

    def back_to(self, dialogue: Dialogue) -> None:
        """Takes an earlier dialogue up again."""
        self._keep(dialogue)

    def reset(self) -> None:
        """Begins anew; the settings and the index stay."""
        self._keep(Dialogue())

    def set(self, name: str, value: str) -> None:
        """Changes a setting. Raises: UsageError for an unknown one or a value that does not fit."""
        changed = self.settings.changed(name, value)
        self.answerer.check(changed)
        self.settings = changed
        self._keep(self.dialogue)

    def index(self, name: str) -> Opened:
        """Takes the pictures of answers from a folder's or a named index. Raises: UsageError, DataError."""
        if not self.answerer.shows_pictures:
            name = self.answerer.system.name
            raise UsageError(
                f"{name}: expected a graft that answers with pictures, as fromage, found one of text alone"
            )
        opened = self.open_index(name)
        if self.opened is not None:
            self.opened.close()
        self.opened = opened
        self._keep(self.dialogue)
        return opened

    def save(self, path: Path) -> None:
        """Writes the dialogue. Raises: DataError when something else has that name; CheckpointError."""
        check_replaceable(path)
        self._history().write(path)

    def load(self, path: Path) -> None:
        """Goes on with a dialogue and its settings; its index is opened unless one is open.

        Raises: DataError when it is none or belongs to another graft; CheckpointError.
        """
        found = read_history(path)
        if found.fingerprint != self.fingerprint and not self.takes_any:
            raise DataError(
                f"{path}: expected a dialogue with the graft '{self.graft}', found one with '{found.graft}' (or with "
                "another state of it); load that graft, or take it all the same with --force"
            )
        self.answerer.check(found.settings)
        self.dialogue, self.settings = found.dialogue, found.settings
        if found.index and self.opened is None and self.answerer.shows_pictures:
            try:
                self.opened = self.open_index(found.index)
            except GraftError as error:
                self.tell(f"going on without the index '{found.index}': {error}")
        self._keep(self.dialogue)

    def resume(self, path: Path) -> None:
        """Keeps the dialogue in a file from now on, going on with what it holds.

        Raises: as `load`, and CheckpointError where nothing can be written.
        """
        if path.exists():
            self.load(path)
        self._history().write(path)
        self.path = path

    def close(self) -> None:
        """Lets go of the index."""
        if self.opened is not None:
            self.opened.close()
            self.opened = None

    def _history(self) -> History:
        index = self.opened.name if self.opened else ""
        return History(self.graft, self.fingerprint, self.dialogue, self.settings, index)

    def _keep(self, dialogue: Dialogue) -> None:
        self.dialogue = dialogue
        if self.path is not None:
            try:
                self._history().write(self.path)
            except GraftError as error:
                self.tell(str(error))

    def _note(self, answer: Answer) -> None:
        """What happened beside the answer."""
        if all(isinstance(part, Text) and not part.content.strip() for part in answer.sentence):
            self.tell("(an empty answer)")
        if answer.dropped:
            self._tell_once("the dialogue is longer than the language model can read: its oldest turns are left out")
        for path in answer.missing:
            self._tell_once(f"{path} cannot be read any more: the dialogue goes on without it")

    def _tell_once(self, sentence: str) -> None:
        if sentence not in self._told:
            self._told.add(sentence)
            self.tell(sentence)
