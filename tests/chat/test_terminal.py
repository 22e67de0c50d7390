"""The dialogue line by line: commands, answers as they are printed, JSON, pictures in the terminal."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from graftlm.chat.answerer import Answer
from graftlm.chat.commands import COMMANDS, LeaveError, run
from graftlm.chat.history import read_history
from graftlm.chat.inline import escape_codes, protocol_of
from graftlm.chat.session import Opened, Session
from graftlm.chat.terminal import Terminal, converse, converse_json, printable
from graftlm.data.dialogue import Dialogue
from graftlm.data.sentence import Image, Sentence, Text
from graftlm.errors import DataError, UsageError
from tests.chat.parts import ALWAYS, NEVER, answerer, gallery, photos, session


class Screen:
    """A terminal that keeps what it was shown and told."""

    def __init__(self, talk: Session) -> None:
        self.out = ""
        self.told: list[str] = []
        talk.tell = self.told.append
        self.talk = talk
        self.terminal = Terminal(talk, self.write)

    def write(self, text: str) -> None:
        self.out += text

    def lines(self, *lines: str | BaseException, is_typed: bool = True) -> bool:
        """Follows lines; an exception among them is raised where a line is read."""
        left: Iterator[str | BaseException] = iter(lines)

        def read() -> str | None:
            line = next(left, None)
            if isinstance(line, BaseException):
                raise line
            return line

        return converse(self.terminal, read, is_typed=is_typed)


def test_an_answer_is_printed_as_it_is_kept(tmp_path: Path) -> None:
    screen = Screen(session("clipcap"))
    (path,) = photos(tmp_path, 1)
    assert screen.lines(f"/image {path}", "hello")
    answer = screen.talk.dialogue.sentence.parts[-1]
    assert isinstance(answer, Text)
    assert screen.out.rstrip("\n") == printable(f"with your next words: {path}\n{answer.content}").rstrip("\n")


def test_pictures_of_an_answer_are_printed_as_paths_with_scores(tmp_path: Path) -> None:
    paths = photos(tmp_path, 3)
    screen = Screen(session("fromage", paths))
    assert screen.lines(f"/set bias {ALWAYS}", "/set most 2", "a dog")
    found = re.findall(r"^(.+\.png)  \(score (-?\d\.\d{3})\)$", screen.out, flags=re.MULTILINE)
    assert len(found) == 2
    assert {path for path, _ in found} < set(paths)


def test_pictures_are_drawn_where_the_terminal_can(tmp_path: Path) -> None:
    screen = Screen(session("fromage", photos(tmp_path, 1)))
    screen.terminal.inline = "kitty"
    screen.lines(f"/set bias {ALWAYS}", "a dog")
    assert "\x1b_Ga=T" in screen.out


def test_an_empty_line_is_nothing_unless_a_picture_waits(tmp_path: Path) -> None:
    screen = Screen(session("clipcap"))
    screen.lines("", "  ")
    assert screen.talk.dialogue == Dialogue()
    screen.lines(f"/image {photos(tmp_path)[0]}", "")
    assert len(screen.talk.dialogue.sentence) == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/imgae x.png", "unknown command '/imgae'; did you mean '/image'?"),
        ("/", "unknown command '/'"),
        ("/image", "/image: expected the path of a picture"),
        ("/image gone.png", "there is no file"),
        ("/image ~nobody-of-that-name/x.png", "there is no file"),
        ("/image " + "x" * 5000, "x"),
        ("/image 'half a quote", "there is no file"),
        ("/index photos", "expected a graft that answers with pictures"),
        ("/save", "/save: expected the path of a file"),
        ("/save /proc/nowhere/talk.json", "cannot be written"),
        ("/load gone.json", "expected the file of a dialogue, found no such file"),
        ("/load " + "x" * 5000, "File name too long"),
        ("/undo", "no turn to take back"),
        ("/set bais 1", "did you mean 'bias'?"),
        ("/set bias", "expected a name and a value"),
        ("/set most many", "most: expected a whole number"),
        ("x" * 3000, "does not fit into 1024"),
    ],
)
def test_what_cannot_be_followed_is_a_sentence_and_the_dialogue_goes_on(line: str, says: str) -> None:
    screen = Screen(session("clipcap"))
    assert screen.lines(line, "hello")
    assert len(screen.told) == 1
    assert says in screen.told[0]
    assert "\n" not in screen.told[0]
    assert len(screen.talk.dialogue.sentence) == 2


def test_piped_lines_that_fail_make_the_whole_fail_and_typed_ones_do_not() -> None:
    assert not Screen(session("clipcap")).lines("/undo", "hello", is_typed=False)
    assert Screen(session("clipcap")).lines("hello", is_typed=False)
    assert Screen(session("clipcap")).lines("/undo")


def test_an_interrupt_leaves_the_answer_and_not_the_dialogue(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(session("clipcap"))
    answer = screen.talk.answerer.answer

    def interrupted(dialogue: Sentence, *rest: object) -> Answer:
        if dialogue.text().endswith("slow"):
            raise KeyboardInterrupt
        return answer(dialogue, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(screen.talk.answerer, "answer", interrupted)
    assert screen.lines("slow", KeyboardInterrupt(), "quick")
    assert screen.told[:2] == ["stopped; Ctrl-D or /quit leaves"] * 2
    assert screen.talk.dialogue.sentence.parts[0] == Text("quick", role="user")
    with pytest.raises(KeyboardInterrupt):
        screen.lines("slow", is_typed=False)


def test_a_reader_that_goes_away_ends_it() -> None:
    screen = Screen(session("clipcap"))

    def broken(text: str) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    screen.terminal.write = broken
    with pytest.raises(BrokenPipeError):
        screen.lines("hello", is_typed=False)


def test_quit_leaves_what_follows_unread() -> None:
    screen = Screen(session("clipcap"))
    assert screen.lines("/quit", "hello")
    assert screen.talk.dialogue == Dialogue()
    with pytest.raises(LeaveError):
        run(screen.talk, "/QUIT")


def test_a_line_with_two_signs_is_said_with_one() -> None:
    screen = Screen(session("clipcap"))
    screen.lines("//image is a word")
    assert screen.talk.dialogue.sentence.parts[0] == Text("/image is a word", role="user")


def test_the_history_says_who_said_what(tmp_path: Path) -> None:
    talk = session("clipcap")
    assert run(talk, "/history") == "nothing has been said yet"
    first, second = photos(tmp_path, 2)
    talk.show(first)
    talk.say("hello")
    talk.show(second)
    answer = talk.dialogue.sentence.parts[-1]
    assert isinstance(answer, Text)
    expected = [f"you: [{first}]", "you: hello", f"graft: {answer.content}", f"you: [{second}]"]
    assert run(talk, "/history") == "\n".join(expected)


def test_a_dialogue_is_saved_reset_and_loaded(tmp_path: Path) -> None:
    talk = session("clipcap")
    talk.say("hello")
    before = talk.dialogue
    path = tmp_path / "a talk.json"
    run(talk, f"/save {path}")
    run(talk, "/reset")
    assert talk.dialogue == Dialogue()
    run(talk, f"/load '{path}'")
    assert talk.dialogue == before == read_history(path).dialogue


def test_several_pictures_with_odd_names_are_taken_as_they_are_typed(tmp_path: Path) -> None:
    talk = session("clipcap")
    (path,) = photos(tmp_path, 1)
    odd = tmp_path / "it's a dog.png"
    odd.write_bytes(Path(path).read_bytes())
    escaped = str(odd).replace(" ", "\\ ").replace("'", "\\'")
    for line in (f"/image {odd}", f"/image {escaped}", f'/image "{odd}"', f'/image {path} "{odd}"'):
        run(talk, line)
    assert [picture.source for picture in talk.dialogue.waiting] == [str(odd)] * 3 + [path, str(odd)]


def test_the_settings_are_listed_and_changed() -> None:
    talk = session("clipcap")
    assert "bias 0.0  (added to the logit of [RET]" in run(talk, "/set")
    assert run(talk, "/set bias=1.5").startswith("bias 1.5 ")
    assert talk.settings.bias == 1.5


def test_the_help_names_every_command() -> None:
    shown = run(session("clipcap"), "/help")
    assert [name for name in COMMANDS if f"/{name} " not in shown] == []


def test_an_index_is_opened_once_at_a_time_and_named_in_the_history(tmp_path: Path) -> None:
    talk = session("fromage")
    paths, closed = photos(tmp_path, 2), []

    def open_index(name: str) -> Opened:
        if name == "gone":
            raise DataError("there is no index 'gone'")
        return Opened(gallery(paths), name, f"photos of {name}", lambda: closed.append(name))

    talk.open_index = open_index
    assert run(talk, "/index") == "no index is open; /index FOLDER opens one"
    assert run(talk, "/index one") == run(talk, "/index") == "photos of one"
    with pytest.raises(DataError):
        run(talk, "/index gone")
    assert closed == []
    run(talk, "/index two")
    assert closed == ["one"]
    talk.save(tmp_path / "talk.json")
    again = session("fromage")
    again.open_index = open_index
    again.load(tmp_path / "talk.json")
    assert again.opened is not None
    assert again.opened.name == "two"


def test_a_history_whose_index_is_gone_goes_on_without_it(tmp_path: Path) -> None:
    talk = session("fromage", photos(tmp_path, 1))
    talk.save(tmp_path / "talk.json")
    screen = Screen(session("fromage"))

    def refuse(name: str) -> Opened:
        raise UsageError(f"there is no index '{name}'")

    screen.talk.open_index = refuse
    screen.talk.load(tmp_path / "talk.json")
    assert screen.told == ["going on without the index 'photos': there is no index 'photos'"]


def talk_json(talk: Session, *rows: object) -> tuple[bool, list[dict[str, object]]]:
    """Every row answered, and whether all could be."""
    written: list[str] = []
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    is_whole = converse_json(talk, lines, written.append)
    return is_whole, [json.loads(line) for line in written]


def test_json_lines_are_answered_line_by_line(tmp_path: Path) -> None:
    paths = photos(tmp_path, 2)
    talk = session("fromage", paths)
    talk.set("bias", ALWAYS)
    is_whole, (first, second) = talk_json(talk, {"text": "a dog", "images": [paths[0]]}, {"text": "/help"})
    assert is_whole
    (picture,) = first["images"]  # type: ignore[misc]
    assert picture["path"] == paths[1]
    assert -1 <= picture["score"] <= 1
    assert Sentence.from_json(first["sentence"]) == Sentence((Image(paths[1], role="assistant"),))  # type: ignore[arg-type]
    assert second["images"] == []
    assert talk.dialogue.sentence.text().startswith("a dog/help")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("nonsense", "line 1: expected a JSON object"),
        ("[" * 100_000, "line 1: expected a JSON object"),
        ([1], "found [1]"),
        ({"txt": "x"}, 'of "text" and "images"'),
        ({"text": 1}, "expected 'text' to be a string"),
        ({"images": "a.png"}, "expected 'images' to be a list of paths"),
        ({"images": [1]}, "expected 'images' to be a list of paths"),
        ({"images": ["gone.png"]}, "there is no file"),
        ({"images": ["\ud800"]}, ""),
        ({}, "empty turn"),
    ],
)
def test_a_json_line_that_cannot_be_answered_is_an_error_and_the_next_is_answered(row: object, says: str) -> None:
    talk = session("clipcap")
    is_whole, (bad, good) = talk_json(talk, row, {"text": "hello \ud800"})
    assert not is_whole
    assert says in str(bad["error"])
    assert set(good) == {"text", "images", "sentence", "dropped_turns"}
    assert len(talk.dialogue.sentence) == 2


def test_a_failed_json_line_leaves_no_picture_behind(tmp_path: Path) -> None:
    talk = session("clipcap")
    talk_json(talk, {"text": "x", "images": [photos(tmp_path)[0], "gone.png"]})
    assert talk.dialogue == Dialogue()


def test_what_steers_a_terminal_is_not_printed() -> None:
    assert printable("a\x1b[2Jb\r\x07c\nd\te\u202e") == "a[2Jbc\nd\te"
    screen = Screen(session("clipcap"))
    screen.talk.answerer = answerer("clipcap")
    screen.lines("a")
    assert "\x1b" not in screen.out


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"LC_TERMINAL": "iTerm2"}, "iterm"),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/x"}, None),
        ({"TERM": "xterm-256color"}, None),
        ({}, None),
    ],
)
def test_the_terminal_is_known_by_its_environment(environment: dict[str, str], expected: str | None) -> None:
    assert protocol_of(environment) == expected


def test_both_protocols_carry_the_picture_whole(tmp_path: Path) -> None:
    import io

    import PIL.Image

    noise = tmp_path / "noise.png"
    PIL.Image.effect_noise((640, 400), 90).save(noise)
    kitty = escape_codes(str(noise), "kitty")
    chunks = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", kitty)
    assert [keys for keys, _ in chunks] == ["a=T,f=100,m=1", *["m=1"] * (len(chunks) - 2), "m=0"]
    assert all(len(data) <= 4096 for _, data in chunks)
    assert "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in chunks) == kitty
    iterm = re.fullmatch(
        r"\x1b\]1337;File=inline=1;size=(\d+);preserveAspectRatio=1:(.*)\x07", escape_codes(str(noise), "iterm")
    )
    assert iterm is not None
    for data in ("".join(data for _, data in chunks), iterm[2]):
        assert PIL.Image.open(io.BytesIO(base64.b64decode(data))).size == (320, 200)
    assert int(iterm[1]) == len(base64.b64decode(iterm[2]))


def test_words_and_pictures_come_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = photos(tmp_path, 1)
    screen = Screen(session("fromage"))
    parts = (Text(" look: ", role="assistant"), Image(path, role="assistant"), Text("nice", role="assistant"))
    monkeypatch.setattr(screen.talk.answerer, "answer", lambda *_: Answer(Sentence(parts), (0.25,)))
    screen.lines("show me")
    assert screen.out == f"look:\n{path}  (score 0.250)\nnice\n"


def test_a_bias_against_pictures_gives_words(tmp_path: Path) -> None:
    screen = Screen(session("fromage", photos(tmp_path, 1)))
    screen.lines(f"/set bias {NEVER}", "a")
    assert "score" not in screen.out
